//! `latchkey join --again`: a machine that lost its keys asks a key server to be taken back as the client that it was.
//!
//! What is left of the binding are the envelopes in the headers: they name the volumes and the key server, whose CA they
//! pin by its fingerprint. A person at the key server decides, by a code that is shown here. As with `join`, both new keys
//! are on disk before the key server hears of them, and an interrupted run is repaired by running it again.
//!
//! An envelope in a header is not authenticated. Whoever changed it to name a key server of his own learns volume ids and
//! tickets, with which he could ask the real one and show a person another code: it takes that person's word.

mod error;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use latchkey_protocol::envelope::Token;
use latchkey_protocol::token::{ADDRESSES_LIMIT, Address};
use latchkey_protocol::wire::{
    JoinAnswer, OpenedBy, RejoinAnswer, RejoinOutcome, RejoinRequest, VOLUMES_LIMIT, Version,
    VolumeTicket,
};
use latchkey_protocol::{ClientName, ServerId, VolumeId};
use rustls::pki_types::CertificateDer;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::initramfs::{self, Rebuild};
use super::join::{signing_request, store};
use super::target::read_crypttab;
use super::{service, shares};
use crate::failure::{chain, printable};
use crate::files::{self, Files, FilesError, Role, ServerFiles, ServerSettings};
use crate::running::volumes;
use crate::server::{CertificateTime, Join, KeyServer, block_on};
use crate::unit_name;
use crate::volume::binding;
use crate::volume::crypttab::Key;
use crate::volume::open::open_envelope;
use crate::volume::opened_in::OpenedIn;
use crate::volume::place::Place;
pub use error::RejoinError;
use error::lines;

/// Longest that a person is waited for: as long as the key server keeps the request.
const LIMIT: Duration = Duration::from_secs(3600);
/// Shortest and longest pause between two questions.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// What `latchkey join --again` is told.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// Which key server, by the beginning of its id.
    pub server: Option<String>,
    /// Where it listens, if the machine does not know any more.
    pub addresses: Vec<Address>,
    /// Whether to rebuild the initramfs.
    pub rebuild: Rebuild,
}

/// A bound volume.
struct Known {
    name: String,
    opened_in: OpenedIn,
    token: Token,
    tickets: Option<latchkey_protocol::tickets::Tickets>,
}

/// Asks to be taken back, waits for a person, and takes the new keys into use.
///
/// # Errors
/// A variant of [`RejoinError`].
pub fn run(files: &Files, arguments: &Arguments) -> Result<(), RejoinError> {
    let _lock = files.lock()?;
    let known = bound_volumes(files)?;
    let server = match choose(files, &known, arguments.server.as_deref()) {
        Err(RejoinError::NothingLost(_))
            if arguments.rebuild == Rebuild::Yes && images_are_stale(files, &known)? =>
        {
            log::info!(
                "no key is lost, but the initramfs holds an older one: doing what was left to do"
            );
            return initramfs::rebuild(files, Rebuild::Yes).map_err(RejoinError::Rebuild);
        }
        chosen => chosen?,
    };
    let addresses = addresses(files, server, &arguments.addresses)?;
    // It may run on with the lost keys in its memory: to the key server that is the original of a copy that asks.
    let stopped = Stopped::new(files);
    let unfinished = files.joining_dir(&server);
    files::make_dir(&unfinished)?;
    let concerned: Vec<&Known> = known.iter().filter(|one| one.is_of(server)).collect();
    let request = RejoinRequest {
        version: Version::default(),
        volumes: volume_ids(&concerned),
        tickets: concerned
            .iter()
            .take(VOLUMES_LIMIT)
            .filter_map(|one| one.ticket(server))
            .collect(),
        boot_csr: signing_request(&unfinished, Role::Boot)?,
        host_csr: signing_request(&unfinished, Role::Host)?,
    };
    let time = CertificateTime::of_clock();
    let taken = block_on(async {
        tokio::select! {
            taken = ask(server, &addresses, &request, time) => taken,
            _ = interrupted() => Err(RejoinError::Interrupted),
        }
    })
    .map_err(RejoinError::Start)?;
    let (client, answer, ca) = match taken {
        Ok(taken) => taken,
        Err(error) => {
            // Keys that a person denied are of no more use.
            if matches!(error, RejoinError::Denied(_)) {
                files::remove_dir(&unfinished)?;
            }
            return Err(error);
        }
    };
    let settings = ServerSettings {
        id: server,
        client,
        addresses,
        joined: time.0,
    };
    store(&unfinished, &answer, &ca, &settings)?;
    replace_dir(files, server)?;
    // The key server forgot the tickets: the service is to write new ones, though it did in this boot already.
    files::remove(&files.moved_on(&server))?;
    log::info!(
        "key server {} took this machine back as '{}'",
        server.short(),
        settings.client
    );
    let failed = prove(files, server, &concerned)?;
    let rebuilt = initramfs::rebuild(files, arguments.rebuild);
    drop(stopped);
    rebuilt.map_err(RejoinError::Rebuild)?;
    match failed {
        0 => Ok(()),
        failed => Err(RejoinError::NotProved(failed)),
    }
}

