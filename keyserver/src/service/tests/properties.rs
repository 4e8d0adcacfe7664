//! No order of requests, approvals, denials, revocations, destructions, policies, restarts and passing time releases
//! a share that a simple model of the rules does not allow.

use proptest::prelude::*;

use super::*;
use crate::records::SessionState;
use crate::store::memory::Fault;

const MACHINES: usize = 2;
const BOOTS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// Machine, whose volume, which boot, with that boot's own key or a foreign one, from where.
    Release(usize, usize, usize, bool, bool),
    Approve(usize, CodeTyped),
    Deny(usize),
    Revoke(usize),
    Destroy(usize),
    SetPolicy(usize, usize),
    Pass(u64),
    Restart,
    Maintain,
    Fault(u64, bool),
}

#[derive(Debug, Clone, Copy)]
enum CodeTyped {
    Right,
    Wrong,
    OfAnother,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let machine = || 0..MACHINES;
    let release = (
        machine(),
        machine(),
        0..BOOTS,
        prop::bool::weighted(0.9),
        any::<bool>(),
    );
    let code = prop_oneof![
        5 => Just(CodeTyped::Right),
        2 => Just(CodeTyped::Wrong),
        1 => Just(CodeTyped::OfAnother),
    ];
    let step = prop_oneof![
        12 => release.prop_map(|(machine, owner, boot, own, home)| {
            Step::Release(machine, owner, boot, own, home)
        }),
        6 => (0..6usize, code).prop_map(|(nth, code)| Step::Approve(nth, code)),
        1 => (0..6usize).prop_map(Step::Deny),
        1 => machine().prop_map(Step::Revoke),
        1 => machine().prop_map(Step::Destroy),
        4 => (machine(), 0..POLICIES.len()).prop_map(|(machine, policy)| Step::SetPolicy(machine, policy)),
        3 => prop_oneof![Just(1u64), Just(599), Just(601), Just(3600)].prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::Maintain),
        1 => (1..4u64, any::<bool>()).prop_map(|(nth, after)| Step::Fault(nth, after)),
    ];
    prop::collection::vec(step, 1..50)
}

