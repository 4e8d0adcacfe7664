//! What the key server remembers of a machine's life: its tickets, its last boot, when it was heard of, an announced
//! reboot. And of groups of machines. The rules by which these move on are here, without I/O.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, IdError, RequestId, VolumeId};
use latchkey_protocol::wire::{BootFacts, IMAGES_LIMIT};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::{Record, key};
use crate::clock::{UnixMillis, Uptime};
use crate::policy::Policy;

/// How long a boot session may fetch what was released to it once.
pub const FETCH: Duration = Duration::from_secs(600);
/// Boots of a volume that are remembered: more than any policy counts.
const BOOTS_KEPT: usize = 128;
/// Between two durable notes that a machine was heard of.
const HEARD_STEP: Duration = Duration::from_secs(60);
/// Most bytes of a kernel's release that are kept.
const KERNEL_LIMIT: usize = 64;

/// A group's name: what a client's name may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupName(ClientName);

/// Machines that share a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// When it was made.
    pub created: UnixMillis,
    /// Its policy.
    pub policy: Option<SetPolicy>,
}

/// A policy that an administrator set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// The policy.
    pub policy: Policy,
    /// When it was set: setting it again allows a one-time release again.
    pub set: UnixMillis,
}

/// One boot: the request id that its agent drew and the key that it made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSession {
    /// The request id.
    pub request: RequestId,
    /// The key.
    pub ephemeral_key: Bytes<32>,
    /// When something was released to it first.
    pub at: UnixMillis,
}

/// What is remembered of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Whose it is.
    pub client: ClientName,
    /// When its host key spoke last, to the minute.
    pub heard: Option<Heard>,
    /// The boot session that the running system came up by, as it said last.
    pub boot: Option<RequestId>,
    /// Images that were built on it, the newest first.
    pub images: Vec<Bytes<32>>,
    /// An announced reboot.
    pub armed: Option<Armed>,
    /// When its host certificate was made.
    pub certified: Option<UnixMillis>,
}

/// When a machine was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heard {
    /// By the clock on the wall, for people.
    pub at: UnixMillis,
    /// By the time that the key server has run.
    pub uptime: Uptime,
}

/// What a machine said of the boot that something was released to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastBoot {
    /// Which, and when.
    pub session: BootSession,
    /// From where.
    pub peer: IpAddr,
    /// The kernel's release.
    pub kernel: String,
    /// SHA-256 of the kernel's command line.
    pub command_line: Bytes<32>,
    /// The image's build id.
    pub image: Option<Bytes<32>>,
    /// SHA-256 over the headers' facts.
    pub header: Option<Bytes<32>>,
}

/// An announced reboot: one boot session is expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Armed {
    /// When it was announced.
    pub at: UnixMillis,
    /// Until when.
    pub until: UnixMillis,
    /// Which administrator did it; none: the machine.
    pub by: Option<String>,
    /// The boot session that the machine ran in then.
    pub boot: Option<RequestId>,
    /// The boot session that used it up.
    pub used: Option<BootSession>,
}

/// What is remembered of a volume's boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// The volume.
    pub volume: VolumeId,
    /// The ticket that its header is known to hold.
    pub current: Option<Bytes<32>>,
    /// The ticket that its header may hold already.
    pub next: Option<Bytes<32>>,
    /// What the machine said of the last boot that its share was released to.
    pub last: Option<LastBoot>,
    /// The last boot sessions that its share was released to under a policy that counts them, the oldest first.
    pub boots: Vec<BootSession>,
    /// The boot session that used a one-time policy up, and when that policy was set.
    pub used: Option<(BootSession, UnixMillis)>,
}

/// What a header's ticket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketState {
    /// The volume has never had one.
    None,
    /// It is the one of the last boot.
    Good,
    /// It has one, and none was shown.
    Missing,
    /// Another one: of a copy that was left behind.
    Stale,
}

/// What a policy wants to have noted of a release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Note {
    /// It is a one-time policy: when it was set.
    pub once: Option<UnixMillis>,
    /// It counts boots.
    pub counted: bool,
}

