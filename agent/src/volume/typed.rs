//! Opening a volume with a passphrase that a person typed.
//!
//! Checking and making the mapping are two steps, so that the caller can wipe its credentials in between. Whatever
//! keyslot the passphrase opens is good: what the binding says only warns here, see [`TypedKey::matches_bound`].
//! Keyslots of priority `ignore`, as latchkey's own, are left out, as by every other unlocker, unless crypttab names one. A plain volume has no
//! keyslot: there a passphrase is right if it gives the volume key that was bound.

mod choice;

use std::path::{Path, PathBuf};

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::envelope::{Bound, BoundLuks2, PlainSecret, Token};
use latchkey_secret::{SecretBytes, SecretError, process};
use libcryptsetup_rs::CryptDevice;
use nix::errno::Errno;
use serde_json::Value;

use choice::{is_asked_for, usable_keyslots};

use super::context::CryptError;
use super::crypttab::Entry;
use super::gate::{self, GateError, Position};
use super::header::{HeaderCopy, HeaderError};
use super::identity;
use super::luks1::{self, Luks1Copy};
use super::open::{self, ActivateError, KeyError, Opened, VOLUME_KEY_LIMIT};
use super::place::{HeaderPlace, Place};
use super::plain::{self, ContentError, Settings};

/// The volume key that a right passphrase gave, and the header that it belongs to.
#[derive(Debug)]
pub struct TypedKey {
    device: PathBuf,
    uuid: String,
    key: SecretBytes,
    keyslot: Option<u32>,
    header: Header,
}

/// A passphrase did not open a volume.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// No keyslot opens with it.
    #[error("no keyslot of '{0}' opens with this passphrase")]
    WrongPassphrase(PathBuf),
    /// A keyslot could not be tried: Argon2 needs more memory than the machine has.
    #[error(
        "keyslot {slot} of '{device}' needs {mebibytes} MiB of memory, more than this machine has to give\nadd a keyslot with 'cryptsetup luksAddKey --pbkdf pbkdf2', or give the machine more memory"
    )]
    Memory {
        /// The device.
        device: PathBuf,
        /// The keyslot.
        slot: u32,
        /// What its key derivation asks for.
        mebibytes: u64,
    },
    /// Only the native unlocker can open it, because it must first go on with the reencryption.
    #[error(
        "'{0}' is being reencrypted, or its header needs a newer cryptsetup: only cryptsetup itself can open it"
    )]
    Reencryption(PathBuf),
    /// A plain volume of a raw volume key.
    #[error("'{0}' is opened by a volume key, not by a passphrase")]
    NoPassphrase(PathBuf),
    /// crypttab would make another mapping of a plain volume than the one that was bound.
    #[error("'{device}' is not as it was bound: {why}")]
    Settings {
        /// The device.
        device: PathBuf,
        /// The first difference.
        why: String,
    },
    /// A plain volume holds nothing that is known, so it may be another one.
    #[error("failed to look into '{device}'")]
    Content {
        /// The device.
        device: PathBuf,
        /// What was found.
        #[source]
        source: ContentError,
    },
    /// Neither LUKS2 nor LUKS1.
    #[error("'{0}' has no LUKS header")]
    NotLuks(PathBuf),
    /// Somebody else opened it.
    #[error("'{0}' is open already")]
    AlreadyOpen(String),
    /// Another mapping has its name.
    #[error("{by} has the name '{name}'")]
    NameTaken {
        /// The mapping's name.
        name: String,
        /// What has it.
        by: String,
    },
    /// No memory for a secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The header could not be copied.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// libcryptsetup failed otherwise.
    #[error("failed to open '{device}' with a passphrase")]
    Crypt {
        /// The device.
        device: PathBuf,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
}

/// A volume that a passphrase opens is not the one that was bound.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The header was changed since.
    #[error("the header changed since the volume was bound")]
    Header(#[source] GateError),
    /// Another volume key.
    #[error("the volume key is not the one that was bound")]
    VolumeKey,
    /// Another kind of volume.
    #[error("the volume is of another kind than the one that was bound")]
    Kind,
}

/// What the mapping is made of: the copy that the passphrase was checked on.
#[derive(Debug)]
enum Header {
    Luks2(HeaderCopy),
    Luks1(Luks1Copy),
    /// No header, but what was bound.
    Plain(Settings),
}

/// Finds a keyslot that `passphrase` opens, and takes the volume key from it. Makes no mapping.
///
/// # Errors
/// Every variant of [`PassphraseError`] but those of mappings. `Memory` only if no other keyslot opens.
pub fn check_passphrase(
    device: &Path,
    passphrase: &SecretBytes,
) -> Result<TypedKey, PassphraseError> {
    check_passphrase_except(device, passphrase, None)
}

