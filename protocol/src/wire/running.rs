//! What a running machine says with its host key: it moves its tickets on, arms a reboot, shows that it lives, keeps the
//! newest end of the audit for the key server, and renews its certificate.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::{Text, Version, VolumeTicket, distinct, distinct_tickets};
use crate::encoding::{Bytes, length_prefixed};
use crate::ids::{RequestId, ServerId, VolumeId};

/// Most build ids in one heartbeat.
pub const IMAGES_LIMIT: usize = 8;
/// What the signature of a [`SignedHead`] begins with.
const HEAD_DOMAIN: &[u8] = b"latchkeyd audit head v1";

/// Asks for the next ticket of each volume (`/v1/tickets/next`). Until one is confirmed, the same is given again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketsRequest {
    /// 1.
    pub version: Version,
    /// The volumes, each once.
    #[serde(deserialize_with = "distinct_shown")]
    pub volumes: Vec<Shown>,
}

/// A volume, and the ticket that its header has now.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// The volume.
    pub volume: VolumeId,
    /// The ticket, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<Bytes<32>>,
}

/// The answer to a [`TicketsRequest`]: in its order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketsAnswer {
    /// 1.
    pub version: Version,
    /// The next tickets. From now on the key server takes these as well as the current ones.
    #[serde(deserialize_with = "distinct_tickets")]
    pub tickets: Vec<VolumeTicket>,
}

/// Says that the headers hold these tickets, durably (`/v1/tickets/confirm`): the earlier ones are stale from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// 1.
    pub version: Version,
    /// The tickets, each volume once; none, if no volume of the machine can carry one.
    #[serde(deserialize_with = "distinct_tickets")]
    pub tickets: Vec<VolumeTicket>,
    /// Announces a reboot, in the same step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<Arm>,
}

/// An announced reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// How long it is announced for, 60 to 86,400.
    pub seconds: u32,
}

/// The answer to a [`ConfirmRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmAnswer {
    /// 1.
    pub version: Version,
    /// Until when one boot is expected, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub armed_until: Option<u64>,
}

/// A running machine says that it runs (`/v1/heartbeat`).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatRequest {
    /// 1.
    pub version: Version,
    /// The end of the audit that this key server gave last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<SignedHead>,
    /// Build ids of images that were built on this machine, the newest first, at most [`IMAGES_LIMIT`].
    #[serde(
        default,
        deserialize_with = "few_images",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub images: Vec<Bytes<32>>,
    /// The boot session that this system came up by, if one was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<RequestId>,
}

/// The answer to a [`HeartbeatRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatAnswer {
    /// 1.
    pub version: Version,
    /// The end of the audit now. The machine keeps it durably in place of the one it had, and shows it next time. None
    /// while the key server knows that its store was put back: the machine keeps what it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<SignedHead>,
    /// The Ed25519 public key that signs the heads: the same for as long as the key server has its master key and its id,
    /// whatever becomes of its store.
    pub head_key: Bytes<32>,
    /// Seconds until the next heartbeat.
    pub heartbeat_every: u32,
    /// Seconds between two beats of the stream `/v1/life`.
    pub life_every: u32,
    /// Whether the host certificate should be renewed now.
    pub renew: bool,
}

/// The end of a key server's audit, signed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedHead {
    /// Drawn by `latchkeyd init`, or at the first start with a store that has none, and anew each time a store that was put
    /// back was accepted. One that the store does not know was drawn later than the store was written.
    pub epoch: Bytes<16>,
    /// The last entry's place in the chain.
    pub sequence: u64,
    /// Its hash.
    pub hash: Bytes<32>,
    /// Ed25519 over [`SignedHead::signed_bytes`].
    pub signature: Bytes<64>,
}

impl SignedHead {
    /// What the signature covers, length-prefixed: domain, key server, epoch, sequence (big-endian u64), hash.
    pub fn signed_bytes(
        server: &ServerId,
        epoch: &Bytes<16>,
        sequence: u64,
        hash: &Bytes<32>,
    ) -> Vec<u8> {
        length_prefixed(&[
            HEAD_DOMAIN,
            server.as_bytes(),
            &epoch.0,
            &sequence.to_be_bytes(),
            &hash.0,
        ])
    }
}

/// One line of the stream that `GET /v1/life` answers with. `Debug` does not show a challenge.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LifeLine {
    /// The key server is there; counted from 0.
    Beat(u64),
    /// Somebody boots as this machine: whoever lives says so at once by a [`LifeAnswer`].
    Challenge(Bytes<32>),
}

impl fmt::Debug for LifeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beat(count) => write!(f, "Beat({count})"),
            Self::Challenge(_) => f.write_str("Challenge(..)"),
        }
    }
}

/// A running machine's answer to a challenge (`/v1/life/answer`), over a connection of its own: that TLS session is what
/// the host key signs.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LifeAnswer {
    /// 1.
    pub version: Version,
    /// The challenge.
    pub challenge: Bytes<32>,
}

impl fmt::Debug for LifeAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LifeAnswer")
    }
}

/// Asks for a new certificate of the same host key (`/v1/renew`).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// 1.
    pub version: Version,
    /// PKCS#10 request in PEM; its key must be the one of this connection.
    pub host_csr: Text,
}

/// The answer to a [`RenewRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewAnswer {
    /// 1.
    pub version: Version,
    /// Certificate of the host key, PEM.
    pub host_certificate: Text,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shown({})", self.volume)
    }
}

fn distinct_shown<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Shown>, D::Error> {
    distinct(deserializer, |shown: &Shown| shown.volume, 1)
}

fn few_images<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Bytes<32>>, D::Error> {
    let images = Vec::<Bytes<32>>::deserialize(deserializer)?;
    if images.len() > IMAGES_LIMIT {
        return Err(serde::de::Error::custom(format_args!(
            "more than {IMAGES_LIMIT} images"
        )));
    }
    Ok(images)
}
