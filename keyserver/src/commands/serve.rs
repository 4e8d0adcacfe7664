//! `latchkeyd serve`: runs the key server.

use std::net::SocketAddr;

use clap::Args;

use super::Failure;
use super::target::ConfigSource;
use crate::config::listen_address;
use crate::{daemon, logging};

/// Run the key server in the foreground (systemd: latchkeyd.service)
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd serve
  latchkeyd serve --data-dir ./demo --listen 127.0.0.1:7443

Signals:
  SIGTERM, SIGINT  stop accepting requests, finish those that run, exit 0
  SIGHUP           read the configuration again; a bad one is logged and the old one stays

It logs to the journal when systemd started it, else to standard error.")]
pub struct Serve {
    #[command(flatten)]
    source: ConfigSource,
    /// Listen here instead of where the configuration says; may be given several times
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address)]
    listen: Vec<SocketAddr>,
}

impl Serve {
    pub fn run(self) -> Result<(), Failure> {
        let (config, path) = self.source.load()?;
        logging::start(config.log_level);
        daemon::run(daemon::Options {
            config,
            path,
            listen: self.listen,
        })
        .map_err(|error| Failure::of(&error))
    }
}
