//! The gate before automatic opening: a disk that was changed, a boot that is no ordinary one. Nothing opens by
//! itself, and the prompt still works.

use std::time::Duration;

use latchkey_tests::attack::{OWN_PASSPHRASE, StolenDisk};
use latchkey_tests::bound::PORT;
use latchkey_tests::flavour::Framework;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::Machine;
use latchkey_tests::memory::{self, Search};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::secrets::{self, VOLUME_KEY};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "T10 a null cipher in the header is not opened automatically",
        play: null_cipher,
    },
    Scenario {
        name: "T13 a raised keyslot cost is not opened automatically",
        play: raised_cost,
    },
    Scenario {
        name: "T9 a stranger's volume of the same UUID opens by typing and finds no credential",
        play: own_volume,
    },
    Scenario {
        name: "T8 a plain file system of the same UUID gets no request",
        play: plain_file_system,
    },
    Scenario {
        name: "T16 a root that opens and cannot be mounted: whoever gets the shell has no open volume",
        play: no_root_to_mount,
    },
    Scenario {
        name: "E2 rd.shell=0 and a root that opens and cannot be mounted: no shell, and no open volume",
        play: no_shell,
    },
    Scenario {
        name: "E2 SYSTEMD_SULOGIN_FORCE= on the kernel line leaves only the prompt",
        play: forced_shell_word,
    },
    Scenario {
        name: "T15 break= on the kernel line leaves only the prompt",
        play: break_word,
    },
    Scenario {
        name: "T15 init=/bin/sh on the kernel line leaves only the prompt",
        play: init_word,
    },
];

const LIMIT: Duration = Duration::from_secs(180);
const OPENED: &str = "was opened automatically";
const TYPED: &str = "'vda2_crypt' was opened by a typed passphrase";

fn null_cipher(stage: &Stage) -> Outcome {
    let disk = StolenDisk::copy_of(&stage.bound_disk()?, stage.folder())?;
    disk.change_header(|header| header["segments"]["0"]["encryption"] = "cipher_null-ecb".into())?;
    let (mut machine, _server) = refused(stage, disk, "null")?;
    machine.answer_now(PASSPHRASE)?;
    // A root without encryption is noise: it opens, with a warning, and cannot be mounted.
    machine.expect("WARNING: 'vda2_crypt'", LIMIT)?;
    machine.expect(TYPED, LIMIT)?;
    Ok(())
}

