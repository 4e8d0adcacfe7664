//! `latchkey bind`: makes a key server able to open a volume that a person can open already.
//!
//! The order is the safety (DESIGN §8): the passphrase is proved, every key server is asked, the header is backed
//! up, and only then a keyslot and a token are added. Nothing counts as bound before each key server has given its
//! share back and that share, with the envelope as it stands in the header, has opened the keyslot. A failure takes
//! back what this run did; after an interruption the next run does, from the journal. From then on nothing is taken back: if
//! the initramfs cannot be rebuilt or the unit not enabled, or the run is interrupted there, the next run does that. No keyslot
//! but the one made here is ever changed.

mod checks;
pub(super) mod enrol;
mod error;
pub(super) mod report;

use std::path::{Path, PathBuf};

use latchkey_protocol::VolumeId;
use latchkey_protocol::envelope::{ENVELOPES_LIMIT, MachineSecret, Token, TokenKind};
use latchkey_protocol::wire::{OpenedBy, Version};
use latchkey_secret::SecretBytes;

use super::crypttab_line;
use super::format::{self, NewVolume};
use super::initramfs::{self, Framework, Rebuild};
use super::journal::Journal;
use super::list::Format;
use super::service::{self, Enabled};
use super::shares::{self, Registered};
use super::target::{NewLine, OpenedWith, Target, known_of_root};
use crate::failure::chain;
use crate::files::{Files, Role};
use crate::network;
use crate::server::{KeyServer, block_on};
use crate::unit_name;
use crate::volume::binding;
use crate::volume::crypttab::Entry;
use crate::volume::envelopes;
use crate::volume::open;
use crate::volume::opened_in::OpenedIn;
use crate::volume::stack;
use checks::{
    check_mounts, check_unbound, warn_if_exposed, warn_of_mounts, warn_of_root, warn_unless_opened,
};
use enrol::{Enrolment, Given};
use report::Report;

pub use error::BindError;

/// What `latchkey bind` is told.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// A device, an image file, a mapping or a mount point.
    pub device: PathBuf,
    /// Which of several crypttab lines, or the name in a new one.
    pub name: Option<String>,
    /// The options of the crypttab line that is to be written.
    pub options: Option<String>,
    /// Where the passphrase lies, if nobody is to be asked.
    pub key_file: Option<PathBuf>,
    /// Where the volume key of a plain volume lies, if it has no passphrase.
    pub volume_key_file: Option<PathBuf>,
    /// To make a new volume on the device first.
    pub format: Option<NewVolume>,
    /// How to say what was done.
    pub report: Format,
    /// Whether to rebuild the initramfs.
    pub rebuild: Rebuild,
}

impl Arguments {
    /// Whether this run does all that is left to do for a bound volume.
    fn finishes(&self, opened_in: OpenedIn) -> bool {
        opened_in == OpenedIn::RunningSystem || self.rebuild == Rebuild::Yes
    }
}

/// Binds a volume to every key server that this machine has joined.
///
/// # Errors
/// A variant of [`BindError`].
pub fn run(files: &Files, arguments: &Arguments) -> Result<(), BindError> {
    let _lock = files.lock()?;
    let new = NewLine {
        name: arguments.name.clone(),
        options: arguments.options.clone(),
        opened_with: match arguments.volume_key_file {
            Some(_) => OpenedWith::VolumeKey,
            None => OpenedWith::Passphrase,
        },
        root_is_encrypted: known_of_root(stack::is_encrypted(files.root(), Path::new("/"))),
        framework: Framework::of_system(files),
    };
    let Some(volume) = &arguments.format else {
        return bind(files, arguments, &new, None);
    };
    let passphrase = new_volume(files, arguments, volume, &new)?;
    bind(files, arguments, &new, Some(passphrase))
        .map_err(|error| error.of_new_volume(&arguments.device))
}