/// The service is stopped as long as this lives: whichever way the command ends, the machine answers for itself again.
struct Stopped<'a>(&'a Files);

impl<'a> Stopped<'a> {
    fn new(files: &'a Files) -> Self {
        service::stop(files);
        Self(files)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        service::restart(self.0);
    }
}

/// What would end the command while it waits.
async fn interrupted() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

impl Known {
    fn is_of(&self, server: ServerId) -> bool {
        self.token.envelope_of(server).is_some()
    }

    fn ticket(&self, server: ServerId) -> Option<VolumeTicket> {
        let ticket = self.tickets.as_ref()?.of(server)?;
        Some(VolumeTicket {
            volume: self.token.volume,
            ticket,
        })
    }
}

/// The bound volumes of crypttab, each once. What cannot be read is named and left out.
fn bound_volumes(files: &Files) -> Result<Vec<Known>, RejoinError> {
    let with_tickets = volumes::bound(files).map_err(RejoinError::Volumes)?;
    let mut known: Vec<Known> = Vec::new();
    for entry in read_crypttab(files).map_err(RejoinError::Volumes)? {
        if entry.key != Key::None {
            continue; // latchkey does not open it
        }
        let place = match Place::of_entry(&entry, files) {
            Ok(Some(place)) => place,
            Ok(None) => {
                log::warn!("'{}' is not there, and is left out", entry.name);
                continue;
            }
            Err(error) => {
                log::warn!("'{}': {error}", entry.name);
                continue;
            }
        };
        let found = match binding::find(files, &entry.name, &place) {
            Ok(found) => found,
            Err(error) => {
                log::warn!("'{}': {}", entry.name, chain(&error));
                continue;
            }
        };
        for token in found.into_iter().filter_map(|found| found.token.ok()) {
            if known.iter().any(|one| one.token.volume == token.volume) {
                continue;
            }
            let tickets = with_tickets
                .iter()
                .find(|one| one.token.volume == token.volume);
            known.push(Known {
                name: entry.name.clone(),
                opened_in: OpenedIn::of(&entry, files.root()),
                tickets: tickets.map(|one| one.tickets.clone()),
                token,
            });
        }
    }
    Ok(known)
}

/// The key server that keys are missing for.
fn choose(files: &Files, known: &[Known], wanted: Option<&str>) -> Result<ServerId, RejoinError> {
    let servers: BTreeSet<ServerId> = known
        .iter()
        .flat_map(|one| one.token.envelopes.iter().map(|envelope| envelope.server))
        .collect();
    let Some(any) = servers.first().copied() else {
        return Err(RejoinError::NotBound);
    };
    let missing: Vec<ServerId> = servers
        .into_iter()
        .filter(|server| !is_whole(files, *server))
        .collect();
    if missing.is_empty() {
        return Err(RejoinError::NothingLost(
            files.server_dir(&any).join(Role::Host.key_name()),
        ));
    }
    let named = |server: &&ServerId| {
        wanted.is_none_or(|begin| !begin.is_empty() && server.to_string().starts_with(begin))
    };
    let fitting: Vec<&ServerId> = missing.iter().filter(named).collect();
    match fitting[..] {
        [only] => Ok(*only),
        _ => Err(RejoinError::WhichServer(
            missing.iter().map(ServerId::short).collect(),
        )),
    }
}

/// Whether an earlier run did not come to rebuild the images that open one of the volumes.
fn images_are_stale(files: &Files, known: &[Known]) -> Result<bool, FilesError> {
    if known.iter().all(|one| one.opened_in != OpenedIn::Initramfs) {
        return Ok(false);
    }
    let mut inputs = Vec::new();
    for server in files.all_servers()? {
        // The certificate is the younger one: the key waits for a person.
        inputs.extend([
            server.key_path(Role::Boot),
            server.certificate_path(Role::Boot),
        ]);
    }
    Ok(!initramfs::older_images(files, &inputs).is_empty())
}

/// Whether both identities for that key server can be used.
fn is_whole(files: &Files, server: ServerId) -> bool {
    ServerFiles::read(files.server_dir(&server)).is_ok_and(|joined| {
        [Role::Boot, Role::Host]
            .into_iter()
            .all(|role| KeyServer::open(&joined, role).is_ok())
    })
}

fn addresses(
    files: &Files,
    server: ServerId,
    told: &[Address],
) -> Result<Vec<Address>, RejoinError> {
    if told.len() > ADDRESSES_LIMIT {
        return Err(RejoinError::TooManyAddresses);
    }
    if !told.is_empty() {
        return Ok(told.to_vec());
    }
    let remembered = |dir| ServerFiles::read(dir).map(|joined| joined.settings.addresses);
    remembered(files.server_dir(&server))
        // Where an earlier run was interrupted just before its end.
        .or_else(|_| remembered(files.joining_dir(&server)))
        .map_err(|_| RejoinError::NoAddress(server.short()))
}

