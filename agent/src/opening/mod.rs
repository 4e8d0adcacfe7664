//! `latchkey open NAME`: opens one data volume in the running system, with the network that is there. `latchkey@.service`
//! runs it, one for each volume, so that volumes are opened side by side.
//!
//! It asks with the host key until a key server releases the share, and never gives up; a question to systemd's password
//! agents stands beside it. What it waits for is the unit's status. It counts as started a few seconds after its begin,
//! whatever has come of it by then: the boot does not wait for a key server. When the volume is open, systemd's own unit for it,
//! the mounts of fstab(5) and what was waiting for them are started (`followers`), and the program ends.
//!
//! As long as it is at work a file tells so, and systemd's unit is not started beside it: see
//! `systemd/systemd-cryptsetup@.service.d/`. `asking` speaks to the key servers, `typing` to people.

mod asking;
mod followers;
pub(crate) mod fstab;
pub(crate) mod generator;
mod typing;

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use latchkey_protocol::release::ReleaseError;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::yield_now;
use tokio::time::{Instant, interval, sleep_until};

use crate::commands::target::read_crypttab;
use crate::failure::{chain, printable};
use crate::files::{self, Files, FilesError};
use crate::server::block_on;
use crate::unit_name;
use crate::unlock::service_manager;
use crate::volume::CryptError;
use crate::volume::crypttab::{Entry, Key};
use crate::volume::mapping::{self, Holder};
use crate::volume::place::Place;
use asking::Asker;
use typing::Typing;

/// How long a key server may take before the unit counts as started: what the boot orders after it waits so long.
pub const GRACE: Duration = Duration::from_secs(5);
/// How often to look whether somebody else opened the volume.
const LOOK: Duration = Duration::from_secs(2);
/// How long a volume may still be in use when it is to be closed, and between two attempts.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
const CLOSE_PAUSE: Duration = Duration::from_millis(200);

/// The volume is not opened. If that is final, it is left to systemd's own unit and its prompt.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// A file that is needed.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// crypttab has no such line.
    #[error("'{}' has no line '{name}'", crypttab.display())]
    NoSuchVolume {
        /// The mapping.
        name: String,
        /// The file.
        crypttab: PathBuf,
    },
    /// A line that latchkey does not open.
    #[error("'{name}' is left to systemd: {why}")]
    NotOurs {
        /// The mapping.
        name: String,
        /// What in its line.
        why: String,
    },
    /// Nothing to ask a key server for.
    #[error("'{0}' is not bound, so it is left to systemd\n'latchkey bind' binds it")]
    NotBound(String),
    /// No key pair or number for the requests.
    #[error(transparent)]
    KeyPair(#[from] ReleaseError),
    /// No randomness.
    #[error("the kernel gave no random bytes")]
    Random(#[source] getrandom::Error),
    /// No event queue, or no signals.
    #[error("failed to start")]
    Start(#[source] io::Error),
}

impl OpeningError {
    /// Whether it would be the same the next time: the volume is not latchkey's to open.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NoSuchVolume { .. } | Self::NotOurs { .. } | Self::NotBound(_)
        )
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The volume is open; how, for people.
    Open(String),
    /// Somebody wants it to end.
    Stopped,
}

/// The volume could not be closed.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to close '{name}'\nif something uses it still, such as a mount that systemd does not know, end that first"
)]
pub struct CloseError {
    name: String,
    #[source]
    source: CryptError,
}

/// Opens the volume `name` of crypttab; returns when it is open, or on SIGTERM.
///
/// # Errors
/// A variant of [`OpeningError`]; none of them is about key servers, for those it waits.
pub fn run(files: &Files, name: &str) -> Result<Ended, OpeningError> {
    let entry = entry(files, name)?;
    let waiting = Waiting::begin(files, name)?;
    let opener = Opener {
        files,
        entry: &entry,
        said: RefCell::default(),
    };
    let ended = block_on(opener.open()).map_err(OpeningError::Start)??;
    // From here on systemd's unit may be started.
    drop(waiting);
    if let Ended::Open(how) = &ended {
        opener.say(how);
        followers::start(files, name);
        service_manager::ready();
    }
    Ok(ended)
}

/// Closes the mapping `name`, if there is one; what uses it has ten seconds to end.
///
/// # Errors
/// [`CloseError`] if it is still in use then.
pub fn close(name: &str) -> Result<(), CloseError> {
    let begin = std::time::Instant::now();
    while mapping::mapping(name).is_some() {
        match mapping::close(name) {
            Ok(()) => log::info!("'{name}' was closed"),
            Err(source) if begin.elapsed() >= CLOSE_LIMIT => {
                // Closed by systemd's own unit in between.
                if mapping::mapping(name).is_none() {
                    break;
                }
                let name = name.to_owned();
                return Err(CloseError { name, source });
            }
            Err(_) => std::thread::sleep(CLOSE_PAUSE),
        }
    }
    Ok(())
}

