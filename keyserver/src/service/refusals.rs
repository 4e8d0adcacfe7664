//! Refusals of known clients: each kind is written to the audit at once, then counted for an hour, so that a machine
//! that asks for a week fills no disk.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use latchkey_protocol::ids::{ClientName, RequestId, VolumeId};

use super::{Identity, Refusal, Service, ServiceError};
use crate::audit::{Event, Kind};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::{Range, Reason};
use crate::sealed::RecordError;
use crate::wait::wait;

pub(super) const WINDOW: Duration = Duration::from_secs(3600);
/// Kinds of refusals that are remembered at once. What is beyond is counted together, but an alarm takes the place of the
/// oldest kind that is none.
const KINDS_LIMIT: usize = 4096;
/// Counts that are written in one transaction.
const HELD_AT_ONCE: usize = 256;
/// Networks from which one kind of alarm of a client is written apart; those from all others are one kind together.
const ALARM_NETWORKS_LIMIT: usize = 16;

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
    windows: Mutex<Windows>,
}

/// What makes a kind of refusals.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct WindowKey {
    client: ClientName,
    volume: Option<VolumeId>,
    name: &'static str,
    /// Of an alarm, where it came from: a second copy elsewhere is told of at once, as is its address.
    network: Option<Range>,
}

#[derive(Default)]
struct Windows {
    kinds: HashMap<WindowKey, Window>,
    /// Of all kinds for which there was no room.
    beyond: Option<Window>,
}

#[derive(Clone, Copy)]
struct Window {
    began: UnixMillis,
    /// How many were counted only.
    held: u32,
    alarm: bool,
    /// Whether the entry that it began with was written; else the next one of its kind is.
    written: bool,
}

/// What is to be written because of a refusal; nothing if it was only counted.
#[derive(Default)]
struct Admitted {
    events: Vec<Event>,
    /// The kind whose window it began, and what had been counted of it before.
    began: Option<(WindowKey, u32)>,
    /// The count that gave way to it.
    gave_way: Option<Held>,
}

/// A count that is to be written; without a key that of the kinds for which there was no room.
struct Held {
    key: Option<WindowKey>,
    window: Window,
}

