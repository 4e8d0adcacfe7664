//! Why a machine was not taken back.

use std::io;

use latchkey_protocol::token::ADDRESSES_LIMIT;

use crate::commands::initramfs::RebuildError;
use crate::commands::join::JoinError;
use crate::files::FilesError;
use crate::server::{ClientError, KeyServerError, SetupError};

/// The machine was not taken back.
#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    /// A file, or another command is at work.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The volumes.
    #[error("failed to look for the volumes of '/etc/crypttab'")]
    Volumes(#[source] FilesError),
    /// Nothing is bound.
    #[error(
        "no volume of '/etc/crypttab' that can be read has an envelope, so no key server can know this machine by it\n\
         join with a token: latchkeyd invite NAME, then latchkey join"
    )]
    NotBound,
    /// All is there.
    #[error(
        "the keys for every key server of the bound volumes are there\n\
         'latchkey status' says whether they count; to replace them all the same, remove '{}' and run this again",
        .0.display()
    )]
    NothingLost(std::path::PathBuf),
    /// None or several key servers go by that name.
    #[error(
        "which key server? keys are missing for: {}\n\
         name one: latchkey join --again --server ID",
        .0.join(", ")
    )]
    WhichServer(Vec<String>),
    /// No address.
    #[error(
        "where key server {0} listens is not known here any more\n\
         say it: latchkey join --again --address HOST[:PORT]"
    )]
    NoAddress(String),
    /// More than the settings hold.
    #[error("'--address' may be given {ADDRESSES_LIMIT} times")]
    TooManyAddresses,
    /// Keys and files, as for a join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The TLS client could not be made.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// No event queue.
    #[error("failed to start")]
    Start(#[source] io::Error),
    /// No address answers.
    #[error(
        "key server {server} does not answer\n{}\n\
         check the address, and that 'latchkeyd serve' runs there, then run this again",
        lines(.tries)
    )]
    Unreachable {
        /// Its short id.
        server: String,
        /// What happened at each address.
        tries: Vec<ClientError>,
    },
    /// It does not take back any machine with these volumes, and does not say why.
    #[error(
        "key server {0} takes no machine back by these volumes\n\
         it does not know them, or their machine was revoked or locked out: its administrator sees it in 'latchkeyd audit'; \
         a machine that was revoked joins with a token: latchkeyd invite NAME"
    )]
    NotTaken(String),
    /// It refuses, and says why.
    #[error(transparent)]
    Refused(ClientError),
    /// A person denied it.
    #[error("the key server does not take this machine back: {0}")]
    Denied(String),
    /// A signal.
    #[error("interrupted; the request stands for an hour, and this command takes it up again")]
    Interrupted,
    /// Nobody decided.
    #[error("nobody has decided within an hour\nrun this again when somebody is there")]
    Nobody,
    /// The new keys cannot be used.
    #[error(transparent)]
    KeyServer(#[from] KeyServerError),
    /// Some volume will not open by itself.
    #[error(
        "this machine was taken back, but {0} of its volumes do not open by it, for the reasons above\n\
         bind these anew: latchkey unbind DEVICE, then latchkey bind DEVICE"
    )]
    NotProved(usize),
    /// The images.
    #[error(
        "this machine was taken back, but the initramfs still holds the boot key from before, which no longer counts\n\
         run this again to rebuild it"
    )]
    Rebuild(#[source] RebuildError),
}

pub(super) fn lines(errors: &[ClientError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
