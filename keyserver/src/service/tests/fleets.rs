//! Groups, locks, several approvers, and what a policy says of a request that nobody made.

use super::explain::{Supposed, SupposedLife, SupposedTicket};
use super::listing::{NamedGroup, PolicyTarget};
use super::*;
use crate::policy::{Change, Condition, Outcome};
use crate::records::SessionState;

fn policy(json: &str) -> Policy {
    serde_json::from_str(json).unwrap()
}

#[test]
fn the_most_specific_policy_holds_whole() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let group: crate::records::GroupName = "web".parse().unwrap();
    let of_volume = PolicyTarget::Volume(volume);
    let of_client = PolicyTarget::Client(machine.name.clone());
    let of_group = PolicyTarget::Group(group.clone());
    let set = |target: &PolicyTarget, json: Option<&str>| {
        let policy = json.map(policy);
        rig.service
            .set_policy_of(target, policy.as_ref(), "root")
            .unwrap();
    };
    let boot = || rig.verdict(&machine, AWAY, &Boot::new(), volume);
    denied(&boot());
    set(&of_group, Some(r#"{"rule":"allow"}"#));
    denied(&boot());
    rig.service
        .set_group(&machine.name, Some(&group), "root")
        .unwrap();
    released(&boot());
    set(&of_client, Some(r#"{"rule":"ask"}"#));
    pending(&boot());
    set(&of_volume, Some(r#"{"rule":"deny"}"#));
    assert!(denied(&boot()).contains("denies every release"));
    set(&of_volume, None);
    pending(&boot());
    set(&of_client, None);
    released(&boot());
    let found = rig.service.policy_of(&of_volume).unwrap();
    assert_eq!(found.scope, "set for the group 'web'");
    rig.service.set_group(&machine.name, None, "root").unwrap();
    // What it was bound with: from home.
    denied(&boot());
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let listed = rig.service.groups().unwrap();
    assert_eq!((listed.len(), listed[0].clients.len()), (1, 0));
}

#[test]
fn a_first_boot_asks_a_person_where_otherwise_refuses_and_teaches_the_next_one() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let group: crate::records::GroupName = "web".parse().unwrap();
    let strict = r#"{"rule":"allow","ticket":true,"changes":["kernel"],"otherwise":"deny"}"#;
    rig.service
        .set_policy_of(
            &PolicyTarget::Group(group.clone()),
            Some(&policy(strict)),
            "root",
        )
        .unwrap();
    rig.service
        .set_group(&machine.name, Some(&group), "root")
        .unwrap();
    let first = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, HOME, &first, volume));
    rig.service.approve(&id, &code, "root").unwrap();
    released(&rig.verdict(&machine, HOME, &first, volume));
    let ticket = rig.move_ticket(&machine, volume);
    released(&rig.boots(&machine, HOME, &Boot::new(), volume, Some(ticket)));
    denied(&rig.boots(&machine, HOME, &Boot::new(), volume, None));
}

#[test]
fn a_policy_that_is_set_names_the_volumes_that_it_does_not_reach() {
    use crate::records::Origin;
    let rig = Rig::new();
    let (machine, old, _) = rig.bound("web-1", 1);
    let [own, bound] = [(); 2].map(|()| VolumeId::random().unwrap());
    for id in [own, bound] {
        rig.register(&machine, id);
    }
    rig.set_policy(own, r#"{"rule":"deny"}"#);
    // As an earlier version had registered it.
    let before = |work: &mut crate::ledger::Work<'_>| {
        let mut volume: crate::records::Volume = work.read(&key::volume(&old))?.unwrap();
        volume.origin = Origin::Before;
        work.write(&volume)
    };
    rig.service
        .records
        .transact(rig.clock.now(), before)
        .unwrap();
    let group: crate::records::GroupName = "web".parse().unwrap();
    let name = Some(&group);
    rig.service.set_group(&machine.name, name, "root").unwrap();
    let of_client = PolicyTarget::Client(machine.name.clone());
    let of_group = PolicyTarget::Group(group);
    let asks = policy(r#"{"rule":"ask"}"#);
    let mut commands = [old, own].map(|id| format!("latchkeyd policy clear {id}"));
    commands.sort();
    for target in [&of_group, &of_client] {
        let set = rig.service.set_policy_of(target, Some(&asks), "root");
        let shown = rig.service.policy_of(target).unwrap();
        assert_eq!(set.unwrap(), shown);
        let mut said: Vec<String> = shown.unreached.iter().map(|o| o.command.clone()).collect();
        said.sort();
        assert_eq!(said, commands);
        let one = shown.unreached.iter().find(|one| one.volume == old);
        assert!(one.unwrap().scope.contains("earlier version"));
    }
    // The client's goes before the group's.
    let shown = rig.service.policy_of(&of_group).unwrap().unreached;
    let third = shown.iter().find(|one| one.volume == bound).unwrap();
    assert_eq!(third.command, "latchkeyd policy clear --client web-1");
    // What the command does, and the policy reaches it.
    let target = PolicyTarget::Volume(old);
    released(&rig.verdict(&machine, HOME, &Boot::new(), old));
    rig.service.set_policy_of(&target, None, "root").unwrap();
    pending(&rig.verdict(&machine, HOME, &Boot::new(), old));
    let shown = rig.service.policy_of(&of_client).unwrap().unreached;
    assert_eq!(shown.len(), 1);
    // Without a policy there is nothing to reach.
    rig.service.set_policy_of(&of_client, None, "root").unwrap();
    assert!(
        rig.service
            .policy_of(&of_client)
            .unwrap()
            .unreached
            .is_empty()
    );
}

#[test]
fn a_client_that_is_locked_out_boots_no_more_until_it_is_readmitted() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.set_policy(volume, r#"{"rule":"ask"}"#);
    let boot = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    rig.service.approve(&id, &code, "root").unwrap();
    rig.service.deny(&id, AfterDeny::Lock, "root").unwrap();
    rig.restart();
    rig.set_policy(volume, r#"{"rule":"allow"}"#);
    for boot in [&boot, &Boot::new()] {
        let verdict = rig.verdict(&machine, HOME, boot, volume);
        assert!(denied(&verdict).contains("locked out"));
    }
    // It runs on, and its host key does what it did.
    rig.heartbeat(&machine, None, None);
    assert!(rig.service.clients().unwrap()[0].locked.is_some());
    rig.service.readmit(&machine.name, "root").unwrap();
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let again = rig.service.readmit(&machine.name, "root");
    assert!(matches!(again, Err(AdminError::NotLocked(_))));
    for kind in [Kind::Locked, Kind::Readmitted] {
        assert_eq!(rig.count(kind), 1, "{kind:?}");
    }
}

#[test]
fn two_of_three_named_people_approve_each_once() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.set_policy(
        volume,
        r#"{"rule":"ask","approval":{"count":2,"by":["alice","bob","carol"],"good-for":"5m"}}"#,
    );
    let boot = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    let approve = |who: &str| rig.service.approve(&id, &code, who);
    assert!(matches!(
        approve("root"),
        Err(AdminError::NotApprover { .. })
    ));
    let listing = approve("alice").unwrap();
    assert_eq!(
        (listing.state, listing.approvals_left),
        (SessionState::Pending, 1)
    );
    assert!(matches!(
        approve("alice"),
        Err(AdminError::ApprovedAlready(_))
    ));
    pending(&rig.verdict(&machine, HOME, &boot, volume));
    // The first one counts no more, and may be given again.
    rig.pass(Duration::from_secs(300));
    assert_eq!(approve("bob").unwrap().approvals_left, 1);
    pending(&rig.verdict(&machine, HOME, &boot, volume));
    let listing = approve("alice").unwrap();
    assert_eq!(listing.state, SessionState::Approved);
    assert_eq!(listing.approved_by, ["alice", "bob"]);
    released(&rig.verdict(&machine, HOME, &boot, volume));
    pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
}

#[test]
fn an_approved_session_waits_again_when_an_approval_lapses_or_more_are_wanted() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let two = r#"{"rule":"ask","approval":{"count":2,"good-for":"5m"}}"#;
    rig.set_policy(volume, two);
    let boot = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    let approve = |who: &str| rig.service.approve(&id, &code, who);
    approve("alice").unwrap();
    rig.pass(Duration::from_secs(299));
    assert_eq!(approve("bob").unwrap().state, SessionState::Approved);
    assert!(matches!(approve("carol"), Err(AdminError::Decided { .. })));
    rig.pass(Duration::from_secs(1));
    pending(&rig.verdict(&machine, HOME, &boot, volume));
    let listed = &rig.service.requests().unwrap()[0];
    assert_eq!(
        (listed.state, listed.approvals_left),
        (SessionState::Pending, 1)
    );
    assert_eq!(approve("alice").unwrap().state, SessionState::Approved);
    released(&rig.verdict(&machine, HOME, &boot, volume));
    rig.set_policy(volume, r#"{"rule":"ask","approval":{"count":3}}"#);
    pending(&rig.verdict(&machine, HOME, &boot, volume));
    assert_eq!(approve("carol").unwrap().state, SessionState::Approved);
    released(&rig.verdict(&machine, HOME, &boot, volume));
}

#[test]
fn nobody_approves_what_is_not_released_anyway() {
    type Change = fn(&mut Rig, &Machine);
    let changes: [(&str, Change); 3] = [
        ("revoked", |rig, machine| {
            rig.service.revoke(&machine.name, "root").unwrap();
        }),
        ("readmit", |rig, machine| {
            rig.service.lock(&machine.name, "root").unwrap();
        }),
        ("accept-rollback", |rig, machine| {
            let earlier = rig.store.copy();
            rig.service.arm(&machine.name, HOUR, "root").unwrap();
            let newer = rig.heartbeat(machine, None, None).head;
            rig.store = earlier;
            rig.restart();
            rig.heartbeat(machine, newer, None);
        }),
    ];
    for (words, change) in changes {
        let mut rig = Rig::new();
        let (machine, volume, _) = rig.bound("web-1", 1);
        rig.set_policy(volume, r#"{"rule":"ask"}"#);
        let boot = Boot::new();
        let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
        change(&mut rig, &machine);
        let error = rig.service.approve(&id, &code, "root").unwrap_err();
        assert!(matches!(error, AdminError::NeverReleased(_)), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(rig.count(Kind::Approved), 0);
    }
}

#[test]
fn a_volume_that_joins_a_session_late_needs_every_approval_anew() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let second = VolumeId::random().unwrap();
    rig.register(&machine, second);
    for id in [volume, second] {
        rig.set_policy(id, r#"{"rule":"ask","approval":{"count":2}}"#);
    }
    let boot = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    rig.service.approve(&id, &code, "alice").unwrap();
    pending(&rig.verdict(&machine, HOME, &boot, second));
    assert_eq!(
        rig.service
            .approve(&id, &code, "bob")
            .unwrap()
            .approvals_left,
        1
    );
    for id in [volume, second] {
        pending(&rig.verdict(&machine, HOME, &boot, id));
    }
    rig.service.approve(&id, &code, "alice").unwrap();
    for id in [volume, second] {
        released(&rig.verdict(&machine, HOME, &boot, id));
    }
}

#[test]
fn a_machine_with_new_keys_inherits_no_announcement() {
    let rig = Rig::new();
    let (machine, _, _) = rig.bound("web-1", 1);
    rig.service.arm(&machine.name, HOUR, "root").unwrap();
    assert_eq!(rig.store.range("machine/", None, 10).unwrap().len(), 1);
    rig.service.revoke(&machine.name, "root").unwrap();
    rig.machine("web-1", 2);
    assert!(rig.store.range("machine/", None, 10).unwrap().is_empty());
}

#[test]
fn a_group_that_was_mistyped_is_said_to_be_new_and_cannot_be_cleared() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let [web, wbe] = ["web", "wbe"].map(|name| name.parse::<crate::records::GroupName>().unwrap());
    let of = |group: &crate::records::GroupName| PolicyTarget::Group(group.clone());
    let deny = policy(r#"{"rule":"deny"}"#);
    let set = |group, policy| rig.service.set_policy_of(&of(group), policy, "root");
    let refused = set(&web, None);
    assert!(matches!(refused, Err(AdminError::NoGroup(name)) if name == web));
    assert!(rig.service.groups().unwrap().is_empty());
    for new in [true, false] {
        let group = set(&web, Some(&deny)).unwrap().group.unwrap();
        assert_eq!((group.new, group.clients), (new, 0));
    }
    for (group, new, scope) in [
        (&web, false, "set for the group 'web'"),
        (&wbe, true, "given when it was bound"),
        (&wbe, false, "given when it was bound"),
    ] {
        let now = rig
            .service
            .set_group(&machine.name, Some(group), "root")
            .unwrap();
        let named = now.group.unwrap();
        assert_eq!((&named.name, named.new, named.clients), (group, new, 1));
        let [listed] = now.volumes.as_slice() else {
            panic!("{:?}", now.volumes);
        };
        assert_eq!((listed.id, listed.policy_scope.as_str()), (volume, scope));
    }
    let none = rig.service.set_group(&machine.name, None, "root").unwrap();
    assert_eq!((none.group, none.volumes.len()), (None, 1));
    set(&web, None).unwrap();
}

#[test]
fn invitations_in_bulk_go_into_a_group_or_are_refused_as_a_whole() {
    let rig = Rig::new();
    let names: Vec<ClientName> = (1..=3)
        .map(|n| format!("web-{n}").parse().unwrap())
        .collect();
    let group: crate::records::GroupName = "web".parse().unwrap();
    let invited = rig.service.invite_all(&names, Some(&group), HOUR, "root");
    let invited = invited.unwrap();
    assert_eq!(invited.invitations.len(), 3);
    let named = |new, clients| NamedGroup {
        name: group.clone(),
        new,
        clients,
    };
    assert_eq!(invited.group, Some(named(true, 3)));
    let again = rig
        .service
        .invite_all(&names[..1], Some(&group), HOUR, "root");
    assert_eq!(again.unwrap().group, Some(named(false, 3)));
    assert_eq!(rig.service.groups().unwrap()[0].clients, names);
    rig.machine("db-2", 1);
    let names: Vec<ClientName> = (1..=3)
        .map(|n| format!("db-{n}").parse().unwrap())
        .collect();
    let refused = rig.service.invite_all(&names, None, HOUR, "root");
    assert!(matches!(refused, Err(AdminError::Joined(name)) if name == names[1]));
    assert_eq!(rig.service.clients().unwrap().len(), 4);
}

#[test]
fn a_policy_says_what_it_would_do_and_nothing_happens() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.move_ticket(&machine, volume);
    let boot = Boot::new();
    released(&rig.verdict(&machine, HOME, &boot, volume));
    let before = rig.audit().len();
    let suppose = || Supposed {
        volume,
        policy: Some(
            crate::policy::Preset::named("home-server")
                .unwrap()
                .policy(),
        ),
        request: None,
        peer: None,
        at: None,
        ticket: SupposedTicket::Good,
        life: SupposedLife::Silent,
        announced: false,
        changed: Vec::new(),
    };
    let outcome = |supposed: &Supposed, condition: Condition| {
        let explained = rig.service.explain(supposed).unwrap();
        let found = explained
            .findings
            .iter()
            .find(|found| found.condition == condition);
        (explained.outcome.clone(), found.unwrap().outcome)
    };
    let released = "released without a person".to_owned();
    let asked = "a person is asked".to_owned();
    assert_eq!(
        outcome(&suppose(), Condition::Address),
        (released, Outcome::Holds)
    );
    let mut away = suppose();
    away.peer = Some(address(AWAY));
    assert_eq!(
        outcome(&away, Condition::Address),
        (asked.clone(), Outcome::Fails)
    );
    let mut stale = suppose();
    stale.ticket = SupposedTicket::Stale;
    assert_eq!(
        outcome(&stale, Condition::Ticket),
        (asked.clone(), Outcome::Alarms)
    );
    let mut alive = suppose();
    alive.life = SupposedLife::Alive;
    assert_eq!(
        outcome(&alive, Condition::Life),
        ("refused because of 'life'".to_owned(), Outcome::Alarms)
    );
    let mut changed = suppose();
    changed.policy = Some(policy(r#"{"rule":"allow","changes":["kernel"]}"#));
    changed.changed = vec![Change::Kernel];
    assert_eq!(
        outcome(&changed, Condition::Changes),
        (asked, Outcome::Fails)
    );
    assert_eq!(rig.audit().len(), before);
    // A one-time policy that is in force and used up says nothing of one that is tried.
    let once = policy(r#"{"rule":"allow","once":true}"#);
    rig.service.set_policy(&volume, &once, "root").unwrap();
    rig.verdict(&machine, HOME, &Boot::new(), volume);
    let before = rig.audit().len();
    let mut tried = suppose();
    tried.policy = None;
    assert_eq!(outcome(&tried, Condition::Once).1, Outcome::Fails);
    tried.policy = Some(once);
    assert_eq!(outcome(&tried, Condition::Once).1, Outcome::Holds);
    let mut past = suppose();
    past.request = Some(boot.request);
    let explained = rig.service.explain(&past).unwrap();
    assert_eq!(explained.history.len(), 1);
    assert_eq!(explained.peer, address(HOME));
    past.request = Some(RequestId::random().unwrap());
    assert!(matches!(
        rig.service.explain(&past),
        Err(AdminError::NoRequest(_))
    ));
    assert_eq!(rig.audit().len(), before);
}
