//! `latchkeyd policy`: shows, sets and tries on which conditions the share of a volume is released.

use std::io::Read;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::policy_test::Test;
use super::target::Target;
use super::{Failure, output, volume};
use crate::admin::protocol::Request;
use crate::policy::{Otherwise, PRESETS, Policy, Preset, Rule, Source};
use crate::service::listing::{PolicyListing, PolicyTarget, Unreached};

/// Most bytes of a policy's text that are read.
const TEXT_LIMIT: u64 = 64 * 1024;
/// Most volumes that are named because a policy does not reach them.
const UNREACHED_SHOWN: usize = 16;

/// Show, set or try a policy
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  latchkeyd policy root
  latchkeyd policy root allow --from 203.0.113.7 --from 2001:db8:1:2::/64
  latchkeyd policy root allow --from 203.0.113.0/24 --elsewhere ask
  latchkeyd policy root ask
  latchkeyd policy set root home-server
  latchkeyd policy set --group web ./web.toml
  latchkeyd policy clear root
  latchkeyd policy test root --from 198.51.100.9 --ticket stale

allow: released without a person. ask: a person approves each boot. deny: never.
With --from the rule holds for these addresses only, and --elsewhere for all others. Plain 'allow'
releases to whoever holds a copy of the machine's disk, from anywhere: choose addresses if you can.

The most specific policy holds, whole: the volume's own, else its client's, else its group's, else
what it was given when it was bound. latchkeyd-policy(5) explains every key and the presets."
)]
pub struct PolicyCommand {
    #[command(subcommand)]
    command: Option<PolicyVerb>,
    /// The volume: its id, its label, the beginning of one of them, or CLIENT/LABEL
    #[arg(required = true)]
    volume: Option<String>,
    /// The rule to set; without one the policy is shown
    rule: Option<RuleName>,
    /// An address or range the rule holds for, or 'home'; may be given several times [default: any]
    #[arg(long, value_name = "CIDR", requires = "rule")]
    from: Vec<Source>,
    /// What holds for other addresses than --from [default: deny]
    #[arg(long, requires = "from")]
    elsewhere: Option<ElsewhereName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum PolicyVerb {
    Show(Show),
    Set(Set),
    Clear(Clear),
    Test(Box<Test>),
    Presets(Presets),
}

/// Show the policy of a volume, a client or a group
#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    subject: Subject,
    /// Print JSON
    #[arg(long, conflicts_with = "toml")]
    json: bool,
    /// Print the policy's text, as 'policy set' takes it
    #[arg(long)]
    toml: bool,
    #[command(flatten)]
    target: Target,
}

/// Set the policy of a volume, a client or a group
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd policy set root home-server
  latchkeyd policy set --client web-1 ./web-1.toml
  latchkeyd policy set --group web fleet --from 203.0.113.0/24
  latchkeyd policy show root --toml | sed s/ask/deny/ | latchkeyd policy set root -

The text is checked before it is set: unknown keys and what cannot be meant are refused, and 'ticket'
where a volume has never shown one. Setting a policy again allows a one-time release again.")]
struct Set {
    #[command(flatten)]
    subject: Subject,
    /// A preset (home-server, fleet, paranoid), a file with a policy's text, or '-' for standard input
    #[arg(value_name = "PRESET|FILE")]
    policy: String,
    /// Addresses in place of those in the text; may be given several times
    #[arg(long, value_name = "CIDR")]
    from: Vec<Source>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Take a policy away: then the less specific one holds
#[derive(Debug, Args)]
struct Clear {
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    target: Target,
}

/// Print the presets, or the text of one
#[derive(Debug, Args)]
struct Presets {
    /// Which one
    name: Option<String>,
}

/// Whose policy.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("kind").args(["client", "group"]))]
struct Subject {
    /// The volume, as 'latchkeyd volumes' shows it; with --client or --group the name of one
    #[arg(value_name = "NAME")]
    name: String,
    /// NAME is a client: for all its volumes that have no policy of their own
    #[arg(long)]
    client: bool,
    /// NAME is a group: for all its clients that have no policy of their own
    #[arg(long)]
    group: bool,
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
        match self.command {
            None => {}
            Some(PolicyVerb::Show(show)) => return show.run(),
            Some(PolicyVerb::Set(set)) => return set.run(),
            Some(PolicyVerb::Clear(clear)) => return clear.run(),
            Some(PolicyVerb::Test(test)) => return test.run(),
            Some(PolicyVerb::Presets(presets)) => return presets.run(),
        }
        let name = self.volume.unwrap_or_default();
        let found = volume::find(&self.target, &name)?;
        let target = PolicyTarget::Volume(found.id);
        let who = format!("volume '{}' of client '{}'", found.label, found.client);
        let request = match self.rule {
            None => Request::Policy { target },
            Some(rule) => Request::SetPolicyOf {
                target,
                policy: Some(Policy {
                    from: self.from,
                    elsewhere: match self.elsewhere {
                        Some(ElsewhereName::Ask) => Otherwise::Ask,
                        Some(ElsewhereName::Deny) | None => Otherwise::Deny,
                    },
                    ..Policy::plain(match rule {
                        RuleName::Allow => Rule::Allow,
                        RuleName::Ask => Rule::Ask,
                        RuleName::Deny => Rule::Deny,
                    })
                }),
            },
        };
        let listing: PolicyListing = self.target.ask(&request)?;
        print(&who, &listing, self.json)
    }
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let (who, target) = self.subject.find(&self.target)?;
        let listing: PolicyListing = self.target.ask(&Request::Policy { target })?;
        if self.toml {
            let Some(policy) = &listing.policy else {
                return Err(Failure::refused(format!("{who} has no policy")));
            };
            return output::data(policy.to_toml().trim_end());
        }
        print(&who, &listing, self.json)
    }
}

