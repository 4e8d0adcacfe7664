//! One volume of the flow: what is known of it, and how far it has come.

use std::time::Duration;

use latchkey_protocol::{Generation, VolumeId};

use super::events::{Action, ServerIndex, VolumeIndex};

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
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            optional: false,
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

    pub(super) fn is_locked(&self) -> bool {
        self.state == State::Locked
    }

    /// A prompt is worth while.
    pub(super) fn waits_for_a_passphrase(&self) -> bool {
        self.is_locked() && self.typeable
    }

    pub(super) fn is_opening(&self) -> bool {
        matches!(
            self.state,
            State::OpeningAutomatically(_) | State::OpeningTyped
        )
    }
}
