//! What a running machine says of its volumes, and how the administrator sees them.

use latchkey_protocol::VolumeId;
use latchkey_protocol::wire::{self, StatusAnswer};

use crate::machine::{Boot, Machine};
use crate::server::Server;
use crate::wire::request;

#[test]
fn registering_again_gives_the_same_share() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let volume = VolumeId::random().unwrap();
    let boot = Boot::begin();
    let first = machine.try_register(&boot, volume, "root");
    let second = machine.try_register(&boot, volume, "root");
    assert_eq!((first.status, second.status), (200, 200), "{}", second.body);
    assert_eq!(first.json()["generation"], second.json()["generation"]);
    assert_eq!(server.home.json(&["volumes"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_new_volume_opens_only_from_where_it_was_registered() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    machine.register("root");
    let policy = server.home.json(&["policy", "root"]);
    assert_eq!(policy["rule"], "allow");
    assert_eq!(policy["from"][0], "127.0.0.1/32");
    assert_eq!(policy["elsewhere"], "deny");
}

#[test]
fn status_names_the_policy_in_force() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    server.home.succeeds(&["policy", "root", "allow"]);
    let reply = request(
        server.address,
        Some(&machine.host),
        "GET",
        wire::STATUS,
        b"",
    );
    let answer: StatusAnswer = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(answer.volumes[0].volume, volume);
    assert!(!answer.volumes[0].destroyed);
    let shown = server.home.succeeds(&["policy", "root"]);
    assert!(shown.contains(answer.volumes[0].policy.as_str()), "{shown}");
}

#[test]
fn a_retired_volume_is_gone() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let path = format!("{}/{volume}", wire::VOLUMES);
    for _ in 0..2 {
        let reply = request(server.address, Some(&machine.host), "DELETE", &path, b"");
        assert_eq!(
            (reply.status, reply.body.as_str()),
            (200, r#"{"version":1}"#)
        );
    }
    assert!(server.home.json(&["volumes"])[0]["retired"].is_u64());
    assert_eq!(
        machine.try_register(&Boot::begin(), volume, "root").status,
        410
    );
}

#[test]
fn volumes_go_by_label_or_by_the_beginning_of_their_id() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    machine.register("data");
    let id = volume.to_string();
    server.home.succeeds(&["policy", &id, "ask"]);
    server.home.succeeds(&["policy", &id[..13], "deny"]);
    assert!(server.home.succeeds(&["policy", "root"]).contains("web-1"));
    let error = server.home.fails(3, &["policy", "swap"]);
    assert!(error.contains("latchkeyd volumes"), "{error}");
    machine.register("root");
    let error = server.home.fails(3, &["policy", "root"]);
    assert!(error.contains("several volumes"), "{error}");
}

#[test]
fn a_boot_report_is_in_the_audit() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let body = br#"{"version":1,"request":null,"lines":["root open after 3 s"]}"#;
    let reply = request(
        server.address,
        Some(&machine.host),
        "POST",
        wire::REPORT,
        body,
    );
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (200, r#"{"version":1}"#)
    );
    let audit = server.home.audit();
    let report = audit
        .iter()
        .find(|entry| entry["kind"] == "boot-report")
        .unwrap();
    assert!(
        report["text"]
            .as_str()
            .unwrap()
            .contains("root open after 3 s")
    );
    let table = server.home.succeeds(&["audit"]);
    assert!(
        table
            .lines()
            .any(|line| line.contains("boot-report") && line.contains("client=web-1")),
        "{table}"
    );
}

#[test]
fn commands_that_name_a_group_say_whether_it_is_new_and_what_holds_now() {
    let server = Server::start();
    let home = &server.home;
    let machine = Machine::join(&server, "web-1");
    machine.register("root");
    let said = |arguments: &[&str]| {
        let output = home.run(arguments);
        let error = crate::server::text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        format!("{}{error}", crate::server::text(&output.stdout))
    };
    let set = ["policy", "set", "--group", "web", "fleet"];
    for (arguments, words) in [
        (&set[..], &["new group 'web': 0 clients"][..]),
        (
            &["group", "web-1", "web"],
            &[
                "\ngroup 'web': 1 client ",
                "volume 'root': ",
                "policy set for the group 'web'",
            ],
        ),
        (&set, &["\ngroup 'web': 1 client "]),
        (
            &["group", "web-1", "wbe"],
            &[
                "new group 'wbe': 1 client ",
                "policy given when it was bound",
            ],
        ),
        (
            &["invite", "web-2", "--group", "web"],
            &["\ngroup 'web': 1 client "],
        ),
        (
            &["invite", "web-3", "--group", "wbee"],
            &["new group 'wbee': 1 client "],
        ),
        (&["policy", "clear", "--group", "web"], &["no policy"]),
    ] {
        let all = said(arguments);
        for words in words {
            assert!(all.contains(words), "{arguments:?}: {all}");
        }
    }
    let error = home.fails(3, &["policy", "clear", "--group", "nosuch"]);
    assert!(error.contains("there is no group 'nosuch'"), "{error}");
    assert!(!home.succeeds(&["groups"]).contains("nosuch"));
}

#[test]
fn a_policy_that_nobody_can_approve_yet_is_set_with_a_warning() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    machine.register("root");
    server.invite("web-2");
    let file = server.home.data_dir().with_file_name("policy.toml");
    std::fs::write(&file, "rule = 'ask'\napproval.by = ['nobodyhere']").unwrap();
    let words = "2 people must approve, and only root can";
    for (arguments, words) in [
        (
            &["policy", "set", "--client", "web-2", "paranoid"][..],
            words,
        ),
        (&["policy", "show", "--client", "web-2"], words),
        (&["policy", "show", "--client", "web-2", "--json"], words),
        (&["policy", "set", "--group", "web", "paranoid"], words),
        (
            &["policy", "set", "root", file.to_str().unwrap()],
            "of nobodyhere, and none of them can",
        ),
    ] {
        let output = server.home.run(arguments);
        let error = crate::server::text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
    let output = server.home.run(&["policy", "root", "ask"]);
    assert!(
        !crate::server::text(&output.stderr).contains("must approve"),
        "{output:?}"
    );
}
