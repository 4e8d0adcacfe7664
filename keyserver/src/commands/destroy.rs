//! `latchkeyd destroy`: destroys the share of a volume for good.

use std::io::{BufRead, IsTerminal};

use clap::Args;

use super::target::Target;
use super::{Failure, output, volume};
use crate::admin::protocol::Request;
use crate::service::listing::Destruction;

/// Destroy the share of a volume: it never opens by itself again
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd destroy root
  latchkeyd destroy 0f7c1d1e-5b5a-4b7e-9d63-2f6f0f6f2a11 --yes

This cannot be undone. Passphrases of the volume still open it. Copies of the store that were made
before may still hold the share, sealed under the master key; the answer names what was not reached.")]
pub struct Destroy {
    /// The volume: its whole id or label, or CLIENT/LABEL
    volume: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl Destroy {
    pub fn run(self) -> Result<(), Failure> {
        let volume = volume::find_whole(&self.target, &self.volume)?;
        if !self.yes {
            confirm(&format!(
                "destroy the share of volume '{}' ({}) of client '{}' for good?",
                volume.label, volume.id, volume.client
            ))?;
        }
        let done: Destruction = self.target.ask(&Request::Destroy { volume: volume.id })?;
        if self.json {
            return output::json(&done);
        }
        output::data(&text(&done))
    }
}

fn text(done: &Destruction) -> String {
    let mut lines = vec![format!(
        "destroyed the share of volume '{}' ({}) of client '{}'",
        done.label, done.volume, done.client
    )];
    lines.extend(done.done.iter().map(|what| format!("  done: {what}")));
    lines.extend(
        done.not_reached
            .iter()
            .map(|what| format!("  not reached: {what}")),
    );
    lines.join("\n")
}

fn confirm(question: &str) -> Result<(), Failure> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::usage(
            "nobody is here to confirm\nadd --yes to destroy without being asked",
        ));
    }
    output::hint(&format!("{question}\nType 'yes' to go on:"));
    let mut line = String::new();
    let read = input.lock().read_line(&mut line);
    if read.is_ok() && line.trim() == "yes" {
        Ok(())
    } else {
        Err(Failure::refused("not confirmed, nothing was changed"))
    }
}
