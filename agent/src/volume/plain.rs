//! Plain dm-crypt: no header, so nothing on the disk tells a wrong key from the right one.
//!
//! What does is in the envelope: everything that makes the mapping but its key, and the **check value**, the HMAC of the
//! volume key, which is compared before anything is mapped. Then the mapping is made under another name, for reading
//! only and hidden from udev's scans, and must hold something known: the right key on the wrong device is noise too.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroI32;
use std::path::Path;
use std::thread;
use std::time::Duration;

use latchkey_protocol::encoding::{Bytes, hex};
use latchkey_protocol::envelope::{BoundPlain, MachineSecret, PlainSecret};
use latchkey_secret::{SecretBytes, SecretError, process};
use libcryptsetup_rs::consts::flags::CryptActivate;
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use libcryptsetup_rs::{CryptDevice, CryptParamsPlain, CryptParamsPlainRef, Either};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use zeroize::Zeroizing;

use super::context::{self, CryptError};
use super::crypttab::PlainOptions;
use super::gate::{self, GateError};
use super::mapping;
use super::open::{KeyError, VOLUME_KEY_LIMIT};
use super::signature;

/// The word for "no hash" of cryptsetup(8).
pub const NO_HASH: &str = "plain";
const SECTOR: u64 = 512;
/// What the names of the mappings that are looked through begin with; the id of the process follows.
const LOOK: &str = "latchkey-look-";
/// How often such a mapping is tried to be closed, and how long to wait in between.
const CLOSE_TRIES: u32 = 20;
const CLOSE_PAUSE: Duration = Duration::from_millis(50);

/// Everything that makes a plain mapping but its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// In dm-crypt's spelling, such as `twofish-xts-plain64`.
    pub cipher: String,
    /// What makes the volume key of a passphrase, [`NO_HASH`] for nothing.
    pub hash: String,
    /// Bytes of the volume key.
    pub key_size: u32,
    /// Bytes of an encryption sector.
    pub sector_size: u32,
    /// Byte at which the data begins.
    pub offset: u64,
    /// Added to a 512-byte sector's number for its initialization vector.
    pub skip: u64,
}

/// crypttab does not say all that must be known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The defaults of cryptsetup changed in 2.7 (LUKS FAQ, 8.1), so they are never guessed.
    #[error(
        "crypttab does not say {} of the plain volume\n\
         write what the volume was made with; the defaults of cryptsetup changed in 2.7 \
         (from cipher=aes-cbc-essiv:sha256,hash=ripemd160,size=256 to cipher=aes-xts-plain64,hash=sha256,size=256)",
        .0.join(", ")
    )]
    Missing(Vec<&'static str>),
    /// Not a cipher with mode and initialization vector.
    #[error("'{0}' is no cipher with mode and initialization vector, such as 'aes-xts-plain64'")]
    Cipher(String),
    /// The data would not be encrypted.
    #[error("the cipher '{0}' does not encrypt")]
    NullCipher(String),
    /// The offset is beyond any device.
    #[error("the offset is beyond the end of any device")]
    Offset,
}

impl Settings {
    /// What crypttab says, all of it explicit but what is 0 or 512 otherwise.
    ///
    /// # Errors
    /// A variant of [`SettingsError`].
    pub fn of(options: &PlainOptions) -> Result<Self, SettingsError> {
        let (Some(cipher), Some(hash), Some(bits)) =
            (&options.cipher, &options.hash, options.key_bits)
        else {
            let said = [
                ("cipher=", options.cipher.is_some()),
                ("hash=", options.hash.is_some()),
                ("size=", options.key_bits.is_some()),
            ];
            let missing = said.into_iter().filter(|(_, said)| !said);
            return Err(SettingsError::Missing(
                missing.map(|(name, _)| name).collect(),
            ));
        };
        if gate::is_null(cipher) {
            return Err(SettingsError::NullCipher(cipher.clone()));
        }
        if split(cipher).is_none() {
            return Err(SettingsError::Cipher(cipher.clone()));
        }
        let offset = options.offset.unwrap_or(0).checked_mul(SECTOR);
        Ok(Self {
            cipher: cipher.clone(),
            hash: hash.clone(),
            key_size: bits / 8,
            sector_size: options.sector_size.unwrap_or(512),
            offset: offset.ok_or(SettingsError::Offset)?,
            skip: options.skip.unwrap_or(0),
        })
    }

