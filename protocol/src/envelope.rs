//! The envelope, version 1: a machine secret on disk that only a key server's share opens.
//!
//! `docs/envelope.md` describes the bytes. The KEK comes from the share by HKDF-SHA-256 (RFC 5869); the machine
//! secret is sealed under it with XChaCha20-Poly1305 and a key-commitment tag. All that was learned about the
//! volume at binding (`Bound`) is authenticated with it: a header that was changed since cannot vouch for itself.

mod bound;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use hkdf::Hkdf;
use latchkey_secret::{Secret, SecretBytes, SecretError, process};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::encoding::{Bytes, SealedBytes, length_prefixed};
use crate::ids::{Generation, ServerId, VolumeId};
use crate::release::Share;
use crate::wire::Version;

pub use bound::{Bound, BoundIntegrity, BoundLuks1, BoundLuks2, BoundPlain, PlainSecret};

/// The type of our LUKS2 token.
pub const TOKEN_TYPE: &str = "latchkey";
/// Most bytes of a token's JSON.
pub const TOKEN_LIMIT: usize = 8 * 1024;
/// Most envelopes in one token: one per key server.
pub const ENVELOPES_LIMIT: usize = 8;
/// Most bytes of a machine secret.
pub const MACHINE_SECRET_LIMIT: usize = 512;

const DOMAIN: &[u8] = b"latchkey envelope v1";

/// What opens a volume without a person: 32 random bytes for LUKS; for plain dm-crypt what was there before.
#[derive(Debug)]
pub struct MachineSecret(pub SecretBytes);

impl MachineSecret {
    /// Bytes of the secret that a keyslot holds.
    pub const LENGTH: usize = 32;

    /// 256 random bits, the content of a keyslot.
    ///
    /// # Errors
    /// `Secret` if there is no memory or no randomness.
    pub fn random() -> Result<Self, SecretError> {
        let random = Secret::<{ Self::LENGTH }>::random()?;
        let mut secret = SecretBytes::with_capacity(Self::LENGTH)?;
        secret.push(random.expose_secret())?;
        Ok(Self(secret))
    }
}

/// A LUKS2 token of type `latchkey`, or an envelope file: the same JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// `latchkey`.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// The keyslot that holds the machine secret, as libcryptsetup keeps it; not authenticated, because it may
    /// be rewritten. `bound` says which keyslot is meant.
    pub keyslots: Vec<String>,
    /// 1.
    pub version: Version,
    /// The volume's name at every key server.
    pub volume: VolumeId,
    /// The UUID in the volume's header; a plain volume's was made when it was bound.
    pub uuid: String,
    /// The volume as it was bound.
    pub bound: Bound,
    /// One per key server, any of which opens.
    pub envelopes: Vec<Envelope>,
}

/// The only value of a token's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenKind {
    /// `latchkey`.
    #[serde(rename = "latchkey")]
    Latchkey,
}

/// The machine secret, sealed for one key server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The key server.
    pub server: ServerId,
    /// The generation of the share that opens it.
    pub generation: Generation,
    /// HKDF's salt.
    pub salt: Bytes<32>,
    /// XChaCha20-Poly1305's nonce.
    pub nonce: Bytes<24>,
    /// Commits to the KEK: two keys cannot open one envelope.
    pub commitment: Bytes<32>,
    /// The encrypted machine secret and its tag.
    pub sealed: SealedBytes,
}

/// The key that an envelope is sealed under, made of the share.
#[derive(Debug)]
pub struct Kek {
    key: Secret<32>,
    commitment: Secret<32>,
}

/// A token or an envelope was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not the JSON that `docs/envelope.md` describes.
    #[error("not a latchkey token: {0}")]
    Format(String),
    /// More than [`TOKEN_LIMIT`] bytes.
    #[error("a latchkey token of {0} bytes is larger than the limit of {TOKEN_LIMIT}")]
    TooLarge(usize),
    /// The machine secret has no byte, or more than [`MACHINE_SECRET_LIMIT`].
    #[error("a machine secret has 1 to {MACHINE_SECRET_LIMIT} bytes")]
    SecretLength,
    /// The share is of another volume.
    #[error("the share is of volume '{share}', the envelope of '{envelope}'")]
    WrongVolume {
        /// The envelope's volume.
        envelope: VolumeId,
        /// The share's.
        share: VolumeId,
    },
    /// The share is of another generation.
    #[error("the share is of generation {share}, the envelope of {envelope}")]
    WrongGeneration {
        /// The envelope's generation.
        envelope: Generation,
        /// The share's.
        share: Generation,
    },
    /// The share does not belong to this envelope.
    #[error("the share does not open this envelope")]
    WrongShare,
    /// The right share, but some other field was changed.
    #[error("the envelope was changed since the volume was bound")]
    Changed,
    /// No memory or no randomness.
    #[error("no memory for a secret")]
    Secret,
}

