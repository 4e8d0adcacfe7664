//! Refusals of known clients: each kind is written to the audit at once, then counted for an hour, so that a machine
//! that asks for a week fills no disk. And the limit on what one client may have written in an hour.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use latchkey_protocol::ids::{ClientName, RequestId, VolumeId};

use super::{Identity, Refusal, Service, ServiceError};
use crate::audit::{Event, Kind};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::Reason;
use crate::records::Role;
use crate::sealed::RecordError;
use crate::wait::wait;

const WINDOW: Duration = Duration::from_secs(3600);
/// Kinds of refusals that are remembered at once; what is beyond is neither written nor counted.
const KINDS_LIMIT: usize = 4096;
/// Requests that one key of a client may have answered in an hour, by default.
pub const ENTRIES_PER_HOUR: u32 = 3600;

/// A refusal of a known client, for the audit.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub kind: Kind,
    pub client: ClientName,
    /// Only a volume that exists and is the client's: anything else a requester could make up without end.
    pub volume: Option<VolumeId>,
    pub request: Option<RequestId>,
    pub peer: IpAddr,
    /// Tells kinds of refusals apart.
    pub name: &'static str,
    pub text: String,
}

/// What was written and held back in the last hour.
#[derive(Default)]
pub(super) struct Refusals {
    windows: Mutex<HashMap<WindowKey, Window>>,
    entries: Mutex<HashMap<(ClientName, Counted), (UnixMillis, u32)>>,
}

/// What a client's requests are counted by, each apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Counted {
    /// Those of one of its keys.
    Key(Role),
    /// Those of machines without a key of its that ask to be taken back as it.
    Rejoin,
}

type WindowKey = (ClientName, Option<VolumeId>, &'static str);

struct Window {
    began: UnixMillis,
    held: u32,
}

impl Service {
    /// Records refusals, or counts them.
    pub(super) async fn note_awaited(&self, refusals: Vec<Refused>) -> Result<(), RecordError> {
        let now = self.clock.now();
        let events: Vec<Event> = refusals
            .into_iter()
            .filter_map(|refused| self.refusals.admit(refused, now))
            .collect();
        self.append(&events).await
    }

    /// Records that `identity` may not do what it asked for, if that is what `result` says.
    pub(super) async fn noted_awaited<T>(
        &self,
        identity: &Identity,
        peer: IpAddr,
        result: Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        if let Err(ServiceError::Refused(refusal)) = &result {
            self.note_awaited(vec![Refused {
                kind: Kind::Refused,
                client: identity.client().clone(),
                volume: None,
                request: None,
                peer,
                name: refusal.name(),
                text: refusal.to_string(),
            }])
            .await?;
        }
        result
    }

    /// As [`Service::note_awaited`], on a thread that may wait.
    pub(super) fn note(&self, refusals: Vec<Refused>) -> Result<(), RecordError> {
        wait(self.note_awaited(refusals))
    }

    /// As [`Service::noted_awaited`], on a thread that may wait.
    pub(super) fn noted<T>(
        &self,
        identity: &Identity,
        peer: IpAddr,
        result: Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        wait(self.noted_awaited(identity, peer, result))
    }

    /// Counts one request of a key against its limit. Each key has its own: whoever has a copy of the boot key may not keep
    /// the running machine from saying that it lives.
    pub(super) fn admit(&self, identity: &Identity, now: UnixMillis) -> Result<(), ServiceError> {
        let by = Counted::Key(identity.role());
        self.count(identity.client(), by, now)
            .map_err(|retry_after| ServiceError::TooMany { retry_after })
    }

    /// Counts one request against the limit of what it is counted by; else after how many seconds there is room again.
    pub(super) fn count(
        &self,
        client: &ClientName,
        by: Counted,
        now: UnixMillis,
    ) -> Result<(), u32> {
        let mut entries = lock(&self.refusals.entries);
        if entries.len() > KINDS_LIMIT {
            entries.retain(|_, (began, _)| in_window(*began, now));
        }
        let (began, count) = entries.entry((client.clone(), by)).or_insert((now, 0));
        if !in_window(*began, now) {
            (*began, *count) = (now, 0);
        }
        if *count >= self.entries_per_hour {
            let left = WINDOW.saturating_sub(now.since(*began)).as_secs();
            return Err(u32::try_from(left).unwrap_or(u32::MAX).max(1));
        }
        *count += 1;
        Ok(())
    }

    /// Writes the counts of hours that have passed.
    pub(super) fn write_held(&self) -> Result<(), RecordError> {
        let events = self.refusals.passed(self.clock.now());
        wait(self.append(&events))
    }

    async fn append(&self, events: &[Event]) -> Result<(), RecordError> {
        if events.is_empty() {
            return Ok(());
        }
        let write = |work: &mut Work<'_>| {
            events.iter().cloned().for_each(|event| work.audit(event));
            Ok(())
        };
        self.records.transact_awaited(self.clock.now(), write).await
    }
}

