//! How many releases a key server makes in a second, beside what the same machine does without it: bare TLS
//! handshakes, kxd and tangd. And how much memory it takes.
//!
//! One client program loads all of them in turn, in short rounds, so that what disturbs the machine meanwhile
//! disturbs all alike. Client and server share the machine: what is compared are whole exchanges.
#![forbid(unsafe_code)]

mod attack;
mod child;
mod handshakes;
mod keyserver;
mod kxd;
mod machine;
mod memory;
mod report;
mod rounds;
mod slow;
mod strangers;
mod tang;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::handshakes::Handshakes;
use crate::keyserver::Home;
use crate::kxd::Kxd;
use crate::machine::{Fleet, Machines};
use crate::report::Report;
use crate::rounds::Plan;
use crate::tang::Tang;

/// What went wrong, for a person.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measure how fast a key server releases, and what it is compared with
///
/// Exits 0 whatever the figures are; it is no test.
#[derive(Debug, Parser)]
#[command(name = "latchkey-load")]
struct Options {
    /// An empty folder on a real disk, for the stores; it is not removed
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// The key server's program
    #[arg(long, value_name = "FILE")]
    latchkeyd: PathBuf,
    /// Connections at once
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 16, 64])]
    connections: Vec<usize>,
    /// Length of one round
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    seconds: f64,
    /// How often each is measured; the figures are medians
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Machines that take turns
    #[arg(long, value_name = "N", default_value_t = 256)]
    clients: usize,
    /// What to load, in this order
    #[arg(long, value_name = "NAME,…", value_enum, value_delimiter = ',',
        default_values_t = [Server::Latchkeyd, Server::Handshakes, Server::Kxd, Server::Tangd])]
    servers: Vec<Server>,
    /// Numbers of clients at which the memory is measured, ascending
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [0, 1_000, 100_000])]
    memory: Vec<usize>,
    /// Idle and slow connections to keep while honest machines boot; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    slow: usize,
    /// Of these, new ones in a second, at most
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    slow_rate: usize,
    /// Requests of strangers whose times are compared; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    strangers: usize,
    /// Write all figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Server {
    /// Releases of our key server
    Latchkeyd,
    /// Mutual TLS handshakes and one byte each way: the limit
    Handshakes,
    /// kxd(1), mutual TLS with its own parameters
    Kxd,
    /// tangd(8), without TLS, one process for each connection as systemd starts it
    Tangd,
}

/// A server that runs, and how to make one exchange with it.
enum Target {
    Latchkeyd(Fleet),
    Handshakes(Handshakes),
    Kxd(Kxd),
    Tangd(Tang),
}

fn main() -> ExitCode {
    // Not on the command line's help: it is this program's other end.
    let result = match std::env::args().nth(1).as_deref() {
        Some(handshakes::SERVE) => handshakes::serve(),
        Some(attack::RUN) => attack::run(),
        _ => run(&Options::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("latchkey-load: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let folder = prepare(&options.folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(wire::threads())
        .enable_all()
        .build()?;
    let mut targets = Vec::new();
    for server in &options.servers {
        let target = match server {
            Server::Latchkeyd => {
                let home = Home::create(&options.latchkeyd, &folder.join("latchkeyd"))?;
                Target::Latchkeyd(Machines::join(&home, options.clients)?.start(&home)?)
            }
            Server::Handshakes => Target::Handshakes(Handshakes::start()?),
            Server::Kxd => Target::Kxd(Kxd::start(&folder.join("kxd"))?),
            Server::Tangd => Target::Tangd(Tang::start(&folder.join("tang"))?),
        };
        targets.push((*server, Arc::new(target)));
    }
    let plan = Plan {
        connections: options.connections.clone(),
        time: Duration::from_secs_f64(options.seconds),
        rounds: options.rounds,
    };
    let rates = runtime.block_on(rounds::measure(&targets, &plan))?;
    drop(targets);
    let memory = memory::measure(&runtime, &options.latchkeyd, &folder, &options.memory)?;
    let slow = match options.slow {
        0 => None,
        connections => {
            let plan = slow::Plan {
                connections,
                rate: options.slow_rate,
                time: Duration::from_secs(10),
            };
            Some(slow::measure(&runtime, &options.latchkeyd, &folder, plan)?)
        }
    };
    let strangers = match options.strangers {
        0 => None,
        count => Some(strangers::measure(
            &runtime,
            &options.latchkeyd,
            &folder,
            count,
        )?),
    };
    let measured = report::Measured {
        rates,
        memory,
        slow,
        strangers,
    };
    let report = Report::new(&plan, options.clients, measured);
    print!("{}", report.table());
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(())
}

/// The folder for the stores: empty, and where a commit has to wait for a disk.
fn prepare(folder: &Path) -> Result<PathBuf, Failure> {
    std::fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    if std::fs::read_dir(&folder)?.next().is_some() {
        return Err(format!("'{}' is not empty", folder.display()).into());
    }
    if statfs(&folder)?.filesystem_type() == TMPFS_MAGIC {
        return Err(format!("'{}' is not on a disk (tmpfs)", folder.display()).into());
    }
    Ok(folder)
}

impl Target {
    /// One whole exchange on a new connection; machines take turns by `number`.
    async fn exchange(&self, number: usize) -> Result<(), Failure> {
        match self {
            Self::Latchkeyd(fleet) => fleet.release(number).await,
            Self::Handshakes(handshakes) => handshakes.exchange(number).await,
            Self::Kxd(kxd) => kxd.fetch(number).await,
            Self::Tangd(tang) => tang.recover(number).await,
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Latchkeyd => "latchkeyd",
            Self::Handshakes => "handshakes",
            Self::Kxd => "kxd",
            Self::Tangd => "tangd",
        })
    }
}
