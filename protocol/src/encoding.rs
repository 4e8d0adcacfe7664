//! Strict base64 and the length-prefixed encoding that everything authenticated is fed through.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Fixed-size bytes that travel as canonical padded base64 (RFC 4648 §4); anything else is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes<const N: usize>(pub [u8; N]);

impl<const N: usize> Bytes<N> {
    /// Decodes canonical base64 of exactly `N` bytes.
    pub fn decode(text: &str) -> Option<Self> {
        let mut bytes = [0u8; N];
        // The engine refuses missing padding, trailing bits and foreign characters.
        let length = STANDARD.decode_slice(text, &mut bytes).ok()?;
        (length == N && text.len() == N.div_ceil(3) * 4).then_some(Self(bytes))
    }
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::decode(&text).ok_or_else(|| {
            serde::de::Error::custom(format_args!("not the canonical base64 of {N} bytes"))
        })
    }
}

/// Bytes of a length that their owner checks, as canonical padded base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBytes(pub Vec<u8>);

impl Serialize for SealedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SealedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD
            .decode(&text)
            .map(Self)
            .map_err(|_| serde::de::Error::custom("not canonical base64"))
    }
}

/// Concatenates fields so that no two different lists give the same bytes: each field is preceded by its length
/// in bytes as a big-endian u32.
pub fn length_prefixed(fields: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(fields.iter().map(|field| field.len() + 4).sum());
    for field in fields {
        let length = u32::try_from(field.len()).expect("fields are bounded by the body limit");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
    text
}

/// The `N` bytes that `2 * N` lower-case hexadecimal digits stand for.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0u8; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_base64_of_the_right_length_decodes() {
        assert_eq!(Bytes::<4>::decode("AAECAw=="), Some(Bytes([0, 1, 2, 3])));
        for bad in [
            "AAECAw",
            "AAECAw=",
            "AAECAx==",
            "AAEC Aw==",
            "AAECAw==\n",
            "AAEC",
            "AAECAwQ=",
            "-_-_-_==",
            "",
        ] {
            assert_eq!(Bytes::<4>::decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_encoding() {
        assert_ne!(
            length_prefixed(&[b"ab", b"c"]),
            length_prefixed(&[b"a", b"bc"])
        );
        assert_eq!(
            length_prefixed(&[b"a", b""]),
            [0, 0, 0, 1, b'a', 0, 0, 0, 0]
        );
    }

    #[test]
    fn hex_reads_back_and_refuses_what_it_would_not_write() {
        assert_eq!(unhex::<3>(&hex(&[0, 0xab, 255])), Some([0, 0xab, 255]));
        for bad in ["00abf", "00abf", "00ABFF", "00abfg", "00abff0"] {
            assert_eq!(unhex::<3>(bad), None, "{bad:?}");
        }
    }
}
