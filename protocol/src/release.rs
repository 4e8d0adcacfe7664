//! The release, version 1: a share sealed to the key pair of one boot session.
//!
//! HPKE (RFC 9180), base mode, single shot: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. The HPKE
//! `info` binds purpose, key server, client, boot session, volume and generation, so a recorded answer opens in
//! no other place. The TLS and HTTP layers around it never see a share in the clear.

use hpke::aead::{AeadTag, ChaCha20Poly1305};
use hpke::inout::InOutBuf;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use latchkey_secret::{Secret, SecretError, process};

use crate::encoding::{Bytes, length_prefixed};
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
        let recipient = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&ephemeral_key.0)
            .map_err(|_| ReleaseError::EphemeralKey)?;
        let mut sealed = [0u8; 80];
        let (encapsulated, rest) = sealed.split_at_mut(32);
        let (ciphertext, tag) = rest.split_at_mut(32);
        let (key, authentication) = hpke::single_shot_seal_inout_detached_with_rng::<
            ChaCha20Poly1305,
            HkdfSha256,
            X25519HkdfSha256,
        >(
            &OpModeS::Base,
            &recipient,
            &context.info(),
            InOutBuf::new(self.0.expose_secret(), ciphertext)
                .map_err(|_| ReleaseError::NotForUs)?,
            b"",
            &mut SeedOnce(Some(encapsulation_seed)),
        )
        .map_err(|_| ReleaseError::EphemeralKey)?;
        encapsulated.copy_from_slice(&key.to_bytes());
        tag.copy_from_slice(&authentication.to_bytes());
        process::wipe_stack();
        Ok(Bytes(sealed))
    }
}

/// Gives HPKE the one seed that it draws: 32 bytes, once, from a locked page.
struct SeedOnce(Option<Secret<32>>);

impl TryRng for SeedOnce {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        let seed = self.0.take().expect("DHKEM draws one seed");
        out.copy_from_slice(seed.expose_secret());
        Ok(())
    }
}

impl TryCryptoRng for SeedOnce {}

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
        let public = public_key(&seed);
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
        let share = Secret::filled(|out| open_into(&self.seed, sealed, context, out));
        process::wipe_stack();
        share.map(Share)
    }
}

impl ReleaseContext<'_> {
    fn info(&self) -> Vec<u8> {
        let purpose: &[u8] = match self.purpose {
            Purpose::Release => b"release",
            Purpose::Proof => b"proof",
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

// Both functions keep a private key on their stack; they are never inlined so that wiping below the caller's
// frame reaches all of it.

#[inline(never)]
fn public_key(seed: &Secret<32>) -> Bytes<32> {
    let (_, public) = X25519HkdfSha256::derive_keypair(seed.expose_secret());
    Bytes(public.to_bytes().into())
}

#[inline(never)]
fn open_into(
    seed: &Secret<32>,
    sealed: &SealedShare,
    context: ReleaseContext<'_>,
    out: &mut [u8; 32],
) -> Result<(), ReleaseError> {
    let (private, _) = X25519HkdfSha256::derive_keypair(seed.expose_secret());
    let (encapsulated, rest) = sealed.0.split_at(32);
    let (ciphertext, tag) = rest.split_at(32);
    let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated)
        .map_err(|_| ReleaseError::NotForUs)?;
    let tag = AeadTag::<ChaCha20Poly1305>::from_bytes(tag).map_err(|_| ReleaseError::NotForUs)?;
    hpke::single_shot_open_inout_detached::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &private,
        &encapsulated,
        &context.info(),
        InOutBuf::new(ciphertext, out).map_err(|_| ReleaseError::NotForUs)?,
        b"",
        &tag,
    )
    .map_err(|_| ReleaseError::NotForUs)
}
