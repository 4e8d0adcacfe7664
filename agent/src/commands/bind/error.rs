//! Why a volume was not bound.

use std::path::{Path, PathBuf};

use latchkey_protocol::VolumeId;
use latchkey_protocol::envelope::{ENVELOPES_LIMIT, EnvelopeError, MACHINE_SECRET_LIMIT};
use latchkey_secret::SecretError;

use crate::commands::format::NewVolumeError;
use crate::commands::initramfs::RebuildError;
use crate::commands::journal::UndoError;
use crate::commands::prompt::PromptError;
use crate::commands::shares::ShareError;
use crate::commands::target::TargetError;
use crate::files::FilesError;
use crate::opening::fstab::Held;
use crate::server::KeyServerError;
use crate::volume::CryptError;
use crate::volume::backup::BackupError;
use crate::volume::binding::BindingError;
use crate::volume::header::HeaderError;
use crate::volume::keyslots::KeyslotError;
use crate::volume::open::OpenError;
use crate::volume::plain::{ContentError, Settings, SettingsError};
use crate::volume::tokens::TokenError;

/// The volume is not bound, unless the text says so; every passphrase works as before.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No key server.
    #[error(
        "this machine has not joined any key server\n\
         'latchkeyd invite NAME' on the key server prints a join token for 'latchkey join'"
    )]
    NotJoined,
    /// More key servers than a token has room for.
    #[error(
        "this machine has joined {0} key servers, more than the {ENVELOPES_LIMIT} that a token holds"
    )]
    TooManyServers(usize),
    /// The argument.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Files of ours.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A key server's files.
    #[error(transparent)]
    KeyServer(#[from] KeyServerError),
    /// It is bound, to every key server that was joined.
    #[error("'{}' is bound already, as volume {volume}; 'latchkey status' shows more", .device.display())]
    AlreadyBound {
        /// The device.
        device: PathBuf,
        /// Its name at the key servers.
        volume: VolumeId,
    },
    /// It is bound, but not to every key server that was joined.
    #[error(
        "'{}' is bound already, but not to {servers}\n\
         'latchkey unbind {}' and then this command bind it to every key server that was joined",
        .device.display(), .device.display()
    )]
    PartlyBound {
        /// The device.
        device: PathBuf,
        /// The other key servers.
        servers: String,
    },
    /// There is a token or an envelope file that does not help.
    #[error(
        "'{}' has a latchkey token that does not work: {reason}\n\
         'latchkey unbind {}' removes it; then run this again",
        .device.display(), .device.display()
    )]
    BrokenToken {
        /// The device.
        device: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// `--format`.
    #[error(transparent)]
    Format(Box<NewVolumeError>),
    /// stdout.
    #[error("the volume is bound, but that could not be printed")]
    Report(#[source] std::io::Error),
    /// What an interrupted run left cannot be taken back.
    #[error("an earlier 'latchkey bind' or 'unbind' was interrupted, and it cannot be cleared up")]
    Repair(#[source] UndoError),
    /// No passphrase.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The passphrase in the key file is wrong.
    #[error(
        "no keyslot of '{}' opens with the content of the key file\n\
         the whole file counts, a line end at its end too",
        .0.display()
    )]
    KeyFile(PathBuf),
    /// Three wrong passphrases.
    #[error("no keyslot of '{}' opens with the passphrases that were typed", .0.display())]
    Passphrase(PathBuf),
    /// A keyslot.
    #[error(transparent)]
    Keyslot(#[from] KeyslotError),
    /// The boot would wait for the running system, and that for the boot.
    #[error(
        "the boot needs {} on '{}' before the running system asks a key server; nothing was changed\n\
         have the initramfs open the volume, by '{word}' in place of '_netdev' in crypttab{}",
        .held.lines,
        .device.display(),
        if .held.come_early { "" } else {
            "; or, where services alone need that, write '_netdev,nofail' among its options in fstab"
        }
    )]
    NeededEarly {
        /// The device.
        device: PathBuf,
        /// What of fstab.
        held: Held,
        /// crypttab's word for the initramfs.
        word: &'static str,
    },
    /// A key server would not take part, so no volume was made.
    #[error("key server {server} cannot be asked for a share; nothing was changed on '{}'", .device.display())]
    Away {
        /// Its short id.
        server: String,
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: Box<ShareError>,
    },
    /// There is a new volume, and it is not bound.
    #[error(
        "a LUKS2 volume was made on '{}' but is not bound, which the same command without --format does",
        .device.display()
    )]
    Made {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: Box<BindError>,
    },
    /// A key server does not take part.
    #[error("key server {server} did not give a share")]
    Share {
        /// Its short id.
        server: String,
        /// Why.
        #[source]
        source: Box<ShareError>,
    },
    /// The backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token or the envelope file.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// A plain volume of which crypttab does not say enough.
    #[error("'{}' cannot be bound", .device.display())]
    Settings {
        /// The device.
        device: PathBuf,
        /// What is missing.
        #[source]
        source: SettingsError,
    },
    /// The passphrase or key of a plain volume makes noise of it.
    #[error(
        "'{}' was not found to be a plain volume of this passphrase or key, made with {settings}\n\
         compare cipher=, hash=, size=, offset= and skip= in crypttab with what it was made with",
        .device.display()
    )]
    Content {
        /// The device.
        device: PathBuf,
        /// How it would be opened.
        settings: Box<Settings>,
        /// What was found.
        #[source]
        source: ContentError,
    },
    /// The passphrases that were typed make noise of a plain volume.
    #[error(
        "'{}' was not found to be a plain volume of the passphrases that were typed, made with {settings}\n\
         compare cipher=, hash=, size=, offset= and skip= in crypttab with what it was made with",
        .device.display()
    )]
    Typed {
        /// The device.
        device: PathBuf,
        /// How it would be opened.
        settings: Box<Settings>,
    },
    /// A passphrase too long for an envelope.
    #[error("a passphrase of 1 to {MACHINE_SECRET_LIMIT} bytes can be bound, not one of {0}")]
    SecretLength(usize),
    /// `--volume-key-file` of another length than crypttab's `size=`.
    #[error("the volume key has {found} bytes, crypttab's size= says {wanted}")]
    VolumeKeyLength {
        /// Bytes in the file.
        found: usize,
        /// As crypttab has it.
        wanted: u32,
    },
    /// `--volume-key-file` for LUKS.
    #[error("'{}' is {kind}: --volume-key-file is for plain dm-crypt", .device.display())]
    VolumeKeyFile {
        /// The device.
        device: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A volume that nobody can type anything for would hold up the boot.
    #[error(
        "'{0}' is to be opened by a volume key, and its line in crypttab lacks 'nofail'\n\
         no passphrase opens it, so the boot would wait for the key server alone; add 'nofail' to the line"
    )]
    NoFail(String),
    /// libcryptsetup.
    #[error("failed to make the key of '{}'", .device.display())]
    Crypt {
        /// The device.
        device: PathBuf,
        /// What it said.
        #[source]
        source: CryptError,
    },
    /// The envelope.
    #[error("failed to seal the machine secret")]
    Seal(#[source] EnvelopeError),
    /// The proof: no share came back.
    #[error("the proof failed: key server {server} did not give the share back")]
    Proof {
        /// Its short id.
        server: String,
        /// Why.
        #[source]
        source: Box<ShareError>,
    },
    /// The proof: the envelope as it was written does not open.
    #[error("the proof failed: the envelope for key server {server} does not open")]
    Envelope {
        /// Its short id.
        server: String,
        /// Why.
        #[source]
        source: EnvelopeError,
    },
    /// The proof: what was written is not there.
    #[error("the proof failed: there is no envelope for key server {0}")]
    NoEnvelope(String),
    /// The proof: the boot would not open the volume.
    #[error("the proof failed: the volume would not open at boot")]
    Open(#[source] OpenError),
    /// No memory or randomness.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// No randomness.
    #[error("the kernel gave no random bytes")]
    Random(#[source] getrandom::Error),
    /// Bound, but no boot opens it.
    #[error(
        "'{}' is bound, but '{unit}' was not enabled, so nothing opens it at boot\n\
         run this again, or: systemctl enable '{unit}'",
        .device.display()
    )]
    NotEnabled {
        /// The device.
        device: PathBuf,
        /// What opens it.
        unit: String,
    },
    /// Bound, but the initramfs is old.
    #[error("'{}' is bound, but the initramfs was not rebuilt", .device.display())]
    Rebuild {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: RebuildError,
    },
}

impl BindError {
    /// This error, where the volume on `device` had just been made.
    pub(super) fn of_new_volume(self, device: &Path) -> Self {
        match self {
            Self::Report(_) | Self::Rebuild { .. } | Self::NotEnabled { .. } => self,
            error => Self::Made {
                device: device.to_owned(),
                source: Box::new(error),
            },
        }
    }
}
