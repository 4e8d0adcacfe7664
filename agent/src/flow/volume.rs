//! One volume of the flow: what is known of it, and how far it has come.

use std::time::Duration;

use latchkey_protocol::{Generation, VolumeId};

use super::events::{Action, PlannedVolume, PromptLimit, ServerIndex, VolumeIndex};

/// How long a device may take to show its header before the boot goes on to look for others.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Volume {
    pub(super) name: String,
    /// Whether the boot goes on without it.
    pub(super) optional: bool,
    pub(super) state: State,
    /// Its device is there, and since when its header is being read.
    pub(super) read_since: Option<Duration>,
    /// Whether a passphrase can open it.
    pub(super) typeable: bool,
    /// Its name at the key servers, if it is bound.
    pub(super) id: Option<VolumeId>,
    /// What its token offers, while it may still be opened automatically.
    pub(super) envelopes: Vec<(ServerIndex, Generation)>,
    /// Servers whose share the shell holds.
    pub(super) released: Vec<ServerIndex>,
    /// Why it will not be opened automatically, once that is so.
    pub(super) refused: Option<String>,
    pub(super) prompt_limit: PromptLimit,
    /// Passphrases in a row that opened nothing.
    pub(super) wrong: u32,
    /// Since when only a person can open it.
    pub(super) only_prompt_since: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Missing,
    NotBound,
    Locked,
    OpeningAutomatically(ServerIndex),
    OpeningTyped,
    Open,
}

impl Volume {
    pub(super) fn new(planned: PlannedVolume) -> Self {
        Self {
            name: planned.name,
            optional: planned.optional,
            prompt_limit: planned.prompt_limit,
            wrong: 0,
            only_prompt_since: None,
            state: State::Missing,
            read_since: None,
            typeable: true,
            id: None,
            envelopes: Vec::new(),
            released: Vec::new(),
            refused: None,
        }
    }

    pub(super) fn refuse(&mut self, why: String, actions: &mut Vec<Action>) {
        actions.push(Action::Say(format!(
            "'{}' is not opened automatically: {why}",
            self.name
        )));
        self.released.clear();
        self.refused = Some(why);
    }

    /// It becomes the native unlocker's.
    pub(super) fn leave(&mut self, index: VolumeIndex, why: &str, actions: &mut Vec<Action>) {
        actions.extend([
            Action::Say(format!(
                "'{}' is left to the boot framework: {why}",
                self.name
            )),
            Action::Leave(index),
        ]);
        self.released.clear();
        self.state = State::NotBound;
    }

    /// Nothing more is to be done for it.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Open | State::NotBound)
    }

    pub(super) fn is_missing(&self) -> bool {
        self.state == State::Missing
    }

    /// Its device is there, and slow: nobody else would get at the header sooner.
    pub(super) fn is_being_read(&self, now: Duration) -> bool {
        self.reading_ends().is_some_and(|limit| now < limit)
    }

    /// When a device that shows no header is as good as missing.
    pub(super) fn reading_ends(&self) -> Option<Duration> {
        let since = self.read_since.filter(|_| self.is_missing())?;
        Some(since + HEADER_LIMIT)
    }

    pub(super) fn is_locked(&self) -> bool {
        self.state == State::Locked
    }

    /// A prompt is worth while.
    pub(super) fn waits_for_a_passphrase(&self) -> bool {
        self.is_locked() && self.typeable
    }

    /// Why it is the native unlocker's now that no key server can open it; `None` if the prompt stands.
    pub(super) fn is_not_prompted_for(&self, now: Duration) -> Option<String> {
        if !self.typeable {
            return Some("no passphrase opens it, only its volume key".to_owned());
        }
        let stood = now.saturating_sub(self.only_prompt_since?);
        self.prompt_limit.reached(self.wrong, stood)
    }

    /// When its prompt ends, if that is known.
    pub(super) fn prompt_ends(&self) -> Option<Duration> {
        let ends = self
            .only_prompt_since?
            .checked_add(self.prompt_limit.timeout?);
        ends.filter(|_| self.is_locked())
    }

    pub(super) fn is_opening(&self) -> bool {
        matches!(
            self.state,
            State::OpeningAutomatically(_) | State::OpeningTyped
        )
    }
}
