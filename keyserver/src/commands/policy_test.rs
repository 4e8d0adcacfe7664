//! `latchkeyd policy test`: which condition of a policy says what to a request, made up or from the audit.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use latchkey_protocol::RequestId;

use super::target::Target;
use super::{Failure, output, policy, volume};
use crate::admin::protocol::Request;
use crate::clock::UnixMillis;
use crate::policy::{Change, Policy};
use crate::service::explain::{Explanation, Supposed, SupposedLife, SupposedTicket};

/// Say what a policy would do with a request, and which condition decides
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd policy test root
  latchkeyd policy test root --from 198.51.100.9 --ticket stale --alive
  latchkeyd policy test root --try home-server --at '2026-11-30 03:00'
  latchkeyd policy test root --request 000102030405060708090a0b0c0d0e0f

What is not said is as at the volume's last boot: its address, its facts, the ticket of its header; the
running machine does not answer and nothing was announced. With --request address and time are those
of a boot session of the audit, whose entries are printed too; the rest is as it is known now. Nothing
is released and nothing changes.")]
pub struct Test {
    /// The volume, as 'latchkeyd volumes' shows it
    volume: String,
    /// A preset or a file to try in place of the policy in force
    #[arg(long = "try", value_name = "PRESET|FILE")]
    policy: Option<String>,
    /// A boot session of the audit
    #[arg(long, value_name = "REQUEST")]
    request: Option<RequestId>,
    /// From which address
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    /// When, UTC: 'YYYY-MM-DD HH:MM'
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<UnixMillis>,
    /// The ticket that the header shows
    #[arg(long, value_enum, default_value_t = TicketName::Good)]
    ticket: TicketName,
    /// The running machine answers
    #[arg(long)]
    alive: bool,
    /// The reboot was announced
    #[arg(long)]
    announced: bool,
    /// What has changed since the last boot; may be given several times
    #[arg(long, value_enum)]
    changed: Vec<ChangeName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TicketName {
    /// The one of its last boot
    Good,
    /// An earlier one
    Stale,
    /// None
    Missing,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ChangeName {
    Kernel,
    CommandLine,
    Image,
    Header,
}

impl Test {
    pub fn run(self) -> Result<(), Failure> {
        let policy: Option<Policy> = self.policy.as_deref().map(policy::read).transpose()?;
        let found = volume::find(&self.target, &self.volume)?;
        let explanation: Explanation = self.target.ask(&Request::Explain(Supposed {
            volume: found.id,
            policy,
            request: self.request,
            peer: self.from,
            at: self.at,
            ticket: match self.ticket {
                TicketName::Good => SupposedTicket::Good,
                TicketName::Stale => SupposedTicket::Stale,
                TicketName::Missing => SupposedTicket::Missing,
            },
            life: match self.alive {
                true => SupposedLife::Alive,
                false => SupposedLife::Silent,
            },
            announced: self.announced,
            changed: self
                .changed
                .iter()
                .map(|change| match change {
                    ChangeName::Kernel => Change::Kernel,
                    ChangeName::CommandLine => Change::CommandLine,
                    ChangeName::Image => Change::Image,
                    ChangeName::Header => Change::Header,
                })
                .collect(),
        }))?;
        if self.json {
            return output::json(&explanation);
        }
        let title = format!("volume '{}' of client '{}'", found.label, found.client);
        output::data(&text(&title, &explanation))
    }
}

fn text(title: &str, explanation: &Explanation) -> String {
    let mut lines = vec![
        format!(
            "{title}, policy {}: {}",
            explanation.scope, explanation.policy_text
        ),
        format!(
            "asked from {} at {} UTC:",
            explanation.peer,
            explanation.at.text()
        ),
    ];
    for found in &explanation.findings {
        lines.push(format!(
            "  {:<8} {:<14} {}",
            found.condition.name(),
            found.outcome.text(),
            found.text
        ));
    }
    lines.push(format!("outcome: {}", explanation.outcome));
    lines.push(format!("it {}", explanation.limits));
    if !explanation.history.is_empty() {
        lines.push("what the audit has of this request:".to_owned());
        lines.extend(explanation.history.iter().map(|entry| entry.line()));
    }
    lines.join("\n")
}

fn time(text: &str) -> Result<UnixMillis, String> {
    UnixMillis::parse(text).ok_or_else(|| "expected 'YYYY-MM-DD HH:MM', in UTC".to_owned())
}