    /// With what the machine secret is and the check value, what is to be bound.
    pub fn bound(&self, secret: PlainSecret, volume_key_id: Bytes<32>) -> BoundPlain {
        BoundPlain {
            secret,
            cipher: self.cipher.clone(),
            // A volume key is not hashed, whatever crypttab says of passphrases.
            hash: self.hash.clone(),
            key_size: self.key_size,
            sector_size: self.sector_size,
            offset: self.offset,
            skip: self.skip,
            volume_key_id,
        }
    }

    /// Whether crypttab still asks for the mapping that was bound.
    ///
    /// # Errors
    /// The first difference; a null cipher.
    pub fn check(&self, bound: &BoundPlain) -> Result<(), GateError> {
        if gate::is_null(&self.cipher) || gate::is_null(&bound.cipher) {
            return Err(GateError::NullCipher);
        }
        let bits = |size: u32| (u64::from(size) * 8).to_string();
        let sectors = |bytes: u64| (bytes / SECTOR).to_string();
        for (option, found, bound) in [
            ("cipher=", self.cipher.clone(), bound.cipher.clone()),
            ("hash=", self.hash.clone(), bound.hash.clone()),
            ("size=", bits(self.key_size), bits(bound.key_size)),
            (
                "sector-size=",
                self.sector_size.to_string(),
                bound.sector_size.to_string(),
            ),
            ("offset=", sectors(self.offset), sectors(bound.offset)),
            ("skip=", self.skip.to_string(), bound.skip.to_string()),
        ] {
            if found != bound {
                return Err(GateError::Setting {
                    option,
                    found,
                    bound,
                });
            }
        }
        Ok(())
    }

    /// A context that would make this mapping on `device`. Nothing is written.
    ///
    /// # Errors
    /// What libcryptsetup says.
    pub(crate) fn context(&self, device: &Path) -> Result<CryptDevice, CryptError> {
        let mut context = context::attached(device)?;
        let parameters = CryptParamsPlain {
            hash: self.hash.clone(),
            offset: self.offset / SECTOR,
            sector_size: self.sector_size,
            size: 0, // to the end of the device
            skip: self.skip,
        };
        let mut parameters: CryptParamsPlainRef<'_> = (&parameters).try_into()?;
        let cipher = split(&self.cipher).unwrap_or((&self.cipher, ""));
        let key_size = usize::try_from(self.key_size).unwrap_or(usize::MAX);
        context.context_handle().format(
            EncryptionFormat::Plain,
            cipher,
            None,
            Either::Right(key_size),
            Some(&mut parameters),
        )?;
        Ok(context)
    }

    /// The volume key that cryptsetup makes of a typed passphrase.
    pub(crate) fn key_of_passphrase(
        &self,
        context: &mut CryptDevice,
        passphrase: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        let size = usize::try_from(self.key_size).unwrap_or(usize::MAX);
        let key = if self.hash == NO_HASH {
            let mut key = SecretBytes::zeroed(size.min(VOLUME_KEY_LIMIT))?;
            let length = passphrase.len().min(size);
            key.expose_secret_mut()[..length].copy_from_slice(&passphrase[..length]);
            Ok(key)
        } else {
            let mut key = SecretBytes::zeroed(VOLUME_KEY_LIMIT)?;
            let made = context
                .volume_key_handle()
                .get(None, key.expose_secret_mut(), Some(passphrase))
                .map_err(CryptError::from);
            made.map(|(_, size)| {
                key.truncate(size);
                key
            })
        };
        process::wipe_stack();
        Ok(key?)
    }

    /// The volume key that the machine secret stands for; `None` if it has another length.
    pub(crate) fn key_of_secret(
        &self,
        context: &mut CryptDevice,
        secret: &MachineSecret,
        kind: PlainSecret,
    ) -> Result<Option<SecretBytes>, KeyError> {
        let bytes = secret.0.expose_secret();
        match kind {
            PlainSecret::Passphrase => self.key_of_passphrase(context, bytes).map(Some),
            PlainSecret::VolumeKey if u32::try_from(bytes.len()) == Ok(self.key_size) => {
                Ok(Some(copy(bytes)?))
            }
            PlainSecret::VolumeKey => Ok(None),
        }
    }
}

/// What crypttab says of a plain volume, if that is what was bound; else the first difference, for people.
///
/// # Errors
/// What is missing in crypttab, or says something else.
pub fn settings_as_bound(options: &PlainOptions, bound: &BoundPlain) -> Result<Settings, String> {
    let settings = Settings::of(options).map_err(|error| error.to_string())?;
    settings.check(bound).map_err(|error| error.to_string())?;
    Ok(settings)
}