impl BootSession {
    /// The session of this request and key.
    pub fn is(&self, request: RequestId, ephemeral_key: &Bytes<32>) -> bool {
        self.request == request && self.ephemeral_key == *ephemeral_key
    }

    /// Whether it is this session, and may still fetch.
    pub fn fetches(&self, request: RequestId, ephemeral_key: &Bytes<32>, now: UnixMillis) -> bool {
        self.is(request, ephemeral_key) && now.is_within(self.at, self.at.plus(FETCH))
    }
}

impl Machine {
    /// A machine of which nothing is known.
    pub fn new(client: ClientName) -> Self {
        Self {
            client,
            heard: None,
            boot: None,
            images: Vec::new(),
            armed: None,
            certified: None,
        }
    }

    /// Notes that its host key spoke.
    pub fn hear(&mut self, heard: Heard) {
        let recent = |before: Heard| {
            before.uptime <= heard.uptime && heard.uptime.since(before.uptime) < HEARD_STEP
        };
        if !self.heard.is_some_and(recent) {
            self.heard = Some(heard);
        }
    }

    /// Announces a reboot; an earlier announcement ends.
    pub fn arm(&mut self, now: UnixMillis, lifetime: Duration, by: Option<String>) -> UnixMillis {
        let until = now.plus(lifetime);
        self.armed = Some(Armed {
            at: now,
            until,
            by,
            boot: self.boot,
            used: None,
        });
        until
    }

    /// Takes what a heartbeat says. One that comes from another boot than the one that was announced, or after the
    /// announcement was used, ends it.
    pub fn beat(&mut self, boot: Option<RequestId>, images: &[Bytes<32>]) {
        let ended = |armed: &Armed| armed.used.is_some() || boot.is_some() && boot != armed.boot;
        if self.armed.as_ref().is_some_and(ended) {
            self.armed = None;
        }
        self.boot = boot;
        self.images = images.iter().take(IMAGES_LIMIT).copied().collect();
    }

    /// Notes that something was released to `session` because its boot was announced.
    pub fn booted_as_announced(&mut self, session: BootSession) {
        if let Some(armed) = &mut self.armed {
            armed.used.get_or_insert(session);
        }
    }
}

impl LastBoot {
    /// What `facts` say of a boot from `peer`.
    pub fn new(session: BootSession, peer: IpAddr, facts: &BootFacts) -> Self {
        Self {
            session,
            peer,
            kernel: kernel(facts),
            command_line: facts.command_line,
            image: facts.image,
            header: facts.header,
        }
    }
}

impl Armed {
    /// Whether it expects this session at `now`.
    pub fn expects(&self, request: RequestId, ephemeral_key: &Bytes<32>, now: UnixMillis) -> bool {
        match &self.used {
            None => now.is_within(self.at, self.until),
            Some(used) => used.fetches(request, ephemeral_key, now),
        }
    }
}

impl Trace {
    /// A volume without a past.
    pub fn new(volume: VolumeId) -> Self {
        Self {
            volume,
            current: None,
            next: None,
            last: None,
            boots: Vec::new(),
            used: None,
        }
    }

    /// What the ticket `shown` says.
    pub fn ticket(&self, shown: Option<&Bytes<32>>) -> TicketState {
        if self.current.is_none() && self.next.is_none() {
            return TicketState::None;
        }
        let Some(shown) = shown else {
            // Before the first ticket is confirmed a header has none.
            return match self.current {
                None => TicketState::None,
                Some(_) => TicketState::Missing,
            };
        };
        let same = |ticket: &Option<Bytes<32>>| {
            ticket.is_some_and(|ticket| bool::from(ticket.0.ct_eq(&shown.0)))
        };
        if same(&self.current) | same(&self.next) {
            TicketState::Good
        } else {
            TicketState::Stale
        }
    }

