//! The unlock flow under any order of events, with its invariants checked after every step.

use std::time::Duration;

use latchkey::flow::{
    Action, Answer, Event, Flow, Header, Outcome, Plan, PlannedServer, PromptLoss, Refusal, Shown,
    Tried, Verdict,
};
use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::{Generation, ServerId, VolumeId};
use proptest::prelude::*;

fn server(number: u8) -> ServerId {
    ServerId::from_bytes([number; 32])
}

fn plan(volumes: usize, servers: u8) -> Plan {
    Plan {
        volumes: (0..volumes)
            .map(|number| format!("crypt{number}"))
            .collect(),
        optional: Vec::new(),
        servers: (0..servers)
            .map(|number| PlannedServer {
                id: server(number),
                addresses: vec![format!("a{number}:7443"), format!("b{number}:7443")],
            })
            .collect(),
        only_prompt: None,
        device_limit: Duration::from_secs(30),
        seed: 7,
    }
}

fn bound(servers: u8) -> Header {
    let id = VolumeId::random().expect("randomness");
    let envelopes = (0..servers)
        .map(|number| (server(number), Generation::FIRST))
        .collect();
    let shown = Shown {
        tickets: vec![(server(0), Bytes([7; 32]))],
        fingerprint: Bytes([8; 32]),
    };
    Header::Bound(id, envelopes, shown)
}

/// A volume that only a volume key opens.
fn by_key() -> Header {
    match bound(1) {
        Header::Bound(id, envelopes, shown) => Header::BoundByKey(id, envelopes, shown),
        other => other,
    }
}

/// A flow, the clock, and what the shell around it would know.
struct Rig {
    flow: Flow,
    now: Duration,
    log: Vec<Action>,
    asked: Option<(u64, usize, usize, Vec<usize>)>,
    prompt: bool,
    trying: bool,
    opening: Option<(usize, bool)>,
    to_activate: Vec<usize>,
    wiped: bool,
    locked: Vec<bool>,
    typeable: Vec<bool>,
    appeared: Vec<bool>,
    finished: Option<Outcome>,
    wake: Option<Duration>,
}

impl Rig {
    fn new(plan: Plan) -> Self {
        let volumes = plan.volumes.len();
        let (flow, actions) = Flow::start(plan);
        let mut rig = Self {
            flow,
            now: Duration::ZERO,
            log: Vec::new(),
            asked: None,
            prompt: false,
            trying: false,
            opening: None,
            to_activate: Vec::new(),
            wiped: false,
            locked: vec![false; volumes],
            typeable: vec![true; volumes],
            appeared: vec![false; volumes],
            finished: None,
            wake: None,
        };
        rig.apply(actions);
        rig
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        match &event {
            Event::Device(volume, header)
                if !std::mem::replace(&mut self.appeared[*volume], true) =>
            {
                self.locked[*volume] = !matches!(header, Header::NotBound);
                self.typeable[*volume] = !matches!(header, Header::BoundByKey(..));
            }
            Event::Opened(volume) | Event::Activated(volume, _) => {
                self.locked[*volume] = false;
                self.end_opening(*volume);
            }
            Event::NotOpened(volume, _)
            | Event::NotActivated(volume, _)
            | Event::Left(volume, _) => self.end_opening(*volume),
            Event::Typed => {
                assert!(self.prompt, "only a prompt gives a passphrase");
                self.prompt = false;
            }
            Event::PromptLost(_) => self.prompt = false,
            Event::Tried(_) => self.trying = false,
            _ => {}
        }
        let actions = self.flow.handle(self.now, event);
        self.apply(actions.clone());
        actions
    }

    fn end_opening(&mut self, volume: usize) {
        self.to_activate.retain(|other| *other != volume);
        self.opening = None;
    }

