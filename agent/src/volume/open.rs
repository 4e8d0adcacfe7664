//! Opening a volume with its machine secret, without a person.
//!
//! The order is the safety: copy the header, check the copy, take the volume key from the bound keyslot only,
//! compare the key's identity, and only then make the mapping, out of the copy. Nothing is left behind when a step
//! fails. Defends against whoever can write the disk or answers its reads; see `gate`.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::envelope::{
    Bound, BoundLuks1, BoundLuks2, BoundPlain, Envelope, EnvelopeError, MachineSecret, Released,
    Token,
};
use latchkey_protocol::{Generation, Share};
use latchkey_secret::{SecretBytes, SecretError, process, udev_wait};
use libcryptsetup_rs::CryptDevice;
use libcryptsetup_rs::consts::flags::CryptActivate;
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use nix::errno::Errno;

use super::context::CryptError;
use super::crypttab::{Entry, Options};
use super::gate::{self, GateError, Position};
use super::header::{HeaderCopy, HeaderError};
use super::identity::{self, is_bound_key};
use super::luks1::{self, Luks1Copy};
use super::mapping::{self, Holder};
use super::place::{HeaderPlace, Kind, Place};
use super::plain::{self, ContentError, Settings, SettingsError};

/// Most bytes of a volume key that dm-crypt takes: AES-XTS has 64, HMAC-SHA-512 for integrity another 64.
pub(crate) const VOLUME_KEY_LIMIT: usize = 512;

/// How long a device may be in somebody else's use when it is to be opened.
const BUSY_LIMIT: Duration = Duration::from_secs(3);
const BUSY_PAUSE: Duration = Duration::from_millis(100);

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
    /// The volume is not as it was bound.
    #[error("refused to open '{device}' automatically: it is not as it was bound")]
    Gate {
        /// The device.
        device: PathBuf,
        /// The check that failed.
        #[source]
        source: GateError,
    },
    /// The machine secret does not open the bound keyslot, or that holds another volume key than the bound one.
    #[error(
        "the machine secret does not open keyslot {slot} of '{device}' to the volume key that was bound"
    )]
    WrongSecret {
        /// The device.
        device: PathBuf,
        /// The bound keyslot.
        slot: u32,
    },
    /// crypttab does not say how to make the plain mapping.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A plain volume holds nothing that is known.
    #[error("refused to open '{device}' automatically")]
    Content {
        /// The device.
        device: PathBuf,
        /// What was found, or why nothing was.
        #[source]
        source: ContentError,
    },
    /// The keyslot of LUKS1 holds another volume key than the bound one, or the machine secret of a plain volume is wrong.
    #[error(
        "refused to open '{device}' automatically: its volume key is not the one that was bound"
    )]
    WrongVolumeKey {
        /// The device.
        device: PathBuf,
    },
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

/// The machine secret in `envelope` of `token`, which `share` of this generation opens; the share ends here.
///
/// # Errors
/// As [`Token::open`].
pub fn open_envelope(
    token: &Token,
    envelope: &Envelope,
    share: Share,
    generation: Generation,
) -> Result<MachineSecret, EnvelopeError> {
    let released = Released {
        share: &share,
        volume: token.volume,
        generation,
    };
    token.open(envelope, released)
}

/// Opens the volume at `place` under the crypttab entry's name with the machine secret out of `token`'s envelope.
///
/// # Errors
/// Every variant of [`OpenError`]; the passphrase is not concerned by any.
pub fn open_automatically(
    entry: &Entry,
    place: &Place,
    token: &Token,
    secret: &MachineSecret,
) -> Result<Opened, OpenError> {
    let mut unlocked = unlock(&entry.name, place, token, secret)?;
    let Unlocked { context, key, .. } = &mut unlocked;
    if let Bound::Plain(_) = token.bound {
        look_into(&place.device, context, key)?;
    }
    let name = || entry.name.clone();
    activate(context, entry, &place.device, key).map_err(|error| match error {
        ActivateError::AlreadyOpen => OpenError::AlreadyOpen(name()),
        ActivateError::NameTaken(by) => OpenError::NameTaken { name: name(), by },
        ActivateError::Crypt(source) => OpenError::Crypt {
            device: place.device.clone(),
            name: name(),
            source,
        },
    })?;
    Ok(Opened {
        name: entry.name.clone(),
        device: place.device.clone(),
        uuid: token.uuid.clone(),
    })
}

/// Everything of [`open_automatically`] but mappings: would this secret open this volume?
///
/// # Errors
/// As [`open_automatically`].
pub fn check_automatically(
    place: &Place,
    token: &Token,
    secret: &MachineSecret,
) -> Result<(), OpenError> {
    unlock("", place, token, secret).map(drop)
}

