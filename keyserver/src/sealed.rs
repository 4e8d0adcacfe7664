//! Seals records before they reach the store: whoever has the store alone can read none and change none.
//!
//! A sealed record is version (1 byte), nonce (24), commitment (32), ciphertext, tag (16). HKDF-SHA-256 (RFC 5869)
//! with the nonce as salt, the master key as input and the record's key as info gives the XChaCha20-Poly1305 key
//! and the commitment, by which a wrong master key is told from a damaged record. The additional data names the
//! record's key, so that no record can be passed off as another. An older version of the same record can: the
//! audit shows what was decided since.

use std::sync::{Arc, Mutex};

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use hkdf::Hkdf;
use latchkey_protocol::encoding::length_prefixed;
use latchkey_secret::{Secret, SecretBytes, SecretError, process};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::group::Queue;
use crate::master_key::MasterKey;
use crate::records::key;
use crate::store::{Operation, Outcome, Store, StoreError, Transaction};

const DOMAIN: &[u8] = b"latchkeyd record v1";
const VERSION: u8 = 1;
/// Bytes before the ciphertext.
const HEADER: usize = 1 + 24 + 32;
const TAG: usize = 16;
/// Most bytes of a record before it is sealed.
pub const RECORD_LIMIT: usize = 128 * 1024;
/// The record that tells whether a master key is the store's, and that the store was set up.
const CHECK: &str = "check";

/// A store whose records are sealed under a master key.
pub struct SealedStore {
    pub(crate) store: Box<dyn Store>,
    master: MasterKey,
    /// Work that waits to be written.
    pub(crate) queue: Queue,
    /// Held by whoever was overtaken, until its work is done: two of them never overtake each other.
    pub(crate) overtaken: Mutex<()>,
}

/// A record could not be read or written. One failure can concern several writers, so it can be cloned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The master key is not the one that this store was made with.
    #[error(
        "the master key is not the one of this store\ngive the master key that 'latchkeyd init' made together with this store"
    )]
    WrongMasterKey,
    /// The store has been set up already.
    #[error("the store is set up already\nnothing was changed")]
    Exists,
    /// The store has never been set up.
    #[error("the store is empty\nset it up with 'latchkeyd init'")]
    Empty,
    /// A record was changed, swapped or damaged.
    #[error("record '{0}' is damaged or was tampered with\nrestore the store from a backup")]
    Damaged(String),
    /// A record that must be there is not.
    #[error("record '{0}' is missing\nrestore the store from a backup")]
    Missing(String),
    /// Others changed the same records again and again.
    #[error("too many changes at once")]
    Contention,
    /// No memory or no randomness.
    #[error("no memory for a secret")]
    Secret(#[source] Arc<SecretError>),
}

impl From<SecretError> for RecordError {
    fn from(error: SecretError) -> Self {
        Self::Secret(Arc::new(error))
    }
}

impl SealedStore {
    /// Sets an empty store up for `master`.
    ///
    /// # Errors
    /// `Exists`, `Store`, `Secret`.
    pub fn create(store: Box<dyn Store>, master: MasterKey) -> Result<Self, RecordError> {
        if !store.range("", None, 1)?.is_empty() {
            return Err(RecordError::Exists);
        }
        let sealed = Self::with(store, master);
        sealed.put(CHECK, DOMAIN)?;
        Ok(sealed)
    }

    /// Opens a store that was set up with `master`.
    ///
    /// # Errors
    /// `Empty`, `WrongMasterKey`, `Damaged`, `Store`, `Secret`.
    pub fn open(store: Box<dyn Store>, master: MasterKey) -> Result<Self, RecordError> {
        let sealed = Self::with(store, master);
        let stored = sealed.store.get(CHECK)?.ok_or(RecordError::Empty)?;
        let mut text = [0; DOMAIN.len()];
        match sealed.unseal_into(CHECK, &stored.value, &mut text) {
            Ok(()) if text == DOMAIN => Ok(sealed),
            Err(Unsealed::OtherKey) => Err(RecordError::WrongMasterKey),
            Err(Unsealed::Secret(error)) => Err(error.into()),
            _ => Err(RecordError::Damaged(CHECK.to_owned())),
        }
    }

    /// Keeps `bytes` under `name`, such as the CA's private key; replaces what was there.
    ///
    /// # Errors
    /// `Store`, `Secret`.
    pub fn put_secret(&self, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
        self.put(&key::secret(name), bytes)
    }

