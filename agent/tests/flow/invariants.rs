//! Random stories, with the invariants checked after every step.

use std::num::NonZeroU32;
use std::time::Duration;

use latchkey::flow::{
    Answer, Event, Header, Outcome, PromptLimit, PromptLoss, Refusal, Tried, Verdict,
};
use proptest::prelude::*;

use crate::rig::{Rig, bound, by_key, plan, released};

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
        15 if rig.trying => Event::KeyslotOpened,
        15 => Event::Answered(u64::from(detail) + 1_000_000, released()),
        _ => return,
    };
    rig.event(event);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold_in_any_order_of_events(
        volumes in 1usize..4,
        settings in proptest::collection::vec((any::<bool>(), 0u32..4, proptest::option::of(1u64..60)), 4),
        story in proptest::collection::vec(any::<u16>(), 1..200),
    ) {
        let mut plan = plan(volumes, 2);
        for (volume, settings) in plan.volumes.iter_mut().zip(settings) {
            volume.optional = settings.0;
            volume.prompt_limit = PromptLimit {
                tries: NonZeroU32::new(settings.1),
                timeout: settings.2.map(Duration::from_secs),
            };
        }
        let mut rig = Rig::new(plan);
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
