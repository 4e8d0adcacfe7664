//! `latchkey recovery-key`: a sheet of paper with which a person opens the volume on any machine that has cryptsetup.
//!
//! A LUKS volume gets one more keyslot, for a new recovery key; of a plain volume, which has no keyslots, the sheet holds what
//! opens it already. The sheet is on its disk before the keyslot is made: no key is ever in a header and on no paper.

mod key;
mod pdf;
pub mod sheet;

use std::fs;
use std::path::{Path, PathBuf};

use latchkey_protocol::envelope::{Bound, BoundPlain, MachineSecret, PlainSecret};
use latchkey_secret::{SecretBytes, SecretError};

use super::bind::BindError;
use super::bind::enrol::{self, Enrolment, Given};
use super::journal::Journal;
use super::rotate::journal::Rotation;
use super::target::{Target, TargetError};
use crate::date;
use crate::files::{Files, FilesError};
use crate::volume::CryptError;
use crate::volume::backup::BackupError;
use crate::volume::envelopes;
use crate::volume::keyslots::{self, KeyslotError};
use crate::volume::open::KeyError;
use crate::volume::place::HeaderPlace;
use crate::volume::plain::Settings;
use crate::volume::typed;
pub use key::generate;
pub use sheet::{Destination, SheetError};
use sheet::{Sheet, Step, quoted};

/// What `latchkey recovery-key` is told.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// A device, an image file, a mapping or a mount point.
    pub device: PathBuf,
    /// Which of several crypttab lines.
    pub name: Option<String>,
    /// Where the passphrase lies, if nobody is to be asked.
    pub key_file: Option<PathBuf>,
    /// Where the volume key of a plain volume lies, if it has no passphrase.
    pub volume_key_file: Option<PathBuf>,
    /// Where the sheet goes.
    pub sheet: Destination,
}

