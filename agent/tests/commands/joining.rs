//! `join`: keys for root alone, tokens that are good once, and whatever interrupts it.

use std::path::Path;
use std::time::Duration;

use latchkey_protocol::ServerId;
use latchkey_protocol::token::JoinToken;

use crate::common::machine::{Machine, Server};

#[test]
fn joining_leaves_two_keys_that_only_root_reads() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start();
    let machine = Machine::new();
    let token = server.invite("web-1");
    let said = machine.latchkey(&["join", "-"], &token).succeeded();
    assert!(said.err.contains("as 'web-1'"), "{}", said.err);
    let dir = machine.server_dir();
    for name in [
        "server.toml",
        "ca.pem",
        "boot.key",
        "boot.pem",
        "host.key",
        "host.pem",
    ] {
        let mode = std::fs::metadata(dir.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let mode = std::fs::metadata(&dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_ne!(
        std::fs::read(dir.join("boot.key")).unwrap(),
        std::fs::read(dir.join("host.key")).unwrap()
    );
    machine.latchkey(&["join", "-"], &token).failed_saying(&[
        "joined that key server already, as 'web-1'",
        "latchkey unbind",
    ]);
}

#[test]
fn damaged_tokens_are_refused_and_leave_nothing() {
    let server = Server::start();
    let machine = Machine::new();
    let token = server.invite("web-1");
    for bad in [
        "",
        "latchkey1.",
        "hello",
        &token[..token.len() - 10],
        &token.replace('1', "2"),
    ] {
        let said = machine
            .latchkey(&["join", "-"], bad)
            .failed_saying(&["copy the whole line that 'latchkeyd invite' printed"]);
        assert!(
            bad.len() < 20 || !said.err.contains(bad.trim()),
            "it repeats the token"
        );
    }
    assert!(!machine.path("etc/latchkey").exists());
    // On the command line it works, with a warning.
    let said = machine.latchkey(&["join", token.trim()], "").succeeded();
    assert!(
        said.err.contains("can be read by every user"),
        "{}",
        said.err
    );
}

#[test]
fn a_token_is_good_for_one_machine() {
    let server = Server::start();
    let token = server.invite("web-1");
    Machine::new().latchkey(&["join", "-"], &token).succeeded();
    Machine::new()
        .latchkey(&["join", "-"], &token)
        .failed_saying(&["used already", "latchkeyd revoke"]);

    let mut forged: JoinToken = token.parse().unwrap();
    forged.secret = latchkey_protocol::encoding::Bytes([7; 32]);
    Machine::new()
        .latchkey(&["join", "-"], &forged.to_line())
        .failed_saying(&["does not know this join token", "latchkeyd invite"]);
}

#[test]
fn an_expired_token_is_refused_and_a_new_one_works() {
    let server = Server::start();
    let old = server
        .admin(&["invite", "web-2", "--ttl", "1m"])
        .succeeded()
        .out;
    std::thread::sleep(Duration::from_secs(61));
    let machine = Machine::new();
    machine
        .latchkey(&["join", "-"], &old)
        .failed_saying(&["expired", "latchkeyd invite"]);
    // The keys that were made for the old one are no hindrance.
    machine
        .latchkey(&["join", "-"], &server.invite("web-2"))
        .succeeded();
}

#[test]
fn a_token_for_another_server_is_not_sent() {
    let (server, other) = (Server::start(), Server::start());
    let token = server.invite("web-1");
    let mut forged: JoinToken = token.parse().unwrap();
    forged.addresses = vec![other.address().parse().unwrap()];
    let machine = Machine::new();
    machine
        .latchkey(&["join", "-"], &forged.to_line())
        .failed_saying(&["the join token is for another key server", &other.address()]);
    let mut strange: JoinToken = token.parse().unwrap();
    strange.server = ServerId::from_bytes([1; 32]);
    machine
        .latchkey(&["join", "-"], &strange.to_line())
        .failed_saying(&["the join token is for another key server"]);
    // Nothing was used up.
    machine.latchkey(&["join", "-"], &token).succeeded();
}

#[test]
fn joining_tries_every_address_and_says_what_happened_at_each() {
    let server = Server::start();
    let mut token: JoinToken = server.invite("web-1").parse().unwrap();
    token.addresses = vec!["127.0.0.1:1".parse().unwrap()];
    let machine = Machine::new();
    machine
        .latchkey(&["join", "-"], &token.to_line())
        .failed_saying(&["key server '127.0.0.1:1': connection refused", "same token"]);
    token.addresses.push(server.address().parse().unwrap());
    machine
        .latchkey(&["join", "-"], &token.to_line())
        .succeeded();
}

#[test]
fn an_interrupted_join_is_repaired_by_running_it_again() {
    let server = Server::start();
    let machine = Machine::new();
    let token = server.invite("web-1");
    // Interrupted after the first key, and in the middle of it.
    let id = token.parse::<JoinToken>().unwrap().server.short();
    let unfinished = machine.path(&format!("etc/latchkey/servers/{id}.joining"));
    std::fs::create_dir_all(&unfinished).unwrap();
    std::fs::write(
        unfinished.join("boot.key"),
        "-----BEGIN PRIVATE KEY-----\nMC4C",
    )
    .unwrap();
    machine.latchkey(&["join", "-"], &token).succeeded();

    // Interrupted after the server had answered, before anything but the keys was written.
    let dir = machine.server_dir();
    let keys =
        |dir: &Path| ["boot.key", "host.key"].map(|name| std::fs::read(dir.join(name)).unwrap());
    let before = keys(&dir);
    std::fs::rename(&dir, &unfinished).unwrap();
    for name in ["boot.pem", "host.pem", "ca.pem", "server.toml"] {
        std::fs::remove_file(unfinished.join(name)).unwrap();
    }
    machine.latchkey(&["join", "-"], &token).succeeded();
    assert_eq!(keys(&dir), before, "the same keys, so the same request");
    machine.latchkey(&["status"], "").succeeded();
}
