//! Running machines: tickets, announced reboots, proof of life, heartbeats, renewal; and a copy that boots beside them.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::wire::{self, LifeLine, RenewAnswer, RenewRequest, Text, Verdict, Version};
use nix::sys::signal::Signal;

use crate::alive::{Follow, Life};
use crate::machine::{Boot, Machine, csr};
use crate::server::{Home, Server, latchkeyd};
use crate::wire::Identity;

/// A server whose streams beat each second.
fn start() -> Server {
    let home = Home::made();
    beat_each_second(&home);
    home.serve()
}

fn beat_each_second(home: &Home) {
    let text = std::fs::read_to_string(home.config()).unwrap();
    std::fs::write(home.config(), format!("life-interval-s = 1\n{text}")).unwrap();
}

#[test]
fn a_copy_is_refused_with_an_alarm_and_the_original_goes_on() {
    let server = start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let error = server
        .home
        .fails(3, &["policy", "set", "root", "home-server"]);
    assert!(error.contains("never shown a ticket"), "{error}");
    let ticket = machine.move_ticket(volume, None);
    server
        .home
        .succeeds(&["policy", "set", "root", "home-server"]);

    let mut life = Life::open(&machine);
    let follow = Follow::start(&server.home, &["requests", "--follow"]);
    // What is there before the first look is not shown: an alarm of now is.
    server.log().wait_for("is ready");
    let copy = Boot::begin();
    // Until the follower has looked once, which it shows by a request that waits.
    server.home.succeeds(&["policy", "root", "ask"]);
    assert!(matches!(
        machine.ask(&Boot::begin(), volume),
        Verdict::Pending { .. }
    ));
    follow.wait_for("waits, 5 tries left");
    server
        .home
        .succeeds(&["policy", "set", "root", "home-server"]);
    assert!(matches!(
        machine.shows(&copy, volume, ticket),
        Verdict::Wait { .. }
    ));
    let challenge = life.challenge();
    assert_eq!(machine.answers(challenge).status, 200);
    follow.wait_for("the running machine answered while another one boots");
    let Verdict::Denied { reason, .. } = machine.shows(&copy, volume, ticket) else {
        panic!("not denied");
    };
    assert!(reason.as_str().contains("this is a copy"), "{reason:?}");
    assert_eq!(server.home.audited("released"), 0);
    assert!(matches!(life.next(), Some(LifeLine::Beat(_))));
    // Answered already; and nobody asked.
    assert_eq!(machine.answers(challenge).status, 400);
    assert_eq!(machine.answers(Bytes([0; 32])).status, 400);
    let alarms = server.home.succeeds(&["audit", "--kind", "alarm"]);
    assert_eq!(alarms.lines().count(), 1, "{alarms}");
}

#[test]
fn an_announced_reboot_is_released_and_an_unannounced_one_asks() {
    let server = start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    machine.move_ticket(volume, None);
    server.home.succeeds(&["group", "web-1", "web"]);
    server
        .home
        .succeeds(&["policy", "set", "--group", "web", "fleet"]);
    let ticket = machine.move_ticket(volume, Some(900));
    let boot = Boot::begin();
    // Once every machine has had the time to come back to a key server that has just begun.
    let Verdict::Released { .. } = machine.waits_for(&boot, volume, ticket) else {
        panic!("not released");
    };
    machine.heartbeat(None, Some(boot.id));
    let ticket = machine.move_ticket(volume, None);
    let boot = Boot::begin();
    let Verdict::Pending { id, code, .. } = machine.waits_for(&boot, volume, ticket) else {
        panic!("nobody is asked");
    };
    server
        .home
        .succeeds(&["approve", id.as_str(), code.as_str()]);
    assert!(matches!(
        machine.shows(&boot, volume, ticket),
        Verdict::Released { .. }
    ));
    let boots = server.home.succeeds(&["audit", "--boots"]);
    for words in [
        "client 'web-1', boot ",
        "as announced and as the policy allows; policy set for the group 'web'",
        "armed: no reboot was announced",
        "as a person approved",
    ] {
        assert!(boots.contains(words), "{words} in {boots}");
    }
    // The administrator can announce as well.
    server.home.succeeds(&["arm", "web-1", "--ttl", "5m"]);
    assert!(matches!(
        machine.shows(&Boot::begin(), volume, ticket),
        Verdict::Released { .. }
    ));
}