    fn apply(&mut self, actions: Vec<Action>) {
        self.wake = None;
        for action in &actions {
            assert!(self.finished.is_none(), "{action:?} after the end");
            match action {
                Action::Ask {
                    number,
                    server,
                    address,
                    volumes,
                } => {
                    assert!(!self.wiped, "asked without credentials");
                    assert!(self.asked.is_none(), "two requests at once");
                    assert!(*address < 2);
                    let volumes = volumes.iter().map(|(volume, ..)| *volume).collect();
                    self.asked = Some((*number, *server, *address, volumes));
                }
                Action::CancelAsk => self.asked = None,
                Action::Open(volume, _) => {
                    assert!(!self.wiped, "opened with wiped credentials");
                    assert!(
                        !self.trying && self.opening.is_none(),
                        "two openings at once"
                    );
                    assert!(self.locked[*volume]);
                    self.opening = Some((*volume, true));
                }
                Action::Prompt(volume, _) => {
                    assert!(!self.prompt && !self.trying, "two prompts");
                    assert!(
                        self.locked[*volume] && self.typeable[*volume],
                        "a prompt for what no passphrase opens"
                    );
                    self.prompt = true;
                }
                Action::Leave(volume) => self.locked[*volume] = false,
                Action::EndPrompt => {
                    assert!(self.prompt, "no prompt to end");
                    self.prompt = false;
                }
                Action::TryPassphrase(volumes) => {
                    assert!(
                        volumes
                            .iter()
                            .all(|volume| self.locked[*volume] && self.typeable[*volume])
                            && !volumes.is_empty()
                    );
                    self.trying = true;
                }
                Action::Activate(volume) => {
                    assert!(
                        self.wiped,
                        "a typed mapping before the credentials were wiped"
                    );
                    self.to_activate.push(*volume);
                }
                Action::Wipe => {
                    assert!(!self.wiped, "wiped twice");
                    self.wiped = true;
                }
                Action::WakeAt(time) => {
                    assert!(*time > self.now, "woken again at once");
                    self.wake = Some(*time);
                }
                Action::Finish(outcome) => {
                    assert!(
                        self.wiped && !self.prompt,
                        "left with credentials or a prompt"
                    );
                    self.finished = Some(*outcome);
                }
                Action::Say(_) | Action::Status(_) | Action::WaitForDevices(_) => {}
            }
        }
        self.log.extend(actions);
    }

    /// What a person at the console may rely on.
    fn check(&self, prompt_possible: bool) {
        let busy = self.trying || self.opening.is_some() || !self.to_activate.is_empty();
        let mut volumes = self.locked.iter().zip(&self.typeable);
        let waits = volumes.any(|(locked, typeable)| *locked && *typeable);
        if self.finished.is_none() && prompt_possible && !busy && waits {
            assert!(
                self.prompt,
                "a locked volume and no prompt; {:#?}",
                self.log
            );
        }
    }

    #[track_caller]
    fn expect(actions: &[Action], wanted: impl Fn(&Action) -> bool) {
        assert!(actions.iter().any(wanted), "not in {actions:?}");
    }

    fn ready() -> Self {
        let mut rig = Self::new(plan(1, 1));
        rig.event(Event::Device(0, bound(1)));
        rig.event(Event::NetworkUp);
        rig
    }

    fn answer(&mut self, answer: Answer) -> Vec<Action> {
        let (number, ..) = self.asked.take().expect("a request is under way");
        self.event(Event::Answered(number, answer))
    }
}

fn released() -> Answer {
    Answer::Verdicts(vec![(0, Verdict::Released)])
}

#[test]
fn a_released_share_opens_and_ends_the_prompt() {
    let mut rig = Rig::ready();
    assert!(rig.prompt, "the prompt does not wait for the key server");
    rig.answer(released());
    assert_eq!(rig.opening, Some((0, true)));
    rig.event(Event::Opened(0));
    assert_eq!(rig.finished, Some(Outcome::Open));
    assert!(rig.log.contains(&Action::EndPrompt));
}

#[test]
fn a_right_passphrase_wipes_before_it_maps() {
    let mut rig = Rig::ready();
    rig.event(Event::Typed);
    let actions = rig.event(Event::Tried(Tried::Right(vec![0])));
    assert_eq!(
        actions[..3],
        [Action::CancelAsk, Action::Wipe, Action::Activate(0)]
    );
    rig.event(Event::Activated(0, None));
    assert_eq!(rig.finished, Some(Outcome::Open));
}