/// The policy, and what it says at home and away: allow, ask or deny.
const POLICIES: [(&str, char, char); 4] = [
    (r#"{"rule":"allow","from":["192.0.2.7"]}"#, 'y', 'n'),
    (r#"{"rule":"ask"}"#, '?', '?'),
    (
        r#"{"rule":"allow","from":["192.0.2.7"],"elsewhere":"ask"}"#,
        'y',
        '?',
    ),
    (r#"{"rule":"deny"}"#, 'n', 'n'),
];

/// What a person approved.
struct Approval {
    request: RequestId,
    key: Bytes<32>,
    volume: VolumeId,
    until: UnixMillis,
}

struct Model {
    rig: Rig,
    bound: Vec<(Machine, VolumeId, [u8; 32])>,
    boots: Vec<Vec<Boot>>,
    foreign: Boot,
    policies: Vec<usize>,
    revoked: Vec<bool>,
    destroyed: Vec<bool>,
    approvals: Vec<Approval>,
    /// What was shown on consoles: number, code, request, key.
    shown: Vec<(String, String, RequestId, Bytes<32>)>,
    released: usize,
}

impl Model {
    fn new() -> Self {
        let rig = Rig::new();
        let bound: Vec<_> = (0..MACHINES)
            .map(|n| rig.bound(&format!("web-{n}"), u8::try_from(n + 1).unwrap()))
            .collect();
        let boots = || (0..BOOTS).map(|_| Boot::new()).collect();
        Self {
            rig,
            bound,
            boots: (0..MACHINES).map(|_| boots()).collect(),
            foreign: Boot::new(),
            policies: vec![0; MACHINES],
            revoked: vec![false; MACHINES],
            destroyed: vec![false; MACHINES],
            approvals: Vec::new(),
            shown: Vec::new(),
            released: 0,
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Release(machine, owner, boot, own, home) => {
                self.release(*machine, *owner, *boot, *own, *home);
            }
            Step::Approve(nth, typed) => self.approve(*nth, *typed),
            Step::Deny(nth) => self.deny(*nth),
            Step::Revoke(n) => {
                self.revoked[*n] |= self
                    .rig
                    .service
                    .revoke(&self.bound[*n].0.name, "test")
                    .is_ok();
            }
            Step::Destroy(n) => {
                // A failure may have come after the fact, which the model must not rely on.
                self.destroyed[*n] |= self.rig.service.destroy(&self.bound[*n].1, "test").is_ok();
            }
            Step::SetPolicy(n, policy) => {
                let parsed: Policy = serde_json::from_str(POLICIES[*policy].0).unwrap();
                let volume = self.bound[*n].1;
                // What is in force after a failure is asked of the service.
                drop(self.rig.service.set_policy(&volume, &parsed, "test"));
                let found = self.rig.service.policy(&volume).unwrap();
                let is = |json: &str| serde_json::from_str::<Policy>(json).unwrap() == found;
                self.policies[*n] = POLICIES.iter().position(|(json, _, _)| is(json)).unwrap();
            }
            Step::Pass(seconds) => self.rig.pass(Duration::from_secs(*seconds)),
            Step::Restart => self.rig.restart(),
            Step::Maintain => drop(self.rig.service.maintain()),
            Step::Fault(nth, after) => {
                let fault = if *after { Fault::After } else { Fault::Before };
                self.rig.store.inject(*nth, fault);
            }
        }
    }

    fn release(&mut self, machine: usize, owner: usize, boot: usize, own: bool, home: bool) {
        let (name, _, _) = &self.bound[machine];
        let (_, volume, share) = &self.bound[owner];
        let boot = &self.boots[machine][boot];
        let key = if own { boot } else { &self.foreign };
        let mut request = boot.release(&[*volume]);
        request.ephemeral_key = key.pair.public();
        let peer = address(if home { HOME } else { AWAY });
        let identity = self.rig.identity(&name.boot);
        let now = self.rig.clock.now();
        let Ok(mut answer) = self.rig.service.release(&identity, peer, &request) else {
            return;
        };
        match answer.verdicts.remove(0).verdict {
            Verdict::Released { sealed, .. } => {
                let (_, at_home, away) = POLICIES[self.policies[owner]];
                let rule = if home { at_home } else { away };
                let approved = self.approvals.iter().any(|approval| {
                    approval.request == request.request
                        && approval.key == request.ephemeral_key
                        && approval.volume == *volume
                        && now < approval.until
                });
                assert_eq!(machine, owner, "another client's volume");
                assert!(!self.revoked[machine], "revoked");
                assert!(!self.destroyed[owner], "destroyed");
                assert!(
                    rule == 'y' || rule == '?' && approved,
                    "rule {rule}, approved {approved}"
                );
                // Sealed to the key of this request, and the one share there ever was.
                let opener = Boot {
                    request: request.request,
                    pair: BootKeyPair::generate().unwrap(),
                };
                let context = ReleaseContext {
                    purpose: Purpose::Release,
                    server: &server_id(),
                    client: &name.name,
                    request: &opener.request,
                    volume,
                    generation: Generation::FIRST,
                };
                assert!(opener.pair.open(&sealed, context).is_err());
                let opened = key.pair.open(&sealed, context).unwrap();
                assert_eq!(opened.0.expose_secret(), share);
                self.released += 1;
            }
            Verdict::Pending { id, code, .. } => {
                let shown = (
                    id.as_str().to_owned(),
                    code.as_str().to_owned(),
                    request.request,
                    request.ephemeral_key,
                );
                if !self.shown.contains(&shown) {
                    self.shown.push(shown);
                }
            }
            Verdict::Wait { .. } | Verdict::Denied { .. } | Verdict::Destroyed => {}
        }
    }

    fn approve(&mut self, nth: usize, typed: CodeTyped) {
        let Some((id, code, request, key)) = self.pick(nth) else {
            return;
        };
        let typed_code = match typed {
            CodeTyped::Right => code.clone(),
            CodeTyped::Wrong => "000-000".to_owned(),
            CodeTyped::OfAnother => match self.shown.iter().find(|shown| shown.1 != code) {
                Some(other) => other.1.clone(),
                None => return,
            },
        };
        let result = self.rig.service.approve(&id, &typed_code, "test");
        let listed = self.rig.service.requests().unwrap();
        let session = listed.into_iter().find(|listing| listing.id == id);
        let Some(session) = session else {
            assert!(result.is_err(), "an ended session was approved");
            return;
        };
        if typed_code != code {
            assert!(result.is_err(), "a wrong code approved");
        } else if session.state == SessionState::Approved {
            for volume in &session.volumes {
                self.approvals.push(Approval {
                    request,
                    key,
                    volume: volume.id,
                    until: session.expires,
                });
            }
        }
    }

    fn deny(&mut self, nth: usize) {
        let Some((id, _, request, _)) = self.pick(nth) else {
            return;
        };
        // A later session of the same boot can be approved again, but then under a new number.
        if self
            .rig
            .service
            .deny(&id, AfterDeny::Nothing, "test")
            .is_ok()
        {
            self.approvals
                .retain(|approval| approval.request != request);
        }
    }

    fn pick(&self, nth: usize) -> Option<(String, String, RequestId, Bytes<32>)> {
        let from_the_end = self
            .shown
            .len()
            .checked_sub(1 + nth % self.shown.len().max(1))?;
        self.shown.get(from_the_end).cloned()
    }

    fn check(&self) {
        let released = self.rig.count(Kind::Released);
        assert!(
            released >= self.released,
            "{} shares left, {released} in the audit",
            self.released
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_order_of_events_releases_what_nobody_allowed(steps in steps()) {
        let mut model = Model::new();
        for step in &steps {
            model.run(step);
        }
        model.check();
    }
}

/// The property above would hold of a server that never releases.
#[test]
fn the_model_sees_releases_by_policy_and_by_approval() {
    let mut model = Model::new();
    let mut run = |step| model.run(&step);
    run(Step::Release(0, 0, 0, true, true));
    run(Step::SetPolicy(1, 1));
    run(Step::Release(1, 1, 0, true, true));
    run(Step::Approve(0, CodeTyped::Right));
    run(Step::Release(1, 1, 0, true, true));
    assert_eq!((model.released, model.approvals.len()), (2, 1));
}
