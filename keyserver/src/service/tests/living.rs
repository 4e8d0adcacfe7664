//! Proof of life against those who would make a running machine seem silent, or gone.

use super::booting::{answers, life_stream, under};
use super::*;

const INTERVAL: Duration = life::BEAT;

#[test]
fn a_flood_of_boots_is_one_question_and_its_answer_is_for_all() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    let mut stream = life_stream(&rig, &machine);
    let ask = |boot: &Boot| rig.boots(&machine, HOME, boot, volume, Some(ticket));
    for _ in 0..100 {
        waits(&ask(&Boot::new()));
    }
    let copies = [Boot::new(), Boot::new()];
    copies.iter().for_each(|copy| waits(&ask(copy)));
    // The last one is not behind the others.
    let challenge = stream.challenges.try_recv().unwrap();
    assert!(stream.challenges.try_recv().is_err());
    answers(&rig, &machine, challenge).unwrap();
    for copy in &copies {
        assert!(denied(&ask(copy)).contains("this is a copy"));
    }
    // It was heard just now, and need not be asked.
    let late = Boot::new();
    waits(&ask(&late));
    assert!(denied(&ask(&late)).contains("this is a copy"));
    assert!(stream.challenges.try_recv().is_err());
    // All of them are one alarm, and counted.
    assert_eq!(rig.alarms().len(), 1, "{:?}", rig.alarms());
    rig.pass(2 * INTERVAL);
    waits(&ask(&Boot::new()));
    assert!(stream.challenges.try_recv().is_ok());
}

#[test]
fn a_flood_of_boots_from_elsewhere_does_not_keep_the_machine_waiting() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    let boot = Boot::new();
    let asks = |boot: &Boot, from| rig.boots(&machine, from, boot, volume, Some(ticket));
    waits(&asks(&boot, HOME));
    for _ in 0..4 {
        for _ in 0..20 {
            waits(&asks(&Boot::new(), AWAY));
        }
        rig.pass(INTERVAL / 2);
    }
    released(&asks(&boot, HOME));
}

#[test]
fn a_slow_answer_counts_although_the_next_question_is_out() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    let mut stream = life_stream(&rig, &machine);
    let first = Boot::new();
    waits(&rig.boots(&machine, HOME, &first, volume, Some(ticket)));
    let challenge = stream.challenges.try_recv().unwrap();
    rig.pass(INTERVAL);
    waits(&rig.boots(&machine, HOME, &Boot::new(), volume, Some(ticket)));
    assert_ne!(stream.challenges.try_recv().unwrap(), challenge);
    answers(&rig, &machine, challenge).unwrap();
    denied(&rig.boots(&machine, HOME, &first, volume, Some(ticket)));
}

#[test]
fn a_machine_whose_hour_is_used_up_still_answers() {
    let mut rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    rig.service = service(Box::new(rig.store.clone()), &rig.clock).with_entries_per_hour(5);
    let mut stream = life_stream(&rig, &machine);
    for _ in 0..4 {
        let wrong = answers(&rig, &machine, Bytes([0; 32]));
        assert!(matches!(wrong, Err(ServiceError::Invalid(_))));
    }
    let counted = answers(&rig, &machine, Bytes([0; 32]));
    assert!(matches!(counted, Err(ServiceError::TooMany { .. })));
    let copy = Boot::new();
    waits(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
    let challenge = stream.challenges.try_recv().unwrap();
    // The question is for the host key: the boot key cannot answer it.
    let identity = rig.identity(&machine.boot);
    let answer = latchkey_protocol::wire::LifeAnswer {
        version: Version::default(),
        challenge,
    };
    let stolen = rig.service.answer_life(&identity, address(HOME), &answer);
    assert!(matches!(stolen, Err(ServiceError::Refused(Refusal::Role))));
    answers(&rig, &machine, challenge).unwrap();
    denied(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
}

#[test]
fn an_open_stream_is_asked_however_long_the_boot_has_waited() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "paranoid");
    let copy = Boot::new();
    let ask = || rig.boots(&machine, HOME, &copy, volume, Some(ticket));
    for _ in 0..6 {
        ask();
        rig.pass(INTERVAL);
    }
    let (id, code) = pending(&ask());
    for person in ["alice", "bob"] {
        rig.service.approve(&id, &code, person).unwrap();
    }
    let mut stream = life_stream(&rig, &machine);
    waits(&ask());
    let challenge = stream.challenges.try_recv().unwrap();
    answers(&rig, &machine, challenge).unwrap();
    assert!(denied(&ask()).contains("this is a copy"));
}

#[test]
fn a_boot_that_went_away_begins_its_wait_anew() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    let boot = Boot::new();
    let ask = || rig.boots(&machine, HOME, &boot, volume, Some(ticket));
    waits(&ask());
    rig.pass(2 * INTERVAL + Duration::from_millis(1));
    waits(&ask());
    rig.pass(2 * INTERVAL);
    released(&ask());
}

#[test]
fn a_machine_that_had_no_time_to_come_back_is_not_gone() {
    let mut rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "fleet");
    rig.confirm(&machine, volume, ticket, Some(900)).unwrap();
    rig.restart();
    let copy = Boot::new();
    let ask = |rig: &Rig, boot: &Boot| rig.boots(&machine, HOME, boot, volume, Some(ticket));
    rig.pass(7 * INTERVAL);
    waits(&ask(&rig, &copy));
    let mut stream = life_stream(&rig, &machine);
    waits(&ask(&rig, &copy));
    let challenge = stream.challenges.try_recv().unwrap();
    answers(&rig, &machine, challenge).unwrap();
    denied(&ask(&rig, &copy));
    // Its line is cut for a moment, and then for good. It came back since the start, so nothing else is waited for.
    rig.service.close_life(&stream);
    let boot = Boot::new();
    waits(&ask(&rig, &boot));
    rig.pass(2 * INTERVAL - Duration::from_millis(1));
    waits(&ask(&rig, &boot));
    rig.pass(Duration::from_millis(1));
    released(&ask(&rig, &boot));
}
