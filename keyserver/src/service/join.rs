//! Joining: trading the secret of an invitation for a registered pair of keys.

use std::net::IpAddr;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::ClientName;

use latchkey_protocol::encoding::length_prefixed;
use sha2::{Digest, Sha256};

use super::Service;
use super::refusals::Refused;
use crate::audit::{Event, Kind};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::records::{Client, Invite, Joined, KnownKey, Rejoin, Role, SpkiHash, UsedBy, key};
use crate::sealed::RecordError;

/// What a new client shows.
#[derive(Clone, Copy)]
pub struct JoinKeys<'a> {
    /// The one-time secret.
    pub secret: &'a Bytes<32>,
    /// The boot key.
    pub boot: SpkiHash,
    /// The host key.
    pub host: SpkiHash,
}

/// Joining was refused. Only the holder of an invitation's secret gets a reason.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No such secret: a stranger, who gets the stranger's answer (403).
    #[error("refused")]
    Unknown,
    /// The invitation has ended (403).
    #[error(
        "the join token has expired\nask the administrator for a new one: latchkeyd invite {0}"
    )]
    Expired(ClientName),
    /// A newer invitation or a revocation took its place (403).
    #[error(
        "the join token is no longer valid\nask the administrator for a new one: latchkeyd invite {0}"
    )]
    Withdrawn(ClientName),
    /// Used with other keys (403); the audit has an alarm.
    #[error(
        "the join token was used already, by a machine with other keys\nif that was not you, tell the administrator: latchkeyd revoke {0}"
    )]
    Used(ClientName),
    /// Boot key and host key are the same (400).
    #[error("boot key and host key must differ")]
    SameKey,
    /// One of the keys was registered before (409).
    #[error("one of the keys is registered already\nmake new keys and join again")]
    KeyTaken,
    /// The store failed (503).
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Service {
    /// Registers the keys for the client that was invited; the name is for the certificates. The same keys may
    /// do it again until the invitation ends.
    ///
    /// # Errors
    /// `JoinError`.
    pub fn join(&self, keys: JoinKeys<'_>, peer: IpAddr) -> Result<ClientName, JoinError> {
        if keys.boot == keys.host {
            return Err(JoinError::SameKey);
        }
        let now = self.clock.now();
        let result = self
            .records
            .transact(now, |work| join(work, keys, peer, now))?;
        result.map_err(|Refusal { error, invited }| {
            let Some(client) = invited else {
                return error;
            };
            let (kind, name) = match error {
                JoinError::Used(_) => (Kind::Alarm, "join token used with other keys"),
                JoinError::Expired(_) => (Kind::Refused, "join token expired"),
                JoinError::Withdrawn(_) => (Kind::Refused, "join token withdrawn"),
                _ => (Kind::Refused, "join with a key that is registered already"),
            };
            let noted = self.note(vec![Refused {
                kind,
                client,
                volume: None,
                request: None,
                peer,
                name,
                text: name.to_owned(),
            }]);
            noted.map_or_else(JoinError::Record, |()| error)
        })
    }
}

/// A refusal, and whose invitation it concerns if that is known.
struct Refusal {
    error: JoinError,
    invited: Option<ClientName>,
}

/// The result of joining, once the store has answered.
type Answer = Result<ClientName, Refusal>;

fn join(
    work: &mut Work<'_>,
    keys: JoinKeys<'_>,
    peer: IpAddr,
    now: UnixMillis,
) -> Result<Answer, RecordError> {
    let hash = secret_hash(keys.secret);
    let Some(mut invite) = work.read::<Invite>(&key::invite(&hash.0))? else {
        return Ok(Err(Refusal {
            error: JoinError::Unknown,
            invited: None,
        }));
    };
    let name = invite.client.clone();
    let refused = |error: fn(ClientName) -> JoinError| {
        Ok(Err(Refusal {
            error: error(name.clone()),
            invited: Some(name.clone()),
        }))
    };
    let shown = UsedBy {
        boot: keys.boot,
        host: keys.host,
    };
    if invite.used.is_some_and(|used| used != shown) {
        return refused(JoinError::Used);
    }
    if !now.is_within(invite.created, invite.expires) {
        return refused(JoinError::Expired);
    }
    let at = key::client(&name);
    let mut client: Client = work.read(&at)?.ok_or(RecordError::Missing(at))?;
    if client.invitation != Some(hash) {
        return refused(JoinError::Withdrawn);
    }
    if invite.used.is_some() {
        return Ok(Ok(name));
    }
    let roles = [(keys.boot, Role::Boot), (keys.host, Role::Host)];
    // Both before either is written: a refusal is committed too, with what was written before it.
    for (spki, _) in roles {
        if work.read::<KnownKey>(&key::known_key(&spki))?.is_some() {
            return refused(|_| JoinError::KeyTaken);
        }
    }
    for (spki, role) in roles {
        work.write(&KnownKey {
            spki,
            client: name.clone(),
            role,
        })?;
    }
    invite.used = Some(shown);
    work.write(&invite)?;
    let replaced = client.joined.replace(Joined {
        boot: keys.boot,
        host: keys.host,
        at: now,
        from: peer.to_canonical(),
    });
    client.revoked = None;
    work.write(&client)?;
    // What was known of the machine with the earlier keys is nothing to the one with these.
    work.remove(key::machine(&name));
    // Whoever asked to be taken back in the place of the earlier keys would have these replaced.
    if let Some(asked) = work.read::<Rejoin>(&key::rejoin(&name))? {
        work.remove(key::number(&asked.number));
        work.remove(key::rejoin(&name));
    }
    let text = match replaced {
        Some(_) => "joined anew; its earlier keys no longer count",
        None => "joined",
    };
    work.audit(Event::new(Kind::Joined, text).client(&name).peer(peer));
    Ok(Ok(name))
}

/// What is stored of an invitation's secret.
pub(super) fn secret_hash(secret: &Bytes<32>) -> Bytes<32> {
    let encoded = length_prefixed(&[b"latchkeyd invitation v1", &secret.0]);
    Bytes(Sha256::digest(encoded).into())
}
