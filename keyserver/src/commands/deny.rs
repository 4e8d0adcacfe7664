//! `latchkeyd deny`: refuses one boot, and on request all later ones of the machine.

use clap::Args;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::listing::RequestListing;

/// Deny a boot that waits
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd deny 7KQ2M
  latchkeyd deny 7KQ2M --lock

The machine shows its prompt and says why. With --lock all its later boots are refused too, until
'latchkeyd readmit CLIENT'; it also works for a request that was decided already. To take a machine's
keys away for good: latchkeyd revoke CLIENT")]
pub struct Deny {
    /// The request, as 'latchkeyd requests' shows it
    id: String,
    /// Lock the machine out as well
    #[arg(long)]
    lock: bool,
    #[command(flatten)]
    target: Target,
}

impl Deny {
    pub fn run(self) -> Result<(), Failure> {
        let request: RequestListing = self.target.ask(&Request::Deny {
            id: self.id,
            lock: self.lock,
        })?;
        output::data(&format!(
            "denied request {} of client '{}'",
            request.id, request.client
        ))?;
        if self.lock {
            output::hint(&format!(
                "client '{0}' is locked out; to let it boot again: latchkeyd readmit {0}",
                request.client
            ));
        }
        Ok(())
    }
}
