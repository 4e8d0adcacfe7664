//! Power cuts at a commit of the key server: the key server's own, or that of the machine that asked for it.

use std::sync::{Arc, Mutex};

use latchkeyd::store::{self, Entry, Outcome, SqliteStore, StoreError, Transaction, Versioned};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::Network;

/// On which side of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Nothing of it was written.
    Before,
    /// It is durable, and nobody hears of that.
    After,
}

/// Which commit from now on, 1 being the next one, and on which side of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub commit: u32,
    pub side: Side,
}

/// Whose power goes when.
pub struct Power {
    network: Arc<Network>,
    next: Mutex<Option<(Moment, Whose)>>,
}

#[derive(Debug, Clone, Copy)]
enum Whose {
    Server,
    Machine(Pid),
}

impl Power {
    pub fn of_server(network: Arc<Network>) -> Self {
        Self {
            network,
            next: Mutex::new(None),
        }
    }

    /// The key server's goes: every connection with it.
    pub fn cut_server(&self, at: Moment) {
        *self.next.lock().unwrap() = Some((at, Whose::Server));
    }

    /// The machine's goes: this process is killed.
    pub fn cut_machine(&self, at: Moment, process: Pid) {
        *self.next.lock().unwrap() = Some((at, Whose::Machine(process)));
    }

    /// Whether the moment has not come; it is called off then.
    pub fn call_off(&self) -> bool {
        self.next.lock().unwrap().take().is_some()
    }

    /// The power that goes at the commit that is being made.
    fn goes(&self) -> Option<(Side, Whose)> {
        let mut next = self.next.lock().unwrap();
        let (moment, _) = next.as_mut()?;
        moment.commit -= 1;
        if moment.commit > 0 {
            return None;
        }
        next.take().map(|(moment, whose)| (moment.side, whose))
    }

    fn cut(&self, whose: Whose) {
        match whose {
            Whose::Server => self.network.cut(),
            Whose::Machine(process) => kill(process, Signal::SIGKILL).unwrap(),
        }
    }
}

/// The key server's store, at whose commits the power goes.
pub struct Store {
    store: SqliteStore,
    power: Arc<Power>,
}

impl Store {
    pub fn new(store: SqliteStore, power: Arc<Power>) -> Self {
        Self { store, power }
    }
}

impl store::Store for Store {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.store.get(key)
    }

    fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>, StoreError> {
        self.store.get_all(keys)
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.store.range(prefix, after, limit)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let Some((side, whose)) = self.power.goes() else {
            return self.store.commit(transaction);
        };
        if side == Side::Before {
            self.power.cut(whose);
            return Err(StoreError::Injected("before a commit"));
        }
        let outcome = self.store.commit(transaction);
        self.power.cut(whose);
        match whose {
            Whose::Machine(_) => outcome,
            Whose::Server => Err(StoreError::Injected("after a commit")),
        }
    }

    fn erase_traces(&self) -> Result<(), StoreError> {
        self.store.erase_traces()
    }
}
