//! The client's end of every connection: from an address of its own, TLS 1.3 or plain, and just enough HTTP/1.1.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Failure;

/// Most bytes of an answer.
const ANSWER_LIMIT: usize = 64 * 1024;
/// The first machine's address. Each has its own, as in life: a key server limits connections by address.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// The address of machine `number`, on the loopback network.
pub fn address(number: usize) -> IpAddr {
    let number = u32::try_from(number % (1 << 16)).unwrap_or_default();
    Ipv4Addr::from_bits(FIRST.to_bits() + number).into()
}

/// Threads of each end, as many as `latchkeyd` has for its connections.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().max(2))
}

/// A port of 127.0.0.1 that was free a moment ago, for servers that cannot choose one.
pub fn free_port() -> std::io::Result<u16> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// TLS 1.3 with a client certificate and no resumption. The server's chain is checked against the one CA `ca`.
pub fn pinned(
    ca: &CertificateDer<'static>,
    identity: &rcgen::KeyPair,
    certificate: CertificateDer<'static>,
) -> Result<Arc<ClientConfig>, Failure> {
    let provider = Arc::new(latchkeyd::tls::provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .build()?;
    with(provider, verifier, identity, certificate)
}

/// The same with a key that nobody knows.
pub fn unknown(ca: &CertificateDer<'static>) -> Result<Arc<ClientConfig>, Failure> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let certificate = CertificateParams::default().self_signed(&key)?;
    pinned(ca, &key, certificate.der().clone())
}

/// As [`pinned`], with another judge of the server's certificate and other algorithms.
pub fn with(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    identity: &rcgen::KeyPair,
    certificate: CertificateDer<'static>,
) -> Result<Arc<ClientConfig>, Failure> {
    let key = PrivatePkcs8KeyDer::from(identity.serialize_der());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![certificate], key.into())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A TCP connection of machine `number`.
pub async fn connect(number: usize, to: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((address(number), 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The same with TLS.
pub async fn connect_tls(
    number: usize,
    to: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Failure> {
    let stream = connect(number, to).await?;
    let name = ServerName::IpAddress(to.ip().into());
    let connector = TlsConnector::from(Arc::clone(config));
    Ok(connector.connect(name, stream).await?)
}

/// A whole request with a JSON body.
pub fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: key-server\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Sends `request`; status and body of the answer.
pub async fn http(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
) -> Result<(u16, Vec<u8>), Failure> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut answer = Vec::with_capacity(2048);
    loop {
        if let Some((status, body, length)) = head(&answer)
            && answer.len() >= body + length
        {
            answer.truncate(body + length);
            return Ok((status, answer.split_off(body)));
        }
        if answer.len() > ANSWER_LIMIT {
            return Err("the answer is too long".into());
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(format!("the answer ended after {} bytes", answer.len()).into());
        }
    }
}

/// Status, where the body begins, and its length, once the head is complete.
fn head(answer: &[u8]) -> Option<(u16, usize, usize)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())?;
    Some((status, end + 4, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_its_length_says_so() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nX: y\r\n\r\nabc";
        assert_eq!(head(whole), Some((200, whole.len() - 3, 3)));
        assert_eq!(head(&whole[..40]), None);
        assert_eq!(head(b"HTTP/1.1 200 OK\r\n\r\n"), None);
    }

    #[test]
    fn machines_have_addresses_of_their_own() {
        assert_eq!(address(0).to_string(), "127.0.1.1");
        assert_eq!(address(255).to_string(), "127.0.2.0");
        assert!(address(usize::MAX).is_loopback());
    }
}
