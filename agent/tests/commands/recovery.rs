//! New volumes and recovery keys: what is made here, stock cryptsetup opens.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::machine::{Machine, PASSPHRASE, Server, UUID, Volume, run};

#[test]
fn a_recovery_key_opens_the_volume_with_cryptsetup_alone() {
    for kind in [&["--type", "luks2"][..], &["--type", "luks1"]] {
        let machine = Machine::new();
        machine.write_crypttab("luks");
        let volume = Volume::format(kind);
        let said = machine
            .latchkey(
                &["recovery-key", volume.path(), "--key-file", "-"],
                PASSPHRASE,
            )
            .succeeded();
        assert!(
            said.err.contains("keyslot 1 opens with the recovery key"),
            "{}",
            said.err
        );
        assert!(
            said.out
                .contains(&format!("cryptsetup open {} ", volume.path())),
            "{}",
            said.out
        );
        let key = key_of(&said.out);
        assert!(!said.err.contains(&key), "the key is in the log");
        opens(&volume, &key);
        volume.opens_with_the_passphrase();
        assert_eq!(machine.state("header-").len(), 1);
    }
}

#[test]
fn a_recovery_key_outlives_a_binding() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    machine.write_crypttab("luks");
    let volume = Volume::luks2();
    machine.bind(&volume).succeeded();
    let said = machine
        .latchkey(
            &["recovery-key", volume.path(), "--key-file", "-"],
            PASSPHRASE,
        )
        .succeeded();
    let key = key_of(&said.out);
    machine.unbind(&volume).succeeded();
    opens(&volume, &key);
    volume.opens_with_the_passphrase();
}

#[test]
fn the_envelope_file_of_the_disk_before_costs_the_next_one_no_keyslot() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let (before, after) = (luks1(), luks1());
    machine.bind(&before).succeeded();
    let other = "1c0ffee0-0d5b-4f3c-9d52-1e1fa2a1c0de";
    cryptsetup(&["luksUUID", "--batch-mode", "--uuid", other, after.path()]);
    let line = format!("root_crypt UUID={other} none luks,initramfs\n");
    std::fs::write(machine.path("etc/crypttab"), line).unwrap();
    let key = recovery_key(&machine, &after, 1);
    machine
        .bind(&after)
        .failed_saying(&["is of the volume", UUID, "latchkey unbind"]);
    machine.unbind(&after).succeeded();
    opens(&after, &key);
    machine.bind(&after).succeeded();
    machine.unbind(&after).succeeded();
    opens(&after, &key);
    after.opens_with_the_passphrase();
}

#[test]
fn a_recovery_key_takes_no_keyslot_that_unbinding_would_take_away() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = luks1();
    machine.bind(&volume).succeeded();
    let backup = &machine.state("header-")[0];
    let restore = ["luksHeaderRestore", "--batch-mode", "--header-backup-file"];
    cryptsetup(&[&restore[..], &[backup.to_str().unwrap(), volume.path()]].concat());
    // Keyslot 1 is free again, and the envelope file still names it.
    let key = recovery_key(&machine, &volume, 2);
    machine.unbind(&volume).succeeded();
    opens(&volume, &key);
    volume.opens_with_the_passphrase();
}

#[test]
fn a_volume_that_cannot_be_bound_gets_a_recovery_key() {
    let machine = Machine::new();
    let integrity = Volume::luks2_with_integrity();
    let full_of_tokens = Volume::luks2();
    for id in 0..32 {
        let import = ["token", "import", "--token-id", &id.to_string()];
        let import = [&import[..], &[full_of_tokens.path()]].concat();
        let token = json!({ "type": "other", "keyslots": [] }).to_string();
        run(Command::new("cryptsetup").args(import), &token).succeeded();
    }
    for (volume, key, options) in [
        (&Volume::luks2(), "/etc/keys/data", "luks"),
        (&luks1(), "none", "luks,keyscript=/bin/x"),
        (&Volume::luks2(), "none", "luks,tpm2-device=auto"),
        (&integrity, "none", "luks,swap"),
        (&full_of_tokens, "none", "luks"),
    ] {
        let line = format!("data UUID={UUID} {key} {options}\n");
        std::fs::write(machine.path("etc/crypttab"), line).unwrap();
        let key = recovery_key(&machine, volume, 1);
        opens(volume, &key);
        volume.opens_with_the_passphrase();
    }
    // Without a line, and without a file.
    for crypttab in [Some("other UUID=1111 none luks\n"), None] {
        std::fs::remove_file(machine.path("etc/crypttab")).unwrap_or_default();
        if let Some(lines) = crypttab {
            std::fs::write(machine.path("etc/crypttab"), lines).unwrap();
        }
        let volume = Volume::luks2();
        opens(&volume, &recovery_key(&machine, &volume, 1));
    }
    let several = format!("a UUID={UUID} none luks\nb UUID={UUID} none luks\n");
    std::fs::write(machine.path("etc/crypttab"), several).unwrap();
    let volume = Volume::luks2();
    let arguments = ["recovery-key", volume.path(), "--key-file", "-"];
    machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["'a', 'b'", "--name"]);
    let named = [&arguments[..], &["--name", "b"]].concat();
    let said = machine.latchkey(&named, PASSPHRASE).succeeded();
    assert!(said.out.contains("volume 'b'"), "{}", said.out);
}