#[test]
fn three_wrong_passphrases_neither_cancel_nor_wipe() {
    let mut rig = Rig::ready();
    for wrong in 1..=3 {
        rig.event(Event::Typed);
        let actions = rig.event(Event::Tried(Tried::Wrong));
        assert!(actions.contains(&Action::Prompt(0, wrong)), "{actions:?}");
    }
    assert!(!rig.wiped && rig.asked.is_some());
    rig.answer(released());
    rig.event(Event::Opened(0));
    assert_eq!(rig.finished, Some(Outcome::Open));
}

#[test]
fn a_share_that_comes_while_a_passphrase_is_tried_waits_for_it() {
    let mut rig = Rig::ready();
    rig.event(Event::Typed);
    rig.answer(released());
    assert_eq!(rig.opening, None);
    let actions = rig.event(Event::Tried(Tried::Wrong));
    Rig::expect(&actions, |action| *action == Action::Open(0, 0));
}

#[test]
fn a_dead_first_address_leads_to_the_second_at_once() {
    let mut rig = Rig::ready();
    assert_eq!(rig.asked.as_ref().map(|asked| asked.2), Some(0));
    rig.answer(Answer::Fault("a0:7443: connection refused".into()));
    assert_eq!(rig.asked.as_ref().map(|asked| asked.2), Some(1));
}

#[test]
fn a_refusing_first_server_leads_to_the_second() {
    let mut rig = Rig::new(plan(1, 2));
    rig.event(Event::Device(0, bound(2)));
    rig.event(Event::NetworkUp);
    let reason = "not from this address".to_owned();
    rig.answer(Answer::Verdicts(vec![(
        0,
        Verdict::Denied {
            reason,
            retry: Duration::from_secs(300),
        },
    )]));
    assert_eq!(rig.asked.as_ref().map(|asked| asked.1), Some(1));
    rig.answer(released());
    assert_eq!(rig.opening, Some((0, true)));
}

#[test]
fn a_volume_that_appears_late_is_asked_for_at_once() {
    let denied = |volumes: &[usize]| {
        let verdict = |volume: &usize| {
            let reason = "not from this address".to_owned();
            let retry = Duration::from_secs(300);
            (*volume, Verdict::Denied { reason, retry })
        };
        Answer::Verdicts(volumes.iter().map(verdict).collect())
    };
    let asks_for = |rig: &Rig, volumes: &[usize]| {
        assert_eq!(
            rig.asked.as_ref().map(|asked| asked.3.as_slice()),
            Some(volumes)
        );
    };
    for answer in [released(), denied(&[0])] {
        let is_released = matches!(&answer, Answer::Verdicts(all) if all[0].1 == Verdict::Released);
        // While the request for the first one is under way.
        let mut rig = Rig::new(plan(3, 1));
        rig.event(Event::Device(0, bound(1)));
        rig.event(Event::NetworkUp);
        rig.event(Event::Device(1, bound(1)));
        asks_for(&rig, &[0]);
        rig.answer(answer);
        if is_released {
            rig.event(Event::Opened(0));
            asks_for(&rig, &[1]);
        } else {
            asks_for(&rig, &[0, 1]);
        }
        // And after the key server has spoken.
        rig.answer(denied(if is_released { &[1] } else { &[0, 1] }));
        assert!(rig.asked.is_none());
        rig.event(Event::Device(2, bound(1)));
        asks_for(&rig, if is_released { &[1, 2] } else { &[0, 1, 2] });
    }
}

#[test]
fn headers_that_are_being_read_are_asked_for_in_one_request() {
    let mut rig = Rig::new(plan(3, 1));
    rig.event(Event::NetworkUp);
    for volume in 0..3 {
        rig.event(Event::Found(volume));
    }
    rig.event(Event::Device(0, bound(1)));
    rig.event(Event::Device(1, bound(1)));
    assert!(rig.asked.is_none(), "the third is about to come");
    rig.event(Event::Device(2, bound(1)));
    assert_eq!(rig.asked.as_ref().unwrap().3, [0, 1, 2]);
}

