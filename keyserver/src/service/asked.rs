//! A release as it is asked for, with all that is known when it is decided.

use std::net::IpAddr;

use latchkey_protocol::encoding::{Bytes, hex};
use latchkey_protocol::ids::VolumeId;
use latchkey_protocol::release::Purpose;
use latchkey_protocol::wire::{ReleaseRequest, WantedVolume};

use super::refusals::Refused;
use super::{Identity, client_of};
use crate::audit::Kind;
use crate::clock::{UnixMillis, Uptime};
use crate::ledger::Work;
use crate::policy::{
    self, Condition, Decision, Finding, Life, Outcome, Policy, PolicyRequest, Range, Rule,
    Standing, StoreState, StoredState,
};
use crate::records::{Client, Group, Machine, Session, Trace, Volume, key};
use crate::sealed::RecordError;
use crate::service::witness::store_state;

/// A request with all that is known of it.
pub(super) struct Asked<'a> {
    pub purpose: Purpose,
    pub identity: &'a Identity,
    pub peer: IpAddr,
    pub request: &'a ReleaseRequest,
    pub now: UnixMillis,
    pub uptime: Uptime,
    /// Whether what the clock says may be held against earlier stamps.
    pub clock_counts: bool,
    pub life: Life,
}

/// What is known of the client when a request of it is decided.
pub(super) struct Known {
    client: Client,
    group: Option<Group>,
    pub session: Option<Session>,
    store: StoreState,
}

/// One volume of a request, and what was decided.
pub(super) struct Look {
    pub wanted: WantedVolume,
    pub decision: Decision,
    /// What the policy's conditions say; none if the policy was not asked.
    pub findings: Vec<Finding>,
    scope: String,
}

/// What is to be done about the running machine after a request was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AskLife {
    /// Nothing.
    No,
    /// The boot session was released something: whoever comes up by it is no copy.
    Forget,
    /// Ask it.
    Ask,
}

impl AskLife {
    /// Of two volumes' wishes the one that asks.
    pub fn and(self, other: Self) -> Self {
        self.max(other)
    }
}

impl Known {
    /// Reads what a decision on `asked` rests on.
    pub fn read(work: &mut Work<'_>, asked: &Asked<'_>) -> Result<Self, RecordError> {
        let client = client_of(work, asked.identity)?;
        Self::of(work, client, asked.purpose, asked.request)
    }

    /// As [`Known::read`], for any client.
    pub fn of(
        work: &mut Work<'_>,
        client: Client,
        purpose: Purpose,
        request: &ReleaseRequest,
    ) -> Result<Self, RecordError> {
        let store = store_state(work)?;
        if !policy::is_asked(purpose) {
            return Ok(Self {
                client,
                group: None,
                session: None,
                store,
            });
        }
        let group = match &client.group {
            Some(name) => work.read(&key::group(name))?,
            None => None,
        };
        Ok(Self {
            group,
            session: work.read(&key::session(&client.name, &request.request))?,
            store,
            client,
        })
    }

    /// Decides on one volume.
    pub fn look(
        &self,
        work: &mut Work<'_>,
        asked: &Asked<'_>,
        standing: Standing,
        wanted: WantedVolume,
    ) -> Result<Look, RecordError> {
        let volume: Option<Volume> = work.read(&key::volume(&wanted.volume))?;
        let owned = volume
            .as_ref()
            .filter(|volume| volume.client == self.client.name);
        let by_policy = policy::is_asked(asked.purpose);
        let mut trace: Option<Trace> = match (by_policy, owned) {
            (true, Some(volume)) => work.read(&key::trace(&volume.id))?,
            _ => None,
        };
        if let Some(trace) = &mut trace
            && asked.clock_counts
            && trace.settle(asked.now)
        {
            work.write(trace)?;
        }
        // Decided before any policy is looked at.
        let none = Policy::plain(Rule::Deny);
        let in_force =
            owned.map(|volume| policy::in_force(volume, &self.client, self.group.as_ref()));
        // Also where no condition rests on it: what was announced is used up by whatever lets the boot through.
        let machine: Option<Machine> = match by_policy {
            true => work.read(&key::machine(&self.client.name))?,
            false => None,
        };
        let request = PolicyRequest {
            purpose: asked.purpose,
            client: &self.client.name,
            standing,
            request: asked.request.request,
            ephemeral_key: &asked.request.ephemeral_key,
            peer: asked.peer,
            wanted,
            ticket: asked.ticket(wanted.volume),
            facts: &asked.request.facts,
        };
        let state = StoredState {
            volume: volume.as_ref(),
            policy: in_force.map_or(&none, |found| found.policy),
            policy_set: in_force.map_or(UnixMillis(0), |found| found.set),
            home: owned.and_then(|volume| home(volume, &self.client)),
            session: self.session.as_ref(),
            machine: machine.as_ref(),
            trace: trace.as_ref(),
            life: asked.life,
            store: self.store,
            uptime: asked.uptime,
        };
        let decision = policy::decide(&request, state, asked.now);
        let by_policy = by_policy
            && match &decision {
                Decision::Release(_) | Decision::Ask | Decision::Pending | Decision::Wait => true,
                Decision::Deny(reason) => reason.is_of_policy(),
                Decision::Destroyed => false,
            };
        let findings = match by_policy {
            true => policy::findings(state.policy, &request, state, asked.now),
            false => Vec::new(),
        };
        Ok(Look {
            wanted,
            decision,
            findings,
            scope: in_force.map_or_else(String::new, |found| found.scope.to_string()),
        })
    }
}

