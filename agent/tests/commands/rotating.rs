//! `rotate`: a new machine secret and new shares, interrupted at every place where a key server is asked.

use std::fs;
use std::process::Command;

use latchkey::commands::shares;
use latchkey::files::{Files, Role};
use latchkey::server::KeyServer;
use serde_json::{Value, json};

use crate::common::machine::{Machine, PASSPHRASE, Said, Server, UUID, Volume, run};

fn rotate(machine: &Machine, volume: &Volume, more: &[&str], input: &str) -> Said {
    let arguments = [&["rotate", volume.path(), "--no-initramfs"], more].concat();
    machine.latchkey(&arguments, input)
}

/// The generation of the only volume that the key server has.
fn generation(server: &Server) -> u64 {
    let volumes = server.admin(&["volumes", "--json"]).succeeded().out;
    let volumes: Value = serde_json::from_str(&volumes).unwrap();
    volumes[0]["generation"].as_u64().unwrap()
}

/// Of the envelope in a LUKS2 header.
fn envelope(volume: &Volume) -> (u64, String) {
    let token = volume.json()["tokens"]["0"].clone();
    let slot = token["keyslots"][0].as_str().unwrap().to_owned();
    (token["envelopes"][0]["generation"].as_u64().unwrap(), slot)
}

#[track_caller]
fn is_bound(machine: &Machine) {
    let list = machine.latchkey(&["list", "--json"], "").succeeded().out;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list[0]["binding"]["state"], "bound");
    assert_eq!(list[0]["problems"], json!([]));
}

fn luks1_keyslots(volume: &Volume) -> usize {
    let dump = ["luksDump", volume.path()];
    let dump = run(Command::new("cryptsetup").args(dump), "").succeeded();
    dump.out.matches(": ENABLED").count()
}

#[test]
fn a_bound_volume_gets_a_new_secret_and_nobody_types_anything() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    let persons = volume.json()["keyslots"]["0"].clone();
    let before = volume.json();
    for (number, slot) in [(2, "2"), (3, "1")] {
        let said = rotate(&machine, &volume, &[], "").succeeded();
        assert!(
            said.err.contains("has a new machine secret"),
            "{}",
            said.err
        );
        assert_eq!(envelope(&volume), (number, slot.to_owned()));
        assert_eq!(generation(&server), number);
        assert_eq!((volume.count("keyslots"), volume.count("tokens")), (2, 1));
        assert!(machine.state("rotate-").is_empty());
        is_bound(&machine);
    }
    let after = volume.json();
    assert_eq!(after["keyslots"]["0"], persons);
    assert_ne!(after["keyslots"]["1"], before["keyslots"]["1"]);
    assert_eq!(
        after["tokens"]["0"]["volume"],
        before["tokens"]["0"]["volume"]
    );
    // The one from before the binding; a rotation that is over leaves none.
    assert_eq!(machine.state("header-").len(), 1);
    volume.opens_with_the_passphrase();
    let audit = server.admin(&["audit"]).succeeded().out;
    assert!(
        audit.contains("generation 3 takes the place of 2"),
        "{audit}"
    );

    machine.unbind(&volume).succeeded();
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 0));
    rotate(&machine, &volume, &[], "").failed_saying(&["is not bound"]);
}

#[test]
fn an_interrupted_rotation_opens_as_before_until_the_token_is_replaced() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    let (before, token) = (volume.bytes(), envelope(&volume));
    // What opens it now; nobody's next share; the new one; its proof. Nothing of the disk's data is touched.
    server.allow(0);
    rotate(&machine, &volume, &["--key-file", "-"], PASSPHRASE).failed_saying(&["no connection"]);
    for connections in [1, 2, 3] {
        server.allow(connections);
        rotate(&machine, &volume, &[], "").failed_saying(&["was taken back"]);
        assert_eq!(envelope(&volume), token, "{connections}");
        assert_eq!(volume.count("keyslots"), 2, "{connections}");
        assert!(machine.state("rotate-").is_empty());
        assert_eq!(machine.state("header-").len(), 1);
    }
    assert!(volume.bytes()[16 << 20..] == before[16 << 20..]);
    // The key server did not hear which of them stays.
    server.allow(4);
    rotate(&machine, &volume, &[], "").failed_saying(&["was not told", "run this again"]);
    assert_eq!(envelope(&volume), (2, "2".to_owned()));
    assert_eq!(
        (generation(&server), machine.state("rotate-").len()),
        (1, 1)
    );
    server.allow(usize::MAX);
    is_bound(&machine);
    rotate(&machine, &volume, &[], "").succeeded();
    assert_eq!(
        (generation(&server), machine.state("rotate-").len()),
        (2, 0)
    );
    assert_eq!(envelope(&volume), (2, "2".to_owned()), "the run went on");
    volume.opens_with_the_passphrase();
}

#[test]
fn a_passphrase_does_where_no_key_server_gives_the_old_share() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    let before = volume.json();
    rotate(&machine, &volume, &["--key-file", "-"], "wrong").failed_saying(&["no keyslot"]);
    assert_eq!(volume.json()["tokens"], before["tokens"]);
    assert_eq!(volume.json()["keyslots"], before["keyslots"]);
    let said = rotate(&machine, &volume, &["--key-file", "-"], PASSPHRASE).succeeded();
    assert!(!said.err.contains(PASSPHRASE));
    assert_eq!(envelope(&volume).0, 2);
    rotate(&machine, &volume, &["--finish"], "").failed_saying(&["no rotation", "unfinished"]);
}