impl Refusals {
    /// The event to write, or `None` if it was only counted.
    fn admit(&self, refused: Refused, now: UnixMillis) -> Option<Event> {
        let key = (refused.client.clone(), refused.volume, refused.name);
        let mut windows = lock(&self.windows);
        let known = windows.len();
        let held = match windows.get_mut(&key) {
            Some(window) if in_window(window.began, now) => {
                window.held = window.held.saturating_add(1);
                return None;
            }
            Some(window) => {
                std::mem::replace(
                    window,
                    Window {
                        began: now,
                        held: 0,
                    },
                )
                .held
            }
            None if known >= KINDS_LIMIT => return None,
            None => {
                windows.insert(
                    key,
                    Window {
                        began: now,
                        held: 0,
                    },
                );
                0
            }
        };
        let mut text = refused.text;
        if held > 0 {
            text.push_str(&format!("; {held} more like it were counted before"));
        }
        let mut event = Event::new(refused.kind, text)
            .client(&refused.client)
            .peer(refused.peer);
        event.volume = refused.volume;
        event.request = refused.request;
        Some(event)
    }

    fn passed(&self, now: UnixMillis) -> Vec<Event> {
        let mut events = Vec::new();
        lock(&self.windows).retain(|(client, volume, name), window| {
            if in_window(window.began, now) {
                return true;
            }
            if window.held > 0 {
                let text = format!(
                    "{name}: {} more since {} were counted only",
                    window.held,
                    window.began.text()
                );
                let mut event = Event::new(Kind::Refused, text).client(client);
                event.volume = *volume;
                events.push(event);
            }
            false
        });
        events
    }
}

impl Refusal {
    fn name(self) -> &'static str {
        match self {
            Self::Role => "wrong key for the endpoint",
            Self::Revoked => "revoked",
            Self::NotOwned => "another client's volume",
            Self::Unknown => "unknown volume",
            Self::Bound => "registered again after binding",
            Self::OtherKey => "certificate for another key",
        }
    }
}

impl Reason {
    /// The reason without its details.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown volume",
            Self::NotOwned => "another client's volume",
            Self::Revoked => "revoked",
            Self::Generation { .. } => "wrong generation",
            Self::OtherKey => "the machine's other key",
            Self::Bound => "proved after binding",
            Self::Exposed => "exposed host key",
            Self::OtherSession => "another boot's request id",
            Self::PutBack => "the store was put back",
            Self::Locked => "locked out",
            Self::Condition(condition) => condition.name(),
            Self::Denied => "denied by a person",
            Self::Exhausted => "too many wrong codes",
            Self::NotApproved => "not covered by the approval",
        }
    }
}

/// Also false for a window that a fast clock began.
fn in_window(began: UnixMillis, now: UnixMillis) -> bool {
    now.is_within(began, began.plus(WINDOW))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A count that a panic left behind is still a count.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
