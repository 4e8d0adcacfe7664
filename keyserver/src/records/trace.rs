//! What the key server remembers of a volume's boots: its tickets, what its machine said, and who was released what.

use std::net::IpAddr;
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{RequestId, VolumeId};
use latchkey_protocol::wire::BootFacts;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::{BootSession, Record, key};
use crate::clock::UnixMillis;

/// Boots of a volume that are remembered: more than any policy counts.
const BOOTS_KEPT: usize = 128;
/// Most bytes of a kernel's release that are kept.
const KERNEL_LIMIT: usize = 64;

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
    /// The boot session that used a one-time policy up, and when that policy was set: the one that was set last.
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
    /// Whether the header showed a ticket.
    #[serde(default, skip_serializing_if = "is_not")]
    pub ticket: bool,
}

/// What a policy wants to have noted of a release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Note {
    /// It is a one-time policy: when it was set.
    pub once: Option<UnixMillis>,
    /// It counts boots.
    pub counted: bool,
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
                Some((_, newest)) if *newest >= set => {}
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

    /// Sets right what a clock that ran ahead stamped; whether there was any.
    pub fn settle(&mut self, now: UnixMillis) -> bool {
        let mut changed = false;
        for boot in &mut self.boots {
            let settled = boot.at.settled(now);
            changed |= settled != boot.at;
            boot.at = settled;
        }
        changed
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

impl LastBoot {
    /// What `facts` say of a boot from `peer`, whose header showed a ticket or none.
    pub fn new(
        session: BootSession,
        peer: IpAddr,
        facts: &BootFacts,
        ticket: Option<&Bytes<32>>,
    ) -> Self {
        Self {
            session,
            peer,
            kernel: kernel(facts),
            command_line: facts.command_line,
            image: facts.image,
            header: facts.header,
            ticket: ticket.is_some(),
        }
    }
}

/// For what is left out where it is false.
fn is_not(said: &bool) -> bool {
    !said
}

/// The kernel's release as it is kept and compared.
pub fn kernel(facts: &BootFacts) -> String {
    crate::audit::printable(facts.kernel.as_str(), KERNEL_LIMIT)
}

impl Record for Trace {
    fn key(&self) -> String {
        key::trace(&self.volume)
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
        LastBoot::new(session, "192.0.2.7".parse().unwrap(), &facts, None)
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
        // The first policy is in force again, and a person approved.
        trace.booted(said(session(3, later)), once(NOW));
        assert_eq!(trace.used, Some((session(2, later), later)));
    }
}