#[test]
fn a_header_that_cannot_be_read_holds_up_the_others_for_a_second() {
    let mut rig = Rig::new(plan(2, 1));
    rig.event(Event::NetworkUp);
    rig.event(Event::Found(0));
    rig.event(Event::Found(1));
    rig.event(Event::Device(0, bound(1)));
    assert!(rig.asked.is_none());
    let wake = rig.wake.expect("the limit is planned");
    assert_eq!(wake, rig.now + Duration::from_secs(1));
    rig.now = wake;
    rig.event(Event::Tick);
    assert_eq!(rig.asked.as_ref().unwrap().3, [0]);
    assert!(rig.wake > Some(wake), "the limit has passed");
}

#[test]
fn a_volume_that_appears_does_not_hurry_a_key_server_that_rests() {
    for answer in [
        Answer::Busy(Duration::from_secs(20)),
        Answer::Fault("no route".into()),
        Answer::Refused,
    ] {
        let mut rig = Rig::new(plan(2, 1));
        rig.event(Event::Device(0, bound(1)));
        rig.event(Event::NetworkUp);
        rig.answer(answer.clone());
        if matches!(answer, Answer::Fault(_)) {
            rig.answer(answer); // its other address
        }
        let wake = rig.wake.expect("a retry is planned");
        rig.event(Event::Device(1, bound(1)));
        assert!(rig.asked.is_none());
        // Not sooner; without a volume that is missing perhaps later.
        assert!(rig.wake >= Some(wake), "{:?}", rig.wake);
    }
}

#[test]
fn retries_rest_between_half_a_second_and_thirty() {
    let mut rig = Rig::ready();
    let mut rests = Vec::new();
    for _ in 0..12 {
        rig.answer(Answer::Fault("a".into()));
        rig.answer(Answer::Fault("b".into()));
        let wake = rig.wake.expect("a retry is planned");
        rests.push(wake - rig.now);
        rig.now = wake;
        rig.event(Event::Tick);
    }
    let (shortest, longest) = (rests.iter().min().unwrap(), rests.iter().max().unwrap());
    assert!(*shortest >= Duration::from_millis(500), "{rests:?}");
    assert!(*longest <= Duration::from_secs(30), "{rests:?}");
    assert!(rests[11] >= Duration::from_secs(15), "{rests:?}");
}

#[test]
fn pending_shows_the_code_and_asks_again_at_the_servers_pace() {
    let mut rig = Rig::ready();
    let pending = Verdict::Pending {
        id: "r1".into(),
        code: "ABC-DEF".into(),
        retry: Duration::from_secs(5),
    };
    let actions = rig.answer(Answer::Verdicts(vec![(0, pending)]));
    Rig::expect(
        &actions,
        |action| matches!(action, Action::Status(line) if line.contains("ABC-DEF")),
    );
    assert_eq!(rig.wake, Some(Duration::from_secs(5)));
}

#[test]
fn waiting_says_for_what_and_asks_again_at_the_servers_pace() {
    let mut rig = Rig::ready();
    let wait = |retry| {
        let reason = "waiting for the running machine".to_owned();
        let retry = Duration::from_secs(retry);
        Answer::Verdicts(vec![(0, Verdict::Wait { reason, retry })])
    };
    let actions = rig.answer(wait(3));
    Rig::expect(
        &actions,
        |action| matches!(action, Action::Status(line) if line.contains("waiting for the running machine")),
    );
    assert_eq!(rig.wake, Some(Duration::from_secs(3)));
    assert!(
        rig.prompt && !rig.wiped,
        "the prompt and the credentials stay"
    );
    // Whatever pace it asks for, it is asked neither without a pause nor never again.
    for (asked, expected) in [(0, 1), (u64::MAX, 300)] {
        rig.now = rig.wake.unwrap();
        rig.event(Event::Tick);
        rig.answer(wait(asked));
        assert_eq!(rig.wake, Some(rig.now + Duration::from_secs(expected)));
    }
    rig.now = rig.wake.unwrap();
    rig.event(Event::Tick);
    rig.answer(released());
    rig.event(Event::Opened(0));
    assert_eq!(rig.finished, Some(Outcome::Open));
}

