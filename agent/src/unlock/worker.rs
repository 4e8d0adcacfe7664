//! Reads headers, opens keyslots and makes mappings, in the one thread that calls libcryptsetup.
//!
//! Key derivation can take seconds; meanwhile the network, the prompt and the key servers go on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use latchkey_protocol::envelope::{EnvelopeError, Token};
use latchkey_protocol::{Generation, ServerId, Share};
use latchkey_secret::{SecretBytes, udev_wait};

use super::look::{is_taken, look};
use crate::failure::chain;
use crate::files::Files;
use crate::flow::{Event, Header, Refusal, Tried, VolumeIndex};
use crate::volume::crypttab::Entry;
use crate::volume::open::{OpenError, open_automatically, open_envelope};
use crate::volume::place::Place;
use crate::volume::plain::ContentError;
use crate::volume::typed::{self, PassphraseError, TypedKey, check_typed};

/// How long the next job may take to come, of several that follow one another.
const PAUSE: Duration = Duration::from_millis(50);

/// The thread.
#[derive(Debug)]
pub struct Worker {
    jobs: Sender<Job>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<VolumeIndex>>,
}

/// What the thread tells.
#[derive(Debug)]
pub enum Told {
    /// Something for the flow.
    Event(Event),
    /// The links in `/dev` to all that was opened are there, as far as udev makes them.
    Linked,
}

/// Something to do, and the event that answers it.
#[derive(Debug)]
pub enum Job {
    /// Read the header of a volume's device: `Device`, and `Warned` if there is something to warn of.
    Probe(VolumeIndex, PathBuf),
    /// Open it with a released share: `Opened` or `NotOpened`.
    Open {
        /// The volume.
        volume: VolumeIndex,
        /// Who released.
        server: ServerId,
        /// What.
        share: Share,
        /// Its generation.
        generation: Generation,
    },
    /// Try a passphrase: `Tried`, and `KeyslotOpened` as soon as it opened one.
    Try(Vec<VolumeIndex>, SecretBytes),
    /// Map a volume that the passphrase opened: `Activated` or `NotActivated`.
    Activate(VolumeIndex),
    /// Drop what the passphrase opened and was not mapped: no answer.
    Forget,
}

impl Worker {
    /// Starts the thread; what it has to tell goes to `tell`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(
        files: Files,
        entries: Vec<Entry>,
        tell: impl Fn(Told) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, received) = channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let tells = is_over.clone();
        let thread = std::thread::Builder::new()
            .name("volumes".to_owned())
            .spawn(move || {
                let found = entries.iter().map(|_| None).collect();
                Volumes {
                    files,
                    entries,
                    found,
                    typed: BTreeMap::new(),
                    unwarned: Vec::new(),
                    is_over: tells,
                }
                .work(&received, tell)
            })?;
        Ok(Self {
            jobs,
            is_over,
            thread,
        })
    }

    /// Queues a job.
    pub fn queue(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            log::error!("the thread that opens volumes is gone");
        }
    }

    /// Begins no other job: those that are queued are dropped, and with them every secret.
    pub fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Stops, waits for the job that is being done, and tells which volumes' openings never began.
    pub fn end(self) -> Vec<VolumeIndex> {
        self.stop();
        drop(self.jobs);
        self.thread.join().unwrap_or_else(|_| {
            log::error!("the thread that opens volumes ended badly");
            Vec::new()
        })
    }
}

struct Volumes {
    files: Files,
    entries: Vec<Entry>,
    /// Where each volume lies that was probed, and its token.
    found: Vec<Option<(Place, Option<Token>)>>,
    /// Volume keys that a typed passphrase opened.
    typed: BTreeMap<VolumeIndex, TypedKey>,
    /// Volumes of which nothing was said yet that people should know.
    unwarned: Vec<VolumeIndex>,
    is_over: Arc<AtomicBool>,
}

