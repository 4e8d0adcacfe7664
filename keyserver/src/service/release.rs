//! Releases and proofs: a verdict for each volume, and a share only with an authorised one.

use std::net::IpAddr;

use latchkey_protocol::wire::{ReleaseAnswer, ReleaseRequest};

use super::{Identity, Service, ServiceError};

impl Service {
    /// Decides on each volume of a boot session and releases what is authorised. `identity` is a boot key, which
    /// may be revoked.
    ///
    /// # Errors
    /// `Refused` for any other key, `TooMany`, `Record`.
    pub fn release(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ServiceError> {
        let _ = (identity, peer, request);
        unimplemented!()
    }

    /// Lets a running system fetch its shares back, to prove that the next boot can. `identity` is a host key.
    ///
    /// # Errors
    /// `Refused`, `TooMany`, `Record`.
    pub fn proof(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ServiceError> {
        let _ = (identity, peer, request);
        unimplemented!()
    }
}
