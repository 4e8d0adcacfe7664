//! Keyslots: which are ours, making one, proving others, destroying one.
//!
//! Our keyslot holds 256 random bits, so its key derivation costs the least that LUKS allows: 1000 iterations of
//! PBKDF2, which no memory limit and no slow processor hurts (systemd and clevis do the same). In LUKS2 it has the
//! priority `ignore`: a typed passphrase loses no time on it, and no other unlocker tries it unasked. LUKS1 has neither
//! priorities nor tokens, so there only the envelope file tells ours from others. Keyslots that are not latchkey's are
//! never changed.
//!
//! Where a header is detached, `device` is what the header lies on.

mod traces;

use std::path::{Path, PathBuf};

use latchkey_protocol::envelope::{Bound, MachineSecret};
use latchkey_secret::{SecretBytes, SecretError, process};
use libcryptsetup_rs::consts::flags::{CryptPbkdf, CryptVolumeKey};
use libcryptsetup_rs::consts::vals::{CryptKdf, EncryptionFormat, KeyslotPriority};
use libcryptsetup_rs::{CryptDevice, CryptPbkdfType, Either};
use nix::errno::Errno;
use serde_json::Value;

use super::context::{self, CryptError};
use super::gate::{self, GateError, Position};
use super::header::{self, HeaderCopy, HeaderError};
use super::identity;
use super::luks1::{self, Luks1Copy};
use super::open::{self, KeyError};
use super::tokens;
use super::typed::{self, PassphraseError};

pub use traces::Traces;

/// LUKS2 on-disk format: the most keyslots that a header has.
const KEYSLOTS_LIMIT: u32 = 32;
/// The least that LUKS allows (`MIN_PBKDF2_ITERATIONS` of libcryptsetup).
const ITERATIONS: u32 = 1000;

/// A keyslot of a LUKS2 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyslot {
    /// Its number.
    pub slot: u32,
    /// The key derivation: `pbkdf2`, `argon2id`, …
    pub kdf: String,
    /// KiB that the key derivation takes, 0 for PBKDF2.
    pub memory_kib: u64,
    /// Whether a typed passphrase is tried on it.
    pub typed: bool,
    /// Whether the volume key is in it with which the data is encrypted: not in one that is bound to no data, or for a
    /// reencryption.
    pub opens: bool,
    /// Whether a latchkey token names it and no typed passphrase is tried on it, as on every keyslot that latchkey
    /// made: a forged token must not cost anybody a passphrase.
    pub ours: bool,
}

/// Facts about a keyslot that was bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundFacts {
    /// The UUID in the header.
    pub uuid: String,
    /// What automatic opening will insist on.
    pub bound: Bound,
}

/// Nothing was done to a keyslot.
#[derive(Debug, thiserror::Error)]
pub enum KeyslotError {
    /// The header could not be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The passphrase does not open what it should.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The latchkey tokens could not be read.
    #[error(transparent)]
    Tokens(#[from] tokens::TokenError),
    /// The volume is such that it could never be opened automatically.
    #[error("'{device}' cannot be bound")]
    Unfit {
        /// The device.
        device: PathBuf,
        /// What automatic opening would refuse.
        #[source]
        source: GateError,
    },
    /// All keyslots are in use.
    #[error(
        "all keyslots of '{0}' are in use\nremove one that is not needed with 'cryptsetup luksKillSlot'"
    )]
    NoFreeKeyslot(PathBuf),
    /// Somebody else's keyslot.
    #[error("keyslot {slot} of '{device}' is not one of latchkey; left as it is")]
    NotOurs {
        /// The device.
        device: PathBuf,
        /// The keyslot.
        slot: u32,
    },
    /// Without it nobody could open the volume any more.
    #[error(
        "keyslot {slot} is the only one that opens '{device}'; left as it is\nadd a passphrase with 'cryptsetup luksAddKey' first"
    )]
    LastKeyslot {
        /// The device.
        device: PathBuf,
        /// The keyslot.
        slot: u32,
    },
    /// The machine secret does not open the keyslot that was made for it.
    #[error("the machine secret does not open keyslot {slot} of '{device}'")]
    WrongSecret {
        /// The device.
        device: PathBuf,
        /// The keyslot.
        slot: u32,
    },
    /// No memory for a secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// libcryptsetup refused.
    #[error("failed to change keyslot {slot} of '{device}'")]
    Crypt {
        /// The device.
        device: PathBuf,
        /// The keyslot.
        slot: u32,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
}

