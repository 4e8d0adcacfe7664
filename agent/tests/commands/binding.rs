//! `bind` and `unbind` of LUKS2, and what crypttab says about it.

use serde_json::{Value, json};

use crate::common::machine::{Machine, PASSPHRASE, Server, UUID, Volume, bind_arguments};

#[test]
fn a_bound_volume_is_shown_everywhere_and_unbinding_restores_it() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    let before = volume.json()["keyslots"]["0"].clone();
    let said = machine.bind(&volume).succeeded();
    for text in [
        "bound 'root_crypt'",
        "keyslot 1",
        "policy: ",
        "latchkey unbind",
    ] {
        assert!(said.err.contains(text), "{text} in {}", said.err);
    }
    assert!(!said.err.contains(PASSPHRASE));
    assert_eq!(said.out, "");
    volume.opens_with_the_passphrase();
    let header = volume.json();
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (2, 1));
    assert_eq!(header["keyslots"]["0"], before);
    assert_eq!(header["keyslots"]["1"]["kdf"]["type"], "pbkdf2");
    assert_eq!(header["keyslots"]["1"]["kdf"]["iterations"], 1000);
    assert_eq!(machine.state("header-").len(), 1);
    assert_eq!(machine.state("bind-").len(), 0);

    let list: Value =
        serde_json::from_str(&machine.latchkey(&["list", "--json"], "").succeeded().out).unwrap();
    assert_eq!(list[0]["name"], "root_crypt");
    assert_eq!(list[0]["binding"]["state"], "bound");
    assert_eq!(list[0]["problems"], json!([]));
    let status: Value =
        serde_json::from_str(&machine.latchkey(&["status", "--json"], "").succeeded().out).unwrap();
    let id = &list[0]["binding"]["volume"];
    assert_eq!(&status["servers"][0]["volumes"][0]["volume"], id);
    assert_eq!(status["servers"][0]["addresses"][0]["problem"], Value::Null);
    let text = machine.latchkey(&["status"], "").succeeded().out;
    assert!(
        text.contains(&format!("{} answers", server.address())),
        "{text}"
    );
    assert!(
        server
            .admin(&["volumes"])
            .succeeded()
            .out
            .contains("root_crypt")
    );
    std::fs::create_dir_all(machine.path("proc")).unwrap();
    let words = machine.path("proc/cmdline");
    std::fs::write(
        &words,
        "root=/dev/mapper/root_crypt systemd.unit=multi-user.target\n",
    )
    .unwrap();
    let said = machine.latchkey(&["status"], "");
    assert_eq!(said.code, 3);
    assert!(
        said.out.contains("has 'systemd.unit=multi-user.target'"),
        "{}",
        said.out
    );
    std::fs::remove_file(&words).unwrap();

    machine
        .bind(&volume)
        .failed_saying(&["is bound already", "latchkey status"]);
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (2, 1));

    machine.unbind(&volume).succeeded();
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 0));
    assert_eq!(volume.json()["keyslots"]["0"], before);
    volume.opens_with_the_passphrase();
    machine.unbind(&volume).failed_saying(&["is not bound"]);
    machine.bind(&volume).succeeded();
}

#[test]
fn unbinding_keeps_a_backup_of_the_header_that_it_changes() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.bind(&volume).succeeded();
    machine.remove_backups();
    let before = volume.bytes();
    let said = machine.unbind(&volume).succeeded();
    let backups = machine.state("header-");
    assert_eq!(backups.len(), 1, "{backups:?}");
    let backup = std::fs::read(&backups[0]).unwrap();
    assert!(backup.len() >= 16 << 20 && before.starts_with(&backup));
    let path = backups[0].to_str().unwrap();
    assert!(said.err.contains(path), "{path} in {}", said.err);
    // What is not bound needs none.
    machine.unbind(&volume).failed_saying(&["is not bound"]);
    assert_eq!(machine.state("header-"), backups);
}

