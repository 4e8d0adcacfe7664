//! No order of boots, copies, tickets, announcements, answers, approvals, restarts and clocks that are set gives one
//! announcement or one one-time policy to two boots, releases to a boot that the running machine answered, or releases
//! to an old ticket without a person.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use latchkey_protocol::wire::LifeAnswer;

const BOOTS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// Which boot, with its own key or another one, showing which ticket.
    Boot(usize, bool, Ticket),
    Next,
    Confirm(bool),
    AdminArms,
    Heartbeat(usize),
    OpenStream,
    CloseStream,
    Answer,
    Approve(usize),
    SetPolicy(usize),
    Pass(u64),
    SetClock(i64),
    Restart,
    Maintain,
}

#[derive(Debug, Clone, Copy)]
enum Ticket {
    Current,
    Next,
    Old,
    None,
}

const POLICIES: [&str; 5] = [
    r#"{"rule":"allow","once":true}"#,
    r#"{"rule":"allow","armed":true,"ticket":true}"#,
    r#"{"rule":"allow","ticket":true,"life":true}"#,
    r#"{"rule":"allow","armed":true,"life":true,"once":true,"otherwise":"deny"}"#,
    r#"{"rule":"ask","life":true}"#,
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ticket = prop_oneof![
        5 => Just(Ticket::Current),
        2 => Just(Ticket::Next),
        1 => Just(Ticket::Old),
        1 => Just(Ticket::None),
    ];
    let step = prop_oneof![
        12 => (0..BOOTS, prop::bool::weighted(0.9), ticket)
            .prop_map(|(boot, own, ticket)| Step::Boot(boot, own, ticket)),
        3 => Just(Step::Next),
        4 => any::<bool>().prop_map(Step::Confirm),
        1 => Just(Step::AdminArms),
        2 => (0..BOOTS).prop_map(Step::Heartbeat),
        2 => Just(Step::OpenStream),
        2 => Just(Step::CloseStream),
        3 => Just(Step::Answer),
        3 => (0..6usize).prop_map(Step::Approve),
        2 => (0..POLICIES.len()).prop_map(Step::SetPolicy),
        6 => prop_oneof![Just(1u64), Just(20), Just(601), Just(3600)].prop_map(Step::Pass),
        1 => prop_oneof![Just(-86_400i64), Just(-301), Just(301), Just(86_400)].prop_map(Step::SetClock),
        1 => Just(Step::Restart),
        1 => Just(Step::Maintain),
    ];
    prop::collection::vec(step, 1..60)
}

type Session = (RequestId, Bytes<32>);

struct Model {
    rig: Rig,
    machine: Machine,
    volume: VolumeId,
    boots: Vec<Boot>,
    foreign: Boot,
    policy: usize,
    current: Bytes<32>,
    next: Option<Bytes<32>>,
    old: Option<Bytes<32>>,
    stream: Option<life::LifeStream>,
    /// Boots that the running machine answered because of, and when they asked last; forgotten with a restart, and when
    /// they do not ask for a while: a copy can take a new request id at any time.
    answered: BTreeMap<Session, Duration>,
    approved: BTreeSet<Session>,
    /// Consoles: number, code, session.
    shown: Vec<(String, String, Session)>,
    /// Boots released without a person since the last announcement, and since the policy was set.
    since_armed: BTreeSet<Session>,
    since_set: BTreeSet<Session>,
    released: usize,
}

