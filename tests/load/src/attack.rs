//! Connections that are idle or slow, in great numbers: this program again, in a process of its own.
//!
//! Of twenty, nine say nothing, nine send a TLS hello byte by byte, one sends the head of a request so after its handshake,
//! and one says nothing after it. Each is opened again when it was closed, and all together no faster than at a given rate.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{interval, timeout};

use crate::child::Started;
use crate::{Failure, wire};

/// The argument that makes this program the attacker.
pub const RUN: &str = "attack";

/// Between two bytes of a slow connection.
const SLOW: Duration = Duration::from_secs(1);
/// How often the rate gives a part of its second.
const PART: Duration = Duration::from_millis(10);
/// Machines have the addresses before this one.
const FIRST_ADDRESS: usize = 2048;
/// Descriptors for everything else.
const OTHER_FILES: u64 = 64;

/// What to do, one line of JSON on standard input; the end of the input is the end of the attack.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    /// Whom.
    pub server: SocketAddr,
    /// Its CA, DER.
    pub authority: Vec<u8>,
    /// Connections to keep.
    pub connections: usize,
    /// New ones in a second, at most.
    pub rate: usize,
    /// Each from an address of its own, or all from one.
    pub addresses: Addresses,
}

/// Where an attack comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Addresses {
    /// Each connection has its own.
    Many,
    /// All have one.
    One,
}

/// What came of it, one line of JSON on standard output.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Connections that were made.
    pub opened: usize,
    /// Of them, those that the server closed.
    pub closed: usize,
    /// Most of them open at once.
    pub most: usize,
}

/// An attack that runs.
pub struct Attack(Started);

impl Attack {
    /// Begins.
    pub fn start(orders: &Orders) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(RUN)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut started = Started::new("the attacker", command)?;
        let input = started.child().stdin.as_mut().ok_or("no standard input")?;
        input.write_all(serde_json::to_string(orders)?.as_bytes())?;
        input.write_all(b"\n")?;
        Ok(Self(started))
    }

    /// Ends it.
    pub fn end(mut self) -> Result<Outcome, Failure> {
        let output = self.0.child().stdout.take().ok_or("no standard output")?;
        drop(self.0.child().stdin.take());
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// Attacks as standard input says.
pub fn run() -> Result<(), Failure> {
    let mut input = BufReader::new(std::io::stdin());
    let mut line = String::new();
    input.read_line(&mut line)?;
    let orders: Orders = serde_json::from_str(&line)?;
    raise_files(orders.connections)?;
    let authority = orders.authority.clone().into();
    let attacker = Arc::new(Attacker {
        tls: wire::unknown(&authority)?,
        permits: Semaphore::new(0),
        opened: AtomicUsize::new(0),
        closed: AtomicUsize::new(0),
        open: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        orders,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        for number in 0..attacker.orders.connections {
            tokio::spawn(Arc::clone(&attacker).keep(number));
        }
        tokio::spawn(Arc::clone(&attacker).give());
        // Standard input says nothing more; its end is awaited beside the connections.
        tokio::task::spawn_blocking(move || input.read_line(&mut String::new())).await
    })??;
    let outcome = Outcome {
        opened: attacker.opened.load(Ordering::Relaxed),
        closed: attacker.closed.load(Ordering::Relaxed),
        most: attacker.most.load(Ordering::Relaxed),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

struct Attacker {
    orders: Orders,
    tls: Arc<ClientConfig>,
    permits: Semaphore,
    opened: AtomicUsize,
    closed: AtomicUsize,
    open: AtomicUsize,
    most: AtomicUsize,
}

impl Attacker {
    /// Gives permits at the rate; what is not used within a part of a second is lost.
    async fn give(self: Arc<Self>) {
        let mut parts = interval(PART);
        let mut given = 0;
        for part in 1_u128.. {
            parts.tick().await;
            let due = self.orders.rate as u128 * part * PART.as_millis() / 1000;
            let fresh = usize::try_from(due - given).unwrap_or_default();
            given = due;
            self.permits.forget_permits(Semaphore::MAX_PERMITS);
            self.permits.add_permits(fresh);
        }
    }

    /// One connection after the other.
    async fn keep(self: Arc<Self>, number: usize) {
        loop {
            match self.permits.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return,
            }
            let from = match self.orders.addresses {
                Addresses::Many => FIRST_ADDRESS + number,
                Addresses::One => FIRST_ADDRESS,
            };
            let Ok(stream) = wire::connect(from, self.orders.server).await else {
                continue;
            };
            self.opened.fetch_add(1, Ordering::Relaxed);
            let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(open, Ordering::Relaxed);
            // Whatever ends it, the server did.
            let _ = self.waste(number, stream).await;
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn waste(&self, number: usize, mut stream: tokio::net::TcpStream) -> Result<(), Failure> {
        // A record that is announced as long as a record may be (RFC 8446 §5.1), with a hello that never ends.
        const HELLO: &[u8] = &[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3];
        match number % 20 {
            0..9 => drip(&mut stream, b"").await,
            9..18 => drip(&mut stream, HELLO).await,
            kind => {
                let name = self.orders.server.ip().into();
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
                let name = rustls::pki_types::ServerName::IpAddress(name);
                let mut stream = connector.connect(name, stream).await?;
                drip(
                    &mut stream,
                    if kind == 18 {
                        b""
                    } else {
                        b"GET / HTTP/1.1\r\nX: y"
                    },
                )
                .await
            }
        }
    }
}

/// Sends `bytes` one by one, the last one again and again, until the other end closes.
async fn drip(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    bytes: &[u8],
) -> Result<(), Failure> {
    let mut answer = [0; 256];
    for at in 0.. {
        if let Some(byte) = bytes.get(at).or(bytes.last()) {
            stream.write_u8(*byte).await?;
            stream.flush().await?;
        }
        match timeout(SLOW, stream.read(&mut answer)).await {
            Ok(Ok(1..)) | Err(_) => {}
            Ok(Ok(0)) => return Ok(()),
            Ok(Err(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

/// As many open files as the connections need.
fn raise_files(connections: usize) -> Result<(), Failure> {
    let wanted = connections as u64 + OTHER_FILES;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < wanted {
        return Err(format!(
            "{connections} connections need {wanted} open files, the limit is {hard}\nraise it (ulimit -Hn), or ask for fewer: --slow"
        )
        .into());
    }
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(())
}
