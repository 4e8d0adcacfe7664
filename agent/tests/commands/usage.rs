//! What is told: settings that are wrong, a machine that was revoked, wrong usage.

use crate::common::machine::{Machine, Server, Volume};

#[test]
fn an_unknown_setting_is_named_with_its_file() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let path = machine.server_dir().join("server.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{good}insecure = true\n")).unwrap();
    let texts = [
        "server.toml",
        "unknown field `insecure`",
        "correct the file",
    ];
    machine.bind(&Volume::luks2()).failed_saying(&texts);
    let said = machine.latchkey(&["status"], "");
    assert_eq!(said.code, 3);
    assert!(
        said.out.contains("unknown field `insecure`"),
        "{}",
        said.out
    );
}

#[test]
fn a_revoked_machine_is_told_no_more_than_refused() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    server.admin(&["revoke", "web-1"]).succeeded();
    let volume = Volume::luks2();
    let before = volume.json();
    machine.bind(&volume).failed_saying(&[
        "did not give a share",
        "it does not know this machine, or no longer",
    ]);
    assert_eq!(volume.json(), before);
}

#[test]
fn wrong_usage_ends_with_code_2_and_help_teaches() {
    let machine = Machine::new();
    for wrong in [
        &[][..],
        &["open"],
        &["bind"],
        &["unbind"],
        &["bind", "a", "b"],
        &["list", "--yaml"],
        &["wait", "--agent", "x"],
        &["arm-reboot", "--ttl", "5"],
        &["arm-reboot", "--ttl", "25h"],
        &["bind", "a", "--format", "--recovery-sheet", "-", "--json"],
    ] {
        assert_eq!(machine.latchkey(wrong, "").code, 2, "{wrong:?}");
    }
    let help = machine.latchkey(&["--help"], "").succeeded().out;
    for text in [
        "latchkeyd invite",
        "latchkey join",
        "latchkey bind",
        "latchkey=off",
    ] {
        assert!(help.contains(text), "{text} in {help}");
    }
}
