//! The prompt's end, as crypttab(5) has it: `tries=` and `timeout=`.

use std::num::NonZeroU32;
use std::time::Duration;

use latchkey::flow::{Action, Answer, Event, Outcome, PromptLimit, PromptLoss, Tried, Verdict};

use crate::rig::{Rig, bound, plan};

/// A boot of one volume with these limits of its prompt.
fn with_limits(tries: u32, timeout: Option<u64>) -> Rig {
    let mut plan = plan(1, 1);
    plan.volumes[0].prompt_limit = PromptLimit {
        tries: NonZeroU32::new(tries),
        timeout: timeout.map(Duration::from_secs),
    };
    let mut rig = Rig::new(plan);
    rig.event(Event::Device(0, bound(1)));
    rig.event(Event::NetworkUp);
    rig
}

fn destroyed() -> Answer {
    Answer::Verdicts(vec![(0, Verdict::Destroyed)])
}

fn type_wrong(rig: &mut Rig) -> Vec<Action> {
    rig.event(Event::Typed);
    rig.event(Event::Tried(Tried::Wrong))
}

fn says(actions: &[Action], wanted: &str) {
    Rig::expect(
        actions,
        |action| matches!(action, Action::Say(line) if line.contains(wanted)),
    );
}

#[test]
fn the_prompt_stands_while_a_key_server_may_open_the_volume() {
    let mut rig = with_limits(2, Some(30));
    for _ in 0..10 {
        type_wrong(&mut rig);
        rig.now += Duration::from_secs(60);
        rig.event(Event::Tick);
        assert!(rig.prompt && rig.finished.is_none());
    }
}

#[test]
fn after_its_tries_the_native_prompt_follows() {
    let mut rig = with_limits(3, None);
    rig.answer(destroyed());
    type_wrong(&mut rig);
    // An empty line is no attempt.
    rig.event(Event::PromptLost(PromptLoss::Again));
    type_wrong(&mut rig);
    assert!(rig.prompt && rig.finished.is_none());
    rig.event(Event::Typed);
    assert_eq!(rig.finished, None, "the third may be right");
    let actions = rig.event(Event::Tried(Tried::Wrong));
    says(
        &actions,
        "wrong passphrases: 3, and crypttab says 'tries=3'",
    );
    assert!(actions.contains(&Action::Leave(0)));
    assert_eq!(rig.finished, Some(Outcome::NothingBound));
}

#[test]
fn a_right_passphrase_at_the_last_try_opens() {
    let mut rig = with_limits(1, None);
    rig.answer(destroyed());
    rig.event(Event::Typed);
    rig.event(Event::Tried(Tried::Right(vec![0])));
    rig.event(Event::Activated(0, None));
    assert_eq!(rig.finished, Some(Outcome::Open));
}

#[test]
fn after_its_timeout_the_native_prompt_follows() {
    // It counts from when no key server can open the volume any more.
    let mut rig = with_limits(0, Some(30));
    rig.now = Duration::from_secs(100);
    rig.answer(destroyed());
    assert!(rig.prompt);
    assert_eq!(rig.wake, Some(Duration::from_secs(130)));
    rig.now = Duration::from_secs(130);
    let actions = rig.event(Event::Tick);
    says(&actions, "crypttab says 'timeout=30'");
    assert!(actions.contains(&Action::EndPrompt) && actions.contains(&Action::Leave(0)));
    assert_eq!(rig.finished, Some(Outcome::NothingBound));
}

#[test]
fn a_timeout_beyond_all_time_is_no_limit() {
    let mut rig = with_limits(0, Some(u64::MAX));
    rig.now = Duration::from_secs(100);
    rig.answer(destroyed());
    rig.now = Duration::from_secs(1_000_000);
    rig.event(Event::Tick);
    assert!(rig.prompt && rig.finished.is_none());
}

#[test]
fn a_passphrase_that_is_being_tried_at_the_timeout_still_counts() {
    for (result, outcome) in [
        (Tried::Right(vec![0]), None),
        (Tried::Wrong, Some(Outcome::NothingBound)),
    ] {
        let mut rig = with_limits(0, Some(30));
        rig.answer(destroyed());
        rig.event(Event::Typed);
        rig.now = Duration::from_secs(60);
        rig.event(Event::Tick);
        assert_eq!(rig.finished, None);
        rig.event(Event::Tried(result));
        assert_eq!(rig.finished, outcome);
    }
}

#[test]
fn the_passphrase_of_another_volume_is_no_wrong_one() {
    let mut plan = plan(2, 1);
    plan.volumes[1].prompt_limit.tries = NonZeroU32::new(2);
    let mut rig = Rig::new(plan);
    rig.event(Event::Device(0, bound(1)));
    rig.event(Event::Device(1, bound(1)));
    type_wrong(&mut rig);
    rig.event(Event::Typed);
    rig.event(Event::Tried(Tried::Right(vec![0])));
    rig.event(Event::Activated(0, None));
    assert!(rig.prompt && rig.finished.is_none());
    type_wrong(&mut rig);
    assert!(rig.prompt && rig.finished.is_none());
    type_wrong(&mut rig);
    assert_eq!(rig.finished, Some(Outcome::Open));
}
