//! `latchkeyd lock` and `latchkeyd readmit`: whether a machine may boot at all.

use clap::Args;
use latchkey_protocol::ClientName;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::listing::ClientListing;

/// Lock a machine out: none of its boots is released until it is readmitted
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  latchkeyd lock web-1

The machine goes on running, and every passphrase still opens it at its console. Its keys stay
registered: 'latchkeyd readmit web-1' undoes it. 'latchkeyd deny ID --lock' does it with a request.")]
pub struct Lock {
    /// The client
    client: ClientName,
    #[command(flatten)]
    target: Target,
}

/// Let a machine boot again that was locked out
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  latchkeyd readmit web-1

From now on its policy decides again.")]
pub struct Readmit {
    /// The client
    client: ClientName,
    #[command(flatten)]
    target: Target,
}

impl Lock {
    pub fn run(self) -> Result<(), Failure> {
        let client: ClientListing = self.target.ask(&Request::Lock {
            client: self.client,
        })?;
        output::data(&format!("client '{}' is locked out", client.name))
    }
}

impl Readmit {
    pub fn run(self) -> Result<(), Failure> {
        let client: ClientListing = self.target.ask(&Request::Readmit {
            client: self.client,
        })?;
        output::data(&format!("client '{}' may boot again", client.name))
    }
}
