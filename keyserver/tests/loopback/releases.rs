//! Boots: what a machine gets, and what its administrator has to say to that.

use latchkey_protocol::VolumeId;
use latchkey_protocol::wire::{self, Verdict};

use crate::machine::{Boot, Machine, verdict};
use crate::server::Server;
use crate::wire::request;

/// A machine with a volume that a person has to approve.
fn asking() -> (Server, Machine, VolumeId) {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    server.home.succeeds(&["policy", "root", "ask"]);
    (server, machine, volume)
}

#[track_caller]
fn pending(verdict: &Verdict) -> (String, String) {
    match verdict {
        Verdict::Pending { id, code, .. } => (id.as_str().to_owned(), code.as_str().to_owned()),
        other => panic!("not pending: {other:?}"),
    }
}

#[test]
fn the_share_of_registration_proof_and_release_is_one() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, share) = machine.register("root");
    assert!(machine.proved(volume).0.matches(&share.0));
    let boot = Boot::begin();
    assert!(machine.released(&boot, volume).0.matches(&share.0));
    // The same session may fetch again, and so may the next boot.
    assert!(machine.released(&boot, volume).0.matches(&share.0));
    assert!(machine.released(&Boot::begin(), volume).0.matches(&share.0));
    assert_eq!(server.home.audited("proved"), 1);
    assert!(server.home.audited("released") >= 2);
    server.home.succeeds(&["audit", "--verify"]);
}

#[test]
fn approval_needs_the_code_on_the_console() {
    let (server, machine, volume) = asking();
    let boot = Boot::begin();
    let (id, code) = pending(&machine.ask(&boot, volume));
    let listed = server.home.json(&["requests"]);
    assert_eq!(listed[0]["id"], id.as_str());
    assert!(
        !listed.to_string().contains(&code),
        "the list must not show the code"
    );

    let error = server.home.fails(3, &["approve", &id, "AAA-AAA"]);
    assert!(error.contains("wrong code"), "{error}");
    assert_eq!(
        pending(&machine.ask(&boot, volume)),
        (id.clone(), code.clone())
    );

    server.home.succeeds(&["approve", &id, &code]);
    machine.released(&boot, volume);
    // For this boot only.
    pending(&machine.ask(&Boot::begin(), volume));
    let audit = server.home.audit();
    let approved = audit.iter().find(|entry| entry["kind"] == "approved");
    assert!(approved.unwrap()["who"].is_string());
}

#[test]
fn a_denied_boot_is_told_so() {
    let (server, machine, volume) = asking();
    let boot = Boot::begin();
    let (id, code) = pending(&machine.ask(&boot, volume));
    server.home.succeeds(&["deny", &id]);
    let verdict = machine.ask(&boot, volume);
    assert!(matches!(verdict, Verdict::Denied { .. }), "{verdict:?}");
    server.home.fails(3, &["approve", &id, &code]);
    server.home.fails(3, &["deny", "NOSUCH"]);
}

#[test]
fn a_revoked_machine_hears_why_and_gets_nothing() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    server.home.succeeds(&["revoke", "web-1"]);
    let verdict = machine.ask(&Boot::begin(), volume);
    let Verdict::Denied { reason, .. } = &verdict else {
        panic!("{verdict:?}");
    };
    assert!(reason.as_str().contains("revoked"), "{reason:?}");
    let reply = request(
        server.address,
        Some(&machine.host),
        "GET",
        wire::STATUS,
        b"",
    );
    assert_eq!(reply.status, 403);
    assert_eq!(reply.body, r#"{"version":1,"error":"refused"}"#);
    server.home.fails(3, &["revoke", "nobody"]);
}

#[test]
fn a_destroyed_volume_stays_destroyed() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let error = server.home.fails(2, &["destroy", "root"]);
    assert!(error.contains("--yes"), "{error}");
    machine.released(&Boot::begin(), volume);
    let done = server.home.json(&["destroy", "root", "--yes"]);
    assert!(
        !done["not-reached"].as_array().unwrap().is_empty(),
        "{done}"
    );
    assert!(matches!(
        machine.ask(&Boot::begin(), volume),
        Verdict::Destroyed
    ));
    let again = machine.try_register(&Boot::begin(), volume, "root");
    assert_eq!(again.status, 410, "{}", again.body);
    let server = server.stop().serve();
    let machine = Machine {
        address: server.address,
        ..machine
    };
    assert!(matches!(
        machine.ask(&Boot::begin(), volume),
        Verdict::Destroyed
    ));
}

#[test]
fn addresses_outside_the_policy_are_denied_or_ask() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    server
        .home
        .succeeds(&["policy", "root", "allow", "--from", "192.0.2.1"]);
    let denied = machine.ask(&Boot::begin(), volume);
    assert!(matches!(denied, Verdict::Denied { .. }), "{denied:?}");
    server.home.succeeds(&[
        "policy",
        "root",
        "allow",
        "--from",
        "192.0.2.1",
        "--elsewhere",
        "ask",
    ]);
    pending(&machine.ask(&Boot::begin(), volume));
    server.home.succeeds(&["policy", "root", "deny"]);
    let denied = machine.ask(&Boot::begin(), volume);
    assert!(matches!(denied, Verdict::Denied { .. }), "{denied:?}");
}

#[test]
fn nobody_learns_of_the_volumes_of_others() {
    let server = Server::start();
    let (one, other) = (
        Machine::join(&server, "one"),
        Machine::join(&server, "other"),
    );
    let (theirs, _) = one.register("root");
    let nothing = VolumeId::random().unwrap();
    let ask = |volume: VolumeId| {
        let body = Boot::begin().wants(&[volume]);
        let reply = request(
            server.address,
            Some(&other.boot),
            "POST",
            wire::RELEASE,
            &body,
        );
        reply.body.replace(&volume.to_string(), "VOLUME")
    };
    assert_eq!(ask(theirs), ask(nothing));
    let proof = |volume: VolumeId| {
        let body = Boot::begin().wants(&[volume]);
        let reply = request(
            server.address,
            Some(&other.host),
            "POST",
            wire::PROOF,
            &body,
        );
        reply.body.replace(&volume.to_string(), "VOLUME")
    };
    assert_eq!(proof(theirs), proof(nothing));
    let taken = other.try_register(&Boot::begin(), theirs, "root");
    assert_eq!(
        (taken.status, taken.body.as_str()),
        (403, r#"{"version":1,"error":"refused"}"#)
    );
    let path = format!("{}/{theirs}", wire::VOLUMES);
    let retired = request(server.address, Some(&other.host), "DELETE", &path, b"");
    assert_eq!(retired.status, 403);
    let boot = Boot::begin();
    let reply = request(
        server.address,
        Some(&one.boot),
        "POST",
        wire::RELEASE,
        &boot.wants(&[theirs]),
    );
    assert!(matches!(verdict(&reply), Verdict::Released { .. }));
}

#[test]
fn requests_are_followed_as_they_come_and_change() {
    use std::io::{BufRead, BufReader};
    let (server, machine, volume) = asking();
    let boot = Boot::begin();
    let (id, code) = pending(&machine.ask(&boot, volume));
    let mut follow = crate::server::latchkeyd(&["requests", "--follow", "--json", "--data-dir"])
        .arg(server.home.data_dir())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = next();
    assert_eq!(
        (&first["id"], &first["state"]),
        (&id.as_str().into(), &"pending".into())
    );
    server.home.succeeds(&["approve", &id, &code]);
    assert_eq!(next()["state"], "approved");
    follow.kill().unwrap();
    follow.wait().unwrap();
}
