//! `bind` of LUKS1, of a detached header, and of plain dm-crypt as far as it can be seen without device-mapper.

use std::process::Command;

use serde_json::{Value, json};

use crate::common::machine::{Machine, PASSPHRASE, Server, UUID, Volume, bind_arguments, run};

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
    assert_eq!(bound, format!("{UUID} root_crypt\n"));
    machine.bind(&volume).failed_saying(&["is bound already"]);
    // Nobody can look at these now. The image says so, but of the one with which latchkey has nothing to do.
    let table = machine.path("etc/crypttab");
    let before = std::fs::read_to_string(&table).unwrap();
    let absent = "8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de";
    let more = format!(
        "{before}absent UUID={absent} none luks,noauto\npath /dev/absent none luks\nother /dev/absent none tcrypt\n"
    );
    std::fs::write(&table, more).unwrap();
    let bound = machine.latchkey(&["bound-volumes"], "").succeeded().out;
    assert_eq!(
        bound,
        format!("{UUID} root_crypt\n?{absent} absent\n? path\n")
    );
    std::fs::write(&table, before).unwrap();

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
fn a_luks1_volume_whose_line_was_renamed_is_told_where_its_binding_is() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::format(&["--type", "luks1"]);
    machine.plug_in(&volume);
    machine.bind(&volume).succeeded();
    let line = format!("renamed UUID={UUID} none luks,initramfs\n");
    std::fs::write(machine.path("etc/crypttab"), line).unwrap();
    let file = |name: &str| machine.path(&format!("etc/latchkey/envelopes/{name}.json"));
    let (from, to) = (file("root_crypt"), file("renamed"));
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    let listed = || -> Value {
        let said = machine.latchkey(&["list", "--json"], "").succeeded();
        serde_json::from_str::<Value>(&said.out).unwrap()[0].clone()
    };
    let problem = format!("it was bound under another name: rename '{from}' to '{to}'");
    assert_eq!(listed()["problems"], json!([problem]));
    let status = machine.latchkey(&["status"], "");
    assert!(
        status.code == 3 && status.out.contains(&problem),
        "{status:?}"
    );
    let image = machine.latchkey(&["image-files"], "").succeeded();
    assert_eq!(image.out, "");
    assert!(image.err.contains(from), "{}", image.err);
    for verb in ["bind", "unbind", "rotate"] {
        machine
            .latchkey(&[verb, volume.path()], "")
            .failed_saying(&[from, to]);
    }
    std::fs::rename(from, to).unwrap();
    assert_eq!(listed()["problems"], json!([]));
    machine.bind(&volume).failed_saying(&["is bound already"]);
    machine.unbind(&volume).succeeded();
}

#[test]
fn a_volume_with_integrity_is_bound_and_the_image_gets_its_modules() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2_with_integrity();
    let modules = || machine.latchkey(&["image-modules"], "").succeeded().out;
    machine.plug_in(&volume);
    assert_eq!(modules(), "");
    machine.bind(&volume).succeeded();
    volume.opens_with_the_passphrase();
    assert_eq!(
        modules(),
        "crypto-aes\ncrypto-authenc\ncrypto-ecb\ncrypto-hmac\ncrypto-sha256\ncrypto-xts\ndm_crypt\ndm_integrity\n"
    );
    let json = volume.json();
    assert_eq!(json["segments"]["0"]["integrity"]["type"], "hmac(sha256)");
    let bound = &json["tokens"]["0"]["bound"]["luks2"];
    assert_eq!(
        bound["integrity"],
        json!({"type": "hmac(sha256)", "journal-encryption": "none", "journal-integrity": "none"})
    );
    let list: Value =
        serde_json::from_str(&machine.latchkey(&["list", "--json"], "").succeeded().out).unwrap();
    assert_eq!(list[0]["binding"]["state"], "bound");
    assert_eq!(list[0]["problems"], json!([]));
    machine.unbind(&volume).succeeded();
    volume.opens_with_the_passphrase();
    assert_eq!(modules(), "");
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
    // These write no line.
    for arguments in [
        &["unbind", data.path()][..],
        &["rotate", data.path()],
        &["recovery-key", data.path(), "--sheet", "-"],
    ] {
        let said = machine.latchkey(arguments, "");
        assert!(!said.err.contains("--options"), "{}", said.err);
        said.failed_saying(&["is not encrypted with LUKS", "put its line back"]);
    }
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
