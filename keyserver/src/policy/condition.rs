//! The conditions of a policy, each looked at on its own, and what each says in one sentence.

use std::time::Duration;

use latchkey_protocol::release::Purpose;
use latchkey_protocol::wire::OpenedBy;
use serde::{Deserialize, Serialize};

use super::{Change, Life, Otherwise, Policy, PolicyRequest, Rule, Span, StoredState};
use crate::clock::UnixMillis;
use crate::records::{LastBoot, TicketState, kernel};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A condition of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Proof of life.
    Life,
    /// One-time.
    Once,
    /// The source address.
    Address,
    /// The ticket in the header.
    Ticket,
    /// The time.
    Window,
    /// Boots in an hour or a day.
    Rate,
    /// An announced reboot.
    Armed,
    /// When the machine was heard of.
    Silence,
    /// What is as at the last boot.
    Changes,
    /// The rule.
    Rule,
}

/// What a condition says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds.
    Holds,
    /// It does not.
    Fails,
    /// It does not, and only a copy of the machine or a grave mistake explains that.
    Alarms,
    /// It is not known yet.
    Waits,
    /// There is nothing yet that it could be held against, as at a first boot: a person is asked.
    Untold,
}

/// A condition, what it says, and why in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// The condition.
    pub condition: Condition,
    /// What it says.
    pub outcome: Outcome,
    /// Why.
    pub text: String,
}

impl Condition {
    /// The condition's name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Life => "life",
            Self::Once => "once",
            Self::Address => "address",
            Self::Ticket => "ticket",
            Self::Window => "window",
            Self::Rate => "rate",
            Self::Armed => "armed",
            Self::Silence => "silence",
            Self::Changes => "changes",
            Self::Rule => "rule",
        }
    }

    /// What a machine is told that is refused because of it.
    pub(super) fn refusal(self) -> &'static str {
        match self {
            Self::Life => "the running machine answered: this is a copy of it",
            Self::Once => "the volume's policy allowed one boot, and that was another one",
            Self::Address => "this address is not allowed by the volume's policy",
            Self::Ticket => "the volume's policy wants the ticket of its last boot",
            Self::Window => "the volume's policy does not allow a boot at this time",
            Self::Rate => "the volume's policy does not allow so many boots",
            Self::Armed => "the volume's policy wants the reboot announced",
            Self::Silence => "the machine was not heard of for too long",
            Self::Changes => "the volume's policy does not allow what changed since the last boot",
            Self::Rule => "the volume's policy denies every release",
        }
    }
}

impl Outcome {
    /// The outcome as people are told.
    pub fn text(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "does not hold",
            Self::Alarms => "ALARM",
            Self::Waits => "not known yet",
            Self::Untold => "cannot be told",
        }
    }
}

impl Finding {
    fn new(condition: Condition, outcome: Outcome, text: impl Into<String>) -> Self {
        Self {
            condition,
            outcome,
            text: text.into(),
        }
    }

    fn holds(condition: Condition, holds: bool, text: impl Into<String>) -> Self {
        let outcome = if holds {
            Outcome::Holds
        } else {
            Outcome::Fails
        };
        Self::new(condition, outcome, text)
    }
}