/// There is no sheet, and no keyslot for one.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The argument.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Files of ours.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// What it left may be in the keyslot that would be taken, and is removed by whoever clears up.
    #[error(
        "an earlier 'latchkey bind' or 'unbind' of '{device}' was interrupted; nothing was changed\n\
         run that again first, it clears up",
        device = .device.display()
    )]
    Interrupted {
        /// The device.
        device: PathBuf,
    },
    /// A keyslot that is made now might be taken for the one that a rotation was about to make.
    #[error(
        "an earlier 'latchkey rotate' of '{}' was interrupted\nrun that again first, it clears up",
        .0.display()
    )]
    Rotating(PathBuf),
    /// What opens the volume was not given, or does not open it.
    #[error(transparent)]
    Given(#[from] BindError),
    /// The keyslot.
    #[error(transparent)]
    Keyslot(#[from] KeyslotError),
    /// The backup of the header.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The sheet.
    #[error(transparent)]
    Sheet(#[from] SheetError),
    /// No memory for a secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// libcryptsetup refused.
    #[error("failed to make the volume key of '{device}'")]
    Crypt {
        /// The device.
        device: PathBuf,
        /// What it said.
        #[source]
        source: CryptError,
    },
}

/// Makes the sheet.
///
/// # Errors
/// A variant of [`RecoveryError`].
pub fn run(files: &Files, arguments: &Arguments) -> Result<(), RecoveryError> {
    let _lock = files.lock()?;
    let target = Target::find(files, &arguments.device, arguments.name.as_deref())?;
    target.line(files, arguments.name.as_deref())?;
    if Journal::load(files, &target)?.is_some() {
        return Err(RecoveryError::Interrupted {
            device: target.device,
        });
    }
    if Rotation::load(files, &target)?.is_some_and(|rotation| rotation.is_making_a_keyslot()) {
        return Err(RecoveryError::Rotating(target.device));
    }
    let given = Given {
        key_file: arguments.key_file.as_deref(),
        volume_key_file: arguments.volume_key_file.as_deref(),
        passphrase: None,
    };
    // A keyslot needs no line of crypttab and nothing of what a binding insists on.
    if let Some(header) = target.place.luks_header() {
        let passphrase = enrol::passphrase(&target, header, given)?;
        return luks(files, &target, header, &passphrase, &arguments.sheet);
    }
    target.entry(files, arguments.name.as_deref())?;
    match Enrolment::prepare(&target, given)? {
        Enrolment::Plain {
            secret,
            bound: Bound::Plain(bound),
            ..
        } => {
            let Target { name, device, .. } = &target;
            plain(name, device, &secret, &bound, &arguments.sheet)
        }
        _ => unreachable!("a plain volume is bound as one"),
    }
}

fn luks(
    files: &Files,
    target: &Target,
    header: &Path,
    passphrase: &SecretBytes,
    destination: &Destination,
) -> Result<(), RecoveryError> {
    // After its header was put back, the envelope file of a LUKS1 volume names a keyslot that is free, and 'unbind' would
    // take it for latchkey's again: LUKS1 has nothing else to tell ours by than that and the cheap key derivation.
    let named = envelopes::keyslots_of(files, &target.uuid);
    let slot = keyslots::free_keyslot_except(header, &named)?;
    let key = generate()?;
    let volume = Luks {
        name: &target.name,
        device: &target.device,
        header: match &target.place.header {
            HeaderPlace::Detached(header) => Some(header),
            _ => None,
        },
        kind: target.kind.name(),
        uuid: &target.uuid,
        slot,
    };
    let sheet = volume.sheet(&key);
    let backup = enrol::keep_backup::<RecoveryError>(files, target, header)?;
    // What takes seconds comes before the sheet, which an interruption would leave with a key that opens nothing.
    let volume_key = typed::volume_key(header, passphrase).map_err(KeyslotError::from)?;
    sheet.before(destination, || {
        keyslots::add_recovery_keyslot(header, slot, &volume_key, &key).map_err(RecoveryError::from)
    })?;
    log::info!("keyslot {slot} opens with the recovery key; the other keyslots are unchanged");
    log::info!("the header from before is in '{}'", backup.display());
    destination.remind();
    Ok(())
}

/// A LUKS volume, as its sheet shows it.
pub struct Luks<'a> {
    /// The mapping.
    pub name: &'a str,
    /// The device with the data.
    pub device: &'a Path,
    /// What the header lies on, if elsewhere.
    pub header: Option<&'a Path>,
    /// Such as `LUKS2`.
    pub kind: &'a str,
    /// In the header.
    pub uuid: &'a str,
    /// The keyslot of the recovery key.
    pub slot: u32,
}

impl Luks<'_> {
    /// The sheet for `key`.
    pub fn sheet<'a>(&self, key: &'a SecretBytes) -> Sheet<'a> {
        let name = quoted(self.name);
        let device = quoted(&self.device.display().to_string());
        // udev makes no links to what lies in a file.
        let on_disk = match self.device.is_file() {
            true => device.clone(),
            false => format!("/dev/disk/by-uuid/{}", self.uuid),
        };
        let mut facts = vec![
            ("Volume", format!("{}, UUID {}", self.kind, self.uuid)),
            ("Device", format!("{device} when this was made")),
            ("Keyslot", self.slot.to_string()),
        ];
        let open = match self.header {
            None => format!("cryptsetup open {on_disk} {name}"),
            Some(header) => {
                let header = quoted(&header.display().to_string());
                facts.push((
                    "Header",
                    format!("{header}, without which nothing opens it"),
                ));
                format!("cryptsetup open --header {header} {device} {name}")
            }
        };
        let on = match self.header {
            None => on_disk,
            Some(header) => quoted(&header.display().to_string()),
        };
        Sheet {
            title: title(self.name),
            facts: dated(facts),
            secret_name: "Recovery key, with its hyphens",
            secret: key,
            steps: vec![
                keep(),
                Step::Say("To open the volume on any Linux with cryptsetup, type the key at its question:".to_owned()),
                Step::Run(open),
                Step::Say("To make this key worthless, when the sheet was lost or used:".to_owned()),
                Step::Run(format!("cryptsetup luksKillSlot {on} {}", self.slot)),
            ],
        }
    }
}

fn plain(
    name: &str,
    on: &Path,
    secret: &MachineSecret,
    bound: &BoundPlain,
    destination: &Destination,
) -> Result<(), RecoveryError> {
    let typed = secret.0.expose_secret();
    let printable = typed.iter().all(|byte| (b' '..=b'~').contains(byte));
    let mapping = quoted(name);
    let device = quoted(&on.display().to_string());
    let layout = format!(
        "--type plain --cipher {} --key-size {} --sector-size {} --offset {} --skip {}",
        quoted(&bound.cipher),
        bound.key_size * 8,
        bound.sector_size,
        bound.offset / 512,
        bound.skip
    );
    let hexadecimal;
    let (secret_name, shown, how, open) = if printable && bound.secret == PlainSecret::Passphrase {
        (
            "Passphrase",
            &secret.0,
            "type the passphrase at its question:",
            format!(
                "cryptsetup open {layout} --hash {} {device} {mapping}",
                quoted(&bound.hash)
            ),
        )
    } else {
        hexadecimal = volume_key(on, secret, bound)?;
        (
            "Volume key, hexadecimal",
            &hexadecimal,
            "type or scan the key after this command, then Enter and Ctrl-D:",
            // What comes from standard input would be hashed, a key file too, unless that is said.
            format!(
                "basenc --decode --base16 | cryptsetup open {layout} --hash plain --key-file - {device} {mapping}"
            ),
        )
    };
    let sheet = Sheet {
        title: title(name),
        facts: dated(vec![
            ("Volume", "plain dm-crypt, which has no header".to_owned()),
            ("Device", format!("{device} when this was made")),
        ]),
        secret_name,
        secret: shown,
        steps: vec![
            keep(),
            Step::Say(format!("To open the volume on any Linux with cryptsetup, {how}")),
            Step::Run(open),
            Step::Say(
                "Nothing tells a wrong key of a plain volume: mount it read-only first. This key cannot be made \
                 worthless but by encrypting the disk anew."
                    .to_owned(),
            ),
        ],
    };
    sheet.write(destination)?;
    destination.remind();
    Ok(())
}

