//! What opens a volume at boot, by kind: a keyslot of its own for LUKS; for plain dm-crypt, which has none, what opened
//! it all along.

use std::path::{Path, PathBuf};

use latchkey_protocol::VolumeId;
use latchkey_protocol::envelope::{Bound, MACHINE_SECRET_LIMIT, MachineSecret, PlainSecret};
use latchkey_secret::{SecretBytes, SecretError};

use super::BindError;
use crate::commands::journal::{Journal, JournalledKeyslot};
use crate::commands::prompt;
use crate::commands::target::Target;
use crate::date;
use crate::files::{self, Files, FilesError};
use crate::volume::backup::{self, BackupError};
use crate::volume::identity;
use crate::volume::keyslots::{self, KeyslotError};
use crate::volume::open::KeyError;
use crate::volume::place::HeaderPlace;
use crate::volume::plain::{self, ContentError, Settings};
use crate::volume::tokens;
use crate::volume::typed::PassphraseError;

/// How often a person may mistype.
const TRIES: u32 = 3;

/// All that is needed, proved, before anything is changed.
pub enum Enrolment {
    /// A LUKS header that has room, and a passphrase that opens it.
    Luks {
        header: PathBuf,
        uuid: String,
        passphrase: SecretBytes,
    },
    /// What opens a plain volume, and what it then is.
    Plain {
        uuid: String,
        secret: MachineSecret,
        bound: Bound,
    },
}

/// What opens the volume already, as the command line gives it; what is missing is asked for.
#[derive(Default)]
pub struct Given<'a> {
    /// Where the passphrase lies.
    pub key_file: Option<&'a Path>,
    /// Where the volume key of a plain volume lies.
    pub volume_key_file: Option<&'a Path>,
    /// A passphrase that has just opened the volume.
    pub passphrase: Option<SecretBytes>,
}

/// What goes into a token.
pub struct Enrolled {
    pub secret: MachineSecret,
    pub uuid: String,
    pub bound: Bound,
}

impl Enrolment {
    /// Asks for what cannot be read, and proves it. Nothing is changed.
    pub fn prepare(target: &Target, given: Given<'_>) -> Result<Self, BindError> {
        let header = match &target.place.header {
            HeaderPlace::None(options) => {
                let settings = Settings::of(options).map_err(|source| BindError::Settings {
                    device: target.device.clone(),
                    source,
                })?;
                return plain_volume(target, &given, &settings);
            }
            HeaderPlace::Attached => &target.device,
            HeaderPlace::Detached(header) => header,
        };
        keyslots::check_fit(header)?;
        if let Some(header) = target.luks2_header() {
            tokens::free_id(header)?;
        }
        let passphrase = passphrase(target, header, given)?;
        Ok(Self::Luks {
            header: header.clone(),
            uuid: target.uuid.clone(),
            passphrase,
        })
    }

    /// The volume's UUID.
    pub fn uuid(&self) -> &str {
        match self {
            Self::Luks { uuid, .. } | Self::Plain { uuid, .. } => uuid,
        }
    }

    /// Backs a header up and adds a keyslot, each step written down before it is done; of a plain volume nothing is
    /// changed.
    pub fn enrol(
        self,
        files: &Files,
        target: &Target,
        journal: &mut Journal,
    ) -> Result<Enrolled, BindError> {
        let (header, passphrase) = match self {
            Self::Plain {
                uuid,
                secret,
                bound,
            } => {
                return Ok(Enrolled {
                    secret,
                    uuid,
                    bound,
                });
            }
            Self::Luks {
                header, passphrase, ..
            } => (header, passphrase),
        };
        new_keyslot(files, target, &header, journal, |slot, secret| {
            keyslots::add_keyslot(&header, slot, &passphrase, secret)
        })
    }
}

/// Where it is written down what a new keyslot is about to touch.
pub trait Notes {
    /// The backup of the header.
    fn backup(&mut self, files: &Files, backup: PathBuf) -> Result<(), FilesError>;
    /// The keyslot, before it is made and when it is known by its salt.
    fn keyslot(&mut self, files: &Files, keyslot: JournalledKeyslot) -> Result<(), FilesError>;
}

/// Backs `header` up, and has `add` make a keyslot for a new machine secret, each step written down before it is done.
pub fn new_keyslot<E>(
    files: &Files,
    target: &Target,
    header: &Path,
    notes: &mut impl Notes,
    add: impl FnOnce(u32, &MachineSecret) -> Result<(), KeyslotError>,
) -> Result<Enrolled, E>
where
    E: From<FilesError> + From<BackupError> + From<KeyslotError> + From<SecretError>,
{
    let backup = free_backup_path(files, &target.uuid);
    notes.backup(files, backup.clone())?;
    backup::backup_header(header, &backup)?;

    let slot = keyslots::free_keyslot(header)?;
    notes.keyslot(files, JournalledKeyslot { slot, salt: None })?;
    let secret = MachineSecret::random()?;
    add(slot, &secret)?;
    let traces = keyslots::traces(header, slot)?;
    notes.keyslot(files, JournalledKeyslot::of(traces.as_ref(), slot))?;
    let facts = keyslots::bound_facts(header, target.position(), slot, &secret)?;
    Ok(Enrolled {
        secret,
        uuid: facts.uuid,
        bound: facts.bound,
    })
}