/// What each condition of the policy says of a request at `now`, in the order in which they decide. Every one of them
/// is looked at, also when an earlier one has decided already.
pub fn findings(
    policy: &Policy,
    request: &PolicyRequest<'_>,
    state: StoredState<'_>,
    now: UnixMillis,
) -> Vec<Finding> {
    let look = Look {
        policy,
        request,
        state,
        now,
    };
    [
        look.life(),
        look.once(),
        look.address(),
        look.ticket(),
        look.window(),
        look.rate(),
        look.armed(),
        look.silence(),
        look.changes(),
        Some(look.rule()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether this boot session was announced: it comes in time, it is the one that the announcement is for, and its volume
/// shows the ticket that it had then (one without a ticket has none to show).
pub(super) fn announced(
    request: &PolicyRequest<'_>,
    state: StoredState<'_>,
    now: UnixMillis,
) -> bool {
    let armed = state.machine.and_then(|machine| machine.armed.as_ref());
    request.purpose == Purpose::Release
        && armed.is_some_and(|armed| armed.expects(request.request, request.ephemeral_key, now))
        && matches!(
            ticket_state(request, state),
            TicketState::Good | TicketState::None
        )
}

/// Whether proof of life does not hold because the running machine answered.
pub(super) fn answered(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|found| found.condition == Condition::Life && found.outcome == Outcome::Alarms)
}

fn ticket_state(request: &PolicyRequest<'_>, state: StoredState<'_>) -> TicketState {
    state
        .trace
        .map_or(TicketState::None, |trace| trace.ticket(request.ticket))
}

struct Look<'a> {
    policy: &'a Policy,
    request: &'a PolicyRequest<'a>,
    state: StoredState<'a>,
    now: UnixMillis,
}

impl Look<'_> {
    /// What stands in the place of a running machine's word, which the host key gives. A running system that opens a data
    /// volume shows that it has the key: where root is encrypted, whoever has it has opened root, and the boot was decided on
    /// then. Where root is not, the key is in every copy of the disk, and its word is worth nothing.
    fn instead_of_word(&self, condition: Condition) -> Option<Finding> {
        let opened_by = self.state.volume.map(|volume| volume.opened_by);
        let (holds, text) = match (self.request.purpose, opened_by) {
            (Purpose::Opening, Some(OpenedBy::HostKey)) => (
                true,
                "the running system asks, with a host key that lies on its encrypted root",
            ),
            (Purpose::Opening, _) => (
                false,
                "the running system asks, with a host key that is in every copy of its disk",
            ),
            (_, Some(OpenedBy::ExposedBootKey)) => (
                false,
                "root is not encrypted: the host key that would show it is in every copy of the disk",
            ),
            _ => return None,
        };
        Some(Finding::holds(condition, holds, text))
    }

    fn life(&self) -> Option<Finding> {
        self.policy.life.then(|| {
            let found = |outcome, text: &str| Finding::new(Condition::Life, outcome, text);
            let announced = announced(self.request, self.state, self.now);
            match (self.state.life, self.instead_of_word(Condition::Life)) {
                (_, Some(found)) if self.request.purpose == Purpose::Opening => found,
                // Also where every copy could answer: either way there are two of it.
                (Life::Alive, _) => found(
                    Outcome::Alarms,
                    "the running machine answered: what boots is a copy of it",
                ),
                (Life::Silent, Some(found)) => found,
                (Life::Silent, None) => {
                    found(Outcome::Holds, "nobody answered as the running machine")
                }
                (Life::Gone, None) if announced => found(
                    Outcome::Holds,
                    "the reboot was announced, and the machine has closed its connection",
                ),
                (Life::Gone | Life::Waiting, _) => found(
                    Outcome::Waits,
                    "waiting to hear whether the running machine answers",
                ),
            }
        })
    }

    fn once(&self) -> Option<Finding> {
        self.policy.once.then(|| {
            let used = self.state.trace.and_then(|trace| trace.used.as_ref());
            let found = |holds, text| Finding::holds(Condition::Once, holds, text);
            // Also one that was in force in between, and was set later.
            match used.filter(|(_, set)| *set >= self.state.policy_set) {
                None => found(
                    true,
                    "nothing was released under this policy so far".to_owned(),
                ),
                Some((session, _)) => {
                    let (request, key) = (self.request.request, self.request.ephemeral_key);
                    let at = session.at.text();
                    match session.fetches(request, key, self.now) {
                        true => found(
                            true,
                            format!("it is the boot that it was released to at {at} UTC"),
                        ),
                        false => found(
                            false,
                            format!("it was released to a boot at {at} UTC already"),
                        ),
                    }
                }
            }
        })
    }

    fn address(&self) -> Option<Finding> {
        let from = &self.policy.from;
        (!from.is_empty()).then(|| {
            let (peer, home) = (self.request.peer, self.state.home);
            let holds = from.iter().any(|source| source.contains(peer, home));
            let is = if holds { "is" } else { "is not" };
            Finding::holds(
                Condition::Address,
                holds,
                format!("{peer} {is} among the policy's addresses"),
            )
        })
    }

    fn ticket(&self) -> Option<Finding> {
        let found = |outcome, text: &str| Some(Finding::new(Condition::Ticket, outcome, text));
        let last = self.state.trace.and_then(|trace| trace.last.as_ref());
        match ticket_state(self.request, self.state) {
            // Also where the policy does not ask for tickets: no honest boot shows such a one, or hides it.
            TicketState::Stale => found(
                Outcome::Alarms,
                "the header shows a ticket of an earlier time: it is a copy, or was restored from one",
            ),
            TicketState::Missing if last.is_some_and(|last| last.ticket) => found(
                Outcome::Alarms,
                "no ticket was shown, and the last boot showed one: it is a copy, or its header or its image was put back",
            ),
            _ if !self.policy.ticket => None,
            TicketState::Good => found(
                Outcome::Holds,
                "the header shows the ticket of its last boot",
            ),
            TicketState::Missing => found(
                Outcome::Fails,
                "no ticket was shown, and the volume's header has one",
            ),
            TicketState::None => found(Outcome::Untold, "the volume has never had a ticket"),
        }
    }

    fn window(&self) -> Option<Finding> {
        let windows = &self.policy.windows;
        (!windows.is_empty()).then(|| {
            let time = self.now.text();
            match windows.iter().find(|window| window.contains(self.now)) {
                Some(window) => Finding::holds(
                    Condition::Window,
                    true,
                    format!("{time} UTC is within '{window}'"),
                ),
                None => Finding::holds(
                    Condition::Window,
                    false,
                    format!("{time} UTC is within no time window"),
                ),
            }
        })
    }

    fn rate(&self) -> Option<Finding> {
        let limits = [
            (self.policy.per_hour, HOUR, "hour"),
            (self.policy.per_day, DAY, "day"),
        ];
        let (key, request) = (self.request.ephemeral_key, self.request.request);
        let known = self
            .state
            .trace
            .is_some_and(|trace| trace.knows(request, key));
        let mut words = Vec::new();
        let mut holds = true;
        for (limit, time, name) in limits {
            let Some(limit) = limit else { continue };
            let before = self
                .state
                .trace
                .map_or(0, |trace| trace.boots_within(request, key, self.now, time));
            holds &= before < usize::try_from(limit).unwrap_or(usize::MAX);
            words.push(format!("{before} of {limit} in the last {name}"));
        }
        (!words.is_empty()).then(|| {
            let text = format!("other boots before this one: {}", words.join(", "));
            // What was released to a boot is not counted against it.
            Finding::holds(Condition::Rate, holds || known, text)
        })
    }

    fn armed(&self) -> Option<Finding> {
        self.policy.armed.then(|| {
            if let Some(found) = self.instead_of_word(Condition::Armed) {
                return found;
            }
            let armed = self
                .state
                .machine
                .and_then(|machine| machine.armed.as_ref());
            let (request, key) = (self.request.request, self.request.ephemeral_key);
            let text = match armed {
                None => "no reboot was announced".to_owned(),
                Some(armed) if armed.expects(request, key, self.now) => {
                    match announced(self.request, self.state, self.now) {
                        true => format!("announced until {} UTC", armed.until.text()),
                        false => "a reboot was announced, and this boot does not show its ticket"
                            .to_owned(),
                    }
                }
                Some(armed) if armed.used.is_some() => {
                    "the announced reboot was another boot".to_owned()
                }
                Some(armed) => format!("the announcement ended at {} UTC", armed.until.text()),
            };
            let holds = announced(self.request, self.state, self.now);
            Finding::holds(Condition::Armed, holds, text)
        })
    }

    fn silence(&self) -> Option<Finding> {
        self.policy.silent_after.map(|limit| {
            if let Some(found) = self.instead_of_word(Condition::Silence) {
                return found;
            }
            let heard = self.state.machine.and_then(|machine| machine.heard);
            match heard {
                None => Finding::holds(
                    Condition::Silence,
                    false,
                    "the machine was never heard of",
                ),
                Some(heard) => {
                    let silent = self.state.uptime.since(heard.uptime);
                    Finding::holds(
                        Condition::Silence,
                        silent < limit.0,
                        format!(
                            "last heard of at {} UTC, {} ago while the key server ran; the limit is {limit}",
                            heard.at.text(),
                            Span(Duration::from_secs(silent.as_secs() / 60 * 60))
                        ),
                    )
                }
            }
        })
    }

    fn changes(&self) -> Option<Finding> {
        let watched = &self.policy.changes;
        if watched.is_empty() {
            return None;
        }
        let Some(last) = self.state.trace.and_then(|trace| trace.last.as_ref()) else {
            return Some(Finding::new(
                Condition::Changes,
                Outcome::Untold,
                "there is no earlier boot to compare with",
            ));
        };
        let changed: Vec<&str> = watched
            .iter()
            .filter(|change| self.changed(**change, last))
            .map(|change| change.text())
            .collect();
        if changed.is_empty() {
            let text = format!("as at the last boot, at {} UTC", last.session.at.text());
            return Some(Finding::holds(Condition::Changes, true, text));
        }
        Some(Finding::holds(
            Condition::Changes,
            false,
            format!("changed since the last boot: {}", changed.join(", ")),
        ))
    }

    fn changed(&self, change: Change, last: &LastBoot) -> bool {
        let facts = self.request.facts;
        let new_image = facts.image != last.image;
        let announced_image = self.state.machine.is_some_and(|machine| {
            facts
                .image
                .is_some_and(|image| machine.images.contains(&image))
        });
        match change {
            Change::Kernel => kernel(facts) != last.kernel && !(new_image && announced_image),
            Change::CommandLine => facts.command_line != last.command_line,
            Change::Address => self.request.peer != last.peer,
            Change::Image => new_image && !announced_image,
            Change::Header => facts.header != last.header,
        }
    }

    fn rule(&self) -> Finding {
        let (outcome, text) = match self.policy.rule {
            Rule::Allow => (
                Outcome::Holds,
                "released without a person if all conditions hold",
            ),
            Rule::Ask => (Outcome::Fails, "a person approves every boot"),
            Rule::Deny => (Outcome::Fails, "never released"),
        };
        Finding::new(Condition::Rule, outcome, text)
    }
}

