//! What the administrator does. `who` is the person, for the audit.

use std::fmt;
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, VolumeId};

use super::listing::{ClientListing, Destruction, VolumeListing};
use super::{AdminError, Service};
use crate::audit::{AuditEntry, Verified};
use crate::clock::UnixMillis;
use crate::policy::Policy;
use crate::records::Settings;

/// An invitation that was just made. Its secret is stored nowhere. `Debug` does not show it.
pub struct Invitation {
    /// The one-time secret, for the join token.
    pub secret: Bytes<32>,
    /// Who is invited.
    pub client: ClientName,
    /// When it ends.
    pub expires: UnixMillis,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation({})", self.client)
    }
}

impl Service {
    /// Invites a client; an earlier invitation of it ends. One that has joined must be revoked first.
    ///
    /// # Errors
    /// `Joined`, `Lifetime`, `Record`.
    pub fn invite(
        &self,
        client: &ClientName,
        lifetime: Duration,
        who: &str,
    ) -> Result<Invitation, AdminError> {
        let _ = (client, lifetime, who);
        unimplemented!()
    }

    /// All clients, by name.
    ///
    /// # Errors
    /// The store's.
    pub fn clients(&self) -> Result<Vec<ClientListing>, AdminError> {
        unimplemented!()
    }

    /// All volumes, by client and label.
    ///
    /// # Errors
    /// The store's.
    pub fn volumes(&self) -> Result<Vec<VolumeListing>, AdminError> {
        unimplemented!()
    }

    /// Revokes a client and its invitation. Idempotent.
    ///
    /// # Errors
    /// `NoClient`, `Record`.
    pub fn revoke(&self, client: &ClientName, who: &str) -> Result<ClientListing, AdminError> {
        let _ = (client, who);
        unimplemented!()
    }

    /// Destroys a volume's share. Idempotent.
    ///
    /// # Errors
    /// `NoVolume`, `Record`.
    pub fn destroy(&self, volume: &VolumeId, who: &str) -> Result<Destruction, AdminError> {
        let _ = (volume, who);
        unimplemented!()
    }

    /// A volume's policy.
    ///
    /// # Errors
    /// `NoVolume`, `Record`.
    pub fn policy(&self, volume: &VolumeId) -> Result<Policy, AdminError> {
        let _ = volume;
        unimplemented!()
    }

    /// Sets a volume's policy.
    ///
    /// # Errors
    /// `NoVolume`, `Policy`, `Record`.
    pub fn set_policy(
        &self,
        volume: &VolumeId,
        policy: &Policy,
        who: &str,
    ) -> Result<VolumeListing, AdminError> {
        let _ = (volume, policy, who);
        unimplemented!()
    }

    /// The settings of the server.
    ///
    /// # Errors
    /// The store's.
    pub fn settings(&self) -> Result<Settings, AdminError> {
        unimplemented!()
    }

    /// Changes the settings of the server.
    ///
    /// # Errors
    /// The store's.
    pub fn set_settings(&self, settings: &Settings, who: &str) -> Result<(), AdminError> {
        let _ = (settings, who);
        unimplemented!()
    }

    /// Up to `limit` entries of the audit that come after the entry `after` (0: from the first).
    ///
    /// # Errors
    /// The store's.
    pub fn audit(&self, after: u64, limit: usize) -> Result<Vec<AuditEntry>, AdminError> {
        let _ = (after, limit);
        unimplemented!()
    }

    /// Walks the whole chain.
    ///
    /// # Errors
    /// `Chain` with the first bad entry, `Record`.
    pub fn verify_audit(&self) -> Result<Verified, AdminError> {
        unimplemented!()
    }
}
