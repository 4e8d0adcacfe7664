//! `latchkey rotate`: a new machine secret and new shares for a volume that is bound, so that no key server gives any more what a
//! copy of the old header needs.
//!
//! As with `bind`, the order is the safety: the new shares lie at the key servers beside the old ones, the new keyslot beside the
//! old one, and what they make together is proved, before the token changes, in one step. Old keyslot and old shares go last:
//! at once where the binding lies in the header on the disk alone, and where images hold a copy of it, when no image in
//! /boot is older. What is unfinished stands in a journal (`rotate/journal.rs`).

mod error;
pub(super) mod journal;

use std::path::{Path, PathBuf};

use latchkey_protocol::ServerId;
use latchkey_protocol::envelope::{Bound, MachineSecret, PlainSecret, Token};
use latchkey_secret::SecretBytes;

use super::bind::{self, enrol};
use super::initramfs::{self, Rebuild};
use super::journal::Journal;
use super::prompt;
use super::shares::{self, Registered};
use super::target::Target;
use crate::failure::chain;
use crate::files::{Files, Role};
use crate::server::KeyServer;
use crate::volume::binding::{self, At, Found};
use crate::volume::envelopes;
use crate::volume::keyslots;
use crate::volume::open;
use crate::volume::place::{HeaderPlace, Kind};
use crate::volume::typed;
pub use error::RotateError;
use journal::{Rotation, Stage};

/// What `latchkey rotate` is told.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// A device, an image file, a mapping or a mount point.
    pub device: PathBuf,
    /// Where a passphrase lies, if no key server is to be asked for what opens the volume now.
    pub key_file: Option<PathBuf>,
    /// Whether the old ones go although an image may still need them.
    pub finish: bool,
    /// Whether to rebuild the initramfs.
    pub rebuild: Rebuild,
}

/// Replaces machine secret and shares, or goes on with what an earlier run began.
///
/// # Errors
/// A variant of [`RotateError`].
pub fn run(files: &Files, arguments: &Arguments) -> Result<(), RotateError> {
    let _lock = files.lock()?;
    let target = Target::find(files, &arguments.device, None)?;
    target.check_only(files)?;
    if Journal::load(files, &target)?.is_some() {
        return Err(RotateError::Interrupted(target.device));
    }
    let (at, token) = bound(files, &target)?;
    let (servers, missing) = servers_of(files, &token)?;
    let volume = Rotating {
        files,
        target: &target,
        servers: &servers,
    };
    if let Some(rotation) = Rotation::load(files, &target)? {
        if rotation.stage(&token) == Stage::Replaced {
            return volume.go_on(&rotation, arguments.finish, Rebuild::No);
        }
        log::info!("an earlier run was interrupted: clearing up what it left");
        rotation.undo(files, &target, &servers)?;
    }
    if arguments.finish {
        return Err(RotateError::NothingToFinish(target.device));
    }
    if let Some(server) = missing {
        return Err(RotateError::NotJoined {
            device: target.device,
            server: server.short(),
        });
    }
    if let Some(header) = target.place.luks_header() {
        keyslots::free_keyslot(header)?; // without one no key server need make a share
    }
    let opener = Opener::find(&target, &token, &servers, arguments.key_file.as_deref())?;
    let proved = matches!(opener, Opener::Secret(_));
    let mut rotation = Rotation::new(&target, &token, proved)?;
    if let Err(error) = volume.replace(&at, &token, opener, &mut rotation) {
        take_back(files, &target, &servers, &rotation);
        return Err(error);
    }
    log::info!(
        "'{}' has a new machine secret; its passphrases are what they were",
        target.device.display()
    );
    if volume.lies_in_images() {
        initramfs::rebuild(files, arguments.rebuild).map_err(|source| RotateError::Rebuild {
            device: target.device.clone(),
            source,
        })?;
    }
    volume.go_on(&rotation, arguments.finish, arguments.rebuild)
}

/// The one binding of a volume.
fn bound(files: &Files, target: &Target) -> Result<(At, Token), RotateError> {
    let mut found = binding::find(files, &target.name, &target.place)?.into_iter();
    match (found.next(), found.next()) {
        (None, _) => {
            target.check_renamed(files)?;
            Err(RotateError::NotBound(target.device.clone()))
        }
        (
            Some(Found {
                at,
                token: Ok(token),
            }),
            None,
        ) => Ok((at, token)),
        _ => Err(RotateError::Broken(target.device.clone())),
    }
}