#[test]
fn destroyed_everywhere_wipes_and_keeps_the_prompt() {
    let mut rig = Rig::ready();
    let actions = rig.answer(Answer::Verdicts(vec![(0, Verdict::Destroyed)]));
    assert!(rig.wiped && rig.prompt);
    Rig::expect(
        &actions,
        |action| matches!(action, Action::Status(line) if line.contains("destroyed")),
    );
}

#[test]
fn the_gate_ends_automatic_opening_and_keeps_the_prompt() {
    let mut rig = Rig::ready();
    rig.answer(released());
    let actions = rig.event(Event::NotOpened(0, Refusal::Gate("null cipher".into())));
    assert!(rig.wiped && rig.prompt);
    Rig::expect(
        &actions,
        |action| matches!(action, Action::Status(line) if line.contains("null cipher")),
    );
}

#[test]
fn a_boot_that_must_not_open_by_itself_only_prompts() {
    let (_, actions) = Flow::start(Plan {
        only_prompt: Some("'break=' asks for a shell".into()),
        ..plan(1, 1)
    });
    assert!(actions.contains(&Action::Wipe));
    let mut rig = Rig::new(Plan {
        only_prompt: Some("'break=' asks for a shell".into()),
        ..plan(1, 1)
    });
    rig.event(Event::Device(0, bound(1)));
    rig.event(Event::NetworkUp);
    assert!(rig.prompt && rig.asked.is_none());
}

#[test]
fn a_volume_that_is_not_bound_ends_the_flow_at_once() {
    let mut rig = Rig::new(plan(1, 1));
    rig.event(Event::Device(0, Header::NotBound));
    assert_eq!(rig.finished, Some(Outcome::NothingBound));
}

#[test]
fn a_volume_that_is_left_alone_is_said_and_ends_the_flow() {
    let mut rig = Rig::new(plan(1, 1));
    let actions = rig.event(Event::Device(0, Header::LeftAlone("no envelope".into())));
    assert!(actions.contains(&Action::Leave(0)));
    Rig::expect(
        &actions,
        |action| matches!(action, Action::Say(line) if line.contains("'crypt0'") && line.contains("no envelope")),
    );
    assert_eq!(rig.finished, Some(Outcome::NothingBound));
}

#[test]
fn what_a_passphrase_opens_to_noise_is_left_and_not_prompted_for_again() {
    let mut rig = Rig::ready();
    rig.event(Event::Typed);
    rig.event(Event::Tried(Tried::Right(vec![0])));
    let actions = rig.event(Event::Left(0, "noise".into()));
    assert!(actions.contains(&Action::Leave(0)) && !rig.prompt);
    assert_eq!(rig.finished, Some(Outcome::NothingBound));
}

#[test]
fn what_only_a_volume_key_opens_is_never_prompted_for() {
    let mut rig = Rig::new(plan(2, 1));
    rig.event(Event::Device(0, by_key()));
    assert!(!rig.prompt);
    rig.event(Event::Device(1, bound(1)));
    assert!(rig.prompt);
    let actions = rig.event(Event::Typed);
    assert!(actions.contains(&Action::TryPassphrase(vec![1])));
    // A typed passphrase wipes the credentials: no key server opens the other one any more.
    let actions = rig.event(Event::Tried(Tried::Right(vec![1])));
    assert!(actions.contains(&Action::Leave(0)));
    rig.event(Event::Activated(1, None));
    assert_eq!(rig.finished, Some(Outcome::Open));
}