    /// What was kept under `name`.
    ///
    /// # Errors
    /// `Damaged`, `Store`, `Secret`.
    pub fn secret(&self, name: &str) -> Result<Option<SecretBytes>, RecordError> {
        let key = key::secret(name);
        let Some(stored) = self.store.get(&key)? else {
            return Ok(None);
        };
        let length = plain_length(&stored.value).ok_or_else(|| damaged(&key))?;
        let mut secret = SecretBytes::zeroed(length)?;
        self.unseal_into(&key, &stored.value, secret.expose_secret_mut())
            .map_err(|error| error.of(&key))?;
        process::wipe_stack();
        Ok(Some(secret))
    }

    /// Seals `plain` as the record `key`.
    pub(crate) fn seal(&self, key: &str, plain: &[u8]) -> Result<Vec<u8>, RecordError> {
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
    pub(crate) fn unseal(&self, key: &str, sealed: &[u8]) -> Result<Vec<u8>, RecordError> {
        let length = plain_length(sealed).ok_or_else(|| damaged(key))?;
        let mut plain = vec![0; length];
        self.unseal_into(key, sealed, &mut plain)
            .map_err(|error| error.of(key))?;
        Ok(plain)
    }

    /// Opens the record `key`, a secret of 32 bytes that no other memory sees.
    pub(crate) fn unseal_secret(
        &self,
        key: &str,
        sealed: &[u8],
    ) -> Result<Secret<32>, RecordError> {
        let secret = Secret::filled(|out| {
            self.unseal_into(key, sealed, out)
                .map_err(|error| error.of(key))
        });
        process::wipe_stack();
        secret
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

    fn with(store: Box<dyn Store>, master: MasterKey) -> Self {
        Self {
            store,
            master,
            queue: Queue::default(),
            overtaken: Mutex::new(()),
        }
    }

    fn put(&self, key: &str, plain: &[u8]) -> Result<(), RecordError> {
        let put = Operation::Put {
            key: key.to_owned(),
            value: self.seal(key, plain)?,
        };
        let transaction = Transaction {
            compares: Vec::new(),
            operations: vec![put],
        };
        match self.store.commit(&transaction)? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict => Err(RecordError::Contention),
        }
    }

    fn keys(&self, key: &str, nonce: &[u8; 24]) -> Result<RecordKeys, SecretError> {
        let mut keys = RecordKeys(Secret::zeroed()?);
        Hkdf::<Sha256>::new(Some(nonce), self.master.secret().expose_secret())
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
    use crate::store::MemoryStore;

    fn key(byte: u8) -> MasterKey {
        MasterKey::from_secret(
            Secret::filled(|out| {
                *out = [byte; 32];
                Ok::<_, SecretError>(())
            })
            .unwrap(),
        )
    }

    #[test]
    fn only_its_master_key_opens_a_store() {
        let store = MemoryStore::default();
        let open = |byte| SealedStore::open(Box::new(store.clone()), key(byte));
        let create = |byte| SealedStore::create(Box::new(store.clone()), key(byte));
        assert!(matches!(open(1), Err(RecordError::Empty)));
        let sealed = create(1).unwrap();
        sealed.put_secret("ca", b"private").unwrap();
        assert!(matches!(create(1), Err(RecordError::Exists)));
        assert!(matches!(open(2), Err(RecordError::WrongMasterKey)));
        let secret = open(1).unwrap().secret("ca").unwrap().unwrap();
        assert_eq!(secret.expose_secret(), b"private");
        assert!(open(1).unwrap().secret("other").unwrap().is_none());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let sealed = SealedStore::create(Box::new(MemoryStore::default()), key(1)).unwrap();
        let record = sealed.seal("a", b"content").unwrap();
        assert_eq!(sealed.unseal("a", &record).unwrap(), b"content");
        for at in 0..record.len() {
            for bit in 0..8 {
                let mut flipped = record.clone();
                flipped[at] ^= 1 << bit;
                assert!(
                    matches!(sealed.unseal("a", &flipped), Err(RecordError::Damaged(_))),
                    "byte {at} bit {bit}"
                );
            }
            assert!(sealed.unseal("a", &record[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn records_cannot_be_swapped() {
        let sealed = SealedStore::create(Box::new(MemoryStore::default()), key(1)).unwrap();
        let record = sealed.seal("volume/a", b"content").unwrap();
        assert!(matches!(
            sealed.unseal("volume/b", &record),
            Err(RecordError::Damaged(key)) if key == "volume/b"
        ));
    }

    #[test]
    fn the_store_sees_neither_content_nor_the_same_bytes_twice() {
        let sealed = SealedStore::create(Box::new(MemoryStore::default()), key(1)).unwrap();
        let record = sealed.seal("a", b"content").unwrap();
        assert!(!record.windows(7).any(|window| window == b"content"));
        let again = sealed.seal("a", b"content").unwrap();
        assert_ne!(record[1..57], again[1..57]);
    }
}
