//! `join`, `bind`, `unbind`, `list`, `status`: the real programs, the real key server, LUKS in plain files.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod recovery;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::machine::{Machine, PASSPHRASE, Server, UUID, Volume, bind_arguments, run};
use latchkey_protocol::ServerId;
use latchkey_protocol::token::JoinToken;
use serde_json::{Value, json};

// Joining

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

// Binding

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
    let line = format!("luks-{UUID} UUID={UUID} none luks,initramfs");
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
fn a_luks1_volume_is_bound_by_an_envelope_file() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::format(&["--type", "luks1"]);
    machine.plug_in(&volume);
    let dump = || {
        let dump = ["luksDump", volume.path()];
        run(Command::new("cryptsetup").args(dump), "")
            .succeeded()
            .out
    };
    let enabled = || dump().matches(": ENABLED").count();
    let said = machine.bind(&volume).succeeded();
    assert!(said.err.contains("LUKS1"), "{}", said.err);
    assert_eq!(enabled(), 2);
    volume.opens_with_the_passphrase();
    let envelope = machine.path("etc/latchkey/envelopes/root_crypt.json");
    let mode = std::fs::metadata(&envelope).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(machine.state("header-").len(), 1);
    assert_eq!(machine.state("bind-").len(), 0);
    let list: Value =
        serde_json::from_str(&machine.latchkey(&["list", "--json"], "").succeeded().out).unwrap();
    assert_eq!(list[0]["kind"], "LUKS1");
    assert_eq!(list[0]["binding"]["keyslot"], 1);
    assert_eq!(list[0]["problems"], json!([]));
    let files = machine.latchkey(&["image-files"], "").succeeded().out;
    assert_eq!(files, "/etc/latchkey/envelopes/root_crypt.json\n");
    let bound = machine.latchkey(&["bound-volumes"], "").succeeded().out;
    assert_eq!(bound, format!("{UUID}\n"));
    machine.bind(&volume).failed_saying(&["is bound already"]);

    machine.unbind(&volume).succeeded();
    assert_eq!(enabled(), 1);
    assert!(!envelope.exists());
    volume.opens_with_the_passphrase();
    machine.unbind(&volume).failed_saying(&["is not bound"]);

    // The person's keyslot stays whatever the envelope file says.
    machine.bind(&volume).succeeded();
    std::fs::write(&envelope, "{}").unwrap();
    machine
        .bind(&volume)
        .failed_saying(&["does not work", "latchkey unbind"]);
    let said = machine.unbind(&volume).succeeded();
    assert!(said.err.contains("luksKillSlot"), "{}", said.err);
    assert_eq!(enabled(), 2);
    volume.opens_with_the_passphrase();
}

#[test]
fn a_failed_binding_of_luks1_leaves_nothing() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::format(&["--type", "luks1"]);
    server.allow(1);
    machine
        .bind(&volume)
        .failed_saying(&["the proof failed", "was taken back"]);
    let dump = ["luksDump", volume.path()];
    let dump = run(Command::new("cryptsetup").args(dump), "").succeeded();
    assert_eq!(dump.out.matches(": ENABLED").count(), 1);
    assert!(
        !machine
            .path("etc/latchkey/envelopes/root_crypt.json")
            .exists()
    );
    assert_eq!(
        (machine.state("bind-").len(), machine.state("header-").len()),
        (0, 0)
    );
    volume.opens_with_the_passphrase();
}

