//! A new share beside the current one, and the end of either.

use latchkey_protocol::wire::{RotationEnd, RotationRequest};

use super::*;

/// The share of one generation, as the boot key gets it.
fn share(rig: &Rig, machine: &Machine, volume: VolumeId, generation: u32) -> Option<[u8; 32]> {
    let (boot, generation) = (Boot::new(), Generation(generation));
    let mut request = boot.release(&[volume]);
    request.volumes[0].generation = generation;
    let identity = rig.identity(&machine.boot);
    let answer = rig.service.release(&identity, address(HOME), &request);
    match answer.unwrap().verdicts.remove(0).verdict {
        Verdict::Released { sealed, .. } => {
            Some(boot.open_of(machine, volume, Purpose::Release, generation, &sealed))
        }
        Verdict::Denied { .. } => None,
        other => panic!("{other:?}"),
    }
}

fn request(boot: &Boot, volume: VolumeId) -> RotationRequest {
    RotationRequest {
        version: Version::default(),
        request: boot.request,
        ephemeral_key: boot.pair.public(),
        volume,
    }
}

/// The next generation and its share.
fn rotate(rig: &Rig, machine: &Machine, volume: VolumeId) -> (u32, [u8; 32]) {
    let boot = Boot::new();
    let host = rig.identity(&machine.host);
    let answer = rig
        .service
        .rotate(&host, address(HOME), &request(&boot, volume))
        .unwrap();
    let purpose = Purpose::Registration;
    let share = boot.open_of(machine, volume, purpose, answer.generation, &answer.sealed);
    (answer.generation.0, share)
}

fn keep(
    rig: &Rig,
    machine: &Machine,
    volume: VolumeId,
    generation: u32,
) -> Result<(), ServiceError> {
    let end = RotationEnd {
        version: Version::default(),
        volume,
        keep: Generation(generation),
    };
    let host = rig.identity(&machine.host);
    rig.service.end_rotation(&host, address(HOME), &end)
}

#[test]
fn both_shares_are_released_until_the_machine_says_which_one_stays() {
    let rig = Rig::new();
    let (machine, volume, old) = rig.bound("web-1", 1);
    let (generation, new) = rotate(&rig, &machine, volume);
    assert_eq!(generation, 2);
    assert_ne!(new, old);
    assert_eq!(rotate(&rig, &machine, volume), (2, new), "the same again");
    assert_eq!(share(&rig, &machine, volume, 1), Some(old));
    assert_eq!(share(&rig, &machine, volume, 2), Some(new));
    assert_eq!(share(&rig, &machine, volume, 3), None);

    for _ in 0..2 {
        keep(&rig, &machine, volume, 2).unwrap();
    }
    assert_eq!(rig.count(Kind::Rotated), 1);
    assert_eq!(share(&rig, &machine, volume, 1), None);
    assert_eq!(share(&rig, &machine, volume, 2), Some(new));
    assert_eq!(rig.store.range("share/", None, 10).unwrap().len(), 1);
    assert!(matches!(
        keep(&rig, &machine, volume, 1),
        Err(ServiceError::Invalid(_))
    ));
    assert_eq!(rotate(&rig, &machine, volume).0, 3);
}

#[test]
fn a_rotation_that_is_given_up_leaves_the_old_share_alone() {
    let rig = Rig::new();
    let (machine, volume, old) = rig.bound("web-1", 1);
    let (_, given_up) = rotate(&rig, &machine, volume);
    keep(&rig, &machine, volume, 1).unwrap();
    assert_eq!(share(&rig, &machine, volume, 1), Some(old));
    assert_eq!(share(&rig, &machine, volume, 2), None);
    let (generation, new) = rotate(&rig, &machine, volume);
    assert_eq!(generation, 2);
    assert_ne!(new, given_up, "it was deleted");
    // Whatever is left of either goes with the volume.
    let host = rig.identity(&machine.host);
    rig.service.retire(&host, address(HOME), volume).unwrap();
    assert!(rig.store.range("share/", None, 10).unwrap().is_empty());
    let boot = Boot::new();
    let gone = rig
        .service
        .rotate(&host, address(HOME), &request(&boot, volume));
    assert!(matches!(gone, Err(ServiceError::Destroyed)));
    assert!(matches!(
        keep(&rig, &machine, volume, 2),
        Err(ServiceError::Destroyed)
    ));
}

#[test]
fn only_the_host_key_of_the_volumes_own_machine_rotates_it() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let (other, _, _) = rig.bound("web-2", 2);
    let unknown = VolumeId::random().unwrap();
    for (key, volume, expected) in [
        (other.host, volume, Refusal::NotOwned),
        (machine.boot, volume, Refusal::Role),
        (machine.host, unknown, Refusal::Unknown),
    ] {
        let identity = rig.identity(&key);
        let refused = |result: Result<(), ServiceError>| match result {
            Err(ServiceError::Refused(refusal)) => assert_eq!(refusal, expected),
            other => panic!("{other:?}"),
        };
        let asked = rig
            .service
            .rotate(&identity, address(HOME), &request(&Boot::new(), volume));
        refused(asked.map(drop));
        let end = RotationEnd {
            version: Version::default(),
            volume,
            keep: Generation(2),
        };
        refused(rig.service.end_rotation(&identity, address(HOME), &end));
    }
    assert_eq!(rig.store.range("share/", None, 10).unwrap().len(), 2);
}

#[test]
fn of_a_data_volume_only_the_new_share_is_given_for_a_proof() {
    let rig = Rig::new();
    let machine = rig.machine("web-1", 1);
    let (volume, boot) = (VolumeId::random().unwrap(), Boot::new());
    let mut registration = boot.registration(volume);
    registration.opened_by = OpenedBy::ExposedHostKey;
    let host = rig.identity(&machine.host);
    let registered = rig.service.register(&host, address(HOME), &registration);
    registered.unwrap();
    rig.pass(2 * HOUR);
    rotate(&rig, &machine, volume);
    let proof = |generation| {
        let mut request = Boot::new().release(&[volume]);
        request.volumes[0].generation = Generation(generation);
        let answer = rig.service.proof(&host, address(HOME), &request).unwrap();
        matches!(answer.verdicts[0].verdict, Verdict::Released { .. })
    };
    // Else a copy of the disk would get by a rotation what its policy refuses.
    assert_eq!([proof(1), proof(2)], [false, true]);
    keep(&rig, &machine, volume, 2).unwrap();
    assert!(!proof(2), "nothing is left to be proved");
}

#[test]
fn a_store_that_was_put_back_makes_no_share_and_deletes_none() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let head = rig.heartbeat(&machine, None, None).head.unwrap();
    let yesterday = rig.store.copy();
    rotate(&rig, &machine, volume);
    let newer = rig.heartbeat(&machine, Some(head), None).head;
    rig.store = yesterday.copy();
    rig.restart();
    assert_eq!(rig.heartbeat(&machine, newer, None).head, None);
    let host = rig.identity(&machine.host);
    let refused = rig
        .service
        .rotate(&host, address(HOME), &request(&Boot::new(), volume));
    assert!(matches!(refused, Err(ServiceError::PutBack)));
    let refused = keep(&rig, &machine, volume, 1);
    assert!(matches!(refused, Err(ServiceError::PutBack)));
    assert_eq!(rig.store.range("share/", None, 10).unwrap().len(), 1);
}