#[test]
fn streams_survive_a_reload_give_way_to_newer_ones_and_end_with_the_server() {
    let mut server = start();
    let machine = Machine::join(&server, "web-1");
    let mut old = Life::open(&machine);
    server.signal(Signal::SIGHUP);
    server.log().wait_for("reloaded");
    assert!(matches!(old.next(), Some(LifeLine::Beat(1..))));
    let mut new = Life::open(&machine);
    while old.next().is_some() {}
    assert!(matches!(new.next(), Some(LifeLine::Beat(1))));
    // A revoked machine has none.
    server.home.succeeds(&["revoke", "web-1"]);
    while new.next().is_some() {}
    let other = Machine::join(&server, "web-2");
    let mut life = Life::open(&other);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ended().code(), Some(0), "{}", server.log().all());
    while life.next().is_some() {}
}

#[test]
fn a_host_certificate_is_renewed_for_its_own_key_alone() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let renew = |key: &rcgen::KeyPair| {
        machine.post(
            wire::RENEW,
            &RenewRequest {
                version: Version::default(),
                host_csr: csr(key),
            },
        )
    };
    assert!(!machine.heartbeat(None, None).renew);
    let reply = renew(&machine.host.key);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer: RenewAnswer = serde_json::from_str(&reply.body).unwrap();
    assert!(answer.host_certificate.as_str().contains("CERTIFICATE"));
    let other = renew(&Identity::self_signed("web-1").key);
    assert_eq!(other.status, 403);
    let bad = machine.post(
        wire::RENEW,
        &RenewRequest {
            version: Version::default(),
            host_csr: Text::cut("x"),
        },
    );
    assert_eq!(bad.status, 400, "{}", bad.body);
    assert_eq!(server.home.audited("alarm"), 1);
    assert_eq!(server.home.audited("renewed"), 1);
}

#[test]
fn a_store_that_was_put_back_is_found_out_at_the_first_heartbeat() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let head = machine.heartbeat(None, None).head;
    let home = server.stop();
    let copy = home.data_dir().with_extension("copy");
    copy_store(&home.data_dir(), &copy);

    let server = home.serve();
    let moved = |address| Machine {
        address,
        server: machine.server,
        name: machine.name.clone(),
        boot: machine.boot.clone(),
        host: machine.host.clone(),
    };
    let now = moved(server.address);
    now.released(&Boot::begin(), volume);
    let newer = now.heartbeat(head, None).head;
    assert!(newer.is_some());
    let error = server.home.fails(3, &["accept-rollback", "--reason", "x"]);
    assert!(error.contains("nothing to accept"), "{error}");
    let home = server.stop();
    copy_store(&copy, &home.data_dir());

    let server = home.serve();
    let now = moved(server.address);
    assert_eq!(now.heartbeat(newer, None).head, None);
    let Verdict::Denied { reason, .. } = now.ask(&Boot::begin(), volume) else {
        panic!("not denied");
    };
    assert!(reason.as_str().contains("was put back"), "{reason:?}");
    server
        .home
        .succeeds(&["accept-rollback", "--reason", "disk failed"]);
    now.released(&Boot::begin(), volume);
    assert!(now.heartbeat(newer, None).head.is_some());
    let accepted = server.home.succeeds(&["audit", "--kind", "accepted"]);
    assert!(accepted.contains("disk failed"), "{accepted}");
}

#[test]
fn commands_lock_try_and_invite_in_bulk() {
    let server = start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    server.home.succeeds(&["policy", "root", "ask"]);
    let Verdict::Pending { id, .. } = machine.ask(&Boot::begin(), volume) else {
        panic!("nobody is asked");
    };
    server.home.succeeds(&["deny", id.as_str(), "--lock"]);
    server.home.succeeds(&["policy", "root", "allow"]);
    assert!(matches!(
        machine.ask(&Boot::begin(), volume),
        Verdict::Denied { .. }
    ));
    assert!(server.home.succeeds(&["clients"]).contains("locked out"));
    server.home.succeeds(&["readmit", "web-1"]);
    machine.released(&Boot::begin(), volume);

    let tried = server.home.succeeds(&[
        "policy",
        "test",
        "root",
        "--try",
        "fleet",
        "--from",
        "192.0.2.1",
    ]);
    for words in [
        "policy not set yet",
        "asked from 192.0.2.1",
        "armed    does not hold",
        "outcome: a person is asked",
    ] {
        assert!(tried.contains(words), "{words} in {tried}");
    }
    server.home.succeeds(&["policy", "clear", "root"]);
    let shown = server.home.succeeds(&["policy", "show", "root", "--toml"]);
    assert!(shown.contains("from = [\"home\"]"), "{shown}");
    let none = server
        .home
        .succeeds(&["policy", "show", "--client", "web-1"]);
    assert_eq!(none, "client 'web-1': no policy\n");

    let invited = server
        .home
        .succeeds(&["invite", "db-", "--count", "3", "--group", "db", "--json"]);
    let lines: Vec<serde_json::Value> = invited
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[2]["client"], "db-3");
    Machine::with_token(server.address, lines[2]["token"].as_str().unwrap());
    let groups = server.home.json(&["groups"]);
    assert_eq!(groups[0]["clients"].as_array().unwrap().len(), 3);
}

