//! Opening a volume with its machine secret, without a person.
//!
//! The order is the safety: copy the header, check the copy, take the volume key from the bound keyslot only,
//! compare the key's identity, and only then make the mapping, out of the copy. Nothing is left behind when a step
//! fails. Defends against whoever can write the disk or answers its reads; see `gate`.

use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use latchkey_protocol::encoding::{Bytes, length_prefixed};
use latchkey_protocol::envelope::{Bound, BoundLuks2, MachineSecret, Token};
use latchkey_secret::{SecretBytes, SecretError, process};
use libcryptsetup_rs::CryptDevice;
use libcryptsetup_rs::consts::flags::CryptActivate;
use nix::errno::Errno;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::context::CryptError;
use super::crypttab::{Entry, Options};
use super::gate::{self, GateError};
use super::header::{HeaderCopy, HeaderError};

const KEY_ID_DOMAIN: &[u8] = b"latchkey volume key v1";
/// Most bytes of a volume key that dm-crypt takes: AES-XTS has 64, integrity adds to it.
pub(crate) const VOLUME_KEY_LIMIT: usize = 512;

/// A mapping that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Under `/dev/mapper`.
    pub name: String,
    /// The device below it.
    pub device: PathBuf,
    /// The UUID in its header.
    pub uuid: String,
}

/// A volume was not opened automatically. No mapping is left.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The header could not be copied.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The header is not the one that was bound.
    #[error("refused to open '{device}' automatically: its header changed since it was bound")]
    Gate {
        /// The device.
        device: PathBuf,
        /// The check that failed.
        #[source]
        source: GateError,
    },
    /// The machine secret does not open the bound keyslot.
    #[error("the machine secret does not open keyslot {slot} of '{device}'")]
    WrongSecret {
        /// The device.
        device: PathBuf,
        /// The bound keyslot.
        slot: u32,
    },
    /// The keyslot holds another volume key than the bound one.
    #[error(
        "refused to open '{device}' automatically: its volume key is not the one that was bound"
    )]
    WrongVolumeKey {
        /// The device.
        device: PathBuf,
    },
    /// There is a mapping of that name already.
    #[error("'{0}' is open already")]
    AlreadyOpen(String),
    /// No memory for a secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// libcryptsetup failed otherwise.
    #[error("failed to open '{device}' as '{name}'")]
    Crypt {
        /// The device.
        device: PathBuf,
        /// The mapping's name.
        name: String,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
}

/// Opens `device` under the crypttab entry's name with the machine secret out of `token`'s envelope.
///
/// # Errors
/// Every variant of [`OpenError`]; the passphrase is not concerned by any.
pub fn open_automatically(
    entry: &Entry,
    device: &Path,
    token: &Token,
    secret: &MachineSecret,
) -> Result<Opened, OpenError> {
    let mut unlocked = unlock(&entry.name, device, token, secret)?;
    let Unlocked { context, key, .. } = &mut unlocked;
    activate(context, &entry.name, &entry.options, key).map_err(|source| {
        if source.is(Errno::EEXIST) {
            OpenError::AlreadyOpen(entry.name.clone())
        } else {
            OpenError::Crypt {
                device: device.to_owned(),
                name: entry.name.clone(),
                source,
            }
        }
    })?;
    Ok(Opened {
        name: entry.name.clone(),
        device: device.to_owned(),
        uuid: token.uuid.clone(),
    })
}

/// Everything of [`open_automatically`] but the mapping: would this secret open this volume?
///
/// # Errors
/// As [`open_automatically`].
pub fn check_automatically(
    device: &Path,
    token: &Token,
    secret: &MachineSecret,
) -> Result<(), OpenError> {
    unlock("", device, token, secret).map(drop)
}

/// A context made of the checked copy, and the volume key, which is the bound one.
struct Unlocked {
    context: CryptDevice,
    key: SecretBytes,
    /// The context names this copy by its descriptor, so it goes last.
    _header: HeaderCopy,
}