#[test]
fn a_detached_header_is_bound_and_its_data_is_not_touched() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let data = Volume::plain();
    let header = machine.path("etc/data.header");
    let format = [
        "luksFormat",
        "--batch-mode",
        "--type",
        "luks2",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "2000",
        "--key-file",
        "-",
        "--header",
        header.to_str().unwrap(),
        data.path(),
    ];
    run(Command::new("cryptsetup").args(format), PASSPHRASE).succeeded();
    // The same path below the machine's root, where crypttab's sources are looked for.
    let below = machine.path(data.path().trim_start_matches('/'));
    std::fs::create_dir_all(below.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(data.path(), &below).unwrap();
    let before = data.bytes();
    // Without the line nothing says that it is encrypted at all.
    machine
        .bind(&data)
        .failed_saying(&["is not encrypted with LUKS", "--options"]);
    let mut arguments = bind_arguments(&data);
    arguments.extend([
        "--name",
        "data",
        "--options",
        "luks,header=/etc/data.header",
    ]);
    let said = machine.latchkey(&arguments, PASSPHRASE).succeeded();
    assert!(said.err.contains("detached header"), "{}", said.err);
    assert!(data.bytes() == before);
    let list: Value =
        serde_json::from_str(&machine.latchkey(&["list", "--json"], "").succeeded().out).unwrap();
    assert_eq!(list[1]["name"], "data");
    assert_eq!(list[1]["kind"], "LUKS2 with a detached header");
    assert_eq!(list[1]["binding"]["state"], "bound");
    assert_eq!(list[1]["problems"], json!([]));
    let files = machine.latchkey(&["image-files"], "").succeeded().out;
    assert_eq!(files, "/etc/data.header\n");
    // The same command again finds its own line.
    machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["is bound already"]);
    machine.unbind(&data).succeeded();
    assert_eq!(machine.latchkey(&["image-files"], "").succeeded().out, "");
    assert!(data.bytes() == before);
}

/// What can be seen without device-mapper: all that is refused before a plain volume is looked into.
#[test]
fn a_plain_volume_is_bound_only_if_all_of_it_is_known_and_proved() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let data = Volume::plain();
    let before = data.bytes();
    let refused = |options: &str, more: &[&str], input: &str, texts: &[&str]| {
        let mut arguments = vec!["bind", data.path(), "--no-initramfs", "--name", "data"];
        arguments.extend(["--options", options]);
        arguments.extend(more);
        machine.latchkey(&arguments, input).failed_saying(texts);
        assert!(data.bytes() == before, "{options}: the volume was changed");
        assert!(!machine.path("etc/latchkey/envelopes").exists());
        let crypttab = std::fs::read_to_string(machine.path("etc/crypttab")).unwrap();
        assert!(!crypttab.contains("data"), "{crypttab}");
        assert_eq!(machine.state("bind-").len(), 0);
    };
    let (passphrase, key) = (&["--key-file", "-"][..], &["--volume-key-file", "-"][..]);
    let good = "plain,cipher=twofish-xts-plain64,hash=sha512,size=512";
    refused(
        "plain",
        passphrase,
        PASSPHRASE,
        &["does not say cipher=, hash=, size=", "changed in 2.7"],
    );
    refused(
        "plain,cipher=null,hash=sha512,size=512",
        passphrase,
        PASSPHRASE,
        &["'null' does not encrypt"],
    );
    refused(
        "plain,cipher=aes,hash=sha512,size=512",
        passphrase,
        PASSPHRASE,
        &["'aes' is no cipher with mode"],
    );
    refused(
        "plain,cipher=aes-xts-plain64,hash=sha512,size=500",
        passphrase,
        PASSPHRASE,
        &["'size=500'"],
    );
    refused(
        "plain,swap,cipher=aes-xts-plain64,hash=sha512,size=512",
        passphrase,
        PASSPHRASE,
        &["formatted anew"],
    );
    refused(
        good,
        key,
        "short",
        &["has 5 bytes, crypttab's size= says 64"],
    );
    refused(good, passphrase, "", &["not one of 0"]);
    refused(good, passphrase, &"x".repeat(513), &["not one of 513"]);
    // Here there is no device-mapper, or there is, and the volume is noise.
    refused(
        good,
        passphrase,
        PASSPHRASE,
        &[
            "was not found to be a plain volume",
            "cipher 'twofish-xts-plain64'",
        ],
    );
    let luks = Volume::luks2();
    let arguments = [
        "bind",
        luks.path(),
        "--volume-key-file",
        "-",
        "--no-initramfs",
    ];
    machine
        .latchkey(&arguments, "key")
        .failed_saying(&["is LUKS2: --volume-key-file is for plain dm-crypt"]);
    assert!(server.admin(&["volumes"]).succeeded().out.lines().count() <= 1);
}