#[test]
fn what_only_a_volume_key_opens_is_left_once_no_key_server_can() {
    let mut rig = Rig::new(plan(1, 1));
    rig.event(Event::Device(0, by_key()));
    rig.event(Event::NetworkUp);
    let actions = rig.answer(Answer::Verdicts(vec![(0, Verdict::Destroyed)]));
    assert!(actions.contains(&Action::Leave(0)));
    assert_eq!(rig.finished, Some(Outcome::NothingBound));

    let mut rig = Rig::new(Plan {
        only_prompt: Some("it was asked for".into()),
        ..plan(1, 1)
    });
    rig.event(Event::Device(0, by_key()));
    assert_eq!(rig.finished, Some(Outcome::NothingBound));

    let mut rig = Rig::new(plan(1, 1));
    rig.event(Event::Device(0, by_key()));
    rig.event(Event::NetworkUp);
    rig.answer(Answer::Verdicts(vec![(0, Verdict::Released)]));
    assert_eq!(rig.finished, None);
    rig.event(Event::NotOpened(0, Refusal::Gate("another device".into())));
    assert_eq!(rig.finished, Some(Outcome::NothingBound));
}

#[test]
fn a_missing_device_is_left_to_the_framework_after_the_limit() {
    let mut rig = Rig::new(plan(1, 1));
    assert!(rig.log.contains(&Action::WaitForDevices(true)) && !rig.prompt);
    assert_eq!(rig.wake, Some(Duration::from_secs(30)));
    rig.now = Duration::from_secs(30);
    rig.event(Event::Tick);
    assert_eq!(rig.finished, Some(Outcome::DeviceMissing));
}

#[test]
fn a_limit_that_has_passed_wakes_nobody_again() {
    // A prompt stands for one volume while the device of another is missing.
    let mut rig = Rig::new(plan(2, 1));
    rig.event(Event::Device(0, bound(1)));
    assert_eq!(rig.wake, Some(Duration::from_secs(30)));
    for seconds in [30, 31, 3600] {
        rig.now = Duration::from_secs(seconds);
        rig.event(Event::Tick);
        assert!(rig.prompt && rig.finished.is_none());
        assert_eq!(rig.wake, None, "after {seconds} s");
    }
    // The same while the one that the boot does not need is being opened.
    let mut rig = with_optional();
    rig.event(Event::Device(1, bound(1)));
    rig.event(Event::Typed);
    rig.event(Event::Tried(Tried::Right(vec![0, 1])));
    rig.event(Event::Activated(0, None));
    assert_eq!(rig.wake, Some(Duration::from_secs(10)));
    rig.now = Duration::from_secs(10);
    rig.event(Event::Tick);
    assert_eq!(rig.wake, None);
    rig.event(Event::Activated(1, None));
    assert_eq!(rig.finished, Some(Outcome::Open));
}

#[test]
fn without_prompt_and_without_hope_the_native_prompt_takes_over() {
    let mut rig = Rig::ready();
    rig.event(Event::PromptLost(PromptLoss::Impossible));
    assert_eq!(rig.finished, None);
    rig.answer(Answer::Verdicts(vec![(0, Verdict::Destroyed)]));
    assert_eq!(rig.finished, Some(Outcome::NativePrompt));
}

/// A boot with a volume that it needs and one that it does not.
fn with_optional() -> Rig {
    let mut rig = Rig::new(Plan {
        optional: vec![1],
        ..plan(2, 1)
    });
    rig.event(Event::Device(0, bound(1)));
    rig
}

#[test]
fn a_volume_that_the_boot_does_not_need_holds_it_up_for_ten_seconds_at_most() {
    for appears in [true, false] {
        let mut rig = with_optional();
        if appears {
            rig.event(Event::Device(1, bound(1)));
        }
        rig.event(Event::NetworkUp);
        rig.now = Duration::from_secs(5);
        let denied = Verdict::Denied {
            reason: "no".into(),
            retry: Duration::from_secs(300),
        };
        rig.answer(Answer::Verdicts(vec![(0, Verdict::Released), (1, denied)]));
        assert_eq!(rig.finished, None);
        rig.event(Event::Opened(0));
        assert_eq!(rig.wake, Some(Duration::from_secs(15)));
        assert_eq!(rig.finished, None);
        rig.now = Duration::from_secs(15);
        rig.event(Event::Tick);
        assert_eq!(rig.finished, Some(Outcome::OptionalLeft));
    }
}