/// The volume key that the secret of a plain volume stands for, in capital letters as basenc(1) reads them.
fn volume_key(
    device: &Path,
    secret: &MachineSecret,
    bound: &BoundPlain,
) -> Result<SecretBytes, RecoveryError> {
    let failed = |source| RecoveryError::Crypt {
        device: device.to_owned(),
        source,
    };
    let settings = Settings::from(bound);
    let mut context = settings.context(device).map_err(failed)?;
    let key = settings
        .key_of_secret(&mut context, secret, bound.secret)
        .map_err(|error| match error {
            KeyError::Secret(error) => RecoveryError::Secret(error),
            KeyError::Crypt(source) => failed(source),
        })?
        .ok_or(BindError::SecretLength(secret.0.len()))?;
    let mut text = SecretBytes::with_capacity(2 * key.len())?;
    for byte in key.expose_secret() {
        let digit = |value: u8| b"0123456789ABCDEF"[usize::from(value)];
        text.push(&[digit(byte >> 4), digit(byte & 0xf)])?;
    }
    Ok(text)
}

fn title(name: &str) -> String {
    format!("Recovery sheet for the encrypted volume '{name}'")
}

fn dated(mut facts: Vec<(&'static str, String)>) -> Vec<(&'static str, String)> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    facts.push(("Machine", host.trim().to_owned()));
    facts.push(("Made", date::date(date::now())));
    facts
}

fn keep() -> Step {
    Step::Say(
        "Whoever has this sheet and the disk reads the disk. Keep it on paper, away from the machine."
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use latchkey_protocol::encoding::Bytes;

    use super::*;

    fn secret(bytes: &[u8]) -> MachineSecret {
        let mut secret = SecretBytes::with_capacity(bytes.len()).unwrap();
        secret.push(bytes).unwrap();
        MachineSecret(secret)
    }

    fn bound(kind: PlainSecret) -> BoundPlain {
        BoundPlain {
            secret: kind,
            cipher: "aes-xts-plain64".to_owned(),
            hash: "sha256".to_owned(),
            key_size: 32,
            sector_size: 512,
            offset: 1 << 20,
            skip: 8,
            volume_key_id: Bytes([0; 32]),
        }
    }

    /// The sheet of a plain volume on an empty file.
    fn plain_sheet(bytes: &[u8], kind: PlainSecret) -> String {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("disk");
        fs::File::create(&device).unwrap().set_len(4 << 20).unwrap();
        let written = folder.path().join("sheet");
        plain(
            "data",
            &device,
            &secret(bytes),
            &bound(kind),
            &Destination::of(&written).unwrap(),
        )
        .unwrap();
        fs::read_to_string(written).unwrap()
    }

    #[test]
    fn what_is_typed_at_a_plain_volume_stands_on_its_sheet() {
        let text = plain_sheet(b"correct horse", PlainSecret::Passphrase);
        assert!(
            text.contains("Passphrase:\n\n    correct horse\n"),
            "{text}"
        );
        let command = "cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 256 --sector-size 512 \
                       --offset 2048 --skip 8 --hash sha256";
        assert!(text.contains(command), "{text}");
    }

    #[test]
    fn what_cannot_be_typed_is_on_the_sheet_as_a_volume_key() {
        let text = plain_sheet(&[0xab; 32], PlainSecret::VolumeKey);
        assert!(
            text.contains(&format!("    {}\n", "AB".repeat(32))),
            "{text}"
        );
        assert!(
            text.contains("basenc --decode --base16 | cryptsetup open --type plain"),
            "{text}"
        );
        // Without it cryptsetup hashes what comes from standard input.
        assert!(text.contains(" --hash plain --key-file - "), "{text}");
        // printf 'pässe' | sha256sum
        let text = plain_sheet("pässe".as_bytes(), PlainSecret::Passphrase);
        assert!(text.contains("Volume key, hexadecimal"), "{text}");
    }
}
