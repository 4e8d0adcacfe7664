//! Invitations and joining.

use super::*;

fn invited(rig: &Rig, name: &str) -> (Bytes<32>, Machine) {
    let name: ClientName = name.parse().unwrap();
    let invitation = rig.service.invite(&name, HOUR, "test").unwrap();
    let machine = Machine {
        name,
        boot: key_number(100),
        host: key_number(101),
    };
    (invitation.secret, machine)
}

#[test]
fn both_keys_are_known_after_joining_each_in_its_role() {
    let rig = Rig::new();
    let (secret, machine) = invited(&rig, "web-1");
    assert!(rig.service.identify(&machine.boot).unwrap().is_none());
    assert_eq!(rig.join(&secret, &machine).unwrap(), machine.name);
    let (boot, host) = (rig.identity(&machine.boot), rig.identity(&machine.host));
    assert_eq!((boot.role(), host.role()), (Role::Boot, Role::Host));
    assert_eq!(
        (boot.client(), host.client()),
        (&machine.name, &machine.name)
    );
    assert!(!boot.is_revoked() && !host.is_revoked());
    assert_eq!(rig.kinds(), [Kind::Invited, Kind::Joined]);
}

#[test]
fn the_same_keys_may_join_again_until_the_invitation_ends() {
    let mut rig = Rig::new();
    let (secret, machine) = invited(&rig, "web-1");
    for _ in 0..3 {
        rig.join(&secret, &machine).unwrap();
        rig.restart();
    }
    assert_eq!(rig.count(Kind::Joined), 1);
    rig.pass(HOUR);
    assert!(matches!(
        rig.join(&secret, &machine),
        Err(JoinError::Expired(_))
    ));
}

#[test]
fn other_keys_with_a_used_token_are_refused_and_alarmed() {
    let rig = Rig::new();
    let (secret, machine) = invited(&rig, "web-1");
    rig.join(&secret, &machine).unwrap();
    let changes: [fn(&mut Machine); 3] = [
        |thief| thief.boot = key_number(102),
        |thief| thief.host = key_number(103),
        |thief| std::mem::swap(&mut thief.boot, &mut thief.host),
    ];
    for change in changes {
        let mut thief = machine.clone();
        change(&mut thief);
        assert!(matches!(rig.join(&secret, &thief), Err(JoinError::Used(_))));
    }
    // One alarm, the rest is counted.
    assert_eq!(rig.count(Kind::Alarm), 1);
    assert!(rig.service.identify(&key_number(102)).unwrap().is_none());
    rig.pass(HOUR);
    let mut late = machine.clone();
    late.boot = key_number(104);
    assert!(matches!(rig.join(&secret, &late), Err(JoinError::Used(_))));
    assert_eq!(rig.count(Kind::Alarm), 2);
}

#[test]
fn tokens_that_are_unknown_expired_or_withdrawn_are_refused() {
    let rig = Rig::new();
    let (secret, machine) = invited(&rig, "web-1");
    let unknown = rig.join(&Bytes([0; 32]), &machine).unwrap_err();
    assert_eq!(unknown.to_string(), "refused");

    let newer = rig.service.invite(&machine.name, HOUR, "test").unwrap();
    assert!(matches!(
        rig.join(&secret, &machine),
        Err(JoinError::Withdrawn(_))
    ));
    rig.pass(HOUR);
    assert!(matches!(
        rig.join(&newer.secret, &machine),
        Err(JoinError::Expired(_))
    ));

    let last = rig.service.invite(&machine.name, HOUR, "test").unwrap();
    rig.service.revoke(&machine.name, "test").unwrap();
    assert!(matches!(
        rig.join(&last.secret, &machine),
        Err(JoinError::Withdrawn(_))
    ));
    assert!(rig.service.identify(&machine.boot).unwrap().is_none());
    // A stranger leaves no trace in the audit, whoever was invited does: withdrawn, and an hour later both.
    assert_eq!(rig.count(Kind::Refused), 3);
}

#[test]
fn keys_must_differ_and_be_new() {
    let rig = Rig::new();
    let first = rig.machine("web-1", 1);
    let (secret, machine) = invited(&rig, "web-2");
    let same = Machine {
        host: machine.boot,
        ..machine.clone()
    };
    assert!(matches!(rig.join(&secret, &same), Err(JoinError::SameKey)));
    for (boot, host) in [
        (first.boot, machine.host),
        (machine.boot, first.host),
        (first.host, machine.host),
        (machine.boot, first.boot),
    ] {
        let taken = Machine {
            boot,
            host,
            ..machine.clone()
        };
        assert!(matches!(
            rig.join(&secret, &taken),
            Err(JoinError::KeyTaken)
        ));
    }
    // A refusal uses nothing up.
    rig.join(&secret, &machine).unwrap();
}

#[test]
fn a_joined_client_is_replaced_only_after_it_was_revoked() {
    let rig = Rig::new();
    let (machine, volume, share) = rig.bound("web-1", 1);
    let refused = rig.service.invite(&machine.name, HOUR, "test");
    assert!(matches!(refused, Err(AdminError::Joined(_))));

    rig.service.revoke(&machine.name, "test").unwrap();
    let invitation = rig.service.invite(&machine.name, HOUR, "test").unwrap();
    // Neither the invitation nor the revoked keys count as anything yet.
    assert!(rig.identity(&machine.boot).is_revoked());
    assert!(matches!(
        rig.join(&invitation.secret, &machine),
        Err(JoinError::KeyTaken)
    ));
    let anew = Machine {
        boot: key_number(50),
        host: key_number(51),
        ..machine.clone()
    };
    rig.join(&invitation.secret, &anew).unwrap();
    assert!(rig.identity(&machine.boot).is_revoked());
    assert!(!rig.identity(&anew.boot).is_revoked());

    // The volumes are the client's, whichever keys it has; the old keys get nothing.
    let boot = Boot::new();
    let verdict = rig.verdict(&anew, HOME, &boot, volume);
    assert_eq!(
        boot.open(&anew, volume, Purpose::Release, released(&verdict)),
        share
    );
    let verdict = rig.verdict(&machine, HOME, &Boot::new(), volume);
    assert_eq!(denied(&verdict), "this client was revoked");
}

#[test]
fn only_a_hash_of_the_secret_is_kept() {
    let rig = Rig::new();
    let (secret, _) = invited(&rig, "web-1");
    let invite: Vec<Invite> = rig.service.records.all(key::INVITES).unwrap();
    assert_ne!(invite[0].hash, secret);
    let again = rig
        .service
        .invite(&"web-2".parse().unwrap(), HOUR, "test")
        .unwrap();
    assert_eq!(format!("{again:?}"), "Invitation(web-2)");
}

#[test]
fn lifetimes_have_bounds() {
    let rig = Rig::new();
    let name = "web-1".parse().unwrap();
    for (seconds, good) in [
        (0, false),
        (59, false),
        (60, true),
        (2_592_000, true),
        (2_592_001, false),
    ] {
        let result = rig
            .service
            .invite(&name, Duration::from_secs(seconds), "test");
        assert_eq!(result.is_ok(), good, "{seconds}");
    }
}