    /// Takes `ticket` as the one that the header holds; whether it may be.
    pub fn confirm(&mut self, ticket: &Bytes<32>) -> bool {
        if self.next.as_ref() == Some(ticket) {
            self.current = self.next.take();
        }
        self.current.as_ref() == Some(ticket)
    }

    /// Notes that its share was released to a boot session, as the policy wants it noted. What was released to the same
    /// boot before changes nothing.
    pub fn booted(&mut self, said: LastBoot, note: Note) {
        let session = said.session;
        if let Some(set) = note.once {
            match &self.used {
                Some((_, earlier)) if *earlier == set => {}
                _ => self.used = Some((session, set)),
            }
        }
        if note.counted && !self.knows(session.request, &session.ephemeral_key) {
            if self.boots.len() >= BOOTS_KEPT {
                self.boots.remove(0);
            }
            self.boots.push(session);
        }
        let again = |last: &LastBoot| last.session.is(session.request, &session.ephemeral_key);
        if !self.last.as_ref().is_some_and(again) {
            self.last = Some(said);
        }
    }

    /// Whether something was released to this session before.
    pub fn knows(&self, request: RequestId, ephemeral_key: &Bytes<32>) -> bool {
        self.boots
            .iter()
            .any(|boot| boot.is(request, ephemeral_key))
    }

    /// Other boots in the time before `now`. Those that a clock which ran ahead stamped count as well.
    pub fn boots_within(
        &self,
        request: RequestId,
        ephemeral_key: &Bytes<32>,
        now: UnixMillis,
        time: Duration,
    ) -> usize {
        let others = self
            .boots
            .iter()
            .filter(|boot| !boot.is(request, ephemeral_key));
        others.filter(|boot| now.since(boot.at) < time).count()
    }
}

/// The kernel's release as it is kept and compared.
pub fn kernel(facts: &BootFacts) -> String {
    crate::audit::printable(facts.kernel.as_str(), KERNEL_LIMIT)
}

impl Record for Group {
    fn key(&self) -> String {
        key::group(&self.name)
    }
}

impl Record for Machine {
    fn key(&self) -> String {
        key::machine(&self.client)
    }
}

impl Record for Trace {
    fn key(&self) -> String {
        key::trace(&self.volume)
    }
}

