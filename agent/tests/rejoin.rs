//! A machine that lost its keys is taken back: the real programs, the real key server, LUKS in a plain file.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use common::machine::{Machine, PASSPHRASE, Said, Server, UUID, Volume, bind_arguments};

/// `latchkey join --again` while it waits for a person.
struct Asking {
    child: Child,
    err: BufReader<std::process::ChildStderr>,
    said: String,
    id: String,
    code: String,
}

impl Asking {
    fn begin(machine: &Machine, more: &[&str]) -> Self {
        let mut arguments = vec!["join", "--again", "--no-initramfs"];
        arguments.extend(more);
        let mut child = machine
            .command(&arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let err = BufReader::new(child.stderr.take().unwrap());
        let mut asking = Self {
            child,
            err,
            said: String::new(),
            id: String::new(),
            code: String::new(),
        };
        while asking.code.is_empty() {
            let before = asking.said.len();
            let read = asking.err.read_line(&mut asking.said).unwrap();
            assert!(read > 0, "it ended: {}", asking.said);
            if let Some((_, words)) = asking.said[before..].split_once("approve --rejoin ") {
                let words: Vec<&str> = words.split_whitespace().collect();
                let [id, code] = words[..] else {
                    panic!("{}", asking.said)
                };
                (asking.id, asking.code) = (id.to_owned(), code.to_owned());
            }
        }
        asking
    }

    fn end(mut self) -> Said {
        std::io::Read::read_to_string(&mut self.err, &mut self.said).unwrap();
        Said {
            code: self.child.wait().unwrap().code().unwrap_or(-1),
            out: String::new(),
            err: self.said,
        }
    }
}

fn bound(server: &Server) -> (Machine, Volume) {
    let machine = Machine::joined(&[server]);
    machine.encrypt_root();
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    (machine, volume)
}

fn copy(from: &Path, to: &Path) {
    let mut command = std::process::Command::new("cp");
    common::machine::run(command.arg("-aT").args([from, to]), "").succeeded();
}

#[test]
fn a_machine_that_lost_its_host_key_is_taken_back_with_its_volumes_and_the_old_keys_are_refused() {
    let server = Server::start();
    let (machine, volume) = bound(&server);
    let before = volume.json();
    let dir = machine.server_dir();
    // A copy of it, whole, as a thief has it who could open the disk.
    let thief = Machine::new();
    copy(&machine.path("etc"), &thief.path("etc"));
    thief.plug_in(&volume);
    std::fs::remove_file(dir.join("host.key")).unwrap();
    machine
        .latchkey(
            &["join", "--again", "--server", "0000", "--no-initramfs"],
            "",
        )
        .failed_saying(&["which key server?", "--server ID"]);

    let asking = Asking::begin(&machine, &[]);
    // It is not to be taken for a boot.
    let said = server.admin(&["approve", &asking.id, &asking.code]);
    assert_eq!(said.code, 3, "{}", said.err);
    for text in [
        "NO BOOT",
        "as client 'web-1' with new keys",
        "would be replaced by",
        "approve --rejoin",
    ] {
        assert!(said.err.contains(text), "{text} in {}", said.err);
    }
    let listed = server.admin(&["requests"]).succeeded();
    assert!(listed.out.contains("TAKE BACK"), "{}", listed.out);
    assert!(!listed.out.contains(&asking.code) && !listed.err.contains(&asking.code));
    thief.latchkey(&["status"], "").succeeded();
    let wrong = server.admin(&["approve", "--rejoin", &asking.id, "AAA-AAA"]);
    assert_eq!(wrong.code, 3, "{}", wrong.err);

    server
        .admin(&["approve", "--rejoin", &asking.id, &asking.code])
        .succeeded();
    let said = asking.end().succeeded();
    for text in ["took this machine back as 'web-1'", "'root_crypt' opens"] {
        assert!(said.err.contains(text), "{text} in {}", said.err);
    }
    assert_eq!(machine.server_dir(), dir, "and nothing beside it is left");
    machine.latchkey(&["status"], "").succeeded();
    assert_eq!(
        thief.latchkey(&["status"], "").code,
        3,
        "its keys are the old ones"
    );
    assert_eq!(volume.json(), before, "the header was not touched");
    volume.opens_with_the_passphrase();

    machine
        .latchkey(&["join", "--again", "--no-initramfs"], "")
        .failed_saying(&[
            "every key server of the bound volumes are there",
            "host.key",
        ]);
    // All that hangs on the keys works on.
    machine.unbind(&volume).succeeded();
    machine.bind(&volume).succeeded();
}

#[test]
fn where_all_of_etc_latchkey_is_lost_the_header_says_who_the_machine_is() {
    let server = Server::start();
    let (machine, _volume) = bound(&server);
    std::fs::remove_dir_all(machine.path("etc/latchkey")).unwrap();
    machine
        .latchkey(&["join", "--again", "--no-initramfs"], "")
        .failed_saying(&["is not known here any more", "--address HOST"]);
    machine
        .latchkey(
            &[
                "join",
                "--again",
                "--no-initramfs",
                "--address",
                "127.0.0.1:1",
            ],
            "",
        )
        .failed_saying(&["does not answer", "connection refused"]);
    let address = server.address();
    let asking = Asking::begin(&machine, &["--address", &address]);
    // It is interrupted, and run again: the same request.
    let (id, code) = (asking.id.clone(), asking.code.clone());
    let mut child = asking.child;
    child.kill().unwrap();
    child.wait().unwrap();
    server
        .admin(&["approve", "--rejoin", &id, &code])
        .succeeded();
    machine
        .latchkey(
            &["join", "--again", "--no-initramfs", "--address", &address],
            "",
        )
        .succeeded();
    machine.latchkey(&["status"], "").succeeded();
    // Interrupted once more, before the finished folder had its name.
    let dir = machine.server_dir();
    std::fs::rename(&dir, dir.with_extension("joining")).unwrap();
    machine
        .latchkey(&["join", "--again", "--no-initramfs"], "")
        .succeeded();
    assert_eq!(machine.server_dir(), dir);
    machine.latchkey(&["status"], "").succeeded();
}

#[test]
fn an_image_that_an_interrupted_run_left_is_rebuilt_by_the_next() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start();
    let (machine, _volume) = bound(&server);
    std::fs::create_dir(machine.path("boot")).unwrap();
    let image = std::fs::File::create(machine.path("boot/initrd.img-1")).unwrap();
    let early = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    image.set_modified(early).unwrap();
    let tool = machine.path("usr/sbin/update-initramfs");
    std::fs::create_dir_all(tool.parent().unwrap()).unwrap();
    let image = machine.path("boot/initrd.img-1");
    let script = format!("#!/bin/sh\necho new >'{}'\n", image.display());
    std::fs::write(&tool, script).unwrap();
    std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
    let again = |more: &[&str]| {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", tool.parent().unwrap().display());
        let arguments = [&["join", "--again"], more].concat();
        common::machine::run(machine.command(&arguments).env("PATH", path), "")
    };
    // Whoever rebuilds nothing is told as before.
    again(&["--no-initramfs"]).failed_saying(&["are there"]);
    again(&[]).succeeded();
    assert_eq!(std::fs::read_to_string(&image).unwrap(), "new\n");
    again(&[]).failed_saying(&["are there"]);
}