#[test]
fn without_a_key_server_nothing_is_bound() {
    let machine = Machine::new();
    machine.write_crypttab("luks");
    let volume = Volume::luks2();
    let before = volume.bytes();
    machine
        .bind(&volume)
        .failed_saying(&["has not joined any key server", "latchkey join"]);
    assert!(volume.bytes() == before);
    let said = machine.latchkey(&["status"], "").succeeded();
    assert!(
        said.out.contains("no key server was joined"),
        "{}",
        said.out
    );
}

#[test]
fn a_key_server_that_is_away_leaves_nothing_half_done() {
    let mut server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    let header = volume.json();
    server.stop();
    machine.bind(&volume).failed_saying(&[
        "did not give a share",
        &server.address(),
        "nothing was changed",
    ]);
    assert_eq!(volume.json(), header);
    let said = machine.latchkey(&["status"], "");
    assert_eq!(said.code, 3, "{}", said.out);
    server.serve();

    // It goes away after the registration, before the proof.
    server.allow(1);
    let said = machine
        .bind(&volume)
        .failed_saying(&["the proof failed", &server.address()]);
    assert!(said.err.contains("was taken back"), "{}", said.err);
    assert!(said.err.contains("latchkeyd destroy"), "{}", said.err);
    assert_eq!(volume.json()["keyslots"], header["keyslots"]);
    assert_eq!(volume.json()["tokens"], json!({}));
    assert_eq!(
        (machine.state("bind-").len(), machine.state("header-").len()),
        (0, 0)
    );
    volume.opens_with_the_passphrase();

    // It goes away after the proof: bound all the same.
    server.allow(2);
    machine.bind(&volume).succeeded();
    // Unbinding needs no key server.
    server.allow(0);
    let said = machine.unbind(&volume).succeeded();
    assert!(said.err.contains("latchkeyd destroy"), "{}", said.err);
    assert_eq!(volume.json()["keyslots"], header["keyslots"]);
    volume.opens_with_the_passphrase();
}

#[test]
fn every_key_server_gets_an_envelope_or_none_does() {
    let (first, mut second) = (Server::start(), Server::start());
    let machine = Machine::joined(&[&first]);
    let volume = Volume::luks2();
    machine.bind(&volume).succeeded();
    machine
        .latchkey(&["join", "-"], &second.invite("web-1"))
        .succeeded();
    machine
        .bind(&volume)
        .failed_saying(&["bound already, but not to key server", "latchkey unbind"]);
    machine.unbind(&volume).succeeded();

    second.stop();
    machine
        .bind(&volume)
        .failed_saying(&[&second.address(), "nothing was changed"]);
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 0));
    assert_eq!(machine.state("bind-").len(), 0);
    second.serve();
    machine.bind(&volume).succeeded();
    let token = &volume.json()["tokens"]["0"];
    assert_eq!(token["envelopes"].as_array().unwrap().len(), 2);
}