impl FromStr for GroupName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn session(number: u8, at: UnixMillis) -> BootSession {
        BootSession {
            request: format!("{number:032x}").parse().unwrap(),
            ephemeral_key: Bytes([number; 32]),
            at,
        }
    }

    fn said(session: BootSession) -> LastBoot {
        let facts = BootFacts {
            kernel: latchkey_protocol::wire::Text::cut("6.1"),
            command_line: Bytes([0; 32]),
            image_built: 0,
            image: None,
            header: None,
        };
        LastBoot::new(session, "192.0.2.7".parse().unwrap(), &facts)
    }

    fn trace() -> Trace {
        Trace::new("00000000-0000-4000-8000-000000000001".parse().unwrap())
    }

    #[test]
    fn current_and_next_tickets_are_good_and_all_others_are_of_a_copy() {
        let (a, b, c) = (Bytes([1; 32]), Bytes([2; 32]), Bytes([3; 32]));
        for (current, next, shown, state) in [
            (None, None, None, TicketState::None),
            (None, None, Some(a), TicketState::None),
            (None, Some(a), None, TicketState::None),
            (None, Some(a), Some(a), TicketState::Good),
            (None, Some(a), Some(b), TicketState::Stale),
            (Some(a), None, Some(a), TicketState::Good),
            (Some(a), None, None, TicketState::Missing),
            (Some(a), Some(b), Some(a), TicketState::Good),
            (Some(a), Some(b), Some(b), TicketState::Good),
            (Some(a), Some(b), Some(c), TicketState::Stale),
            (Some(a), Some(b), None, TicketState::Missing),
        ] {
            let trace = Trace {
                current,
                next,
                ..trace()
            };
            assert_eq!(
                trace.ticket(shown.as_ref()),
                state,
                "{current:?} {next:?} {shown:?}"
            );
        }
    }

    #[test]
    fn confirming_makes_the_earlier_ticket_stale() {
        let (a, b) = (Bytes([1; 32]), Bytes([2; 32]));
        let mut trace = Trace {
            current: Some(a),
            next: Some(b),
            ..trace()
        };
        assert!(!trace.confirm(&Bytes([9; 32])));
        assert!(trace.confirm(&a), "the header still holds it");
        assert_eq!(trace.ticket(Some(&b)), TicketState::Good);
        assert!(trace.confirm(&b));
        assert!(trace.confirm(&b), "a retry");
        assert_eq!(trace.ticket(Some(&a)), TicketState::Stale);
        assert!(!trace.confirm(&a));
    }

    #[test]
    fn an_announced_reboot_is_for_one_session_and_ends() {
        let mut machine = Machine::new("web-1".parse().unwrap());
        let until = machine.arm(NOW, 15 * MINUTE, None);
        let expects = |machine: &Machine, number: u8, now: UnixMillis| {
            let session = session(number, now);
            let armed = machine.armed.as_ref();
            armed.is_some_and(|armed| armed.expects(session.request, &session.ephemeral_key, now))
        };
        assert!(expects(&machine, 1, NOW) && expects(&machine, 2, NOW));
        assert!(!expects(&machine, 1, until));
        machine.booted_as_announced(session(1, NOW));
        machine.booted_as_announced(session(2, NOW));
        assert!(expects(&machine, 1, NOW.plus(9 * MINUTE)));
        assert!(!expects(&machine, 1, NOW.plus(FETCH)));
        assert!(!expects(&machine, 2, NOW));
        machine.beat(machine.boot, &[]);
        assert!(!expects(&machine, 1, NOW), "it is up");
    }

    #[test]
    fn a_heartbeat_before_the_reboot_leaves_the_announcement_and_one_after_ends_it() {
        let mut machine = Machine::new("web-1".parse().unwrap());
        let (before, after) = (session(1, NOW).request, session(2, NOW).request);
        machine.beat(Some(before), &[]);
        machine.arm(NOW, 15 * MINUTE, None);
        machine.beat(Some(before), &[]);
        assert!(machine.armed.is_some());
        machine.beat(Some(after), &[]);
        assert!(machine.armed.is_none());
    }

    #[test]
    fn boots_are_counted_once_each_and_not_without_end() {
        let mut trace = trace();
        let other = session(255, NOW);
        let within = |trace: &Trace, now, time| {
            trace.boots_within(other.request, &other.ephemeral_key, now, time)
        };
        let counted = Note {
            counted: true,
            ..Note::default()
        };
        for number in 0..3 {
            trace.booted(said(session(number, NOW)), counted);
            trace.booted(said(session(number, NOW.plus(MINUTE))), counted);
            trace.booted(said(session(number + 100, NOW)), Note::default());
        }
        assert_eq!(within(&trace, NOW.plus(59 * MINUTE), 60 * MINUTE), 3);
        assert_eq!(within(&trace, NOW.plus(60 * MINUTE), 60 * MINUTE), 0);
        assert_eq!(
            within(&trace, UnixMillis(0), 60 * MINUTE),
            3,
            "a clock put back"
        );
        for number in 0..=254 {
            trace.booted(said(session(number, NOW)), counted);
        }
        assert_eq!(trace.boots.len(), BOOTS_KEPT);
    }

    #[test]
    fn a_one_time_policy_is_used_by_the_first_session_until_it_is_set_again() {
        let mut trace = trace();
        let once = |set| Note {
            once: Some(set),
            ..Note::default()
        };
        trace.booted(said(session(1, NOW)), once(NOW));
        trace.booted(said(session(2, NOW)), once(NOW));
        assert_eq!(trace.used, Some((session(1, NOW), NOW)));
        let later = NOW.plus(MINUTE);
        trace.booted(said(session(2, later)), once(later));
        assert_eq!(trace.used, Some((session(2, later), later)));
    }
}