/// A token says which keyslot is its own, and may lie.
#[test]
fn a_keyslot_that_a_person_has_made_in_the_place_of_ours_stays() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    for kind in ["luks2", "luks1"] {
        let volume = Volume::format(&["--type", kind]);
        let link = machine.path(&format!("dev/disk/by-uuid/{UUID}"));
        let _ = fs::remove_file(link);
        machine.plug_in(&volume);
        machine.bind(&volume).succeeded();
        let (old, new) = (machine.path("old"), machine.path("new"));
        fs::write(&old, PASSPHRASE).unwrap();
        fs::write(&new, "another person's").unwrap();
        let cryptsetup = |arguments: &[&str]| {
            run(Command::new("cryptsetup").args(arguments), "").succeeded();
        };
        cryptsetup(&["luksKillSlot", "--batch-mode", volume.path(), "1"]);
        let keys = [old.to_str().unwrap(), volume.path(), new.to_str().unwrap()];
        let add = [
            "luksAddKey",
            "--batch-mode",
            "--key-slot",
            "1",
            "--key-file",
        ];
        cryptsetup(&[&add, &keys[..]].concat());

        let said = rotate(&machine, &volume, &["--key-file", "-"], PASSPHRASE).succeeded();
        assert!(said.err.contains("it will stay"), "{kind}: {}", said.err);
        let test = [
            "open",
            "--test-passphrase",
            "--key-file",
            new.to_str().unwrap(),
        ];
        cryptsetup(&[&test[..], &[volume.path()]].concat());
        volume.opens_with_the_passphrase();
        is_bound(&machine);
        machine.unbind(&volume).succeeded();
    }
}

/// Whoever had the host key may have asked for the next share, and kept it.
#[test]
fn a_next_share_that_somebody_else_asked_for_is_not_used() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    let id = volume.json()["tokens"]["0"]["volume"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let files = Files::under(machine.root.path());
    let joined = files.all_servers().unwrap().remove(0);
    let host = KeyServer::open(&joined, Role::Host).unwrap();
    let known = shares::rotate(&host, id).unwrap();
    rotate(&machine, &volume, &[], "").succeeded();
    let used = shares::prove(&host, id, known.generation);
    assert!(used.is_ok_and(|share| !share.0.matches(&known.share.0)));
}

#[test]
fn what_an_old_image_needs_stays_until_it_is_gone() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::format(&["--type", "luks1"]);
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    let image = machine.path("boot/initrd.img-6.1.0");
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    fs::write(&image, "built before").unwrap();

    let said = rotate(&machine, &volume, &[], "").succeeded();
    for text in ["need them", "initrd.img-6.1.0", "--finish"] {
        assert!(said.err.contains(text), "'{text}' in {}", said.err);
    }
    assert_eq!((luks1_keyslots(&volume), generation(&server)), (3, 1));
    is_bound(&machine);
    let list = machine.latchkey(&["list"], "").succeeded().out;
    assert!(list.contains("its rotation is not finished"), "{list}");
    let said = rotate(&machine, &volume, &[], "").succeeded();
    assert!(said.err.contains("need them"), "{}", said.err);
    assert_eq!(luks1_keyslots(&volume), 3, "it is not rotated again");
    fs::write(&image, "built since").unwrap();
    rotate(&machine, &volume, &[], "").succeeded();
    assert_eq!((luks1_keyslots(&volume), generation(&server)), (2, 2));

    // Or its owner says so.
    fs::write(&image, "built before").unwrap();
    rotate(&machine, &volume, &[], "").succeeded();
    rotate(&machine, &volume, &["--finish"], "").succeeded();
    assert_eq!((luks1_keyslots(&volume), generation(&server)), (2, 3));
    volume.opens_with_the_passphrase();
}

#[test]
fn unbinding_in_the_middle_leaves_the_persons_keyslot_alone() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::format(&["--type", "luks1"]);
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    rotate(&machine, &volume, &[], "").succeeded();
    assert_eq!(
        luks1_keyslots(&volume),
        3,
        "there is no image that was built since"
    );
    machine.unbind(&volume).succeeded();
    assert_eq!(luks1_keyslots(&volume), 1);
    assert!(machine.state("rotate-").is_empty());
    volume.opens_with_the_passphrase();

    let volume = Volume::luks2();
    fs::remove_file(machine.path(&format!("dev/disk/by-uuid/{UUID}"))).unwrap();
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    server.allow(4);
    rotate(&machine, &volume, &[], "").failed_saying(&["was not told"]);
    server.allow(usize::MAX);
    machine.unbind(&volume).succeeded();
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 0));
    volume.opens_with_the_passphrase();
}

#[test]
fn a_binding_to_a_key_server_that_was_forgotten_is_not_rotated() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    let before = volume.bytes();
    let dir = machine.server_dir();
    fs::rename(&dir, dir.with_extension("gone")).unwrap();
    rotate(&machine, &volume, &[], "").failed_saying(&["has not joined"]);
    assert!(volume.bytes() == before);
}