/// A copy of either kind of LUKS header.
pub(super) enum AnyHeader {
    Luks2(HeaderCopy),
    Luks1(Luks1Copy),
}

impl AnyHeader {
    fn read(device: &Path) -> Result<Self, HeaderError> {
        match HeaderCopy::read(device) {
            Err(HeaderError::NotLuks2(_)) => Luks1Copy::read(device, device).map(Self::Luks1),
            header => header.map(Self::Luks2),
        }
    }

    /// As [`AnyHeader::read`], but refuses a device that is not to be written to: of a LUKS2 header the second copy may be
    /// all that is left.
    pub(super) fn read_whole(device: &Path) -> Result<Self, HeaderError> {
        let header = Self::read(device)?;
        if let Self::Luks2(_) = header {
            header::require_primary(device)?;
        }
        Ok(header)
    }

    fn format(&self) -> EncryptionFormat {
        match self {
            Self::Luks2(_) => EncryptionFormat::Luks2,
            Self::Luks1(_) => EncryptionFormat::Luks1,
        }
    }

    /// A context on `device` itself, where loading it may write already.
    pub(super) fn writer(&self, device: &Path) -> Result<CryptDevice, CryptError> {
        let mut context = context::attached(device)?;
        context::load(&mut context, self.format())?;
        Ok(context)
    }
}

/// The keyslots of `device`, in the order of their numbers. The header is only read.
///
/// # Errors
/// `Header`.
pub fn list(device: &Path) -> Result<Vec<Keyslot>, KeyslotError> {
    let header = match AnyHeader::read(device)? {
        AnyHeader::Luks2(header) => header,
        AnyHeader::Luks1(header) => {
            let keyslot = |slot| Keyslot {
                slot,
                kdf: "pbkdf2".to_owned(),
                memory_kib: 0,
                typed: true,
                opens: true,
                ours: false,
            };
            return Ok(header.facts().active().map(keyslot).collect());
        }
    };
    let named = named_by_tokens(header.json());
    let of_data = named_by_data(header.json());
    let mut keyslots: Vec<Keyslot> = header.json()["keyslots"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(slot, keyslot)| {
            let slot = slot.parse().ok()?;
            let is_luks2 = keyslot["type"] == "luks2";
            let typed = is_luks2 && keyslot["priority"] != 0;
            Some(Keyslot {
                slot,
                kdf: keyslot["kdf"]["type"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                memory_kib: keyslot["kdf"]["memory"].as_u64().unwrap_or(0),
                typed,
                opens: is_luks2 && of_data.contains(&slot),
                ours: !typed && named.contains(&slot),
            })
        })
        .collect();
    keyslots.sort_by_key(|keyslot| keyslot.slot);
    Ok(keyslots)
}

/// Proves that `passphrase` opens a keyslot other than `not`; returns which.
///
/// # Errors
/// `Passphrase`.
pub fn prove_other_keyslot(
    device: &Path,
    passphrase: &SecretBytes,
    not: Option<u32>,
) -> Result<Option<u32>, KeyslotError> {
    Ok(typed::check_passphrase_except(device, passphrase, not)?.keyslot())
}

/// The keyslot that [`add_keyslot`] may use, so that the caller can write it down before it comes to be.
///
/// # Errors
/// `NoFreeKeyslot`; `Header`, also if nothing may be written to it.
pub fn free_keyslot(device: &Path) -> Result<u32, KeyslotError> {
    free_keyslot_except(device, &[])
}

/// As [`free_keyslot`], none of `not`.
///
/// # Errors
/// As [`free_keyslot`].
pub fn free_keyslot_except(device: &Path, not: &[u32]) -> Result<u32, KeyslotError> {
    let free = match AnyHeader::read_whole(device)? {
        AnyHeader::Luks2(header) => {
            let taken = &header.json()["keyslots"];
            (0..KEYSLOTS_LIMIT)
                .find(|slot| taken[slot.to_string()].is_null() && !not.contains(slot))
                .filter(|_| has_room(header.json()))
        }
        AnyHeader::Luks1(header) => {
            let taken = |slot: &u32| header.facts().keyslot(*slot).is_some();
            (0..luks1::KEYSLOTS).find(|slot| !taken(slot) && !not.contains(slot))
        }
    };
    free.ok_or_else(|| KeyslotError::NoFreeKeyslot(device.to_owned()))
}

/// Whether the keyslots' region has a gap for one more area such as the present ones have. libcryptsetup would
/// notice too, but late and without saying what to do. In doubt it is left to it.
fn has_room(json: &Value) -> bool {
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<u64>().ok());
    let config = &json["config"];
    let sizes = (
        number(&config["json_size"]),
        number(&config["keyslots_size"]),
    );
    let (Some(json_size), Some(region)) = sizes else {
        return true;
    };
    let mut areas: Vec<(u64, u64)> = json["keyslots"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, slot)| {
            Some((
                number(&slot["area"]["offset"])?,
                number(&slot["area"]["size"])?,
            ))
        })
        .collect();
    let Some(needed) = areas.iter().map(|(_, size)| *size).max() else {
        return true;
    };
    areas.sort_unstable();
    // Two copies of the binary header (4096 bytes) with its JSON precede the region.
    let begin = 2 * (json_size.saturating_add(4096));
    areas.push((begin.saturating_add(region), 0));
    let mut free_from = begin;
    areas.into_iter().any(|(offset, size)| {
        let gap = offset.saturating_sub(free_from);
        free_from = free_from.max(offset.saturating_add(size));
        gap >= needed
    })
}

