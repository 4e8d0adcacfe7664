//! Releases and proofs.

use super::*;

#[test]
fn the_share_of_registration_is_released_at_home() {
    let mut rig = Rig::new();
    let (machine, volume, share) = rig.bound("web-1", 1);
    rig.restart();
    let boot = Boot::new();
    for from in [HOME, "::ffff:192.0.2.7"] {
        let verdict = rig.verdict(&machine, from, &boot, volume);
        assert_eq!(
            boot.open(&machine, volume, Purpose::Release, released(&verdict)),
            share
        );
    }
    let last = rig.audit().pop().unwrap();
    assert_eq!(last.event.kind, Kind::Released);
    assert_eq!(last.event.client, Some(machine.name));
    assert_eq!(last.event.volume, Some(volume));
    assert_eq!(last.event.request, Some(boot.request));
    assert_eq!(last.event.peer, Some(address(HOME)));
    assert!(
        last.event.text.contains("kernel '6.1.0-40-amd64'"),
        "{}",
        last.event.text
    );
}

#[test]
fn another_address_is_denied_with_the_reason() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let verdict = rig.verdict(&machine, AWAY, &Boot::new(), volume);
    assert_eq!(
        denied(&verdict),
        "this address is not allowed by the volume's policy"
    );
    assert_eq!(rig.count(Kind::Released), 0);
    assert_eq!(rig.count(Kind::Refused), 1);
}

#[test]
fn other_volumes_look_unknown_and_the_audit_knows_why() {
    let rig = Rig::new();
    let (machine, own, _) = rig.bound("web-1", 1);
    let (_, foreign, _) = rig.bound("web-2", 2);
    let missing = VolumeId::random().unwrap();
    let answer = rig
        .release(&machine, HOME, &Boot::new(), &[foreign, own, missing])
        .unwrap();
    let verdicts: Vec<_> = answer.verdicts.iter().map(|v| &v.verdict).collect();
    assert_eq!(denied(verdicts[0]), "unknown volume");
    released(verdicts[1]);
    assert_eq!(denied(verdicts[2]), "unknown volume");
    let texts: Vec<String> = rig
        .audit()
        .into_iter()
        .filter(|entry| entry.event.kind == Kind::Refused)
        .map(|entry| entry.event.text)
        .collect();
    assert_eq!(texts.len(), 2);
    assert!(texts[0].contains("belongs to another client"), "{texts:?}");
    assert!(texts[1].contains("no such volume"), "{texts:?}");
}

#[test]
fn revoked_and_destroyed_are_told_to_the_holder() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    // Identified before, as on a connection that is open.
    let identity = rig.identity(&machine.boot);
    let ask = || {
        let request = Boot::new().release(&[volume]);
        let mut answer = rig
            .service
            .release(&identity, address(HOME), &request)
            .unwrap();
        answer.verdicts.remove(0).verdict
    };
    released(&ask());
    rig.service.revoke(&machine.name, "test").unwrap();
    assert_eq!(denied(&ask()), "this client was revoked");

    let (machine, volume, _) = rig.bound("web-2", 2);
    rig.service.destroy(&volume, "test").unwrap();
    let verdict = rig.verdict(&machine, HOME, &Boot::new(), volume);
    assert!(matches!(verdict, Verdict::Destroyed));
}

#[test]
fn a_wrong_generation_is_told() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let mut request = Boot::new().release(&[volume]);
    request.volumes[0].generation = Generation(2);
    let identity = rig.identity(&machine.boot);
    let answer = rig
        .service
        .release(&identity, address(HOME), &request)
        .unwrap();
    assert_eq!(
        denied(&answer.verdicts[0].verdict),
        "the envelope needs the share of generation 2, the current one is 1"
    );
}

#[test]
fn a_key_of_low_order_gets_nothing() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let mut request = Boot::new().release(&[volume]);
    request.ephemeral_key = Bytes([0; 32]);
    let identity = rig.identity(&machine.boot);
    let result = rig.service.release(&identity, address(HOME), &request);
    assert!(matches!(result, Err(ServiceError::Invalid(_))));
    assert_eq!(rig.count(Kind::Released), 0);
}

#[test]
fn volumes_are_1_to_64_and_distinct() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let many: Vec<VolumeId> = (0..65).map(|_| VolumeId::random().unwrap()).collect();
    for bad in [&[][..], &[volume, volume], &many] {
        let result = rig.release(&machine, HOME, &Boot::new(), bad);
        assert!(
            matches!(result, Err(ServiceError::Invalid(_))),
            "{}",
            bad.len()
        );
    }
    let answer = rig
        .release(&machine, HOME, &Boot::new(), &many[..64])
        .unwrap();
    assert_eq!(answer.verdicts.len(), 64);
}

