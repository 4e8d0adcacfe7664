//! The JSON types of the HTTP interface, version 1, with their limits.
//!
//! Unknown and duplicate fields are refused on both sides: a peer that says something that we do not understand
//! is not one that we may guess at. The `version` field of each body tells which rules hold.

mod rejoin;
mod running;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::encoding::Bytes;
use crate::ids::{Generation, RequestId, VolumeId};
use crate::release::SealedShare;

pub use rejoin::{RejoinAnswer, RejoinOutcome, RejoinRequest};
pub use running::{
    Arm, ConfirmAnswer, ConfirmRequest, HeartbeatAnswer, HeartbeatRequest, IMAGES_LIMIT,
    LifeAnswer, LifeLine, RenewAnswer, RenewRequest, Shown, SignedHead, TicketsAnswer,
    TicketsRequest,
};

/// The version of every body in this module.
pub const VERSION: u32 = 1;
/// Most bytes of a request's or an answer's body.
pub const BODY_LIMIT: usize = 64 * 1024;
/// Most volumes in one request.
pub const VOLUMES_LIMIT: usize = 64;
/// Most bytes of any free text in a body.
pub const TEXT_LIMIT: usize = 4096;

/// `/v1/join`: no client certificate.
pub const JOIN: &str = "/v1/join";
/// `/v1/rejoin`: no client certificate.
pub const REJOIN: &str = "/v1/rejoin";
/// `/v1/volumes`: host key. `DELETE /v1/volumes/ID` retires one.
pub const VOLUMES: &str = "/v1/volumes";
/// `/v1/rotate`: host key.
pub const ROTATE: &str = "/v1/rotate";
/// `/v1/rotate/end`: host key.
pub const ROTATE_END: &str = "/v1/rotate/end";
/// `/v1/release`: boot key.
pub const RELEASE: &str = "/v1/release";
/// `/v1/proof`: host key.
pub const PROOF: &str = "/v1/proof";
/// `/v1/open`: host key.
pub const OPEN: &str = "/v1/open";
/// `/v1/report`: host key.
pub const REPORT: &str = "/v1/report";
/// `/v1/status`: host key.
pub const STATUS: &str = "/v1/status";
/// `/v1/tickets/next`: host key.
pub const TICKETS_NEXT: &str = "/v1/tickets/next";
/// `/v1/tickets/confirm`: host key.
pub const TICKETS_CONFIRM: &str = "/v1/tickets/confirm";
/// `/v1/heartbeat`: host key.
pub const HEARTBEAT: &str = "/v1/heartbeat";
/// `GET /v1/life`: host key; the answer is a stream of [`LifeLine`]s.
pub const LIFE: &str = "/v1/life";
/// `/v1/life/answer`: host key.
pub const LIFE_ANSWER: &str = "/v1/life/answer";
/// `/v1/renew`: host key.
pub const RENEW: &str = "/v1/renew";

/// The field `version`: anything but [`VERSION`] fails to parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Version(u32);

impl Default for Version {
    fn default() -> Self {
        Self(VERSION)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            VERSION => Ok(Self(VERSION)),
            other => Err(serde::de::Error::custom(format_args!(
                "version {other} is not spoken here, only {VERSION}"
            ))),
        }
    }
}

/// Text of at most [`TEXT_LIMIT`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// `text`, cut to the limit at a character boundary.
    pub fn cut(text: &str) -> Self {
        let mut end = text.len().min(TEXT_LIMIT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text[..end].to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > TEXT_LIMIT {
            return Err(serde::de::Error::custom(format_args!(
                "a text of more than {TEXT_LIMIT} bytes"
            )));
        }
        Ok(Self(text))
    }
}

/// Trades the secret of a join token for certificates. `Debug` shows no secret.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// 1.
    pub version: Version,
    /// The join token's one-time secret.
    pub secret: Bytes<32>,
    /// PKCS#10 request in PEM for the boot key; only its key counts.
    pub boot_csr: Text,
    /// PKCS#10 request in PEM for the host key; only its key counts.
    pub host_csr: Text,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinRequest")
    }
}