#[test]
fn the_unit_of_a_data_volume_is_named_as_systemd_calls_it() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    machine.encrypt_root();
    let line = format!("my-data UUID={UUID} none luks,_netdev,nofail\n");
    std::fs::write(machine.path("etc/crypttab"), line).unwrap();
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    machine
        .latchkey(&bind_arguments(&volume), PASSPHRASE)
        .succeeded();
    std::fs::remove_file(machine.server_dir().join("host.key")).unwrap();
    let asking = Asking::begin(&machine, &[]);
    server
        .admin(&["approve", "--rejoin", &asking.id, &asking.code])
        .succeeded();
    let said = asking.end().succeeded();
    let unit = r"systemctl restart 'latchkey@my\x2ddata.service'";
    assert!(said.err.contains(unit), "{}", said.err);
}

#[test]
fn without_a_persons_word_nobody_is_taken_back() {
    let (server, other) = (Server::start(), Server::start());
    let (machine, volume) = bound(&server);
    let stranger = Machine::new();
    stranger.write_crypttab("luks");
    stranger
        .latchkey(&["join", "--again", "--no-initramfs"], "")
        .failed_saying(&["no volume of '/etc/crypttab'", "latchkeyd invite"]);

    // Another key server than the envelope's is sent nothing.
    let dir = machine.server_dir();
    std::fs::remove_file(dir.join("boot.key")).unwrap();
    let elsewhere = other.address();
    machine
        .latchkey(
            &["join", "--again", "--no-initramfs", "--address", &elsewhere],
            "",
        )
        .failed_saying(&["another key server"]);

    let asking = Asking::begin(&machine, &[]);
    server.admin(&["deny", &asking.id]).succeeded();
    asking.end().failed_saying(&[
        "does not take this machine back",
        "denied by the administrator",
    ]);
    // The next one is another request.
    let asking = Asking::begin(&machine, &[]);
    server.admin(&["revoke", "web-1"]).succeeded();
    let said = server.admin(&["approve", "--rejoin", &asking.id, &asking.code]);
    assert_eq!(said.code, 3, "{}", said.err);
    asking
        .end()
        .failed_saying(&["takes no machine back by these volumes", "latchkeyd invite"]);
    assert!(volume.json()["tokens"].to_string().contains("latchkey"));
}
