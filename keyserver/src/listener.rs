//! Accepts connections and gives each a TLS session and one HTTP request, with a deadline for every step.
//!
//! Against whoever reaches the port: a cap on open connections in all and for each address, so that slow or idle
//! peers of one network cannot keep the others out; those that say nothing leave first where all places are taken; limits
//! on headers; and no step that waits for ever.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::sockopt::{Ipv6V6Only, TcpUserTimeout};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::admission::{Admission, Admitted, Leave};
use crate::ca;
use crate::http::{Api, Peer};

/// Until the first byte.
const HELLO_LIMIT: Duration = Duration::from_secs(3);
/// From the first byte to a finished TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Until the headers of the request are complete.
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// The whole connection, the answer included.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// Connections that wait to be accepted, as in `TcpListener::bind`.
const BACKLOG: u32 = 1024;
/// Pause after the system had no descriptor or memory for a connection: neither spin nor stop.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(200);
/// Between two lines of the log about that.
const EXHAUSTED_TOLD: Duration = Duration::from_secs(60);
/// How long a peer may leave what was sent unacknowledged, or its window closed (TCP_USER_TIMEOUT of tcp(7)): it ends the
/// streams of machines that vanished and of those that do not read any more.
pub const UNREAD_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of buffer for a request's head; hyper reads the body through the same buffer.
const BUFFER_LIMIT: usize = 16 * 1024;
const HEADERS_LIMIT: usize = 32;

/// What every connection needs.
#[derive(Debug)]
pub struct Shared {
    /// TLS settings.
    pub tls: Arc<ServerConfig>,
    /// Answers requests.
    pub api: Arc<Api>,
    /// Who may connect now.
    pub admission: Admission,
    unread_limit: Duration,
    running: Arc<Semaphore>,
}

const RUNNING_LIMIT: u32 = 1 << 20;

impl Shared {
    /// Shared state with no connection open.
    pub fn new(tls: Arc<ServerConfig>, api: Arc<Api>, admission: Admission) -> Self {
        Self {
            tls,
            api,
            admission,
            unread_limit: UNREAD_LIMIT,
            running: Arc::new(Semaphore::new(RUNNING_LIMIT as usize)),
        }
    }

    /// Sets how long a peer may leave unread what it was sent.
    #[must_use]
    pub fn with_unread_limit(mut self, limit: Duration) -> Self {
        self.unread_limit = limit;
        self
    }

    /// Waits until no connection is open, at most `limit`; whether that came true.
    pub async fn drained(&self, limit: Duration) -> bool {
        timeout(limit, self.running.acquire_many(RUNNING_LIMIT))
            .await
            .is_ok()
    }
}

/// Listens on one of `addresses`, as [`bind`] does; but where one of IPv4 has the same port, `[::]` leaves IPv4 to that one.
///
/// # Errors
/// socket(2)'s, bind(2)'s.
pub async fn bind_among(
    address: SocketAddr,
    addresses: &[SocketAddr],
) -> std::io::Result<TcpListener> {
    let beside = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port();
    if address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        || address.port() == 0
        || !addresses.iter().any(beside)
    {
        return bind(address).await;
    }
    let socket = TcpSocket::new_v6()?;
    nix::sys::socket::setsockopt(&socket, Ipv6V6Only, &true)?;
    // As in `TcpListener::bind`: what lingers of an earlier server's connections does not keep the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Listens on `address`. Where the kernel has no IPv6, `[::]` means all of IPv4.
///
/// # Errors
/// bind(2)'s.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
                && address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) =>
        {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Accepts connections until `stop` says true.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut told = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_if_exhausted(&error, &mut told).await;
                continue;
            }
        };
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let (admitted, leave) = match shared.admission.admit(address.ip()).await {
            Ok(place) => place,
            Err(why) => {
                log::debug!("too many open connections ({why:?}), closed the one from {address}");
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&shared.running).try_acquire_owned() else {
            continue;
        };
        let connection = Connection {
            shared: Arc::clone(&shared),
            address,
            begun: Arc::new(AtomicBool::new(false)),
            streams: Arc::new(AtomicBool::new(false)),
            places: Mutex::new(Some((admitted, permit))),
        };
        tokio::spawn(connection.run(stream, leave, stop.clone()));
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that went away means the same as true.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// `told` is when the log was told last: it lasts as long as somebody keeps it up.
async fn pause_if_exhausted(error: &std::io::Error, told: &mut Option<Instant>) {
    use nix::errno::Errno;
    let exhausted = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32));
    if exhausted {
        if told.is_none_or(|told| told.elapsed() >= EXHAUSTED_TOLD) {
            *told = Some(Instant::now());
            log::warn!("failed to accept connections, trying on: {error}");
        }
        tokio::time::sleep(EXHAUSTED_PAUSE).await;
    } else {
        // The peer was gone before it was accepted, and the like (accept(2)).
        log::debug!("failed to accept a connection: {error}");
    }
}

