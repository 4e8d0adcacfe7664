//! Shares on the running system: registering a volume, fetching a share back as a proof, retiring a volume. Every
//! share travels sealed to a key pair that is made for the one request.

use std::io;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::envelope::{EnvelopeError, MachineSecret, Released, Token};
use latchkey_protocol::release::{Purpose, ReleaseContext, ReleaseError};
use latchkey_protocol::wire::{
    BootFacts, OpenedBy, ReleaseRequest, RotationEnd, RotationRequest, Text, Verdict, Version,
    VolumeAnswer, VolumeRequest, WantedVolume,
};
use latchkey_protocol::{BootKeyPair, Generation, RequestId, ServerId, Share, VolumeId};

use crate::failure::printable;
use crate::server::{KeyServer, Unreachable, block_on};

/// A volume's share at one key server.
#[derive(Debug)]
pub struct Registered {
    /// The key server.
    pub server: ServerId,
    /// The share.
    pub share: Share,
    /// Its generation.
    pub generation: Generation,
    /// The policy in force, in the key server's words.
    pub policy: String,
}

/// A key server gave no share.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It does not answer, or refuses.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// What it sent does not open.
    #[error("the share from key server {server} is not usable")]
    Sealed {
        /// Its short id.
        server: String,
        /// Why.
        #[source]
        source: ReleaseError,
    },
    /// It denies the proof.
    #[error("key server {server} does not give the share back: {reason}")]
    NotReleased {
        /// Its short id.
        server: String,
        /// Its reason.
        reason: String,
    },
    /// No key pair for the request.
    #[error(transparent)]
    KeyPair(ReleaseError),
    /// No randomness.
    #[error("the kernel gave no random bytes")]
    Random(#[source] getrandom::Error),
    /// No event queue.
    #[error("failed to start")]
    Start(#[source] io::Error),
}

impl ShareError {
    /// Whether the key server certainly did nothing.
    pub fn is_without_effect(&self) -> bool {
        match self {
            Self::Unreachable(Unreachable::Everywhere(tries)) => {
                tries.iter().all(|error| error.fault.is_before_sending())
            }
            Self::Unreachable(Unreachable::Final(_)) => true,
            _ => false,
        }
    }
}

/// Whether `server` answers and knows this machine, as one that is to give shares must.
///
/// # Errors
/// A variant of [`ShareError`].
pub fn reach(server: &KeyServer) -> Result<(), ShareError> {
    let asked = server.ask(async |client, address| client.status(address).await);
    block_on(asked).map_err(ShareError::Start)??;
    Ok(())
}

/// Registers `volume`, which `opened_by` asks for, and returns its share. Doing it again for the same volume gives the same share.
///
/// # Errors
/// A variant of [`ShareError`].
pub fn register(
    server: &KeyServer,
    volume: VolumeId,
    label: &str,
    opened_by: OpenedBy,
) -> Result<Registered, ShareError> {
    let key_pair = BootKeyPair::generate().map_err(ShareError::KeyPair)?;
    let request = VolumeRequest {
        version: Version::default(),
        request: RequestId::random().map_err(ShareError::Random)?,
        ephemeral_key: key_pair.public(),
        volume,
        label: Text::cut(label),
        opened_by,
    };
    let asked = server.ask(async |client, address| client.register(address, &request).await);
    let answer = block_on(asked).map_err(ShareError::Start)??;
    unseal(server, &key_pair, request.request, volume, &answer)
}

/// Asks for the share of the next generation of `volume`. Until [`end_rotation`] it is the same one.
///
/// # Errors
/// A variant of [`ShareError`].
pub fn rotate(server: &KeyServer, volume: VolumeId) -> Result<Registered, ShareError> {
    let key_pair = BootKeyPair::generate().map_err(ShareError::KeyPair)?;
    let request = RotationRequest {
        version: Version::default(),
        request: RequestId::random().map_err(ShareError::Random)?,
        ephemeral_key: key_pair.public(),
        volume,
    };
    let asked = server.ask(async |client, address| client.rotate(address, &request).await);
    let answer = block_on(asked).map_err(ShareError::Start)??;
    unseal(server, &key_pair, request.request, volume, &answer)
}

/// Says that of two generations of `volume` this one stays.
///
/// # Errors
/// A variant of [`ShareError`].
pub fn end_rotation(
    server: &KeyServer,
    volume: VolumeId,
    keep: Generation,
) -> Result<(), ShareError> {
    let end = RotationEnd {
        version: Version::default(),
        volume,
        keep,
    };
    let asked = server.ask(async |client, address| client.end_rotation(address, &end).await);
    match block_on(asked).map_err(ShareError::Start)? {
        // Its shares were destroyed, both of them.
        Err(Unreachable::Final(error)) if error.fault.is_destroyed() => Ok(()),
        answer => Ok(answer.map(drop)?),
    }
}

fn unseal(
    server: &KeyServer,
    key_pair: &BootKeyPair,
    request: RequestId,
    volume: VolumeId,
    answer: &VolumeAnswer,
) -> Result<Registered, ShareError> {
    let context = ReleaseContext {
        purpose: Purpose::Registration,
        server: &server.settings.id,
        client: &server.settings.client,
        request: &request,
        volume: &volume,
        generation: answer.generation,
    };
    let share = key_pair.open(&answer.sealed, context);
    Ok(Registered {
        server: server.settings.id,
        share: share.map_err(|source| sealed(server, source))?,
        generation: answer.generation,
        policy: printable(answer.policy.as_str()),
    })
}

/// Seals `secret` into an envelope of `token` for each of `shares`.
///
/// # Errors
/// As [`Token::seal`].
pub fn seal(
    token: &mut Token,
    shares: &[Registered],
    secret: &MachineSecret,
) -> Result<(), EnvelopeError> {
    for one in shares {
        let released = Released {
            share: &one.share,
            volume: token.volume,
            generation: one.generation,
        };
        let envelope = token.seal(one.server, released, secret)?;
        token.envelopes.push(envelope);
    }
    Ok(())
}

/// Fetches the share of `volume` back with the host key.
///
/// # Errors
/// A variant of [`ShareError`].
pub fn prove(
    server: &KeyServer,
    volume: VolumeId,
    generation: Generation,
) -> Result<Share, ShareError> {
    let key_pair = BootKeyPair::generate().map_err(ShareError::KeyPair)?;
    let request = ReleaseRequest {
        version: Version::default(),
        request: RequestId::random().map_err(ShareError::Random)?,
        ephemeral_key: key_pair.public(),
        volumes: vec![WantedVolume { volume, generation }],
        facts: running_system(),
        tickets: Vec::new(),
    };
    let asked = server.ask(async |client, address| client.proof(address, &request).await);
    let answer = block_on(asked).map_err(ShareError::Start)??;
    let verdict = answer.verdicts.into_iter().next().map(|one| one.verdict);
    let not_released = |reason: &str| ShareError::NotReleased {
        server: server.settings.id.short(),
        reason: printable(reason),
    };
    match verdict {
        Some(Verdict::Released {
            generation: released,
            sealed: share,
        }) if released == generation => {
            let context = ReleaseContext {
                purpose: Purpose::Proof,
                server: &server.settings.id,
                client: &server.settings.client,
                request: &request.request,
                volume: &volume,
                generation,
            };
            key_pair
                .open(&share, context)
                .map_err(|source| sealed(server, source))
        }
        Some(Verdict::Released { .. }) => Err(not_released("it has another generation")),
        Some(Verdict::Denied { reason, .. } | Verdict::Wait { reason, .. }) => {
            Err(not_released(reason.as_str()))
        }
        Some(Verdict::Pending { .. }) => Err(not_released("it wants a person's approval first")),
        Some(Verdict::Destroyed) => Err(not_released("it was destroyed there")),
        None => Err(not_released("it gave no verdict")),
    }
}

/// Tells a key server that `volume` is no longer bound.
///
/// # Errors
/// A variant of [`ShareError`].
pub fn retire(server: &KeyServer, volume: VolumeId) -> Result<(), ShareError> {
    let asked = server.ask(async |client, address| client.retire(address, volume).await);
    block_on(asked).map_err(ShareError::Start)??;
    Ok(())
}

fn sealed(server: &KeyServer, source: ReleaseError) -> ShareError {
    ShareError::Sealed {
        server: server.settings.id.short(),
        source,
    }
}

/// There is no boot whose facts a proof could tell.
fn running_system() -> BootFacts {
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    BootFacts {
        kernel: Text::cut(&kernel),
        command_line: Bytes([0; 32]),
        image_built: 0,
        image: None,
        header: None,
    }
}
