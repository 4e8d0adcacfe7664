//! Which key server to ask next, at which address, and when.
//!
//! One request at a time. A fault moves on to the server's next address at once; when all of them have failed
//! the server rests: 1 s doubling to 30 s, with jitter, so that a thousand machines that lost power together do
//! not ask together. An answer that is a verdict sets its own pace, and so does a key server that is busy, within a limit;
//! the other key servers are asked meanwhile.

use std::time::Duration;

use latchkey_protocol::ServerId;

use super::{Answer, PlannedServer, ServerIndex, Verdict};

const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// What a key server that gives verdicts may ask for at most, and the pace after a refusal.
const LONGEST_PACE: Duration = Duration::from_secs(300);
/// What a busy one may ask for at most (`Retry-After`): it has decided nothing, and people wait for the machine.
const LONGEST_BUSY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Asking {
    servers: Vec<Server>,
    under_way: Option<(u64, ServerIndex)>,
    next_number: u64,
    random: u64,
}

#[derive(Debug)]
pub(super) struct Server {
    id: ServerId,
    addresses: Vec<String>,
    address: usize,
    due: Duration,
    rest: Duration,
    /// The fault of each address since the last answer.
    faults: Vec<Option<String>>,
    pub(super) said: Said,
}

/// What people should know of a server's last answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    Unreachable(String),
    Busy,
    Pending {
        id: String,
        code: String,
    },
    Waiting(String),
    Denied(String),
    /// This machine, whatever it asks for.
    Refused,
    Destroyed,
}

impl Asking {
    pub(super) fn new(servers: Vec<PlannedServer>, seed: u64) -> Self {
        let servers = servers.into_iter().map(Server::new).collect();
        Self {
            servers,
            under_way: None,
            next_number: 1,
            random: seed | 1,
        }
    }

    pub(super) fn index_of(&self, id: ServerId) -> Option<ServerIndex> {
        self.servers.iter().position(|server| server.id == id)
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    pub(super) fn cancel(&mut self) {
        self.under_way = None;
    }

    /// Whatever failed before may work now.
    pub(super) fn network_came_up(&mut self, now: Duration) {
        for server in &mut self.servers {
            if matches!(server.said, Said::Nothing | Said::Unreachable(_)) {
                server.due = server.due.min(now);
                server.rest = FIRST_REST;
            }
        }
    }

    pub(super) fn due(&self, now: Duration) -> impl Iterator<Item = ServerIndex> {
        (0..self.servers.len()).filter(move |index| self.servers[*index].due <= now)
    }

    /// When the next of the servers that have something to be asked for is due; `None` if none has.
    pub(super) fn next_due<T>(
        &self,
        now: Duration,
        wants: impl Fn(ServerIndex) -> Vec<T>,
    ) -> Option<Duration> {
        (0..self.servers.len())
            .filter(|index| !wants(*index).is_empty())
            .map(|index| self.servers[index].due.max(now))
            .min()
    }

    /// Starts a request: its number and which address to use.
    pub(super) fn begin(&mut self, server: ServerIndex) -> (u64, usize) {
        let number = self.next_number;
        self.next_number += 1;
        self.under_way = Some((number, server));
        (number, self.servers[server].address)
    }

    /// Notes an answer; the server that gave it, or `None` if it answers nothing that is under way.
    pub(super) fn answered(
        &mut self,
        now: Duration,
        number: u64,
        answer: &Answer,
    ) -> Option<ServerIndex> {
        let (_, index) = self
            .under_way
            .take_if(|(expected, _)| *expected == number)?;
        let jitter = self.jitter();
        let server = &mut self.servers[index];
        match answer {
            Answer::Fault(why) => server.fault(now, why, jitter),
            Answer::Busy(pace) => {
                server.said = Said::Busy;
                server.due =
                    now + (*pace).clamp(FIRST_REST, LONGEST_BUSY) + FIRST_REST.mul_f64(jitter);
                server.next_address();
            }
            Answer::Refused => {
                server.reached();
                server.said = Said::Refused;
                server.due = now + LONGEST_PACE;
            }
            Answer::Verdicts(verdicts) => {
                server.reached();
                let (pace, said) = summary(verdicts.iter().map(|(_, verdict)| verdict));
                server.said = said;
                server.due = now + pace;
            }
        }
        Some(index)
    }

    /// There is a volume that this server was not asked for yet: what it said of others is no reason to wait. One that does not
    /// answer, is busy, or refuses the machine is still left alone for its time.
    pub(super) fn has_news_for(&mut self, now: Duration, server: ServerIndex) {
        let server = &mut self.servers[server];
        if !matches!(
            server.said,
            Said::Unreachable(_) | Said::Busy | Said::Refused
        ) {
            server.due = server.due.min(now);
        }
    }

    /// The share of this server opened nothing: it is asked again, but not soon.
    pub(super) fn useless_share(&mut self, now: Duration, server: ServerIndex, why: &str) {
        let server = &mut self.servers[server];
        server.said = Said::Denied(why.to_owned());
        server.due = now + LONGEST_PACE;
    }

    pub(super) fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// A number in 0..1 (xorshift64); it spreads retries and needs no secrecy.
    fn jitter(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        f64::from(u32::try_from(self.random >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }
}

impl Server {
    fn new(planned: PlannedServer) -> Self {
        Self {
            id: planned.id,
            faults: vec![None; planned.addresses.len()],
            addresses: planned.addresses,
            address: 0,
            due: Duration::ZERO,
            rest: FIRST_REST,
            said: Said::Nothing,
        }
    }

    fn next_address(&mut self) {
        self.address = (self.address + 1) % self.addresses.len().max(1);
    }

    fn fault(&mut self, now: Duration, why: &str, jitter: f64) {
        if let Some(fault) = self.faults.get_mut(self.address) {
            *fault = Some(why.to_owned());
        }
        self.next_address();
        if self.faults.iter().any(Option::is_none) {
            self.due = now;
            return;
        }
        // Every address failed. The rest is between half and all of the step.
        let known: Vec<_> = self.faults.iter_mut().filter_map(Option::take).collect();
        self.said = Said::Unreachable(known.join("; "));
        self.due = now + self.rest.mul_f64(0.5 + jitter / 2.0);
        self.rest = (self.rest * 2).min(LONGEST_REST);
    }

    fn reached(&mut self) {
        self.rest = FIRST_REST;
        self.faults.fill(None);
    }
}

/// The pace and the news of several verdicts: the one that needs a person's attention most, the soonest retry.
fn summary<'a>(verdicts: impl Iterator<Item = &'a Verdict>) -> (Duration, Said) {
    let mut pace = LONGEST_PACE;
    let mut said = Said::Nothing;
    for verdict in verdicts {
        match verdict {
            Verdict::Released => {}
            Verdict::Pending { id, code, retry } => {
                pace = pace.min((*retry).max(FIRST_REST));
                said = Said::Pending {
                    id: id.clone(),
                    code: code.clone(),
                };
            }
            Verdict::Wait { reason, retry } => {
                pace = pace.min((*retry).max(FIRST_REST));
                if matches!(said, Said::Nothing | Said::Destroyed) {
                    said = Said::Waiting(reason.clone());
                }
            }
            Verdict::Denied { reason, retry } => {
                pace = pace.min((*retry).max(FIRST_REST));
                if !matches!(said, Said::Pending { .. }) {
                    said = Said::Denied(reason.clone());
                }
            }
            Verdict::Destroyed => {
                if said == Said::Nothing {
                    said = Said::Destroyed;
                }
            }
        }
    }
    (pace, said)
}