impl From<&BoundPlain> for Settings {
    fn from(bound: &BoundPlain) -> Self {
        Self {
            cipher: bound.cipher.clone(),
            hash: bound.hash.clone(),
            key_size: bound.key_size,
            sector_size: bound.sector_size,
            offset: bound.offset,
            skip: bound.skip,
        }
    }
}

/// A copy of secret bytes, in locked memory too.
fn copy(bytes: &[u8]) -> Result<SecretBytes, SecretError> {
    let mut copy = SecretBytes::with_capacity(bytes.len())?;
    copy.push(bytes)?;
    Ok(copy)
}

/// Cipher, and mode with initialization vector, as libcryptsetup takes them.
fn split(cipher: &str) -> Option<(&str, &str)> {
    let parts = if cipher.starts_with("capi:") {
        cipher.rsplit_once('-')
    } else {
        cipher.split_once('-')
    };
    // `aes-plain` is an old name for CBC, and no name of its own in dm-crypt.
    parts.filter(|(name, mode)| !name.is_empty() && !mode.is_empty() && *mode != "plain")
}

/// Why a plain volume was not found to hold anything.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The mapping could not be made or taken down.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// It could not be read.
    #[error("failed to read what it holds")]
    Read(#[source] io::Error),
    /// Noise.
    #[error(
        "what it holds is no file system, swap area or the like that is known: \
         the device, the cipher or the key is another one, or it is still empty"
    )]
    Unknown,
}

/// What the volume holds if it is opened with `key`: looked at through a mapping that is for reading only, that udev
/// does not scan, and that is gone when this returns.
///
/// # Errors
/// Every variant of [`ContentError`].
pub(crate) fn content(
    context: &mut CryptDevice,
    key: &SecretBytes,
) -> Result<&'static str, ContentError> {
    close_left_over();
    let mut random = [0; 4];
    getrandom::fill(&mut random)
        .map_err(|error| ContentError::Read(io::Error::other(error.to_string())))?;
    let name = format!("{LOOK}{}-{}", std::process::id(), hex(&random));
    let flags = CryptActivate::READONLY | CryptActivate::PRIVATE | CryptActivate::SHARED;
    let mapped = context.activate_handle().activate_by_volume_key(
        Some(&name),
        Some(key.expose_secret()),
        flags,
    );
    process::wipe_stack();
    mapped.map_err(CryptError::from)?;
    let bytes = beginning(&Path::new("/dev/mapper").join(&name));
    let closed = close(&name);
    let found = signature::of(&bytes.map_err(ContentError::Read)?);
    closed?;
    found.ok_or(ContentError::Unknown)
}

/// Closes what a look left that was killed: it holds the volume key, and the device. Not what a process looks through that
/// lives: in the running system each volume has its own.
pub(crate) fn close_left_over() {
    for name in mapping::named_by_us(Path::new("/"), LOOK) {
        if is_in_use(&name) {
            continue;
        }
        if let Err(error) = close(&name) {
            log::warn!("failed to close '{name}', which an earlier look left: {error}");
        }
    }
}

/// Whether another process, which lives, made the mapping of this name. Of our own there is one at a time.
fn is_in_use(name: &str) -> bool {
    let of_process = name
        .strip_prefix(LOOK)
        .and_then(|rest| rest.split_once('-'));
    let id = of_process.and_then(|(id, _)| id.parse::<NonZeroI32>().ok());
    let id = id.map(|id| Pid::from_raw(id.get()));
    id.is_some_and(|id| id != Pid::this() && kill(id, None) != Err(Errno::ESRCH))
}

/// Takes the mapping of a look down; somebody, such as udev, may hold it open for a moment.
fn close(name: &str) -> Result<(), CryptError> {
    let mut closed = mapping::close(name);
    for _ in 1..CLOSE_TRIES {
        match &closed {
            Err(error) if error.is(Errno::EBUSY) => thread::sleep(CLOSE_PAUSE),
            _ => break,
        }
        closed = mapping::close(name);
    }
    closed
}

/// Wiped when it is dropped: it is content of the volume.
fn beginning(device: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // Of its full length from the start: a buffer that grows leaves copies.
    let mut bytes = Zeroizing::new(Vec::with_capacity(signature::LENGTH));
    File::open(device)?
        .take(signature::LENGTH as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cipher '{}', hash '{}', a key of {} bits, sectors of {} bytes, from byte {}, skipping {} sectors",
            self.cipher,
            self.hash,
            u64::from(self.key_size) * 8,
            self.sector_size,
            self.offset,
            self.skip
        )
    }
}
