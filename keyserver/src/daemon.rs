//! The running server: from the configuration to listening sockets, reload and a clean end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use latchkey_secret::process;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::socket::{self, Admin, SocketError};
use crate::admission::{Admission, PER_NETWORK_LIMIT, Room};
use crate::config::{CAPABILITY_HINT, Config, ConfigError, OPEN_PORTS};
use crate::http::Api;
use crate::keyring::{self, OpenError, Opened};
use crate::listener::{self, Shared};
use crate::logging::chain;
use crate::notify;
use crate::service::Service;
use crate::tls::{self, ServerKey, TlsError};

/// How long requests that run may go on after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long disk work that outlives its connection may go on after that.
const STOP_DISK_LIMIT: Duration = Duration::from_secs(5);
/// Between two rounds of housekeeping.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks at whether the store still writes.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
/// Threads that wait for the disk; further requests wait for a thread. Releases and proofs need none.
const DISK_THREADS: usize = 32;
/// Locked memory that the server must be able to have before it locks what it will ever map.
const LOCK_ROOM: u64 = 512 * 1024 * 1024;

/// What to run.
#[derive(Debug)]
pub struct Options {
    /// The checked configuration.
    pub config: Config,
    /// Where it came from, for reloads.
    pub path: PathBuf,
    /// `--listen`: instead of the configuration's addresses.
    pub listen: Vec<SocketAddr>,
}

/// The server could not start, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The process could not be made unreadable to others.
    #[error("failed to protect the process's memory")]
    Harden(#[source] std::io::Error),
    /// Store, master key or CA.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address is taken or not ours.
    #[error("failed to listen on '{}'\n{}", .0, listen_hint(.0, .1))]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The admin socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Nobody accepts connections any more.
    #[error("a part of the server that accepts connections has ended")]
    Ended(#[source] tokio::task::JoinError),
    /// The store writes no more.
    #[error(
        "the store stopped writing after a disk error\nlook for disk errors in the kernel log; a server that is started anew opens the store anew"
    )]
    Stopped,
    /// Threads or signal handlers.
    #[error("failed to start")]
    Start(#[source] std::io::Error),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Any of [`DaemonError`]; `Ended` and `Stopped` after requests were served, all others before the first one.
pub fn run(options: Options) -> Result<(), DaemonError> {
    harden().map_err(DaemonError::Harden)?;
    let opened = keyring::open(&options.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |count| count.get().max(2)))
        .max_blocking_threads(DISK_THREADS)
        .enable_all()
        .build()
        .map_err(DaemonError::Start)?;
    let result = serve(&runtime, &options, &opened);
    runtime.shutdown_timeout(STOP_DISK_LIMIT);
    if let Err(error) = opened.service.maintain() {
        log::error!("failed to write the last counts: {}", chain(&error));
    }
    result
}

fn serve(runtime: &Runtime, options: &Options, opened: &Opened) -> Result<(), DaemonError> {
    let config = &options.config;
    // A store of an earlier version has none.
    opened.service.prepare_witness().map_err(OpenError::from)?;
    let identity = keyring::server_identity(opened, &config.names)?;
    let key = Arc::new(ServerKey::new(&identity, &opened.authority)?);
    let api = Api::new(Arc::clone(&opened.service), Arc::clone(&opened.authority));
    let room = Room::of_this_process();
    if let Some(shortage) = room.shortage() {
        log::warn!("{shortage}");
    }
    let shared = Arc::new(Shared::new(
        tls::server_config(Arc::clone(&key))?,
        Arc::new(api),
        Admission::new(room.connections, PER_NETWORK_LIMIT),
    ));
    opened.service.set_streams_limit(room.streams);
    let admin = Arc::new(Admin::new(
        Arc::clone(&opened.service),
        config.names.clone(),
        config.approvers.clone(),
    ));
    runtime.block_on(async {
        let mut signals = Signals::new().map_err(DaemonError::Start)?;
        // First: whoever finds the port open may use the socket.
        let socket = socket::bind(&config.admin_socket, &config.approvers)?;
        if let Some(problem) = socket::shut_to_approvers(config) {
            log::warn!("{}", problem.replace('\n', "; "));
        }
        let listeners = listen(options).await.inspect_err(|_| {
            let _ = std::fs::remove_file(&config.admin_socket);
        })?;
        let (stop, stopped) = watch::channel(false);
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(listener::serve(
                listener,
                Arc::clone(&shared),
                stopped.clone(),
            ));
        }
        let admin_task = accepting.spawn(socket::serve(socket, Arc::clone(&admin)));
        tokio::spawn(maintain(opened.service.clone()));
        log::info!("key server {} is ready", opened.service.server());
        notify::ready();

        let result = loop {
            let event = tokio::select! {
                event = signals.next() => event,
                // Only a new process writes again, and machines that boot wait for it.
                () = store_stopped(&opened.service) => break Err(DaemonError::Stopped),
                // Only by a panic. A server that nobody can reach had better be started anew.
                Some(Err(panic)) = accepting.join_next() => return Err(DaemonError::Ended(panic)),
            };
            if event == Event::Stop {
                break Ok(());
            }
            notify::reloading();
            let reload = Reload {
                options,
                opened,
                key: &key,
                admin: &admin,
            };
            tokio::task::block_in_place(|| reload.run());
            notify::ready();
        };

        notify::stopping();
        log::info!("stopping: no new requests, finishing those that run");
        admin_task.abort();
        let _ = std::fs::remove_file(&config.admin_socket);
        let _ = stop.send(true);
        if !shared.drained(STOP_LIMIT).await {
            log::warn!(
                "gave up requests that still ran after {} s",
                STOP_LIMIT.as_secs()
            );
        }
        result
    })
}