fn volume_ids(known: &[&Known]) -> Vec<VolumeId> {
    let ids = known.iter().map(|one| one.token.volume);
    ids.take(VOLUMES_LIMIT).collect()
}

/// What the key server gave: our name, the certificates, its CA.
type Taken = (ClientName, JoinAnswer, CertificateDer<'static>);

/// Asks until a person has decided.
async fn ask(
    server: ServerId,
    addresses: &[Address],
    request: &RejoinRequest,
    time: CertificateTime,
) -> Result<Taken, RejoinError> {
    let join = Join::new(server, time)?;
    let begin = Instant::now();
    let mut shown = None;
    loop {
        let pause = match ask_once(&join, server, addresses, request).await {
            Ok((answer, ca)) => match answer.outcome {
                RejoinOutcome::Joined {
                    client,
                    boot_certificate,
                    host_certificate,
                } => {
                    let certificates = JoinAnswer {
                        version: Version::default(),
                        boot_certificate,
                        host_certificate,
                    };
                    return Ok((client, certificates, ca));
                }
                RejoinOutcome::Denied { reason } => {
                    return Err(RejoinError::Denied(printable(reason.as_str())));
                }
                RejoinOutcome::Pending {
                    id,
                    code,
                    retry_after,
                } => {
                    let words = (printable(id.as_str()), printable(code.as_str()));
                    if shown.as_ref() != Some(&words) {
                        say_code(server, &words.0, &words.1);
                        shown = Some(words);
                    }
                    Duration::from_secs(retry_after.into())
                }
            },
            // Once it has asked, a key server that is away for a while is waited for.
            Err(RejoinError::Unreachable { tries, .. }) if shown.is_some() => {
                log::debug!("{}", lines(&tries));
                PAUSES[1]
            }
            Err(error) => return Err(error),
        };
        if begin.elapsed() >= LIMIT {
            return Err(RejoinError::Nobody);
        }
        sleep(pause.clamp(PAUSES[0], PAUSES[1])).await;
    }
}

async fn ask_once(
    join: &Join,
    server: ServerId,
    addresses: &[Address],
    request: &RejoinRequest,
) -> Result<(RejoinAnswer, CertificateDer<'static>), RejoinError> {
    let mut tries = Vec::new();
    for address in addresses {
        match join.rejoin(address, request).await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.fault.is_network_fault() => tries.push(error),
            Err(error) if error.fault.is_for_strangers() => {
                return Err(RejoinError::NotTaken(server.short()));
            }
            Err(error) => return Err(RejoinError::Refused(error)),
        }
    }
    let server = server.short();
    Err(RejoinError::Unreachable { server, tries })
}

fn say_code(server: ServerId, id: &str, code: &str) {
    log::info!(
        "waiting for a person at key server {}: request {id}, code {code}\n\
         there: latchkeyd approve --rejoin {id} {code}",
        server.short()
    );
}

/// Gives the finished folder its name, in the place of what is left of the one from before.
fn replace_dir(files: &Files, server: ServerId) -> Result<(), RejoinError> {
    let dir = files.server_dir(&server);
    let old = dir.with_extension("replaced");
    files::remove_dir(&old)?;
    if dir.exists() {
        files::rename(&dir, &old)?;
    }
    files::rename(&files.joining_dir(&server), &dir)?;
    Ok(files::remove_dir(&old)?)
}

/// Fetches each volume's share back with the new host key and opens its envelope with it; how many that failed for.
fn prove(files: &Files, server: ServerId, known: &[&Known]) -> Result<usize, RejoinError> {
    let joined = ServerFiles::read(files.server_dir(&server))?;
    let key_server = KeyServer::open(&joined, Role::Host)?;
    let mut failed = 0;
    for one in known {
        if one.opened_in == OpenedIn::RunningSystem {
            // The key server proves such a volume only while it is being bound; its policy decides whenever it is opened.
            log::info!(
                "'{}' is opened in the running system: systemctl restart '{}' shows whether it opens",
                one.name,
                unit_name::ours(&one.name)
            );
            continue;
        }
        if one.opened_in.key(files.root()) == OpenedBy::ExposedBootKey {
            log::info!(
                "root is not encrypted, so no key server proves '{}' any more: the next boot shows whether it opens",
                one.name
            );
            continue;
        }
        let token = &one.token;
        let Some(envelope) = token.envelope_of(server) else {
            continue;
        };
        let opened = shares::prove(&key_server, token.volume, envelope.generation)
            .map_err(|error| chain(&error))
            .and_then(|share| {
                open_envelope(token, envelope, share, envelope.generation)
                    .map_err(|error| chain(&error))
            });
        match opened {
            Ok(_) => log::info!("the envelope of '{}' opens", one.name),
            Err(error) => {
                log::warn!("the envelope of '{}' does not open: {error}", one.name);
                failed += 1;
            }
        }
    }
    Ok(failed)
}
