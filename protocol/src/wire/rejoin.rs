//! A machine that lost its keys asks to be taken back as the client that it was.

use serde::{Deserialize, Deserializer, Serialize};

use super::{Text, Version, VolumeTicket, distinct, distinct_tickets};
use crate::ids::{ClientName, VolumeId};

/// Asks for new keys in place of the lost ones (`/v1/rejoin`, no client certificate). The same keys may ask again and again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejoinRequest {
    /// 1.
    pub version: Version,
    /// The volumes whose envelopes the machine holds; knowing them is what tells it from a stranger.
    #[serde(deserialize_with = "distinct_ids")]
    pub volumes: Vec<VolumeId>,
    /// The tickets that the volumes' headers carry for this key server.
    #[serde(
        default,
        deserialize_with = "distinct_tickets",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tickets: Vec<VolumeTicket>,
    /// PKCS#10 request in PEM for the new boot key; only its key counts.
    pub boot_csr: Text,
    /// PKCS#10 request in PEM for the new host key; only its key counts.
    pub host_csr: Text,
}

/// The answer to a [`RejoinRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejoinAnswer {
    /// 1.
    pub version: Version,
    /// What came of it so far.
    pub outcome: RejoinOutcome,
}

/// What came of a [`RejoinRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RejoinOutcome {
    /// A person must approve it, with this code from the machine's screen.
    Pending {
        /// The request's short number, as `latchkeyd approve --rejoin ID CODE` takes it.
        id: Text,
        /// The code.
        code: Text,
        /// Seconds until the machine should ask again.
        retry_after: u32,
    },
    /// The new keys are the client's.
    Joined {
        /// Its name.
        client: ClientName,
        /// Certificate of the boot key, PEM.
        boot_certificate: Text,
        /// Certificate of the host key, PEM.
        host_certificate: Text,
    },
    /// A person denied it.
    Denied {
        /// Why.
        reason: Text,
    },
}

fn distinct_ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<VolumeId>, D::Error> {
    distinct(deserializer, |volume: &VolumeId| *volume, 1)
}
