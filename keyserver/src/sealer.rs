//! How a record is sealed: whoever has the store alone can read none and change none.
//!
//! A sealed record is version (1 byte), nonce (24), commitment (32), ciphertext, tag (16). HKDF-SHA-256 (RFC 5869)
//! with the nonce as salt, the master key as input and the record's key as info gives the XChaCha20-Poly1305 key
//! and the commitment, by which a wrong master key is told from a damaged record. The additional data names the
//! record's key, so that no record can be passed off as another. An older version of the same record can: the
//! audit shows what was decided since.

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use hkdf::Hkdf;
use latchkey_protocol::encoding::length_prefixed;
use latchkey_secret::{Secret, SecretBytes, SecretError, process};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::master_key::MasterKey;
use crate::sealed::RecordError;
use crate::store::StoreError;

const DOMAIN: &[u8] = b"latchkeyd record v1";
const VERSION: u8 = 1;
/// Bytes before the ciphertext.
const HEADER: usize = 1 + 24 + 32;
const TAG: usize = 16;
/// Most bytes of a record before it is sealed.
pub const RECORD_LIMIT: usize = 128 * 1024;

/// Seals and opens records under a master key.
pub(crate) struct Sealer(MasterKey);

impl Sealer {
    /// Under `master`.
    pub fn new(master: MasterKey) -> Self {
        Self(master)
    }

    /// The record `record`, sealed for its place `key`.
    pub fn encode(&self, key: &str, record: &impl Serialize) -> Result<Vec<u8>, RecordError> {
        let plain = serde_json::to_vec(record).expect("records have only strings and numbers");
        self.seal(key, &plain)
    }

    /// What was sealed as the record `key`.
    pub fn decode<T: DeserializeOwned>(&self, key: &str, sealed: &[u8]) -> Result<T, RecordError> {
        let plain = self.unseal(key, sealed)?;
        serde_json::from_slice(&plain).map_err(|_| damaged(key))
    }

    /// A record `key` that tells the master key it was sealed under; [`Sealer::check`] opens it.
    pub fn seal_check(&self, key: &str) -> Result<Vec<u8>, RecordError> {
        self.seal(key, DOMAIN)
    }

    /// Whether `sealed` is what [`Sealer::seal_check`] made under the same master key.
    ///
    /// # Errors
    /// `WrongMasterKey`, `Damaged`, `Secret`.
    pub fn check(&self, key: &str, sealed: &[u8]) -> Result<(), RecordError> {
        let mut text = [0; DOMAIN.len()];
        match self.unseal_into(key, sealed, &mut text) {
            Ok(()) if text == DOMAIN => Ok(()),
            Err(Unsealed::OtherKey) => Err(RecordError::WrongMasterKey),
            Err(Unsealed::Secret(error)) => Err(error.into()),
            _ => Err(damaged(key)),
        }
    }

    /// Seals `plain` as the record `key`.
    pub fn seal(&self, key: &str, plain: &[u8]) -> Result<Vec<u8>, RecordError> {
        if plain.len() > RECORD_LIMIT {
            return Err(StoreError::Limit("a record").into());
        }
        let mut nonce = [0u8; 24];
        getrandom::fill(&mut nonce).map_err(SecretError::Random)?;
        let keys = self.keys(key, &nonce)?;
        let mut sealed = Vec::with_capacity(HEADER + plain.len() + TAG);
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(keys.commitment());
        sealed.resize(HEADER + plain.len(), 0);
        let buffer = InOutBuf::new(plain, &mut sealed[HEADER..])
            .expect("the buffer was made for as many bytes");
        let tag = keys
            .cipher()
            .encrypt_inout_detached(&nonce.into(), &associated_data(key), buffer)
            .expect("a record is far below the cipher's limit");
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Opens the record `key`.
    pub fn unseal(&self, key: &str, sealed: &[u8]) -> Result<Vec<u8>, RecordError> {
        let length = plain_length(sealed).ok_or_else(|| damaged(key))?;
        let mut plain = vec![0; length];
        self.unseal_into(key, sealed, &mut plain)
            .map_err(|error| error.of(key))?;
        Ok(plain)
    }

    /// Opens the record `key`, a secret of any length.
    pub fn unseal_bytes(&self, key: &str, sealed: &[u8]) -> Result<SecretBytes, RecordError> {
        let length = plain_length(sealed).ok_or_else(|| damaged(key))?;
        let mut secret = SecretBytes::zeroed(length)?;
        self.unseal_into(key, sealed, secret.expose_secret_mut())
            .map_err(|error| error.of(key))?;
        process::wipe_stack();
        Ok(secret)
    }

    /// Opens the record `key`, a secret of 32 bytes that no other memory sees.
    pub fn unseal_secret(&self, key: &str, sealed: &[u8]) -> Result<Secret<32>, RecordError> {
        let secret = Secret::filled(|out| {
            self.unseal_into(key, sealed, out)
                .map_err(|error| error.of(key))
        });
        process::wipe_stack();
        secret
    }

    /// A key for another use than records, told apart by `domain`, and by `of` from others of that use.
    ///
    /// HKDF-SHA-256 (RFC 5869) without salt, master key as input, info = domain and `of`, length-prefixed. The same for as
    /// long as the master key is, whatever happens to the store.
    ///
    /// # Errors
    /// No memory for it.
    pub fn derive(&self, domain: &[u8], of: &[u8]) -> Result<Secret<32>, SecretError> {
        let mut key = Secret::zeroed()?;
        Hkdf::<Sha256>::new(None, self.0.secret().expose_secret())
            .expand(&length_prefixed(&[domain, of]), key.expose_secret_mut())
            .expect("32 bytes are within HKDF's limit");
        process::wipe_stack();
        Ok(key)
    }

    #[inline(never)]
    fn unseal_into(&self, key: &str, sealed: &[u8], out: &mut [u8]) -> Result<(), Unsealed> {
        let parts = Parts::of(sealed).ok_or(Unsealed::Damaged)?;
        let keys = self.keys(key, parts.nonce)?;
        if !bool::from(keys.commitment().ct_eq(parts.commitment)) {
            return Err(Unsealed::OtherKey);
        }
        let buffer = InOutBuf::new(parts.body, out).map_err(|_| Unsealed::Damaged)?;
        keys.cipher()
            .decrypt_inout_detached(
                &(*parts.nonce).into(),
                &associated_data(key),
                buffer,
                &(*parts.tag).into(),
            )
            .map_err(|_| Unsealed::Damaged)
    }

    fn keys(&self, key: &str, nonce: &[u8; 24]) -> Result<RecordKeys, SecretError> {
        let mut keys = RecordKeys(Secret::zeroed()?);
        Hkdf::<Sha256>::new(Some(nonce), self.0.secret().expose_secret())
            .expand(&associated_data(key), keys.0.expose_secret_mut())
            .expect("64 bytes are within HKDF's limit");
        Ok(keys)
    }
}

/// 32 bytes of cipher key and 32 that commit to it, for one writing of one record.
struct RecordKeys(Secret<64>);

impl RecordKeys {
    fn cipher(&self) -> XChaCha20Poly1305 {
        let (key, _) = self.halves();
        XChaCha20Poly1305::new(key.into())
    }

