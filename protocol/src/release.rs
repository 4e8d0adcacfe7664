//! The release, version 1: a share sealed to the key pair of one boot session.
//!
//! HPKE (RFC 9180), base mode, single shot: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. The HPKE
//! `info` binds purpose, key server, client, boot session, volume and generation, so a recorded answer opens in
//! no other place. The TLS and HTTP layers around it never see a share in the clear.

use latchkey_secret::{Secret, SecretError, process};

use crate::encoding::{Bytes, length_prefixed};
use crate::hpke;
use crate::ids::{ClientName, Generation, RequestId, ServerId, VolumeId};

/// An encapsulated key (32 bytes), the encrypted share (32) and its tag (16).
pub type SealedShare = Bytes<80>;

const DOMAIN: &[u8] = b"latchkey release v1";

/// A key server's half of what opens an envelope: 32 bytes per volume and generation.
#[derive(Debug)]
pub struct Share(pub Secret<32>);

/// What a sealed share is bound to.
#[derive(Debug, Clone, Copy)]
pub struct ReleaseContext<'a> {
    /// Which endpoint answered.
    pub purpose: Purpose,
    /// The key server.
    pub server: &'a ServerId,
    /// The client.
    pub client: &'a ClientName,
    /// The boot session.
    pub request: &'a RequestId,
    /// The volume.
    pub volume: &'a VolumeId,
    /// The share's generation.
    pub generation: Generation,
}

/// The endpoint that a share was sealed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `/v1/release`, asked by the boot key.
    Release,
    /// `/v1/proof`, asked by the host key.
    Proof,
    /// `/v1/open`, asked by the host key.
    Opening,
    /// `/v1/volumes`, asked by the host key.
    Registration,
}

/// A share could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The other side's public key is not usable (a point of low order).
    #[error("the ephemeral key is not a usable X25519 key")]
    EphemeralKey,
    /// The sealed share belongs to another client, volume, generation or boot session, or was damaged.
    #[error("the sealed share was not made for this request, or was damaged on the way")]
    NotForUs,
    /// No memory for it.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl Share {
    /// Seals the share to `ephemeral_key` (an X25519 public key).
    ///
    /// # Errors
    /// `EphemeralKey`, `Secret`.
    pub fn seal(
        &self,
        ephemeral_key: &Bytes<32>,
        context: ReleaseContext<'_>,
    ) -> Result<SealedShare, ReleaseError> {
        self.seal_with(ephemeral_key, context, Secret::random()?)
    }

    /// As [`Share::seal`], with the seed of the encapsulated key pair given: for test vectors only, because a seed
    /// must not repeat.
    ///
    /// # Errors
    /// As [`Share::seal`].
    pub fn seal_with(
        &self,
        ephemeral_key: &Bytes<32>,
        context: ReleaseContext<'_>,
        encapsulation_seed: Secret<32>,
    ) -> Result<SealedShare, ReleaseError> {
        let sealed = hpke::seal(
            self.0.expose_secret(),
            &ephemeral_key.0,
            &context.info(),
            encapsulation_seed.expose_secret(),
        );
        process::wipe_stack();
        sealed.map(Bytes).ok_or(ReleaseError::EphemeralKey)
    }
}

/// The X25519 key pair of one boot session. Only the seed is kept, on a locked page; the private key exists on
/// the stack while a share is opened, and that stack is wiped.
#[derive(Debug)]
pub struct BootKeyPair {
    seed: Secret<32>,
    public: Bytes<32>,
}

impl BootKeyPair {
    /// A fresh key pair.
    ///
    /// # Errors
    /// `Secret` if there is no memory or no randomness.
    pub fn generate() -> Result<Self, ReleaseError> {
        Ok(Self::from_seed(Secret::random()?))
    }

    /// The key pair that RFC 9180's DeriveKeyPair makes of `seed`.
    pub fn from_seed(seed: Secret<32>) -> Self {
        let public = Bytes(hpke::public_key(seed.expose_secret()));
        process::wipe_stack();
        Self { seed, public }
    }

    /// The public key.
    pub fn public(&self) -> Bytes<32> {
        self.public
    }

    /// Opens a sealed share.
    ///
    /// # Errors
    /// `NotForUs` if any part of `context` differs from what it was sealed for; `Secret`.
    pub fn open(
        &self,
        sealed: &SealedShare,
        context: ReleaseContext<'_>,
    ) -> Result<Share, ReleaseError> {
        let seed = self.seed.expose_secret();
        let share = Secret::filled(|out| {
            hpke::open(&sealed.0, seed, &self.public.0, &context.info(), out)
                .ok_or(ReleaseError::NotForUs)
        });
        process::wipe_stack();
        share.map(Share)
    }
}

impl ReleaseContext<'_> {
    fn info(&self) -> Vec<u8> {
        let purpose: &[u8] = match self.purpose {
            Purpose::Release => b"release",
            Purpose::Proof => b"proof",
            Purpose::Opening => b"opening",
            Purpose::Registration => b"registration",
        };
        length_prefixed(&[
            DOMAIN,
            purpose,
            self.server.as_bytes(),
            self.client.as_str().as_bytes(),
            self.request.as_bytes(),
            self.volume.as_bytes(),
            &self.generation.0.to_be_bytes(),
        ])
    }
}