/// Makes keyslot `slot` for `secret`; `passphrase` opens another one.
///
/// # Errors
/// `Passphrase`; `NoFreeKeyslot` if `slot` is taken or there is no room for its area; `Crypt`.
pub fn add_keyslot(
    device: &Path,
    slot: u32,
    passphrase: &SecretBytes,
    secret: &MachineSecret,
) -> Result<(), KeyslotError> {
    let key = typed::check_passphrase(device, passphrase)?;
    add_keyslot_by_key(device, slot, key.volume_key(), secret)
}

/// As [`add_keyslot`], with the volume key in the place of a passphrase.
///
/// # Errors
/// As [`add_keyslot`], but no `Passphrase`; `Crypt` also if it is not the header's volume key.
pub fn add_keyslot_by_key(
    device: &Path,
    slot: u32,
    volume_key: &SecretBytes,
    secret: &MachineSecret,
) -> Result<(), KeyslotError> {
    let (mut context, format) = add(device, slot, volume_key, &secret.0)?;
    if format == EncryptionFormat::Luks1 {
        return Ok(()); // it has no priorities
    }
    let ignored = context
        .keyslot_handle()
        .set_priority(slot, KeyslotPriority::Ignore);
    if let Err(error) = ignored {
        // A keyslot of ours that others would try is not what was promised.
        let source = error.into();
        remove_again(&mut context, device, slot);
        return Err(KeyslotError::Crypt {
            device: device.to_owned(),
            slot,
            source,
        });
    }
    Ok(())
}