#[test]
fn without_a_passphrase_or_a_place_for_the_sheet_nothing_changes() {
    let machine = Machine::new();
    machine.write_crypttab("luks");
    let volume = Volume::luks2();
    let before = volume.bytes();
    let taken = machine.path("sheet.pdf");
    std::fs::write(&taken, "somebody's").unwrap();
    let sheet = taken.to_str().unwrap();
    let arguments = [
        "recovery-key",
        volume.path(),
        "--key-file",
        "-",
        "--sheet",
        sheet,
    ];
    machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["exists already"]);
    std::fs::remove_file(&taken).unwrap();
    machine
        .latchkey(&arguments, "wrong")
        .failed_saying(&["no keyslot of", "opens with the content of the key file"]);
    assert!(!taken.exists());
    assert_eq!(volume.bytes(), before);
}

#[test]
fn a_new_volume_is_made_and_bound_by_one_command() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::plain();
    let arguments = formatting(&volume, &["--key-file", "-", "--json"]);
    let said = machine.latchkey(&arguments, PASSPHRASE).succeeded();
    let report: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["name"], "data");
    assert_eq!(report["kind"], "LUKS2");
    assert_eq!(report["servers"][0]["client"], "web-1");
    assert_eq!(volume.json()["config"]["requirements"], Value::Null);
    volume.opens_with_the_passphrase();
    let crypttab = std::fs::read_to_string(machine.path("etc/crypttab")).unwrap();
    let line = report["crypttab-line"].as_str().unwrap();
    assert_eq!(crypttab.lines().last(), Some(line));
    assert!(line.contains(volume.path()), "{line}");

    let before = volume.bytes();
    machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["is a LUKS volume already", "without --format"]);
    assert_eq!(volume.bytes(), before);
}

#[test]
fn a_new_volume_may_have_a_recovery_key_in_the_place_of_a_passphrase() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::plain();
    let sheet = machine.path("sheet.txt");
    let arguments = formatting(&volume, &["--recovery-sheet", sheet.to_str().unwrap()]);
    machine.latchkey(&arguments, "").succeeded();
    opens(&volume, &key_of(&std::fs::read_to_string(&sheet).unwrap()));
    assert_eq!(volume.count("keyslots"), 2);
    machine.unbind(&volume).succeeded();
    assert_eq!(volume.count("keyslots"), 1);
}

#[test]
fn a_sheet_may_lie_in_the_current_folder() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let (volume, new) = (Volume::luks2(), Volume::plain());
    let sheet = |arguments: &[&str], name: &str| {
        let mut command = machine.command(arguments);
        run(command.current_dir(machine.root.path()), PASSPHRASE).succeeded();
        std::fs::read_to_string(machine.path(name)).unwrap()
    };
    let of_new = formatting(&new, &["--recovery-sheet", "new.txt"]);
    opens(&new, &key_of(&sheet(&of_new, "new.txt")));
    let recovery_key = ["recovery-key", volume.path(), "--key-file", "-"];
    let of_volume = [&recovery_key[..], &["--sheet", "sheet.txt"]].concat();
    opens(&volume, &key_of(&sheet(&of_volume, "sheet.txt")));
}

#[test]
fn a_new_volume_that_is_interrupted_before_it_is_one_leaves_no_sheet() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::plain();
    let sheet = machine.path("sheet.txt");
    let arguments = formatting(&volume, &["--recovery-sheet", sheet.to_str().unwrap()]);
    let mut child = machine.command(&arguments).spawn().unwrap();
    // The key derivation takes memory and then seconds.
    let begin = Instant::now();
    while memory_of(&child) < 64 << 10 {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(volume.bytes().iter().all(|byte| *byte == 0));
    assert!(!sheet.exists());
    machine.latchkey(&arguments, "").succeeded();
    opens(&volume, &key_of(&std::fs::read_to_string(&sheet).unwrap()));
}

/// KiB that a running program has written to.
fn memory_of(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.map_or(0, |number| number.trim().parse().unwrap())
}