fn entry(files: &Files, name: &str) -> Result<Entry, OpeningError> {
    let entries = read_crypttab(files)?;
    let entry = entries.into_iter().find(|entry| entry.name == name);
    let entry = entry.ok_or_else(|| OpeningError::NoSuchVolume {
        name: name.to_owned(),
        crypttab: files.crypttab(),
    })?;
    let mut options = entry.options.unsupported();
    options.extend(entry.options.formatted_by.iter().map(String::as_str));
    let why = match (&entry.key, options.is_empty()) {
        (Key::File(key), _) => format!("crypttab names the key file '{}'", key.display()),
        (Key::None, false) => format!("option '{}'", options.join("', '")),
        (Key::None, true) => return Ok(entry),
    };
    let name = entry.name;
    Err(OpeningError::NotOurs { name, why })
}

/// The file that keeps systemd's unit back. It goes with this; after a kill, `ExecStopPost=` removes it.
#[derive(Debug)]
struct Waiting(PathBuf);

impl Waiting {
    fn begin(files: &Files, name: &str) -> Result<Self, FilesError> {
        let folder = files.runtime().join("waiting");
        files::make_dir(&files.runtime())?;
        files::make_dir(&folder)?;
        let path = folder.join(unit_name::escape(name));
        files::replace(&path, b"")?;
        Ok(Self(path))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Err(error) = files::remove(&self.0) {
            log::warn!("{}", chain(&error));
        }
    }
}

struct Opener<'a> {
    files: &'a Files,
    entry: &'a Entry,
    said: RefCell<String>,
}

impl Opener<'_> {
    async fn open(&self) -> Result<Ended, OpeningError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(OpeningError::Start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(OpeningError::Start)?;
        let begin = Instant::now();
        let mut look = interval(LOOK);
        let mut is_ready = false;
        let mut typing = Typing::new(self.files, self.entry);
        let mut asker = Asker::new(self.files, self.entry)?;
        let mut asking = Box::pin(asker.ask_until_open(|line| self.say(line)));
        let how = loop {
            tokio::select! {
                opened = &mut asking => break opened?,
                typed = typing.answer() => if let Some(how) = typing.try_answer(typed) {
                    break how;
                },
                _ = look.tick() => if self.is_open() {
                    break "open".to_owned();
                },
                () = sleep_until(begin + GRACE), if !is_ready => {
                    is_ready = true;
                    typing.begin();
                    service_manager::ready();
                }
                _ = terminate.recv() => return Ok(Ended::Stopped),
                _ = interrupt.recv() => return Ok(Ended::Stopped),
            }
        };
        if has_come(&mut terminate).await || has_come(&mut interrupt).await {
            // `ExecStop=` found nothing to close yet.
            if let Err(error) = close(&self.entry.name) {
                log::warn!("{}", chain(&error));
            }
            return Ok(Ended::Stopped);
        }
        Ok(Ended::Open(how))
    }

    /// Whether somebody else opened the volume.
    fn is_open(&self) -> bool {
        let place = Place::of_entry(self.entry, self.files).ok().flatten();
        place
            .is_some_and(|place| mapping::holder(&self.entry.name, &place.device) == Holder::Volume)
    }

    /// To the unit's status, and to the journal where it is news.
    fn say(&self, line: &str) {
        let line = printable(line);
        if *self.said.borrow() != line {
            log::info!("'{}': {line}", self.entry.name);
            service_manager::status(&line);
            *self.said.borrow_mut() = line;
        }
    }
}

/// Whether a signal came while the thread was busy, as it is with a keyslot.
async fn has_come(signal: &mut Signal) -> bool {
    yield_now().await; // the runtime takes note of it
    tokio::select! {
        biased;
        _ = signal.recv() => true,
        () = std::future::ready(()) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_came_while_the_thread_was_busy_is_seen() {
        let seen = block_on(async {
            let mut signal = signal(SignalKind::user_defined1()).unwrap();
            let before = has_come(&mut signal).await;
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR1).unwrap();
            (before, has_come(&mut signal).await)
        });
        assert_eq!(seen.unwrap(), (false, true));
    }

    fn machine(crypttab: &str) -> (tempfile::TempDir, Files) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let files = Files::under(root.path());
        std::fs::write(files.crypttab(), crypttab).unwrap();
        (root, files)
    }

    #[test]
    fn what_latchkey_does_not_open_is_left_to_systemd() {
        let (_root, files) = machine(
            "keyed /dev/a /etc/key luks\ntpm /dev/b none luks,tpm2-device=auto\nswap /dev/c none swap\n",
        );
        for (name, why) in [
            (
                "keyed",
                "'keyed' is left to systemd: crypttab names the key file '/etc/key'",
            ),
            ("tpm", "'tpm' is left to systemd: option 'tpm2-device=auto'"),
            ("swap", "'swap' is left to systemd: option 'swap'"),
            ("none", "has no line 'none'"),
        ] {
            let error = run(&files, name).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(!files.runtime().exists(), "systemd's unit was kept back");
    }

    #[test]
    fn systemds_unit_is_kept_back_as_long_as_ours_is_at_work() {
        let (_root, files) = machine("");
        let file = files.runtime().join(r"waiting/my\x2ddata");
        let waiting = Waiting::begin(&files, "my-data").unwrap();
        assert!(file.exists());
        drop(waiting);
        assert!(!file.exists());
    }
}
