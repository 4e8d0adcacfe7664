//! The limit: a server that does the key server's TLS and nothing else. It is this program again, in a process of its
//! own with the key server's TLS settings and number of threads.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;

use latchkeyd::ca::Authority;
use latchkeyd::tls::{self, ServerKey};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::Failure;
use crate::child::Started;
use crate::wire;

/// The argument that makes this program that server.
pub const SERVE: &str = "serve-handshakes";

/// A running server and a client of it.
pub struct Handshakes {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    _server: Started,
}

/// What the server says of itself, one line of JSON on standard output.
#[derive(Serialize, Deserialize)]
struct Ready {
    address: SocketAddr,
    /// The CA certificate, DER.
    authority: Vec<u8>,
    /// A certificate for the client and its key, PEM.
    certificate: String,
    key: String,
}

impl Handshakes {
    /// Starts the server.
    pub fn start() -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE).stdout(Stdio::piped());
        let mut server = Started::new("the handshake server", command)?;
        let mut line = String::new();
        let output = server.child().stdout.take().ok_or("no standard output")?;
        BufReader::new(output).read_line(&mut line)?;
        let ready: Ready = serde_json::from_str(&line)?;
        let certificate = CertificateDer::from_pem_slice(ready.certificate.as_bytes())?;
        let key = rcgen::KeyPair::from_pem(&ready.key)?;
        Ok(Self {
            address: ready.address,
            config: wire::pinned(&ready.authority.into(), &key, certificate)?,
            _server: server,
        })
    }

    /// One handshake, and one byte each way.
    pub async fn exchange(&self, number: usize) -> Result<(), Failure> {
        let mut stream = wire::connect_tls(number, self.address, &self.config).await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        match stream.read_u8().await? {
            b'!' => Ok(()),
            other => Err(format!("the handshake server says {other}").into()),
        }
    }
}

/// Serves until it is ended.
pub fn serve() -> Result<(), Failure> {
    let authority = Authority::create()?;
    let identity = authority.server_identity(&["127.0.0.1".parse()?])?;
    let key = ServerKey::new(&identity, &authority)?;
    let config = tls::server_config(Arc::new(key))?;
    let (client, certificate) = crate::machine::boot_identity(&authority, &"load".parse()?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(wire::threads())
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let ready = Ready {
            address: listener.local_addr()?,
            authority: authority.certificate().to_vec(),
            certificate,
            key: client.serialize_pem(),
        };
        println!("{}", serde_json::to_string(&ready)?);
        let acceptor = TlsAcceptor::from(config);
        loop {
            let (stream, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that goes away is no matter here: it counts its own failures.
                let _ = answer(stream, acceptor).await;
            });
        }
    })
}

async fn answer(stream: TcpStream, acceptor: TlsAcceptor) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    stream.read_u8().await?;
    stream.write_all(b"!").await?;
    stream.shutdown().await
}