/// The volume key that `passphrase` opens.
///
/// # Errors
/// As [`check_passphrase`].
pub fn volume_key(device: &Path, passphrase: &SecretBytes) -> Result<SecretBytes, PassphraseError> {
    check_passphrase(device, passphrase).map(|typed| typed.key)
}

/// Finds out whether `passphrase` opens the volume of a crypttab entry at `place`, as the native unlocker would: a
/// `keyslot=` is the only one that counts. Without its binding a plain volume is left to that.
///
/// # Errors
/// Every variant of [`PassphraseError`] but those of mappings. `Memory` only if no other keyslot opens.
pub fn check_typed(
    entry: &Entry,
    place: &Place,
    token: Option<&Token>,
    passphrase: &SecretBytes,
) -> Result<TypedKey, PassphraseError> {
    let Some(header) = place.luks_header() else {
        return check_plain(place, token, passphrase);
    };
    Attempt {
        passphrase,
        except: None,
        only: entry.options.keyslot,
        memory: total_memory(),
    }
    .run(header, &place.device)
}

fn check_plain(
    place: &Place,
    token: Option<&Token>,
    passphrase: &SecretBytes,
) -> Result<TypedKey, PassphraseError> {
    let device = &place.device;
    let wrong = || PassphraseError::WrongPassphrase(device.clone());
    let Some(token) = token else {
        return Err(wrong());
    };
    let Bound::Plain(bound) = &token.bound else {
        return Err(wrong());
    };
    if bound.secret == PlainSecret::VolumeKey {
        return Err(PassphraseError::NoPassphrase(device.clone()));
    }
    // The native unlocker would take crypttab's word, and then that is to be what was bound.
    let HeaderPlace::None(options) = &place.header else {
        return Err(wrong());
    };
    let settings = plain::settings_as_bound(options, bound);
    let settings = settings.map_err(|why| PassphraseError::Settings {
        device: device.clone(),
        why,
    })?;
    let failed = |source| PassphraseError::Crypt {
        device: device.clone(),
        source,
    };
    let mut context = settings.context(device).map_err(failed)?;
    let key = settings.key_of_passphrase(&mut context, passphrase.expose_secret());
    let key = key.map_err(|error| match error {
        KeyError::Secret(error) => PassphraseError::Secret(error),
        KeyError::Crypt(source) => failed(source),
    })?;
    if !identity::is_bound_key(&key, &token.uuid, &bound.volume_key_id) {
        return Err(wrong());
    }
    Ok(TypedKey {
        device: device.clone(),
        uuid: token.uuid.clone(),
        key,
        keyslot: None,
        header: Header::Plain(settings),
    })
}

/// As [`check_passphrase`], without keyslot `except`.
pub(crate) fn check_passphrase_except(
    device: &Path,
    passphrase: &SecretBytes,
    except: Option<u32>,
) -> Result<TypedKey, PassphraseError> {
    Attempt {
        passphrase,
        except,
        only: None,
        memory: total_memory(),
    }
    .run(device, device)
}

impl TypedKey {
    /// Makes the mapping of the crypttab entry. Of a plain volume only if it holds something that is known: the right
    /// passphrase on the wrong device makes noise of it.
    ///
    /// # Errors
    /// `AlreadyOpen`, `NameTaken`, `Content`, `Crypt`.
    pub fn activate(&self, entry: &Entry) -> Result<Opened, PassphraseError> {
        let failed = |source: CryptError| PassphraseError::Crypt {
            device: self.device.clone(),
            source,
        };
        let mut context = self.context().map_err(failed)?;
        if let Header::Plain(_) = self.header {
            plain::content(&mut context, &self.key).map_err(|source| PassphraseError::Content {
                device: self.device.clone(),
                source,
            })?;
        }
        let name = || entry.name.clone();
        open::activate(&mut context, entry, &self.device, &self.key).map_err(
            |error| match error {
                ActivateError::AlreadyOpen => PassphraseError::AlreadyOpen(name()),
                ActivateError::NameTaken(by) => PassphraseError::NameTaken { name: name(), by },
                ActivateError::Crypt(source) => failed(source),
            },
        )?;
        Ok(Opened {
            name: entry.name.clone(),
            device: self.device.clone(),
            uuid: self.uuid.clone(),
        })
    }