/// Binds the volume, which `passphrase` opens if it is new.
fn bind(
    files: &Files,
    arguments: &Arguments,
    new: &NewLine,
    passphrase: Option<SecretBytes>,
) -> Result<(), BindError> {
    let (mut target, mut line) = Target::find_or_new(files, &arguments.device, new)?;
    target.entry(files, arguments.name.as_deref())?;
    let servers = joined(files)?;
    if repair(files, &target, &servers)? {
        (target, line) = Target::find_or_new(files, &arguments.device, new)?;
    }
    let entry = target.entry(files, arguments.name.as_deref())?;
    let opened_in = OpenedIn::of(&entry, files.root());
    check_mounts(files, &target.device, &entry, new.framework)?;
    match opened_in {
        OpenedIn::Initramfs => warn_unless_opened(files, &entry, new.framework),
        OpenedIn::RunningSystem => {
            warn_of_mounts(files, &entry)?;
            if line.is_some() {
                warn_of_root(files);
            }
        }
    }
    let opened_by = opened_in.key(files.root());
    if let Err(error) = check_unbound(files, &target, &servers) {
        let left = match error {
            BindError::AlreadyBound { volume, .. } => {
                Report::read(files, &target)?.filter(|left| left.volume == volume)
            }
            _ => None,
        };
        // The key servers were told who asks.
        let report =
            left.filter(|left| left.opened_by == opened_by && arguments.finishes(opened_in));
        let report = report.ok_or(error)?;
        log::info!("an earlier run has bound it: doing what was left to do");
        return finish(files, arguments, &target, &entry, &report);
    }
    let given = Given {
        key_file: arguments.key_file.as_deref(),
        volume_key_file: arguments.volume_key_file.as_deref(),
        passphrase,
    };
    let enrolment = Enrolment::prepare(&target, given)?;
    if new.opened_with == OpenedWith::VolumeKey && !entry.options.nofail {
        return Err(BindError::NoFail(entry.name));
    }

    warn_if_exposed(opened_by, &entry);
    let mut journal = Journal::new(&target);
    let bound = Binder {
        files,
        target: &target,
        entry: &entry,
        servers: &servers,
        opened_by,
        line,
    }
    .bind(enrolment, &mut journal);
    let report = match bound {
        Ok(report) => report,
        Err(error) => {
            take_back(files, &target, &servers, &journal);
            return Err(error);
        }
    };
    report.save(files, &target)?;
    journal.remove(files)?;
    summarise(&entry, &report);
    finish(files, arguments, &target, &entry, &report)
}

/// The volume is bound: tells whatever opens it, and then whoever asked for it. What fails is left to the next run.
fn finish(
    files: &Files,
    arguments: &Arguments,
    target: &Target,
    entry: &Entry,
    report: &Report,
) -> Result<(), BindError> {
    record_network(files);
    service::restart(files);
    let opened_in = OpenedIn::of(entry, files.root());
    let done = match opened_in {
        OpenedIn::Initramfs => rebuild(files, arguments, target),
        OpenedIn::RunningSystem => enable(files, target, entry),
    };
    said(arguments.report, report)?;
    done?;
    if arguments.finishes(opened_in) {
        report::remove(files, target)?; // else the images stay older than it is
    }
    Ok(())
}

/// The last step where the initramfs opens the volume.
fn rebuild(files: &Files, arguments: &Arguments, target: &Target) -> Result<(), BindError> {
    let rebuilt = initramfs::rebuild(files, arguments.rebuild);
    rebuilt.map_err(|source| BindError::Rebuild {
        device: target.device.clone(),
        source,
    })?;
    log::info!(
        "the next boot asks the key server; the passphrase prompt stands beside it all the while"
    );
    Ok(())
}

/// The last step where the running system opens it.
fn enable(files: &Files, target: &Target, entry: &Entry) -> Result<(), BindError> {
    log::info!(
        "it is opened in the running system, so the initramfs need not know of it and is not rebuilt"
    );
    let unit = unit_name::ours(&entry.name);
    if entry.options.noauto {
        log::info!("'noauto': nothing opens it at boot, but 'systemctl start {unit}' does");
        service::reload(files);
        return Ok(());
    }
    match service::enable(files, &entry.name) {
        Enabled::Yes => Ok(()),
        Enabled::No => Err(BindError::NotEnabled {
            device: target.device.clone(),
            unit,
        }),
    }
}

/// The log has told people.
fn said(format: Format, report: &Report) -> Result<(), BindError> {
    match format {
        Format::Text => Ok(()),
        Format::Json => report.print().map_err(BindError::Report),
    }
}