impl From<SecretError> for EnvelopeError {
    fn from(_: SecretError) -> Self {
        Self::Secret
    }
}

/// A share and what it was released for.
#[derive(Debug, Clone, Copy)]
pub struct Released<'a> {
    /// The share.
    pub share: &'a Share,
    /// Its volume.
    pub volume: VolumeId,
    /// Its generation.
    pub generation: Generation,
}

impl Token {
    /// Reads a token's JSON.
    ///
    /// # Errors
    /// `TooLarge`, `Format`.
    pub fn parse(json: &[u8]) -> Result<Self, EnvelopeError> {
        if json.len() > TOKEN_LIMIT {
            return Err(EnvelopeError::TooLarge(json.len()));
        }
        let token: Self = serde_json::from_slice(json)
            .map_err(|error| EnvelopeError::Format(error.to_string()))?;
        token.check_envelopes()?;
        token.check_spelling(json)?;
        Ok(token)
    }

    /// The envelope that a key server's share opens.
    pub fn envelope_of(&self, server: ServerId) -> Option<&Envelope> {
        self.envelopes.iter().find(|one| one.server == server)
    }

    /// The token's JSON.
    ///
    /// # Errors
    /// `TooLarge`, `Format` if there is no envelope or too many.
    pub fn to_json(&self) -> Result<String, EnvelopeError> {
        self.check_envelopes()?;
        let json = serde_json::to_string(self)
            .map_err(|error| EnvelopeError::Format(error.to_string()))?;
        if json.len() > TOKEN_LIMIT {
            Err(EnvelopeError::TooLarge(json.len()))
        } else {
            Ok(json)
        }
    }

    /// Seals `secret` for `server` under the share in `released`; the result goes into `envelopes`.
    ///
    /// # Errors
    /// `SecretLength`, `WrongVolume`, `Secret`.
    pub fn seal(
        &self,
        server: ServerId,
        released: Released<'_>,
        secret: &MachineSecret,
    ) -> Result<Envelope, EnvelopeError> {
        let mut salt = [0u8; 32];
        let mut nonce = [0u8; 24];
        getrandom::fill(&mut salt).map_err(|_| EnvelopeError::Secret)?;
        getrandom::fill(&mut nonce).map_err(|_| EnvelopeError::Secret)?;
        self.seal_with(server, released, secret, Bytes(salt), Bytes(nonce))
    }

    /// As [`Token::seal`], with the random values given: for test vectors only, because a nonce must not repeat.
    ///
    /// # Errors
    /// As [`Token::seal`].
    pub fn seal_with(
        &self,
        server: ServerId,
        released: Released<'_>,
        secret: &MachineSecret,
        salt: Bytes<32>,
        nonce: Bytes<24>,
    ) -> Result<Envelope, EnvelopeError> {
        let plain = secret.0.expose_secret();
        if plain.is_empty() || plain.len() > MACHINE_SECRET_LIMIT {
            return Err(EnvelopeError::SecretLength);
        }
        if released.volume != self.volume {
            return Err(EnvelopeError::WrongVolume {
                envelope: self.volume,
                share: released.volume,
            });
        }
        let kek = Kek::derive(released.share, &salt, self, released.generation)?;
        let mut envelope = Envelope {
            server,
            generation: released.generation,
            salt,
            nonce,
            commitment: Bytes(*kek.commitment.expose_secret()),
            sealed: SealedBytes(vec![0; plain.len() + 16]),
        };
        let associated = self.associated_data(&envelope);
        let (body, tag) = envelope.sealed.0.split_at_mut(plain.len());
        let buffer = InOutBuf::new(plain, body).map_err(|_| EnvelopeError::SecretLength)?;
        let computed = cipher(&kek)
            .encrypt_inout_detached(&nonce.0.into(), &associated, buffer)
            .map_err(|_| EnvelopeError::SecretLength)?;
        tag.copy_from_slice(&computed);
        process::wipe_stack();
        Ok(envelope)
    }

