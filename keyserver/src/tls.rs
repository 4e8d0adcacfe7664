//! TLS as both ends of latchkey speak it: version 1.3 only, key exchange X25519MLKEM768 only, no resumption, no
//! early data, HTTP/1.1 only.
//!
//! A client certificate is asked for, not required (join has none), and any certificate is accepted here: TLS only
//! proves that the peer holds the key. Who that is, in which role, and whether it was revoked is decided by the
//! registry, so that a revoked machine still hears why.

use std::sync::{Arc, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group, sign};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme, version};

use crate::ca::{Authority, Identity};

/// The only application protocol (RFC 7301).
const HTTP_1_1: &[u8] = b"http/1.1";

/// The server's certificate chain, which a reload can replace while connections go on.
#[derive(Debug)]
pub struct ServerKey(RwLock<Arc<CertifiedKey>>);

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server's private key is not usable.
    #[error("the server's private key is damaged")]
    Key(#[source] rustls::Error),
    /// The library refused our settings.
    #[error("failed to set up TLS")]
    Setup(#[source] rustls::Error),
}

impl ServerKey {
    /// The chain [server certificate, CA certificate].
    ///
    /// # Errors
    /// `Key`.
    pub fn new(identity: &Identity, authority: &Authority) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(certified(identity, authority)?)))
    }

    /// Takes another server certificate into use for connections that begin from now on.
    ///
    /// # Errors
    /// `Key`; the old one stays in use then.
    pub fn replace(&self, identity: &Identity, authority: &Authority) -> Result<(), TlsError> {
        let fresh = certified(identity, authority)?;
        *self
            .0
            .write()
            .expect("nothing panics while holding the lock") = fresh;
        Ok(())
    }
}

impl ResolvesServerCert for ServerKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Whatever name the client asked for: it checks the names, and pins the CA.
        self.0.read().ok().map(|current| Arc::clone(&current))
    }
}

/// The server's side of TLS.
///
/// # Errors
/// `Setup`.
pub fn server_config(key: Arc<ServerKey>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider());
    let verifier = AnyCertificate {
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(key);
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// The algorithms: no key exchange that a recording could be opened with later.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768],
        ..default_provider()
    }
}

fn certified(identity: &Identity, authority: &Authority) -> Result<Arc<CertifiedKey>, TlsError> {
    let key = PrivatePkcs8KeyDer::from(identity.key.expose_secret());
    let key = sign::any_eddsa_type(&key).map_err(TlsError::Key)?;
    let chain = vec![
        identity.certificate.clone(),
        authority.certificate().clone(),
    ];
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(TlsError::Key)?;
    Ok(Arc::new(certified))
}

/// Accepts every client certificate whose key signed the handshake.
#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // Deliberately no chain, date or name check: the registry knows the key or does not.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