impl Service {
    /// Records refusals, or counts them.
    pub(super) async fn note_awaited(&self, refusals: Vec<Refused>) -> Result<(), RecordError> {
        let now = self.clock.now();
        let admitted: Vec<Admitted> = refusals
            .into_iter()
            .map(|refused| self.refusals.admit(refused, now))
            .collect();
        let events: Vec<Event> = admitted
            .iter()
            .flat_map(|admitted| admitted.events.iter().cloned())
            .collect();
        let result = self.append(&events).await;
        if result.is_err() {
            self.refusals.not_written(admitted);
        }
        result
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

    /// Writes the counts of hours that have passed. What could not be written is written the next time.
    pub(super) fn write_held(&self) -> Result<(), RecordError> {
        let now = self.clock.now();
        loop {
            let held = self.refusals.take_passed(now, HELD_AT_ONCE);
            if held.is_empty() {
                return Ok(());
            }
            let events: Vec<Event> = held.iter().map(Held::event).collect();
            if let Err(error) = wait(self.append(&events)) {
                self.refusals.put_back(held);
                return Err(error);
            }
        }
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
    fn admit(&self, refused: Refused, now: UnixMillis) -> Admitted {
        let fresh = Window {
            began: now,
            held: 0,
            alarm: refused.kind == Kind::Alarm,
            written: true,
        };
        let mut windows = lock(&self.windows);
        let mut admitted = Admitted::default();
        let key = windows.key(&refused, now);
        let known = windows.kinds.get_mut(&key);
        let held = match known {
            Some(window) if window.written && in_window(window.began, now) => {
                window.count(1);
                return admitted;
            }
            Some(window) => std::mem::replace(window, fresh).held,
            None => {
                if windows.kinds.len() >= KINDS_LIMIT {
                    if !fresh.alarm {
                        windows.beyond.get_or_insert(fresh).count(1);
                        return admitted;
                    }
                    admitted.gave_way = windows.make_room();
                    let count = admitted.gave_way.as_ref().map(Held::event);
                    admitted.events.extend(count);
                }
                windows.kinds.insert(key.clone(), fresh);
                0
            }
        };
        admitted.began = Some((key, held));
        let mut text = refused.text;
        if held > 0 {
            text.push_str(&format!("; {held} more like it were counted before"));
        }
        let mut event = Event::new(refused.kind, text)
            .client(&refused.client)
            .peer(refused.peer);
        event.volume = refused.volume;
        event.request = refused.request;
        admitted.events.push(event);
        admitted
    }

    /// Counts what could not be written, so that the next one of its kind is written at once, with the count.
    fn not_written(&self, admitted: Vec<Admitted>) {
        let mut gave_way = Vec::new();
        let mut windows = lock(&self.windows);
        for one in admitted {
            gave_way.extend(one.gave_way);
            let Some((key, held)) = one.began else {
                continue;
            };
            // Gone if it gave way to an alarm meanwhile.
            if let Some(window) = windows.kinds.get_mut(&key) {
                window.written = false;
                window.count(held.saturating_add(1));
            }
        }
        drop(windows);
        self.put_back(gave_way);
    }

    /// Takes out what has passed: at most `limit` counts, and all kinds of which nothing was counted.
    fn take_passed(&self, now: UnixMillis, limit: usize) -> Vec<Held> {
        let mut held = Vec::new();
        let mut windows = lock(&self.windows);
        let passed = |window: &Window| !in_window(window.began, now);
        if let Some(window) = windows.beyond.take_if(|window| passed(window)) {
            held.push(Held { key: None, window });
        }
        windows.kinds.retain(|key, window| {
            if !passed(window) {
                return true;
            }
            if window.held == 0 {
                return false;
            }
            let room = held.len() < limit;
            if room {
                held.push(Held {
                    key: Some(key.clone()),
                    window: *window,
                });
            }
            !room
        });
        held
    }

    fn put_back(&self, held: Vec<Held>) {
        let mut windows = lock(&self.windows);
        for Held { key, window } in held {
            // What has begun anew meanwhile takes the old count over.
            match key {
                Some(key) => match windows.kinds.get_mut(&key) {
                    Some(newer) => newer.count(window.held),
                    None => drop(windows.kinds.insert(key, window)),
                },
                None => match &mut windows.beyond {
                    Some(newer) => newer.count(window.held),
                    none => *none = Some(window),
                },
            }
        }
    }
}

impl Windows {
    /// The kind that a refusal is of.
    fn key(&self, refused: &Refused, now: UnixMillis) -> WindowKey {
        let mut key = WindowKey {
            client: refused.client.clone(),
            volume: refused.volume,
            name: refused.name,
            network: None,
        };
        if refused.kind != Kind::Alarm {
            return key;
        }
        let network = Some(Range::around(refused.peer));
        let others = self.kinds.iter().filter(|(other, window)| {
            other.client == key.client
                && (other.volume, other.name) == (key.volume, key.name)
                && other.network.is_some_and(|other| Some(other) != network)
                && in_window(window.began, now)
        });
        if others.count() < ALARM_NETWORKS_LIMIT {
            key.network = network;
        }
        key
    }

    /// Forgets the oldest kind, an alarm only where all are alarms; its count, if something was counted.
    fn make_room(&mut self) -> Option<Held> {
        let oldest = self
            .kinds
            .iter()
            .min_by_key(|(_, window)| (window.alarm, window.began));
        let key = oldest.map(|(key, _)| key.clone())?;
        let window = self.kinds.remove(&key)?;
        (window.held > 0).then_some(Held {
            key: Some(key),
            window,
        })
    }
}

impl Window {
    fn count(&mut self, more: u32) {
        self.held = self.held.saturating_add(more);
    }
}

impl Held {
    fn event(&self) -> Event {
        let (held, since) = (self.window.held, self.window.began.text());
        let Some(key) = &self.key else {
            let text = format!(
                "{held} refusals of more than {KINDS_LIMIT} kinds since {since} were counted only"
            );
            return Event::new(Kind::Refused, text);
        };
        let from = match key.network {
            Some(network) => format!(" from {network}"),
            None => String::new(),
        };
        let name = key.name;
        let text = format!("{name}: {held} more{from} since {since} were counted only");
        let kind = match self.window.alarm {
            true => Kind::Alarm,
            false => Kind::Refused,
        };
        let mut event = Event::new(kind, text).client(&key.client);
        event.volume = key.volume;
        event
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
pub(super) fn in_window(began: UnixMillis, now: UnixMillis) -> bool {
    now.is_within(began, began.plus(WINDOW))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A count that a panic left behind is still a count.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: UnixMillis = UnixMillis(1_800_000_000_000);

    fn refused(kind: Kind, client: usize, name: &'static str) -> Refused {
        Refused {
            kind,
            client: format!("web-{client}").parse().unwrap(),
            volume: None,
            request: None,
            peer: IpAddr::from([192, 0, 2, 1]),
            name,
            text: name.to_owned(),
        }
    }

    /// As many kinds as are remembered, each counted once beside the one that was written.
    fn full() -> Refusals {
        let refusals = Refusals::default();
        for client in 0..KINDS_LIMIT {
            let at = NOON.plus(Duration::from_millis(client as u64));
            for expected in [1, 0] {
                let events = refusals
                    .admit(refused(Kind::Refused, client, "x"), at)
                    .events;
                assert_eq!(events.len(), expected, "{client}");
            }
        }
        refusals
    }

    #[test]
    fn an_alarm_is_written_however_many_kinds_are_remembered() {
        let refusals = full();
        let later = NOON.plus(Duration::from_secs(60));
        let events = refusals
            .admit(refused(Kind::Alarm, 0, "stale ticket"), later)
            .events;
        let [count, alarm] = events.as_slice() else {
            panic!("{events:?}");
        };
        // The kind that gave way does not lose its count.
        assert_eq!(count.kind, Kind::Refused);
        assert!(count.text.starts_with("x: 1 more since "), "{}", count.text);
        assert_eq!(alarm.kind, Kind::Alarm);
        let again = refusals
            .admit(refused(Kind::Alarm, 0, "stale ticket"), later)
            .events;
        assert!(again.is_empty(), "{again:?}");
        assert_eq!(lock(&refusals.windows).kinds.len(), KINDS_LIMIT);
        // The next one takes the place of a refusal too, not of the alarm.
        refusals.admit(refused(Kind::Alarm, 1, "stale ticket"), later);
        let again = refusals
            .admit(refused(Kind::Alarm, 0, "stale ticket"), later)
            .events;
        assert!(again.is_empty(), "{again:?}");
    }

    #[test]
    fn refusals_beyond_what_is_remembered_are_counted_together() {
        let refusals = full();
        let later = NOON.plus(Duration::from_secs(60));
        for _ in 0..3 {
            let events = refusals
                .admit(refused(Kind::Refused, KINDS_LIMIT, "y"), later)
                .events;
            assert!(events.is_empty(), "{events:?}");
        }
        let after = later.plus(WINDOW);
        let first = refusals.take_passed(after, HELD_AT_ONCE);
        let texts: Vec<String> = first.iter().map(|held| held.event().text).collect();
        assert_eq!(texts.len(), HELD_AT_ONCE);
        assert!(
            texts[0].starts_with("3 refusals of more than 4096 kinds"),
            "{}",
            texts[0]
        );
        // What could not be written is not lost.
        refusals.put_back(first);
        let mut all = 0;
        while let held @ 1.. = refusals.take_passed(after, HELD_AT_ONCE).len() {
            assert!(held <= HELD_AT_ONCE, "{held}");
            all += held;
        }
        assert_eq!(all, KINDS_LIMIT + 1);
    }

    #[test]
    fn an_alarm_from_another_network_is_written_until_there_are_too_many() {
        let refusals = Refusals::default();
        let from = |last: u8| Refused {
            peer: IpAddr::from([192, 0, 2, last]),
            ..refused(Kind::Alarm, 0, "copy")
        };
        for last in 1..=ALARM_NETWORKS_LIMIT as u8 + 1 {
            assert_eq!(refusals.admit(from(last), NOON).events.len(), 1, "{last}");
            assert_eq!(refusals.admit(from(last), NOON).events.len(), 0, "{last}");
        }
        // All others together, and none of those that are known apart.
        for last in [100, 101, 1] {
            assert_eq!(refusals.admit(from(last), NOON).events.len(), 0, "{last}");
        }
        let held = refusals.take_passed(NOON.plus(WINDOW), HELD_AT_ONCE);
        let events: Vec<Event> = held.iter().map(Held::event).collect();
        assert!(events.iter().all(|event| event.kind == Kind::Alarm));
        for text in [
            "copy: 2 more from 192.0.2.1/32 since",
            "copy: 1 more from 192.0.2.2/32 since",
            "copy: 3 more since",
        ] {
            assert!(
                events.iter().any(|event| event.text.starts_with(text)),
                "{text}: {events:?}"
            );
        }
        // Refusals are one kind wherever they come from: whoever asks must not fill the audit.
        let elsewhere = |last: u8| Refused {
            peer: IpAddr::from([192, 0, 2, last]),
            ..refused(Kind::Refused, 0, "x")
        };
        assert_eq!(refusals.admit(elsewhere(1), NOON).events.len(), 1);
        assert_eq!(refusals.admit(elsewhere(2), NOON).events.len(), 0);
    }
}