impl Model {
    fn new() -> Self {
        let rig = Rig::new();
        let (machine, volume, _) = rig.bound("web-1", 1);
        let current = rig.move_ticket(&machine, volume);
        rig.set_policy(volume, POLICIES[0]);
        Self {
            rig,
            machine,
            volume,
            boots: (0..BOOTS).map(|_| Boot::new()).collect(),
            foreign: Boot::new(),
            policy: 0,
            current,
            next: None,
            old: None,
            stream: None,
            answered: BTreeMap::new(),
            approved: BTreeSet::new(),
            shown: Vec::new(),
            since_armed: BTreeSet::new(),
            since_set: BTreeSet::new(),
            released: 0,
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Boot(boot, own, ticket) => self.boot(*boot, *own, *ticket),
            Step::Next => {
                self.next = Some(self.rig.next_ticket(&self.machine, self.volume));
            }
            Step::Confirm(arm) => {
                let ticket = self.next.unwrap_or(self.current);
                self.rig
                    .confirm(&self.machine, self.volume, ticket, arm.then_some(900))
                    .unwrap();
                if self.next.take().is_some() {
                    self.old = Some(std::mem::replace(&mut self.current, ticket));
                }
                if *arm {
                    self.since_armed.clear();
                }
            }
            Step::AdminArms => {
                let lifetime = Duration::from_secs(900);
                self.rig
                    .service
                    .arm(&self.machine.name, lifetime, "root")
                    .unwrap();
                self.since_armed.clear();
            }
            Step::Heartbeat(boot) => {
                let request = self.boots[*boot].request;
                self.rig.heartbeat(&self.machine, None, Some(request));
            }
            Step::OpenStream => {
                let host = self.rig.identity(&self.machine.host);
                let stream = self.rig.service.open_life(&host, address(HOME));
                if let Some(old) = self.stream.replace(stream.unwrap()) {
                    self.rig.service.close_life(&old);
                }
            }
            Step::CloseStream => {
                if let Some(stream) = self.stream.take() {
                    self.rig.service.close_life(&stream);
                }
            }
            Step::Answer => self.answer(),
            Step::Approve(nth) => {
                if let Some((id, code, session)) = self.pick(*nth)
                    && self.rig.service.approve(&id, &code, "test").is_ok()
                {
                    self.approved.insert(session);
                }
            }
            Step::SetPolicy(policy) => {
                // Two policies of one millisecond are one.
                self.rig.pass(Duration::from_millis(1));
                self.rig.set_policy(self.volume, POLICIES[*policy]);
                self.policy = *policy;
                self.since_set.clear();
            }
            Step::Pass(seconds) => self.rig.pass(Duration::from_secs(*seconds)),
            Step::SetClock(seconds) => self.rig.set_clock(*seconds),
            Step::Restart => {
                self.rig.restart();
                self.stream = None;
                self.answered.clear();
            }
            Step::Maintain => self.rig.service.maintain().unwrap(),
        }
    }

    fn boot(&mut self, boot: usize, own: bool, ticket: Ticket) {
        let asks = &self.boots[boot];
        let key = if own { asks } else { &self.foreign };
        let mut request = asks.release(&[self.volume]);
        request.ephemeral_key = key.pair.public();
        let shown = match ticket {
            Ticket::Current => Some(self.current),
            Ticket::Next => self.next,
            Ticket::Old => self.old,
            Ticket::None => None,
        };
        let volume = self.volume;
        request.tickets = shown
            .map(|ticket| VolumeTicket { volume, ticket })
            .into_iter()
            .collect();
        let identity = self.rig.identity(&self.machine.boot);
        let session = (request.request, request.ephemeral_key);
        let passed = self.rig.clock.passed();
        self.answered
            .retain(|_, asked| passed - *asked < life::FORGOTTEN);
        if let Some(asked) = self.answered.get_mut(&session) {
            *asked = passed;
        }
        let answer = self
            .rig
            .service
            .release(&identity, address(HOME), &request)
            .unwrap();
        match &answer.verdicts[0].verdict {
            Verdict::Released { sealed, .. } => {
                key_opens(key, &self.machine, volume, &request, sealed);
                self.judge(session, shown);
                self.released += 1;
            }
            Verdict::Pending { id, code, .. } => {
                let console = (id.as_str().to_owned(), code.as_str().to_owned(), session);
                if !self.shown.contains(&console) {
                    self.shown.push(console);
                }
            }
            _ => {}
        }
        // Where the machine was heard just now, that is its answer.
        self.note_answered(session);
    }

