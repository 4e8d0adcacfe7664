//! Whether the store is the newest one: ends of the audit are signed and handed out, the machines keep them on their
//! encrypted disks and show them again. A store that was put back knows less than a machine has seen.

use std::sync::{Mutex, PoisonError};

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, ServerId};
use latchkey_protocol::wire::SignedHead;
use latchkey_secret::SecretBytes;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::{AdminError, Service};
use crate::audit::{self, AuditEntry, Event, Head, Kind, printable};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::StoreState;
use crate::records::{Record, key};
use crate::sealed::{RecordError, SealedStore};

/// Tells the signing key from all else that the master key gives.
const HEAD_KEY_DOMAIN: &[u8] = b"latchkeyd audit head key v1";
/// What comes before an Ed25519 private key's 32 bytes in PKCS#8 (RFC 8410 section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Epochs that were given up and are remembered.
const GIVEN_UP_LIMIT: usize = 256;

/// What tells a store that was put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// The epoch of heads that are signed now.
    pub epoch: Bytes<16>,
    /// Epochs whose loss an administrator accepted.
    pub given_up: Vec<Bytes<16>>,
    /// Set once a machine has shown that the store was put back.
    pub put_back: Option<PutBack>,
}

/// How it came out that the store was put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutBack {
    /// When.
    pub at: UnixMillis,
    /// Which machine showed it.
    pub client: ClientName,
    /// The end of the audit that it had seen.
    pub shown: u64,
    /// The end of the audit in the store.
    pub ours: u64,
    /// The epoch of what it had seen.
    pub epoch: Bytes<16>,
}

/// What a machine's head says of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The store has it.
    Known,
    /// The store does not, and an administrator accepted that.
    GivenUp,
    /// The store does not: it was put back.
    PutBack,
}

impl Witness {
    fn fresh() -> Result<Self, RecordError> {
        Ok(Self {
            epoch: random_epoch()?,
            given_up: Vec::new(),
            put_back: None,
        })
    }

    /// Whether the store is the newest one.
    pub fn state(&self) -> StoreState {
        match self.put_back {
            None => StoreState::Newest,
            Some(_) => StoreState::PutBack,
        }
    }

    /// What `shown`, which this server signed, says of a store whose audit ends at `head` and whose entry at the shown
    /// place has the hash `ours`.
    fn judge(&self, shown: &SignedHead, head: &Head, ours: Option<Bytes<32>>) -> Judgement {
        if shown.epoch != self.epoch {
            return match self.given_up.contains(&shown.epoch) {
                true => Judgement::GivenUp,
                // A later epoch than the store knows of: it was put back beyond its beginning.
                false => Judgement::PutBack,
            };
        }
        match shown.sequence <= head.sequence && ours == Some(shown.hash) {
            true => Judgement::Known,
            false => Judgement::PutBack,
        }
    }

    /// The same store, taken as it is.
    fn accepted(&self, put_back: &PutBack, epoch: Bytes<16>) -> Self {
        let mut given_up = self.given_up.clone();
        for lost in [self.epoch, put_back.epoch] {
            if !given_up.contains(&lost) {
                given_up.push(lost);
            }
        }
        let beyond = given_up.len().saturating_sub(GIVEN_UP_LIMIT);
        given_up.drain(..beyond);
        Self {
            epoch,
            given_up,
            put_back: None,
        }
    }
}

impl Record for Witness {
    fn key(&self) -> String {
        key::WITNESS.to_owned()
    }
}

impl Service {
    /// The end of the audit now, signed; with the public key.
    pub(super) fn signed_head(
        &self,
        epoch: &Bytes<16>,
    ) -> Result<(SignedHead, Bytes<32>), RecordError> {
        let head: Head = self.records.read(audit::HEAD)?.unwrap_or_default();
        self.heads
            .sign(&self.records, &self.server, epoch, head.sequence, head.hash)
    }