/// What all the findings come to, before any person is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// The share is released.
    Release,
    /// A person is asked.
    Ask,
    /// The running machine is asked first.
    Wait,
    /// Refused because of this condition.
    Deny(Condition),
}

/// What the findings come to: what refuses always comes first, then what the policy says to refuse, then waiting, so that
/// no person is asked before the running machine had its say. What cannot be told refuses nothing: a first boot needs a person,
/// not another policy.
pub fn sum(policy: &Policy, findings: &[Finding]) -> Sum {
    if policy.rule == Rule::Deny {
        return Sum::Deny(Condition::Rule);
    }
    let mut failing = findings
        .iter()
        .filter(|found| matches!(found.outcome, Outcome::Fails | Outcome::Alarms));
    let refuses = |found: &&Finding| match found.condition {
        Condition::Once => true,
        Condition::Life if found.outcome == Outcome::Alarms => true,
        Condition::Rule => false,
        // `otherwise` is for what the policy names.
        Condition::Ticket if !policy.ticket => false,
        Condition::Address => policy.elsewhere == Otherwise::Deny,
        _ => policy.otherwise == Otherwise::Deny,
    };
    if let Some(found) = failing.find(refuses) {
        return Sum::Deny(found.condition);
    }
    if findings.iter().any(|found| found.outcome == Outcome::Waits) {
        return Sum::Wait;
    }
    match findings.iter().all(|found| found.outcome == Outcome::Holds) {
        true => Sum::Release,
        false => Sum::Ask,
    }
}