/// The volume key of what [`check_automatically`] lets through.
///
/// # Errors
/// As [`open_automatically`].
pub fn bound_volume_key(
    place: &Place,
    token: &Token,
    secret: &MachineSecret,
) -> Result<SecretBytes, OpenError> {
    unlock("", place, token, secret).map(|unlocked| unlocked.key)
}

/// A context made of what was checked, and the volume key, which is the bound one.
struct Unlocked {
    context: CryptDevice,
    key: SecretBytes,
    /// The context names a copy by its descriptor, so it goes last.
    _header: Copied,
}

/// What a context names.
enum Copied {
    Luks2 { _copy: HeaderCopy },
    Luks1 { _copy: Luks1Copy },
    Nothing,
}

fn unlock(
    name: &str,
    place: &Place,
    token: &Token,
    secret: &MachineSecret,
) -> Result<Unlocked, OpenError> {
    let attempt = Attempt {
        name,
        place,
        uuid: &token.uuid,
        secret,
    };
    match (&token.bound, &place.header) {
        (Bound::Luks2(bound), HeaderPlace::Attached) => {
            attempt.luks2(&place.device, bound, Position::Attached)
        }
        (Bound::DetachedLuks2(bound), HeaderPlace::Detached(header)) => {
            attempt.luks2(header, bound, Position::Detached)
        }
        (Bound::Luks1(bound), HeaderPlace::Attached) => attempt.luks1(bound),
        (Bound::Plain(bound), HeaderPlace::None(options)) => {
            attempt.plain(bound, &Settings::of(options)?)
        }
        (bound, header) => Err(attempt.gate(GateError::Kind {
            found: match header {
                HeaderPlace::Attached => "one with its header in front of the data",
                HeaderPlace::Detached(_) => "one with a detached header",
                HeaderPlace::None(_) => Kind::Plain.name(),
            },
            bound: Kind::of_bound(bound).name(),
        })),
    }
}

/// A machine secret and the volume that it is to open.
struct Attempt<'a> {
    name: &'a str,
    place: &'a Place,
    uuid: &'a str,
    secret: &'a MachineSecret,
}

impl Attempt<'_> {
    fn luks2(
        &self,
        header: &Path,
        bound: &BoundLuks2,
        position: Position,
    ) -> Result<Unlocked, OpenError> {
        let mut header = HeaderCopy::read_detached(header, &self.place.device)?;
        gate::check(header.uuid(), header.json(), self.uuid, bound, position)
            .map_err(|source| self.gate(source))?;
        Self::log_as_bound(header.device());
        header.copy_keyslot(bound.keyslot)?;
        let digest = identity::luks2_digest(self.uuid, &bound.volume_key_id);
        header.replace_digest(bound.keyslot, &digest)?;
        header.seal()?;
        let mut context = header.context().map_err(|source| self.failed(source))?;
        let key = self.keyslot(&mut context, bound.keyslot)?;
        self.check_key(&key, &bound.volume_key_id)?;
        Ok(Unlocked {
            context,
            key,
            _header: Copied::Luks2 { _copy: header },
        })
    }

    fn luks1(&self, bound: &BoundLuks1) -> Result<Unlocked, OpenError> {
        let device = &self.place.device;
        let header = Luks1Copy::read(device, device)?;
        luks1::check(header.facts(), self.uuid, bound).map_err(|source| self.gate(source))?;
        Self::log_as_bound(device);
        let mut context = header.context().map_err(|source| self.failed(source))?;
        let key = self.keyslot(&mut context, bound.keyslot)?;
        self.check_key(&key, &bound.volume_key_id)?;
        Ok(Unlocked {
            context,
            key,
            _header: Copied::Luks1 { _copy: header },
        })
    }

    fn plain(&self, bound: &BoundPlain, settings: &Settings) -> Result<Unlocked, OpenError> {
        settings.check(bound).map_err(|source| self.gate(source))?;
        // Of what was bound, not of what was compared with it.
        let settings = Settings::from(bound);
        let mut context = settings
            .context(&self.place.device)
            .map_err(|source| self.failed(source))?;
        let key = settings
            .key_of_secret(&mut context, self.secret, bound.secret)
            .map_err(|error| match error {
                KeyError::Secret(error) => OpenError::Secret(error),
                KeyError::Crypt(source) => self.failed(source),
            })?
            .ok_or_else(|| self.wrong_key())?;
        self.check_key(&key, &bound.volume_key_id)?;
        Ok(Unlocked {
            context,
            key,
            _header: Copied::Nothing,
        })
    }

    fn keyslot(&self, context: &mut CryptDevice, slot: u32) -> Result<SecretBytes, OpenError> {
        // HMAC fills a short key up with zeros, so that one more in the secret would make no difference.
        if self.secret.0.expose_secret().len() != MachineSecret::LENGTH {
            return Err(OpenError::WrongSecret {
                device: self.place.device.clone(),
                slot,
            });
        }
        let key = volume_key(context, slot, self.secret.0.expose_secret());
        process::wipe_stack();
        key.map_err(|error| match error {
            KeyError::Secret(error) => OpenError::Secret(error),
            KeyError::Crypt(source) if source.is(Errno::EPERM) => OpenError::WrongSecret {
                device: self.place.device.clone(),
                slot,
            },
            KeyError::Crypt(source) => self.failed(source),
        })
    }

    fn check_key(&self, key: &SecretBytes, bound: &Bytes<32>) -> Result<(), OpenError> {
        if is_bound_key(key, self.uuid, bound) {
            let device = self.place.device.display();
            log::debug!("the volume key of '{device}' is the one that was bound");
            Ok(())
        } else {
            Err(self.wrong_key())
        }
    }

    fn log_as_bound(header: &Path) {
        log::debug!("the header on '{}' is as it was bound", header.display());
    }

    fn wrong_key(&self) -> OpenError {
        OpenError::WrongVolumeKey {
            device: self.place.device.clone(),
        }
    }

    fn gate(&self, source: GateError) -> OpenError {
        OpenError::Gate {
            device: self.place.device.clone(),
            source,
        }
    }

    fn failed(&self, source: CryptError) -> OpenError {
        OpenError::Crypt {
            device: self.place.device.clone(),
            name: self.name.to_owned(),
            source,
        }
    }
}

