//! `latchkeyd accept-rollback`: goes on with a store that was put back.

use clap::Args;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::witness::PutBack;

/// Accept that the store was put back to an earlier state
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  latchkeyd accept-rollback --reason 'restored from the backup of last night, disk failed'

Machines remember the end of the audit that they were shown last. When one has seen more than the store
holds, nothing is released until this command: what happened in between is forgotten, and may have been
a revocation, a lock, a destroyed share or a used one-time release. Do these again first:
  latchkeyd clients; latchkeyd volumes; latchkeyd audit

Tickets that moved on in between are forgotten too: machines that boot before their latchkey.service has
spoken to the server once ask a person.")]
pub struct AcceptRollback {
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    target: Target,
}

impl AcceptRollback {
    pub fn run(self) -> Result<(), Failure> {
        let lost: PutBack = self.target.ask(&Request::AcceptRollback {
            reason: self.reason,
        })?;
        output::data(&format!(
            "accepted: client '{}' had seen entry {} of the audit, the store ended at {}",
            lost.client, lost.shown, lost.ours
        ))
    }
}
