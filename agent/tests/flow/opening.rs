//! One volume: what opens it, what leaves it locked, and what becomes of the prompt.

use std::time::Duration;

use latchkey::flow::{
    Action, Answer, Event, Flow, Header, Outcome, Plan, PromptLoss, Refusal, Tried, Verdict,
};

use crate::rig::{Rig, bound, by_key, plan, released};

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
fn a_volume_that_somebody_else_opened_needs_no_prompt() {
    // K7.
    let mut rig = Rig::ready();
    let actions = rig.event(Event::Taken(0, "somebody opened it".into()));
    assert_eq!(actions[0], Action::EndPrompt);
    assert!(actions.contains(&Action::Leave(0)), "{actions:?}");
    assert!(rig.wiped && !rig.prompt);
    assert_eq!(rig.finished, Some(Outcome::NothingBound));
}

#[test]
fn the_mapping_that_is_being_made_is_nobody_elses() {
    let mut rig = Rig::ready();
    rig.answer(released());
    let actions = rig.event(Event::Taken(0, "somebody opened it".into()));
    assert!(!actions.contains(&Action::Leave(0)), "{actions:?}");
    rig.event(Event::Opened(0));
    assert_eq!(rig.finished, Some(Outcome::Open));
}

#[test]
fn what_cannot_be_typed_is_said_beside_the_prompt() {
    // M1.
    let mut rig = Rig::ready();
    let actions = rig.event(Event::Warned(0, "keyslot 0 needs 1024 MiB".into()));
    Rig::expect(
        &actions,
        |action| matches!(action, Action::Say(line) if line.contains("needs 1024 MiB")),
    );
    assert!(rig.prompt);
}

#[test]
fn the_first_keyslot_that_opens_ends_everything_else_while_others_are_still_tried() {
    let mut rig = Rig::new(plan(2, 1));
    rig.event(Event::Device(0, bound(1)));
    rig.event(Event::Device(1, bound(1)));
    rig.event(Event::NetworkUp);
    assert!(rig.asked.is_some());
    rig.event(Event::Typed);
    assert!(!rig.wiped, "it may be wrong");
    let actions = rig.event(Event::KeyslotOpened);
    assert_eq!(actions, [Action::CancelAsk, Action::Wipe]);
    assert!(rig.asked.is_none());
    let actions = rig.event(Event::Tried(Tried::Right(vec![0])));
    assert!(actions.contains(&Action::Activate(0)));
    rig.event(Event::Activated(0, None));
    assert!(rig.prompt, "the other volume is still locked");
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
fn without_prompt_and_without_hope_the_native_prompt_takes_over() {
    let mut rig = Rig::ready();
    rig.event(Event::PromptLost(PromptLoss::Impossible));
    assert_eq!(rig.finished, None);
    rig.answer(Answer::Verdicts(vec![(0, Verdict::Destroyed)]));
    assert_eq!(rig.finished, Some(Outcome::NativePrompt));
}
