//! Asks the key servers of a volume, with the host key, until one of them has released the share that opens it.
//!
//! One request id and one key pair last as long as the program, so that a person approves once. Files, header and
//! certificates are read anew in each round: the tickets move on meanwhile, and so may the certificate.

use std::collections::BTreeMap;
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::envelope::{Envelope, Token};
use latchkey_protocol::release::{Purpose, ReleaseContext};
use latchkey_protocol::wire::{
    BootFacts, ReleaseRequest, Text, Verdict, Version, VolumeTicket, WantedVolume,
};
use latchkey_protocol::{BootKeyPair, RequestId, ServerId};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::OpeningError;
use crate::failure::{chain, printable};
use crate::files::{Files, Role};
use crate::running::Rest;
use crate::server::{KeyServer, Unreachable};
use crate::unlock::shown::{Shown, shown};
use crate::volume::binding;
use crate::volume::crypttab::Entry;
use crate::volume::open::{OpenError, open_automatically, open_envelope};
use crate::volume::place::Place;
use crate::volume::plain::ContentError;

/// Until the device is looked for again, and whatever else this machine has to have first.
const DEVICE_PAUSE: Duration = Duration::from_secs(1);
/// Until what this machine cannot read is read again.
const READ_PAUSE: Duration = Duration::from_secs(10);
/// When a key server's next answer is no other soon: the volume is not as it was bound, or this machine is not known there.
const LONG_PAUSE: Duration = Duration::from_secs(300);
/// A key server's own pace counts within these limits.
const PACES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];

/// Who asks, and for what.
pub struct Asker<'a> {
    files: &'a Files,
    entry: &'a Entry,
    keys: BootKeyPair,
    request: RequestId,
    resting: BTreeMap<ServerId, Resting>,
}

/// A key server that is not asked for a while.
struct Resting {
    until: Instant,
    /// What it said last.
    why: String,
    rest: Rest,
}

/// What a round came to.
enum Round {
    Open(String),
    NotBound,
    /// What is waited for, and how long.
    Wait(String, Duration),
}

/// What a key server's answer came to.
enum Answered {
    Open(String),
    /// What is waited for, and how long; without a time, as after other failures.
    Wait(String, Option<Duration>),
}

/// A bound volume as it is found now.
struct Volume {
    place: Place,
    token: Token,
    shown: Shown,
}

impl<'a> Asker<'a> {
    /// For the volume of `entry`.
    ///
    /// # Errors
    /// `KeyPair`, `Random`.
    pub fn new(files: &'a Files, entry: &'a Entry) -> Result<Self, OpeningError> {
        Ok(Self {
            files,
            entry,
            keys: BootKeyPair::generate()?,
            request: RequestId::random().map_err(OpeningError::Random)?,
            resting: BTreeMap::new(),
        })
    }

    /// Returns when the volume is open, and how that came; `say` is told what is waited for.
    ///
    /// # Errors
    /// `NotBound`.
    pub async fn ask_until_open(&mut self, say: impl Fn(&str)) -> Result<String, OpeningError> {
        say("asking the key server");
        loop {
            match self.round().await {
                Round::Open(how) => return Ok(how),
                Round::NotBound => return Err(OpeningError::NotBound(self.entry.name.clone())),
                Round::Wait(why, pause) => {
                    say(&why);
                    sleep(pause).await;
                }
            }
        }
    }

