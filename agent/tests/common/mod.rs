//! A key server that misbehaves on purpose: certificates of every kind, and answers byte by byte.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod machine;
pub mod service;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use latchkey_protocol::token::Address;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ED25519,
};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate authority of a test.
pub struct Ca(pub CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, ed25519()).unwrap())
    }

    pub fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A server certificate for `name`, changed by `change`; the chain is `[leaf, CA]`.
    pub fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Chain {
        let (leaf, key) = leaf(name, change);
        let leaf = leaf.signed_by(&key, &self.0).unwrap();
        Chain {
            certificates: vec![leaf.der().clone(), self.der()],
            key: key.serialize_der().try_into().unwrap(),
        }
    }
}

pub fn ed25519() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).unwrap()
}

pub fn leaf(
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    change(&mut params);
    (params, ed25519())
}

/// What a server presents.
pub struct Chain {
    pub certificates: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Chain {
    /// TLS as `latchkeyd` speaks it.
    pub fn config(self) -> ServerConfig {
        self.config_with(
            CryptoProvider {
                kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
                ..aws_lc_rs::default_provider()
            },
            &[&rustls::version::TLS13],
        )
    }

    pub fn config_with(
        self,
        provider: CryptoProvider,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ServerConfig {
        ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.certificates, self.key)
            .unwrap()
    }
}

/// What the server does with a connection whose handshake succeeded; the request is already read.
pub type Script = dyn Fn(&mut dyn Write, &[u8], usize) + Send + Sync;

/// A server on the loopback that lives until it is dropped.
pub struct FaultServer {
    pub address: Address,
    pub connections: Arc<AtomicUsize>,
    /// The requests, head and body, in the order they came.
    pub requests: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
}

impl FaultServer {
    /// Answers each request with `answer`, then closes.
    pub fn answering(config: ServerConfig, answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::scripted(config, move |stream, _| {
            let _ = stream.write_all(&answer);
        })
    }

    pub fn scripted(
        config: ServerConfig,
        script: impl Fn(&mut dyn Write, usize) + Send + Sync + 'static,
    ) -> Self {
        Self::by_request(config, move |stream, _, count| script(stream, count))
    }

    /// As [`FaultServer::scripted`]; the script sees the request.
    pub fn by_request(
        config: ServerConfig,
        script: impl Fn(&mut dyn Write, &[u8], usize) + Send + Sync + 'static,
    ) -> Self {
        let config = Arc::new(config);
        let script: Arc<Script> = Arc::new(script);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        Self::listening(requests, move |tcp, count| {
            let (config, script, seen) = (config.clone(), script.clone(), seen.clone());
            let mut connection = rustls::ServerConnection::new(config).unwrap();
            let mut tcp = tcp;
            let mut stream = rustls::Stream::new(&mut connection, &mut tcp);
            let Some(request) = read_request(&mut stream) else {
                return;
            };
            seen.lock().unwrap().push(request.clone());
            script(&mut stream, &request, count);
            let _ = stream.flush();
            stream.conn.send_close_notify();
            let _ = stream.flush();
        })
    }

    /// Hands each TCP connection to `handle`, with its number from 0.
    pub fn raw(handle: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        Self::listening(Arc::default(), handle)
    }

    fn listening(
        requests: Arc<Mutex<Vec<Vec<u8>>>>,
        handle: impl Fn(TcpStream, usize) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (stop, connections) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, count) = (stop.clone(), connections.clone());
        let handle = Arc::new(handle);
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(tcp), handle) = (tcp, handle.clone()) else {
                    return;
                };
                let number = count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || handle(tcp, number));
            }
        });
        Self {
            address,
            connections,
            requests,
            stop,
        }
    }

    pub fn request_count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((self.address.host(), self.address.port()));
    }
}

/// A whole HTTP answer.
pub fn answer(status: &str, content_type: &str, extra: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n{extra}\r\n{body}",
        body.len()
    )
}

/// Head and body of one request; `None` if the handshake or the request fails.
fn read_request(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    let mut byte = [0u8];
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        request.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&request).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let start = request.len();
    request.resize(start + length, 0);
    stream.read_exact(&mut request[start..]).ok()?;
    Some(request)
}
