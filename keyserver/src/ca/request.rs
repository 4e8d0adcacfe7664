//! Certificate requests of clients: PKCS#10 in PEM, of which only the key counts.

use rcgen::{PKCS_ED25519, PublicKeyData, SignatureAlgorithm};
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// 1.3.101.112 (RFC 8410 §3).
const ED25519: x509_parser::der_parser::Oid<'static> = x509_parser::der_parser::oid!(1.3.101.112);
/// What stands before an Ed25519 signature in DER: AlgorithmIdentifier, then a BIT STRING of 64 bytes.
const SIGNATURE_HEAD: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 65, 0];

/// A checked certificate request: only the key in it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedKey([u8; 32]);

/// A certificate request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not PKCS#10 in PEM.
    #[error("not a certificate request in PEM")]
    Format,
    /// Another kind of key.
    #[error("the certificate request is not for an Ed25519 key")]
    Algorithm,
    /// Whoever made the request does not hold its key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
}

impl RequestedKey {
    /// The Ed25519 key of a certificate request (PKCS#10, RFC 2986, in PEM) whose own signature is right.
    ///
    /// # Errors
    /// `Format`, `Algorithm`, `Signature`.
    pub fn from_csr(pem: &str) -> Result<Self, CsrError> {
        let (rest, pem) =
            x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| CsrError::Format)?;
        if !rest.trim_ascii().is_empty()
            || !matches!(
                pem.label.as_str(),
                "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST"
            )
        {
            return Err(CsrError::Format);
        }
        let (rest, request) =
            X509CertificationRequest::from_der(&pem.contents).map_err(|_| CsrError::Format)?;
        if !rest.is_empty() {
            return Err(CsrError::Format);
        }
        let info = &request.certification_request_info;
        let key = info.subject_pki.subject_public_key.data.as_ref();
        let key: [u8; 32] = key.try_into().map_err(|_| CsrError::Algorithm)?;
        if info.subject_pki.algorithm.algorithm != ED25519 {
            return Err(CsrError::Algorithm);
        }
        // The parser is lenient about what follows the signed part, so that is compared as bytes.
        let (rest, signature) = pem
            .contents
            .split_last_chunk::<64>()
            .ok_or(CsrError::Format)?;
        if !rest.ends_with(SIGNATURE_HEAD) {
            return Err(CsrError::Algorithm);
        }
        // `info.raw` is the exact span that was signed.
        ed25519()
            .verify_signature(&key, info.raw, signature)
            .map_err(|_| CsrError::Signature)?;
        Ok(Self(key))
    }

    /// SHA-256 of the SubjectPublicKeyInfo in DER.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.subject_public_key_info()).into()
    }
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

fn ed25519() -> &'static dyn rustls::pki_types::SignatureVerificationAlgorithm {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .signature_verification_algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == rustls::SignatureScheme::ED25519)
        .map(|(_, algorithms)| algorithms[0])
        .expect("aws-lc-rs verifies Ed25519")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::to_pem;
    use rcgen::{CertificateParams, KeyPair};

    fn csr(pair: &KeyPair) -> String {
        CertificateParams::default()
            .serialize_request(pair)
            .unwrap()
            .pem()
            .unwrap()
    }

    #[test]
    fn requests_for_other_keys_or_with_a_foreign_signature_are_refused() {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let good = csr(&pair);
        let (_, pem) = x509_parser::pem::parse_x509_pem(good.as_bytes()).unwrap();
        let encode = |der: Vec<u8>| {
            to_pem(&der.into())
                .replace("BEGIN CERTIFICATE", "BEGIN CERTIFICATE REQUEST")
                .replace("END CERTIFICATE", "END CERTIFICATE REQUEST")
        };
        assert!(RequestedKey::from_csr(&encode(pem.contents.clone())).is_ok());
        for at in 0..pem.contents.len() {
            let mut changed = pem.contents.clone();
            changed[at] ^= 1;
            assert!(
                RequestedKey::from_csr(&encode(changed)).is_err(),
                "byte {at}"
            );
        }
        let ecdsa = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        assert_eq!(
            RequestedKey::from_csr(&csr(&ecdsa)),
            Err(CsrError::Algorithm)
        );
        for bad in ["", "x", &good.replace("REQUEST", "THING"), &good.repeat(2)] {
            assert_eq!(RequestedKey::from_csr(bad), Err(CsrError::Format), "{bad}");
        }
    }
}