    /// Whether this is the volume that was bound, by the same checks as automatic opening.
    ///
    /// # Errors
    /// The first difference.
    pub fn matches_bound(&self, token: &Token) -> Result<(), Mismatch> {
        let bound_key = match (&self.header, &token.bound) {
            (Header::Luks2(header), Bound::Luks2(bound)) => {
                self.luks2_matches(header, token, bound, Position::Attached)?
            }
            (Header::Luks2(header), Bound::DetachedLuks2(bound)) => {
                self.luks2_matches(header, token, bound, Position::Detached)?
            }
            (Header::Luks1(header), Bound::Luks1(bound)) => {
                luks1::check(header.facts(), &token.uuid, bound).map_err(Mismatch::Header)?;
                &bound.volume_key_id
            }
            (Header::Plain(settings), Bound::Plain(bound)) => {
                settings.check(bound).map_err(Mismatch::Header)?;
                &bound.volume_key_id
            }
            _ => return Err(Mismatch::Kind),
        };
        if identity::is_bound_key(&self.key, &self.uuid, bound_key) {
            Ok(())
        } else {
            Err(Mismatch::VolumeKey)
        }
    }

    fn luks2_matches<'a>(
        &self,
        header: &HeaderCopy,
        token: &Token,
        bound: &'a BoundLuks2,
        position: Position,
    ) -> Result<&'a Bytes<32>, Mismatch> {
        gate::check(&self.uuid, header.json(), &token.uuid, bound, position)
            .map_err(Mismatch::Header)?;
        Ok(&bound.volume_key_id)
    }

    /// The UUID in the header, or that of the binding.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The keyslot that the passphrase opened, if the volume has such.
    pub fn keyslot(&self) -> Option<u32> {
        self.keyslot
    }

    /// The volume key.
    pub(crate) fn volume_key(&self) -> &SecretBytes {
        &self.key
    }

    fn context(&self) -> Result<CryptDevice, CryptError> {
        match &self.header {
            Header::Luks2(header) => header.context(),
            Header::Luks1(header) => header.context(),
            Header::Plain(settings) => settings.context(&self.device),
        }
    }
}

/// A passphrase to be tried on all keyslots of a volume.
pub(crate) struct Attempt<'a> {
    pub(crate) passphrase: &'a SecretBytes,
    /// A keyslot to leave out.
    pub(crate) except: Option<u32>,
    /// The only one to be tried.
    pub(crate) only: Option<u32>,
    /// KiB of memory that the machine has, if known.
    pub(crate) memory: Option<u64>,
}

