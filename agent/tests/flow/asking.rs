//! Which key server is asked, and when again.

use std::time::Duration;

use latchkey::flow::{Action, Answer, Event, Outcome, Verdict};

use crate::rig::{Rig, bound, plan, released};

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
