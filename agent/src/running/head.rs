//! The newest end of a key server's audit that this machine was shown, kept on its encrypted disk.
//!
//! Each machine shows its own at the next heartbeat, so a key server whose store was put back to an earlier copy hears
//! of it from the first machine that comes. The key that signs them is pinned at first sight.

use latchkey_protocol::ServerId;
use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::wire::{HeartbeatAnswer, SignedHead};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs;
use serde::{Deserialize, Serialize};

use crate::files::{self, Files, FilesError};

/// What is kept of one key server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Kept {
    /// The key that signs its heads.
    pub head_key: Bytes<32>,
    /// The newest head.
    pub head: SignedHead,
}

/// What a key server showed was not taken; what was kept stays, and is shown to it again.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// Another key than the pinned one signs.
    #[error(
        "the key server signs its audit by another key than before: was it set up anew?\n\
         if so, remove '{0}'"
    )]
    OtherKey(String),
    /// The signature is not by the key.
    #[error("the key server showed an end of its audit with a wrong signature")]
    Signature,
    /// Its audit is shorter than it was, or another.
    #[error(
        "the key server's audit was at entry {kept} and is now at {shown}: its store was put back to an earlier copy"
    )]
    PutBack {
        /// The entry that was kept.
        kept: u64,
        /// The one that was shown.
        shown: u64,
    },
    /// It knows so itself.
    #[error(
        "the key server's store was put back to an earlier copy, and it releases nothing until \
         'latchkeyd accept-rollback' there"
    )]
    NotAccepted,
    /// The file.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// What is kept of `server`; a file that cannot be read counts as none, with a warning.
pub fn load(files: &Files, server: &ServerId) -> Option<Kept> {
    let path = files.head(server);
    let text = match files::read(&path) {
        Ok(text) => text,
        Err(error) if error.is_missing() => return None,
        Err(error) => {
            log::warn!("{error}");
            return None;
        }
    };
    serde_json::from_slice(&text)
        .inspect_err(|error| log::warn!("'{}' is damaged: {error}", path.display()))
        .ok()
}

/// Takes what the answer to a heartbeat shows in place of what is kept, durably.
///
/// # Errors
/// A variant of [`HeadError`].
pub fn take(files: &Files, server: &ServerId, answer: &HeartbeatAnswer) -> Result<(), HeadError> {
    let kept = load(files, server);
    let path = files.head(server);
    if kept
        .as_ref()
        .is_some_and(|kept| kept.head_key != answer.head_key)
    {
        return Err(HeadError::OtherKey(path.display().to_string()));
    }
    let Some(head) = answer.head else {
        return Err(HeadError::NotAccepted);
    };
    if !is_signed(server, &head, &answer.head_key) {
        return Err(HeadError::Signature);
    }
    if let Some(kept) = &kept {
        check_order(&kept.head, &head)?;
    }
    let new = Kept {
        head_key: answer.head_key,
        head,
    };
    if kept.as_ref() == Some(&new) {
        return Ok(());
    }
    let json = serde_json::to_vec(&new).expect("a head is plain text and numbers");
    files::make_dir(&files.state())?;
    Ok(files::replace(&path, &json)?)
}

/// Within one epoch the audit only grows. Another epoch begins when an administrator accepts that a store was put back.
fn check_order(kept: &SignedHead, shown: &SignedHead) -> Result<(), HeadError> {
    let same_epoch = kept.epoch == shown.epoch;
    let changed = kept.sequence == shown.sequence && kept.hash != shown.hash;
    if same_epoch && (shown.sequence < kept.sequence || changed) {
        return Err(HeadError::PutBack {
            kept: kept.sequence,
            shown: shown.sequence,
        });
    }
    Ok(())
}