    /// What `shown` says of the store; `None` if this server never signed it.
    pub(super) fn judge_head(
        &self,
        witness: &Witness,
        shown: &SignedHead,
    ) -> Result<Option<(Judgement, u64)>, RecordError> {
        let (again, _) = self.heads.sign(
            &self.records,
            &self.server,
            &shown.epoch,
            shown.sequence,
            shown.hash,
        )?;
        // Ed25519 gives the same signature for the same message (RFC 8032).
        if again != *shown {
            return Ok(None);
        }
        // Not in a transaction: the audit only grows, and what was shown was in it when it was signed.
        let head: Head = self.records.read(audit::HEAD)?.unwrap_or_default();
        let ours = match shown.sequence {
            0 => Some(Head::default().hash),
            sequence => self
                .records
                .read::<AuditEntry>(&audit::entry_key(sequence))?
                .map(|entry| entry.hash),
        };
        Ok(Some((witness.judge(shown, &head, ours), head.sequence)))
    }

    /// Makes what tells a store that was put back, if it is not there: before any machine can have seen anything.
    ///
    /// # Errors
    /// The store's.
    pub fn prepare_witness(&self) -> Result<(), RecordError> {
        self.witness().map(drop)
    }

    /// The witness, made if there is none yet.
    pub(super) fn witness(&self) -> Result<Witness, RecordError> {
        if let Some(witness) = self.records.read(key::WITNESS)? {
            return Ok(witness);
        }
        self.records.transact(self.clock.now(), |work| {
            if let Some(witness) = work.read(key::WITNESS)? {
                return Ok(witness);
            }
            let witness = Witness::fresh()?;
            work.write(&witness)?;
            Ok(witness)
        })
    }

    /// Whether the store was put back, and how that came out.
    ///
    /// # Errors
    /// The store's.
    pub fn put_back(&self) -> Result<Option<PutBack>, AdminError> {
        let witness: Option<Witness> = self.records.read(key::WITNESS)?;
        Ok(witness.and_then(|witness| witness.put_back))
    }

    /// Takes a store that was put back as it is, in the open: from now on it releases again.
    ///
    /// # Errors
    /// `NotPutBack`, `Reason`, `Record`.
    pub fn accept_rollback(&self, reason: &str, who: &str) -> Result<PutBack, AdminError> {
        let reason = printable(reason.trim(), 400);
        if reason.trim().is_empty() {
            return Err(AdminError::Reason);
        }
        let epoch = random_epoch()?;
        self.records.transact(self.clock.now(), |work| {
            let witness: Option<Witness> = work.read(key::WITNESS)?;
            let found = witness.and_then(|witness| Some((witness.put_back.clone()?, witness)));
            let (put_back, witness) = found.ok_or(AdminError::NotPutBack)?;
            work.write(&witness.accepted(&put_back, epoch))?;
            let text = format!(
                "accepted that the store was put back, from entry {} of the audit to {} or before: {reason}",
                put_back.shown, put_back.ours
            );
            work.audit(Event::new(Kind::Accepted, text).who(who));
            Ok(put_back)
        })
    }
}

/// Whether the store is the newest one, as far as any machine has shown.
pub(super) fn store_state(work: &mut Work<'_>) -> Result<StoreState, RecordError> {
    let witness: Option<Witness> = work.read(key::WITNESS)?;
    Ok(witness.map_or(StoreState::Newest, |witness| witness.state()))
}

/// Signs heads. The key comes from the master key and not from the store: one that was put back beyond its first heartbeat
/// still knows what it signed.
#[derive(Default)]
pub(super) struct Heads(Mutex<Option<HeadKey>>);

struct HeadKey {
    key: SecretBytes,
    public: Bytes<32>,
}

impl Heads {
    fn sign(
        &self,
        records: &SealedStore,
        server: &ServerId,
        epoch: &Bytes<16>,
        sequence: u64,
        hash: Bytes<32>,
    ) -> Result<(SignedHead, Bytes<32>), RecordError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = match held.take() {
            Some(key) => key,
            None => HeadKey::derive(records, server)?,
        };
        let message = SignedHead::signed_bytes(server, epoch, sequence, &hash);
        let signed = key.sign(&message);
        let public = key.public;
        *held = Some(key);
        let head = SignedHead {
            epoch: *epoch,
            sequence,
            hash,
            signature: signed?,
        };
        Ok((head, public))
    }
}

