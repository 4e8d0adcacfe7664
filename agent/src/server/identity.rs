//! A client identity: the boot key or the host key, with its certificate, as TLS presents it.

use std::sync::Arc;

use latchkey_secret::{SecretBytes, SecretError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::pem::decode_private_key;

/// A key that signs TLS handshakes, and its certificate. The private key lives in the TLS library's own memory,
/// which wipes it when the last clone goes.
#[derive(Clone)]
pub struct Identity(pub(super) Arc<CertifiedKey>);

/// A key or certificate file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No `PRIVATE KEY` block in PEM (PKCS#8).
    #[error("not a private key in PEM (PKCS#8)")]
    KeyFormat,
    /// A private key, but not Ed25519.
    #[error("not an Ed25519 private key")]
    KeyKind(#[source] rustls::Error),
    /// No certificate in PEM.
    #[error("not a certificate in PEM")]
    Certificate,
    /// The certificate is of another key.
    #[error("the certificate belongs to another key")]
    Mismatch(#[source] rustls::Error),
    /// No memory for the key.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl Identity {
    /// Reads a private key (PEM, PKCS#8, Ed25519) and its certificate (PEM).
    ///
    /// The key's bytes are decoded on locked pages and wiped before this returns.
    ///
    /// # Errors
    /// A variant of [`IdentityError`] for what is wrong.
    pub fn from_pem(key: &SecretBytes, certificate: &[u8]) -> Result<Self, IdentityError> {
        let der = decode_private_key(key)?.ok_or(IdentityError::KeyFormat)?;
        let der = PrivatePkcs8KeyDer::from(der.expose_secret());
        let key = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&der)
            .map_err(IdentityError::KeyKind)?;
        let certificate = certificate_from_pem(certificate)?;
        let certified = CertifiedKey::new(vec![certificate], key);
        certified.keys_match().map_err(IdentityError::Mismatch)?;
        Ok(Self(Arc::new(certified)))
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// The first certificate in `pem`.
///
/// # Errors
/// `Certificate` if there is none.
pub(super) fn certificate_from_pem(pem: &[u8]) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem).map_err(|_| IdentityError::Certificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretBytes {
        SecretBytes::read_from(&mut text.as_bytes(), 4096).unwrap()
    }

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap();
        (key.serialize_pem(), certificate.pem())
    }

    #[test]
    fn a_key_and_its_certificate_make_an_identity() {
        let (key, certificate) = pair();
        let identity = Identity::from_pem(&secret(&key), certificate.as_bytes()).unwrap();
        assert_eq!(format!("{identity:?}"), "Identity(..)");
    }

    #[test]
    fn foreign_and_damaged_files_are_refused() {
        let (key, certificate) = pair();
        let (_, other) = pair();
        let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let attempt =
            |key: &str, certificate: &str| Identity::from_pem(&secret(key), certificate.as_bytes());
        assert!(matches!(
            attempt(&key, &other),
            Err(IdentityError::Mismatch(_))
        ));
        assert!(matches!(
            attempt(&p256.serialize_pem(), &certificate),
            Err(IdentityError::KeyKind(_))
        ));
        assert!(matches!(
            attempt(&key, &key),
            Err(IdentityError::Certificate)
        ));
        for bad in [
            "",
            &certificate,
            &key[..key.len() / 2],
            &key.replacen('M', "*", 1),
        ] {
            assert!(
                matches!(attempt(bad, &certificate), Err(IdentityError::KeyFormat)),
                "{bad}"
            );
        }
    }
}