fn raised_cost(stage: &Stage) -> Outcome {
    let disk = StolenDisk::copy_of(&stage.bound_disk()?, stage.folder())?;
    let slot = disk.header()?["tokens"]
        .as_object()
        .and_then(|tokens| tokens.values().find(|token| token["type"] == "latchkey"))
        .and_then(|token| Some(token["keyslots"][0].as_str()?.to_owned()))
        .ok_or("the volume is not bound")?;
    disk.change_header(|header| {
        header["keyslots"][&slot]["kdf"]["iterations"] = 4_000_000_000_u64.into()
    })?;
    let (mut machine, _server) = refused(stage, disk, "iterations")?;
    machine.answer_now(PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

pub fn own_volume(stage: &Stage) -> Outcome {
    let disk = StolenDisk::copy_of(&stage.bound_disk()?, stage.folder())?;
    let volume_key = disk.put_own_volume()?;
    let (mut machine, _server) = refused(stage, disk, "does not open keyslot")?;
    machine.answer_now(OWN_PASSPHRASE)?;
    machine.expect("WARNING: 'vda2_crypt'", LIMIT)?;
    machine.expect(TYPED, LIMIT)?;
    let mut looked_for = secrets::of_boot_key(&stage.bound()?.boot_key)?;
    looked_for.push((VOLUME_KEY.to_owned(), volume_key));
    let ram = memory::dump(&mut machine, stage.folder())?;
    let finds = Search::of(&looked_for).finds(&ram);
    ensure(finds.keys().eq([VOLUME_KEY]), || {
        format!("in the stranger's RAM, where only his own volume key should be: {finds:?}")
    })
}

fn plain_file_system(stage: &Stage) -> Outcome {
    let disk = StolenDisk::copy_of(&stage.bound_disk()?, stage.folder())?;
    disk.put_plain_file_system()?;
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let asked = server.admin(&["audit", "--json"])?;
    let mut machine = Machine::start(&stage.bound_machine(&disk.put_back(), "boot"))?;
    machine.expect(stage.prompt(), LIMIT)?;
    let later = server.admin(&["audit", "--json"])?;
    ensure(asked == later, || {
        format!("the key server was asked:\n{later}")
    })?;
    ensure(machine.console.count(OPENED) == 0, || {
        "it was opened".to_owned()
    })
}

/// The header is the bound one, so the volume opens. What it holds is noise, and the framework gives a shell for that.
fn no_root_to_mount(stage: &Stage) -> Outcome {
    stage.needs(
        &[Framework::InitramfsTools, Framework::DracutScript],
        "systemd waits without end for a device with a file system on it, and nobody gets a shell.",
    )?;
    let (_server, mut machine) = without_content(stage, "")?;
    machine.expect_beside(stage.flavour().emergency(), GIVES_UP)?;
    machine
        .console
        .type_line("test -e /dev/mapper/vda2_crypt; echo checked-$?")?;
    machine.expect("checked-1", LIMIT)?;
    Ok(())
}

/// What dracut does then is its own affair: it stops the boot, and nobody gets to the disk.
fn no_shell(stage: &Stage) -> Outcome {
    stage.needs(
        &[Framework::DracutScript],
        "`rd.shell=` is a word of dracut, which under systemd waits without end for such a root.",
    )?;
    let (_server, mut machine) = without_content(stage, "rd.shell=0")?;
    machine.expect_beside("Boot has failed", GIVES_UP)?;
    ensure(
        machine.console.count(stage.flavour().emergency()) == 0,
        || "there is a shell".to_owned(),
    )
}

/// A machine whose root opens by itself and holds no file system, at the moment when it was closed again.
fn without_content(stage: &Stage, words: &str) -> Result<(KeyServer, Machine), Failure> {
    let disk = StolenDisk::copy_of(&stage.bound_disk()?, stage.folder())?;
    disk.destroy_content()?;
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let spec = stage
        .bound_machine(&disk.put_back(), "boot")
        // dracut's limit, which is three minutes.
        .kernel_line(&format!("rd.retry=30 {words}"));
    let mut machine = Machine::start(&spec)?;
    machine.expect(OPENED, LIMIT)?;
    machine.expect_beside("is closed before anybody gets a shell", GIVES_UP)?;
    Ok((server, machine))
}

/// How long a framework may take to give up on a busy host.
const GIVES_UP: Duration = Duration::from_secs(600);

/// With it anybody at the console gets the emergency shell of systemd without a password.
fn forced_shell_word(stage: &Stage) -> Outcome {
    let word = "SYSTEMD_SULOGIN_FORCE=1";
    let (mut server, mut machine) = with_words(stage, word, &format!("'{word}'"))?;
    machine.answer_now(PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(server.stop()?)
}

fn break_word(stage: &Stage) -> Outcome {
    let (mut server, mut machine) = with_words(stage, "break=bottom", "'break=bottom'")?;
    machine.answer_now(PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    machine.expect("(initramfs)", LIMIT)?;
    // In the shell: neither key nor network of ours is left.
    machine
        .console
        .type_line("ls /etc/latchkey/servers/*/boot.key; echo checked-$?")?;
    machine.expect("checked-1", LIMIT)?;
    Ok(server.stop()?)
}

fn init_word(stage: &Stage) -> Outcome {
    let (mut server, mut machine) = with_words(stage, "init=/bin/sh", "'init=/bin/sh'")?;
    machine.answer_now(PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    machine.expect("# ", LIMIT)?;
    Ok(server.stop()?)
}

/// A machine with a good key server and these words on its kernel line, at its prompt; it never asked.
fn with_words(stage: &Stage, words: &str, reason: &str) -> Result<(KeyServer, Machine), Failure> {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let before = server.admin(&["audit", "--json"])?;
    let spec = stage
        .bound_machine(&stage.bound_disk()?, "boot")
        .kernel_line(words);
    let mut machine = Machine::start(&spec)?;
    machine.expect(&format!("the kernel command line has {reason}"), LIMIT)?;
    machine.expect(stage.prompt(), LIMIT)?;
    let after = server.admin(&["audit", "--json"])?;
    ensure(before == after, || {
        format!("the key server was asked:\n{after}")
    })?;
    Ok((server, machine))
}

/// A machine with a good key server and a changed disk, after it refused to open that by itself.
fn refused(stage: &Stage, disk: StolenDisk, reason: &str) -> Result<(Machine, KeyServer), Failure> {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let mut machine = Machine::start(&stage.bound_machine(&disk.put_back(), "boot"))?;
    machine.expect_beside(stage.prompt(), LIMIT)?;
    machine.expect("is not opened automatically", LIMIT)?;
    machine.expect(reason, LIMIT)?;
    ensure(machine.console.count(OPENED) == 0, || {
        "it was opened".to_owned()
    })?;
    Ok((machine, server))
}