/// Makes keyslot `slot` for a recovery key, which a person types: like any passphrase's, but its 256 random bits need no costly
/// key derivation, and a small machine can afford it.
///
/// # Errors
/// As [`add_keyslot_by_key`]; the new keyslot that does not open with the key is gone again.
pub fn add_recovery_keyslot(
    device: &Path,
    slot: u32,
    volume_key: &SecretBytes,
    key: &SecretBytes,
) -> Result<(), KeyslotError> {
    let (mut context, _) = add(device, slot, volume_key, key)?;
    let opened = open::volume_key(&mut context, slot, key.expose_secret());
    process::wipe_stack();
    opened.map(drop).map_err(|error| {
        // The caller takes the sheet back, and a keyslot without one opens nothing for anybody.
        remove_again(&mut context, device, slot);
        match error {
            KeyError::Secret(error) => error.into(),
            KeyError::Crypt(source) => KeyslotError::Crypt {
                device: device.to_owned(),
                slot,
                source,
            },
        }
    })
}

fn remove_again(context: &mut CryptDevice, device: &Path, slot: u32) {
    if let Err(error) = context.keyslot_handle().destroy(slot) {
        log::warn!(
            "keyslot {slot} of '{}' could not be removed again: {error}",
            device.display()
        );
    }
}

/// A keyslot of the cheapest key derivation, and the format of the header that has it.
fn add(
    device: &Path,
    slot: u32,
    volume_key: &SecretBytes,
    secret: &SecretBytes,
) -> Result<(CryptDevice, EncryptionFormat), KeyslotError> {
    let failed = |source| KeyslotError::Crypt {
        device: device.to_owned(),
        slot,
        source,
    };
    let header = AnyHeader::read_whole(device)?;
    let mut context = header.writer(device).map_err(failed)?;
    if list(device)?.iter().any(|keyslot| keyslot.slot == slot) {
        return Err(KeyslotError::NoFreeKeyslot(device.to_owned()));
    }
    context
        .settings_handle()
        .set_pbkdf_type(&cheapest_kdf())
        .map_err(|error| failed(error.into()))?;
    let added = context.keyslot_handle().add_by_key(
        Some(slot),
        Some(Either::Left(volume_key.expose_secret())),
        secret.expose_secret(),
        CryptVolumeKey::empty(),
    );
    process::wipe_stack();
    added.map_err(|error| failed(error.into()))?;
    Ok((context, header.format()))
}

/// Destroys keyslot `slot` if it is one of ours ([`Keyslot::ours`]) or if it is `journalled`, the keyslot that an interrupted
/// binding had written down. Tokens forget it.
///
/// # Errors
/// `NotOurs`, `LastKeyslot`, `Header`, `Crypt`. That it does not exist (any more) is no error.
pub fn destroy_keyslot(
    device: &Path,
    slot: u32,
    journalled: Option<u32>,
) -> Result<(), KeyslotError> {
    let keyslots = list(device)?;
    let Some(keyslot) = keyslots.iter().find(|keyslot| keyslot.slot == slot) else {
        return Ok(());
    };
    if !keyslot.ours && journalled != Some(slot) {
        return Err(KeyslotError::NotOurs {
            device: device.to_owned(),
            slot,
        });
    }
    if !keyslots.iter().any(|one| one.slot != slot && one.opens) {
        return Err(KeyslotError::LastKeyslot {
            device: device.to_owned(),
            slot,
        });
    }
    let failed = |source| KeyslotError::Crypt {
        device: device.to_owned(),
        slot,
        source,
    };
    let header = AnyHeader::read_whole(device)?;
    let mut context = header.writer(device).map_err(failed)?;
    context
        .keyslot_handle()
        .destroy(slot)
        .map_err(|error| failed(error.into()))
}

/// Whether `device` is such that it can be bound at all: everything that automatic opening insists on and that no
/// keyslot of ours could change. To be asked before anything is written.
///
/// # Errors
/// `Unfit`, `Header`.
pub fn check_fit(device: &Path) -> Result<(), KeyslotError> {
    let unfit = |source| KeyslotError::Unfit {
        device: device.to_owned(),
        source,
    };
    match AnyHeader::read_whole(device)? {
        AnyHeader::Luks2(header) => gate::check_fit(header.json()),
        AnyHeader::Luks1(header) => luks1::check_fit(header.facts()),
    }
    .map_err(unfit)
}

