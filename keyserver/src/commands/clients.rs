//! `latchkeyd clients`: lists the machines.

use clap::Args;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::listing::{ClientListing, ClientState};

/// List the machines that were invited
#[derive(Debug, Args)]
pub struct Clients {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl Clients {
    pub fn run(self) -> Result<(), Failure> {
        let clients: Vec<ClientListing> = self.target.ask(&Request::Clients)?;
        if self.json {
            return output::json(&clients);
        }
        let rows: Vec<_> = clients.iter().map(row).collect();
        output::listing(
            [
                "CLIENT",
                "STATE",
                "GROUP",
                "VOLUMES",
                "JOINED (UTC)",
                "FROM",
                "HEARD (UTC)",
            ],
            &rows,
            "no client yet; invite one: latchkeyd invite NAME",
        )
    }
}

fn row(client: &ClientListing) -> [String; 7] {
    let state = match client.state {
        ClientState::Invited => "invited",
        ClientState::Expired => "invitation ended",
        ClientState::Joined => "joined",
        ClientState::Revoked => "revoked",
    };
    [
        client.name.to_string(),
        match client.locked {
            Some(_) => format!("{state}, locked out"),
            None => state.to_owned(),
        },
        client
            .group
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        client.volumes.to_string(),
        client.joined.map_or_else(String::new, |time| time.text()),
        client
            .joined_from
            .map_or_else(String::new, |address| address.to_string()),
        client.heard.map_or_else(String::new, |time| time.text()),
    ]
}
