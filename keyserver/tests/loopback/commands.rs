//! The command line: exit codes and what they come with.

use crate::server::{Home, latchkeyd, text};

#[test]
fn usage_has_its_exit_codes() {
    for (arguments, code, words) in [
        (&["--help"][..], 0, "latchkeyd init --name keys.example.org"),
        (&["--version"], 0, "latchkeyd 0"),
        (&["help", "policy"], 0, "--elsewhere"),
        (&["approve", "--help"], 0, "latchkeyd approve 7KQ2M"),
        (&[], 2, "Usage: latchkeyd <COMMAND>"),
        (&["frobnicate"], 2, "unrecognized subcommand 'frobnicate'"),
        (&["init"], 2, "--name"),
        (&["init", "--name", "a b"], 2, "'a b' is not an address"),
        (&["invite"], 2, "<CLIENT>"),
        (&["invite", "../x"], 2, "is not a client name"),
        (&["invite", "web-1", "--ttl", "soon"], 2, "15m or 2d"),
        (&["serve", "--listen", "7443"], 2, "is not ADDRESS:PORT"),
        (&["policy", "x", "maybe"], 2, "allow, ask, deny"),
        (
            &["policy", "x", "allow", "--from", "300.1.1.1"],
            2,
            "--from",
        ),
        (&["policy", "x", "allow", "--elsewhere", "ask"], 2, "--from"),
        (&["policy", "x", "--from", "10.0.0.1"], 2, "RULE"),
        (&["audit", "--verify", "--follow"], 2, "cannot be used with"),
        (&["audit", "--kind", "loud"], 2, "expected one of"),
        (&["audit", "--since", "today"], 2, "YYYY-MM-DD"),
        (&["policy", "presets"], 0, "home-server: "),
        (&["policy", "presets", "fleet"], 0, "armed = true"),
        (&["policy", "set", "x", "/nonexistent"], 2, "no preset"),
        (
            &["policy", "set", "--client", "--group", "x", "fleet"],
            2,
            "cannot be used with",
        ),
        (
            &["policy", "test", "x", "--ticket", "old"],
            2,
            "good, stale",
        ),
        (&["policy", "test", "x", "--at", "noon"], 2, "YYYY-MM-DD"),
        (&["arm", "x", "--ttl", "soon"], 2, "15m or 2d"),
        (&["group", "x"], 2, "<GROUP>"),
        (&["accept-rollback"], 2, "--reason"),
        (&["invite", "x", "--count", "0"], 2, "--count"),
        (
            &["clients", "--socket", "/a", "--config", "/b"],
            2,
            "cannot be used with",
        ),
    ] {
        let output = latchkeyd(arguments).output().unwrap();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        let (used, unused) = if code == 0 {
            (&stdout, &stderr)
        } else {
            (&stderr, &stdout)
        };
        assert!(used.contains(words), "{arguments:?}: {used}");
        assert_eq!(unused, "", "{arguments:?}");
    }
}

#[test]
fn every_command_explains_itself() {
    for command in [
        "init",
        "serve",
        "check-config",
        "invite",
        "clients",
        "volumes",
        "requests",
        "approve",
        "deny",
        "lock",
        "readmit",
        "revoke",
        "destroy",
        "policy",
        "arm",
        "group",
        "groups",
        "audit",
        "backup",
        "restore",
        "accept-rollback",
    ] {
        let output = latchkeyd(&[command, "--help"]).output().unwrap();
        assert!(output.status.success(), "{command}");
        let help = text(&output.stdout);
        assert!(
            help.contains(&format!("Usage: latchkeyd {command}")),
            "{help}"
        );
    }
}

#[test]
fn a_server_that_does_not_run_is_named_with_its_socket() {
    let home = Home::made();
    let socket = home.socket();
    let copy = home.data_dir().with_extension("copy").display().to_string();
    for arguments in [
        &["invite", "a"][..],
        &["clients"],
        &["volumes"],
        &["requests"],
        &["approve", "x", "y"],
        &["deny", "x"],
        &["revoke", "a"],
        &["destroy", "x", "--yes"],
        &["policy", "x"],
        &["policy", "set", "x", "fleet"],
        &["policy", "test", "x"],
        &["lock", "a"],
        &["readmit", "a"],
        &["arm", "a"],
        &["group", "a", "b"],
        &["groups"],
        &["audit"],
        &["backup", &copy],
        &["accept-rollback", "--reason", "x"],
    ] {
        let error = home.fails(1, arguments);
        for words in [
            "latchkeyd does not run",
            "systemctl start latchkeyd",
            &socket.display().to_string(),
        ] {
            assert!(error.contains(words), "{arguments:?}: {error}");
        }
    }
    let output = latchkeyd(&["clients", "--socket", "/nonexistent/s"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("'/nonexistent/s'"));
}

#[test]
fn output_to_a_closed_pipe_is_no_panic() {
    let home = Home::made();
    let mut child = latchkeyd(&["check-config", "--data-dir"])
        .arg(home.data_dir())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    // Whether the line was written before the pipe closed is a race; a panic would be 101.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    assert!(!text(&output.stderr).contains("panicked"));
}
