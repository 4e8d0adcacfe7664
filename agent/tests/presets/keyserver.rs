//! The key server of these tests: its service, its store on disk, its listener and TLS, in this process because its clock is
//! set by hand; and the network in front of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use latchkey_protocol::token::JoinToken;
use latchkey_secret::{Secret, SecretError};
use latchkeyd::admission::Admission;
use latchkeyd::audit::{AuditEntry, Kind};
use latchkeyd::ca::Authority;
use latchkeyd::clock::{Clock, SystemClock, UnixMillis};
use latchkeyd::http::Api;
use latchkeyd::listener::{self, Shared};
use latchkeyd::master_key::MasterKey;
use latchkeyd::sealed::SealedStore;
use latchkeyd::service::Service;
use latchkeyd::service::approval::AfterDeny;
use latchkeyd::store::{SqliteStore, StoreError};
use latchkeyd::tls::{self, ServerKey};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::network::{Network, Place};
use crate::power::{Power, Store};

/// Where the machine stands, and where a thief takes its disk.
pub const HOME: Place = Place(Ipv4Addr::new(127, 0, 0, 7));
pub const ELSEWHERE: Place = Place(Ipv4Addr::new(127, 9, 9, 9));

pub struct KeyServer {
    pub clock: HandClock,
    pub power: Arc<Power>,
    network: Arc<Network>,
    authority: Arc<Authority>,
    store: tempfile::TempDir,
    running: Option<Running>,
}

struct Running {
    service: Arc<Service>,
    stop: watch::Sender<bool>,
    runtime: Runtime,
}

/// A clock that stands until it is moved.
#[derive(Clone)]
pub struct HandClock {
    began: UnixMillis,
    passed: Arc<AtomicU64>,
}

impl HandClock {
    fn new() -> Self {
        Self {
            began: SystemClock::default().now(),
            passed: Arc::default(),
        }
    }

    /// By whole milliseconds, and never less than `time`.
    pub fn pass(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap() + 1;
        self.passed.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> UnixMillis {
        self.began.plus(self.passed())
    }

    fn passed(&self) -> Duration {
        Duration::from_millis(self.passed.load(Ordering::SeqCst))
    }
}

impl KeyServer {
    pub fn new() -> Self {
        let store = tempfile::tempdir().unwrap();
        let empty = SqliteStore::create(&store.path().join("store")).unwrap();
        drop(SealedStore::create(Box::new(empty), master_key()).unwrap());
        let network = Arc::new(Network::of(&[HOME, ELSEWHERE]));
        let mut server = Self {
            clock: HandClock::new(),
            power: Arc::new(Power::of_server(network.clone())),
            network,
            authority: Arc::new(Authority::create().unwrap()),
            store,
            running: None,
        };
        server.start();
        server
    }

    /// With what its store holds; whoever asks is answered from now on.
    pub fn start(&mut self) {
        self.stop();
        let store = open(&self.store.path().join("store"));
        let store = Store::new(store, self.power.clone());
        let records = SealedStore::open(Box::new(store), master_key()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let service = Arc::new(Service::new(records, self.authority.server_id(), clock));
        service.prepare_witness().unwrap();
        let names = ["127.0.0.1".parse().unwrap()];
        let identity = self.authority.server_identity(&names).unwrap();
        let key = Arc::new(ServerKey::new(&identity, &self.authority).unwrap());
        let shared = Shared::new(
            tls::server_config(key).unwrap(),
            Arc::new(Api::new(service.clone(), self.authority.clone())),
            Admission::new(1000, 1000),
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = watch::channel(false);
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = runtime.block_on(listener::bind(any)).unwrap();
        self.network.lead_to(listener.local_addr().unwrap());
        runtime.spawn(listener::serve(listener, Arc::new(shared), stopped));
        self.running = Some(Running {
            service,
            stop,
            runtime,
        });
    }

    /// As its power goes: whoever was connected hears nothing more.
    pub fn stop(&mut self) {
        self.network.cut();
        let Some(running) = self.running.take() else {
            return;
        };
        drop(running.stop);
        // The last of its threads lets the store go.
        drop(running.runtime);
        assert_eq!(Arc::strong_count(&running.service), 1);
    }

    pub fn service(&self) -> &Service {
        &self.running.as_ref().unwrap().service
    }

    /// Whether no machine finds it.
    pub fn is_away(&self) -> bool {
        self.network.is_cut()
    }

    /// What the administrator hands to a machine that stands at home.
    pub fn invite(&self, client: &str) -> String {
        let client = client.parse().unwrap();
        let hour = Duration::from_secs(3600);
        let invitation = self.service().invite(&client, hour, "root").unwrap();
        let token = JoinToken {
            server: *self.service().server(),
            secret: invitation.secret,
            client,
            addresses: vec![self.address(HOME).parse().unwrap()],
        };
        token.to_line()
    }

    /// `HOST:PORT` for a machine that stands at `place`.
    pub fn address(&self, place: Place) -> String {
        self.network.way_from(place).to_string()
    }

    /// Whether nobody is connected.
    pub fn is_alone(&self) -> bool {
        self.network.is_quiet()
    }

    /// Denies whatever waits for a person, so that other boots may ask.
    pub fn deny_all(&self) {
        for request in self.service().requests().unwrap() {
            self.service()
                .deny(&request.id, AfterDeny::Nothing, "root")
                .unwrap();
        }
    }

    /// The texts of all entries of a kind.
    pub fn entries(&self, kind: Kind) -> Vec<String> {
        let entries = self.audit().into_iter();
        let entries = entries.filter(|entry| entry.event.kind == kind);
        entries.map(|entry| entry.event.text).collect()
    }

    /// All entries, whose chain is whole.
    pub fn audit(&self) -> Vec<AuditEntry> {
        self.service().verify_audit().unwrap();
        self.service().audit(0, usize::MAX).unwrap()
    }

    /// The number of the newest entry.
    pub fn audit_end(&self) -> u64 {
        self.service().audit_end().unwrap()
    }

    /// Entries that came after `end`.
    pub fn audit_after(&self, end: u64) -> Vec<AuditEntry> {
        self.service().audit(end, 1000).unwrap()
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A process that another thread has just begun holds the lock too, until it becomes another program.
fn open(directory: &Path) -> SqliteStore {
    let begin = Instant::now();
    loop {
        match SqliteStore::open(directory) {
            Err(StoreError::InUse { .. }) if begin.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
}

fn master_key() -> MasterKey {
    let secret = Secret::filled(|out| {
        *out = [3; 32];
        Ok::<_, SecretError>(())
    });
    MasterKey::from_secret(secret.unwrap())
}