    fn commitment(&self) -> &[u8] {
        self.halves().1
    }

    fn halves(&self) -> (&[u8; 32], &[u8]) {
        self.0
            .expose_secret()
            .split_first_chunk()
            .expect("32 of 64 bytes")
    }
}

/// Why a record did not open.
enum Unsealed {
    OtherKey,
    Damaged,
    Secret(SecretError),
}

impl From<SecretError> for Unsealed {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

impl Unsealed {
    /// Once the store is open its master key is the right one, so another key's record was swapped in.
    fn of(self, key: &str) -> RecordError {
        match self {
            Self::OtherKey | Self::Damaged => damaged(key),
            Self::Secret(error) => error.into(),
        }
    }
}

/// The fields of a sealed record.
struct Parts<'a> {
    nonce: &'a [u8; 24],
    commitment: &'a [u8],
    body: &'a [u8],
    tag: &'a [u8; TAG],
}

impl<'a> Parts<'a> {
    fn of(sealed: &'a [u8]) -> Option<Self> {
        let (version, rest) = sealed.split_first()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (commitment, rest) = rest.split_at_checked(32)?;
        let (body, tag) = rest.split_last_chunk()?;
        (*version == VERSION).then_some(Self {
            nonce,
            commitment,
            body,
            tag,
        })
    }
}

fn plain_length(sealed: &[u8]) -> Option<usize> {
    Parts::of(sealed).map(|parts| parts.body.len())
}

fn associated_data(key: &str) -> Vec<u8> {
    length_prefixed(&[DOMAIN, &[VERSION], key.as_bytes()])
}

fn damaged(key: &str) -> RecordError {
    RecordError::Damaged(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer() -> Sealer {
        Sealer::new(MasterKey::from_secret(Secret::random().unwrap()))
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let sealer = sealer();
        let record = sealer.seal("a", b"content").unwrap();
        assert_eq!(sealer.unseal("a", &record).unwrap(), b"content");
        for at in 0..record.len() {
            for bit in 0..8 {
                let mut flipped = record.clone();
                flipped[at] ^= 1 << bit;
                assert!(
                    matches!(sealer.unseal("a", &flipped), Err(RecordError::Damaged(_))),
                    "byte {at} bit {bit}"
                );
            }
            assert!(sealer.unseal("a", &record[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn records_cannot_be_swapped() {
        let sealer = sealer();
        let record = sealer.seal("volume/a", b"content").unwrap();
        assert!(matches!(
            sealer.unseal("volume/b", &record),
            Err(RecordError::Damaged(key)) if key == "volume/b"
        ));
    }

    #[test]
    fn derived_keys_differ_by_use_and_stay() {
        let sealer = sealer();
        let derive = |domain: &[u8], of: &[u8]| *sealer.derive(domain, of).unwrap().expose_secret();
        assert_eq!(derive(b"a", b"b"), derive(b"a", b"b"));
        for (domain, of) in [
            (&b"a"[..], &b"c"[..]),
            (b"c", b"b"),
            (b"ab", b""),
            (b"", b"ab"),
        ] {
            assert_ne!(derive(b"a", b"b"), derive(domain, of), "{domain:?} {of:?}");
        }
    }

    #[test]
    fn the_store_sees_neither_content_nor_the_same_bytes_twice() {
        let sealer = sealer();
        let record = sealer.seal("a", b"content").unwrap();
        assert!(!record.windows(7).any(|window| window == b"content"));
        let again = sealer.seal("a", b"content").unwrap();
        assert_ne!(record[1..57], again[1..57]);
    }
}
