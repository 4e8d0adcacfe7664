//! `latchkeyd group` and `latchkeyd groups`: machines that share a policy.

use clap::Args;
use latchkey_protocol::ClientName;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::records::GroupName;
use crate::service::listing::{GroupListing, Membership};

/// Put a machine into a group, or take it out of its group
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd group web-1 web
  latchkeyd group web-1 --none
  latchkeyd policy set --group web fleet

A machine is in one group at most. A group is made when it is named first, which is said: look for a
name that was mistyped. Its policy holds for the volumes of its machines that have none of their own
and whose client has none; which policy holds for each volume now is printed.")]
pub struct GroupCommand {
    /// The client
    client: ClientName,
    /// The group
    #[arg(required_unless_present = "none")]
    group: Option<GroupName>,
    /// Take it out of its group
    #[arg(long, conflicts_with = "group")]
    none: bool,
    #[command(flatten)]
    target: Target,
}

/// List the groups
#[derive(Debug, Args)]
pub struct Groups {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl GroupCommand {
    pub fn run(self) -> Result<(), Failure> {
        let now: Membership = self.target.ask(&Request::SetGroup {
            client: self.client.clone(),
            group: self.group.clone(),
        })?;
        output::data(&match self.group {
            Some(group) => format!("client '{}' is in the group '{group}'", self.client),
            None => format!("client '{}' is in no group", self.client),
        })?;
        if let Some(group) = &now.group {
            output::hint(&group.line());
        }
        now.volumes.iter().try_for_each(|volume| {
            output::data(&format!(
                "volume '{}': {}; policy {}",
                volume.label, volume.policy_text, volume.policy_scope
            ))
        })
    }
}

impl Groups {
    pub fn run(self) -> Result<(), Failure> {
        let groups: Vec<GroupListing> = self.target.ask(&Request::Groups)?;
        if self.json {
            return output::json(&groups);
        }
        let rows: Vec<_> = groups.iter().map(row).collect();
        output::listing(
            ["GROUP", "CLIENTS", "POLICY"],
            &rows,
            "no group yet; put a client into one: latchkeyd group CLIENT GROUP",
        )
    }
}

fn row(group: &GroupListing) -> [String; 3] {
    let clients: Vec<_> = group.clients.iter().map(ToString::to_string).collect();
    [
        group.name.to_string(),
        clients.join(", "),
        group.policy_text.clone(),
    ]
}
