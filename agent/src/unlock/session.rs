//! The boot session: what this boot asks key servers with, and the shares that they released. Ending it wipes all of
//! that.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use latchkey_protocol::release::{Purpose, ReleaseContext};
use latchkey_protocol::wire::{
    self, BootFacts, ReleaseAnswer, ReleaseRequest, Version, WantedVolume,
};
use latchkey_protocol::{BootKeyPair, Generation, RequestId, Share, VolumeId};

use super::asker::{Answered, AskError, Asker};
use super::credentials::Credentials;
use super::shown::Headers;
use super::worker::Job;
use crate::failure::{chain, printable};
use crate::files::ServerSettings;
use crate::flow::{Answer, Event, ServerIndex, Verdict, VolumeIndex};
use crate::server::Fault;

/// How soon to ask again for a share that is not the wanted one.
const WRONG_SHARE_PACE: Duration = Duration::from_secs(300);

/// What the flow's `Wipe` drops.
pub struct Session {
    keys: BootKeyPair,
    request: RequestId,
    facts: BootFacts,
    headers: Headers,
    servers: Vec<ServerSettings>,
    asker: Asker,
    /// What the request under way asks for, in its order.
    asked: Vec<(VolumeIndex, VolumeId, Generation)>,
    /// With the generation of each: the next request may ask for other volumes.
    shares: BTreeMap<(VolumeIndex, ServerIndex), (Share, Generation)>,
}

impl Session {
    /// Starts the thread that asks; what it is answered goes to `answered`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(
        credentials: Credentials,
        facts: BootFacts,
        answered: impl Fn(Answered) + Send + Sync + Clone + 'static,
    ) -> io::Result<Self> {
        let servers = credentials
            .servers
            .iter()
            .map(|server| server.settings.clone())
            .collect();
        let asker = Asker::start(credentials.servers, facts.image_built, answered)?;
        Ok(Self {
            keys: credentials.session,
            request: credentials.request,
            facts,
            headers: Headers::default(),
            servers,
            asker,
            asked: Vec::new(),
            shares: BTreeMap::new(),
        })
    }

    /// Keeps what an event tells of a header: the key servers are shown it.
    pub fn note(&mut self, event: &Event) {
        self.headers.note(event);
    }

    /// Its name at the key servers.
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// A key server's address, for people.
    pub fn address(&self, server: ServerIndex, address: usize) -> String {
        let addresses = self
            .servers
            .get(server)
            .map(|server| server.addresses.as_slice());
        addresses
            .and_then(|all| all.get(address))
            .map_or(String::new(), ToString::to_string)
    }

    /// Asks one address of a key server for the shares of all these volumes at once.
    pub fn ask(
        &mut self,
        number: u64,
        server: ServerIndex,
        address: usize,
        volumes: Vec<(VolumeIndex, VolumeId, Generation)>,
    ) {
        let wanted = |(_, volume, generation): &(_, VolumeId, Generation)| WantedVolume {
            volume: *volume,
            generation: *generation,
        };
        let ids = volumes.iter().map(|(_, volume, _)| *volume);
        let tickets = match self.servers.get(server) {
            Some(settings) => self.headers.tickets(settings.id, ids),
            None => Vec::new(),
        };
        let mut facts = self.facts.clone();
        if tickets.is_empty() {
            facts.image = None; // a key server that gives no tickets may not know of these facts
        } else {
            facts.header = self.headers.fingerprint();
        }
        let request = ReleaseRequest {
            version: Version::default(),
            request: self.request,
            ephemeral_key: self.keys.public(),
            volumes: volumes.iter().map(wanted).collect(),
            facts,
            tickets,
        };
        self.asked = volumes;
        self.asker.ask(number, server, address, request);
    }

    /// Drops the request under way.
    pub fn cancel(&self) {
        self.asker.cancel();
    }

    /// Opens the sealed shares of an answer, keeps them, and says the rest.
    pub fn receive(
        &mut self,
        server: ServerIndex,
        result: Result<ReleaseAnswer, AskError>,
    ) -> Answer {
        match result {
            Ok(answer) => self.unseal(server, answer),
            Err(error) => fault(&error),
        }
    }

    /// The client has checked that the answer is about the volumes that were asked for.
    fn unseal(&mut self, server: ServerIndex, answer: ReleaseAnswer) -> Answer {
        let Some(settings) = self.servers.get(server) else {
            return Answer::Refused;
        };
        let mut verdicts = Vec::new();
        for ((index, volume, wanted), verdict) in self.asked.iter().zip(answer.verdicts) {
            let verdict = match verdict.verdict {
                wire::Verdict::Released { generation, sealed } => {
                    let context = ReleaseContext {
                        purpose: Purpose::Release,
                        server: &settings.id,
                        client: &settings.client,
                        request: &self.request,
                        volume,
                        generation,
                    };
                    match self.keys.open(&sealed, context) {
                        Ok(share) if generation == *wanted => {
                            self.shares.insert((*index, server), (share, generation));
                            Verdict::Released
                        }
                        Ok(_) => denied(format!(
                            "it released generation {generation}, the envelope needs {wanted}"
                        )),
                        Err(error) => denied(chain(&error)),
                    }
                }
                wire::Verdict::Pending {
                    id,
                    code,
                    retry_after,
                } => Verdict::Pending {
                    id: printable(id.as_str()),
                    code: printable(code.as_str()),
                    retry: Duration::from_secs(retry_after.into()),
                },
                wire::Verdict::Wait {
                    reason,
                    retry_after,
                } => Verdict::Wait {
                    reason: printable(reason.as_str()),
                    retry: Duration::from_secs(retry_after.into()),
                },
                wire::Verdict::Denied {
                    reason,
                    retry_after,
                } => Verdict::Denied {
                    reason: printable(reason.as_str()),
                    retry: Duration::from_secs(retry_after.into()),
                },
                wire::Verdict::Destroyed => Verdict::Destroyed,
            };
            verdicts.push((*index, verdict));
        }
        Answer::Verdicts(verdicts)
    }

    /// The opening of a volume by the share that this key server released; `None` if there is no share.
    pub fn take_share(&mut self, volume: VolumeIndex, server: ServerIndex) -> Option<Job> {
        let (share, generation) = self.shares.remove(&(volume, server))?;
        let server = self.servers.get(server)?.id;
        Some(Job::Open {
            volume,
            server,
            share,
            generation,
        })
    }

    /// Wipes everything; returns when the thread has ended.
    pub fn end(self) {
        self.asker.end();
    }
}

fn denied(reason: String) -> Verdict {
    Verdict::Denied {
        reason,
        retry: WRONG_SHARE_PACE,
    }
}

fn fault(error: &AskError) -> Answer {
    match error {
        AskError::Client(client) if matches!(client.fault, Fault::Refused(_)) => Answer::Refused,
        AskError::Client(client) => match client.fault.retry_after() {
            Some(pace) => Answer::Busy(pace),
            None => Answer::Fault(chain(error)),
        },
        AskError::Setup(_) => Answer::Fault(chain(error)),
    }
}
