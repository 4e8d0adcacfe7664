//! `latchkeyd deny`: refuses one boot, and on request all later ones of the machine.

use clap::Args;

use super::approve::find_rejoin;
use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::listing::{RejoinListing, RequestListing};

/// Deny a boot that waits, or a machine that asks to be taken back
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
        if find_rejoin(&self.target, &self.id)?.is_some() {
            return self.leave_out();
        }
        let request: RequestListing = self.target.ask(&Request::Deny {
            id: self.id,
            lock: self.lock,
        })?;
        output::data(&format!(
            "denied request {} of client '{}'",
            request.id, request.client
        ))?;
        locked(self.lock, &request.client);
        Ok(())
    }

    fn leave_out(self) -> Result<(), Failure> {
        let rejoin: RejoinListing = self.target.ask(&Request::DenyRejoin {
            id: self.id,
            lock: self.lock,
        })?;
        output::data(&format!(
            "denied request {}: the machine at {} is not taken back as client '{}'",
            rejoin.id, rejoin.peer, rejoin.client
        ))?;
        locked(self.lock, &rejoin.client);
        Ok(())
    }
}

fn locked(lock: bool, client: &latchkey_protocol::ClientName) {
    if lock {
        output::hint(&format!(
            "client '{client}' is locked out; to let it boot again: latchkeyd readmit {client}"
        ));
    }
}
