//! What holds when the store fails at any single commit.

use super::*;
use crate::store::memory::Fault;

/// Everything that one machine's life has, each step tried until it succeeds, as its callers do.
fn story(rig: &mut Rig, mut before: impl FnMut(&Rig)) -> (usize, Vec<[u8; 32]>) {
    let mut failures = 0;
    let mut step = |rig: &mut Rig, work: &dyn Fn(&Rig) -> bool| {
        for _ in 0..4 {
            before(rig);
            if work(rig) {
                return;
            }
            failures += 1;
            rig.restart();
        }
        panic!("a step never succeeded");
    };
    let name: ClientName = "web-1".parse().unwrap();
    let machine = Machine {
        name: name.clone(),
        boot: key_number(2),
        host: key_number(3),
    };
    let secret = std::cell::RefCell::new(None);
    let shares = std::cell::RefCell::new(Vec::new());
    let volume = VolumeId::random().unwrap();
    step(rig, &|rig| {
        let invitation = rig.service.invite(&name, HOUR, "test");
        let made = invitation.is_ok();
        *secret.borrow_mut() = invitation.ok().map(|invitation| invitation.secret);
        made
    });
    let secret = secret.into_inner().unwrap();
    step(rig, &|rig| rig.join(&secret, &machine).is_ok());
    for _ in 0..2 {
        step(rig, &|rig| {
            let boot = Boot::new();
            let host = rig.identity(&machine.host);
            let request = boot.registration(volume);
            let Ok(answer) = rig.service.register(&host, address(HOME), &request) else {
                return false;
            };
            let share = boot.open(&machine, volume, Purpose::Registration, &answer.sealed);
            shares.borrow_mut().push(share);
            true
        });
    }
    let ask: Policy = serde_json::from_str(r#"{"rule":"ask"}"#).unwrap();
    step(rig, &|rig| {
        rig.service.set_policy(&volume, &ask, "test").is_ok()
    });
    let boot = Boot::new();
    step(rig, &|rig| {
        rig.release(&machine, HOME, &boot, &[volume]).is_ok()
    });
    step(rig, &|rig| {
        let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
        match rig.service.approve(&id, &code, "test") {
            Ok(_) => true,
            // Lost after it was done: the session is approved, which is what was wanted.
            Err(_) => {
                rig.service.requests().unwrap()[0].state == crate::records::SessionState::Approved
            }
        }
    });
    step(rig, &|rig| {
        let Ok(answer) = rig.release(&machine, HOME, &boot, &[volume]) else {
            return false;
        };
        let sealed = released(&answer.verdicts[0].verdict);
        shares
            .borrow_mut()
            .push(boot.open(&machine, volume, Purpose::Release, sealed));
        true
    });
    step(rig, &|rig| rig.service.destroy(&volume, "test").is_ok());
    step(rig, &|rig| rig.service.revoke(&name, "test").is_ok());
    (failures, shares.into_inner())
}

#[test]
fn any_commit_may_fail_once_and_nothing_is_lost() {
    let mut calm = Rig::new();
    story(&mut calm, |_| ());
    let commits = calm.store.commits();
    for fault in [Fault::Before, Fault::After, Fault::Conflict] {
        let mut failed = 0;
        for at in 1..commits {
            let mut rig = Rig::new();
            rig.store.inject(at, fault);
            let (failures, shares) = story(&mut rig, |_| ());
            failed += failures;
            let name = format!("{fault:?} at {at}");
            // One share, however often the answer was lost.
            assert!(shares.iter().all(|share| *share == shares[0]), "{name}");
            assert!(
                rig.store.range("share/", None, 10).unwrap().is_empty(),
                "{name}"
            );
            // Each released share is in the audit, which is whole.
            assert!(rig.count(Kind::Released) >= 1, "{name}");
            assert!(
                rig.count(Kind::Destroyed) == 1 && rig.count(Kind::Revoked) == 1,
                "{name}"
            );
        }
        match fault {
            Fault::Conflict => assert_eq!(failed, 0),
            Fault::Before | Fault::After => assert!(failed > 0),
        }
    }
}

#[test]
fn no_share_leaves_when_its_audit_entry_was_not_committed() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let before = rig.audit().len();
    rig.store.inject(1, Fault::Before);
    let error = rig
        .release(&machine, HOME, &Boot::new(), &[volume])
        .unwrap_err();
    assert!(matches!(error, ServiceError::Record(_)));
    assert_eq!(rig.audit().len(), before);
    // Committed but not confirmed: no share either, and the entry stands.
    rig.store.inject(1, Fault::After);
    assert!(
        rig.release(&machine, HOME, &Boot::new(), &[volume])
            .is_err()
    );
    assert_eq!(rig.audit().len(), before + 1);
}