impl HeadKey {
    fn derive(records: &SealedStore, server: &ServerId) -> Result<Self, RecordError> {
        let seed = records.sealer.derive(HEAD_KEY_DOMAIN, server.as_bytes())?;
        let mut key = SecretBytes::with_capacity(PKCS8_PREFIX.len() + 32)?;
        key.push(&PKCS8_PREFIX)?;
        key.push(seed.expose_secret())?;
        let mut public = Bytes([0; 32]);
        with_pair(&key, |pair| {
            let raw = pair.public_key_raw();
            (raw.len() == 32).then(|| public.0.copy_from_slice(raw))
        })?;
        Ok(Self { key, public })
    }

    fn sign(&self, message: &[u8]) -> Result<Bytes<64>, RecordError> {
        with_pair(&self.key, |pair| {
            let signature = pair.sign(message).ok()?;
            signature.try_into().ok().map(Bytes)
        })
    }
}

fn with_pair<T>(
    key: &SecretBytes,
    work: impl FnOnce(&KeyPair) -> Option<T>,
) -> Result<T, RecordError> {
    let der = PrivatePkcs8KeyDer::from(key.expose_secret());
    let mut pair =
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519).map_err(|_| unusable())?;
    let result = work(&pair);
    pair.zeroize();
    result.ok_or_else(unusable)
}

fn unusable() -> RecordError {
    RecordError::Damaged("head key".to_owned())
}

fn random_epoch() -> Result<Bytes<16>, RecordError> {
    let mut epoch = Bytes([0; 16]);
    getrandom::fill(&mut epoch.0)
        .map_err(|error| RecordError::from(latchkey_secret::SecretError::Random(error)))?;
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(epoch: u8, sequence: u64, hash: u8) -> SignedHead {
        SignedHead {
            epoch: Bytes([epoch; 16]),
            sequence,
            hash: Bytes([hash; 32]),
            signature: Bytes([0; 64]),
        }
    }

    #[test]
    fn what_the_store_does_not_have_was_lost_unless_that_was_accepted() {
        let witness = Witness {
            epoch: Bytes([1; 16]),
            given_up: vec![Bytes([2; 16])],
            put_back: None,
        };
        let head = Head {
            sequence: 10,
            hash: Bytes([10; 32]),
        };
        for (shown, ours, judgement) in [
            (shown(1, 10, 10), Some(10), Judgement::Known),
            (shown(1, 7, 7), Some(7), Judgement::Known),
            (shown(1, 7, 7), Some(8), Judgement::PutBack),
            (shown(1, 7, 7), None, Judgement::PutBack),
            (shown(1, 11, 11), None, Judgement::PutBack),
            (shown(1, 11, 11), Some(11), Judgement::PutBack),
            (shown(2, 99, 99), None, Judgement::GivenUp),
            (shown(3, 1, 1), Some(1), Judgement::PutBack),
        ] {
            let ours = ours.map(|hash| Bytes([hash; 32]));
            assert_eq!(witness.judge(&shown, &head, ours), judgement, "{shown:?}");
        }
    }

    #[test]
    fn accepting_gives_up_what_was_and_what_was_shown() {
        let witness = Witness {
            epoch: Bytes([1; 16]),
            given_up: Vec::new(),
            put_back: None,
        };
        let lost = PutBack {
            at: UnixMillis(0),
            client: "web-1".parse().unwrap(),
            shown: 5,
            ours: 3,
            epoch: Bytes([7; 16]),
        };
        let accepted = witness.accepted(&lost, Bytes([2; 16]));
        assert_eq!(accepted.epoch, Bytes([2; 16]));
        assert_eq!(accepted.given_up, [Bytes([1; 16]), Bytes([7; 16])]);
        assert_eq!(accepted.state(), StoreState::Newest);
    }
}
