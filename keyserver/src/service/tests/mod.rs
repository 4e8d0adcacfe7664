//! The service over a store in memory, with a clock that tests set.

mod administering;
mod approving;
mod booting;
mod faults;
mod fleets;
mod joining;
mod living;
mod on_disk;
mod opening;
mod properties;
mod registering;
mod rejoining;
mod releasing;
mod rotating;
mod sessions;
mod witnessing;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, Generation, RequestId, ServerId, VolumeId};
use latchkey_protocol::release::{BootKeyPair, Purpose, ReleaseContext, SealedShare};
use latchkey_protocol::wire::{
    Arm, BootFacts, ConfirmAnswer, ConfirmRequest, HeartbeatAnswer, HeartbeatRequest, OpenedBy,
    ReleaseAnswer, ReleaseRequest, Shown, SignedHead, Text, TicketsRequest, Verdict, Version,
    VolumeAnswer, VolumeRequest, VolumeTicket, WantedVolume,
};
use latchkey_secret::{Secret, SecretError};

use super::approval::AfterDeny;
use super::*;
use crate::audit::AuditEntry;
use crate::clock::UnixMillis;
use crate::master_key::MasterKey;
use crate::policy::Policy;
use crate::store::{MemoryStore, Store};

const HOME: &str = "192.0.2.7";
const AWAY: &str = "198.51.100.1";
const HOUR: Duration = Duration::from_secs(3600);
/// After the key server's start, until the machines that have not come back by then are gone.
const GRACE: Duration = Duration::from_secs(10 * life::GRACE_BEATS as u64);

/// A clock that stands until it is set: the time on the wall, and the time that has passed.
#[derive(Clone)]
struct HandClock(Arc<AtomicU64>, Arc<AtomicU64>);

impl Clock for HandClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::SeqCst))
    }

    fn passed(&self) -> Duration {
        Duration::from_millis(self.1.load(Ordering::SeqCst))
    }
}

/// A key server whose store outlives it.
struct Rig {
    service: Service,
    store: MemoryStore,
    clock: HandClock,
}

/// A client's keys, and a count to make more.
#[derive(Clone)]
struct Machine {
    name: ClientName,
    boot: SpkiHash,
    host: SpkiHash,
}

/// One boot: a request id and a key pair.
struct Boot {
    request: RequestId,
    pair: BootKeyPair,
}

fn server_id() -> ServerId {
    ServerId::from_bytes([9; 32])
}

