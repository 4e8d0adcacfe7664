//! The DHCP client as a state machine without clock, socket or randomness of its own (RFC 2131 §4.4).
//!
//! It never gives up. Differences from the RFC, each for the sake of a boot: the first wait is about two seconds,
//! waits grow only to sixteen, and a lease is renewed by broadcast (as a server must accept when rebinding),
//! because that needs no second socket and reaches the server in every network that broadcast reached before.

use std::time::Duration;

use super::dhcp_message::{Incoming, Kind, Outgoing};
use super::lease::Lease;
use super::values::Mac;

use std::net::Ipv4Addr;

/// What happens to the client.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A datagram arrived at the client's port, from whomever.
    Received(&'a [u8]),
    /// Time passed, at least until [`Dhcp::wake`].
    Time,
    /// The link has a carrier again: it may be another network now.
    LinkBack,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Broadcast this datagram.
    Send(Vec<u8>),
    /// Use this lease, instead of any earlier one.
    Use(Lease),
    /// The lease is no longer ours.
    Drop(Lost),
    /// Nobody has answered for a while.
    Silence,
}

/// Why a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was not renewed in time.
    Expired,
    /// The server took it back.
    Refused,
}

/// The client of one card. Times are since any fixed moment, and never go back.
#[derive(Debug)]
pub struct Dhcp {
    mac: Mac,
    broadcast: bool,
    wish: Option<Ipv4Addr>,
    random: Random,
    transaction: u32,
    began: Duration,
    wake: Duration,
    attempts: u32,
    refusals: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Before the first discover, also after a refusal.
    Start,
    Selecting,
    Requesting(Lease),
    Bound {
        lease: Lease,
        since: Duration,
    },
    Renewing {
        lease: Lease,
        since: Duration,
    },
}

const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(16);
/// Unanswered discovers after which somebody should be told: about ten seconds.
const SILENCE: u32 = 3;
/// Unanswered requests after which the offer is given up.
const REQUESTS: u32 = 4;

impl Dhcp {
    /// A client that sends its first message at once ([`Dhcp::wake`] is `now`).
    ///
    /// `wish` is an address to ask for; `broadcast` says that only broadcast answers can be received; `seed` is
    /// true randomness.
    pub fn new(
        mac: Mac,
        wish: Option<Ipv4Addr>,
        broadcast: bool,
        seed: u64,
        now: Duration,
    ) -> Self {
        Self {
            mac,
            broadcast,
            wish,
            random: Random(seed),
            transaction: 0,
            began: now,
            wake: now,
            attempts: 0,
            refusals: 0,
            state: State::Start,
        }
    }

    /// When [`Event::Time`] is due next.
    pub fn wake(&self) -> Duration {
        self.wake
    }

    /// A message that gives the lease back; none without one. The client must not be used afterwards.
    pub fn release(&mut self) -> Option<(Vec<u8>, Ipv4Addr)> {
        let (State::Bound { lease, .. } | State::Renewing { lease, .. }) = &self.state else {
            return None;
        };
        let (address, server) = (lease.address(), lease.server);
        self.transaction = self.random.next();
        let message = Outgoing {
            current: Some(address),
            server: Some(server),
            seconds: 0,
            broadcast: false,
            ..self.message(Kind::Release, self.began)
        };
        Some((message.encode(), server))
    }

    /// Takes one step.
    pub fn step(&mut self, event: Event<'_>, now: Duration) -> Vec<Action> {
        match event {
            Event::Received(bytes) => match Incoming::decode(bytes, self.transaction, self.mac) {
                Some(message) => self.received(&message, now),
                None => Vec::new(),
            },
            Event::Time if now >= self.wake => self.time(now),
            Event::Time => Vec::new(),
            Event::LinkBack => match std::mem::replace(&mut self.state, State::Start) {
                // Is it still ours? The server says no at once if this is another network.
                State::Bound { lease, since } | State::Renewing { lease, since } => {
                    self.begin(now);
                    self.state = State::Renewing { lease, since };
                    vec![self.renew(now)]
                }
                _ => vec![self.discover_anew(now)],
            },
        }
    }