#[test]
fn a_damaged_record_is_named_and_nothing_panics() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let keys: Vec<String> = rig
        .store
        .range("", None, 1000)
        .unwrap()
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    let identity = rig.identity(&machine.boot);
    for key in keys {
        let whole = rig.store.get(&key).unwrap().unwrap().value;
        for at in (0..whole.len()).step_by(13) {
            rig.store.tamper(&key, |value| value[at] ^= 0x10);
            let request = Boot::new().release(&[volume]);
            match rig.service.release(&identity, address(HOME), &request) {
                // A record that a release does not need.
                Ok(answer) => {
                    let needed = ["share/", "volume/", "client/", "audit/head"];
                    assert!(
                        !needed.iter().any(|prefix| key.starts_with(prefix)),
                        "{key} at {at}"
                    );
                    released(&answer.verdicts[0].verdict);
                }
                Err(ServiceError::Record(RecordError::Damaged(named))) => assert_eq!(named, key),
                Err(error) => panic!("{key}: {error}"),
            }
            rig.store.tamper(&key, |value| value.clone_from(&whole));
        }
    }
    rig.service.verify_audit().unwrap();
}

#[test]
fn shares_of_two_volumes_cannot_be_swapped_in_the_store() {
    let rig = Rig::new();
    let (machine, first, _) = rig.bound("web-1", 1);
    let (_, second, _) = rig.bound("web-2", 2);
    let at = |volume| key::share(&volume, Generation::FIRST);
    let foreign = rig.store.get(&at(second)).unwrap().unwrap().value;
    rig.store.tamper(&at(first), |value| *value = foreign);
    let error = rig
        .release(&machine, HOME, &Boot::new(), &[first])
        .unwrap_err();
    assert!(matches!(
        error,
        ServiceError::Record(RecordError::Damaged(_))
    ));
}

#[test]
fn an_alarm_that_could_not_be_written_is_written_the_next_time() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let old = rig.move_ticket(&machine, volume);
    rig.move_ticket(&machine, volume);
    rig.move_ticket(&machine, volume);
    rig.set_policy(
        volume,
        r#"{"rule":"allow","ticket":true,"otherwise":"deny"}"#,
    );
    let request = || {
        let mut request = Boot::new().release(&[volume]);
        request.tickets = vec![VolumeTicket {
            volume,
            ticket: old,
        }];
        request
    };
    let identity = rig.identity(&machine.boot);
    let away = address(AWAY);
    rig.store.inject(1, Fault::Before);
    assert!(rig.service.release(&identity, away, &request()).is_err());
    assert!(rig.alarms().is_empty());
    rig.service.release(&identity, away, &request()).unwrap();
    let alarms = rig.alarms();
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    assert!(
        alarms[0].ends_with("; 1 more like it were counted before"),
        "{alarms:?}"
    );
    // It is one kind again, until the copy asks from elsewhere.
    rig.service.release(&identity, away, &request()).unwrap();
    assert_eq!(rig.alarms().len(), 1);
    let elsewhere = address("203.0.113.9");
    rig.service
        .release(&identity, elsewhere, &request())
        .unwrap();
    assert_eq!(rig.alarms().len(), 2);
}
