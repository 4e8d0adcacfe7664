//! `latchkeyd approve`: lets one boot have its shares, or takes a machine back.

use clap::Args;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::listing::{RejoinListing, RequestListing};

/// Approve a boot that waits, with the code on its console
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd approve 7KQ2M 4DX-9WB
  latchkeyd approve --rejoin 9FW3C K2M-7QD

With --rejoin a machine that lost its keys is taken back as the client that it was: its new keys take the
place of the old ones, and it may fetch the shares of all volumes of that client. Without --rejoin such a
request is described and not approved.

Exit code 3: wrong code, no such request, no boot, decided already, or a machine to which nothing is
released: revoked, locked out, or the store was put back.")]
pub struct Approve {
    /// The request, as 'latchkeyd requests' shows it
    id: String,
    /// The code, as the console of the machine shows it
    code: String,
    /// Take a machine back that lost its keys
    #[arg(long)]
    rejoin: bool,
    #[command(flatten)]
    target: Target,
}

impl Approve {
    pub fn run(self) -> Result<(), Failure> {
        let rejoin = find_rejoin(&self.target, &self.id)?;
        if let Some(rejoin) = &rejoin {
            rejoin.lines().iter().for_each(|line| output::hint(line));
        }
        if self.rejoin {
            return self.take_back();
        }
        if let Some(rejoin) = rejoin {
            return Err(Failure::refused(format!(
                "request '{0}' is no boot, and was not approved\nif you want to take that machine back: latchkeyd approve --rejoin {0} CODE",
                rejoin.id
            )));
        }
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

    fn take_back(self) -> Result<(), Failure> {
        let rejoin: RejoinListing = self.target.ask(&Request::ApproveRejoin {
            id: self.id,
            code: self.code,
        })?;
        output::data(&match rejoin.state {
            crate::records::SessionState::Approved => format!(
                "took the machine at {} back as client '{}'; the keys from before count no more",
                rejoin.peer, rejoin.client
            ),
            _ => format!(
                "approved that the machine at {} is taken back as client '{}'; others must approve it too, with the same code",
                rejoin.peer, rejoin.client
            ),
        })
    }
}

/// The request to be taken back that goes by `id`, if it is one.
pub fn find_rejoin(target: &Target, id: &str) -> Result<Option<RejoinListing>, Failure> {
    use crate::records::ShortId;
    let rejoins: Vec<RejoinListing> = target.ask(&Request::Rejoins)?;
    let typed = ShortId::typed(id);
    Ok(rejoins
        .into_iter()
        .find(|rejoin| rejoin.id == typed.as_str()))
}