/// The key servers of its envelopes, and one that this machine has not joined.
fn servers_of(
    files: &Files,
    token: &Token,
) -> Result<(Vec<KeyServer>, Option<ServerId>), RotateError> {
    let joined = files.all_servers()?;
    let (mut servers, mut missing) = (Vec::new(), None);
    for envelope in &token.envelopes {
        match joined.iter().find(|one| one.settings.id == envelope.server) {
            Some(files) => servers.push(KeyServer::open(files, Role::Host)?),
            None => missing = Some(envelope.server),
        }
    }
    Ok((servers, missing))
}

/// What opens the volume now.
enum Opener {
    /// The machine secret, by the share of a key server.
    Secret(MachineSecret),
    /// A passphrase; of a plain volume it is the machine secret.
    Passphrase(SecretBytes),
}

impl Opener {
    /// A key server's share if one gives it, else what a person types.
    fn find(
        target: &Target,
        token: &Token,
        servers: &[KeyServer],
        key_file: Option<&Path>,
    ) -> Result<Self, RotateError> {
        if let Some(path) = key_file {
            return Ok(Self::Passphrase(prompt::read_key_file(path)?));
        }
        for server in servers {
            match bind::machine_secret(token, server) {
                Ok(secret) => return Ok(Self::Secret(secret)),
                Err(error) => log::info!("{}", chain(&error)),
            }
        }
        let by_key =
            matches!(&token.bound, Bound::Plain(bound) if bound.secret == PlainSecret::VolumeKey);
        if by_key {
            return Err(RotateError::VolumeKey(target.device.clone()));
        }
        let question = format!("Passphrase for '{}': ", target.device.display());
        Ok(Self::Passphrase(prompt::ask_hidden(&question)?))
    }

    /// The volume key of a LUKS volume.
    fn volume_key(
        &self,
        target: &Target,
        token: &Token,
        header: &Path,
    ) -> Result<SecretBytes, RotateError> {
        match self {
            Self::Secret(secret) => Ok(open::bound_volume_key(&target.place, token, secret)?),
            Self::Passphrase(passphrase) => Ok(typed::volume_key(header, passphrase)?),
        }
    }

    /// The machine secret of a plain volume, which stays what it is.
    fn secret_of_plain(self, target: &Target, token: &Token) -> Result<MachineSecret, RotateError> {
        let secret = match self {
            Self::Secret(secret) => secret,
            Self::Passphrase(passphrase) => MachineSecret(passphrase),
        };
        open::check_automatically(&target.place, token, &secret)?;
        Ok(secret)
    }
}

/// A volume whose machine secret is being replaced.
struct Rotating<'a> {
    files: &'a Files,
    target: &'a Target,
    servers: &'a [KeyServer],
}