fn unlock(
    name: &str,
    device: &Path,
    token: &Token,
    secret: &MachineSecret,
) -> Result<Unlocked, OpenError> {
    let Bound::Luks2(bound) = &token.bound;
    let header = HeaderCopy::read(device)?;
    gate::check(header.uuid(), header.json(), &token.uuid, bound).map_err(|source| {
        OpenError::Gate {
            device: device.to_owned(),
            source,
        }
    })?;
    header.copy_keyslot(bound.keyslot)?;
    header.seal()?;

    let failed = |source| OpenError::Crypt {
        device: device.to_owned(),
        name: name.to_owned(),
        source,
    };
    let mut context = header.context().map_err(failed)?;
    let passphrase = secret.0.expose_secret();
    let key = volume_key(&mut context, bound.keyslot, passphrase);
    process::wipe_stack();
    let key = key.map_err(|error| match error {
        KeyError::Secret(error) => OpenError::Secret(error),
        KeyError::Crypt(source) if source.is(Errno::EPERM) => OpenError::WrongSecret {
            device: device.to_owned(),
            slot: bound.keyslot,
        },
        KeyError::Crypt(source) => failed(source),
    })?;
    if !is_bound_key(&key, &token.uuid, bound) {
        return Err(OpenError::WrongVolumeKey {
            device: device.to_owned(),
        });
    }
    Ok(Unlocked {
        context,
        key,
        _header: header,
    })
}

/// Why there is no volume key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Crypt(#[from] CryptError),
}

/// The key in keyslot `slot`, written by libcryptsetup into locked memory. EPERM is a wrong passphrase.
pub(crate) fn volume_key(
    context: &mut CryptDevice,
    slot: u32,
    passphrase: &[u8],
) -> Result<SecretBytes, KeyError> {
    let mut key = SecretBytes::zeroed(VOLUME_KEY_LIMIT)?;
    let (_, size) = context
        .volume_key_handle()
        .get(Some(slot), key.expose_secret_mut(), Some(passphrase))
        .map_err(CryptError::from)?;
    key.truncate(size);
    Ok(key)
}

/// Makes the mapping. The header's persistent flags are added by libcryptsetup.
pub(crate) fn activate(
    context: &mut CryptDevice,
    name: &str,
    options: &Options,
    key: &SecretBytes,
) -> Result<(), CryptError> {
    let result = context.activate_handle().activate_by_volume_key(
        Some(name),
        Some(key.expose_secret()),
        flags(options),
    );
    process::wipe_stack();
    Ok(result?)
}

/// HMAC-SHA-256 of a volume key: tells volume keys apart and gives nothing of them away.
///
/// # Panics
/// Never: HMAC takes keys of any length.
pub fn volume_key_id(key: &SecretBytes, uuid: &str) -> Bytes<32> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.expose_secret()).expect("HMAC takes keys of any length");
    mac.update(&length_prefixed(&[KEY_ID_DOMAIN, uuid.as_bytes()]));
    let id = Bytes(mac.finalize().into_bytes().into());
    process::wipe_stack();
    id
}

/// Whether `key` is the volume key that was bound, in constant time.
pub(crate) fn is_bound_key(key: &SecretBytes, uuid: &str, bound: &BoundLuks2) -> bool {
    volume_key_id(key, uuid)
        .0
        .ct_eq(&bound.volume_key_id.0)
        .into()
}

fn flags(options: &Options) -> CryptActivate {
    [
        (options.discard, CryptActivate::ALLOW_DISCARDS),
        (options.read_only, CryptActivate::READONLY),
        (options.no_read_workqueue, CryptActivate::NO_READ_WORKQUEUE),
        (
            options.no_write_workqueue,
            CryptActivate::NO_WRITE_WORKQUEUE,
        ),
        (options.same_cpu_crypt, CryptActivate::SAME_CPU_CRYPT),
        (
            options.submit_from_crypt_cpus,
            CryptActivate::SUBMIT_FROM_CRYPT_CPUS,
        ),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(CryptActivate::empty(), |flags, (_, flag)| flags | flag)
}
