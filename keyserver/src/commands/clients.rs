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
            ["CLIENT", "STATE", "VOLUMES", "JOINED (UTC)", "FROM"],
            &rows,
            "no client yet; invite one: latchkeyd invite NAME",
        )
    }
}

fn row(client: &ClientListing) -> [String; 5] {
    let state = match client.state {
        ClientState::Invited => "invited",
        ClientState::Expired => "invitation ended",
        ClientState::Joined => "joined",
        ClientState::Revoked => "revoked",
    };
    [
        client.name.to_string(),
        state.to_owned(),
        client.volumes.to_string(),
        client.joined.map_or_else(String::new, |time| time.text()),
        client
            .joined_from
            .map_or_else(String::new, |address| address.to_string()),
    ]
}
