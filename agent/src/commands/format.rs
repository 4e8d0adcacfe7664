//! The first half of `latchkey bind --format`: a new LUKS2 volume and what a person opens it with.

use std::path::Path;

use latchkey_secret::{SecretBytes, SecretError};

use super::prompt::{self, PromptError};
use super::recovery_key::{self, Destination, Luks, SheetError};
use crate::volume::device::{self, DeviceError};
use crate::volume::format::{Empty, FormatError, New};

/// How the new volume is to be.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// A recovery key goes there, in the place of a passphrase.
    pub recovery_sheet: Option<Destination>,
}

/// There is no new volume, or one that the next run takes for empty.
#[derive(Debug, thiserror::Error)]
pub enum NewVolumeError {
    /// The argument.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// No passphrase.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// Nothing was typed.
    #[error(
        "a volume without a passphrase would be opened by the key servers alone; nothing was changed"
    )]
    Empty,
    /// Two passphrases.
    #[error("the two passphrases differ; nothing was changed")]
    Differ,
    /// The sheet.
    #[error(transparent)]
    Sheet(#[from] SheetError),
    /// No memory for a secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Makes a LUKS2 volume on the empty device `argument`; the passphrase or recovery key that opens it.
///
/// # Errors
/// A variant of [`NewVolumeError`].
pub fn run(
    argument: &Path,
    new: &NewVolume,
    name: Option<&str>,
    key_file: Option<&Path>,
) -> Result<SecretBytes, NewVolumeError> {
    let device = device::find(argument)?;
    let empty = Empty::find(&device)?;
    let Some(destination) = &new.recovery_sheet else {
        // Nobody types for nothing, nor keeps the device from others meanwhile: it is looked at again.
        drop(empty);
        let passphrase = passphrase(&device, key_file)?;
        let volume = New::on(Empty::find(&device)?)?.add_passphrase(&passphrase)?;
        volume.write()?;
        log::info!("made a LUKS2 volume on '{}'", device.display());
        return Ok(passphrase);
    };
    let key = recovery_key::generate()?;
    let volume = New::on(empty)?;
    let uuid = volume.uuid.clone();
    let made = format!("luks-{uuid}");
    let sheet = Luks {
        name: name.unwrap_or(&made),
        device: &device,
        header: None,
        kind: "LUKS2",
        uuid: &uuid,
        slot: 0,
    }
    .sheet(&key);
    // As long as that takes, an interruption leaves neither a sheet nor anything on the device.
    let volume = volume.add_passphrase(&key)?;
    sheet.before(destination, || volume.write().map_err(NewVolumeError::from))?;
    log::info!("made a LUKS2 volume on '{}'", device.display());
    destination.remind();
    Ok(key)
}

/// What a person will type: twice the same, or the content of a file.
fn passphrase(device: &Path, key_file: Option<&Path>) -> Result<SecretBytes, NewVolumeError> {
    let passphrase = match key_file {
        Some(path) => prompt::read_key_file(path)?,
        None => {
            let question = format!("New passphrase for '{}': ", device.display());
            let passphrase = prompt::ask_hidden(&question)?;
            let again = prompt::ask_hidden("The same again: ")?;
            if passphrase.expose_secret() != again.expose_secret() {
                return Err(NewVolumeError::Differ);
            }
            passphrase
        }
    };
    match passphrase.is_empty() {
        true => Err(NewVolumeError::Empty),
        false => Ok(passphrase),
    }
}