    /// Asks each key server that does not rest.
    async fn round(&mut self) -> Round {
        let volume = match self.volume() {
            Ok(Some(volume)) => volume,
            Ok(None) => return Round::NotBound,
            Err((why, pause)) => return Round::Wait(why, pause),
        };
        let servers = match self.files.servers() {
            Ok(servers) => servers,
            Err(error) => return Round::Wait(chain(&error), READ_PAUSE),
        };
        let mut waits = Vec::new();
        for joined in servers {
            let opened = joined
                .map_err(|error| chain(&error))
                .and_then(|joined| KeyServer::open(&joined, Role::Host).map_err(|e| chain(&e)));
            let server = match opened {
                Ok(server) => server,
                Err(why) => {
                    waits.push((why, READ_PAUSE));
                    continue;
                }
            };
            let id = server.settings.id;
            let Some(envelope) = volume.token.envelope_of(id) else {
                continue;
            };
            if let Some(wait) = self.rest_of(id) {
                waits.push(wait);
                continue;
            }
            match self.ask(&server, &volume, envelope).await {
                Answered::Open(how) => return Round::Open(how),
                Answered::Wait(why, pause) => waits.push(self.let_rest(id, why, pause)),
            }
        }
        if waits.is_empty() {
            let why = "this machine has joined none of the key servers it is bound to";
            waits.push((why.to_owned(), READ_PAUSE));
        }
        let (said, pauses): (Vec<_>, Vec<_>) = waits.into_iter().unzip();
        Round::Wait(
            said.join("; "),
            pauses.into_iter().min().unwrap_or(READ_PAUSE),
        )
    }

    /// What a key server said last, and how long it is still not asked.
    fn rest_of(&self, server: ServerId) -> Option<(String, Duration)> {
        let resting = self.resting.get(&server)?;
        let left = resting.until.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then(|| (resting.why.clone(), left))
    }

    /// Asks a key server again after `pause`, or, without one, as after other failures.
    fn let_rest(
        &mut self,
        server: ServerId,
        why: String,
        pause: Option<Duration>,
    ) -> (String, Duration) {
        let rest = self.resting.remove(&server).map(|resting| resting.rest);
        let mut rest = rest.unwrap_or_else(Rest::of_openings);
        let pause = pause.unwrap_or_else(|| rest.next(None));
        let resting = Resting {
            until: Instant::now() + pause,
            why: why.clone(),
            rest,
        };
        self.resting.insert(server, resting);
        (why, pause)
    }

    /// The volume as it is now; `None` if it is not bound.
    fn volume(&self) -> Result<Option<Volume>, (String, Duration)> {
        let Entry {
            name,
            source,
            options,
            ..
        } = self.entry;
        let place = Place::of_entry(self.entry, self.files);
        let place = place.map_err(|error| (chain(&error), READ_PAUSE))?;
        let place =
            place.ok_or_else(|| (format!("waiting for the device '{source}'"), DEVICE_PAUSE))?;
        if let Some(header) = options.header_device()
            && !self.files.path(&header.to_string_lossy()).exists()
        {
            let why = format!("waiting for the header's device '{}'", header.display());
            return Err((why, DEVICE_PAUSE));
        }
        let found = binding::find(self.files, name, &place);
        let found = found.map_err(|error| (chain(&error), READ_PAUSE))?;
        let Some(first) = found.into_iter().next() else {
            return Ok(None);
        };
        let unreadable = |error| format!("{} cannot be read: {error}", first.at);
        let token = first
            .token
            .map_err(|error| (unreadable(error), READ_PAUSE))?;
        let shown = shown(&place, &token);
        Ok(Some(Volume {
            place,
            token,
            shown,
        }))
    }

