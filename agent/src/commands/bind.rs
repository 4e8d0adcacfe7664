//! `latchkey bind`: makes a key server able to open a volume that a person can open already.
//!
//! The order is the safety (DESIGN §8): the passphrase is proved, every key server is asked, the header is backed
//! up, and only then a keyslot and a token are added. Nothing counts as bound before each key server has given its
//! share back and that share, with the envelope as it stands in the header, has opened the keyslot. A failure takes
//! back what this run did; after an interruption the next run does, from the journal. No keyslot but the one made
//! here is ever changed.

use std::path::{Path, PathBuf};

use latchkey_protocol::envelope::{
    Bound, ENVELOPES_LIMIT, EnvelopeError, Released, Token, TokenKind,
};
use latchkey_protocol::wire::Version;
use latchkey_protocol::{MachineSecret, VolumeId};
use latchkey_secret::{SecretBytes, SecretError};

use super::initramfs::{self, Rebuild, RebuildError};
use super::journal::{Journal, JournalledKeyslot, UndoError};
use super::prompt::{self, PromptError};
use super::service;
use super::shares::{self, Registered, ShareError};
use super::target::{Target, TargetError};
use crate::date;
use crate::failure::chain;
use crate::files::{Files, FilesError, Role};
use crate::network::record;
use crate::server::{KeyServer, KeyServerError, block_on};
use crate::volume::backup::{self, BackupError};
use crate::volume::crypttab::Entry;
use crate::volume::header::{HeaderCopy, HeaderError};
use crate::volume::keyslots::{self, KeyslotError};
use crate::volume::open::{self, OpenError};
use crate::volume::stack;
use crate::volume::tokens::{self, TokenError};
use crate::volume::typed::PassphraseError;

/// How often a person may mistype.
const TRIES: u32 = 3;

