//! A machine that lost its keys and asks to be taken back: one request for each client, with its own number and code.

use std::net::IpAddr;
use std::time::Duration;

use latchkey_protocol::ids::{ClientName, RequestId, VolumeId};
use latchkey_protocol::wire::VolumeTicket;
use serde::{Deserialize, Serialize};

use super::{Approved, Code, Record, SessionState, ShortId, UsedBy, key};
use crate::clock::UnixMillis;

/// Requests that one client may begin in an hour: whoever has a copy of its disk may begin them.
pub const BEGUN_LIMIT: usize = 4;
const HOUR: Duration = Duration::from_secs(3600);

/// A request to be taken back, or the last one of its client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejoin {
    /// As which client.
    pub client: ClientName,
    /// Tells it apart in the audit.
    pub request: RequestId,
    /// What the administrator calls it.
    pub number: ShortId,
    /// What only the machine's screen shows.
    pub code: Code,
    /// The keys that are to count.
    pub keys: UsedBy,
    /// The volumes that the machine named.
    pub volumes: Vec<VolumeId>,
    /// The tickets that their headers showed.
    pub tickets: Vec<VolumeTicket>,
    /// How it stands.
    pub state: SessionState,
    /// Wrong codes so far.
    pub attempts: u32,
    /// When it began.
    pub created: UnixMillis,
    /// When it ends, whatever its state.
    pub expires: UnixMillis,
    /// Where it came from.
    pub peer: IpAddr,
    /// Who approved it so far.
    pub approvals: Vec<Approved>,
    /// Another machine has asked for the same meanwhile, from here.
    pub rival: Option<IpAddr>,
    /// When the client's requests of the last hour began.
    pub begun: Vec<UnixMillis>,
}

impl Rejoin {
    /// Whether it has not ended.
    pub fn is_open(&self, now: UnixMillis) -> bool {
        now.is_within(self.created, self.expires)
    }

    /// Whether a person may still decide.
    pub fn waits(&self, now: UnixMillis) -> bool {
        self.is_open(now) && self.state == SessionState::Pending
    }

    /// Sets right what a clock that ran ahead stamped; whether there was any.
    pub fn settle(&mut self, now: UnixMillis) -> bool {
        let settled: Vec<UnixMillis> = self.begun.iter().map(|at| at.settled(now)).collect();
        let changed = settled != self.begun;
        self.begun = settled;
        changed
    }

    /// Whether nothing has to be remembered of it.
    pub fn is_over(&self, now: UnixMillis) -> bool {
        !self.is_open(now) && recent(&self.begun, now).is_empty()
    }
}

/// Those of `begun` that lie in the hour before `now`. What a clock that ran ahead stamped counts as well.
pub fn recent(begun: &[UnixMillis], now: UnixMillis) -> Vec<UnixMillis> {
    let in_hour = |at: &&UnixMillis| now.since(**at) < HOUR;
    begun.iter().filter(in_hour).copied().collect()
}

impl Record for Rejoin {
    fn key(&self) -> String {
        key::rejoin(&self.client)
    }
}