/// What a token must say of keyslot `slot`, which `secret` opens; checked to pass the gate.
///
/// # Errors
/// `WrongSecret`, `Unfit`, `Header`, `Crypt`.
pub fn bound_facts(
    device: &Path,
    position: Position,
    slot: u32,
    secret: &MachineSecret,
) -> Result<BoundFacts, KeyslotError> {
    let failed = |source| KeyslotError::Crypt {
        device: device.to_owned(),
        slot,
        source,
    };
    let unfit = |source| KeyslotError::Unfit {
        device: device.to_owned(),
        source,
    };
    let key_in = |context: Result<CryptDevice, CryptError>| {
        let mut context = context.map_err(failed)?;
        let key = open::volume_key(&mut context, slot, secret.0.expose_secret());
        process::wipe_stack();
        key.map_err(|error| match error {
            KeyError::Secret(error) => KeyslotError::Secret(error),
            KeyError::Crypt(source) if source.is(Errno::EPERM) => KeyslotError::WrongSecret {
                device: device.to_owned(),
                slot,
            },
            KeyError::Crypt(source) => failed(source),
        })
    };
    match AnyHeader::read(device)? {
        AnyHeader::Luks2(header) => {
            header.copy_keyslot(slot)?;
            header.seal()?;
            let id = identity::volume_key_id(&key_in(header.context())?, header.uuid());
            let bound = gate::facts(header.json(), slot, id).map_err(unfit)?;
            let uuid = header.uuid().to_owned();
            gate::check(&uuid, header.json(), &uuid, &bound, position).map_err(unfit)?;
            let bound = match position {
                Position::Attached => Bound::Luks2(bound),
                Position::Detached => Bound::DetachedLuks2(bound),
            };
            Ok(BoundFacts { uuid, bound })
        }
        AnyHeader::Luks1(header) => {
            let uuid = header.facts().uuid.clone();
            let id = identity::volume_key_id(&key_in(header.context())?, &uuid);
            let bound = luks1::bound_facts(header.facts(), slot, id).map_err(unfit)?;
            luks1::check(header.facts(), &uuid, &bound).map_err(unfit)?;
            let bound = Bound::Luks1(bound);
            Ok(BoundFacts { uuid, bound })
        }
    }
}

/// What tells a keyslot from every other one, for the journal of a binding.
///
/// # Errors
/// `Header`.
pub fn traces(device: &Path, slot: u32) -> Result<Option<Traces>, KeyslotError> {
    Ok(match AnyHeader::read(device)? {
        AnyHeader::Luks2(header) => Traces::of_luks2(header.json(), slot),
        AnyHeader::Luks1(header) => header.facts().keyslot(slot).map(|keyslot| Traces {
            salt: Some(keyslot.salt.clone()),
            cheapest: keyslot.iterations == ITERATIONS,
            named: false,
        }),
    })
}

/// Keyslots that latchkey's tokens name, a broken one's too: its `keyslots` is libcryptsetup's to keep.
fn named_by_tokens(json: &Value) -> Vec<u32> {
    json["tokens"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, token)| token["type"] == latchkey_protocol::envelope::TOKEN_TYPE)
        .filter_map(|(_, token)| token["keyslots"].as_array())
        .flatten()
        .filter_map(|slot| slot.as_str()?.parse().ok())
        .collect()
}

/// Keyslots that hold the volume key of a segment (LUKS2 On-Disk Format Specification, 3.3): the digest says so.
fn named_by_data(json: &Value) -> Vec<u32> {
    json["digests"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, digest)| {
            digest["segments"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
        })
        .filter_map(|(_, digest)| digest["keyslots"].as_array())
        .flatten()
        .filter_map(|slot| slot.as_str()?.parse().ok())
        .collect()
}

fn cheapest_kdf() -> CryptPbkdfType {
    CryptPbkdfType {
        type_: CryptKdf::Pbkdf2,
        hash: Some("sha512".to_owned()),
        time_ms: 0,
        iterations: ITERATIONS,
        max_memory_kb: 0,
        parallel_threads: 0,
        flags: CryptPbkdf::NO_BENCHMARK,
    }
}
