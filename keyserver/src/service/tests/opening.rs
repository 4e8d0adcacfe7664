//! Data volumes that the running system opens with its host key.

use super::*;
use crate::policy::{Preset, Reason};

/// A client with one volume that is bound for its host key, and its share.
fn bound_for(rig: &Rig, opened_by: OpenedBy) -> (Machine, VolumeId, [u8; 32]) {
    let machine = rig.machine("web-1", 1);
    let volume = VolumeId::random().unwrap();
    let boot = Boot::new();
    let mut request = boot.registration(volume);
    request.opened_by = opened_by;
    let host = rig.identity(&machine.host);
    let answer = rig.service.register(&host, address(HOME), &request);
    let sealed = answer.unwrap().sealed;
    let share = boot.open(&machine, volume, Purpose::Registration, &sealed);
    (machine, volume, share)
}

fn opens(rig: &Rig, machine: &Machine, from: &str, boot: &Boot, volume: VolumeId) -> Verdict {
    let host = rig.identity(&machine.host);
    let answer = rig
        .service
        .open(&host, address(from), &boot.release(&[volume]));
    answer.unwrap().verdicts.remove(0).verdict
}

#[test]
fn the_host_key_opens_what_was_bound_for_it_and_the_audit_says_so() {
    let rig = Rig::new();
    let (machine, volume, share) = bound_for(&rig, OpenedBy::HostKey);
    let boot = Boot::new();
    let verdict = opens(&rig, &machine, HOME, &boot, volume);
    let opened = boot.open(&machine, volume, Purpose::Opening, released(&verdict));
    assert_eq!(opened, share);
    for (kind, count) in [(Kind::Opened, 1), (Kind::Released, 0), (Kind::Proved, 0)] {
        assert_eq!(rig.count(kind), count, "{kind:?}");
    }
    denied(&opens(&rig, &machine, AWAY, &Boot::new(), volume));
    assert_eq!(
        denied(&rig.verdict(&machine, HOME, &Boot::new(), volume)),
        Reason::OtherKey.public()
    );
}

#[test]
fn volumes_that_wait_to_be_opened_use_up_no_hour_but_their_own() {
    let mut rig = Rig::new();
    let (machine, volume, _) = bound_for(&rig, OpenedBy::HostKey);
    rig.set_policy(volume, r#"{"rule":"ask"}"#);
    rig.service = service(Box::new(rig.store.clone()), &rig.clock).with_entries_per_hour(5);
    let boot = Boot::new();
    for _ in 0..5 {
        pending(&opens(&rig, &machine, HOME, &boot, volume));
    }
    let host = rig.identity(&machine.host);
    let opens = |identity: &Identity| {
        rig.service
            .open(identity, address(HOME), &boot.release(&[volume]))
    };
    assert!(matches!(opens(&host), Err(ServiceError::TooMany { .. })));
    rig.heartbeat(&machine, None, None);
    drop(rig.service.open_life(&host, address(HOME)).unwrap());
    // Nor does a copy of the boot key use up theirs.
    let key = rig.identity(&machine.boot);
    assert!(matches!(opens(&key), Err(ServiceError::Refused(_))));
}

#[test]
fn neither_key_does_the_work_of_the_other() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    assert_eq!(
        denied(&opens(&rig, &machine, HOME, &Boot::new(), volume)),
        Reason::OtherKey.public()
    );
    let boot = rig.identity(&machine.boot);
    let refused = rig
        .service
        .open(&boot, address(HOME), &Boot::new().release(&[volume]));
    assert!(matches!(refused, Err(ServiceError::Refused(Refusal::Role))));
}

#[test]
fn a_machine_that_runs_is_not_taken_for_its_own_copy() {
    let rig = Rig::new();
    let (machine, volume, _) = bound_for(&rig, OpenedBy::HostKey);
    let stream = booting::life_stream(&rig, &machine);
    let ticket = rig.move_ticket(&machine, volume);
    let preset = Preset::named("home-server").unwrap().policy();
    rig.service.set_policy(&volume, &preset, "root").unwrap();
    let host = rig.identity(&machine.host);
    let asks = |ticket| {
        let mut request = Boot::new().release(&[volume]);
        request.tickets = vec![VolumeTicket { volume, ticket }];
        let answer = rig.service.open(&host, address(HOME), &request);
        answer.unwrap().verdicts.remove(0).verdict
    };
    released(&asks(ticket));
    assert!(rig.alarms().is_empty());
    // A data disk that was copied shows its old ticket, whoever asks.
    rig.move_ticket(&machine, volume);
    pending(&asks(ticket));
    assert_eq!(rig.alarms().len(), 1);
    drop(stream);
}