/// What `latchkey bind` is told.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// A device, an image file, a mapping or a mount point.
    pub device: PathBuf,
    /// Which of several crypttab lines.
    pub name: Option<String>,
    /// Where the passphrase lies, if nobody is to be asked.
    pub key_file: Option<PathBuf>,
    /// Whether to rebuild the initramfs.
    pub rebuild: Rebuild,
}

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
    /// There is a token that does not help.
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
    /// A key server does not take part.
    #[error("key server {server} did not give a share; nothing was changed on '{}'", .device.display())]
    Share {
        /// Its short id.
        server: String,
        /// The device.
        device: PathBuf,
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
    /// The proof: the envelope in the header does not open.
    #[error("the proof failed: the envelope for key server {server} does not open")]
    Envelope {
        /// Its short id.
        server: String,
        /// Why.
        #[source]
        source: EnvelopeError,
    },
    /// The proof: the header does not hold what was written.
    #[error("the proof failed: the header has no envelope for key server {0}")]
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

/// A finished binding.
struct Binding {
    keyslot: u32,
    volume: VolumeId,
    backup: PathBuf,
    /// Short id, our name, policy; per key server.
    servers: Vec<(String, String, String)>,
}

/// Binds a volume to every key server that this machine has joined.
///
/// # Errors
/// A variant of [`BindError`].
pub fn run(files: &Files, arguments: &Arguments) -> Result<(), BindError> {
    let _lock = files.lock()?;
    let target = Target::find(&arguments.device)?;
    let entry = target.entry(files, arguments.name.as_deref())?;
    warn_unless_opened_early(&entry);
    let servers = joined(files)?;
    repair(files, &target, &servers)?;
    check_unbound(&target, &servers)?;
    keyslots::check_fit(&target.device)?;
    keyslots::free_keyslot(&target.device)?;
    tokens::free_id(&target.device)?;
    let passphrase = proved_passphrase(&target, &entry, arguments.key_file.as_deref())?;

    let mut journal = Journal::new(&target);
    let bound = bind(files, &target, &entry, &servers, &passphrase, &mut journal);
    drop(passphrase);
    let binding = match bound {
        Ok(binding) => binding,
        Err(error) => {
            take_back(files, &target, &servers, &journal);
            return Err(error);
        }
    };
    journal.remove(files)?;
    record_network(files);
    summarise(&target, &entry, &binding);
    let rebuilt = initramfs::rebuild(files, arguments.rebuild);
    service::restart(files);
    rebuilt.map_err(|source| BindError::Rebuild {
        device: target.device.clone(),
        source,
    })?;
    log::info!(
        "the next boot asks the key server; the passphrase prompt stands beside it all the while"
    );
    Ok(())
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

/// The agent opens what the framework would open in the initramfs: root, and what asks for it.
fn warn_unless_opened_early(entry: &Entry) {
    let options = &entry.options;
    let root = stack::root_lies_on(Path::new("/"), &[&entry.name]);
    if !options.initramfs && !options.initrd_attach && matches!(root, Ok(false)) {
        log::warn!(
            "root does not lie on '{0}': unless it is needed for resume or /usr, nothing opens it in the initramfs\n\
             the option 'initramfs' for '{0}' in crypttab changes that",
            entry.name
        );
    }
}

/// Takes back what an interrupted run left.
fn repair(files: &Files, target: &Target, servers: &[KeyServer]) -> Result<(), BindError> {
    let Some(journal) = Journal::load(files, target)? else {
        return Ok(());
    };
    log::info!("an earlier run was interrupted: clearing up what it left");
    journal
        .undo(files, target, servers)
        .map_err(BindError::Repair)
}

fn check_unbound(target: &Target, servers: &[KeyServer]) -> Result<(), BindError> {
    let device = target.device.clone();
    let Some(found) = tokens::find(&device)?.into_iter().next() else {
        return Ok(());
    };
    let token = match found.token {
        Ok(token) => token,
        Err(error) => {
            let reason = error.to_string();
            return Err(BindError::BrokenToken { device, reason });
        }
    };
    let Bound::Luks2(bound) = &token.bound;
    let keyslots = keyslots::list(&device)?;
    if !keyslots.iter().any(|one| one.slot == bound.keyslot) {
        let reason = format!("its keyslot {} is gone", bound.keyslot);
        return Err(BindError::BrokenToken { device, reason });
    }
    let has_envelope = |server: &&KeyServer| {
        token
            .envelopes
            .iter()
            .any(|e| e.server == server.settings.id)
    };
    let missing: Vec<String> = servers
        .iter()
        .filter(|server| !has_envelope(server))
        .map(|server| format!("key server {}", server.settings.id.short()))
        .collect();
    if missing.is_empty() {
        let volume = token.volume;
        Err(BindError::AlreadyBound { device, volume })
    } else {
        let servers = missing.join(", ");
        Err(BindError::PartlyBound { device, servers })
    }
}

/// A passphrase that was proved to open a keyslot. There is none of ours at this point.
fn proved_passphrase(
    target: &Target,
    entry: &Entry,
    key_file: Option<&Path>,
) -> Result<SecretBytes, BindError> {
    let opens = |passphrase: &SecretBytes| match keyslots::prove_other_keyslot(
        &target.device,
        passphrase,
        None,
    ) {
        Ok(_) => Ok(true),
        Err(KeyslotError::Passphrase(PassphraseError::WrongPassphrase(_))) => Ok(false),
        Err(error) => Err(error),
    };
    if let Some(path) = key_file {
        let passphrase = prompt::read_key_file(path)?;
        return if opens(&passphrase)? {
            Ok(passphrase)
        } else {
            Err(BindError::KeyFile(target.device.clone()))
        };
    }
    let question = format!(
        "Passphrase for '{}' ({}): ",
        entry.name,
        target.device.display()
    );
    for _ in 0..TRIES {
        let passphrase = prompt::ask_hidden(&question)?;
        if opens(&passphrase)? {
            return Ok(passphrase);
        }
        log::warn!("no keyslot opens with this passphrase");
    }
    Err(BindError::Passphrase(target.device.clone()))
}

/// Everything that changes something, each step written down before it is done.
fn bind(
    files: &Files,
    target: &Target,
    entry: &Entry,
    servers: &[KeyServer],
    passphrase: &SecretBytes,
    journal: &mut Journal,
) -> Result<Binding, BindError> {
    let device = &target.device;
    let volume = VolumeId::random().map_err(BindError::Random)?;
    journal.volume = Some(volume);
    let label = format!("{} {}", entry.name, target.uuid);
    let mut registered = Vec::new();
    for server in servers {
        journal.servers.push(server.settings.id);
        journal.save(files)?;
        registered.push(register(target, server, volume, &label, journal)?);
    }

    let backup = backup_path(files, target);
    journal.backup = Some(backup.clone());
    journal.save(files)?;
    backup::backup_header(device, &backup)?;

    let slot = keyslots::free_keyslot(device)?;
    journal.keyslots = vec![JournalledKeyslot { slot, salt: None }];
    journal.save(files)?;
    let secret = MachineSecret::random()?;
    keyslots::add_keyslot(device, slot, passphrase, &secret)?;
    journal.keyslots = vec![JournalledKeyslot::of(
        HeaderCopy::read(device)?.json(),
        slot,
    )];
    journal.save(files)?;

    let facts = keyslots::bound_facts(device, slot, &secret)?;
    let mut token = Token {
        kind: TokenKind::Latchkey,
        keyslots: vec![slot.to_string()],
        version: Version::default(),
        volume,
        uuid: facts.uuid,
        bound: Bound::Luks2(facts.bound),
        envelopes: Vec::new(),
    };
    for one in &registered {
        let released = Released {
            share: &one.share,
            volume,
            generation: one.generation,
        };
        let envelope = token.seal(one.server, released, &secret);
        token.envelopes.push(envelope.map_err(BindError::Seal)?);
    }
    drop(secret);
    tokens::add(device, &token)?;
    for server in servers {
        prove(device, volume, server)?;
    }
    let summary = |(server, one): (&KeyServer, Registered)| {
        let settings = &server.settings;
        (settings.id.short(), settings.client.to_string(), one.policy)
    };
    Ok(Binding {
        keyslot: slot,
        volume,
        backup,
        servers: servers.iter().zip(registered).map(summary).collect(),
    })
}

fn register(
    target: &Target,
    server: &KeyServer,
    volume: VolumeId,
    label: &str,
    journal: &mut Journal,
) -> Result<Registered, BindError> {
    let id = server.settings.id;
    log::info!("registering the volume at key server {}", id.short());
    shares::register(server, volume, label).map_err(|source| {
        if source.is_without_effect() {
            journal.servers.retain(|other| *other != id);
        }
        BindError::Share {
            server: id.short(),
            device: target.device.clone(),
            source: Box::new(source),
        }
    })
}

/// Does what the boot will do, up to the mapping: the envelope as the header holds it, the share as the key server
/// gives it back, the keyslot through the same gate.
fn prove(device: &Path, volume: VolumeId, server: &KeyServer) -> Result<(), BindError> {
    let id = server.settings.id;
    log::info!("proving that key server {} opens the volume", id.short());
    let token = tokens::find(device)?
        .into_iter()
        .filter_map(|found| found.token.ok())
        .find(|token| token.volume == volume);
    let envelope = token.as_ref().and_then(|token| {
        token
            .envelopes
            .iter()
            .find(|envelope| envelope.server == id)
    });
    let (Some(token), Some(envelope)) = (&token, envelope) else {
        return Err(BindError::NoEnvelope(id.short()));
    };
    let share =
        shares::prove(server, volume, envelope.generation).map_err(|source| BindError::Proof {
            server: id.short(),
            source: Box::new(source),
        })?;
    let released = Released {
        share: &share,
        volume,
        generation: envelope.generation,
    };
    let secret = token
        .open(envelope, released)
        .map_err(|source| BindError::Envelope {
            server: id.short(),
            source,
        })?;
    open::check_automatically(device, token, &secret).map_err(BindError::Open)
}

/// A name that no other backup has.
fn backup_path(files: &Files, target: &Target) -> PathBuf {
    let name = format!("header-{}-{}", target.uuid, date::stamp(date::now()));
    let numbered = (2..).map(|number| format!("{name}-{number}.img"));
    std::iter::once(format!("{name}.img"))
        .chain(numbered)
        .map(|name| files.state().join(name))
        .find(|path| !path.exists())
        .expect("there are more numbers than files")
}

/// After a failure.
fn take_back(files: &Files, target: &Target, servers: &[KeyServer], journal: &Journal) {
    match journal.undo(files, target, servers) {
        Ok(()) => log::info!(
            "what this run had done was taken back; '{}' is as it was",
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
    match block_on(record::record(files.root(), &[])) {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => log::warn!(
            "the network configuration could not be recorded, the boot will use DHCP: {}",
            chain(&error)
        ),
        Err(error) => log::warn!("the network configuration could not be recorded: {error}"),
    }
}

fn summarise(target: &Target, entry: &Entry, binding: &Binding) {
    let device = target.device.display();
    log::info!(
        "bound '{}' ({device}) as volume {}",
        entry.name,
        binding.volume
    );
    log::info!(
        "keyslot {} holds 256 random bits that no one need know; the other keyslots are unchanged",
        binding.keyslot
    );
    log::info!(
        "the header from before is in '{}'",
        binding.backup.display()
    );
    for (server, client, policy) in &binding.servers {
        log::info!("key server {server} knows this machine as '{client}'; policy: {policy}");
    }
    log::info!("to undo all of this: latchkey unbind {device}");
}
