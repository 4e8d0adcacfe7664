//! `latchkeyd requests`: lists what waits for a person.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde::ser::{Serialize, SerializeSeq, Serializer};

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::{AUDIT_PAGE, Request};
use crate::audit::{AuditEntry, Kind};
use crate::records::SessionState;
use crate::service::listing::{RejoinListing, RequestListing};

/// Between two looks of `--follow`.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(300);

/// List boots that wait for approval, and machines that ask to be taken back
#[derive(Debug, Args)]
#[command(after_help = "\
A request shows no code: read it from the console of the machine and type it, so that you approve
the machine that you see:
  latchkeyd approve ID CODE
'CONFLICT' means that two boots claim to be the same machine: one of them may be a copy.
'TAKE BACK' is no boot: a machine that lost its keys asks to be its client again, with new ones. Read what stands
below the list, and approve it with 'approve --rejoin ID CODE'.")]
pub struct Requests {
    /// Print JSON (with --follow one line for each request)
    #[arg(long)]
    json: bool,
    /// Go on and print each request when it comes and when it changes, and each alarm
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    target: Target,
}

const HEADING: [&str; 6] = ["ID", "CLIENT", "VOLUMES", "FROM", "STATE", "SINCE (UTC)"];

impl Requests {
    pub fn run(self) -> Result<(), Failure> {
        if self.follow {
            return self.follow();
        }
        let requests: Vec<RequestListing> = self.target.ask(&Request::Requests)?;
        let rejoins: Vec<RejoinListing> = self.target.ask(&Request::Rejoins)?;
        if self.json {
            return output::json(&OneList(&requests, &rejoins));
        }
        let rows: Vec<_> = requests
            .iter()
            .map(row)
            .chain(rejoins.iter().map(rejoin_row))
            .collect();
        output::listing(HEADING, &rows, "no request waits")?;
        for line in rejoins.iter().flat_map(RejoinListing::lines) {
            output::hint(&line);
        }
        Ok(())
    }

    fn follow(&self) -> Result<(), Failure> {
        let mut seen = Seen::new();
        let mut last: u64 = self.target.ask(&Request::AuditEnd)?;
        loop {
            last = self.alarms(last)?;
            let requests: Vec<RequestListing> = self.target.ask(&Request::Requests)?;
            let mut current = Seen::new();
            for request in &requests {
                self.print_news(&seen, &mut current, row(request), request)?;
            }
            let rejoins: Vec<RejoinListing> = self.target.ask(&Request::Rejoins)?;
            for rejoin in &rejoins {
                self.print_news(&seen, &mut current, rejoin_row(rejoin), rejoin)?;
            }
            seen = current;
            std::thread::sleep(FOLLOW_INTERVAL);
        }
    }
}

/// What was printed last of each request, by its id, the first column.
type Seen = BTreeMap<String, [String; 6]>;

impl Requests {
    /// Prints `listing`, of which `shown` is for people, unless that was `seen` already.
    fn print_news(
        &self,
        seen: &Seen,
        current: &mut Seen,
        shown: [String; 6],
        listing: &impl Serialize,
    ) -> Result<(), Failure> {
        if seen.get(&shown[0]) != Some(&shown) {
            match self.json {
                true => output::json_line(listing)?,
                false => output::data(&shown.join("  "))?,
            }
        }
        current.insert(shown[0].clone(), shown);
        Ok(())
    }

    /// Prints the alarms that come after the entry `last`; the last entry that was looked at.
    fn alarms(&self, mut last: u64) -> Result<u64, Failure> {
        loop {
            let page: Vec<AuditEntry> = self.target.ask(&Request::Audit {
                after: last,
                limit: AUDIT_PAGE,
            })?;
            for entry in page.iter().filter(|entry| entry.event.kind == Kind::Alarm) {
                match self.json {
                    true => output::json_line(entry)?,
                    false => output::data(&entry.line())?,
                }
            }
            last = page.iter().map(|entry| entry.sequence).fold(last, u64::max);
            if page.len() < AUDIT_PAGE {
                return Ok(last);
            }
        }
    }
}

/// Boots, then machines that ask to be taken back, which `"kind": "rejoin"` tells apart.
struct OneList<'a>(&'a [RequestListing], &'a [RejoinListing]);

impl Serialize for OneList<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len() + self.1.len()))?;
        for request in self.0 {
            list.serialize_element(request)?;
        }
        for rejoin in self.1 {
            list.serialize_element(rejoin)?;
        }
        list.end()
    }
}

/// What is printed of a machine that asks to be taken back.
fn rejoin_row(rejoin: &RejoinListing) -> [String; 6] {
    let mut state = match rejoin.state {
        SessionState::Pending if rejoin.approved_by.is_empty() => {
            format!(
                "TAKE BACK with new keys, {} tries left",
                rejoin.attempts_left
            )
        }
        SessionState::Pending => format!(
            "TAKE BACK, approved by {}, {} more must",
            rejoin.approved_by.join(", "),
            rejoin.approvals_left
        ),
        decided => format!("TAKE BACK, {}", decided.text()),
    };
    if rejoin.connected {
        state.push_str(", ORIGINAL CONNECTED");
    }
    if rejoin.rival.is_some() {
        state.push_str(", CONFLICT");
    }
    let labels: Vec<_> = rejoin
        .volumes
        .iter()
        .map(|one| one.label.as_str())
        .collect();
    [
        rejoin.id.clone(),
        rejoin.client.to_string(),
        labels.join(", "),
        rejoin.peer.to_string(),
        state,
        rejoin.created.text(),
    ]
}

/// What is printed of a request.
pub fn row(request: &RequestListing) -> [String; 6] {
    let labels: Vec<_> = request
        .volumes
        .iter()
        .map(|volume| volume.label.as_str())
        .collect();
    let state = match request.state {
        SessionState::Pending if request.approved_by.is_empty() => {
            format!("waits, {} tries left", request.attempts_left)
        }
        SessionState::Pending => format!(
            "approved by {}, {} more must",
            request.approved_by.join(", "),
            request.approvals_left
        ),
        SessionState::Approved => "approved".to_owned(),
        SessionState::Denied => "denied".to_owned(),
        SessionState::Exhausted => "denied after wrong codes".to_owned(),
    };
    [
        request.id.clone(),
        request.client.to_string(),
        labels.join(", "),
        request.peer.to_string(),
        if request.conflict {
            format!("{state}, CONFLICT")
        } else {
            state
        },
        request.created.text(),
    ]
}
