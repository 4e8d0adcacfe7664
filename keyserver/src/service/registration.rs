//! What a running system does with its host key: register a volume, give it up, report a boot, ask how it stands.

use std::net::IpAddr;

use latchkey_protocol::ids::VolumeId;
use latchkey_protocol::wire::{BootReport, StatusAnswer, VolumeAnswer, VolumeRequest};

use super::{Identity, Service, ServiceError};

impl Service {
    /// Registers a volume and returns its sealed share. The same client may do it again for the same id: same
    /// generation, same share, sealed to the new ephemeral key.
    ///
    /// # Errors
    /// `Refused` (also if the id is another client's), `Destroyed`, `Invalid`, `TooMany`, `Record`.
    pub fn register(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &VolumeRequest,
    ) -> Result<VolumeAnswer, ServiceError> {
        let _ = (identity, peer, request);
        unimplemented!()
    }

    /// Gives a volume up: its share is deleted. Idempotent.
    ///
    /// # Errors
    /// `Refused` if it is not this client's, `TooMany`, `Record`.
    pub fn retire(
        &self,
        identity: &Identity,
        peer: IpAddr,
        volume: VolumeId,
    ) -> Result<(), ServiceError> {
        let _ = (identity, peer, volume);
        unimplemented!()
    }

    /// Takes the report of a boot into the audit.
    ///
    /// # Errors
    /// `Refused`, `TooMany`, `Record`.
    pub fn report(
        &self,
        identity: &Identity,
        peer: IpAddr,
        report: &BootReport,
    ) -> Result<(), ServiceError> {
        let _ = (identity, peer, report);
        unimplemented!()
    }

    /// What the server holds of this client.
    ///
    /// # Errors
    /// `Refused`, `Record`.
    pub fn status(&self, identity: &Identity) -> Result<StatusAnswer, ServiceError> {
        let _ = identity;
        unimplemented!()
    }
}