#[test]
fn volumes_that_cannot_be_bound_are_refused_and_not_touched() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let refused = |volume: &Volume, input: &str, texts: &[&str]| {
        let before = volume.bytes();
        machine
            .latchkey(&bind_arguments(volume), input)
            .failed_saying(texts);
        assert!(
            volume.bytes() == before,
            "{texts:?}: the volume was changed"
        );
        assert_eq!(machine.state("bind-").len(), 0, "{texts:?}");
        assert_eq!(machine.state("header-").len(), 0, "{texts:?}");
    };
    refused(
        &Volume::plain(),
        PASSPHRASE,
        &["is not encrypted with LUKS"],
    );
    let volume = Volume::luks2();
    refused(&volume, "wrong", &["no keyslot", "key file"]);
    refused(
        &volume,
        &format!("{PASSPHRASE}\n"),
        &["a line end at its end too"],
    );
    refused(&volume, "", &["key file"]);
    // Numbers are left, but room for one keyslot only.
    let full = Volume::format(&["--type", "luks2", "--luks2-keyslots-size", "256k"]);
    refused(
        &full,
        PASSPHRASE,
        &["all keyslots of", "cryptsetup luksKillSlot"],
    );

    for (argument, texts) in [
        ("/absent", &["'/absent' is no device"][..]),
        ("/proc", &["'/proc'"]),
        ("/dev/null", &["'/dev/null'"]),
    ] {
        machine
            .latchkey(
                &["bind", argument, "--key-file", "-", "--no-initramfs"],
                PASSPHRASE,
            )
            .failed_saying(texts);
    }
    // Nothing of this reached the key server.
    assert!(
        !server
            .admin(&["volumes"])
            .succeeded()
            .out
            .contains("root_crypt")
    );
}

#[test]
fn crypttab_decides_whether_a_volume_can_be_bound() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    let refused = |crypttab: &str, texts: &[&str]| {
        std::fs::write(machine.path("etc/crypttab"), crypttab).unwrap();
        machine.bind(&volume).failed_saying(texts);
    };
    refused(
        &format!("a UUID={UUID} /etc/keys/a luks\n"),
        &["key file '/etc/keys/a'", "'none'"],
    );
    refused(
        &format!("a UUID={UUID} none luks,keyscript=/bin/x\n"),
        &["'keyscript='"],
    );
    refused(
        &format!("a UUID={UUID} none luks\nb UUID={UUID} none luks\n"),
        &["'a', 'b'", "--name"],
    );
    let mut arguments = bind_arguments(&volume);
    arguments.extend(["--name", "c"]);
    machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["no line 'c'", "'a', 'b'"]);

    refused(
        &format!("a UUID={UUID} none luks,tpm2-device=auto,check\n"),
        &["'tpm2-device=auto', 'check'", "does not know how to honour"],
    );
    for option in ["swap", "tmp=ext4"] {
        refused(
            &format!("a UUID={UUID} none luks,{option}\n"),
            &[option, "formatted anew whenever it is opened"],
        );
    }
    refused(
        &format!("a UUID={UUID} none luks,header=/etc/absent\n"),
        &["/etc/absent"],
    );
    let mut arguments = bind_arguments(&volume);
    arguments.extend(["--options", "luks"]);
    std::fs::write(
        machine.path("etc/crypttab"),
        format!("a UUID={UUID} none luks,discard\n"),
    )
    .unwrap();
    machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["has the line 'a'", "change its options there"]);
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 0));

    // A line that is none is passed over.
    let lines = format!("bad\na UUID={UUID} none luks,nofail,_netdev\n");
    std::fs::write(machine.path("etc/crypttab"), lines).unwrap();
    let said = machine.bind(&volume).succeeded();
    assert!(said.err.contains("line 1"), "{}", said.err);
}

