//! `bind` and `unbind` where a key server is away, or a header is not as it should be.

use std::os::unix::fs::FileExt;
use std::process::Command;

use serde_json::json;

use crate::common::machine::{Machine, PASSPHRASE, Said, Server, UUID, Volume, run};

#[test]
fn without_a_key_server_nothing_is_bound() {
    let machine = Machine::new();
    machine.write_crypttab("luks");
    let volume = Volume::luks2();
    machine.plug_in(&volume);
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
    machine.plug_in(&volume);
    let header = volume.json();
    server.stop();
    machine.bind(&volume).failed_saying(&[
        "did not give a share",
        &server.address(),
        "was taken back",
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
        .failed_saying(&[&second.address(), "was taken back"]);
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

#[test]
fn a_keyslot_that_opens_no_data_is_no_persons() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.bind(&volume).succeeded();
    let add = [
        "luksAddKey",
        "--batch-mode",
        "--unbound",
        "--key-size=512",
        "--pbkdf=pbkdf2",
    ];
    let add = [
        &add[..],
        &[
            "--pbkdf-force-iterations=1000",
            "--key-file=-",
            volume.path(),
        ],
    ]
    .concat();
    run(Command::new("cryptsetup").args(add), "of no data").succeeded();
    let kill = ["luksKillSlot", "--batch-mode", volume.path(), "0"];
    run(Command::new("cryptsetup").args(kill), "").succeeded();
    machine
        .unbind(&volume)
        .failed_saying(&["no keyslot but latchkey's", "luksAddKey"]);
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (2, 1));
}

/// Both have the binding: what the key server forgets of the one, it forgets of the other.
#[test]
fn a_volume_whose_copy_is_attached_is_neither_unbound_nor_rotated() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let (volume, copy) = (Volume::luks2(), Volume::plain());
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    std::fs::write(copy.path(), volume.bytes()).unwrap();
    let before = server.live_volumes();
    machine
        .unbind(&copy)
        .failed_saying(&["is on more than one device", copy.path()]);
    machine.is_there_twice();
    for one in [&volume, &copy] {
        let texts = ["is on more than one device: /dev/vda3, /dev/vdb3"];
        machine.unbind(one).failed_saying(&texts);
        machine
            .latchkey(&["rotate", one.path(), "--no-initramfs"], "")
            .failed_saying(&texts);
        assert_eq!((one.count("keyslots"), one.count("tokens")), (2, 1));
    }
    assert_eq!(server.live_volumes(), before);
    // A line that names the device itself tells them apart.
    let line = format!("root_crypt {} none luks,initramfs\n", volume.path());
    std::fs::write(machine.path("etc/crypttab"), line).unwrap();
    machine
        .unbind(&copy)
        .failed_saying(&["is on more than one device"]);
    machine.unbind(&volume).succeeded();
}

#[test]
fn what_was_written_over_a_header_is_not_written_over_again() {
    let server = Server::start();
    let volume = Volume::luks2();
    let bound = Volume::luks2();
    let machine = Machine::joined(&[&server]);
    machine.bind(&bound).succeeded();
    let volumes = server.admin(&["volumes", "--json"]).succeeded().out;
    // Nothing but the path says then which volume it is.
    let line = |name: &str, volume: &Volume| {
        let below = machine.path(volume.path().trim_start_matches('/'));
        std::fs::create_dir_all(below.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(volume.path(), below).unwrap();
        format!("{name} {} none luks\n", volume.path())
    };
    let crypttab = line("volume", &volume) + &line("bound", &bound);
    std::fs::write(machine.path("etc/crypttab"), crypttab).unwrap();
    let (whole, whole_bound) = (volume.bytes(), bound.bytes());
    let array: &[(u64, &[u8])] = &[(4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0")];
    let physical_volume: &[(u64, &[u8])] =
        &[(0, &[0; 512]), (512, b"LABELONE"), (0x218, b"LVM2 001")];
    for foreign in [array, physical_volume] {
        let (sheet, path) = (machine.path("sheet.txt"), volume.path());
        let key = ["--key-file", "-"];
        let write_over = ["--sheet", sheet.to_str().unwrap()];
        for (volume, whole, arguments, more) in [
            (
                &volume,
                &whole,
                &["bind", path, "--no-initramfs"][..],
                &key[..],
            ),
            (
                &volume,
                &whole,
                &["recovery-key", path],
                &[key, write_over].concat(),
            ),
            (
                &bound,
                &whole_bound,
                &["rotate", bound.path(), "--no-initramfs"],
                &key,
            ),
            (
                &bound,
                &whole_bound,
                &["unbind", bound.path(), "--no-initramfs"],
                &[],
            ),
        ] {
            std::fs::write(volume.path(), whole).unwrap();
            let file = std::fs::File::options().write(true).open(volume.path());
            for (at, bytes) in foreign {
                file.as_ref().unwrap().write_all_at(bytes, *at).unwrap();
            }
            let before = volume.bytes();
            machine
                .latchkey(&[arguments, more].concat(), PASSPHRASE)
                .failed_saying(&["something else was written over the beginning"]);
            assert!(volume.bytes() == before, "{arguments:?} wrote to it");
        }
        assert!(!sheet.exists());
    }
    assert_eq!(
        machine.state("header-").len(),
        1,
        "but of the first binding"
    );
    // No key server was asked for anything.
    assert_eq!(
        server.admin(&["volumes", "--json"]).succeeded().out,
        volumes
    );
}

/// What `status` says, and that its exit code is 3 if and only if something is marked.
#[track_caller]
fn status(machine: &Machine) -> Said {
    let said = machine.latchkey(&["status"], "");
    let is_marked = said.out.lines().any(|line| line.trim().starts_with('!'));
    assert_eq!(said.code, if is_marked { 3 } else { 0 }, "{}", said.out);
    said
}

#[test]
fn a_share_that_is_not_what_the_header_needs_is_trouble_and_one_of_before_is_none() {
    let mut server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    machine.unbind(&volume).succeeded();
    server.stop();
    let unbound = server.copy();
    server.serve();
    machine.bind(&volume).succeeded();
    let said = status(&machine).succeeded();
    assert!(
        said.out
            .contains("(not of crypttab): its share was destroyed"),
        "{}",
        said.out
    );

    server.stop();
    let bound = server.copy();
    server.serve();
    let rotate = ["rotate", volume.path(), "--no-initramfs"];
    machine.latchkey(&rotate, "").succeeded();
    status(&machine).succeeded();
    for (copy, problem) in [(bound, "of its share, and"), (unbound, "does not know it")] {
        server.stop();
        server.put_back(&copy);
        server.serve();
        let said = status(&machine);
        assert_eq!(said.code, 3);
        assert!(said.out.contains(problem), "{problem} in {}", said.out);
    }
}

#[test]
fn a_volume_that_may_be_bound_and_cannot_be_read_is_trouble() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    assert!(status(&machine).out.contains("! the device is not there"));
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    status(&machine).succeeded();
    let token = json!({ "type": "latchkey", "keyslots": ["0"], "version": 99 });
    let import = ["token", "import", "--token-id", "0", volume.path()];
    run(Command::new("cryptsetup").args(import), &token.to_string()).succeeded();
    assert!(status(&machine).out.contains("! not a latchkey token"));

    // None of latchkey's business, whatever is on it.
    let line = "swap /dev/absent /dev/urandom swap\n";
    std::fs::write(machine.path("etc/crypttab"), line).unwrap();
    let said = status(&machine).succeeded();
    assert!(said.out.contains("names the key file"), "{}", said.out);
}