#[test]
fn a_keyslot_of_somebody_else_survives_the_repair() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    // Interrupted before keyslot 1 was made; then a person took it.
    let journal = json!({
        "uuid": UUID, "volume": "0b6ee3f6-2a1c-4a51-8f1b-0123456789ab", "servers": [], "tokens": [],
        "keyslots": [{ "slot": 1, "salt": null }], "backup": null,
    });
    std::fs::create_dir_all(machine.path("var/lib/latchkey")).unwrap();
    let path = machine.path(&format!("var/lib/latchkey/bind-{UUID}.json"));
    std::fs::write(&path, journal.to_string()).unwrap();
    let key = machine.path("key");
    std::fs::write(&key, "another passphrase").unwrap();
    let add = ["luksAddKey", "--key-file", "-", volume.path()];
    run(
        Command::new("cryptsetup").args(add).arg(&key).args([
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "2000",
        ]),
        PASSPHRASE,
    )
    .succeeded();
    let theirs = volume.json()["keyslots"]["1"].clone();
    machine.bind(&volume).succeeded();
    assert_eq!(volume.json()["keyslots"]["1"], theirs);
    assert_eq!(volume.count("keyslots"), 3);
    assert!(!path.exists());
}

#[test]
fn a_damaged_token_is_named_and_unbinding_removes_it() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    let token = json!({ "type": "latchkey", "keyslots": ["0"], "version": 99 });
    let import = ["token", "import", "--token-id", "0", volume.path()];
    run(Command::new("cryptsetup").args(import), &token.to_string()).succeeded();
    machine
        .bind(&volume)
        .failed_saying(&["has a latchkey token that does not work", "latchkey unbind"]);
    let listed = machine.latchkey(&["list"], "").succeeded().out;
    assert!(listed.contains("! not a latchkey token"), "{listed}");
    // It names a keyslot that latchkey did not make, which stays.
    machine.unbind(&volume).succeeded();
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 0));
    volume.opens_with_the_passphrase();
}

#[test]
fn the_last_keyslot_stays() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.bind(&volume).succeeded();
    let kill = ["luksKillSlot", "--batch-mode", volume.path(), "0"];
    run(Command::new("cryptsetup").args(kill), "").succeeded();
    machine
        .unbind(&volume)
        .failed_saying(&["no keyslot but latchkey's", "luksAddKey"]);
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 1));
}

/// `latchkey bind` on a terminal, where each of `lines` is typed when it asks; then the terminal's settings are
/// printed.
fn bind_on_a_terminal(machine: &Machine, volume: &Volume, lines: &[&str]) -> (i32, String) {
    let command = format!(
        "{} --root {} bind {} --no-initramfs; code=$?; stty -a; exit $code",
        env!("CARGO_BIN_EXE_latchkey"),
        machine.root.path().display(),
        volume.path()
    );
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let (mut said, mut typed, mut byte) = (Vec::new(), 0, [0]);
    while screen.read(&mut byte).is_ok_and(|read| read == 1) {
        said.push(byte[0]);
        let asked = String::from_utf8_lossy(&said).matches("): ").count();
        if asked > typed && typed < lines.len() {
            keyboard.write_all(lines[typed].as_bytes()).unwrap();
            typed += 1;
        }
    }
    let code = child.wait().unwrap().code().unwrap_or(-1);
    (code, String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_typed_passphrase_is_not_shown_and_the_terminal_is_put_back() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    let right = format!("wrong-2\x15{PASSPHRASE}\r");
    for (lines, code, texts) in [
        (
            &["wrong-1\r", "wrong-2\r", "wrong-3\r"][..],
            1,
            &["with the passphrases that were typed"][..],
        ),
        (&["wrong-1\x03"], 1, &["cancelled"]),
        (
            &["wrong-1\r", &right],
            0,
            &["no keyslot opens", "bound 'root_crypt'"],
        ),
    ] {
        let (ended, said) = bind_on_a_terminal(&machine, &volume, lines);
        assert_eq!(ended, code, "{said}");
        for text in texts.iter().chain(&[
            "Passphrase for 'root_crypt' (",
            " echo ",
            " icanon ",
            "isig ",
        ]) {
            assert!(said.contains(text), "'{text}' is missing in {said}");
        }
        for secret in ["wrong", PASSPHRASE] {
            assert!(!said.contains(secret), "'{secret}' is shown in {said}");
        }
    }
}

// Other commands

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