/// Makes the process unreadable to others. Where locked memory is limited, only the secrets' own pages stay
/// locked: with everything locked in advance the first thread beyond the limit could not start.
fn harden() -> std::io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit};
    let hardened = process::harden()?;
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    if hardened.mlock_all && limit < LOCK_ROOM && !nix::unistd::Uid::effective().is_root() {
        nix::sys::mman::munlockall()?;
    }
    if !hardened.mlock_all || limit < LOCK_ROOM {
        log::debug!("not all memory is locked: the limit is {limit} bytes");
    }
    Ok(())
}

fn listen_hint(address: &SocketAddr, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied if address.port() < OPEN_PORTS => {
            format!("a port below {OPEN_PORTS} needs a capability: {CAPABILITY_HINT}")
        }
        _ => "look whether another program uses the port: ss -ltnp; or choose another address: --listen"
            .to_owned(),
    }
}

async fn listen(options: &Options) -> Result<Vec<TcpListener>, DaemonError> {
    let addresses = if options.listen.is_empty() {
        &options.config.listen
    } else {
        &options.listen
    };
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let failed = |error| DaemonError::Listen(*address, error);
        let listener = listener::bind_among(*address, addresses)
            .await
            .map_err(failed)?;
        log::info!("listening on {}", listener.local_addr().map_err(failed)?);
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Waits until the store writes no more. A full disk or a read-only one is no such end: it may heal.
async fn store_stopped(service: &Service) {
    while !service.records().has_stopped() {
        tokio::time::sleep(STORE_INTERVAL).await;
    }
}

async fn maintain(service: Arc<Service>) {
    let mut ticks = tokio::time::interval(MAINTENANCE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let service = Arc::clone(&service);
        match tokio::task::spawn_blocking(move || service.maintain()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!(
                "housekeeping failed, trying again in {} s: {}",
                MAINTENANCE_INTERVAL.as_secs(),
                chain(&error)
            ),
            Err(error) => log::error!("housekeeping failed: {error}"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.hangup.recv() => Event::Reload,
        }
    }
}

/// A reload of the configuration: names, their certificate, and the log level; the rest needs a restart.
struct Reload<'a> {
    options: &'a Options,
    opened: &'a Opened,
    key: &'a ServerKey,
    admin: &'a Admin,
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Reload<'_> {
    fn run(&self) {
        match self.apply(&self.options.path) {
            Ok(()) => log::info!("reloaded '{}'", self.options.path.display()),
            Err(error) => log::error!("keeping the old configuration: {}", chain(&error)),
        }
    }

    fn apply(&self, path: &Path) -> Result<(), ReloadError> {
        let fresh = Config::load(path)?;
        let identity = keyring::server_identity(self.opened, &fresh.names)?;
        self.key.replace(&identity, &self.opened.authority)?;
        self.admin.set_names(fresh.names);
        log::set_max_level(fresh.log_level);
        let old = &self.options.config;
        for (key, changed) in [
            ("data-dir", fresh.data_dir != old.data_dir),
            ("listen", fresh.listen != old.listen),
            ("master-key", fresh.master_key != old.master_key),
            ("admin-socket", fresh.admin_socket != old.admin_socket),
            ("approvers", fresh.approvers != old.approvers),
            ("life-interval-s", fresh.life_interval != old.life_interval),
        ] {
            if changed {
                log::warn!("'{key}' has changed; restart latchkeyd to use the new value");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_listen_on_a_low_port_is_told_what_it_takes() {
        use std::io::ErrorKind;
        for (address, kind, hint) in [
            (
                "[::]:443",
                ErrorKind::PermissionDenied,
                "CAP_NET_BIND_SERVICE",
            ),
            ("[::]:443", ErrorKind::AddrInUse, "ss -ltnp"),
            ("[::]:7443", ErrorKind::PermissionDenied, "ss -ltnp"),
        ] {
            let error = DaemonError::Listen(address.parse().unwrap(), kind.into());
            assert!(
                error.to_string().contains(hint),
                "{address} {kind}: {error}"
            );
        }
    }
}
