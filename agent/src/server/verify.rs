//! Which server certificates are accepted: those of one CA, whatever the clock says.
//!
//! At boot the clock is no evidence. A certificate's notBefore is ignored, and it is refused as ended only if its
//! notAfter had passed at a moment that we know has passed: when the image was built, or when the machine joined.
//! No system store, no other root, no revocation lists: who must go is revoked at the key server.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use latchkey_protocol::ServerId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

/// How a server may sign its handshake.
const SCHEMES: [SignatureScheme; 3] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
];

/// A moment that has passed for certain, in Unix seconds: what ended before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateTime(pub u64);

impl CertificateTime {
    /// What the clock says now; for joining, when no better evidence exists.
    pub fn of_clock() -> Self {
        Self(crate::date::now())
    }
}

/// Accepts certificates that the pinned CA issued for the host.
#[derive(Debug)]
pub(super) struct PinnedVerifier {
    inner: Arc<WebPkiServerVerifier>,
    time: CertificateTime,
}

impl PinnedVerifier {
    /// A verifier with `ca` as the only root.
    ///
    /// # Errors
    /// rustls's, if `ca` is no certificate.
    pub(super) fn new(
        ca: &CertificateDer<'_>,
        time: CertificateTime,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| Error::Other(OtherError(Arc::new(error))))?;
        Ok(Self { inner, time })
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |seconds| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            self.inner.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            )
        };
        match verify(self.time.0) {
            // Its beginning has passed if the server has it at all; only its end is ours to judge.
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) => verify(not_before.as_secs()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

/// Accepts, while joining, a chain that contains the CA whose fingerprint the join token names, and that this CA
/// issued the server's certificate. Remembers that CA.
#[derive(Debug)]
pub(super) struct FingerprintVerifier {
    server: ServerId,
    time: CertificateTime,
    provider: Arc<CryptoProvider>,
    found: OnceLock<(CertificateDer<'static>, PinnedVerifier)>,
}

/// The TLS chain holds no certificate with the fingerprint that the join token names.
#[derive(Debug, thiserror::Error)]
#[error("the join token is for another key server than the one that answers there")]
pub(super) struct OtherServer;

impl FingerprintVerifier {
    pub(super) fn new(
        server: ServerId,
        time: CertificateTime,
        provider: &Arc<CryptoProvider>,
    ) -> Self {
        Self {
            server,
            time,
            provider: provider.clone(),
            found: OnceLock::new(),
        }
    }

    /// The CA, once a handshake succeeded.
    pub(super) fn ca(&self) -> Option<&CertificateDer<'static>> {
        self.found.get().map(|(ca, _)| ca)
    }

    /// The verifier of the CA that was found.
    fn pinned(&self) -> Result<&PinnedVerifier, Error> {
        let (_, pinned) = self.found.get().ok_or(Error::HandshakeNotComplete)?;
        Ok(pinned)
    }
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| ServerId::of_ca(certificate) == self.server)
            .ok_or_else(|| Error::Other(OtherError(Arc::new(OtherServer))))?;
        // Only the CA itself may have signed the leaf: no intermediates.
        let pinned = PinnedVerifier::new(ca, self.time, &self.provider)?;
        let verified =
            pinned.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        self.found.get_or_init(|| (ca.clone().into_owned(), pinned));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.pinned()?.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.pinned()?.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
