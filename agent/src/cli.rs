//! The command line: what is asked for, and how its result is told.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage; `unlock` 4 when the native prompt has to go on; `wait` 1 when
//! devices are missing, 3 when it could not wait.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use log::LevelFilter;
use nix::unistd::Pid;

use crate::commands::join::{self, TokenSource};
use crate::failure::chain;
use crate::files::Files;
use crate::flow::Outcome;
use crate::unlock::{self, cleanup, finish, wait};
use crate::{logging, network};

/// `unlock`: what is locked is left to the native prompt.
const LEFT_TO_NATIVE: u8 = 4;
/// `wait`: it could not.
const CANNOT_WAIT: u8 = 3;

/// Opens encrypted volumes at boot with what a key server releases; a passphrase always works too.
#[derive(Debug, Parser)]
#[command(
    name = "latchkey",
    version,
    after_help = "A new machine: 'latchkey join' with the token that 'latchkeyd invite' printed, then \
                  'latchkey bind DEVICE'.\nSee latchkey(8)."
)]
struct Arguments {
    /// Take all files below this folder; for tests and images
    #[arg(long, hide = true, default_value = "/", global = true)]
    root: PathBuf,
    /// Tell more
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this machine a client of a key server
    #[command(after_help = "Example: latchkey join -   (then paste the token and press Ctrl-D)")]
    Join {
        /// The token; '-' reads it from standard input, nothing asks for it. As an argument other users can see it
        token: Option<String>,
    },
    /// Open the volumes of crypttab; what the boot hooks run
    Unlock {
        /// Only these mappings
        names: Vec<String>,
        /// Seconds until missing devices are left to the boot framework
        #[arg(long, default_value_t = 30)]
        device_limit: u64,
    },
    /// Wait until the agent has ended
    #[command(hide = true)]
    Wait {
        /// Its process id
        #[arg(long)]
        agent: Option<i32>,
        /// Seconds to wait while it only waits for devices
        #[arg(long, default_value_t = 5)]
        device_timeout: u64,
    },
    /// Take back whatever an agent left behind
    #[command(hide = true)]
    Cleanup,
    /// Check before switch-root that root lies on the volume that was opened
    #[command(hide = true)]
    Finish,
    /// Record the network of the running system for the next image
    #[command(hide = true)]
    RecordNetwork,
}

/// Runs the program.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    logging::start(if arguments.verbose {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    });
    let files = Files::under(&arguments.root);
    match arguments.command {
        Command::Join { token } => done(join::run(&files, source(token))),
        Command::Unlock {
            names,
            device_limit,
        } => {
            let device_limit = Duration::from_secs(device_limit);
            match unlock::run(
                &files,
                &unlock::Settings {
                    names,
                    device_limit,
                },
            ) {
                Ok(Outcome::Open) => ExitCode::SUCCESS,
                Ok(_) => LEFT_TO_NATIVE.into(),
                Err(error) => failed(&error),
            }
        }
        Command::Wait {
            agent,
            device_timeout,
        } => {
            match wait::run(
                &files,
                agent.map(Pid::from_raw),
                Duration::from_secs(device_timeout),
            ) {
                Ok(wait::Waited::AgentGone) => ExitCode::SUCCESS,
                Ok(wait::Waited::DevicesMissing) => ExitCode::FAILURE,
                Err(error) => {
                    log::error!("failed to wait for the agent: {error}");
                    CANNOT_WAIT.into()
                }
            }
        }
        Command::Cleanup => {
            cleanup::run(&files);
            ExitCode::SUCCESS
        }
        Command::Finish => {
            // initramfs-tools says where it mounted root.
            let root =
                std::env::var_os("rootmnt").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
            done(finish::run(&files, &root))
        }
        Command::RecordNetwork => done(record_network(&files)),
    }
}

fn source(token: Option<String>) -> TokenSource {
    match token.as_deref() {
        None => TokenSource::Prompt,
        Some("-") => TokenSource::Stdin,
        Some(_) => TokenSource::Argument(token.unwrap_or_default()),
    }
}

fn record_network(files: &Files) -> Result<(), Box<dyn std::error::Error>> {
    crate::server::block_on(network::record(&files.path("/"), &[]))??;
    Ok(())
}

fn done<T, E: Into<Box<dyn std::error::Error>>>(result: Result<T, E>) -> ExitCode {
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => failed(&*error.into()),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    log::error!("{}", chain(error));
    ExitCode::FAILURE
}