    fn received(&mut self, message: &Incoming, now: Duration) -> Vec<Action> {
        match (&self.state, message.kind) {
            (State::Selecting, Kind::Offer) => {
                let Some(offer) = Lease::from_message(message) else {
                    return Vec::new();
                };
                self.state = State::Requesting(offer);
                self.attempts = 0;
                vec![self.request(now)]
            }
            (State::Requesting(offer), Kind::Ack) => {
                let Some(lease) = Lease::from_message(message) else {
                    return Vec::new();
                };
                if lease.server != offer.server {
                    return Vec::new();
                }
                vec![self.bind(lease, now)]
            }
            (State::Renewing { lease, .. }, Kind::Ack) => {
                let Some(renewed) = Lease::from_message(message) else {
                    return Vec::new();
                };
                if renewed.address() != lease.address() {
                    return Vec::new();
                }
                vec![self.bind(renewed, now)]
            }
            (State::Requesting(_), Kind::Nak) => {
                self.refused(now);
                Vec::new()
            }
            (State::Renewing { .. }, Kind::Nak) => {
                self.refused(now);
                vec![Action::Drop(Lost::Refused)]
            }
            _ => Vec::new(),
        }
    }

    fn time(&mut self, now: Duration) -> Vec<Action> {
        match std::mem::replace(&mut self.state, State::Start) {
            State::Start => vec![self.discover_anew(now)],
            State::Selecting => {
                self.state = State::Selecting;
                let mut actions = vec![self.discover(now)];
                if self.attempts > SILENCE {
                    actions.push(Action::Silence);
                }
                actions
            }
            State::Requesting(offer) if self.attempts < REQUESTS => {
                self.state = State::Requesting(offer);
                vec![self.request(now)]
            }
            State::Requesting(_) => vec![self.discover_anew(now), Action::Silence],
            State::Bound { lease, since } | State::Renewing { lease, since }
                if now >= since + lease.time =>
            {
                self.wish = Some(lease.address());
                vec![Action::Drop(Lost::Expired), self.discover_anew(now)]
            }
            State::Bound { lease, since } => {
                self.begin(now);
                self.state = State::Renewing { lease, since };
                vec![self.renew(now)]
            }
            State::Renewing { lease, since } => {
                self.state = State::Renewing { lease, since };
                vec![self.renew(now)]
            }
        }
    }

    fn begin(&mut self, now: Duration) {
        self.transaction = self.random.next();
        self.began = now;
        self.attempts = 0;
    }

    fn discover_anew(&mut self, now: Duration) -> Action {
        self.begin(now);
        self.state = State::Selecting;
        self.discover(now)
    }

    fn discover(&mut self, now: Duration) -> Action {
        self.wait(now);
        Action::Send(
            Outgoing {
                requested: self.wish,
                ..self.message(Kind::Discover, now)
            }
            .encode(),
        )
    }

    fn request(&mut self, now: Duration) -> Action {
        self.wait(now);
        let message = self.message(Kind::Request, now);
        let State::Requesting(offer) = &self.state else {
            return Action::Silence;
        };
        Action::Send(
            Outgoing {
                requested: Some(offer.address()),
                server: Some(offer.server),
                ..message
            }
            .encode(),
        )
    }

    fn renew(&mut self, now: Duration) -> Action {
        self.wait(now);
        let message = self.message(Kind::Request, now);
        let State::Renewing { lease, since } = &self.state else {
            return Action::Silence;
        };
        self.wake = self.wake.min(*since + lease.time);
        Action::Send(
            Outgoing {
                current: Some(lease.address()),
                ..message
            }
            .encode(),
        )
    }

    fn bind(&mut self, lease: Lease, now: Duration) -> Action {
        self.wake = now + lease.time / 2;
        self.refusals = 0;
        self.state = State::Bound {
            lease: lease.clone(),
            since: now,
        };
        Action::Use(lease)
    }