impl Volumes {
    /// Returns which volumes' openings never began.
    fn work(mut self, jobs: &Receiver<Job>, tell: impl Fn(Told)) -> Vec<VolumeIndex> {
        udev_wait::defer();
        let mut dropped = Vec::new();
        while let Some(job) = self.next(jobs, &tell) {
            if self.is_over.load(Ordering::Relaxed) {
                if let Job::Open { volume, .. } = job {
                    dropped.push(volume);
                }
                continue;
            }
            let event = match job {
                Job::Probe(volume, device) => {
                    // The key servers are asked as soon as the headers were read, people may be warned later.
                    self.unwarned.push(volume);
                    Event::Device(volume, self.probe(volume, device))
                }
                Job::Open {
                    volume,
                    server,
                    share,
                    generation,
                } => match self.open(volume, server, share, generation) {
                    Ok(()) => Event::Opened(volume),
                    Err(refusal) => Event::NotOpened(volume, refusal),
                },
                Job::Try(volumes, passphrase) => {
                    let opened = || tell(Told::Event(Event::KeyslotOpened));
                    Event::Tried(self.try_passphrase(&volumes, &passphrase, opened))
                }
                Job::Activate(volume) => match self.activate(volume) {
                    Ok(warning) => Event::Activated(volume, warning),
                    Err(NotMapped::Unknown(why)) => Event::Left(volume, why),
                    Err(NotMapped::Failed(why)) => Event::NotActivated(volume, why),
                },
                Job::Forget => {
                    self.typed.clear();
                    continue;
                }
            };
            let is_open = matches!(event, Event::Opened(_) | Event::Activated(..));
            tell(Told::Event(event));
            if is_open && !udev_wait::is_pending() {
                tell(Told::Linked);
            }
        }
        if !udev_wait::wait() {
            log::warn!("udev does not say that it is done with the new mappings");
        }
        dropped
    }

    fn probe(&mut self, volume: VolumeIndex, device: PathBuf) -> Header {
        let entry = &self.entries[volume];
        if let Some(why) = is_taken(&entry.name, &device) {
            return Header::LeftAlone(why);
        }
        let place = Place::of(&entry.options, device, self.files.root());
        let (header, token) = look(&self.files, &entry.name, &place);
        self.found[volume] = Some((place, token));
        header
    }