#[test]
fn a_volume_that_the_boot_needs_is_waited_for_whatever_else_is_open() {
    let mut rig = with_optional();
    rig.event(Event::Device(1, bound(1)));
    rig.event(Event::NetworkUp);
    rig.answer(Answer::Verdicts(vec![(1, Verdict::Released)]));
    rig.event(Event::Opened(1));
    rig.now = Duration::from_secs(3600);
    rig.event(Event::Tick);
    assert_eq!(rig.finished, None);
    assert!(rig.prompt);
}

#[test]
fn an_opening_that_is_under_way_is_not_cut_off() {
    let mut rig = with_optional();
    rig.event(Event::Device(1, bound(1)));
    rig.event(Event::NetworkUp);
    let both = vec![(0, Verdict::Released), (1, Verdict::Released)];
    rig.answer(Answer::Verdicts(both));
    rig.event(Event::Opened(0));
    assert_eq!(rig.opening, Some((1, true)));
    rig.now = Duration::from_secs(60);
    rig.event(Event::Tick);
    assert_eq!(rig.finished, None);
    rig.event(Event::Opened(1));
    assert_eq!(rig.finished, Some(Outcome::Open));
}

#[test]
fn one_request_asks_for_all_volumes() {
    let mut rig = Rig::new(plan(8, 1));
    for volume in 0..8 {
        rig.event(Event::Device(volume, bound(1)));
    }
    rig.event(Event::NetworkUp);
    assert_eq!(rig.asked.as_ref().map(|asked| asked.3.len()), Some(8));
}

/// One step of a random story: a number picks what happens among what can happen.
fn step(rig: &mut Rig, choice: u16, prompt_possible: &mut bool) {
    let volumes = rig.locked.len();
    let volume = usize::from(choice >> 4) % volumes;
    let detail = choice >> 8;
    let event = match choice % 16 {
        0 => {
            rig.now += Duration::from_millis(u64::from(detail) * 40);
            Event::Tick
        }
        1 => Event::NetworkUp,
        2 => Event::NetworkTrouble("no link".into()),
        3 | 4 => match detail % 8 {
            7 => Event::Found(volume),
            0 => Event::Device(volume, Header::NotBound),
            1 => Event::Device(volume, Header::Unusable("broken token".into())),
            2 => Event::Device(volume, by_key()),
            3 => Event::Device(volume, Header::LeftAlone("no envelope".into())),
            _ => Event::Device(volume, bound(2)),
        },
        5..=8 => {
            let Some((number, _, _, asked)) = rig.asked.take() else {
                return;
            };
            let verdict = |index: usize| match (usize::from(detail) + index) % 6 {
                0 => Verdict::Denied {
                    reason: "no".into(),
                    retry: Duration::from_secs(300),
                },
                5 => Verdict::Wait {
                    reason: "not yet".into(),
                    retry: Duration::from_secs(2),
                },
                1 => Verdict::Pending {
                    id: "r".into(),
                    code: "c".into(),
                    retry: Duration::from_secs(5),
                },
                2 => Verdict::Destroyed,
                _ => Verdict::Released,
            };
            let verdicts = asked
                .iter()
                .enumerate()
                .map(|(at, index)| (*index, verdict(at)))
                .collect();
            let answer = match detail % 6 {
                0 => Answer::Fault("reset".into()),
                1 => Answer::Busy(Duration::from_secs(u64::from(detail) * 100)),
                2 => Answer::Refused,
                _ => Answer::Verdicts(verdicts),
            };
            Event::Answered(number, answer)
        }
        9 | 10 => match (rig.opening, rig.to_activate.first()) {
            (Some((volume, _)), _) => match detail % 4 {
                0 => Event::NotOpened(volume, Refusal::Gate("cost".into())),
                1 => Event::NotOpened(volume, Refusal::Share("damaged".into())),
                _ => Event::Opened(volume),
            },
            (None, Some(&volume)) => match detail % 3 {
                0 => Event::NotActivated(volume, "busy".into()),
                1 => Event::Left(volume, "noise".into()),
                _ => Event::Activated(
                    volume,
                    detail
                        .is_multiple_of(2)
                        .then(|| "other volume key".to_owned()),
                ),
            },
            (None, None) => return,
        },
        11 | 12 if rig.prompt => Event::Typed,
        13 if rig.prompt => {
            if detail.is_multiple_of(4) {
                *prompt_possible = false;
                Event::PromptLost(PromptLoss::Impossible)
            } else {
                Event::PromptLost(PromptLoss::Again)
            }
        }
        14 if rig.trying && rig.opening.is_none() => Event::Tried(match detail % 3 {
            0 => Tried::Wrong,
            1 => Tried::Failed("no memory".into()),
            _ => Tried::Right((0..volumes).filter(|volume| rig.locked[*volume]).collect()),
        }),
        15 => Event::Answered(u64::from(detail) + 1_000_000, released()),
        _ => return,
    };
    rig.event(event);
}

