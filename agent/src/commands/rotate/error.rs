//! Why a rotation did not come about, or not to its end.

use std::path::PathBuf;

use latchkey_protocol::envelope::EnvelopeError;
use latchkey_secret::SecretError;

use crate::commands::bind::BindError;
use crate::commands::initramfs::RebuildError;
use crate::commands::prompt::PromptError;
use crate::commands::shares::ShareError;
use crate::commands::target::TargetError;
use crate::files::FilesError;
use crate::server::KeyServerError;
use crate::volume::backup::BackupError;
use crate::volume::binding::BindingError;
use crate::volume::keyslots::KeyslotError;
use crate::volume::open::OpenError;
use crate::volume::typed::PassphraseError;

/// The volume opens as before; where the text says so, by the new machine secret.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The argument.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Files of ours.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A binding that was interrupted comes first.
    #[error(
        "an earlier 'latchkey bind' or 'unbind' of '{0}' was interrupted\nrun it again first, which goes on or clears up"
    )]
    Interrupted(PathBuf),
    /// There is no binding.
    #[error("'{}' is not bound\nbind it first: latchkey bind {}", .0.display(), .0.display())]
    NotBound(PathBuf),
    /// Its binding cannot be read, or there are several.
    #[error(
        "'{}' has a binding that cannot be read, or more than one\n\
         'latchkey unbind {}' removes it, and 'latchkey bind' makes a new one",
        .0.display(), .0.display()
    )]
    Broken(PathBuf),
    /// An envelope is of a key server that this machine does not know.
    #[error(
        "'{device}' is bound to key server {server}, which this machine has not joined, so its share cannot be replaced\n\
         'latchkey unbind' and then 'latchkey bind' bind it to those that were joined"
    )]
    NotJoined {
        /// The device.
        device: PathBuf,
        /// Its short id.
        server: String,
    },
    /// The files of a key server.
    #[error(transparent)]
    KeyServer(#[from] KeyServerError),
    /// The number of the share that the binding has.
    #[error(
        "key server {0} gives as a new share one of the generation that the binding has\n\
         its store may have been put back to an earlier one: 'latchkey unbind' and 'latchkey bind' make a new binding"
    )]
    SameGeneration(String),
    /// `--finish`, and there is nothing.
    #[error("no rotation of '{0}' is unfinished")]
    NothingToFinish(PathBuf),
    /// A key server gave no share.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// An envelope does not open, or cannot be made.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// What opens it now does not.
    #[error("what should open the volume now does not")]
    Open(#[from] OpenError),
    /// The passphrase.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// Nobody could be asked.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// Only a volume key opens it, which nobody types.
    #[error(
        "no key server gives what opens '{0}' now, and no passphrase does\ngive its volume key with --key-file"
    )]
    VolumeKey(PathBuf),
    /// A keyslot.
    #[error(transparent)]
    Keyslot(#[from] KeyslotError),
    /// The header could not be backed up.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// No memory for a secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The new token does not open the volume.
    #[error("the new share does not open the volume, so the old one stays")]
    Proof(#[source] Box<BindError>),
    /// The token could not be written.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// Rotated, but the images are old.
    #[error(
        "'{}' has a new machine secret, but the initramfs was not rebuilt; the old one still opens it\n\
         when it is rebuilt, run this again",
        .device.display()
    )]
    Rebuild {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: RebuildError,
    },
    /// A key server was not told which share stays.
    #[error(
        "key server {server} was not told which of two shares stays; until then the old ones do\n\
         run this again when it answers; if its store was put back to an earlier one, 'latchkey unbind' and 'latchkey bind'"
    )]
    End {
        /// Its short id.
        server: String,
        /// Why.
        #[source]
        source: Box<ShareError>,
    },
}
