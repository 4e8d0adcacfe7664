//! `latchkeyd policy`: shows or sets on which conditions the share of a volume is released.

use clap::{Args, ValueEnum};

use super::target::Target;
use super::{Failure, output, volume};
use crate::admin::protocol::Request;
use crate::policy::{Elsewhere, Policy, Range, Rule};
use crate::service::listing::VolumeListing;

/// Show or set the policy of a volume
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd policy root
  latchkeyd policy root allow --from 203.0.113.7 --from 2001:db8:1:2::/64
  latchkeyd policy root allow --from 203.0.113.0/24 --elsewhere ask
  latchkeyd policy root ask
  latchkeyd policy root deny

allow: released without a person. ask: a person approves each boot. deny: never.
With --from the rule holds for these addresses only, and --elsewhere for all others. Plain 'allow'
releases to whoever holds a copy of the machine's disk, from anywhere: choose addresses if you can.")]
pub struct PolicyCommand {
    /// The volume: its id, its label, the beginning of one of them, or CLIENT/LABEL
    volume: String,
    /// The rule to set; without one the policy is shown
    rule: Option<RuleName>,
    /// An address or range the rule holds for; may be given several times [default: any]
    #[arg(long, value_name = "CIDR", requires = "rule")]
    from: Vec<Range>,
    /// What holds for other addresses than --from [default: deny]
    #[arg(long, requires = "from")]
    elsewhere: Option<ElsewhereName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RuleName {
    /// Release without a person
    Allow,
    /// Ask a person
    Ask,
    /// Never release
    Deny,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ElsewhereName {
    /// Ask a person
    Ask,
    /// Never release
    Deny,
}

impl PolicyCommand {
    pub fn run(self) -> Result<(), Failure> {
        let found = volume::find(&self.target, &self.volume)?;
        let Some(rule) = self.rule else {
            return print(&found, self.json);
        };
        let policy = Policy {
            rule: match rule {
                RuleName::Allow => Rule::Allow,
                RuleName::Ask => Rule::Ask,
                RuleName::Deny => Rule::Deny,
            },
            from: self.from,
            elsewhere: match self.elsewhere {
                Some(ElsewhereName::Ask) => Elsewhere::Ask,
                Some(ElsewhereName::Deny) | None => Elsewhere::Deny,
            },
        };
        let changed: VolumeListing = self.target.ask(&Request::SetPolicy {
            volume: found.id,
            policy,
        })?;
        print(&changed, self.json)
    }
}

fn print(volume: &VolumeListing, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&volume.policy);
    }
    output::data(&format!(
        "volume '{}' of client '{}': {}",
        volume.label, volume.client, volume.policy_text
    ))
}