/// A volume where there is none, once it is clear that it can be bound, as far as that can be told before: what was made
/// is not empty any more, so the same command would be refused.
fn new_volume(
    files: &Files,
    arguments: &Arguments,
    volume: &NewVolume,
    line: &NewLine,
) -> Result<SecretBytes, BindError> {
    let servers = joined(files)?;
    let entry = Target::check_new(files, &arguments.device, line)?;
    check_mounts(files, &arguments.device, &entry, line.framework)?;
    for server in &servers {
        shares::reach(server).map_err(|source| BindError::Away {
            server: server.settings.id.short(),
            device: arguments.device.clone(),
            source: Box::new(source),
        })?;
    }
    let name = arguments.name.as_deref();
    format::run(
        &arguments.device,
        volume,
        name,
        arguments.key_file.as_deref(),
    )
    .map_err(|error| BindError::Format(Box::new(error)))
}

/// The key servers that this machine has joined, with its host identities.
///
/// # Errors
/// `NotJoined`, `TooManyServers`, `Files`, `KeyServer`.
fn joined(files: &Files) -> Result<Vec<KeyServer>, BindError> {
    let joined = files.all_servers()?;
    if joined.is_empty() {
        return Err(BindError::NotJoined);
    }
    if joined.len() > ENVELOPES_LIMIT {
        return Err(BindError::TooManyServers(joined.len()));
    }
    let open = |files| KeyServer::open(files, Role::Host);
    Ok(joined.iter().map(open).collect::<Result<_, _>>()?)
}

/// Takes back what an interrupted run left; whether there was anything.
fn repair(files: &Files, target: &Target, servers: &[KeyServer]) -> Result<bool, BindError> {
    let Some(journal) = Journal::load(files, target)? else {
        return Ok(false);
    };
    log::info!("an earlier run was interrupted: clearing up what it left");
    journal
        .undo(files, target, servers)
        .map_err(BindError::Repair)?;
    Ok(true)
}

/// What a binding is made of.
struct Binder<'a> {
    files: &'a Files,
    target: &'a Target,
    entry: &'a Entry,
    servers: &'a [KeyServer],
    /// Which key will ask for it.
    opened_by: OpenedBy,
    /// The line that crypttab lacks.
    line: Option<String>,
}

impl Binder<'_> {
    /// Everything that changes something, each step written down before it is done.
    fn bind(&self, enrolment: Enrolment, journal: &mut Journal) -> Result<Report, BindError> {
        let Self { files, target, .. } = *self;
        let volume = VolumeId::random().map_err(BindError::Random)?;
        journal.volume = Some(volume);
        let label = format!("{} {}", self.entry.name, enrolment.uuid());
        let mut registered = Vec::new();
        for server in self.servers {
            journal.servers.push(server.settings.id);
            journal.save(files)?;
            registered.push(self.register(server, volume, &label, journal)?);
        }

        let enrolled = enrolment.enrol(files, target, journal)?;
        let keyslot = enrolled.bound.keyslot();
        let mut token = Token {
            kind: TokenKind::Latchkey,
            keyslots: keyslot.iter().map(u32::to_string).collect(),
            version: Version::default(),
            volume,
            uuid: enrolled.uuid,
            bound: enrolled.bound,
            envelopes: Vec::new(),
        };
        shares::seal(&mut token, &registered, &enrolled.secret).map_err(BindError::Seal)?;
        drop(enrolled.secret);
        if target.luks2_header().is_none() {
            journal.envelope = Some(envelopes::path(files, &target.name));
            journal.save(files)?;
        }
        binding::add(files, &target.name, &target.place, &token)?;
        for server in self.servers {
            prove(files, target, volume, server)?;
        }
        let known = |(server, one): (&KeyServer, Registered)| report::Server {
            id: server.settings.id,
            client: server.settings.client.clone(),
            policy: one.policy,
        };
        let servers = self.servers.iter().zip(registered).map(known).collect();
        let mut report = Report::of(target, &token, self.opened_by, servers);
        report.header_backup = journal.backup.clone();
        if let Some(line) = &self.line {
            journal.crypttab_line = Some(line.clone());
            journal.save(files)?;
            if let Some(backup) = crypttab_line::add(files, line)? {
                log::info!("/etc/crypttab as it was is '{}'", backup.display());
            }
            report.crypttab_line = Some(line.clone());
        }
        Ok(report)
    }

    fn register(
        &self,
        server: &KeyServer,
        volume: VolumeId,
        label: &str,
        journal: &mut Journal,
    ) -> Result<Registered, BindError> {
        let id = server.settings.id;
        log::info!("registering the volume at key server {}", id.short());
        shares::register(server, volume, label, self.opened_by).map_err(|source| {
            if source.is_without_effect() {
                journal.servers.retain(|other| *other != id);
            }
            BindError::Share {
                server: id.short(),
                source: Box::new(source),
            }
        })
    }
}

