//! The command line. Every command is a file of its own; this one names them and maps how they end.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by the state of the server (no such client, wrong
//! code, decided already, and the like).

mod accept_rollback;
mod approve;
mod arm;
mod audit;
mod backup;
mod check_config;
mod clients;
mod deny;
mod destroy;
mod group;
mod init;
mod invite;
mod lock;
mod output;
mod policy;
mod policy_test;
mod requests;
mod restore;
mod revoke;
mod serve;
mod target;
mod timeline;
mod volume;
mod volumes;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::admin::client::AdminClientError;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const REFUSED: u8 = 3;

/// latchkeyd keeps one half of what opens the encrypted volumes of your machines, and releases it to them at boot
/// as the policy of each volume says.
#[derive(Debug, Parser)]
#[command(name = "latchkeyd", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Set up a key server:
  latchkeyd init --name keys.example.org
  systemctl enable --now latchkeyd
Let a machine join, then run 'latchkey join' there and paste the token:
  latchkeyd invite web-1
See what it did, and what waits for you:
  latchkeyd volumes
  latchkeyd requests --follow
  latchkeyd audit

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by the state of the server.
'latchkeyd COMMAND --help' explains a command; latchkeyd(8) is the manual.";

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Serve(serve::Serve),
    CheckConfig(check_config::CheckConfig),
    Invite(invite::Invite),
    Clients(clients::Clients),
    Volumes(volumes::Volumes),
    Requests(requests::Requests),
    Approve(approve::Approve),
    Deny(deny::Deny),
    Lock(lock::Lock),
    Readmit(lock::Readmit),
    Revoke(revoke::Revoke),
    Destroy(destroy::Destroy),
    Policy(Box<policy::PolicyCommand>),
    Arm(arm::Arm),
    Group(group::GroupCommand),
    Groups(group::Groups),
    Audit(audit::Audit),
    Backup(backup::Backup),
    Restore(restore::Restore),
    AcceptRollback(accept_rollback::AcceptRollback),
}

/// How a command failed.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap; printing may fail, the exit code tells all the same.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    let result = match cli.command {
        Command::Init(command) => command.run(),
        Command::Serve(command) => command.run(),
        Command::CheckConfig(command) => command.run(),
        Command::Invite(command) => command.run(),
        Command::Clients(command) => command.run(),
        Command::Volumes(command) => command.run(),
        Command::Requests(command) => command.run(),
        Command::Approve(command) => command.run(),
        Command::Deny(command) => command.run(),
        Command::Lock(command) => command.run(),
        Command::Readmit(command) => command.run(),
        Command::Revoke(command) => command.run(),
        Command::Destroy(command) => command.run(),
        Command::Policy(command) => command.run(),
        Command::Arm(command) => command.run(),
        Command::Group(command) => command.run(),
        Command::Groups(command) => command.run(),
        Command::Audit(command) => command.run(),
        Command::Backup(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::AcceptRollback(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::hint(&format!("latchkeyd: {}", failure.text));
            ExitCode::from(failure.code)
        }
    }
}

impl Failure {
    fn usage(text: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            text: text.into(),
        }
    }

    fn refused(text: impl Into<String>) -> Self {
        Self {
            code: REFUSED,
            text: text.into(),
        }
    }

    /// An error with its causes; the first line says what failed, hints for the operator come last.
    fn of(error: &dyn std::error::Error) -> Self {
        let mut lines = Vec::new();
        let mut hints = Vec::new();
        let mut current = Some(error);
        while let Some(error) = current {
            let text = error.to_string();
            let (line, hint) = text.split_once('\n').unwrap_or((&text, ""));
            if lines.last().map(String::as_str) != Some(line) {
                lines.push(line.to_owned());
                hints.extend((!hint.is_empty()).then(|| hint.to_owned()));
            }
            current = error.source();
        }
        let mut text = lines.join(": ");
        for hint in hints {
            text = format!("{text}\n{hint}");
        }
        Self { code: FAILED, text }
    }
}

impl From<AdminClientError> for Failure {
    fn from(error: AdminClientError) -> Self {
        let code = match error {
            AdminClientError::Refused(_) => REFUSED,
            _ => FAILED,
        };
        Self {
            code,
            ..Self::of(&error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[derive(Debug, thiserror::Error)]
    #[error("failed to open 'x'\ntry y")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn hints_come_after_the_causes() {
        let failure = Failure::of(&Outer(std::io::Error::other("no such file")));
        assert_eq!(failure.text, "failed to open 'x': no such file\ntry y");
    }
}
