//! Listings, revocation, destruction, policies and settings.

use super::*;
use crate::policy::Otherwise;
use crate::records::Settings;
use crate::service::listing::ClientState;

#[test]
fn clients_are_listed_as_they_stand() {
    let rig = Rig::new();
    let state = |name: &str| {
        let listed = rig.service.clients().unwrap();
        let name: ClientName = name.parse().unwrap();
        listed
            .into_iter()
            .find(|client| client.name == name)
            .unwrap()
    };
    rig.service
        .invite(&"web-1".parse().unwrap(), HOUR, "test")
        .unwrap();
    assert_eq!(state("web-1").state, ClientState::Invited);
    rig.pass(HOUR);
    assert_eq!(state("web-1").state, ClientState::Expired);
    let (machine, _, _) = rig.bound("web-1", 1);
    let joined = state("web-1");
    assert_eq!((joined.state, joined.volumes), (ClientState::Joined, 1));
    assert_eq!(joined.boot_key, Some(machine.boot));
    assert_eq!(joined.joined_from, Some(address(HOME)));
    rig.service.revoke(&machine.name, "root").unwrap();
    assert_eq!(state("web-1").state, ClientState::Revoked);
    rig.service.invite(&machine.name, HOUR, "test").unwrap();
    assert_eq!(state("web-1").state, ClientState::Invited);
    assert!(state("web-1").revoked.is_some());
}

#[test]
fn revoking_twice_is_one_revocation() {
    let rig = Rig::new();
    let machine = rig.machine("web-1", 1);
    let first = rig.service.revoke(&machine.name, "root").unwrap();
    rig.pass(HOUR);
    let second = rig.service.revoke(&machine.name, "root").unwrap();
    assert_eq!(first.revoked, second.revoked);
    assert_eq!(rig.count(Kind::Revoked), 1);
    let missing = rig.service.revoke(&"nobody".parse().unwrap(), "root");
    assert!(matches!(missing, Err(AdminError::NoClient(_))));
}

#[test]
fn a_destroyed_share_is_gone_and_its_id_with_it() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let done = rig.service.destroy(&volume, "root").unwrap();
    assert!(
        done.not_reached.iter().any(|copy| copy.contains("backups")),
        "{done:?}"
    );
    assert!(rig.store.range("share/", None, 10).unwrap().is_empty());
    rig.restart();
    rig.pass(HOUR);
    assert_eq!(rig.service.destroy(&volume, "root").unwrap(), done);
    assert_eq!(rig.count(Kind::Destroyed), 1);
    let host = rig.identity(&machine.host);
    let again = rig
        .service
        .register(&host, address(HOME), &Boot::new().registration(volume));
    assert!(matches!(again, Err(ServiceError::Destroyed)));
    assert!(rig.service.volumes().unwrap()[0].destroyed.is_some());
    let missing = rig.service.destroy(&VolumeId::random().unwrap(), "root");
    assert!(matches!(missing, Err(AdminError::NoVolume(_))));
}

#[test]
fn a_policy_holds_from_the_next_request_on() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.set_policy(
        volume,
        r#"{"rule":"allow","from":["198.51.100.0/24"],"elsewhere":"ask"}"#,
    );
    rig.restart();
    released(&rig.verdict(&machine, AWAY, &Boot::new(), volume));
    pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let policy = rig.service.policy(&volume).unwrap();
    assert_eq!(policy, rig.service.volumes().unwrap()[0].policy);
    let changed: Vec<_> = rig
        .audit()
        .into_iter()
        .filter(|entry| entry.event.kind == Kind::Changed)
        .collect();
    assert_eq!(changed[0].event.who.as_deref(), Some("test"));
    assert!(
        changed[0]
            .event
            .text
            .contains("before: released without a person to 192.0.2.7/32")
    );
}

#[test]
fn policies_that_cannot_be_set_are_refused() {
    let rig = Rig::new();
    let (_, volume, _) = rig.bound("web-1", 1);
    let odd: Policy = serde_json::from_str(r#"{"rule":"allow","elsewhere":"ask"}"#).unwrap();
    let refused = rig.service.set_policy(&volume, &odd, "root");
    assert!(matches!(refused, Err(AdminError::Policy(_))));
    let good = rig.service.policy(&volume).unwrap();
    rig.service.destroy(&volume, "root").unwrap();
    let refused = rig.service.set_policy(&volume, &good, "root");
    assert!(matches!(refused, Err(AdminError::Policy(_))));
}

#[test]
fn new_volumes_ask_from_elsewhere_if_the_settings_say_so() {
    let rig = Rig::new();
    assert_eq!(rig.service.settings().unwrap().elsewhere, Otherwise::Deny);
    let settings = Settings {
        elsewhere: Otherwise::Ask,
    };
    rig.service.set_settings(&settings, "root").unwrap();
    let (machine, volume, _) = rig.bound("web-1", 1);
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    pending(&rig.verdict(&machine, AWAY, &Boot::new(), volume));
}

#[test]
fn old_invitations_are_forgotten() {
    let rig = Rig::new();
    let name: ClientName = "web-1".parse().unwrap();
    rig.service.invite(&name, HOUR, "test").unwrap();
    rig.pass(29 * 24 * HOUR);
    rig.service.maintain().unwrap();
    assert_eq!(rig.store.range("invite/", None, 10).unwrap().len(), 1);
    rig.pass(2 * 24 * HOUR);
    rig.service.maintain().unwrap();
    assert!(rig.store.range("invite/", None, 10).unwrap().is_empty());
    assert_eq!(
        rig.service.clients().unwrap()[0].state,
        ClientState::Expired
    );
}

#[test]
fn setting_up_is_the_first_entry() {
    let rig = Rig::new();
    rig.service
        .record_setup("uid 0", "key server 0909")
        .unwrap();
    let entry = &rig.audit()[0];
    assert_eq!((entry.sequence, entry.event.kind), (1, Kind::Initialised));
}