/// Refuses a plain volume that would be noise.
fn look_into(device: &Path, context: &mut CryptDevice, key: &SecretBytes) -> Result<(), OpenError> {
    let content = plain::content(context, key).map_err(|source| OpenError::Content {
        device: device.to_owned(),
        source,
    })?;
    log::debug!("'{}' holds {content}", device.display());
    Ok(())
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

/// Why there is no new mapping.
#[derive(Debug)]
pub(crate) enum ActivateError {
    /// The volume has the one that it is to have.
    AlreadyOpen,
    /// Something else has its name: what.
    NameTaken(String),
    Crypt(CryptError),
}

fn has_integrity(context: &mut CryptDevice) -> bool {
    let format = context.format_handle().get_type();
    let json = match format {
        Ok(EncryptionFormat::Luks2) => context.status_handle().dump_json(),
        _ => return false,
    };
    json.is_ok_and(|json| json["segments"]["0"].get("integrity").is_some())
}

/// Makes the mapping of `entry` on `device`. The header's persistent flags are added by libcryptsetup.
pub(crate) fn activate(
    context: &mut CryptDevice,
    entry: &Entry,
    device: &Path,
    key: &SecretBytes,
) -> Result<(), ActivateError> {
    let name = &entry.name;
    mapping::close_left_over(name);
    // A mapping with integrity is two, and the upper one needs the lower one's link.
    let has_integrity = has_integrity(context);
    let mut make = || {
        let mut handle = context.activate_handle();
        let flags = flags(&entry.options, has_integrity);
        handle.activate_by_volume_key(Some(name), Some(key.expose_secret()), flags)
    };
    let begin = Instant::now();
    let error = loop {
        let result = match has_integrity {
            true => make(),
            false => udev_wait::later(&mut make),
        };
        process::wipe_stack();
        let error = match result {
            Ok(()) => {
                log::debug!("'{name}' is mapped");
                return Ok(());
            }
            Err(error) => CryptError::from(error),
        };
        // Whoever looks into a new disk may have it for himself for a moment, and a boot is not to fail of that.
        let is_ours_to_wait = error.is_busy() && mapping::holder(name, device) == Holder::Nobody;
        if !is_ours_to_wait || begin.elapsed() >= BUSY_LIMIT {
            break error;
        }
        log::debug!("'{}' is in use, trying again", device.display());
        thread::sleep(BUSY_PAUSE);
    };
    // libcryptsetup says EEXIST of a name, EBUSY of a device that has a mapping.
    Err(match mapping::holder(name, device) {
        Holder::Volume => ActivateError::AlreadyOpen,
        Holder::Other(by) if error.is(Errno::EEXIST) => ActivateError::NameTaken(by),
        Holder::Other(_) | Holder::Nobody => ActivateError::Crypt(error),
    })
}

/// With integrity there are no discards, and libcryptsetup would refuse to be asked for them.
fn flags(options: &Options, has_integrity: bool) -> CryptActivate {
    let discard = options.discard && !has_integrity;
    [
        (discard, CryptActivate::ALLOW_DISCARDS),
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
