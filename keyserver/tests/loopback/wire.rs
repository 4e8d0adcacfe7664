//! A TLS client and just enough HTTP/1.1 to say exactly what a test wants to say.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use latchkey_protocol::ServerId;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A key pair and the certificate that carries it.
#[derive(Clone)]
pub struct Identity {
    pub key: Arc<KeyPair>,
    pub certificate: CertificateDer<'static>,
}

/// An answer as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

pub type Stream = StreamOwned<ClientConnection, TcpStream>;

impl Identity {
    /// A key with a certificate that it signed itself.
    pub fn self_signed(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let certificate = CertificateParams::new([name.to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        Self {
            certificate: certificate.der().clone(),
            key: Arc::new(key),
        }
    }
}

impl Identity {
    fn certified(&self) -> CertifiedKey {
        certified(vec![self.certificate.clone()], &self.key)
    }
}

/// A chain, and a key that may belong to its first certificate.
pub fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> CertifiedKey {
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    CertifiedKey::new(chain, key)
}

impl Reply {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The same without what differs between any two answers.
    pub fn without_date(mut self) -> Self {
        self.headers.retain(|(key, _)| key != "date");
        self
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?;
        Some(Self {
            status: status.parse().ok()?,
            headers: lines
                .filter_map(|line| line.split_once(": "))
                .map(|(key, value)| (key.to_ascii_lowercase(), value.to_owned()))
                .collect(),
            body: body.to_owned(),
        })
    }
}

/// Sends one request; the connection is its own.
#[track_caller]
pub fn request(
    address: SocketAddr,
    identity: Option<&Identity>,
    method: &str,
    path: &str,
    body: &[u8],
) -> Reply {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: key-server\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(address, identity, &[head.as_bytes(), body].concat())
        .unwrap_or_else(|problem| panic!("no answer to {method} {path}: {problem}"))
}

/// Sends raw bytes and reads until the server closes.
pub fn exchange(
    address: SocketAddr,
    identity: Option<&Identity>,
    bytes: &[u8],
) -> Result<Reply, String> {
    exchange_with(
        address,
        client_config(latchkeyd::tls::provider(), identity, None),
        bytes,
    )
}

/// As [`exchange`], with other settings.
pub fn exchange_with(
    address: SocketAddr,
    config: ClientConfig,
    bytes: &[u8],
) -> Result<Reply, String> {
    let mut stream = connect_with(address, config).map_err(|error| error.to_string())?;
    // The server may answer and close before it has read all.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    reply(&mut stream)
}

/// Reads an answer until the server closes. Only reads: a server that closes before it has read all makes writing fail,
/// while its answer lies there.
pub fn reply(stream: &mut Stream) -> Result<Reply, String> {
    let mut answer = Vec::new();
    let ended = loop {
        // What is there; writing may have read it already. Then it would block.
        let _ = stream.conn.reader().read_to_end(&mut answer);
        match stream.conn.read_tls(&mut stream.sock) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => break Err(error),
        }
        if let Err(error) = stream.conn.process_new_packets() {
            break Err(std::io::Error::other(error));
        }
    };
    Reply::parse(&answer).ok_or_else(|| format!("{ended:?}, {} bytes", answer.len()))
}

/// A TLS connection as an agent makes it.
pub fn connect(address: SocketAddr, identity: Option<&Identity>) -> std::io::Result<Stream> {
    connect_with(
        address,
        client_config(latchkeyd::tls::provider(), identity, None),
    )
}

/// A TLS connection with other settings.
pub fn connect_with(address: SocketAddr, config: ClientConfig) -> std::io::Result<Stream> {
    let tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    let name = ServerName::from(address.ip());
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Settings of a client; `pinned` is the CA that the chain must end in.
pub fn client_config(
    provider: CryptoProvider,
    identity: Option<&Identity>,
    pinned: Option<ServerId>,
) -> ClientConfig {
    presenting(provider, identity.map(Identity::certified), pinned)
}

/// As [`client_config`], with any chain and any key for it.
pub fn presenting(
    provider: CryptoProvider,
    certified: Option<CertifiedKey>,
    pinned: Option<ServerId>,
) -> ClientConfig {
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { provider, pinned }));
    let mut config = match certified {
        None => builder.with_no_client_auth(),
        Some(certified) => {
            // Whether key and certificate belong together is for the server to find out.
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Checks the server's signature and, where a CA is pinned, that it comes with the chain and signed the leaf.
#[derive(Debug)]
struct Pinned {
    provider: Arc<CryptoProvider>,
    pinned: Option<ServerId>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(pinned) = self.pinned else {
            return Ok(ServerCertVerified::assertion());
        };
        let ca = intermediates
            .last()
            .filter(|ca| ServerId::of_ca(ca) == pinned)
            .ok_or_else(|| rustls::Error::General("another CA".to_owned()))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?
        .verify_server_cert(end_entity, &[], server_name, &[], now)
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
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