impl Look {
    /// What decided, for the audit: `; POLICY'S SCOPE; CONDITION: WHY; ...`.
    pub fn because(&self) -> String {
        if self.findings.is_empty() {
            return String::new();
        }
        let mut text = format!("; policy {}", self.scope);
        // What holds is the reason of a release, what does not the reason of anything else.
        let released = matches!(self.decision, Decision::Release(_));
        let told = self.findings.iter().filter(|found| {
            found.condition != Condition::Rule && (released || found.outcome != Outcome::Holds)
                || self.findings.len() == 1
        });
        for found in told {
            let Finding {
                condition,
                text: why,
                ..
            } = found;
            text.push_str(&format!("; {}: {why}", condition.name()));
        }
        text
    }

    /// The alarms among the findings. That the running machine answered was one already, when it did.
    pub fn alarms(&self, asked: &Asked<'_>) -> Vec<Refused> {
        let alarms = self.findings.iter().filter(|found| {
            found.outcome == Outcome::Alarms && found.condition == Condition::Ticket
        });
        alarms
            .map(|found| {
                let text = format!("{}: {}", found.condition.name(), found.text);
                let mut refused = asked.refused(Some(&self.wanted), "alarm: ticket", &text);
                refused.kind = Kind::Alarm;
                refused
            })
            .collect()
    }

    /// Whether the running machine is to be asked because of this decision.
    pub fn asks_life(&self, purpose: Purpose) -> AskLife {
        if purpose != Purpose::Release {
            return AskLife::No; // the running machine is who asks
        }
        let life = self
            .findings
            .iter()
            .find(|found| found.condition == Condition::Life);
        match (&self.decision, life) {
            (_, None) => AskLife::No,
            (Decision::Release(_), Some(_)) => AskLife::Forget,
            (_, Some(found)) if found.outcome == Outcome::Alarms => AskLife::No,
            // Also where it did not answer so far: it may have been cut off, and be back by now.
            (_, Some(_)) => AskLife::Ask,
        }
    }
}

/// The address that a volume's machine had when the volume was bound, or when it joined.
pub(super) fn home(volume: &Volume, client: &Client) -> Option<Range> {
    let joined = client.joined.as_ref();
    volume
        .home
        .or_else(|| joined.map(|joined| Range::around(joined.from)))
}

impl Asked<'_> {
    /// Where all lies that a decision and a release take, but for the client's group.
    pub fn keys(&self) -> Vec<String> {
        let client = self.identity.client();
        let mut keys = vec![key::client(client), key::WITNESS.to_owned()];
        let by_policy = policy::is_asked(self.purpose);
        if by_policy {
            keys.push(key::machine(client));
            keys.push(key::session(client, &self.request.request));
        }
        for wanted in &self.request.volumes {
            keys.push(key::volume(&wanted.volume));
            keys.push(key::share(&wanted.volume, wanted.generation));
            if by_policy {
                keys.push(key::trace(&wanted.volume));
            }
        }
        keys
    }

    /// The ticket that the header of `volume` shows.
    pub fn ticket(&self, volume: VolumeId) -> Option<&Bytes<32>> {
        let mut tickets = self.request.tickets.iter();
        let shown = tickets.find(|shown| shown.volume == volume)?;
        Some(&shown.ticket)
    }

    pub fn refused(
        &self,
        wanted: Option<&WantedVolume>,
        name: &'static str,
        text: &str,
    ) -> Refused {
        Refused {
            kind: Kind::Refused,
            client: self.identity.client().clone(),
            volume: wanted.map(|wanted| wanted.volume),
            request: Some(self.request.request),
            peer: self.peer,
            name,
            text: text.to_owned(),
        }
    }

    pub fn verb(&self) -> &'static str {
        match self.purpose {
            Purpose::Release => "not released",
            Purpose::Opening => "not opened",
            Purpose::Proof | Purpose::Registration => "not proved",
        }
    }

    /// What the machine says of itself, shortened.
    pub fn facts(&self) -> String {
        let facts = &self.request.facts;
        let kernel: String = facts.kernel.as_str().chars().take(64).collect();
        let mut text = format!(
            "kernel '{kernel}', command line {}",
            hex(&facts.command_line.0[..8])
        );
        if facts.image_built != 0 {
            let built = UnixMillis(facts.image_built.saturating_mul(1000));
            // A date beyond the year 9999 is no date.
            if built.0 < 253_402_300_800_000 {
                text.push_str(&format!(", image of {}", built.text()));
            }
        }
        text
    }
}