fn master_key() -> MasterKey {
    let secret = Secret::filled(|out| {
        *out = [3; 32];
        Ok::<_, SecretError>(())
    });
    MasterKey::from_secret(secret.unwrap())
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key_number(number: u8) -> SpkiHash {
    Bytes([number; 32])
}

fn service(store: Box<dyn Store>, clock: &HandClock) -> Service {
    let records = SealedStore::open(store, master_key()).unwrap();
    Service::new(records, server_id(), Arc::new(clock.clone()))
}

impl Rig {
    fn new() -> Self {
        let store = MemoryStore::default();
        let clock = HandClock(Arc::new(AtomicU64::new(1_800_000_000_000)), Arc::default());
        SealedStore::create(Box::new(store.clone()), master_key()).unwrap();
        let service = service(Box::new(store.clone()), &clock);
        let rig = Self {
            service,
            store,
            clock,
        };
        rig.pass(GRACE);
        rig
    }

    /// Drops the service and opens another on the same store, which has just begun.
    fn restart(&mut self) {
        self.service = service(Box::new(self.store.clone()), &self.clock);
    }

    fn pass(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap();
        self.clock.0.fetch_add(millis, Ordering::SeqCst);
        self.clock.1.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets the wall clock forward or back; the time that passes goes on as before.
    fn set_clock(&self, seconds: i64) {
        let set = self.clock.now().0.saturating_add_signed(seconds * 1000);
        self.clock.0.store(set, Ordering::SeqCst);
    }

    /// A client that joined with keys of `number`.
    fn machine(&self, name: &str, number: u8) -> Machine {
        let name: ClientName = name.parse().unwrap();
        let invitation = self.service.invite(&name, HOUR, "test").unwrap();
        let machine = Machine {
            name,
            boot: key_number(2 * number),
            host: key_number(2 * number + 1),
        };
        self.join(&invitation.secret, &machine).unwrap();
        machine
    }

    fn join(&self, secret: &Bytes<32>, machine: &Machine) -> Result<ClientName, JoinError> {
        let keys = JoinKeys {
            secret,
            boot: machine.boot,
            host: machine.host,
        };
        self.service.join(keys, address(HOME))
    }

    fn identity(&self, spki: &SpkiHash) -> Identity {
        self.service.identify(spki).unwrap().unwrap()
    }

    fn register(&self, machine: &Machine, volume: VolumeId) -> (VolumeAnswer, Boot) {
        let boot = Boot::new();
        let answer = self
            .service
            .register(
                &self.identity(&machine.host),
                address(HOME),
                &boot.registration(volume),
            )
            .unwrap();
        (answer, boot)
    }

    /// A client with one volume, and its share.
    fn bound(&self, name: &str, number: u8) -> (Machine, VolumeId, [u8; 32]) {
        let machine = self.machine(name, number);
        let volume = VolumeId::random().unwrap();
        let (answer, boot) = self.register(&machine, volume);
        let share = boot.open(&machine, volume, Purpose::Registration, &answer.sealed);
        (machine, volume, share)
    }

    fn set_policy(&self, volume: VolumeId, json: &str) {
        let policy: Policy = serde_json::from_str(json).unwrap();
        self.service.set_policy(&volume, &policy, "test").unwrap();
    }

    fn release(
        &self,
        machine: &Machine,
        from: &str,
        boot: &Boot,
        volumes: &[VolumeId],
    ) -> Result<ReleaseAnswer, ServiceError> {
        let identity = self.identity(&machine.boot);
        self.service
            .release(&identity, address(from), &boot.release(volumes))
    }

    fn verdict(&self, machine: &Machine, from: &str, boot: &Boot, volume: VolumeId) -> Verdict {
        let mut answer = self.release(machine, from, boot, &[volume]).unwrap();
        assert_eq!(answer.verdicts[0].volume, volume);
        answer.verdicts.remove(0).verdict
    }

    /// Puts the first ticket into a volume's header, or the next one.
    fn move_ticket(&self, machine: &Machine, volume: VolumeId) -> Bytes<32> {
        let ticket = self.next_ticket(machine, volume);
        self.confirm(machine, volume, ticket, None).unwrap();
        ticket
    }

    fn next_ticket(&self, machine: &Machine, volume: VolumeId) -> Bytes<32> {
        let request = TicketsRequest {
            version: Version::default(),
            volumes: vec![Shown {
                volume,
                shown: None,
            }],
        };
        let host = self.identity(&machine.host);
        let answer = self.service.next_tickets(&host, address(HOME), &request);
        answer.unwrap().tickets[0].ticket
    }

    fn confirm(
        &self,
        machine: &Machine,
        volume: VolumeId,
        ticket: Bytes<32>,
        arm: Option<u32>,
    ) -> Result<ConfirmAnswer, ServiceError> {
        let request = ConfirmRequest {
            version: Version::default(),
            tickets: vec![VolumeTicket { volume, ticket }],
            arm: arm.map(|seconds| Arm { seconds }),
        };
        let host = self.identity(&machine.host);
        self.service.confirm_tickets(&host, address(HOME), &request)
    }

    fn heartbeat(
        &self,
        machine: &Machine,
        head: Option<SignedHead>,
        boot: Option<RequestId>,
    ) -> HeartbeatAnswer {
        let request = HeartbeatRequest {
            version: Version::default(),
            head,
            images: Vec::new(),
            boot,
        };
        let host = self.identity(&machine.host);
        let answer = self.service.heartbeat(&host, address(HOME), &request);
        answer.unwrap()
    }

    /// What a boot gets whose header shows `ticket`.
    fn boots(
        &self,
        machine: &Machine,
        from: &str,
        boot: &Boot,
        volume: VolumeId,
        ticket: Option<Bytes<32>>,
    ) -> Verdict {
        let mut request = boot.release(&[volume]);
        request.tickets = ticket
            .map(|ticket| VolumeTicket { volume, ticket })
            .into_iter()
            .collect();
        let identity = self.identity(&machine.boot);
        let answer = self.service.release(&identity, address(from), &request);
        answer.unwrap().verdicts.remove(0).verdict
    }

    fn alarms(&self) -> Vec<String> {
        let entries = self.audit().into_iter();
        entries
            .filter(|entry| entry.event.kind == Kind::Alarm)
            .map(|entry| entry.event.text)
            .collect()
    }

    fn audit(&self) -> Vec<AuditEntry> {
        self.service.verify_audit().unwrap();
        self.service.audit(0, 10_000).unwrap()
    }

    fn kinds(&self) -> Vec<Kind> {
        self.audit().iter().map(|entry| entry.event.kind).collect()
    }

    fn count(&self, kind: Kind) -> usize {
        self.kinds().iter().filter(|found| **found == kind).count()
    }
}

impl Boot {
    fn new() -> Self {
        Self {
            request: RequestId::random().unwrap(),
            pair: BootKeyPair::generate().unwrap(),
        }
    }

    fn registration(&self, volume: VolumeId) -> VolumeRequest {
        VolumeRequest {
            version: Version::default(),
            request: self.request,
            ephemeral_key: self.pair.public(),
            volume,
            label: Text::cut("vda5_crypt"),
            opened_by: OpenedBy::BootKey,
        }
    }

    fn release(&self, volumes: &[VolumeId]) -> ReleaseRequest {
        let wanted = |volume: &VolumeId| WantedVolume {
            volume: *volume,
            generation: Generation::FIRST,
        };
        ReleaseRequest {
            version: Version::default(),
            request: self.request,
            ephemeral_key: self.pair.public(),
            volumes: volumes.iter().map(wanted).collect(),
            facts: BootFacts {
                kernel: Text::cut("6.1.0-40-amd64"),
                command_line: Bytes([1; 32]),
                image_built: 1_790_000_000,
                image: None,
                header: None,
            },
            tickets: Vec::new(),
        }
    }

    fn open(
        &self,
        machine: &Machine,
        volume: VolumeId,
        purpose: Purpose,
        sealed: &SealedShare,
    ) -> [u8; 32] {
        self.open_of(machine, volume, purpose, Generation::FIRST, sealed)
    }

    fn open_of(
        &self,
        machine: &Machine,
        volume: VolumeId,
        purpose: Purpose,
        generation: Generation,
        sealed: &SealedShare,
    ) -> [u8; 32] {
        let context = ReleaseContext {
            purpose,
            server: &server_id(),
            client: &machine.name,
            request: &self.request,
            volume: &volume,
            generation,
        };
        let share = self.pair.open(sealed, context).unwrap();
        *share.0.expose_secret()
    }
}

#[track_caller]
fn released(verdict: &Verdict) -> &SealedShare {
    match verdict {
        Verdict::Released { sealed, .. } => sealed,
        other => panic!("not released: {other:?}"),
    }
}

/// The administrator's id and the console's code.
#[track_caller]
fn pending(verdict: &Verdict) -> (String, String) {
    match verdict {
        Verdict::Pending { id, code, .. } => (id.as_str().to_owned(), code.as_str().to_owned()),
        other => panic!("not pending: {other:?}"),
    }
}

#[track_caller]
fn denied(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Denied { reason, .. } => reason.as_str(),
        other => panic!("not denied: {other:?}"),
    }
}

#[track_caller]
fn waits(verdict: &Verdict) {
    assert!(matches!(verdict, Verdict::Wait { .. }), "{verdict:?}");
}