fn plain_volume(
    target: &Target,
    given: &Given<'_>,
    settings: &Settings,
) -> Result<Enrolment, BindError> {
    let look = |secret: SecretBytes, kind| {
        Look {
            target,
            settings,
            kind,
        }
        .into(secret)
    };
    let proved = |looked: Result<Enrolment, ContentError>| {
        looked.map_err(|source| BindError::Content {
            device: target.device.clone(),
            settings: Box::new(settings.clone()),
            source,
        })
    };
    if let Some(path) = given.volume_key_file {
        let key = prompt::read_key_file(path)?;
        if u32::try_from(key.expose_secret().len()) != Ok(settings.key_size) {
            return Err(BindError::VolumeKeyLength {
                found: key.expose_secret().len(),
                wanted: settings.key_size,
            });
        }
        return proved(look(key, PlainSecret::VolumeKey)?);
    }
    if let Some(path) = given.key_file {
        return proved(look(prompt::read_key_file(path)?, PlainSecret::Passphrase)?);
    }
    let question = question(target);
    for _ in 0..TRIES {
        match look(prompt::ask_hidden(&question)?, PlainSecret::Passphrase)? {
            Err(ContentError::Unknown) => {
                log::warn!("with this passphrase the volume holds nothing that is known");
            }
            looked => return proved(looked),
        }
    }
    Err(BindError::Typed {
        device: target.device.clone(),
        settings: Box::new(settings.clone()),
    })
}

/// What a plain volume is looked at with.
struct Look<'a> {
    target: &'a Target,
    settings: &'a Settings,
    kind: PlainSecret,
}

impl Look<'_> {
    /// The enrolment, if the volume holds something that is known when it is opened with `secret`.
    fn into(self, secret: SecretBytes) -> Result<Result<Enrolment, ContentError>, BindError> {
        let length = secret.expose_secret().len();
        if length == 0 || length > MACHINE_SECRET_LIMIT {
            return Err(BindError::SecretLength(length));
        }
        let failed = |source| BindError::Crypt {
            device: self.target.device.clone(),
            source,
        };
        let secret = MachineSecret(secret);
        let mut context = self.settings.context(&self.target.device).map_err(failed)?;
        let key = self
            .settings
            .key_of_secret(&mut context, &secret, self.kind)
            .map_err(|error| match error {
                KeyError::Secret(error) => BindError::Secret(error),
                KeyError::Crypt(source) => failed(source),
            })?
            .ok_or(BindError::SecretLength(length))?;
        let content = match plain::content(&mut context, &key) {
            Ok(content) => content,
            Err(error) => return Ok(Err(error)),
        };
        log::info!("the volume holds {content}");
        // Any name will do: nothing on the device has one.
        let uuid = VolumeId::random().map_err(BindError::Random)?.to_string();
        let id = identity::volume_key_id(&key, &uuid);
        Ok(Ok(Enrolment::Plain {
            uuid,
            secret,
            bound: Bound::Plain(self.settings.bound(self.kind, id)),
        }))
    }
}

fn question(target: &Target) -> String {
    format!(
        "Passphrase for '{}' ({}): ",
        target.name,
        target.device.display()
    )
}

/// What a new keyslot needs of a LUKS volume, whatever latchkey could do with it otherwise: room in `header`, and a passphrase
/// that was proved to open a keyslot. Nothing is changed.
pub fn passphrase(
    target: &Target,
    header: &Path,
    given: Given<'_>,
) -> Result<SecretBytes, BindError> {
    if given.volume_key_file.is_some() {
        return Err(BindError::VolumeKeyFile {
            device: target.device.clone(),
            kind: target.kind.name(),
        });
    }
    keyslots::free_keyslot(header)?;
    match given.passphrase {
        Some(passphrase) => Ok(passphrase),
        None => proved_passphrase(target, header, given.key_file),
    }
}

fn proved_passphrase(
    target: &Target,
    header: &Path,
    key_file: Option<&Path>,
) -> Result<SecretBytes, BindError> {
    let opens =
        |passphrase: &SecretBytes| match keyslots::prove_other_keyslot(header, passphrase, None) {
            Ok(_) => Ok(true),
            Err(KeyslotError::Passphrase(PassphraseError::WrongPassphrase(_))) => Ok(false),
            Err(error) => Err(error),
        };
    if let Some(path) = key_file {
        let passphrase = prompt::read_key_file(path)?;
        return if opens(&passphrase)? {
            Ok(passphrase)
        } else {
            Err(BindError::KeyFile(target.device.clone()))
        };
    }
    let question = question(target);
    for _ in 0..TRIES {
        let passphrase = prompt::ask_hidden(&question)?;
        if opens(&passphrase)? {
            return Ok(passphrase);
        }
        log::warn!("no keyslot opens with this passphrase");
    }
    Err(BindError::Passphrase(target.device.clone()))
}

/// Backs the header of `target` up, which lies on `header`, into a file that stays.
pub fn keep_backup<E>(files: &Files, target: &Target, header: &Path) -> Result<PathBuf, E>
where
    E: From<FilesError> + From<BackupError>,
{
    files::make_dir(&files.state())?;
    let backup = free_backup_path(files, &target.uuid);
    backup::backup_header(header, &backup)?;
    Ok(backup)
}

/// For the header with this UUID: a name that no other backup has.
fn free_backup_path(files: &Files, uuid: &str) -> PathBuf {
    let name = format!("header-{uuid}-{}", date::stamp(date::now()));
    let numbered = (2..).map(|number| format!("{name}-{number}.img"));
    std::iter::once(format!("{name}.img"))
        .chain(numbered)
        .map(|name| files.state().join(name))
        .find(|path| !path.exists())
        .expect("there are more numbers than files")
}
