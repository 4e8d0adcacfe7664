//! `latchkeyd audit`: shows what happened, and checks that the record of it is whole.

use std::time::Duration;

use clap::Args;
use latchkey_protocol::{ClientName, RequestId, VolumeId};

use super::target::{ConfigSource, Target};
use super::{Failure, output, timeline};
use crate::admin::client::{self, AdminClientError};
use crate::admin::protocol::{AUDIT_PAGE, AuditState, Request};
use crate::audit::{AuditEntry, Kind};
use crate::clock::UnixMillis;
use crate::keyring;
use crate::service::listing::VolumeListing;

/// Between two looks of `--follow`.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Show what happened: joins, releases, refusals, alarms
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd audit
  latchkeyd audit --client web-1 --kind alarm --kind refused
  latchkeyd audit --since '2026-11-26 00:00' --json
  latchkeyd audit --boots --client web-1
  latchkeyd audit --verify

Every entry holds the hash of the one before. --verify walks the whole chain; it also works while the
server is stopped, and then reads the store itself. It prints the newest hash: note it down elsewhere,
and a store that was set back to an older state can be told.")]
pub struct Audit {
    /// Check the chain instead of showing it
    #[arg(long, conflicts_with = "follow")]
    verify: bool,
    /// Show each boot as a timeline: asked, decided by which condition, released, up
    #[arg(long, conflicts_with_all = ["verify", "follow", "json"])]
    boots: bool,
    /// Print JSON, one line for each entry
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    filter: Filter,
    /// Go on and print each entry when it comes
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    target: Target,
}

/// Which entries.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which entries")]
struct Filter {
    /// Only of this client
    #[arg(long, conflicts_with = "verify")]
    client: Option<ClientName>,
    /// Only of this volume, by its id
    #[arg(long, conflicts_with = "verify")]
    volume: Option<VolumeId>,
    /// Only of this boot session
    #[arg(long, conflicts_with = "verify")]
    request: Option<RequestId>,
    /// Only of this kind, such as 'alarm'; may be given several times
    #[arg(long, conflicts_with = "verify", value_parser = kind)]
    kind: Vec<Kind>,
    /// Only from this time on, UTC: 'YYYY-MM-DD HH:MM'
    #[arg(long, conflicts_with = "verify", value_name = "TIME", value_parser = time)]
    since: Option<UnixMillis>,
}

impl Filter {
    fn takes(&self, entry: &AuditEntry) -> bool {
        let event = &entry.event;
        (self.client.is_none() || self.client == event.client)
            && (self.volume.is_none() || self.volume == event.volume)
            && (self.request.is_none() || self.request == event.request)
            && (self.kind.is_empty() || self.kind.contains(&event.kind))
            && self.since.is_none_or(|since| since <= entry.time)
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::named(text).ok_or_else(|| {
        let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn time(text: &str) -> Result<UnixMillis, String> {
    UnixMillis::parse(text).ok_or_else(|| "expected 'YYYY-MM-DD HH:MM', in UTC".to_owned())
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
        if self.boots {
            return self.boots();
        }
        let mut last = 0;
        loop {
            let page: Vec<AuditEntry> = self.target.ask(&Request::Audit {
                after: last,
                limit: AUDIT_PAGE,
            })?;
            for entry in &page {
                last = last.max(entry.sequence);
                if !self.filter.takes(entry) {
                    continue;
                }
                if self.json {
                    output::json_line(entry)?;
                } else {
                    output::data(&entry.line())?;
                }
            }
            match (page.is_empty(), self.follow) {
                (false, _) => {}
                (true, true) => std::thread::sleep(FOLLOW_INTERVAL),
                (true, false) => return Ok(()),
            }
        }
    }

    fn boots(&self) -> Result<(), Failure> {
        let volumes: Vec<VolumeListing> = self.target.ask(&Request::Volumes)?;
        let labels = volumes
            .into_iter()
            .map(|volume| (volume.id, volume.label))
            .collect();
        let mut entries = Vec::new();
        let mut last = 0;
        loop {
            let page: Vec<AuditEntry> = self.target.ask(&Request::Audit {
                after: last,
                limit: AUDIT_PAGE,
            })?;
            let Some(end) = page.last() else { break };
            last = end.sequence;
            entries.extend(page.into_iter().filter(|entry| self.filter.takes(entry)));
        }
        let boots = timeline::boots(&entries, &labels);
        if boots.is_empty() {
            output::hint("no boot");
        }
        boots.iter().try_for_each(|boot| output::data(boot))
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