struct Connection {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Whether a request has arrived: such a connection is finished even when the server stops.
    begun: Arc<AtomicBool>,
    /// Whether its answer is a stream: it may last, and ends when the server stops.
    streams: Arc<AtomicBool>,
    /// Its places among the open connections; a stream gives them back, streams have a limit of their own.
    places: Mutex<Option<(Admitted, OwnedSemaphorePermit)>>,
}

impl Connection {
    async fn run(self, stream: TcpStream, leave: Leave, mut stop: watch::Receiver<bool>) {
        let address = self.address;
        let begun = Arc::clone(&self.begun);
        let streams = Arc::clone(&self.streams);
        let work = self.serve(stream);
        let limit = sleep(CONNECTION_LIMIT);
        let leave = leave.told();
        tokio::pin!(work, limit, leave);
        let mut limited = true;
        let mut stopping = false;
        loop {
            tokio::select! {
                result = &mut work => {
                    if let Err(problem) = result {
                        log::debug!("connection from {address}: {problem}");
                    }
                    return;
                }
                () = &mut leave => {
                    log::debug!("connection from {address}: closed to make room, its request was not complete");
                    return;
                }
                () = &mut limit, if limited => {
                    if !streams.load(Ordering::Acquire) {
                        let seconds = CONNECTION_LIMIT.as_secs();
                        log::debug!("connection from {address}: closed after {seconds} s");
                        return;
                    }
                    limited = false;
                }
                () = stopped(&mut stop), if !stopping => {
                    if !begun.load(Ordering::Acquire) || streams.load(Ordering::Acquire) {
                        return;
                    }
                    stopping = true;
                }
            }
        }
    }

    async fn serve(self, stream: TcpStream) -> Result<(), String> {
        let _ = stream.set_nodelay(true);
        let unread = u32::try_from(self.shared.unread_limit.as_millis()).unwrap_or(u32::MAX);
        nix::sys::socket::setsockopt(&stream, TcpUserTimeout, &unread)
            .map_err(|error| format!("failed to limit what is unread: {error}"))?;
        // Whoever says nothing costs no more than its socket.
        let first = timeout(HELLO_LIMIT, stream.peek(&mut [0]))
            .await
            .map_err(|_| "nothing came in time".to_owned())?
            .map_err(|error| format!("failed before it began: {error}"))?;
        if first == 0 {
            return Err("nothing came before its end".to_owned());
        }
        Box::pin(self.converse(stream)).await
    }

    async fn converse(self, stream: TcpStream) -> Result<(), String> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.shared.tls));
        let stream = timeout(HANDSHAKE_LIMIT, acceptor.accept(stream))
            .await
            .map_err(|_| "no TLS handshake in time".to_owned())?
            .map_err(|error| format!("TLS handshake failed: {error}"))?;
        let certificates = stream.get_ref().1.peer_certificates();
        let peer = Peer {
            address: self.address,
            key_hash: certificates
                .and_then(<[_]>::first)
                .and_then(|certificate| ca::key_hash(certificate)),
        };
        let service = service_fn(|request| {
            self.begun.store(true, Ordering::Release);
            let api = Arc::clone(&self.shared.api);
            let this = &self;
            async move {
                let settle = || this.settle();
                let response = api.answer(peer, request, settle).await;
                if response.body().is_stream() {
                    this.streams.store(true, Ordering::Release);
                    drop(lock(&this.places).take());
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        hyper::server::conn::http1::Builder::new()
            // Without a timer hyper has no header timeout.
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_LIMIT)
            .keep_alive(false)
            .max_buf_size(BUFFER_LIMIT)
            .max_headers(HEADERS_LIMIT)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(|error| format!("HTTP failed: {}", crate::logging::chain(&error)))
    }
}

impl Connection {
    /// The request is complete: no other connection takes its place.
    fn settle(&self) {
        if let Some((admitted, _)) = &*lock(&self.places) {
            admitted.settle();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A place that a panic left behind is still a place.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_of_ipv6_leaves_ipv4_to_addresses_of_the_same_port() {
        for ipv4 in ["0.0.0.0:0", "127.0.0.1:0"] {
            let first = bind(ipv4.parse().unwrap()).await.unwrap();
            let ipv4 = first.local_addr().unwrap();
            let ipv6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), ipv4.port());
            let second = match bind_among(ipv6, &[ipv4, ipv6]).await {
                // Not every machine that builds has IPv6.
                Err(error)
                    if error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32) =>
                {
                    return;
                }
                second => second.unwrap(),
            };
            TcpStream::connect((Ipv6Addr::LOCALHOST, ipv4.port()))
                .await
                .unwrap();
            let (_, from) = second.accept().await.unwrap();
            assert!(from.ip().is_loopback(), "{from}");
        }
    }

    #[tokio::test]
    async fn all_of_ipv6_alone_is_ipv4_as_well() {
        let address = "[::]:0".parse().unwrap();
        let listener = bind_among(address, &[address]).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        listener.accept().await.unwrap();
    }
}