    /// Opens `envelope`, one of this token's.
    ///
    /// # Errors
    /// `WrongVolume`, `WrongGeneration`, `WrongShare` or `Changed`, whichever holds first; `Secret`.
    pub fn open(
        &self,
        envelope: &Envelope,
        released: Released<'_>,
    ) -> Result<MachineSecret, EnvelopeError> {
        if released.volume != self.volume {
            return Err(EnvelopeError::WrongVolume {
                envelope: self.volume,
                share: released.volume,
            });
        }
        if released.generation != envelope.generation {
            return Err(EnvelopeError::WrongGeneration {
                envelope: envelope.generation,
                share: released.generation,
            });
        }
        let secret = self.open_checked(envelope, released.share);
        process::wipe_stack();
        secret
    }

    #[inline(never)]
    fn open_checked(
        &self,
        envelope: &Envelope,
        share: &Share,
    ) -> Result<MachineSecret, EnvelopeError> {
        let kek = Kek::derive(share, &envelope.salt, self, envelope.generation)?;
        if !bool::from(kek.commitment.expose_secret().ct_eq(&envelope.commitment.0)) {
            return Err(EnvelopeError::WrongShare);
        }
        let length = envelope
            .sealed
            .0
            .len()
            .checked_sub(16)
            .ok_or(EnvelopeError::SecretLength)?;
        if length == 0 || length > MACHINE_SECRET_LIMIT {
            return Err(EnvelopeError::SecretLength);
        }
        let (body, tag) = envelope.sealed.0.split_at(length);
        let tag: [u8; 16] = tag.try_into().map_err(|_| EnvelopeError::SecretLength)?;
        let mut secret = SecretBytes::zeroed(length)?;
        let buffer = InOutBuf::new(body, secret.expose_secret_mut())
            .map_err(|_| EnvelopeError::SecretLength)?;
        cipher(&kek)
            .decrypt_inout_detached(
                &envelope.nonce.0.into(),
                &self.associated_data(envelope),
                buffer,
                &tag.into(),
            )
            .map_err(|_| EnvelopeError::Changed)?;
        Ok(MachineSecret(secret))
    }

    /// Everything else that the token and the envelope say, in one unambiguous encoding.
    fn associated_data(&self, envelope: &Envelope) -> Vec<u8> {
        length_prefixed(&[
            DOMAIN,
            self.volume.as_bytes(),
            self.uuid.as_bytes(),
            &self.bound.encode(),
            envelope.server.as_bytes(),
            &envelope.generation.0.to_be_bytes(),
            &envelope.salt.0,
            &envelope.commitment.0,
        ])
    }

    /// Refuses what serde would take beside our own spelling, such as a list of a struct's values.
    fn check_spelling(&self, json: &[u8]) -> Result<(), EnvelopeError> {
        let format = |error: serde_json::Error| EnvelopeError::Format(error.to_string());
        let read: serde_json::Value = serde_json::from_slice(json).map_err(format)?;
        if serde_json::to_value(self).map_err(format)? == read {
            Ok(())
        } else {
            Err(EnvelopeError::Format(
                "not in the form that latchkey writes".to_owned(),
            ))
        }
    }

    fn check_envelopes(&self) -> Result<(), EnvelopeError> {
        let mut servers = std::collections::BTreeSet::new();
        let distinct = self
            .envelopes
            .iter()
            .all(|envelope| servers.insert(envelope.server));
        if (1..=ENVELOPES_LIMIT).contains(&self.envelopes.len()) && distinct {
            Ok(())
        } else {
            Err(EnvelopeError::Format(format!(
                "1 to {ENVELOPES_LIMIT} envelopes, each for another key server"
            )))
        }
    }
}

impl Kek {
    /// HKDF-SHA-256 with the share as input key material: 32 bytes of key, then 32 bytes that commit to it.
    fn derive(
        share: &Share,
        salt: &Bytes<32>,
        token: &Token,
        generation: Generation,
    ) -> Result<Self, EnvelopeError> {
        let info = length_prefixed(&[
            DOMAIN,
            token.uuid.as_bytes(),
            token.volume.as_bytes(),
            &generation.0.to_be_bytes(),
        ]);
        let mut both = Secret::<64>::zeroed()?;
        Hkdf::<Sha256>::new(Some(&salt.0), share.0.expose_secret())
            .expand(&info, both.expose_secret_mut())
            .map_err(|_| EnvelopeError::Secret)?;
        let (mut key, mut commitment) = (Secret::zeroed()?, Secret::zeroed()?);
        key.expose_secret_mut()
            .copy_from_slice(&both.expose_secret()[..32]);
        commitment
            .expose_secret_mut()
            .copy_from_slice(&both.expose_secret()[32..]);
        Ok(Self { key, commitment })
    }
}

fn cipher(kek: &Kek) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(kek.key.expose_secret().into())
}