    /// The next job. While there is none, what can wait is done: warnings, and waiting for udev.
    fn next(&mut self, jobs: &Receiver<Job>, tell: &impl Fn(Told)) -> Option<Job> {
        loop {
            if !udev_wait::is_pending() && self.unwarned.is_empty() {
                return jobs.recv().ok();
            }
            match jobs.recv_timeout(PAUSE) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Timeout) => self.catch_up(tell),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn catch_up(&mut self, tell: &impl Fn(Told)) {
        if udev_wait::is_pending() && udev_wait::is_over() {
            tell(Told::Linked);
        }
        for volume in std::mem::take(&mut self.unwarned) {
            if let Some(why) = self.warning(volume) {
                tell(Told::Event(Event::Warned(volume, why)));
            }
        }
    }

    /// Which keyslots nobody can open on this machine, so that it is known before somebody types in vain.
    fn warning(&self, volume: VolumeIndex) -> Option<String> {
        let (place, token) = self.found[volume].as_ref()?;
        token.as_ref()?;
        let only = self.entries[volume].options.keyslot;
        typed::beyond_memory(place.luks_header()?, only, typed::total_memory()?)
    }

    fn open(
        &self,
        volume: VolumeIndex,
        server: ServerId,
        share: Share,
        generation: Generation,
    ) -> Result<(), Refusal> {
        let Some((place, Some(token))) = &self.found[volume] else {
            return Err(Refusal::Gate("its token is gone".to_owned()));
        };
        let envelope = token
            .envelope_of(server)
            .ok_or_else(|| Refusal::Share("no envelope of this key server".to_owned()))?;
        let secret =
            open_envelope(token, envelope, share, generation).map_err(|error| match error {
                EnvelopeError::Changed => Refusal::Gate(error.to_string()),
                _ => Refusal::Share(error.to_string()),
            })?;
        match open_automatically(&self.entries[volume], place, token, &secret) {
            Ok(_) => Ok(()),
            Err(error @ OpenError::Secret(_)) => Err(Refusal::Share(chain(&error))),
            Err(error) => Err(Refusal::Gate(chain(&error))),
        }
    }

    fn try_passphrase(
        &mut self,
        volumes: &[VolumeIndex],
        passphrase: &SecretBytes,
        opened: impl Fn(),
    ) -> Tried {
        self.typed.clear();
        let mut problem = None;
        for volume in volumes {
            let Some((place, token)) = &self.found[*volume] else {
                continue;
            };
            match check_typed(&self.entries[*volume], place, token.as_ref(), passphrase) {
                Ok(key) => {
                    if self.typed.is_empty() {
                        opened();
                    }
                    self.typed.insert(*volume, key);
                }
                Err(PassphraseError::WrongPassphrase(_)) => {}
                Err(error) => problem = Some(chain(&error)),
            }
        }
        match (self.typed.is_empty(), problem) {
            (false, _) => Tried::Right(self.typed.keys().copied().collect()),
            (true, None) => Tried::Wrong,
            (true, Some(why)) => Tried::Failed(why),
        }
    }

    fn activate(&mut self, volume: VolumeIndex) -> Result<Option<String>, NotMapped> {
        let gone = || NotMapped::Failed("its volume key is gone".to_owned());
        let key = self.typed.remove(&volume).ok_or_else(gone)?;
        let warning = match &self.found[volume] {
            Some((_, Some(token))) => key
                .matches_bound(token)
                .err()
                .map(|mismatch| chain(&mismatch)),
            _ => None,
        };
        key.activate(&self.entries[volume])?;
        Ok(warning)
    }
}

/// Why a volume that a passphrase opens was not mapped.
#[derive(Debug)]
enum NotMapped {
    /// It holds nothing that is known. Whether to map it all the same, the native unlocker decides.
    Unknown(String),
    /// Anything else.
    Failed(String),
}

impl From<PassphraseError> for NotMapped {
    fn from(error: PassphraseError) -> Self {
        let why = chain(&error);
        match error {
            PassphraseError::Content {
                source: ContentError::Unknown,
                ..
            } => Self::Unknown(why),
            _ => Self::Failed(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use latchkey_secret::Secret;

    use super::*;
    use crate::volume::crypttab;

    #[test]
    fn openings_that_a_stop_overtakes_never_begin_and_are_told() {
        let root = tempfile::tempdir().unwrap();
        let entries = crypttab::parse("a /dev/a\nb /dev/b\n");
        let (tell, told) = channel();
        let worker = Worker::start(
            Files::under(root.path()),
            entries.into_iter().map(Result::unwrap).collect(),
            move |what| drop(tell.send(what)),
        )
        .unwrap();
        let open = |volume| Job::Open {
            volume,
            server: ServerId::from_bytes([1; 32]),
            share: Share(Secret::zeroed().unwrap()),
            generation: Generation::FIRST,
        };
        worker.queue(open(0));
        let Told::Event(Event::NotOpened(0, _)) = told.recv().unwrap() else {
            panic!("a volume was opened whose header nobody read");
        };
        worker.stop();
        worker.queue(Job::Forget);
        worker.queue(open(1));
        worker.queue(open(0));
        assert_eq!(worker.end(), [1, 0]);
        assert!(told.recv().is_err());
    }

    #[test]
    fn what_holds_nothing_that_is_known_is_not_prompted_for_again() {
        let content = |source| {
            NotMapped::from(PassphraseError::Content {
                device: "/dev/x".into(),
                source,
            })
        };
        assert!(matches!(
            content(ContentError::Unknown),
            NotMapped::Unknown(why) if why.contains("no file system")
        ));
        let unreadable = ContentError::Read(std::io::Error::other("broken"));
        assert!(matches!(content(unreadable), NotMapped::Failed(_)));
    }
}
