//! A key server inside the test: with a clock that the test sets and a store that fails on demand.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use latchkey_protocol::token::JoinToken;
use latchkey_protocol::wire::{RELEASE, STATUS};
use latchkey_secret::Secret;
use latchkeyd::admission::Admission;
use latchkeyd::ca::Authority;
use latchkeyd::clock::{Clock, UnixMillis};
use latchkeyd::http::Api;
use latchkeyd::listener::{self, Shared, UNREAD_LIMIT};
use latchkeyd::master_key::MasterKey;
use latchkeyd::sealed::SealedStore;
use latchkeyd::service::Service;
use latchkeyd::service::life::BEAT;
use latchkeyd::store::MemoryStore;
use latchkeyd::store::memory::Fault;
use latchkeyd::tls::{self, ServerKey};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::machine::{Boot, Keys, Machine};
use crate::wire::{exchange, request};

pub struct Inside {
    pub address: SocketAddr,
    store: MemoryStore,
    clock: Arc<TestClock>,
    pub service: Arc<Service>,
    _stop: watch::Sender<bool>,
    pub runtime: Runtime,
}

/// When the clock of these tests begins.
const BEGAN: u64 = 1_800_000_000_000;

struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::SeqCst))
    }

    fn passed(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst) - BEGAN)
    }
}

impl TestClock {
    fn pass(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap();
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Inside {
    pub fn start(admission: Admission) -> Self {
        Self::start_with(admission, BEAT, UNREAD_LIMIT)
    }

    /// Streams have a beat of `beat`, and may stay unread for `unread`.
    pub fn start_with(admission: Admission, beat: Duration, unread: Duration) -> Self {
        let store = MemoryStore::default();
        let master = MasterKey::from_secret(Secret::random().unwrap());
        let records = SealedStore::create(Box::new(store.clone()), master).unwrap();
        let authority = Arc::new(Authority::create().unwrap());
        let clock = Arc::new(TestClock(AtomicU64::new(BEGAN)));
        let service = Service::new(
            records,
            authority.server_id(),
            Arc::clone(&clock) as Arc<dyn Clock>,
        );
        let service = Arc::new(service.with_life_beat(beat));
        let identity = authority
            .server_identity(&["127.0.0.1".parse().unwrap()])
            .unwrap();
        let key = Arc::new(ServerKey::new(&identity, &authority).unwrap());
        let shared = Shared::new(
            tls::server_config(key).unwrap(),
            Arc::new(Api::new(Arc::clone(&service), authority)),
            admission,
        );
        let shared = Arc::new(shared.with_unread_limit(unread));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = watch::channel(false);
        let listener = runtime
            .block_on(listener::bind((Ipv4Addr::LOCALHOST, 0).into()))
            .unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(listener::serve(listener, shared, stopped));
        Self {
            address,
            store,
            clock,
            service,
            _stop: stop,
            runtime,
        }
    }

    fn invite(&self, client: &str, lifetime: Duration) -> String {
        let client = client.parse().unwrap();
        let invitation = self.service.invite(&client, lifetime, "test").unwrap();
        JoinToken {
            server: *self.service.server(),
            secret: invitation.secret,
            client,
            addresses: vec!["127.0.0.1".parse().unwrap()],
        }
        .to_line()
    }

    fn machine(&self) -> Machine {
        self.named("web-1")
    }

    pub fn named(&self, client: &str) -> Machine {
        let token = self.invite(client, Duration::from_secs(3600));
        Machine::with_token(self.address, &token)
    }
}

pub fn unlimited() -> Admission {
    Admission::new(1000, 1000)
}

#[test]
fn an_expired_token_says_so() {
    let server = Inside::start(unlimited());
    let token = server.invite("web-1", Duration::from_secs(3600));
    server.clock.pass(Duration::from_secs(3601));
    let reply = Keys::fresh().join(server.address, &token);
    assert_eq!(reply.status, 403);
    let error = reply.json()["error"].as_str().unwrap().to_owned();
    assert!(
        error.contains("expired") && error.contains("latchkeyd invite web-1"),
        "{error}"
    );
}

#[test]
fn a_failing_store_releases_nothing_and_tells_nothing() {
    let server = Inside::start(unlimited());
    let machine = server.machine();
    let (volume, _) = machine.register("root");
    for fault in [Fault::Before, Fault::After] {
        let boot = Boot::begin();
        server.store.inject(1, fault);
        let reply = request(
            server.address,
            Some(&machine.boot),
            "POST",
            RELEASE,
            &boot.wants(&[volume]),
        );
        assert_eq!(reply.status, 503, "{fault:?}: {}", reply.body);
        let after: u32 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((5..=15).contains(&after), "{fault:?}: {after} s");
        for word in ["released", "sealed", "injected"] {
            assert!(!reply.body.contains(word), "{fault:?}: {}", reply.body);
        }
        // It passes, and the same session goes on.
        machine.released(&boot, volume);
    }
    server.service.verify_audit().unwrap();
}

#[test]
fn a_join_whose_answer_was_lost_can_be_repeated() {
    let server = Inside::start(unlimited());
    let token = server.invite("web-1", Duration::from_secs(3600));
    let keys = Keys::fresh();
    server.store.inject(1, Fault::After);
    assert_eq!(keys.join(server.address, &token).status, 503);
    assert_eq!(keys.join(server.address, &token).status, 200);
}

#[test]
fn connections_beyond_the_cap_are_closed_and_places_come_back() {
    let admission = Admission::new(10, 2);
    let server = Inside::start(admission.clone());
    let held = [0, 1].map(|_| {
        let place = admission.admit(Ipv4Addr::LOCALHOST.into());
        server.runtime.block_on(place).unwrap()
    });
    let status = format!("GET {STATUS} HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(exchange(server.address, None, status.as_bytes()).is_err());
    drop(held);
    assert!(exchange(server.address, None, status.as_bytes()).is_ok());
}

#[test]
fn many_machines_at_once_are_all_served() {
    let server = Inside::start(unlimited());
    let machine = server.machine();
    let (volume, share) = machine.register("root");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let released = machine.released(&Boot::begin(), volume);
                    assert!(released.0.matches(&share.0));
                }
            });
        }
    });
    server.service.verify_audit().unwrap();
}