#[test]
fn an_opening_uses_no_announcement_up() {
    let rig = Rig::new();
    let (machine, data, _) = bound_for(&rig, OpenedBy::HostKey);
    let root = VolumeId::random().unwrap();
    rig.register(&machine, root);
    let data_ticket = rig.move_ticket(&machine, data);
    let ticket = rig.move_ticket(&machine, root);
    let fleet = Preset::named("fleet").unwrap().policy();
    for volume in [data, root] {
        rig.service.set_policy(&volume, &fleet, "root").unwrap();
    }
    rig.confirm(&machine, root, ticket, Some(600)).unwrap();
    let mut request = Boot::new().release(&[data]);
    request.tickets = vec![VolumeTicket {
        volume: data,
        ticket: data_ticket,
    }];
    let host = rig.identity(&machine.host);
    let answer = rig.service.open(&host, address(HOME), &request).unwrap();
    released(&answer.verdicts[0].verdict);
    released(&rig.boots(&machine, HOME, &Boot::new(), root, Some(ticket)));
}

#[test]
fn a_copy_of_an_open_root_gets_no_share_past_the_policy() {
    let rig = Rig::new();
    let (machine, volume, _) = bound_for(&rig, OpenedBy::ExposedHostKey);
    rig.pass(HOUR);
    // All that is in the copy: the host key.
    denied(&opens(&rig, &machine, AWAY, &Boot::new(), volume));
    let host = rig.identity(&machine.host);
    let proof = rig
        .service
        .proof(&host, address(AWAY), &Boot::new().release(&[volume]));
    assert_eq!(
        denied(&proof.unwrap().verdicts[0].verdict),
        Reason::Bound.public()
    );
    let again = rig
        .service
        .register(&host, address(AWAY), &Boot::new().registration(volume));
    assert!(matches!(again, Err(ServiceError::Refused(Refusal::Bound))));
    assert_eq!(rig.count(Kind::Proved) + rig.count(Kind::Opened), 0);
}

#[test]
fn a_copy_of_an_open_root_has_no_way_past_the_policy_of_what_the_initramfs_opens() {
    let rig = Rig::new();
    let (machine, volume, share) = bound_for(&rig, OpenedBy::ExposedBootKey);
    rig.pass(HOUR);
    let boot = Boot::new();
    let verdict = rig.verdict(&machine, HOME, &boot, volume);
    let booted = boot.open(&machine, volume, Purpose::Release, released(&verdict));
    assert_eq!(booted, share, "the machine itself boots on");
    rig.set_policy(volume, r#"{"rule":"deny"}"#);
    rig.service.lock(&machine.name, "alice").unwrap();
    let host = rig.identity(&machine.host);
    let proves = || {
        let proof = rig
            .service
            .proof(&host, address(HOME), &Boot::new().release(&[volume]));
        proof.unwrap().verdicts.remove(0).verdict
    };
    assert_eq!(denied(&proves()), Reason::Bound.public());
    let again = rig
        .service
        .register(&host, address(HOME), &Boot::new().registration(volume));
    assert!(matches!(again, Err(ServiceError::Refused(Refusal::Bound))));
    // A rotation makes a share that nothing needs yet, and leaves the other one where it was.
    let asked = latchkey_protocol::wire::RotationRequest {
        version: Version::default(),
        request: Boot::new().request,
        ephemeral_key: Boot::new().pair.public(),
        volume,
    };
    let next = rig.service.rotate(&host, address(HOME), &asked).unwrap();
    assert_eq!(next.generation, Generation(2));
    assert_eq!(denied(&proves()), Reason::Bound.public());
    assert_eq!(rig.count(Kind::Proved), 0);
}

#[test]
fn a_person_is_asked_a_lock_holds_and_a_revoked_machine_hears_why() {
    let rig = Rig::new();
    let (machine, volume, _) = bound_for(&rig, OpenedBy::HostKey);
    rig.set_policy(volume, r#"{"rule":"ask"}"#);
    let boot = Boot::new();
    let (id, code) = pending(&opens(&rig, &machine, HOME, &boot, volume));
    rig.service.approve(&id, &code, "alice").unwrap();
    released(&opens(&rig, &machine, HOME, &boot, volume));
    rig.service.lock(&machine.name, "alice").unwrap();
    assert_eq!(
        denied(&opens(&rig, &machine, HOME, &boot, volume)),
        Reason::Locked.public()
    );
    rig.service.revoke(&machine.name, "alice").unwrap();
    assert_eq!(
        denied(&opens(&rig, &machine, HOME, &boot, volume)),
        Reason::Revoked.public()
    );
}