/// The answer to a [`JoinRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinAnswer {
    /// 1.
    pub version: Version,
    /// Certificate of the boot key, PEM.
    pub boot_certificate: Text,
    /// Certificate of the host key, PEM.
    pub host_certificate: Text,
}

/// Registers a volume under an id that the client chose. Idempotent for the same client and id.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    /// 1.
    pub version: Version,
    /// Binds the answer's sealed share.
    pub request: RequestId,
    /// X25519 public key that the share is sealed to.
    pub ephemeral_key: Bytes<32>,
    /// The id.
    pub volume: VolumeId,
    /// What people call it: the mapping's name and the UUID in its header.
    pub label: Text,
    /// Which key asks for it at boot. Key servers of earlier versions know the boot key only, and so this is left out for
    /// [`OpenedBy::BootKey`]; they refuse all others.
    #[serde(default, skip_serializing_if = "OpenedBy::is_boot_key")]
    pub opened_by: OpenedBy,
}

/// Which of a machine's keys asks for a volume's share after a boot. Fixed when the volume is bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenedBy {
    /// The boot key: the volume opens in the initramfs (`/v1/release`), and root is encrypted. Who has the host key has opened
    /// that root. Volumes that an earlier version bound are of this kind whatever root lies on.
    #[default]
    BootKey,
    /// The boot key, but root is not encrypted: the host key too is in every copy of the disk.
    ExposedBootKey,
    /// The host key: the volume opens in the running system (`/v1/open`), whose root is encrypted. Who has the key has
    /// opened that root.
    HostKey,
    /// The same, but root is not encrypted: the key is in every copy of the disk.
    ExposedHostKey,
}

impl OpenedBy {
    /// Whether it is [`OpenedBy::BootKey`], which is not written down.
    pub fn is_boot_key(&self) -> bool {
        *self == Self::BootKey
    }

    /// Whether the initramfs opens the volume, and so the boot key asks for it.
    pub fn is_in_initramfs(self) -> bool {
        match self {
            Self::BootKey | Self::ExposedBootKey => true,
            Self::HostKey | Self::ExposedHostKey => false,
        }
    }
}

/// Asks for a share of the next generation beside the current one (`POST /v1/rotate`). Until [`RotationEnd`] both are given to
/// whoever may have them. Idempotent: until then it is the same share.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationRequest {
    /// 1.
    pub version: Version,
    /// Binds the answer's sealed share.
    pub request: RequestId,
    /// X25519 public key that the share is sealed to.
    pub ephemeral_key: Bytes<32>,
    /// The volume.
    pub volume: VolumeId,
}

/// Which of the two generations stays (`POST /v1/rotate/end`); the share of the other one is deleted. Idempotent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationEnd {
    /// 1.
    pub version: Version,
    /// The volume.
    pub volume: VolumeId,
    /// The generation to keep.
    pub keep: Generation,
}

/// The answer to a [`VolumeRequest`] and to a [`RotationRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeAnswer {
    /// 1.
    pub version: Version,
    /// The current generation, or the next one.
    pub generation: Generation,
    /// Its share.
    pub sealed: SealedShare,
    /// The policy in force, in one sentence.
    pub policy: Text,
}

/// The answer to `DELETE /v1/volumes/ID`, and to a [`BootReport`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// 1.
    pub version: Version,
}

/// Asks for the shares of all volumes of one boot session (`/v1/release`, boot key), for those of data volumes that the
/// running system opens (`/v1/open`, host key), or for a proof (`/v1/proof`, host key).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// 1.
    pub version: Version,
    /// The boot session.
    pub request: RequestId,
    /// X25519 public key of the boot session.
    pub ephemeral_key: Bytes<32>,
    /// The volumes, each once, at most [`VOLUMES_LIMIT`].
    #[serde(deserialize_with = "distinct_volumes")]
    pub volumes: Vec<WantedVolume>,
    /// What the machine says of this boot; a tripwire, no evidence.
    pub facts: BootFacts,
    /// The tickets that the volumes' headers carry for this key server; each volume once, and only volumes that are
    /// asked for (the key server checks that).
    #[serde(
        default,
        deserialize_with = "distinct_tickets",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tickets: Vec<VolumeTicket>,
}