    /// What must hold of whatever was released.
    fn judge(&mut self, session: Session, shown: Option<Bytes<32>>) {
        let policy: Policy = serde_json::from_str(POLICIES[self.policy]).unwrap();
        let approved = self.approved.contains(&session);
        let good = shown.is_some_and(|ticket| ticket == self.current || Some(ticket) == self.next);
        assert!(
            !policy.life || !self.answered.contains_key(&session),
            "the running machine answered"
        );
        if shown.is_some() {
            assert!(good || approved, "an old ticket without a person");
        }
        assert!(!policy.ticket || good || approved, "no ticket");
        if policy.rule == crate::policy::Rule::Ask {
            assert!(approved, "nobody approved");
        }
        if policy.once {
            self.since_set.insert(session);
            assert_eq!(self.since_set.len(), 1, "a one-time policy for two boots");
        }
        if policy.armed && !approved {
            self.since_armed.insert(session);
            assert_eq!(self.since_armed.len(), 1, "one announcement for two boots");
        }
    }

    fn answer(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let Ok(challenge) = stream.challenges.try_recv() else {
            return;
        };
        let host = self.rig.identity(&self.machine.host);
        let answer = LifeAnswer {
            version: Version::default(),
            challenge,
        };
        let taken = self
            .rig
            .service
            .answer_life(&host, address(HOME), &answer)
            .is_ok();
        if !taken {
            return;
        }
        // Which sessions it was asked because of is the server's to know: those that it refuses now.
        let sessions: Vec<Session> = self
            .boots
            .iter()
            .flat_map(|boot| [boot, &self.foreign].map(|key| (boot.request, key.pair.public())))
            .collect();
        for session in sessions {
            self.note_answered(session);
        }
    }

    fn note_answered(&mut self, session: Session) {
        let (passed, name) = (self.rig.clock.passed(), &self.machine.name);
        let life = self
            .rig
            .service
            .lives
            .view(name, session.0, &session.1, passed);
        if life == crate::policy::Life::Alive {
            self.answered.insert(session, passed);
        }
    }

    fn pick(&self, nth: usize) -> Option<(String, String, Session)> {
        let at = self
            .shown
            .len()
            .checked_sub(1 + nth % self.shown.len().max(1))?;
        self.shown.get(at).cloned()
    }
}

#[track_caller]
fn key_opens(
    boot: &Boot,
    machine: &Machine,
    volume: VolumeId,
    request: &ReleaseRequest,
    sealed: &SealedShare,
) {
    let context = ReleaseContext {
        purpose: Purpose::Release,
        server: &server_id(),
        client: &machine.name,
        request: &request.request,
        volume: &volume,
        generation: Generation::FIRST,
    };
    assert!(boot.pair.open(sealed, context).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_order_of_events_gives_one_boots_release_to_another(steps in steps()) {
        let mut model = Model::new();
        for step in &steps {
            model.run(step);
        }
        model.rig.service.verify_audit().unwrap();
    }
}

/// The property above would hold of a server that never releases.
#[test]
fn the_model_sees_releases_of_every_kind() {
    let mut model = Model::new();
    let mut run = |step| model.run(&step);
    run(Step::Boot(0, true, Ticket::Current));
    run(Step::Boot(1, true, Ticket::Current));
    run(Step::SetPolicy(1));
    run(Step::Next);
    run(Step::Confirm(true));
    run(Step::Boot(2, true, Ticket::Old));
    run(Step::Boot(1, true, Ticket::Current));
    run(Step::Boot(2, true, Ticket::Current));
    run(Step::SetPolicy(2));
    run(Step::Boot(3, true, Ticket::Current));
    run(Step::Pass(20));
    run(Step::Boot(3, true, Ticket::Current));
    run(Step::SetPolicy(4));
    run(Step::Boot(3, true, Ticket::Old));
    run(Step::Pass(20));
    run(Step::Boot(3, true, Ticket::Old));
    run(Step::Approve(0));
    run(Step::Boot(3, true, Ticket::Old));
    assert_eq!(model.released, 4);
}