impl Rotating<'_> {
    /// Everything up to the new token, each step written down before it is done.
    fn replace(
        &self,
        at: &At,
        token: &Token,
        opener: Opener,
        rotation: &mut Rotation,
    ) -> Result<(), RotateError> {
        let Self { files, target, .. } = *self;
        rotation.save(files)?;
        let mut shares = Vec::new();
        for server in self.servers {
            let id = server.settings.id;
            log::info!("asking key server {} for a new share", id.short());
            let before = token.envelope_of(id).expect("of its envelopes").generation;
            // Whoever had the host key may have asked for a next share, and knows it: that one goes first.
            shares::end_rotation(server, token.volume, before)?;
            let share = shares::rotate(server, token.volume)?;
            if share.generation == before {
                return Err(RotateError::SameGeneration(id.short()));
            }
            rotation.note(&share);
            rotation.save(files)?;
            shares.push(share);
        }
        let mut next = self.enrol(token, opener, &shares, rotation)?;
        for server in self.servers {
            let proved = bind::prove_token(target, &next, server);
            proved.map_err(|error| RotateError::Proof(Box::new(error)))?;
        }
        // The order in which they are asked stays.
        next.envelopes.sort_by_key(|new| {
            token
                .envelopes
                .iter()
                .position(|old| old.server == new.server)
        });
        Ok(binding::replace(
            files,
            &target.name,
            &target.place,
            at,
            &next,
        )?)
    }

    /// The new keyslot, and the token that is to take the other one's place.
    fn enrol(
        &self,
        token: &Token,
        opener: Opener,
        shares: &[Registered],
        rotation: &mut Rotation,
    ) -> Result<Token, RotateError> {
        let Self { files, target, .. } = *self;
        let mut next = Token {
            envelopes: Vec::new(),
            ..token.clone()
        };
        let secret = match target.place.luks_header() {
            None => opener.secret_of_plain(target, token)?,
            Some(header) => {
                let volume_key = opener.volume_key(target, token, header)?;
                drop(opener);
                let add = |slot, secret: &MachineSecret| {
                    keyslots::add_keyslot_by_key(header, slot, &volume_key, secret)
                };
                let enrolled =
                    enrol::new_keyslot::<RotateError>(files, target, header, rotation, add)?;
                next.keyslots = enrolled
                    .bound
                    .keyslot()
                    .iter()
                    .map(u32::to_string)
                    .collect();
                next.bound = enrolled.bound;
                enrolled.secret
            }
        };
        shares::seal(&mut next, shares, &secret)?;
        Ok(next)
    }

    /// Takes the old keyslot and shares away, once nothing needs them.
    fn go_on(
        &self,
        rotation: &Rotation,
        finish: bool,
        rebuilt: Rebuild,
    ) -> Result<(), RotateError> {
        let old = match self.lies_in_images() && !finish {
            true => self.images_with_the_old_one(rebuilt),
            false => Vec::new(),
        };
        if !old.is_empty() {
            let device = self.target.device.display();
            log::warn!(
                "the old keyslot and shares stay, because these images were built before and need them:\n  {}\n\
                 once they are rebuilt or gone, run 'latchkey rotate {device}' again; 'latchkey rotate --finish {device}' \
                 does not wait for them",
                old.join("\n  ")
            );
            return Ok(());
        }
        rotation.finish(self.files, self.target, self.servers)?;
        log::info!("the old keyslot is gone, and no key server gives the old shares any more");
        Ok(())
    }

    /// Whether an initramfs holds a copy of what was replaced: an envelope file, or a header that is a file.
    fn lies_in_images(&self) -> bool {
        let Self { files, target, .. } = *self;
        if target.is_for_running_system(files) {
            return false;
        }
        match (&target.kind, &target.place.header) {
            (Kind::Luks2, _) => false,
            (_, HeaderPlace::Detached(header)) => header.is_file(),
            _ => true,
        }
    }

    /// Images that were built before; and where there is none in /boot, the one that this run did not build.
    fn images_with_the_old_one(&self, rebuilt: Rebuild) -> Vec<String> {
        let Self { files, target, .. } = *self;
        let mut inputs = vec![envelopes::path(files, &target.name)];
        inputs.extend(target.place.luks_header().map(Path::to_owned));
        inputs.retain(|path| path.is_file());
        let older = initramfs::older_images(files, &inputs);
        let mut names: Vec<String> = older
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        if names.is_empty() && rebuilt == Rebuild::No && !initramfs::has_images(files) {
            names.push(
                "the initramfs that this machine boots from, of which there is none in /boot"
                    .to_owned(),
            );
        }
        names
    }
}

/// After a failure. What the header says now decides: an error may come after the new token was written.
fn take_back(files: &Files, target: &Target, servers: &[KeyServer], rotation: &Rotation) {
    let undoes =
        bound(files, target).is_ok_and(|(_, token)| rotation.stage(&token) == Stage::Unfinished);
    if !undoes {
        log::warn!(
            "nothing is taken back: the volume opens by the new machine secret, or by passphrase; run this command again"
        );
        return;
    }
    match rotation.undo(files, target, servers) {
        Ok(()) => log::info!(
            "what this run had done was taken back; '{}' is as it was",
            target.device.display()
        ),
        Err(error) => log::error!(
            "what this run had done could not all be taken back: {}\n\
             the volume opens as before; run this command again to clear up",
            chain(&error)
        ),
    }
}
