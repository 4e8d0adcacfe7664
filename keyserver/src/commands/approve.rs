//! `latchkeyd approve`: lets one boot have its shares.

use clap::Args;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::listing::RequestListing;

/// Approve a boot that waits, with the code on its console
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  latchkeyd approve 7KQ2M 4DX-9WB

Exit code 3: wrong code, no such request, or decided already.")]
pub struct Approve {
    /// The request, as 'latchkeyd requests' shows it
    id: String,
    /// The code, as the console of the machine shows it
    code: String,
    #[command(flatten)]
    target: Target,
}

impl Approve {
    pub fn run(self) -> Result<(), Failure> {
        let request: RequestListing = self.target.ask(&Request::Approve {
            id: self.id,
            code: self.code,
        })?;
        output::data(&match request.approvals_left {
            0 => format!(
                "approved request {} of client '{}'; it is released when the machine asks again",
                request.id, request.client
            ),
            left => format!(
                "approved request {} of client '{}'; {left} more must approve it, with the same code",
                request.id, request.client
            ),
        })
    }
}
