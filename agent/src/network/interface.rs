//! What the running part knows of an interface.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::How;
use super::assignment::Rank;
use super::dhcp_task::Command;
use super::netlink::Link;
use super::plan::Stage;
use super::undo::Change;
use super::values::{Ipv4Config, Mac};

/// How long a card that is known may be without a carrier before unknown ones are tried, counted in ticks.
const CARRIER_LIMIT: Duration = Duration::from_secs(20);

/// What we know of an interface beyond what the kernel tells.
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub stage: Stage,
    pub how: How,
    pub carrier: bool,
    /// When it came into view, or its carrier changed.
    pub since: Instant,
    /// It asks by DHCP, and nobody answers.
    pub silence: bool,
    /// What was told as being up.
    pub up: Option<Ipv4Addr>,
    pub config: Ipv4Config,
    pub changes: Vec<Change>,
    pub client: Option<Client>,
}

/// A DHCP client that runs.
pub struct Client {
    pub commands: mpsc::UnboundedSender<Command>,
    pub task: AbortHandle,
    pub mtu: Option<u32>,
    pub rank: Rank,
}

impl Interface {
    /// As it comes into view.
    pub fn new(link: &Link) -> Self {
        Self {
            index: link.index,
            name: link.name.clone(),
            mac: link.mac,
            stage: Stage::New,
            how: How::Dhcp,
            carrier: link.carrier,
            since: Instant::now(),
            silence: false,
            up: None,
            config: Ipv4Config::default(),
            changes: Vec::new(),
            client: None,
        }
    }

    /// Whether nothing came of it for so long that others are tried too.
    pub fn is_idle(&self, link: &Link) -> bool {
        self.silence || !link.carrier && self.since.elapsed() > CARRIER_LIMIT
    }
}