#[test]
fn nothing_is_formatted_for_a_machine_that_cannot_bind() {
    let machine = Machine::new();
    let volume = Volume::plain();
    let before = volume.bytes();
    let arguments = formatting(&volume, &["--key-file", "-"]);
    machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["has not joined any key server"]);
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    machine
        .latchkey(&arguments, "")
        .failed_saying(&["without a passphrase", "nothing was changed"]);
    assert_eq!(volume.bytes(), before);
}

#[test]
fn a_sheet_that_nobody_would_see_is_refused_and_nothing_changes() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let (volume, new) = (Volume::luks2(), Volume::plain());
    for (stdout, said) in [
        (">&-", "nobody reads standard output"),
        (">/dev/null", "nobody reads standard output"),
        ("1</proc/version", "failed to print the recovery sheet"),
    ] {
        for (volume, arguments) in [
            (&new, formatting(&new, &["--recovery-sheet", "-"])),
            (
                &volume,
                vec!["recovery-key", volume.path(), "--key-file", "-"],
            ),
        ] {
            let before = volume.bytes();
            let latchkey = machine.command(&arguments);
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &format!("exec \"$0\" \"$@\" {stdout}")])
                .arg(latchkey.get_program())
                .args(latchkey.get_args());
            run(&mut shell, PASSPHRASE).failed_saying(&[said]);
            assert!(volume.bytes() == before, "{stdout}: it was changed");
        }
    }
}

/// What was formatted is not empty any more: the same command, corrected, would be refused.
#[test]
fn nothing_is_formatted_before_all_that_binding_asks_for_was_looked_at() {
    let mut server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::plain();
    let before = volume.bytes();
    let sheet = machine.path("sheet.txt");
    let refused = |more: &[&str], texts: &[&str]| {
        let bind = ["bind", volume.path(), "--format", "--no-initramfs"];
        let sheet = ["--recovery-sheet", sheet.to_str().unwrap()];
        let arguments = [&bind[..], &sheet, more].concat();
        let said = machine.latchkey(&arguments, "").failed_saying(texts);
        assert!(volume.bytes() == before, "{more:?}: {}", said.err);
        assert!(!Path::new(sheet[1]).exists());
    };
    refused(
        &["--name", "root_crypt"],
        &["line 'root_crypt' for another device"],
    );
    refused(&["--name", "a/b"], &["'a/b' cannot be the name"]);
    refused(
        &["--options", "luks,foo=1"],
        &["'foo=1'", "does not know how to honour"],
    );
    refused(
        &["--options", "luks, nofail"],
        &[
            "'luks, nofail' cannot be the options",
            "without white space",
        ],
    );
    refused(
        &["--name", "data", "--options", "plain"],
        &["the options of 'data' say"],
    );
    server.stop();
    refused(&[], &[&server.address(), "nothing was changed"]);
    server.serve();

    // It goes away later: no word of a device on which nothing was changed.
    server.allow(1);
    let arguments = formatting(&volume, &["--key-file", "-"]);
    let said = machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["a LUKS2 volume was made on", "without --format"]);
    assert!(!said.err.contains("nothing was changed"), "{}", said.err);
    server.allow(usize::MAX);
    let mut arguments = arguments;
    arguments.retain(|word| *word != "--format");
    machine.latchkey(&arguments, PASSPHRASE).succeeded();
}

/// The command that makes a new volume, with what opens it.
fn formatting<'a>(volume: &'a Volume, opened_by: &[&'a str]) -> Vec<&'a str> {
    let bind = [
        "bind",
        volume.path(),
        "--format",
        "--name",
        "data",
        "--no-initramfs",
    ];
    [&bind, opened_by].concat()
}

fn luks1() -> Volume {
    Volume::format(&["--type", "luks1"])
}

fn cryptsetup(arguments: &[&str]) {
    run(Command::new("cryptsetup").args(arguments), "").succeeded();
}

/// A new recovery key of `volume`, in keyslot `slot`.
#[track_caller]
fn recovery_key(machine: &Machine, volume: &Volume, slot: u32) -> String {
    let arguments = ["recovery-key", volume.path(), "--key-file", "-"];
    let said = machine.latchkey(&arguments, PASSPHRASE).succeeded();
    let made = format!("keyslot {slot} opens with the recovery key");
    assert!(said.err.contains(&made), "{}", said.err);
    key_of(&said.out)
}

/// The line after "Recovery key".
fn key_of(sheet: &str) -> String {
    let mut lines = sheet
        .lines()
        .skip_while(|line| !line.starts_with("Recovery key"));
    lines.nth(2).unwrap().trim().to_owned()
}

fn opens(volume: &Volume, key: &str) {
    let path: &Path = volume.path().as_ref();
    let arguments = ["open", "--test-passphrase", "--key-file", "-"];
    run(Command::new("cryptsetup").args(arguments).arg(path), key).succeeded();
}
