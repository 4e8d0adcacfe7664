//! `latchkeyd invite`: prints one join token.

use clap::Args;
use latchkey_protocol::ClientName;
use serde::Serialize;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::{JoinInvitations, Request};
use crate::policy::Span;
use crate::records::GroupName;

/// Print a join token for a new machine
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd invite web-1
  latchkeyd invite web-1 --ttl 2d | ssh root@web-1 latchkey join -
  latchkeyd invite web- --count 20 --group web --json

The token goes to standard output and nothing else does. It is a secret until it is used or ends: it
holds the server's addresses, the fingerprint of its CA and a one-time secret. One machine can use
it, again and again until it ends; another machine with the same token is refused, with an alarm in
the audit. A new invitation for the same name ends the one before.

With --count N the name is the beginning of N names: web-1 to web-N, all or none of which may have joined. With
--json each invitation is one line: {\"client\": ..., \"expires\": ..., \"token\": ...}, for Terraform, Ansible and
the like. Whoever can read the output can join: keep it out of logs and state files that others read.")]
pub struct Invite {
    /// What the machine shall be called: 1 to 64 letters, digits, '.', '_', '-'
    client: ClientName,
    /// How long the token is good for: a number with s, m, h or d
    #[arg(long, default_value = "1h")]
    ttl: Span,
    /// Invite so many machines; their numbers are put after the name
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: Option<u16>,
    /// Put them into this group
    #[arg(long)]
    group: Option<GroupName>,
    /// Print JSON, one line for each invitation
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    client: &'a ClientName,
    expires: &'a str,
    token: &'a str,
}

impl Invite {
    pub fn run(self) -> Result<(), Failure> {
        let names = self.names()?;
        let JoinInvitations { invitations, group } = self.target.ask(&Request::Invite {
            clients: names.clone(),
            group: self.group.clone(),
            seconds: self.ttl.0.as_secs(),
        })?;
        for (client, invitation) in names.iter().zip(&invitations) {
            match self.json {
                true => output::json_line(&Line {
                    client,
                    expires: &invitation.expires,
                    token: &invitation.token,
                })?,
                false => output::data(&invitation.token)?,
            }
        }
        if let Some(group) = group {
            output::hint(&group.line());
        }
        if let (false, [client], [invitation]) =
            (self.json, names.as_slice(), invitations.as_slice())
        {
            output::hint(&format!(
                "on '{client}' run 'latchkey join' and paste this line; it is a secret and ends at {} UTC",
                invitation.expires
            ));
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<ClientName>, Failure> {
        let Some(count) = self.count else {
            return Ok(vec![self.client.clone()]);
        };
        let name = |number: u16| {
            format!("{}{number}", self.client)
                .parse()
                .map_err(|error: latchkey_protocol::ids::IdError| Failure::usage(error.to_string()))
        };
        (1..=count).map(name).collect()
    }
}