#[test]
fn two_users_approve_and_the_one_who_is_not_root_does_nothing_else() {
    const NOBODY: u32 = 65534;
    if !nix::unistd::Uid::effective().is_root() {
        // Only root can run a command as another user.
        return;
    }
    let home = Home::made();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let socket = folder.path().join("admin.sock");
    let text = std::fs::read_to_string(home.config()).unwrap();
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("admin-socket"))
        .collect();
    let with = |approvers: &str| {
        let text = format!(
            "admin-socket = '{}'\n{approvers}\n{}\n",
            socket.display(),
            kept.join("\n")
        );
        std::fs::write(home.config(), text).unwrap();
    };
    let nobody = |arguments: &[&str]| {
        let mut command = latchkeyd(arguments);
        command.arg("--socket").arg(&socket).uid(NOBODY).gid(NOBODY);
        let output = command.output().unwrap();
        let text = crate::server::text(&output.stderr);
        (output.status.code(), text)
    };
    with("approvers = ['nobody']");
    let server = home.serve();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let two = r#"rule = "ask"
        [approval]
        count = 2
        by = ["root", "nobody"]"#;
    let file = folder.path().join("two.toml");
    std::fs::write(&file, two).unwrap();
    server
        .home
        .succeeds(&["policy", "set", "root", file.to_str().unwrap()]);
    let boot = Boot::begin();
    let Verdict::Pending { id, code, .. } = machine.ask(&boot, volume) else {
        panic!("nobody is asked");
    };
    assert_eq!(nobody(&["requests"]).0, Some(0));
    assert_eq!(nobody(&["approve", id.as_str(), code.as_str()]).0, Some(0));
    assert!(matches!(
        machine.ask(&boot, volume),
        Verdict::Pending { .. }
    ));
    let (again, why) = nobody(&["approve", id.as_str(), code.as_str()]);
    assert_eq!(again, Some(3), "{why}");
    assert!(why.contains("another person must"), "{why}");
    for forbidden in [
        &["arm", "web-1"][..],
        &["revoke", "web-1"],
        &["invite", "web-2"],
        &["policy", "set", "--client", "web-1", "fleet"],
    ] {
        let (code, why) = nobody(forbidden);
        assert_eq!(code, Some(3), "{forbidden:?}: {why}");
        assert!(why.contains("nothing else"), "{forbidden:?}: {why}");
    }
    server
        .home
        .succeeds(&["approve", id.as_str(), code.as_str()]);
    machine.released(&boot, volume);
    let approved = server.home.succeeds(&["audit", "--kind", "approved"]);
    assert!(
        approved.contains("by=nobody") && approved.contains("by=root"),
        "{approved}"
    );
}

#[test]
fn approvers_reach_the_socket_of_a_server_with_a_folder_of_its_own_over_a_restart() {
    const NOBODY: u32 = 65534;
    if !nix::unistd::Uid::effective().is_root() {
        // Only root can run a command as another user.
        return;
    }
    let home = Home::made();
    let text = std::fs::read_to_string(home.config()).unwrap();
    let text = format!("approvers = ['nobody']\n{text}");
    // As an approver finds it: neither the configuration nor the socket is named.
    let nobody = |home: &Home| {
        let mut command = latchkeyd(&["requests", "--data-dir"]);
        command.arg(home.data_dir()).uid(NOBODY).gid(NOBODY);
        command.output().unwrap().status.code()
    };
    let server = home.serve();
    assert_eq!(nobody(&server.home), Some(1), "nobody is named yet");
    std::fs::write(server.home.config(), &text).unwrap();
    let mut server = server.stop().serve();
    for _ in 0..2 {
        assert_eq!(nobody(&server.home), Some(0));
        server = server.stop().serve();
    }
    // As earlier versions wrote it: it goes on working, and says what does not.
    let home = server.stop();
    let [new, old] = [home.socket(), home.data_dir().join("admin.sock")];
    let [new, old] = [new, old].map(|path| path.display().to_string());
    std::fs::write(home.config(), text.replace(&new, &old)).unwrap();
    let checked = crate::server::text(&home.run(&["check-config"]).stderr);
    let server = home.serve();
    server.home.succeeds(&["requests"]);
    for said in [checked, server.log().wait_for("'approvers' cannot reach")] {
        assert!(
            said.contains("set admin-socket") && said.contains(&new),
            "{said}"
        );
    }
}

fn copy_store(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(to).unwrap().map_while(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with("store.") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    for entry in std::fs::read_dir(from).unwrap().map_while(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with("store.") {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
