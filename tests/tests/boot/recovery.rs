//! What a recovery sheet is good for: a machine that never had latchkey opens the volume by what stands on it.

use std::path::PathBuf;

use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage};

use crate::data_disks::{
    APART, APART_OPTIONS, BY_PASSPHRASE, KEYED, KEYED_OPTIONS, LUKS2, OLD, TAGGED, WORDS,
    WORDS_OPTIONS, filling, holds, images, with_disks,
};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "recovery sheets of LUKS1, LUKS2, integrity, a detached header and two plain volumes open them on a machine without \
           latchkey",
    play: recovery,
}];

struct Kind {
    name: &'static str,
    /// As [`LUKS2`].
    make: &'static str,
    /// Its options in crypttab.
    options: &'static str,
    /// What proves that somebody may have its sheet.
    proof: &'static str,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "new",
        make: LUKS2,
        options: "luks",
        proof: BY_PASSPHRASE,
    },
    Kind {
        name: "old",
        make: OLD,
        options: "luks",
        proof: BY_PASSPHRASE,
    },
    Kind {
        name: "words",
        make: WORDS,
        options: WORDS_OPTIONS,
        proof: BY_PASSPHRASE,
    },
    Kind {
        name: "keyed",
        make: KEYED,
        options: KEYED_OPTIONS,
        proof: "--volume-key-file /root/volume.key",
    },
    Kind {
        name: "tagged",
        make: TAGGED,
        options: "luks",
        proof: BY_PASSPHRASE,
    },
    Kind {
        name: "apart",
        make: APART,
        options: APART_OPTIONS,
        proof: BY_PASSPHRASE,
    },
];

fn recovery(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools("What opens by a sheet does not depend on what boots.")?;
    let names = KINDS.iter().map(|kind| kind.name);
    let disks = images(stage, names.chain(["header"]))?;
    let sheets = sheets(stage, &disks)?;
    // Made anew: it never had latchkey.
    let other = stage.plain_disk()?;
    // The folder with latchkey is not plugged in here, so that the disks' letters differ.
    let spec = with_disks(stage.machine(&other, "without").systemd(), &disks);
    let mut machine = Machine::start(&spec)?;
    stage.first_boot(&mut machine)?;
    machine.check("! command -v latchkey")?;
    for (number, (kind, sheet)) in KINDS.iter().zip(&sheets).enumerate() {
        let sheet = Sheet::read(sheet)?;
        let command = match &sheet.device {
            Some(device) => {
                let disk = format!("/dev/disk/by-id/virtio-data{number}");
                sheet.command.replace(device, &disk)
            }
            None => sheet.command,
        };
        machine.check(&format!(
            "exec 2>&1\nprintf '%s\\n' '{}' | {{ {command}; }}",
            sheet.secret
        ))?;
        holds(&mut machine, kind.name)?;
    }
    Ok(())
}

/// Makes the volumes on a machine with latchkey; their sheets.
fn sheets(stage: &Stage, disks: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let (_, archive) = stage.own_installation()?;
    let disk = stage.plain_disk()?;
    let spec = stage.machine(&disk, "with").systemd().payload(&archive);
    let spec = with_disks(spec, disks);
    let mut machine = Machine::start(&spec)?;
    stage.first_boot(&mut machine)?;
    machine.check(&format!(
        "set -e\n\
         tar --extract --keep-directory-symlink --directory / --file /dev/vdb\n\
         mkdir -p /run/rig\n\
         printf %s '{PASSPHRASE}' > /run/rig/passphrase"
    ))?;
    let mut sheets = Vec::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let Kind {
            name,
            make,
            options,
            proof,
        } = kind;
        let said = machine.check(&format!(
            "{}\
             echo {name} $DISK none {options} >> /etc/crypttab\n\
             latchkey recovery-key $DISK {proof} 2>/run/rig/said || {{ cat /run/rig/said; exit 1; }}",
            filling(number, name, make)
        ))?;
        // What cryptsetup said stands before it.
        let begin = said.find("Recovery sheet for").ok_or(said.clone())?;
        sheets.push(said[begin..].to_owned());
    }
    machine.power_off()?;
    Ok(sheets)
}

/// What a person reads off a sheet.
struct Sheet {
    secret: String,
    command: String,
    /// The device in the command, where it may have another name on another machine.
    device: Option<String>,
}

impl Sheet {
    fn read(text: &str) -> Result<Self, Failure> {
        let incomplete = || format!("the sheet is not complete:\n{text}");
        let indented = |line: &&str| line.starts_with("    ");
        let mut lines = text.lines().filter(indented).map(str::trim);
        let secret = lines.next().ok_or_else(incomplete)?;
        let command = lines
            .find(|line| line.contains("cryptsetup open"))
            .ok_or_else(incomplete)?;
        let device = text
            .lines()
            .find_map(|line| line.strip_prefix("Device: "))
            .and_then(|line| line.strip_suffix(" when this was made"))
            .ok_or_else(incomplete)?;
        Ok(Self {
            secret: secret.to_owned(),
            command: command.to_owned(),
            device: command.contains(device).then(|| device.to_owned()),
        })
    }
}
