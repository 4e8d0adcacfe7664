//! `latchkeyd arm`: announces a reboot of a machine.

use clap::Args;
use latchkey_protocol::ClientName;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::policy::Span;

/// Announce a reboot of a machine
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd arm web-1
  latchkeyd arm web-1 --ttl 1h

One boot within the time counts as announced, if the disk shows the ticket of its last boot. The
machine itself announces its reboots with 'latchkey arm-reboot'; this is for one that cannot, for
example before it is power-cycled. A later announcement replaces an earlier one.")]
pub struct Arm {
    /// The client
    client: ClientName,
    /// How long the boot is expected: a number with s, m, h or d, 1m to 24h
    #[arg(long, default_value = "15m")]
    ttl: Span,
    #[command(flatten)]
    target: Target,
}

impl Arm {
    pub fn run(self) -> Result<(), Failure> {
        let until: String = self.target.ask(&Request::Arm {
            client: self.client.clone(),
            seconds: self.ttl.0.as_secs(),
        })?;
        output::data(&format!(
            "one boot of client '{}' is expected until {until} UTC",
            self.client
        ))
    }
}