/// The ticket of one volume: a random value in its header that moves on after each boot. `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeTicket {
    /// The volume.
    pub volume: VolumeId,
    /// The ticket.
    pub ticket: Bytes<32>,
}

impl fmt::Debug for VolumeTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeTicket({})", self.volume)
    }
}

/// One volume of a [`ReleaseRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedVolume {
    /// The volume.
    pub volume: VolumeId,
    /// The generation of the share that its envelope needs.
    pub generation: Generation,
}

/// Facts of a boot, as the agent saw them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootFacts {
    /// Kernel release, as uname(2) tells it.
    pub kernel: Text,
    /// SHA-256 of `/proc/cmdline`.
    pub command_line: Bytes<32>,
    /// When the initramfs was built, Unix seconds; 0 where there is none (the running system).
    pub image_built: u64,
    /// The build id of the initramfs, which its builder drew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Bytes<32>>,
    /// SHA-256 over the bound facts of the volumes' headers, as they were found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<Bytes<32>>,
}

/// The answer to a [`ReleaseRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseAnswer {
    /// 1.
    pub version: Version,
    /// One verdict for each volume asked for, in the same order.
    pub verdicts: Vec<VolumeVerdict>,
}

/// The verdict on one volume.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeVerdict {
    /// The volume.
    pub volume: VolumeId,
    /// What was decided.
    pub verdict: Verdict,
}

/// What a key server decided on one volume.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Verdict {
    /// The share, sealed to the boot session.
    Released {
        /// Its generation.
        generation: Generation,
        /// The sealed share.
        sealed: SealedShare,
    },
    /// Waiting for a person, who needs this code from the machine's console.
    Pending {
        /// The request's short number, as `latchkeyd approve ID CODE` takes it.
        id: Text,
        /// The code.
        code: Text,
        /// Seconds until the agent should ask again.
        retry_after: u32,
    },
    /// Not decided yet, and no person is asked so far: the key server waits to hear from the running machine.
    Wait {
        /// For the console.
        reason: Text,
        /// Seconds until the agent should ask again.
        retry_after: u32,
    },
    /// Refused.
    Denied {
        /// Why, for the console.
        reason: Text,
        /// Seconds until the agent should ask again.
        retry_after: u32,
    },
    /// The share is gone for good.
    Destroyed,
}

/// What happened at boot, sent by the running system (`/v1/report`).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootReport {
    /// 1.
    pub version: Version,
    /// The boot session, if one was begun.
    pub request: Option<RequestId>,
    /// The outcome and every step with its time, as the console showed it.
    pub lines: Vec<Text>,
}

/// The answer of `GET /v1/status`: what the server holds of the client that asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusAnswer {
    /// 1.
    pub version: Version,
    /// The client's volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// One volume in a [`StatusAnswer`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeStatus {
    /// The volume.
    pub volume: VolumeId,
    /// Its current generation.
    pub generation: Generation,
    /// The policy in force, in one sentence.
    pub policy: Text,
    /// Whether its share was destroyed.
    pub destroyed: bool,
}

/// The body of every refusal and failure that is not a verdict.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorAnswer {
    /// 1.
    pub version: Version,
    /// What went wrong, for the operator; the same text for every stranger.
    pub error: Text,
}

fn distinct_volumes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<WantedVolume>, D::Error> {
    distinct(deserializer, |wanted: &WantedVolume| wanted.volume, 1)
}

/// Tickets, each volume once.
fn distinct_tickets<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<VolumeTicket>, D::Error> {
    distinct(deserializer, |ticket: &VolumeTicket| ticket.volume, 0)
}

/// At least `least` and at most [`VOLUMES_LIMIT`] items, no two of one volume.
fn distinct<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    volume: impl Fn(&T) -> VolumeId,
    least: usize,
) -> Result<Vec<T>, D::Error> {
    let items = Vec::<T>::deserialize(deserializer)?;
    let mut seen = std::collections::BTreeSet::new();
    let good = (least..=VOLUMES_LIMIT).contains(&items.len())
        && items.iter().all(|item| seen.insert(volume(item)));
    if good {
        return Ok(items);
    }
    Err(serde::de::Error::custom(format_args!(
        "volumes must be {least} to {VOLUMES_LIMIT} and each named once"
    )))
}
