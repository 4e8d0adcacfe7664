//! A new certificate for the same host key.
//!
//! The old one is replaced only after the key server has answered a request that was made with the new one.

use latchkey_protocol::wire::{RenewRequest, Version};

use crate::files::{self, FilesError, Role, ServerFiles};
use crate::server::request::{RequestError, signing_request};
use crate::server::{KeyServer, KeyServerError, Unreachable};

/// The certificate was not renewed; the old one is still there.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The host key, or writing the certificate.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The host key does not make a request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The key server does not renew.
    #[error("the key server did not renew the host certificate")]
    NotRenewed(#[source] Unreachable),
    /// What it sent is no certificate of the host key.
    #[error("the key server sent a host certificate that is not usable")]
    Unusable(#[source] KeyServerError),
    /// The new certificate does not work.
    #[error("the renewed host certificate was not taken by the key server")]
    NotTaken(#[source] Unreachable),
}

/// Renews the host certificate in `files` at `server`; returns the key server as it is asked from now on.
///
/// # Errors
/// A variant of [`RenewalError`].
pub async fn renew(files: &ServerFiles, server: &KeyServer) -> Result<KeyServer, RenewalError> {
    let request = RenewRequest {
        version: Version::default(),
        host_csr: signing_request(&files.key(Role::Host)?)?,
    };
    let answer = server
        .ask(async |client, address| client.renew(address, &request).await)
        .await
        .map_err(RenewalError::NotRenewed)?;
    let certificate = answer.host_certificate.as_str().as_bytes();
    let renewed = KeyServer::with_certificate(files, Role::Host, certificate)
        .map_err(RenewalError::Unusable)?;
    renewed
        .ask(async |client, address| client.status(address).await)
        .await
        .map_err(RenewalError::NotTaken)?;
    files::replace(&files.certificate_path(Role::Host), certificate)?;
    log::info!(
        "the host certificate of key server {} was renewed",
        files.settings.id.short()
    );
    Ok(renewed)
}