impl Attempt<'_> {
    pub(crate) fn run(&self, header: &Path, data: &Path) -> Result<TypedKey, PassphraseError> {
        let key = match HeaderCopy::read_detached(header, data) {
            Ok(header) => self.luks2(header),
            Err(HeaderError::NotLuks2(_)) => match Luks1Copy::read(header, data) {
                Ok(header) => self.luks1(header),
                Err(HeaderError::NotLuks1(_)) => Err(PassphraseError::NotLuks(header.to_owned())),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        };
        process::wipe_stack();
        key
    }

    fn luks2(&self, mut header: HeaderCopy) -> Result<TypedKey, PassphraseError> {
        let device = header.data().to_owned();
        if is_reencrypting(header.json()) {
            return Err(PassphraseError::Reencryption(device));
        }
        let failed = |source| PassphraseError::Crypt {
            device: device.clone(),
            source,
        };
        let mut context = header.context().map_err(failed)?;
        let mut problem = None;
        let usable = match self.only {
            Some(slot) if is_asked_for(header.json(), slot) => vec![slot],
            Some(_) => Vec::new(),
            None => usable_keyslots(header.json()),
        };
        for slot in self.chosen(usable) {
            match self.keyslot(&header, &mut context, slot) {
                Ok(Some(key)) => {
                    // It has passed the header's digest. The mapping need not wait for that a second time.
                    let id = identity::volume_key_id(&key, header.uuid());
                    let digest = identity::luks2_digest(header.uuid(), &id);
                    header.replace_digest(slot, &digest)?;
                    return Ok(TypedKey {
                        device,
                        uuid: header.uuid().to_owned(),
                        key,
                        keyslot: Some(slot),
                        header: Header::Luks2(header),
                    });
                }
                Ok(None) => {}
                // Another keyslot may still open: one that cannot be tried must not lock its owner out.
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        Err(problem.unwrap_or(PassphraseError::WrongPassphrase(device)))
    }

    /// The volume key, or `None` if the passphrase is not this keyslot's.
    fn keyslot(
        &self,
        header: &HeaderCopy,
        context: &mut CryptDevice,
        slot: u32,
    ) -> Result<Option<SecretBytes>, PassphraseError> {
        let kibibytes = memory_cost(header.json(), slot);
        let no_memory = || PassphraseError::Memory {
            device: header.device().to_owned(),
            slot,
            mebibytes: kibibytes.div_ceil(1024),
        };
        // malloc(3) would grant it, and the kernel would then kill us for using it.
        if self.memory.is_some_and(|total| kibibytes > total) {
            return Err(no_memory());
        }
        header.copy_keyslot(slot)?;
        let key = match open::volume_key(context, slot, self.passphrase.expose_secret()) {
            Ok(key) => key,
            Err(KeyError::Secret(error)) => return Err(error.into()),
            Err(KeyError::Crypt(error)) if is_wrong(&error) => return Ok(None),
            Err(KeyError::Crypt(error)) if error.is(Errno::ENOMEM) => return Err(no_memory()),
            Err(KeyError::Crypt(source)) => {
                return Err(PassphraseError::Crypt {
                    device: header.device().to_owned(),
                    source,
                });
            }
        };
        // A keyslot may hold a key that is not the volume's.
        let is_volume_key = context
            .volume_key_handle()
            .verify(key.expose_secret())
            .is_ok();
        Ok(is_volume_key.then_some(key))
    }

    fn luks1(&self, header: Luks1Copy) -> Result<TypedKey, PassphraseError> {
        let device = header.data().to_owned();
        let failed = |source| PassphraseError::Crypt {
            device: device.clone(),
            source,
        };
        let mut context = header.context().map_err(failed)?;
        for slot in self.chosen(header.facts().active().collect()) {
            match open::volume_key(&mut context, slot, self.passphrase.expose_secret()) {
                Ok(key) => {
                    return Ok(TypedKey {
                        uuid: header.facts().uuid.clone(),
                        device,
                        key,
                        keyslot: Some(slot),
                        header: Header::Luks1(header),
                    });
                }
                Err(KeyError::Secret(error)) => return Err(error.into()),
                Err(KeyError::Crypt(error)) if is_wrong(&error) => {}
                Err(KeyError::Crypt(source)) => return Err(failed(source)),
            }
        }
        Err(PassphraseError::WrongPassphrase(device))
    }

    fn chosen(&self, slots: Vec<u32>) -> impl Iterator<Item = u32> {
        let (except, only) = (self.except, self.only);
        slots
            .into_iter()
            .filter(move |slot| Some(*slot) != except && only.is_none_or(|only| only == *slot))
    }
}

/// libcryptsetup's errors for a passphrase that is not the keyslot's, and for a keyslot that is none of the volume.
fn is_wrong(error: &CryptError) -> bool {
    error.is(Errno::EPERM) || error.is(Errno::ENOENT)
}

fn is_reencrypting(json: &Value) -> bool {
    let required = !json["config"]["requirements"].is_null();
    let keyslot = json["keyslots"]
        .as_object()
        .is_some_and(|slots| slots.values().any(|slot| slot["type"] == "reencrypt"));
    required || keyslot
}

/// KiB that the keyslot's key derivation takes; 0 for PBKDF2.
fn memory_cost(json: &Value, slot: u32) -> u64 {
    json["keyslots"][slot.to_string()]["kdf"]["memory"]
        .as_u64()
        .unwrap_or(0)
}

/// Says which of the keyslots that a passphrase may open need more than `total` KiB of memory, if any does; `only` is the
/// one that crypttab names.
pub fn beyond_memory(header: &Path, only: Option<u32>, total: u64) -> Option<String> {
    let header = HeaderCopy::read(header).ok()?;
    let needed = |slot: u32| (slot, memory_cost(header.json(), slot));
    let usable = only.map_or_else(|| usable_keyslots(header.json()), |slot| vec![slot]);
    let (beyond, usable): (Vec<_>, Vec<_>) = usable
        .into_iter()
        .map(needed)
        .partition(|(_, needed)| *needed > total);
    let mebibytes = beyond
        .iter()
        .map(|(_, needed)| needed.div_ceil(1024))
        .max()?;
    let slots: Vec<_> = beyond.iter().map(|(slot, _)| slot.to_string()).collect();
    let slots = slots.join(", ");
    let hope = match usable.is_empty() {
        true => "no passphrase can be tried on this machine",
        false => "its passphrase cannot be tried, those of other keyslots can",
    };
    Some(format!(
        "keyslot {slots} needs {mebibytes} MiB of memory, this machine has {}: {hope}",
        total / 1024
    ))
}

/// KiB of memory that the machine has.
pub fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

// A buffer for the volume key is larger than any that LUKS1 has (64 bytes).
const _: () = assert!(VOLUME_KEY_LIMIT >= 64);