#[test]
fn the_swap_of_the_installer_is_bound_where_its_word_means_nothing() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let tool = machine.path("usr/sbin/update-initramfs");
    std::fs::create_dir_all(tool.parent().unwrap()).unwrap();
    std::fs::write(tool, "").unwrap();
    let line = |options: &str| {
        let line = format!("a UUID={UUID} none {options}\n");
        std::fs::write(machine.path("etc/crypttab"), line).unwrap();
    };
    let volume = Volume::luks2();
    for options in ["luks,tmp", "swap", "luks,swap,_netdev,nofail"] {
        line(options);
        let why = "formatted anew whenever it is opened";
        machine.bind(&volume).failed_saying(&[why]);
    }
    line("luks,swap,discard");
    machine.bind(&volume).succeeded();
}

#[test]
fn what_crypttab_says_in_vain_is_told() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    let bind = |crypttab: &[u8], more: &[&str]| {
        std::fs::write(machine.path("etc/crypttab"), crypttab).unwrap();
        let mut arguments = bind_arguments(&volume);
        arguments.extend(more);
        machine.latchkey(&arguments, PASSPHRASE)
    };
    // A second line of one name would never be read.
    let broken = b"mine UUID=1111 none luks and more\n";
    bind(broken, &["--name", "mine"]).failed_saying(&["more than four fields", "--name"]);
    let other = format!("mine UUID={UUID} none luks,discard # a comment\n# Ger\u{e4}t\n");
    let mut latin = other.into_bytes();
    latin.retain(|byte| *byte != 0xc3); // half of a character
    bind(&latin, &[]).succeeded();
}

#[test]
fn where_crypttab_has_no_line_binding_writes_it() {
    let mut server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    let before = "# of the administrator\nother UUID=1111 none luks\n";
    std::fs::write(machine.path("etc/crypttab"), before).unwrap();
    let crypttab = || std::fs::read_to_string(machine.path("etc/crypttab")).unwrap();

    // What fails is taken back, the line too.
    server.allow(1);
    machine.bind(&volume).failed_saying(&["the proof failed"]);
    assert_eq!(crypttab(), before);
    server.stop();
    server.serve();
    server.allow(usize::MAX);

    let said = machine.bind(&volume).succeeded();
    // It is a file, which no UUID leads to.
    let line = format!("luks-{UUID} {} none luks,initramfs", volume.path());
    assert!(said.err.contains(&line), "{}", said.err);
    assert_eq!(crypttab(), format!("{before}{line}\n"));
    let backups = machine.state("crypttab-");
    assert_eq!(backups.len(), 1);
    assert_eq!(std::fs::read_to_string(&backups[0]).unwrap(), before);
    machine.unbind(&volume).succeeded();
    assert_eq!(crypttab(), format!("{before}{line}\n"));

    let mut arguments = bind_arguments(&volume);
    arguments.extend(["--name", "other"]);
    std::fs::write(machine.path("etc/crypttab"), before).unwrap();
    machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["line 'other' for another device", "--name"]);
}

#[test]
fn beside_a_root_without_a_block_device_a_new_line_is_that_of_a_data_volume() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    std::fs::write(machine.path("etc/crypttab"), "").unwrap();
    std::fs::create_dir_all(machine.path("proc/self")).unwrap();
    let mounts = "22 1 0:21 / / rw,relatime - zfs rpool/ROOT/debian rw,xattr\n";
    std::fs::write(machine.path("proc/self/mountinfo"), mounts).unwrap();
    let volume = Volume::luks2();
    let said = machine.bind(&volume).succeeded();
    let path = volume.path();
    let line = format!("luks-{UUID} {path} none luks,_netdev,nofail\n");
    let crypttab = std::fs::read_to_string(machine.path("etc/crypttab")).unwrap();
    assert_eq!(crypttab, line);
    for text in ["'/' is a zfs file system", "take the binding away again"] {
        assert!(said.err.contains(text), "{text} in {}", said.err);
    }
}