/// Proves the binding as it was written.
fn prove(
    files: &Files,
    target: &Target,
    volume: VolumeId,
    server: &KeyServer,
) -> Result<(), BindError> {
    let token = binding::find(files, &target.name, &target.place)?
        .into_iter()
        .filter_map(|found| found.token.ok())
        .find(|token| token.volume == volume);
    let token = token.ok_or_else(|| BindError::NoEnvelope(server.settings.id.short()))?;
    prove_token(target, &token, server)
}

/// Does what the boot will do, up to the mapping: the envelope of `token`, the share as the key server gives it back, the
/// volume through the same gate.
pub(super) fn prove_token(
    target: &Target,
    token: &Token,
    server: &KeyServer,
) -> Result<(), BindError> {
    let id = server.settings.id;
    log::info!("proving that key server {} opens the volume", id.short());
    let secret = machine_secret(token, server)?;
    open::check_automatically(&target.place, token, &secret).map_err(BindError::Open)
}

/// What the envelope of `token` holds, by the share that the key server gives back.
pub(super) fn machine_secret(
    token: &Token,
    server: &KeyServer,
) -> Result<MachineSecret, BindError> {
    let id = server.settings.id;
    let envelope = token.envelope_of(id);
    let envelope = envelope.ok_or_else(|| BindError::NoEnvelope(id.short()))?;
    let volume = token.volume;
    let share =
        shares::prove(server, volume, envelope.generation).map_err(|source| BindError::Proof {
            server: id.short(),
            source: Box::new(source),
        })?;
    open::open_envelope(token, envelope, share, envelope.generation).map_err(|source| {
        BindError::Envelope {
            server: id.short(),
            source,
        }
    })
}

/// After a failure.
fn take_back(files: &Files, target: &Target, servers: &[KeyServer], journal: &Journal) {
    match journal.undo(files, target, servers) {
        Ok(()) => log::info!(
            "what this run had done to bind '{}' was taken back",
            target.device.display()
        ),
        Err(error) => log::error!(
            "what this run had done could not all be taken back: {}\n\
             your passphrases work as before; run this command again to clear up",
            chain(&error)
        ),
    }
}

/// The boot replays it. Without it the boot uses DHCP.
fn record_network(files: &Files) {
    // A rescue system's network is not the one that this system boots with.
    if !service::is_of_running_system(files) {
        log::info!(
            "this is not the running system, as far as can be told, so its network was not recorded; when it runs, \
             latchkey-network.service does that, and the image must be rebuilt then"
        );
        return;
    }
    match block_on(network::record(files.root(), &[])) {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => log::warn!(
            "the network configuration could not be recorded, the boot will use DHCP: {}",
            chain(&error)
        ),
        Err(error) => log::warn!("the network configuration could not be recorded: {error}"),
    }
}

fn summarise(entry: &Entry, report: &Report) {
    let device = report.device.display();
    log::info!(
        "bound '{}' ({device}, {}) as volume {}",
        entry.name,
        report.kind,
        report.volume
    );
    match report.keyslot {
        Some(slot) => log::info!(
            "keyslot {slot} holds 256 random bits that no one need know; the other keyslots are unchanged"
        ),
        None => log::info!(
            "nothing on the device was changed; what opens it is sealed in /etc/latchkey/envelopes"
        ),
    }
    if let Some(backup) = &report.header_backup {
        log::info!("the header from before is in '{}'", backup.display());
    }
    if let Some(line) = &report.crypttab_line {
        log::info!("this line was added to /etc/crypttab:\n{line}");
        if entry.options.nofail {
            log::info!("'nofail': the boot goes on without this volume if nothing opens it");
        }
    }
    for one in &report.servers {
        log::info!(
            "key server {} knows this machine as '{}'; policy: {}",
            one.id.short(),
            one.client,
            one.policy
        );
    }
    log::info!("to take the binding away again: latchkey unbind {device}");
}
