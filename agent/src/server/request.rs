//! PKCS#10 requests: what a key server makes a certificate of. Only the key in them counts.

use latchkey_protocol::wire::Text;
use latchkey_secret::{SecretBytes, SecretError};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroize;

use super::pem;

/// No request could be made.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The file holds no Ed25519 key in PEM.
    #[error("the key is not usable")]
    Key,
    /// No memory for it.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// rcgen's.
    #[error("failed to make a certificate request")]
    Request(#[source] rcgen::Error),
}

/// A request in PEM, signed by `key` (PEM, PKCS#8, Ed25519), whose copies in memory are wiped.
///
/// # Errors
/// A variant of [`RequestError`].
pub fn signing_request(key: &SecretBytes) -> Result<Text, RequestError> {
    let der = pem::decode_private_key(key)?.ok_or(RequestError::Key)?;
    let der = PrivatePkcs8KeyDer::from(der.expose_secret());
    let mut key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
        .map_err(|_| RequestError::Key)?;
    let request = CertificateParams::default()
        .serialize_request(&key)
        .and_then(|request| request.pem());
    key.zeroize();
    Ok(Text::cut(&request.map_err(RequestError::Request)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_makes_a_request() {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let pem = pem::encode_private_key(key.serialized_der()).unwrap();
        let request = signing_request(&pem).unwrap();
        assert!(
            request
                .as_str()
                .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
        );
        let half = &pem.expose_secret()[..60];
        let half = SecretBytes::read_from(&mut &half[..], 4096).unwrap();
        assert!(matches!(signing_request(&half), Err(RequestError::Key)));
    }
}