    /// Starts over, the slower the more often it was refused, and without a wish.
    fn refused(&mut self, now: Duration) {
        self.wish = None;
        self.state = State::Start;
        self.wake = now + Duration::from_secs(1 << self.refusals.min(4));
        self.refusals += 1;
    }

    /// Sets the time of the next attempt: twice as long as before, give or take a second (RFC 2131 §4.1).
    fn wait(&mut self, now: Duration) {
        let base = (FIRST_WAIT * (1 << self.attempts.min(8))).min(LONGEST_WAIT);
        let jitter = Duration::from_millis(u64::from(self.random.next() % 2001));
        self.attempts = self.attempts.saturating_add(1);
        self.wake = now + base + jitter - Duration::from_secs(1);
    }

    fn message(&self, kind: Kind, now: Duration) -> Outgoing {
        Outgoing {
            kind,
            transaction: self.transaction,
            mac: self.mac,
            seconds: now.saturating_sub(self.began).as_secs().min(0xffff) as u16,
            broadcast: self.broadcast,
            current: None,
            requested: None,
            server: None,
        }
    }
}

/// SplitMix64: enough for jitter and transaction numbers, which everybody on the link can read anyway.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::dhcp_message::option;
    use super::super::dhcp_message::tests::{CARD, answer};
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn sent(actions: &[Action]) -> Vec<&[u8]> {
        let sends = actions.iter().filter_map(|action| match action {
            Action::Send(bytes) => Some(bytes.as_slice()),
            _ => None,
        });
        sends.collect()
    }

    fn transaction(bytes: &[u8]) -> u32 {
        u32::from_be_bytes(bytes[4..8].try_into().unwrap())
    }

    fn reply(to: &[u8], kind: u8, address: [u8; 4], server: [u8; 4], lease: u32) -> Vec<u8> {
        let time = lease.to_be_bytes();
        let options: &[(u8, &[u8])] = &[
            (option::MESSAGE_TYPE, &[kind]),
            (option::SERVER_ID, &server),
            (option::LEASE_TIME, &time),
            (option::SUBNET_MASK, &[255, 255, 255, 0]),
        ];
        answer(transaction(to), CARD, address, options)
    }

    const OFFER: u8 = 2;
    const ACK: u8 = 5;
    const NAK: u8 = 6;
    const MINE: [u8; 4] = [192, 0, 2, 7];
    const SERVER: [u8; 4] = [192, 0, 2, 1];

    /// A client that has gone all the way to a lease of `lease` seconds at time 0.
    fn bound(lease: u32) -> Dhcp {
        let mut client = Dhcp::new(CARD, None, false, 1, seconds(0));
        let discover = client.step(Event::Time, seconds(0));
        let offer = reply(sent(&discover)[0], OFFER, MINE, SERVER, lease);
        let request = client.step(Event::Received(&offer), seconds(0));
        let ack = reply(sent(&request)[0], ACK, MINE, SERVER, lease);
        let actions = client.step(Event::Received(&ack), seconds(0));
        assert!(
            matches!(&actions[..], [Action::Use(lease)] if lease.address() == Ipv4Addr::from(MINE)),
            "{actions:?}"
        );
        client
    }

    #[test]
    fn it_asks_for_ever_and_ever_more_slowly() {
        let mut client = Dhcp::new(CARD, None, false, 1, seconds(0));
        let (mut waits, mut silences) = (Vec::new(), 0);
        for _ in 0..50 {
            let now = client.wake();
            let actions = client.step(Event::Time, now);
            assert_eq!(sent(&actions).len(), 1);
            silences += actions
                .iter()
                .filter(|action| **action == Action::Silence)
                .count();
            waits.push(client.wake() - now);
        }
        for (attempt, expected) in [2, 4, 8, 16, 16].into_iter().enumerate() {
            assert!(
                waits[attempt].abs_diff(seconds(expected)) <= seconds(1),
                "{attempt}: {waits:?}"
            );
        }
        assert!(waits.iter().all(|wait| *wait <= seconds(17)));
        assert!(
            waits.iter().collect::<std::collections::HashSet<_>>().len() > 25,
            "there is no jitter: {waits:?}"
        );
        assert_eq!(silences, 47, "told from the fourth on");
    }

    #[test]
    fn a_late_answer_is_used() {
        let mut client = Dhcp::new(CARD, None, false, 1, seconds(0));
        let first = client.step(Event::Time, seconds(0));
        for _ in 0..5 {
            let now = client.wake();
            client.step(Event::Time, now);
        }
        // To the very first message, 45 s later.
        let offer = reply(sent(&first)[0], OFFER, MINE, SERVER, 600);
        let actions = client.step(Event::Received(&offer), seconds(45));
        assert_eq!(sent(&actions).len(), 1, "a request");
    }

    #[test]
    fn the_wish_is_asked_for_until_it_is_refused() {
        let asks_for = |actions: &[Action]| {
            sent(actions)[0]
                .windows(6)
                .any(|part| part == [50, 4, 192, 0, 2, 7])
        };
        let mut client = Dhcp::new(CARD, Some(MINE.into()), false, 1, seconds(0));
        let discover = client.step(Event::Time, seconds(0));
        assert!(asks_for(&discover));
        let offer = reply(sent(&discover)[0], OFFER, MINE, SERVER, 600);
        let request = client.step(Event::Received(&offer), seconds(0));
        assert!(asks_for(&request));
        let nak = reply(sent(&request)[0], NAK, [0; 4], SERVER, 600);
        assert_eq!(client.step(Event::Received(&nak), seconds(0)), []);
        assert_eq!(client.wake(), seconds(1));
        assert!(!asks_for(&client.step(Event::Time, seconds(1))));
    }

    #[test]
    fn repeated_refusals_slow_it_down() {
        let mut client = Dhcp::new(CARD, None, false, 1, seconds(0));
        let mut waits = Vec::new();
        for _ in 0..6 {
            let now = client.wake();
            let discover = client.step(Event::Time, now);
            let request = client.step(
                Event::Received(&reply(sent(&discover)[0], OFFER, MINE, SERVER, 600)),
                now,
            );
            client.step(
                Event::Received(&reply(sent(&request)[0], NAK, [0; 4], SERVER, 600)),
                now,
            );
            waits.push((client.wake() - now).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn only_the_chosen_server_can_acknowledge() {
        let mut client = Dhcp::new(CARD, None, false, 1, seconds(0));
        let discover = client.step(Event::Time, seconds(0));
        let request = client.step(
            Event::Received(&reply(sent(&discover)[0], OFFER, MINE, SERVER, 600)),
            seconds(0),
        );
        let other = reply(
            sent(&request)[0],
            ACK,
            [192, 0, 2, 66],
            [192, 0, 2, 66],
            600,
        );
        assert_eq!(client.step(Event::Received(&other), seconds(0)), []);
    }

    #[test]
    fn a_lease_is_renewed_at_half_its_time() {
        let mut client = bound(600);
        assert_eq!(client.wake(), seconds(300));
        let renewal = client.step(Event::Time, seconds(300));
        assert_eq!(sent(&renewal)[0][12..16], MINE, "from the address in use");
        let ack = reply(sent(&renewal)[0], ACK, MINE, SERVER, 600);
        assert!(matches!(
            client.step(Event::Received(&ack), seconds(301))[..],
            [Action::Use(_)]
        ));
        assert_eq!(client.wake(), seconds(601));
    }

    #[test]
    fn a_lease_of_a_second_is_kept_for_half_a_minute() {
        let mut client = bound(1);
        assert_eq!(client.wake(), seconds(15));
        let mut dropped = None;
        while dropped.is_none() {
            let now = client.wake();
            let lost = client
                .step(Event::Time, now)
                .contains(&Action::Drop(Lost::Expired));
            dropped = lost.then_some(now);
        }
        assert_eq!(dropped, Some(seconds(30)));
        assert!(client.wake() > seconds(30), "and it asks again");
    }

    #[test]
    fn a_renewal_that_is_refused_ends_the_lease() {
        let mut client = bound(600);
        let renewal = client.step(Event::Time, seconds(300));
        let nak = reply(sent(&renewal)[0], NAK, [0; 4], SERVER, 600);
        assert_eq!(
            client.step(Event::Received(&nak), seconds(300)),
            [Action::Drop(Lost::Refused)]
        );
    }

    #[test]
    fn a_new_carrier_asks_at_once_whether_the_lease_still_holds() {
        let mut client = bound(600);
        let actions = client.step(Event::LinkBack, seconds(20));
        assert_eq!(sent(&actions)[0][12..16], MINE);
        let mut client = Dhcp::new(CARD, None, false, 1, seconds(0));
        assert_eq!(sent(&client.step(Event::LinkBack, seconds(0))).len(), 1);
    }

    #[test]
    fn a_lease_can_be_given_back_once_there_is_one() {
        let mut client = bound(600);
        let (message, server) = client.release().unwrap();
        assert_eq!(
            (server, &message[12..16]),
            (Ipv4Addr::from(SERVER), &MINE[..])
        );
        assert!(
            Dhcp::new(CARD, None, false, 1, seconds(0))
                .release()
                .is_none()
        );
    }

    #[derive(Clone, Debug)]
    enum Happening {
        Wait(u64),
        ToTheWake,
        Answer {
            kind: u8,
            address: [u8; 4],
            server: [u8; 4],
            lease: u32,
        },
        Noise(Vec<u8>),
        LinkBack,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let address = prop_oneof![4 => Just(MINE), 1 => any::<[u8; 4]>()];
        let server = prop_oneof![4 => Just(SERVER), 1 => any::<[u8; 4]>()];
        prop_oneof![
            2 => (0..40_000_u64).prop_map(Happening::Wait),
            4 => Just(Happening::ToTheWake),
            6 => (prop::sample::select(vec![OFFER, ACK, NAK]), address, server, prop_oneof![Just(1), Just(60), any::<u32>()])
                .prop_map(|(kind, address, server, lease)| Happening::Answer { kind, address, server, lease }),
            1 => prop::collection::vec(any::<u8>(), 0..400).prop_map(Happening::Noise),
            1 => Just(Happening::LinkBack),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_it_goes_on(seed: u64, happenings in prop::collection::vec(happening(), 1..120)) {
            let mut client = Dhcp::new(CARD, None, false, seed, seconds(0));
            let mut now = seconds(0);
            let mut last = Vec::new();
            let mut has_lease = None;
            for happening in happenings {
                let actions = match happening {
                    Happening::Wait(milliseconds) => {
                        now += Duration::from_millis(milliseconds);
                        client.step(Event::Time, now)
                    }
                    Happening::ToTheWake => {
                        now = now.max(client.wake());
                        let actions = client.step(Event::Time, now);
                        prop_assert!(!actions.is_empty(), "a wake-up for nothing");
                        actions
                    }
                    Happening::Answer { kind, address, server, lease } if !last.is_empty() => {
                        client.step(Event::Received(&reply(&last, kind, address, server, lease)), now)
                    }
                    Happening::Answer { .. } => Vec::new(),
                    Happening::Noise(bytes) => {
                        let actions = client.step(Event::Received(&bytes), now);
                        prop_assert!(actions.is_empty());
                        actions
                    }
                    Happening::LinkBack => client.step(Event::LinkBack, now),
                };
                for action in actions {
                    match action {
                        Action::Send(bytes) => last = bytes,
                        Action::Use(lease) => has_lease = Some((now, lease)),
                        Action::Drop(_) => prop_assert!(has_lease.take().is_some(), "dropped what was not there"),
                        Action::Silence => {}
                    }
                }
                // It always acts again, and soon enough to renew or to give up what it has.
                let soon = has_lease.as_ref().map_or(seconds(17), |(_, lease)| lease.time);
                prop_assert!(client.wake() <= now + soon, "{client:?}");
                if let Some((since, lease)) = &has_lease {
                    prop_assert!(client.wake() <= *since + lease.time || now >= *since + lease.time);
                }
            }
        }
    }
}
