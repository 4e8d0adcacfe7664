//! Identifiers, each a type of its own with one spelling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::encoding::{hex, unhex};

/// A text that is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {expected}")]
pub struct IdError {
    text: String,
    expected: &'static str,
}

impl IdError {
    fn new(text: &str, expected: &'static str) -> Self {
        // What a stranger sends is shown in logs: bounded and escaped.
        let text = text
            .chars()
            .take(80)
            .flat_map(char::escape_default)
            .collect();
        Self { text, expected }
    }
}

/// Gives a type its `Display`, and serde as the same text.
macro_rules! as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

/// A client's name as the administrator chose it at `latchkeyd invite`: 1 to 64 of `A-Z a-z 0-9 . _ -`, the first
/// a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientName(String);

impl ClientName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClientName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        let good = (1..=64).contains(&text.len())
            && text.bytes().all(allowed)
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::new(
                text,
                "a client name (1 to 64 letters, digits, '.', '_', '-')",
            ))
        }
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
as_text!(ClientName);

/// A UUID in lower case with hyphens (RFC 9562), the name of a volume at every key server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId([u8; 16]);

impl VolumeId {
    /// A random id, UUID version 4.
    ///
    /// # Errors
    /// getrandom(2)'s.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes)?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for VolumeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError::new(text, "a volume id (a UUID in lower case)");
        let hyphens = text
            .char_indices()
            .filter(|(_, c)| *c == '-')
            .map(|(at, _)| at);
        if text.len() != 36 || !hyphens.eq([8, 13, 18, 23]) {
            return Err(error());
        }
        unhex(&text.replace('-', "")).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = hex(&self.0);
        let parts = [
            &digits[..8],
            &digits[8..12],
            &digits[12..16],
            &digits[16..20],
            &digits[20..],
        ];
        f.pad(&parts.join("-"))
    }
}
as_text!(VolumeId);

/// A key server: the SHA-256 of its CA certificate in DER, 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId([u8; 32]);

impl ServerId {
    /// The id of the key server whose CA certificate is `der`.
    pub fn of_ca(der: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(der).into())
    }

    /// An id from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 16 digits, which name its folder on a client.
    pub fn short(&self) -> String {
        hex(&self.0[..8])
    }
}

impl FromStr for ServerId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        unhex(text)
            .map(Self)
            .ok_or_else(|| IdError::new(text, "a key server id (64 hexadecimal digits)"))
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
    }
}
as_text!(ServerId);

/// One boot session (or one proof, or one registration): 16 random bytes, 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// A fresh random id.
    ///
    /// # Errors
    /// getrandom(2)'s.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        unhex(text)
            .map(Self)
            .ok_or_else(|| IdError::new(text, "a request id (32 hexadecimal digits)"))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
    }
}
as_text!(RequestId);

/// Counts the shares that a volume has had at one key server, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl Generation {
    /// The generation of a volume's first share.
    pub const FIRST: Self = Self(1);
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_have_one_spelling() {
        let volume = VolumeId::random().unwrap();
        assert_eq!(volume.to_string().parse(), Ok(volume));
        assert_eq!(&volume.to_string()[14..15], "4");
        for bad in [
            volume
                .to_string()
                .to_uppercase()
                .replace(|c: char| c.is_ascii_digit(), "A"),
            volume.to_string().replace('-', ""),
            format!("{volume} "),
            format!("{{{volume}}}"),
            "0123456-70123-4123-8123-0123456789ab".to_owned(),
            "é123456-0123-4123-8123-0123456789ab".to_owned(),
        ] {
            assert!(bad.parse::<VolumeId>().is_err(), "{bad}");
        }
        let request = RequestId::random().unwrap();
        assert_eq!(request.to_string().parse(), Ok(request));
        let server = ServerId::of_ca(b"ca");
        assert_eq!(server.to_string().parse(), Ok(server));
    }

    #[test]
    fn client_names_are_safe_in_paths_and_logs() {
        for good in ["a", "web-1.example_x", &"x".repeat(64)] {
            assert!(good.parse::<ClientName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "a/b",
            "a b",
            "ä",
            "a\n",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<ClientName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn errors_escape_what_a_stranger_sent() {
        let error = "a\x1b[2J\n".parse::<ClientName>().unwrap_err().to_string();
        assert!(error.chars().all(|c| !c.is_control()), "{error}");
    }
}
