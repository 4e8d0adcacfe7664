//! PEM (RFC 7468) for keys that must not lie on the heap, and for the certificates beside them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use latchkey_secret::{SecretBytes, SecretError};
use zeroize::Zeroize;

/// Bytes that one line of 64 digits stands for.
const LINE: usize = 48;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// A PKCS#8 private key in DER as PEM.
///
/// # Errors
/// `Memory` if there is none for the text.
pub fn encode_private_key(der: &[u8]) -> Result<SecretBytes, SecretError> {
    let lines = der.len().div_ceil(LINE);
    let mut pem = SecretBytes::with_capacity(BEGIN.len() + END.len() + 2 + lines * 65)?;
    pem.push(BEGIN.as_bytes())?;
    pem.push(b"\n")?;
    let mut digits = [0u8; 64];
    for chunk in der.chunks(LINE) {
        let length = STANDARD
            .encode_slice(chunk, &mut digits)
            .expect("48 bytes make 64 digits");
        pem.push(&digits[..length])?;
        pem.push(b"\n")?;
    }
    digits.zeroize();
    pem.push(END.as_bytes())?;
    pem.push(b"\n")?;
    Ok(pem)
}

/// The DER in the first `PRIVATE KEY` block, or `None` if there is none that is whole. General PEM readers leave
/// copies of it on the heap.
///
/// # Errors
/// `Memory` if there is none for it.
pub fn decode_private_key(pem: &SecretBytes) -> Result<Option<SecretBytes>, SecretError> {
    let text = pem.expose_secret();
    let body = after(text, BEGIN).and_then(|rest| find(rest, END).map(|end| &rest[..end]));
    let Some(body) = body else {
        return Ok(None);
    };
    let mut digits = SecretBytes::with_capacity(body.len())?;
    for line in body.split(|c| c.is_ascii_whitespace()) {
        digits.push(line)?;
    }
    let mut der = SecretBytes::zeroed(digits.len())?;
    match STANDARD.decode_slice(digits.expose_secret(), der.expose_secret_mut()) {
        Ok(length) => {
            der.truncate(length);
            Ok(Some(der))
        }
        Err(_) => Ok(None),
    }
}

/// A certificate in DER as PEM.
pub fn encode_certificate(der: &[u8]) -> String {
    let lines: Vec<String> = der
        .chunks(LINE)
        .map(|chunk| STANDARD.encode(chunk))
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

fn after<'a>(text: &'a [u8], part: &str) -> Option<&'a [u8]> {
    find(text, part).map(|at| &text[at + part.len()..])
}

fn find(text: &[u8], part: &str) -> Option<usize> {
    text.windows(part.len())
        .position(|window| window == part.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_look_as_others_write_them() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let pem = encode_private_key(key.serialized_der()).unwrap();
        let expected = key.serialize_pem().replace("\r\n", "\n");
        assert_eq!(pem.expose_secret(), expected.as_bytes());
        let der = decode_private_key(&pem).unwrap().unwrap();
        assert_eq!(der.expose_secret(), key.serialized_der());
    }

    #[test]
    fn certificates_look_as_others_write_them() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap();
        let expected = certificate.pem().replace("\r\n", "\n");
        assert_eq!(encode_certificate(certificate.der()), expected);
    }
}
