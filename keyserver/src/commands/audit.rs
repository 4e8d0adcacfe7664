//! `latchkeyd audit`: shows what happened, and checks that the record of it is whole.

use std::time::Duration;

use clap::Args;

use super::target::{ConfigSource, Target};
use super::{Failure, output};
use crate::admin::client::{self, AdminClientError};
use crate::admin::protocol::{AUDIT_PAGE, AuditState, Request};
use crate::audit::AuditEntry;
use crate::keyring;

/// Between two looks of `--follow`.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Show what happened: joins, releases, refusals, alarms
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd audit
  latchkeyd audit --json | jq 'select(.kind == \"alarm\")'
  latchkeyd audit --verify

Every entry holds the hash of the one before. --verify walks the whole chain; it also works while the
server is stopped, and then reads the store itself. It prints the newest hash: note it down elsewhere,
and a store that was set back to an older state can be told.")]
pub struct Audit {
    /// Check the chain instead of showing it
    #[arg(long, conflicts_with = "follow")]
    verify: bool,
    /// Print JSON, one line for each entry
    #[arg(long)]
    json: bool,
    /// Go on and print each entry when it comes
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    target: Target,
}

impl Audit {
    pub fn run(self) -> Result<(), Failure> {
        if self.verify {
            let verified = self.verify()?;
            return if self.json {
                output::json_line(&verified)
            } else {
                output::data(&format!(
                    "{} entries, every one as it was written\nnewest hash: {}",
                    verified.entries, verified.head
                ))
            };
        }
        let mut last = 0;
        loop {
            let page: Vec<AuditEntry> = self.target.ask(&Request::Audit {
                after: last,
                limit: AUDIT_PAGE,
            })?;
            for entry in &page {
                if self.json {
                    output::json_line(entry)?;
                } else {
                    output::data(&line(entry))?;
                }
                last = last.max(entry.sequence);
            }
            match (page.is_empty(), self.follow) {
                (false, _) => {}
                (true, true) => std::thread::sleep(FOLLOW_INTERVAL),
                (true, false) => return Ok(()),
            }
        }
    }

    fn verify(&self) -> Result<AuditState, Failure> {
        match client::ask(&self.target.socket()?, &Request::VerifyAudit) {
            Err(AdminClientError::NotRunning(..)) => verify_stopped(self.target.source()),
            answer => Ok(answer?),
        }
    }
}

fn verify_stopped(source: &ConfigSource) -> Result<AuditState, Failure> {
    let (config, _) = source.load()?;
    let opened = keyring::open_as_owner(&config).map_err(|error| Failure::of(&error))?;
    opened
        .service
        .verify_audit()
        .map(AuditState::from)
        .map_err(|error| Failure::of(&error))
}

fn line(entry: &AuditEntry) -> String {
    let kind = serde_json::to_value(entry.event.kind)
        .ok()
        .and_then(|kind| kind.as_str().map(str::to_owned))
        .unwrap_or_default();
    let mut text = format!("{:>6}  {}  {kind:<12}", entry.sequence, entry.time.text());
    let event = &entry.event;
    let mut add = |what: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("  {what}={value}"));
        }
    };
    add("client", event.client.as_ref().map(ToString::to_string));
    add("volume", event.volume.map(|id| id.to_string()));
    add("from", event.peer.map(|address| address.to_string()));
    add("by", event.who.clone());
    if !event.text.is_empty() {
        text.push_str("  ");
        text.extend(
            event
                .text
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c }),
        );
    }
    text
}