#[test]
fn a_busy_key_server_is_left_alone_as_long_as_it_asks_but_never_over_a_minute() {
    for (asked, least) in [(0, 1), (7, 7), (60, 60), (300, 60), (1_000_000, 60)] {
        let mut rig = Rig::new(plan(1, 1));
        rig.event(Event::NetworkUp);
        rig.event(Event::Device(0, bound(1)));
        rig.answer(Answer::Busy(Duration::from_secs(asked)));
        // The fraction of a second spreads those that were told the same.
        let wake = rig.wake.expect("a retry is planned");
        let expected = Duration::from_secs(least)..=Duration::from_secs(least + 1);
        assert!(expected.contains(&wake), "{asked} s: {wake:?}");
        assert!(rig.asked.is_none(), "{asked} s: asked at once");
        rig.now = wake;
        rig.event(Event::Tick);
        assert!(rig.asked.is_some(), "{asked} s: not asked again");
    }
}

#[test]
fn the_other_key_server_is_asked_while_one_is_busy() {
    let mut rig = Rig::new(plan(1, 2));
    rig.event(Event::NetworkUp);
    rig.event(Event::Device(0, bound(2)));
    assert_eq!(rig.asked.as_ref().expect("asked").1, 0);
    rig.answer(Answer::Busy(Duration::MAX));
    assert_eq!(rig.asked.as_ref().expect("asked at once").1, 1);
    rig.answer(Answer::Verdicts(vec![(0, Verdict::Released)]));
    rig.event(Event::Opened(0));
    assert_eq!(rig.finished, Some(Outcome::Open));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold_in_any_order_of_events(
        volumes in 1usize..4,
        optional in proptest::collection::vec(0usize..4, 0..3),
        story in proptest::collection::vec(any::<u16>(), 1..200),
    ) {
        let mut rig = Rig::new(Plan { optional, ..plan(volumes, 2) });
        let mut prompt_possible = true;
        for choice in story {
            if rig.finished.is_some() {
                break;
            }
            step(&mut rig, choice, &mut prompt_possible);
            rig.check(prompt_possible);
        }
        if rig.finished.is_none() {
            rig.event(Event::Stop);
            prop_assert_eq!(rig.finished, Some(Outcome::Stopped));
        }
    }

    #[test]
    fn after_any_faults_a_good_answer_opens(faults in proptest::collection::vec(0u8..3, 0..40)) {
        let mut rig = Rig::ready();
        for fault in faults {
            while rig.asked.is_none() {
                rig.now = rig.wake.expect("a retry is always planned");
                rig.event(Event::Tick);
            }
            rig.answer(match fault {
                0 => Answer::Fault("timed out".into()),
                1 => Answer::Busy(Duration::MAX),
                _ => Answer::Refused,
            });
        }
        while rig.asked.is_none() {
            rig.now = rig.wake.expect("a retry is always planned");
            rig.event(Event::Tick);
        }
        rig.answer(released());
        rig.event(Event::Opened(0));
        prop_assert_eq!(rig.finished, Some(Outcome::Open));
    }
}
