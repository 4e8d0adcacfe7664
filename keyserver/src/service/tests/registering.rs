//! Registration, giving up, reports and status, all with the host key.

use latchkey_protocol::wire::BootReport;

use super::*;
use crate::store::{Operation, Transaction};

#[test]
fn registering_again_gives_the_same_share() {
    let mut rig = Rig::new();
    let (machine, volume, share) = rig.bound("web-1", 1);
    rig.restart();
    let (answer, boot) = rig.register(&machine, volume);
    assert_eq!(answer.generation, Generation::FIRST);
    let again = boot.open(&machine, volume, Purpose::Registration, &answer.sealed);
    assert_eq!(again, share);
    assert_eq!(
        answer.policy.as_str(),
        "released without a person to 192.0.2.7/32; to other addresses never"
    );
    assert_eq!(rig.count(Kind::Registered), 2);
}

#[test]
fn each_volume_has_a_share_of_its_own() {
    let rig = Rig::new();
    let (machine, _, first) = rig.bound("web-1", 1);
    let volume = VolumeId::random().unwrap();
    let (answer, boot) = rig.register(&machine, volume);
    let second = boot.open(&machine, volume, Purpose::Registration, &answer.sealed);
    assert_ne!(first, second);
}

#[test]
fn another_clients_volume_is_refused_like_a_stranger() {
    let rig = Rig::new();
    let (_, volume, _) = rig.bound("web-1", 1);
    let other = rig.machine("web-2", 2);
    let identity = rig.identity(&other.host);
    let result = rig
        .service
        .register(&identity, address(HOME), &Boot::new().registration(volume));
    assert!(matches!(
        result,
        Err(ServiceError::Refused(Refusal::NotOwned))
    ));
    let result = rig.service.retire(&identity, address(HOME), volume);
    assert!(matches!(
        result,
        Err(ServiceError::Refused(Refusal::NotOwned))
    ));
    let result = rig
        .service
        .retire(&identity, address(HOME), VolumeId::random().unwrap());
    assert!(matches!(
        result,
        Err(ServiceError::Refused(Refusal::Unknown))
    ));
    // The one counts as another's volume, the other as unknown.
    assert_eq!(rig.count(Kind::Refused), 2);
}

#[test]
fn the_boot_key_can_do_nothing_but_ask_for_a_release() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let (boot, home) = (rig.identity(&machine.boot), address(HOME));
    let request = Boot::new();
    let report = BootReport {
        version: Version::default(),
        request: None,
        lines: vec![],
    };
    let service = &rig.service;
    let refused = [
        service
            .register(&boot, home, &request.registration(volume))
            .err(),
        service
            .proof(&boot, home, &request.release(&[volume]))
            .err(),
        service.retire(&boot, home, volume).err(),
        service.report(&boot, home, &report).err(),
        service.status(&boot).err(),
        service
            .release(
                &rig.identity(&machine.host),
                home,
                &request.release(&[volume]),
            )
            .err(),
    ];
    for (n, error) in refused.into_iter().enumerate() {
        assert!(
            matches!(error, Some(ServiceError::Refused(Refusal::Role))),
            "{n}"
        );
    }
}

#[test]
fn a_revoked_host_key_can_do_nothing() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    // Identified before it was revoked, as a connection that is open would be.
    let host = rig.identity(&machine.host);
    rig.service.revoke(&machine.name, "test").unwrap();
    let (home, request) = (address(HOME), Boot::new());
    let service = &rig.service;
    let refused = [
        service
            .register(&host, home, &request.registration(volume))
            .err(),
        service
            .proof(&host, home, &request.release(&[volume]))
            .err(),
        service.retire(&host, home, volume).err(),
        service.status(&host).err(),
    ];
    for (n, error) in refused.into_iter().enumerate() {
        assert!(
            matches!(error, Some(ServiceError::Refused(Refusal::Revoked))),
            "{n}"
        );
    }
}

#[test]
fn a_volume_given_up_stays_given_up() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let host = rig.identity(&machine.host);
    for _ in 0..2 {
        rig.service.retire(&host, address(HOME), volume).unwrap();
    }
    assert_eq!(rig.count(Kind::Retired), 1);
    assert!(rig.store.range("share/", None, 10).unwrap().is_empty());
    let verdict = rig.verdict(&machine, HOME, &Boot::new(), volume);
    assert!(matches!(verdict, Verdict::Destroyed));
    let again = rig
        .service
        .register(&host, address(HOME), &Boot::new().registration(volume));
    assert!(matches!(again, Err(ServiceError::Destroyed)));
    assert!(rig.service.status(&host).unwrap().volumes[0].destroyed);
}

#[test]
fn status_lists_the_clients_own_volumes() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    // A name that is a prefix of another's.
    rig.bound("web-11", 2);
    let status = rig.service.status(&rig.identity(&machine.host)).unwrap();
    assert_eq!(status.volumes.len(), 1);
    assert_eq!(status.volumes[0].volume, volume);
    assert!(status.volumes[0].policy.as_str().contains(HOME));
}

#[test]
fn labels_and_reports_cannot_play_with_the_terminal() {
    let rig = Rig::new();
    let machine = rig.machine("web-1", 1);
    let host = rig.identity(&machine.host);
    let mut request = Boot::new().registration(VolumeId::random().unwrap());
    request.label = Text::cut(&format!("\x1b[2J\n{}", "x".repeat(4000)));
    rig.service
        .register(&host, address(HOME), &request)
        .unwrap();
    let report = BootReport {
        version: Version::default(),
        request: Some(RequestId::random().unwrap()),
        lines: vec![Text::cut("opened 'root'\r\nfake line"), Text::cut("in 3 s")],
    };
    rig.service.report(&host, address(HOME), &report).unwrap();
    let listing = rig.service.volumes().unwrap();
    assert!(listing[0].label.len() <= 200);
    assert!(listing[0].label.chars().all(|c| !c.is_control()));
    let last = rig.audit().pop().unwrap();
    assert_eq!(last.event.request, report.request);
    assert_eq!(last.event.text, "opened 'root'  fake line; in 3 s");
}

#[test]
fn a_client_can_register_only_so_many_volumes() {
    let rig = Rig::new();
    let machine = rig.machine("web-1", 1);
    let host = rig.identity(&machine.host);
    let register = || {
        let request = Boot::new().registration(VolumeId::random().unwrap());
        rig.service.register(&host, address(HOME), &request)
    };
    // Only the keys are counted.
    let owned = (1..registration::OWNED_LIMIT).map(|n| Operation::Put {
        key: format!("{}{n}", key::owned(&machine.name)),
        value: vec![],
    });
    let transaction = Transaction {
        compares: vec![],
        operations: owned.collect(),
    };
    rig.store.commit(&transaction).unwrap();
    register().unwrap();
    assert!(matches!(register(), Err(ServiceError::Invalid(_))));
}
