//! `latchkeyd deny`: refuses one boot.

use clap::Args;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::listing::RequestListing;

/// Deny a boot that waits
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  latchkeyd deny 7KQ2M

The machine shows its prompt and says why. To lock a machine out for good: latchkeyd revoke CLIENT")]
pub struct Deny {
    /// The request, as 'latchkeyd requests' shows it
    id: String,
    #[command(flatten)]
    target: Target,
}

impl Deny {
    pub fn run(self) -> Result<(), Failure> {
        let request: RequestListing = self.target.ask(&Request::Deny { id: self.id })?;
        output::data(&format!(
            "denied request {} of client '{}'",
            request.id, request.client
        ))
    }
}