#[test]
fn sixty_four_volumes_are_released_at_once() {
    let rig = Rig::new();
    let machine = rig.machine("web-1", 1);
    let volumes: Vec<VolumeId> = (0..64)
        .map(|_| {
            let volume = VolumeId::random().unwrap();
            rig.register(&machine, volume);
            volume
        })
        .collect();
    let answer = rig.release(&machine, HOME, &Boot::new(), &volumes).unwrap();
    for verdict in &answer.verdicts {
        released(&verdict.verdict);
    }
    assert_eq!(rig.count(Kind::Released), 64);
}

#[test]
fn a_proof_is_no_boot() {
    let rig = Rig::new();
    let (machine, volume, share) = rig.bound("web-1", 1);
    rig.set_policy(volume, r#"{"rule":"deny"}"#);
    let boot = Boot::new();
    let host = rig.identity(&machine.host);
    let answer = rig
        .service
        .proof(&host, address(AWAY), &boot.release(&[volume]))
        .unwrap();
    let sealed = released(&answer.verdicts[0].verdict);
    assert_eq!(boot.open(&machine, volume, Purpose::Proof, sealed), share);
    assert_eq!((rig.count(Kind::Proved), rig.count(Kind::Released)), (1, 0));
    assert!(rig.service.requests().unwrap().is_empty());
}

#[test]
fn a_day_of_retries_is_counted_and_not_written() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let (retries, boot) = (24 * 12, Boot::new());
    for _ in 0..retries {
        rig.verdict(&machine, AWAY, &boot, volume);
        rig.pass(Duration::from_secs(300));
    }
    assert_eq!(rig.count(Kind::Refused), 24);
    rig.pass(HOUR);
    rig.service.maintain().unwrap();
    let last = rig.audit().pop().unwrap();
    assert!(
        last.event.text.contains("11 more since"),
        "{}",
        last.event.text
    );
    // Nothing is left to say.
    let before = rig.audit().len();
    rig.pass(HOUR);
    rig.service.maintain().unwrap();
    assert_eq!(rig.audit().len(), before);
}

#[test]
fn the_counts_of_a_thousand_kinds_are_written() {
    let mut rig = Rig::new();
    rig.service = service(Box::new(rig.store.clone()), &rig.clock).with_entries_per_hour(10_000);
    let refused = |client: u32| refusals::Refused {
        kind: Kind::Refused,
        client: format!("web-{client}").parse().unwrap(),
        volume: None,
        request: None,
        peer: address(HOME),
        name: "x",
        text: "x".to_owned(),
    };
    for _ in 0..2 {
        for hundred in 0..10 {
            let some = (hundred * 100..(hundred + 1) * 100).map(refused);
            rig.service.note(some.collect()).unwrap();
        }
    }
    assert_eq!(rig.count(Kind::Refused), 1000);
    rig.pass(HOUR);
    rig.service.maintain().unwrap();
    assert_eq!(rig.count(Kind::Refused), 2000);
}

#[test]
fn made_up_volumes_do_not_fill_the_audit() {
    let rig = Rig::new();
    let machine = rig.machine("web-1", 1);
    for _ in 0..5 {
        let volumes: Vec<VolumeId> = (0..64).map(|_| VolumeId::random().unwrap()).collect();
        rig.release(&machine, HOME, &Boot::new(), &volumes).unwrap();
    }
    assert_eq!(rig.count(Kind::Refused), 1);
}

#[test]
fn a_copy_that_asks_from_elsewhere_uses_up_its_own_hour_and_not_the_machines() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.service = service(Box::new(rig.store.clone()), &rig.clock).with_entries_per_hour(10);
    let asks = |from: &str| rig.release(&machine, from, &Boot::new(), &[volume]);
    for _ in 0..10 {
        asks(AWAY).unwrap();
    }
    assert!(matches!(asks(AWAY), Err(ServiceError::TooMany { .. })));
    asks(HOME).unwrap();
    // Also one with many networks does not have as many hours.
    let answered = (0..1000).filter(|number| {
        let from = format!("10.0.{}.{}", number / 250, number % 250);
        asks(&from).is_ok()
    });
    assert!(answered.count() < 100);
    asks(HOME).unwrap();
}

#[test]
fn one_client_has_an_hourly_limit() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let (other, others, _) = rig.bound("web-2", 2);
    rig.service = service(Box::new(rig.store.clone()), &rig.clock).with_entries_per_hour(10);
    for _ in 0..10 {
        released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    }
    let error = rig
        .release(&machine, HOME, &Boot::new(), &[volume])
        .unwrap_err();
    assert!(matches!(error, ServiceError::TooMany { retry_after: 3600 }));
    released(&rig.verdict(&other, HOME, &Boot::new(), others));
    rig.pass(HOUR);
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
}
