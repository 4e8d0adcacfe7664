//! Several volumes in one boot: those that come late, and those that the boot does not need.

use std::time::Duration;

use latchkey::flow::{Action, Answer, Event, Header, Outcome, Tried, Verdict};

use crate::rig::{Rig, bound, plan, released};

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
fn headers_that_take_long_one_after_the_other_are_waited_for() {
    let mut rig = Rig::new(plan(4, 1));
    rig.event(Event::NetworkUp);
    for volume in 0..4 {
        rig.event(Event::Found(volume));
    }
    for volume in 0..3 {
        rig.now += Duration::from_millis(900);
        rig.event(Event::Device(volume, bound(1)));
        assert!(rig.asked.is_none(), "the next one is being read");
    }
    rig.now += Duration::from_millis(900);
    rig.event(Event::Device(3, bound(1)));
    assert_eq!(rig.asked.as_ref().unwrap().3, [0, 1, 2, 3]);
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

/// A boot with a volume that it needs and one that it does not.
fn with_optional() -> Rig {
    let mut plan = plan(2, 1);
    plan.volumes[1].optional = true;
    let mut rig = Rig::new(plan);
    rig.event(Event::Device(0, bound(1)));
    rig
}

#[test]
fn after_a_wrong_passphrase_the_reason_stands_above_the_next_prompt() {
    let mut rig = Rig::new(plan(1, 1));
    let line = Action::Status("asking the key server".to_owned());
    rig.event(Event::NetworkUp);
    assert!(rig.event(Event::Device(0, bound(1))).contains(&line));
    rig.event(Event::Typed);
    let actions = rig.event(Event::Tried(Tried::Wrong));
    let at = |wanted: &dyn Fn(&Action) -> bool| actions.iter().position(wanted).unwrap();
    let said = at(&|action| matches!(action, Action::Say(_)));
    let reason = at(&|action| *action == line);
    let prompt = at(&|action| matches!(action, Action::Prompt(..)));
    assert!(said < reason && reason < prompt, "{actions:?}");
}

#[test]
fn a_locked_volume_that_the_boot_does_not_need_keeps_no_other_disk_from_coming() {
    let mut plan = plan(2, 1);
    plan.volumes[0].optional = true;
    let mut rig = Rig::new(plan);
    let actions = rig.event(Event::Device(0, bound(1)));
    assert!(rig.prompt);
    assert!(
        !actions.contains(&Action::WaitForDevices(false)),
        "the framework brings the other"
    );
    let actions = rig.event(Event::Device(1, bound(1)));
    assert!(
        actions.contains(&Action::WaitForDevices(false)),
        "{actions:?}"
    );
}

#[test]
fn the_framework_does_not_prompt_beside_the_agent_for_what_was_left_to_it() {
    let mut plan = plan(3, 1);
    plan.volumes[0].optional = true;
    let mut rig = Rig::new(plan);
    rig.event(Event::Device(1, Header::NotBound));
    let actions = rig.event(Event::Device(0, bound(1)));
    assert!(rig.prompt);
    assert!(
        actions.contains(&Action::WaitForDevices(false)),
        "{actions:?}"
    );
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

/// The last line above the prompt.
fn status(rig: &Rig) -> &str {
    let lines = rig.log.iter().rev();
    let mut lines = lines.filter_map(|action| match action {
        Action::Status(line) => Some(line.as_str()),
        _ => None,
    });
    lines.next().unwrap_or_default()
}

#[test]
fn the_line_above_the_prompt_is_of_a_volume_that_is_locked() {
    let refused = |why: &str| Header::Unusable(why.to_owned());
    let mut rig = Rig::new(plan(2, 1));
    rig.event(Event::NetworkUp);
    rig.event(Event::Device(0, refused("its header differs")));
    assert_eq!(
        status(&rig),
        "no automatic opening: its header differs",
        "nobody is asked before the second comes"
    );
    rig.event(Event::Device(1, bound(1)));
    assert_eq!(status(&rig), "asking the key server");
    rig.event(Event::Typed);
    rig.event(Event::KeyslotOpened);
    rig.event(Event::Tried(Tried::Right(vec![0])));
    rig.event(Event::Activated(0, None));
    assert_eq!(
        status(&rig),
        "no automatic opening: the credentials were wiped"
    );
}

#[test]
fn a_device_that_is_slow_to_read_is_not_missing_until_it_has_been_for_long() {
    let mut plan = plan(2, 1);
    plan.device_limit = Duration::MAX;
    let mut rig = Rig::new(plan);
    let waits = |actions: &[Action], expected| {
        let waits = |action: &Action| match action {
            Action::WaitForDevices(waits) => Some(*waits),
            _ => None,
        };
        assert_eq!(actions.iter().rev().find_map(waits), expected);
    };
    waits(&rig.log, Some(true));
    waits(&rig.event(Event::Found(0)), Some(false));
    rig.now = Duration::from_secs(29);
    waits(&rig.event(Event::Tick), None);
    assert_eq!(rig.wake, Some(Duration::from_secs(30)));
    rig.now = Duration::from_secs(30);
    waits(&rig.event(Event::Tick), Some(true));

    // The flow ends before: nobody waits for a read that hangs.
    let mut rig = Rig::new(crate::rig::plan(2, 1));
    rig.now = Duration::from_secs(20);
    waits(&rig.event(Event::Found(0)), Some(false));
    rig.now = Duration::from_secs(30);
    waits(&rig.event(Event::Tick), Some(true));
    assert_eq!(rig.finished, Some(Outcome::DeviceMissing));
}
