//! Reads headers, opens keyslots and makes mappings, in the one thread that calls libcryptsetup.
//!
//! Key derivation can take seconds; meanwhile the network, the prompt and the key servers go on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use latchkey_protocol::envelope::{Bound, EnvelopeError, Released, Token};
use latchkey_protocol::{Generation, ServerId, Share};
use latchkey_secret::SecretBytes;

use crate::failure::chain;
use crate::files::Files;
use crate::flow::{Event, Header, Refusal, Shown, Tried, VolumeIndex};
use crate::volume::binding;
use crate::volume::crypttab::Entry;
use crate::volume::gate;
use crate::volume::header::HeaderCopy;
use crate::volume::open::{OpenError, open_automatically};
use crate::volume::place::{HeaderPlace, Place};
use crate::volume::tickets;
use crate::volume::typed::{PassphraseError, TypedKey, check_typed};

/// The thread.
#[derive(Debug)]
pub struct Worker {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

/// Something to do; each is answered by one event.
#[derive(Debug)]
pub enum Job {
    /// Read the header of a volume's device: `Device`.
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
    /// Try a passphrase: `Tried`.
    Try(Vec<VolumeIndex>, SecretBytes),
    /// Map a volume that the passphrase opened: `Activated` or `NotActivated`.
    Activate(VolumeIndex),
}

impl Worker {
    /// Starts the thread; events go to `event`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(
        files: Files,
        entries: Vec<Entry>,
        event: impl Fn(Event) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, received) = channel();
        let thread = std::thread::Builder::new()
            .name("volumes".to_owned())
            .spawn(move || {
                let found = entries.iter().map(|_| None).collect();
                Volumes {
                    files,
                    entries,
                    found,
                    typed: BTreeMap::new(),
                }
                .work(&received, event);
            })?;
        Ok(Self { jobs, thread })
    }

    /// Queues a job.
    pub fn queue(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            log::error!("the thread that opens volumes is gone");
        }
    }

    /// Waits for the job that is being done, drops the others, and with them every secret.
    pub fn end(self) {
        drop(self.jobs);
        if self.thread.join().is_err() {
            log::error!("the thread that opens volumes ended badly");
        }
    }
}

struct Volumes {
    files: Files,
    entries: Vec<Entry>,
    /// Where each volume lies that was probed, and its token.
    found: Vec<Option<(Place, Option<Token>)>>,
    /// Volume keys that a typed passphrase opened.
    typed: BTreeMap<VolumeIndex, TypedKey>,
}

impl Volumes {
    fn work(mut self, jobs: &Receiver<Job>, event: impl Fn(Event)) {
        while let Ok(job) = jobs.recv() {
            event(match job {
                Job::Probe(volume, device) => Event::Device(volume, self.probe(volume, device)),
                Job::Open {
                    volume,
                    server,
                    share,
                    generation,
                } => match self.open(volume, server, &share, generation) {
                    Ok(()) => Event::Opened(volume),
                    Err(refusal) => Event::NotOpened(volume, refusal),
                },
                Job::Try(volumes, passphrase) => {
                    Event::Tried(self.try_passphrase(&volumes, &passphrase))
                }
                Job::Activate(volume) => match self.activate(volume) {
                    Ok(warning) => Event::Activated(volume, warning),
                    Err(why) => Event::NotActivated(volume, why),
                },
            });
        }
    }

    fn probe(&mut self, volume: VolumeIndex, device: PathBuf) -> Header {
        let entry = &self.entries[volume];
        let place = Place::of(&entry.options, device, self.files.root());
        let found = match binding::find(&self.files, &entry.name, &place) {
            Ok(found) => found,
            Err(error) => {
                self.found[volume] = Some((place, None));
                return Header::Unusable(chain(&error));
            }
        };
        if found.is_empty() {
            return Header::NotBound;
        }
        let mut broken = None;
        for token in found {
            match token.token {
                Ok(token) => {
                    let envelopes = token
                        .envelopes
                        .iter()
                        .map(|envelope| (envelope.server, envelope.generation));
                    let header =
                        Header::Bound(token.volume, envelopes.collect(), shown(&place, &token));
                    self.found[volume] = Some((place, Some(token)));
                    return header;
                }
                Err(error) => broken = Some(format!("{}: {error}", token.at)),
            }
        }
        self.found[volume] = Some((place, None));
        broken.map_or(Header::NotBound, Header::Unusable)
    }

    fn open(
        &self,
        volume: VolumeIndex,
        server: ServerId,
        share: &Share,
        generation: Generation,
    ) -> Result<(), Refusal> {
        let Some((place, Some(token))) = &self.found[volume] else {
            return Err(Refusal::Gate("its token is gone".to_owned()));
        };
        let envelope = token
            .envelopes
            .iter()
            .find(|envelope| envelope.server == server)
            .ok_or_else(|| Refusal::Share("no envelope of this key server".to_owned()))?;
        let released = Released {
            share,
            volume: token.volume,
            generation,
        };
        let secret = token
            .open(envelope, released)
            .map_err(|error| match error {
                EnvelopeError::Changed => Refusal::Gate(error.to_string()),
                _ => Refusal::Share(error.to_string()),
            })?;
        match open_automatically(&self.entries[volume], place, token, &secret) {
            Ok(_) => Ok(()),
            Err(error @ OpenError::Secret(_)) => Err(Refusal::Share(chain(&error))),
            Err(error) => Err(Refusal::Gate(chain(&error))),
        }
    }

    fn try_passphrase(&mut self, volumes: &[VolumeIndex], passphrase: &SecretBytes) -> Tried {
        self.typed.clear();
        let mut problem = None;
        for volume in volumes {
            let Some((place, token)) = &self.found[*volume] else {
                continue;
            };
            match check_typed(&self.entries[*volume], place, token.as_ref(), passphrase) {
                Ok(key) => {
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

    fn activate(&mut self, volume: VolumeIndex) -> Result<Option<String>, String> {
        let key = self.typed.remove(&volume).ok_or("its volume key is gone")?;
        let warning = match &self.found[volume] {
            Some((_, Some(token))) => key
                .matches_bound(token)
                .err()
                .map(|mismatch| chain(&mismatch)),
            _ => None,
        };
        key.activate(&self.entries[volume])
            .map_err(|error| chain(&error))?;
        Ok(warning)
    }
}

/// What key servers want to see of a volume. Tickets lie only in a header in front of its data: a detached one in the
/// image is a copy, and does not move on with them.
fn shown(place: &Place, token: &Token) -> Shown {
    let header = match (&token.bound, &place.header) {
        (Bound::Luks2(bound), HeaderPlace::Attached) => HeaderCopy::read(&place.device)
            .ok()
            .map(|copy| (copy, bound)),
        _ => None,
    };
    let Some((copy, bound)) = header else {
        return Shown {
            tickets: Vec::new(),
            fingerprint: gate::fingerprint_as_bound(&token.uuid, &token.bound),
        };
    };
    let tickets = tickets::find_in(copy.json(), token.volume);
    let servers = token.envelopes.iter().map(|envelope| envelope.server);
    Shown {
        tickets: servers
            .filter_map(|server| Some((server, tickets.of(server)?)))
            .collect(),
        fingerprint: gate::fingerprint(copy.uuid(), copy.json(), bound),
    }
}
