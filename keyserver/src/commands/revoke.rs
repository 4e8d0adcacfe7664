//! `latchkeyd revoke`: locks a machine out.

use clap::Args;
use latchkey_protocol::ClientName;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::listing::ClientListing;

/// Lock a machine out: it gets no share any more
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  latchkeyd revoke web-1

Its passphrase still opens its volumes at the console. What it has open stays open. The shares stay in
the store: to let the machine in again, invite it again; to make sure that nobody can, also destroy
its volumes.")]
pub struct Revoke {
    /// The machine, as 'latchkeyd clients' shows it
    client: ClientName,
    #[command(flatten)]
    target: Target,
}

impl Revoke {
    pub fn run(self) -> Result<(), Failure> {
        let client: ClientListing = self.target.ask(&Request::Revoke {
            client: self.client,
        })?;
        output::data(&format!("revoked client '{}'", client.name))
    }
}
