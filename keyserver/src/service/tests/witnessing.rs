//! A store that was put back is found out by what the machines have seen.

use super::*;

fn seen(rig: &Rig, machine: &Machine, head: Option<SignedHead>) -> Option<SignedHead> {
    rig.heartbeat(machine, head, None).head
}

/// Puts a copy of the store in its place.
fn put_back(rig: &mut Rig, copy: &MemoryStore) {
    rig.store = copy.copy();
    rig.restart();
}

#[test]
fn a_store_that_was_put_back_releases_nothing_until_that_is_accepted() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let head = seen(&rig, &machine, None).unwrap();
    let yesterday = rig.store.copy();
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let newer = seen(&rig, &machine, Some(head)).unwrap();
    assert!(newer.sequence > head.sequence && newer.epoch == head.epoch);
    assert_eq!(rig.service.put_back().unwrap(), None);

    put_back(&mut rig, &yesterday);
    // Nobody has told yet: that is what the threat model says.
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    assert_eq!(seen(&rig, &machine, Some(newer)), None);
    for _ in 0..2 {
        let verdict = rig.verdict(&machine, HOME, &Boot::new(), volume);
        assert!(denied(&verdict).contains("was put back"));
        assert_eq!(seen(&rig, &machine, Some(newer)), None);
        rig.restart();
    }
    assert_eq!(rig.alarms().len(), 1, "{:?}", rig.alarms());

    for bad in ["", "  \n"] {
        let refused = rig.service.accept_rollback(bad, "root");
        assert!(matches!(refused, Err(AdminError::Reason)));
    }
    let lost = rig.service.accept_rollback("disk failed", "root").unwrap();
    assert_eq!(
        (lost.shown, lost.client),
        (newer.sequence, machine.name.clone())
    );
    assert_eq!(rig.count(Kind::Accepted), 1);
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    // What was lost is known to be lost now, whoever shows it.
    let after = seen(&rig, &machine, Some(newer)).unwrap();
    assert_ne!(after.epoch, newer.epoch);
    assert!(seen(&rig, &machine, Some(head)).is_some());
    let again = rig.service.accept_rollback("x", "root");
    assert!(matches!(again, Err(AdminError::NotPutBack)));

    // And put back once more, beyond the acceptance.
    put_back(&mut rig, &yesterday);
    assert_eq!(seen(&rig, &machine, Some(after)), None);
    denied(&rig.verdict(&machine, HOME, &Boot::new(), volume));
}

#[test]
fn from_a_store_that_was_put_back_the_running_machine_gets_no_share_either() {
    let mut rig = Rig::new();
    let (machine, volume, share) = rig.bound("web-1", 1);
    let host = rig.identity(&machine.host);
    let proof = |rig: &Rig, boot: &Boot| {
        let request = boot.release(&[volume]);
        let answer = rig.service.proof(&host, address(HOME), &request);
        answer.unwrap().verdicts.remove(0).verdict
    };
    let register = |rig: &Rig, volume| {
        let request = Boot::new().registration(volume);
        rig.service.register(&host, address(HOME), &request)
    };
    seen(&rig, &machine, None);
    let yesterday = rig.store.copy();
    released(&proof(&rig, &Boot::new()));
    let newer = seen(&rig, &machine, None);
    put_back(&mut rig, &yesterday);
    seen(&rig, &machine, newer);

    let (proved, registered) = (rig.count(Kind::Proved), rig.count(Kind::Registered));
    assert!(denied(&proof(&rig, &Boot::new())).contains("was put back"));
    for volume in [volume, VolumeId::random().unwrap()] {
        let refused = register(&rig, volume);
        assert!(matches!(refused, Err(ServiceError::PutBack)), "{refused:?}");
    }
    assert_eq!(rig.service.volumes().unwrap().len(), 1, "nothing was made");
    assert_eq!(
        (rig.count(Kind::Proved), rig.count(Kind::Registered)),
        (proved, registered)
    );
    rig.service.accept_rollback("disk failed", "root").unwrap();
    let boot = Boot::new();
    let sealed = *released(&proof(&rig, &boot));
    assert_eq!(boot.open(&machine, volume, Purpose::Proof, &sealed), share);
    register(&rig, VolumeId::random().unwrap()).unwrap();
}

#[test]
fn a_store_from_before_the_first_heartbeat_is_found_out_too() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let before = rig.store.copy();
    let first = rig.heartbeat(&machine, None, None);
    put_back(&mut rig, &before);
    let again = rig.heartbeat(&machine, first.head, None);
    // The machine, which knows the key, takes the next head once the loss was accepted.
    assert_eq!((again.head, again.head_key), (None, first.head_key));
    let verdict = rig.verdict(&machine, HOME, &Boot::new(), volume);
    assert!(denied(&verdict).contains("was put back"));
    rig.service.accept_rollback("disk failed", "root").unwrap();
    assert!(seen(&rig, &machine, first.head).is_some());
}

#[test]
fn a_start_makes_the_witness_and_a_later_one_leaves_it() {
    let rig = Rig::new();
    let witness = || {
        rig.service
            .records
            .read::<witness::Witness>(key::WITNESS)
            .unwrap()
    };
    assert_eq!(witness(), None);
    rig.service.prepare_witness().unwrap();
    let made = witness();
    assert!(made.is_some());
    rig.service.prepare_witness().unwrap();
    assert_eq!(witness(), made);
}

#[test]
fn another_entry_at_the_same_place_gives_it_away() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    seen(&rig, &machine, None);
    let yesterday = rig.store.copy();
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let newer = seen(&rig, &machine, None).unwrap();
    put_back(&mut rig, &yesterday);
    // As many entries as before, and more, but others.
    for _ in 0..5 {
        released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    }
    assert_eq!(seen(&rig, &machine, Some(newer)), None);
}

#[test]
fn what_the_server_never_signed_says_nothing() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let head = seen(&rig, &machine, None).unwrap();
    type Forge = fn(&mut SignedHead);
    let forgeries: [Forge; 4] = [
        |head| head.sequence += 100,
        |head| head.hash = Bytes([0; 32]),
        |head| head.epoch = Bytes([0; 16]),
        |head| head.signature = Bytes([0; 64]),
    ];
    for forge in forgeries {
        let mut forged = head;
        forge(&mut forged);
        assert!(seen(&rig, &machine, Some(forged)).is_some());
    }
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    assert!(rig.alarms()[0].contains("never signed"));
}

#[test]
fn heads_are_signed_with_a_key_that_stays() {
    let mut rig = Rig::new();
    let (machine, _, _) = rig.bound("web-1", 1);
    let first = rig.heartbeat(&machine, None, None);
    rig.restart();
    let second = rig.heartbeat(&machine, first.head, None);
    assert_eq!(first.head_key, second.head_key);
    let head = second.head.unwrap();
    let message = SignedHead::signed_bytes(&server_id(), &head.epoch, head.sequence, &head.hash);
    let ed25519 = crate::tls::provider()
        .signature_verification_algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == rustls::SignatureScheme::ED25519)
        .map(|(_, algorithms)| algorithms[0])
        .unwrap();
    ed25519
        .verify_signature(&second.head_key.0, &message, &head.signature.0)
        .unwrap();
}