    async fn ask(&self, server: &KeyServer, volume: &Volume, envelope: &Envelope) -> Answered {
        let id = server.settings.id;
        let request = self.request(id, volume, envelope.generation);
        let asked = server.ask(async |client, address| client.open(address, &request).await);
        let answer = match asked.await {
            Ok(answer) => answer,
            Err(Unreachable::Final(error)) => {
                let why = format!("the key server denied: {}", error.fault);
                return Answered::Wait(why, Some(LONG_PAUSE));
            }
            Err(error) => {
                let asked = error.retry_after();
                let why = format!("no key server answers, trying on: {}", chain(&error));
                return Answered::Wait(why, asked.map(|asked| asked.clamp(PACES[0], PACES[1])));
            }
        };
        let wait = |why: String, seconds: u32| {
            let pace = Duration::from_secs(seconds.into()).clamp(PACES[0], PACES[1]);
            Answered::Wait(why, Some(pace))
        };
        // The client has checked that it is about this volume.
        match answer.verdicts.into_iter().next().map(|one| one.verdict) {
            Some(Verdict::Released { generation, sealed }) if generation == envelope.generation => {
                let context = ReleaseContext {
                    purpose: Purpose::Opening,
                    server: &id,
                    client: &server.settings.client,
                    request: &self.request,
                    volume: &volume.token.volume,
                    generation,
                };
                let share = match self.keys.open(&sealed, context) {
                    Ok(share) => share,
                    Err(error) => return Answered::Wait(chain(&error), Some(LONG_PAUSE)),
                };
                let secret = match open_envelope(&volume.token, envelope, share, generation) {
                    Ok(secret) => secret,
                    Err(error) => return Answered::Wait(chain(&error), Some(LONG_PAUSE)),
                };
                let Volume { place, token, .. } = volume;
                match open_automatically(self.entry, place, token, &secret) {
                    Ok(_) => Answered::Open(format!("open: key server {} released it", id.short())),
                    Err(OpenError::AlreadyOpen(_)) => Answered::Open("open".to_owned()),
                    // Whoever has the name may give it back, and the disk may be read the next time.
                    Err(
                        error @ (OpenError::NameTaken { .. }
                        | OpenError::Content {
                            source: ContentError::Crypt(_) | ContentError::Read(_),
                            ..
                        }),
                    ) => Answered::Wait(chain(&error), None),
                    Err(error) => Answered::Wait(chain(&error), Some(LONG_PAUSE)),
                }
            }
            Some(Verdict::Released { generation, .. }) => Answered::Wait(
                format!(
                    "the key server released generation {generation}, the envelope needs {}",
                    envelope.generation
                ),
                Some(LONG_PAUSE),
            ),
            Some(Verdict::Pending {
                id,
                code,
                retry_after,
            }) => wait(
                format!(
                    "waiting for approval of request {}, code {}",
                    printable(id.as_str()),
                    printable(code.as_str())
                ),
                retry_after,
            ),
            Some(Verdict::Wait {
                reason,
                retry_after,
            }) => wait(
                format!("not yet: {}", printable(reason.as_str())),
                retry_after,
            ),
            Some(Verdict::Denied {
                reason,
                retry_after,
            }) => wait(
                format!("the key server denied: {}", printable(reason.as_str())),
                retry_after,
            ),
            Some(Verdict::Destroyed) => Answered::Wait(
                "the key server destroyed the share for good".to_owned(),
                Some(LONG_PAUSE),
            ),
            None => Answered::Wait("the key server gave no verdict".to_owned(), None),
        }
    }

    fn request(
        &self,
        server: ServerId,
        volume: &Volume,
        generation: latchkey_protocol::Generation,
    ) -> ReleaseRequest {
        let id = volume.token.volume;
        let tickets = volume.shown.tickets.iter();
        let mine = tickets.filter(|(of, _)| *of == server);
        ReleaseRequest {
            version: Version::default(),
            request: self.request,
            ephemeral_key: self.keys.public(),
            volumes: vec![WantedVolume {
                volume: id,
                generation,
            }],
            facts: facts(self.files, volume),
            tickets: mine
                .map(|(_, ticket)| VolumeTicket {
                    volume: id,
                    ticket: *ticket,
                })
                .collect(),
        }
    }
}

/// What the running system says of itself.
fn facts(files: &Files, volume: &Volume) -> BootFacts {
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let command_line = std::fs::read(files.path("/proc/cmdline")).unwrap_or_default();
    BootFacts {
        kernel: Text::cut(&kernel),
        command_line: Bytes(Sha256::digest(command_line.trim_ascii()).into()),
        image_built: 0,
        image: None,
        header: Some(volume.shown.fingerprint),
    }
}