fn is_signed(server: &ServerId, head: &SignedHead, key: &Bytes<32>) -> bool {
    let message = SignedHead::signed_bytes(server, &head.epoch, head.sequence, &head.hash);
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let ed25519 = |(scheme, _): &&(SignatureScheme, _)| *scheme == SignatureScheme::ED25519;
    algorithms
        .mapping
        .iter()
        .find(ed25519)
        .into_iter()
        .flat_map(|(_, algorithms)| algorithms.iter())
        .any(|algorithm| {
            algorithm
                .verify_signature(&key.0, &message, &head.signature.0)
                .is_ok()
        })
}

#[cfg(test)]
mod tests {
    use latchkey_protocol::wire::Version;
    use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};

    use super::*;

    struct Signer(KeyPair);

    impl Signer {
        fn new() -> Self {
            Self(KeyPair::generate_for(&PKCS_ED25519).unwrap())
        }

        fn answer(&self, epoch: u8, sequence: u64, hash: u8) -> HeartbeatAnswer {
            let (epoch, hash) = (Bytes([epoch; 16]), Bytes([hash; 32]));
            let bytes = SignedHead::signed_bytes(&server(), &epoch, sequence, &hash);
            let signature = self.0.sign(&bytes).unwrap().try_into().unwrap();
            HeartbeatAnswer {
                version: Version::default(),
                head: Some(SignedHead {
                    epoch,
                    sequence,
                    hash,
                    signature: Bytes(signature),
                }),
                head_key: Bytes(self.0.der_bytes().try_into().unwrap()),
                heartbeat_every: 3600,
                life_every: 10,
                renew: false,
            }
        }
    }

    fn server() -> ServerId {
        ServerId::from_bytes([7; 32])
    }

    #[test]
    fn heads_move_forward_and_an_earlier_one_never_takes_their_place() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        let signer = Signer::new();
        let take = |answer: &HeartbeatAnswer| take(&files, &server(), answer);
        let kept = || load(&files, &server()).map(|kept| kept.head.sequence);
        assert_eq!(kept(), None);
        take(&signer.answer(1, 5, 5)).unwrap();
        take(&signer.answer(1, 5, 5)).unwrap();
        take(&signer.answer(1, 9, 9)).unwrap();
        for put_back in [signer.answer(1, 8, 8), signer.answer(1, 9, 1)] {
            let error = take(&put_back).unwrap_err();
            assert!(
                matches!(error, HeadError::PutBack { kept: 9, .. }),
                "{error}"
            );
            assert_eq!(kept(), Some(9));
        }
        let mut silent = signer.answer(1, 1, 1);
        silent.head = None;
        assert!(matches!(take(&silent), Err(HeadError::NotAccepted)));
        assert_eq!(kept(), Some(9));
        take(&signer.answer(2, 3, 3)).unwrap();
        assert_eq!(kept(), Some(3), "the loss was accepted");
    }

    #[test]
    fn another_key_or_a_wrong_signature_is_not_taken() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        let signer = Signer::new();
        let mut forged = signer.answer(1, 5, 5);
        forged.head.as_mut().unwrap().sequence = 6;
        assert!(matches!(
            take(&files, &server(), &forged),
            Err(HeadError::Signature)
        ));
        assert_eq!(load(&files, &server()), None);
        take(&files, &server(), &signer.answer(1, 5, 5)).unwrap();
        assert!(matches!(
            take(&files, &server(), &Signer::new().answer(1, 6, 6)),
            Err(HeadError::OtherKey(_))
        ));
        let other = ServerId::from_bytes([8; 32]);
        assert!(matches!(
            take(&files, &other, &signer.answer(1, 5, 5)),
            Err(HeadError::Signature)
        ));
    }

    #[test]
    fn a_damaged_file_counts_as_none_and_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        files::make_dir(&files.state()).unwrap();
        files::replace(&files.head(&server()), b"{\"head").unwrap();
        assert_eq!(load(&files, &server()), None);
        take(&files, &server(), &Signer::new().answer(1, 5, 5)).unwrap();
        assert!(load(&files, &server()).is_some());
    }
}
