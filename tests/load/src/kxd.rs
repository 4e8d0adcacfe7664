//! kxd(1) from Debian: a key server in Go that sends a stored key over mutual TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::Failure;
use crate::child::{self, Started};
use crate::wire;

const REQUEST: &[u8] =
    b"GET /v1/load/key1 HTTP/1.1\r\nHost: key-server\r\nConnection: close\r\n\r\n";

/// A running kxd and a client of it.
pub struct Kxd {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    key: [u8; 32],
    _server: Started,
}

impl Kxd {
    /// Sets kxd up in `folder` with its own tools, and starts it.
    pub fn start(folder: &Path) -> Result<Self, Failure> {
        let data = folder.join("data");
        let entry = data.join("load/key1");
        std::fs::create_dir_all(&entry)?;
        let (key_file, certificate_file) = (folder.join("key.pem"), folder.join("cert.pem"));
        let mut command = Command::new("kxgencert");
        command.args(["-host", "127.0.0.1", "-organization", "load"]);
        command
            .arg("-key")
            .arg(&key_file)
            .arg("-cert")
            .arg(&certificate_file);
        child::run("kxgencert", command)?;
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        std::fs::write(entry.join("key"), key)?;
        let pair = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = CertificateParams::new(["load".to_owned()])?.self_signed(&pair)?;
        std::fs::write(entry.join("allowed_clients"), certificate.pem())?;

        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, wire::free_port()?));
        let mut command = Command::new("kxd");
        command
            .arg("--ip_addr=127.0.0.1")
            .arg(format!("--port={}", address.port()))
            .arg(format!("--data_dir={}", data.display()))
            .arg(format!("--key={}", key_file.display()))
            .arg(format!("--cert={}", certificate_file.display()))
            .arg(format!("--logfile={}", folder.join("log").display()))
            .arg(format!("--hook={}", folder.join("no-hook").display()));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = Started::new("kxd", command)?;
        server.wait_for(address)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pinned = CertificateDer::from_pem_slice(&std::fs::read(&certificate_file)?)?;
        let verifier = Arc::new(Exactly {
            provider: Arc::clone(&provider),
            pinned,
        });
        Ok(Self {
            address,
            config: wire::with(provider, verifier, &pair, certificate.der().clone())?,
            key,
            _server: server,
        })
    }

    /// Fetches the key on a new connection.
    pub async fn fetch(&self, number: usize) -> Result<(), Failure> {
        let mut stream = wire::connect_tls(number, self.address, &self.config).await?;
        match wire::http(&mut stream, REQUEST).await? {
            (200, key) if key == self.key => Ok(()),
            (status, _) => Err(format!("kxd sent no key: {status}").into()),
        }
    }
}

/// Trusts one certificate, as kxd's own client does.
#[derive(Debug)]
struct Exactly {
    provider: Arc<CryptoProvider>,
    pinned: CertificateDer<'static>,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match *end_entity == self.pinned {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::General("another certificate".to_owned())),
        }
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
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