impl Set {
    fn run(self) -> Result<(), Failure> {
        let mut policy = read(&self.policy)?;
        if !self.from.is_empty() {
            policy.from = self.from;
        }
        let (who, target) = self.subject.find(&self.target)?;
        let listing: PolicyListing = self.target.ask(&Request::SetPolicyOf {
            target,
            policy: Some(policy),
        })?;
        print(&who, &listing, self.json)
    }
}

impl Clear {
    fn run(self) -> Result<(), Failure> {
        let (who, target) = self.subject.find(&self.target)?;
        let listing: PolicyListing = self.target.ask(&Request::SetPolicyOf {
            target,
            policy: None,
        })?;
        print(&who, &listing, false)
    }
}

impl Presets {
    fn run(self) -> Result<(), Failure> {
        match self.name {
            Some(name) => match Preset::named(&name) {
                Some(preset) => output::data(preset.text.trim_end()),
                None => Err(Failure::refused(format!(
                    "there is no preset '{}'\nsee 'latchkeyd policy presets'",
                    name.escape_default()
                ))),
            },
            None => PRESETS.into_iter().try_for_each(|preset| {
                let policy = preset.policy();
                output::data(&format!(
                    "{}: {}; {}",
                    preset.name,
                    policy.sentence(),
                    policy.limits()
                ))
            }),
        }
    }
}

impl Subject {
    fn find(&self, target: &Target) -> Result<(String, PolicyTarget), Failure> {
        let odd = |error: latchkey_protocol::ids::IdError| Failure::usage(error.to_string());
        if self.client {
            let name = self.name.parse().map_err(odd)?;
            return Ok((format!("client '{name}'"), PolicyTarget::Client(name)));
        }
        if self.group {
            let name = self.name.parse().map_err(odd)?;
            return Ok((format!("group '{name}'"), PolicyTarget::Group(name)));
        }
        let found = volume::find(target, &self.name)?;
        let who = format!("volume '{}' of client '{}'", found.label, found.client);
        Ok((who, PolicyTarget::Volume(found.id)))
    }
}

/// The policy of a preset, of a file or of standard input (`-`).
pub fn read(name: &str) -> Result<Policy, Failure> {
    if let Some(preset) = Preset::named(name) {
        return Ok(preset.policy());
    }
    let mut text = String::new();
    let read = match name {
        "-" => std::io::stdin().take(TEXT_LIMIT).read_to_string(&mut text),
        path => std::fs::File::open(path)
            .and_then(|file| file.take(TEXT_LIMIT).read_to_string(&mut text)),
    };
    read.map_err(|error| {
        Failure::usage(format!(
            "failed to read '{name}', which is no preset: {error}\nthe presets are listed by 'latchkeyd policy presets'"
        ))
    })?;
    Policy::parse(&text).map_err(|error| {
        Failure::usage(format!(
            "in '{name}': {error}\nlatchkeyd-policy(5) lists every key"
        ))
    })
}

fn print(who: &str, listing: &PolicyListing, json: bool) -> Result<(), Failure> {
    match (&listing.policy, json) {
        (policy, true) => output::json(policy)?,
        (None, false) => output::data(&format!("{who}: no policy"))?,
        (Some(_), false) => {
            output::data(&format!("{who}: {}; {}", listing.text, listing.limits))?;
            output::hint(&listing.scope);
        }
    }
    if let Some(group) = &listing.group {
        output::hint(&group.line());
    }
    if let Some(doubt) = &listing.doubt {
        output::hint(doubt);
    }
    unreached(&listing.unreached)
        .iter()
        .for_each(|line| output::hint(line));
    Ok(())
}

/// What to say of the volumes that a client's or a group's policy does not reach, and what makes it reach them.
fn unreached(volumes: &[Unreached]) -> Vec<String> {
    let mut lines = Vec::new();
    for one in volumes.iter().take(UNREACHED_SHOWN) {
        lines.push(format!(
            "it does not reach volume '{}' of client '{}', whose policy is {}",
            one.label, one.client, one.scope
        ));
        lines.push(format!("to let it reach that one: {}", one.command));
    }
    if let Some(more) = volumes.len().checked_sub(UNREACHED_SHOWN + 1) {
        lines.push(format!(
            "nor does it reach {} more; 'latchkeyd volumes' shows whose policy holds for each",
            more + 1
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_volume_that_is_not_reached_is_named_with_the_command_that_changes_it_and_many_are_counted()
     {
        let volume = |number: usize| Unreached {
            volume: format!("00000000-0000-4000-8000-{number:012}")
                .parse()
                .unwrap(),
            client: "web-1".parse().unwrap(),
            label: format!("data{number}"),
            scope: "set for the volume".to_owned(),
            command: format!("latchkeyd policy clear {number}"),
        };
        let said = |count: usize| unreached(&(0..count).map(volume).collect::<Vec<_>>());
        assert!(said(0).is_empty());
        assert_eq!(
            said(1),
            [
                "it does not reach volume 'data0' of client 'web-1', whose policy is set for the volume",
                "to let it reach that one: latchkeyd policy clear 0",
            ]
        );
        assert_eq!(said(UNREACHED_SHOWN).len(), 2 * UNREACHED_SHOWN);
        let many = said(UNREACHED_SHOWN + 3);
        assert_eq!(many.len(), 2 * UNREACHED_SHOWN + 1);
        assert!(many[2 * UNREACHED_SHOWN].contains("reach 3 more"));
    }
}
