//! `latchkey arm-reboot`: announces a reboot to the key servers, so that one boot within a time needs no person.
//!
//! The same step moves the tickets on: only this disk, as it is now, is expected. `latchkey-arm.service` runs it when the
//! machine goes down for a reboot or for kexec, never for power-off.

use std::io;
use std::process::Command;
use std::time::Duration;

use futures_util::future::join_all;
use latchkey_protocol::wire::Arm;

use crate::date;
use crate::failure::chain;
use crate::files::{Files, FilesError, Role};
use crate::running::{self, tickets};
use crate::server::{KeyServer, block_on};

/// How long a reboot may be announced for.
pub const TTL: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(24 * 3600)];
/// Longest that a machine which is going down is held up.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(4);

/// What `latchkey arm-reboot` is told.
#[derive(Debug, Clone, Copy)]
pub struct Arguments {
    /// How long the reboot is announced for.
    pub ttl: Duration,
    /// Whether it is only for a reboot that is under way.
    pub occasion: Occasion,
}

/// When to announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Now: somebody is about to reboot.
    Asked,
    /// If systemd is taking the machine down for a reboot or kexec.
    GoingDown,
}

/// Where the reboot is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Armed {
    /// At every key server that was joined.
    Everywhere,
    /// At some.
    Partly,
    /// The machine is not going down for a reboot: nothing was announced.
    NotRebooting,
}

/// The reboot is announced nowhere: the key servers decide as their policies say for an unannounced boot.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// The folder of the key servers.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// No event queue.
    #[error("failed to start")]
    Start(#[source] io::Error),
    /// systemd does not say what it is doing.
    #[error("failed to ask systemd whether this machine is about to reboot")]
    Systemd(#[source] io::Error),
    /// No key server.
    #[error("this machine has not joined any key server, so there is nothing to announce")]
    NoServer,
    /// None took it.
    #[error(
        "no key server was told of the reboot, so it is not announced\n\
         without that, the policy of each volume says whether somebody has to approve the next boot: latchkey status"
    )]
    Nowhere,
}

/// Announces a reboot at every key server that was joined.
///
/// # Errors
/// A variant of [`ArmError`].
pub fn run(files: &Files, arguments: Arguments) -> Result<Armed, ArmError> {
    if arguments.occasion == Occasion::GoingDown && !is_rebooting().map_err(ArmError::Systemd)? {
        log::info!("this is no reboot; nothing is announced");
        return Ok(Armed::NotRebooting);
    }
    let servers = files.servers()?;
    if servers.is_empty() {
        return Err(ArmError::NoServer);
    }
    let mut opened = Vec::new();
    let mut all = true;
    for server in servers {
        match server
            .map_err(|error| chain(&error))
            .and_then(|joined| KeyServer::open(&joined, Role::Host).map_err(|error| chain(&error)))
        {
            Ok(server) => opened.push(server),
            Err(error) => {
                log::warn!("{error}");
                all = false;
            }
        }
    }
    // Side by side: one that is away must not use up the time of the others.
    let each = join_all(
        opened
            .iter()
            .map(|server| announce(files, server, arguments)),
    );
    let announced = block_on(each).map_err(ArmError::Start)?;
    match announced.iter().filter(|announced| **announced).count() {
        0 => Err(ArmError::Nowhere),
        count if all && count == opened.len() => Ok(Armed::Everywhere),
        _ => Ok(Armed::Partly),
    }
}

/// Whether it was announced at `server`; says so either way.
async fn announce(files: &Files, server: &KeyServer, arguments: Arguments) -> bool {
    let id = server.settings.id.short();
    let told = tell(files, server, arguments.ttl);
    let told = match arguments.occasion {
        Occasion::Asked => told.await,
        Occasion::GoingDown => match tokio::time::timeout(SHUTDOWN_LIMIT, told).await {
            Ok(told) => told,
            Err(_) => Err(format!("no answer within {} s", SHUTDOWN_LIMIT.as_secs())),
        },
    };
    match told {
        Ok(until) => {
            log::info!(
                "key server {id} expects one boot until {}",
                date::time(until)
            );
            true
        }
        Err(why) => {
            log::warn!("key server {id} was not told of the reboot: {why}");
            false
        }
    }
}

/// Until when the reboot is announced, Unix seconds.
async fn tell(files: &Files, server: &KeyServer, ttl: Duration) -> Result<u64, String> {
    // The next boot may be into an image that was built a moment ago.
    running::beat(files, server)
        .await
        .map_err(|error| chain(&error))?;
    let arm = Arm {
        seconds: u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX),
    };
    let moved = tickets::move_on(files, server, Some(arm))
        .await
        .map_err(|error| chain(&error))?;
    moved
        .armed_until
        .ok_or_else(|| "it did not say until when it is announced".to_owned())
}

/// Whether systemd has a job that ends in a reboot of the kernel. A soft reboot keeps the volumes open.
fn is_rebooting() -> io::Result<bool> {
    let output = Command::new("systemctl")
        .args([
            "list-jobs",
            "--plain",
            "--no-legend",
            "--full",
            "--no-pager",
        ])
        .output()?;
    if output.status.success() {
        Ok(names_reboot(&String::from_utf8_lossy(&output.stdout)))
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(io::Error::other(format!("systemctl: {said}")))
    }
}

/// Lines of `JOB UNIT TYPE STATE`.
fn names_reboot(jobs: &str) -> bool {
    jobs.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words[..], [_, "reboot.target" | "kexec.target", "start", _])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reboot_and_kexec_are_announced_and_no_other_end() {
        let jobs = |target: &str| {
            format!(
                "512 {target} start waiting\n513 systemd-{}.service start waiting\n\
                 514 latchkey-arm.service stop running\n",
                target.trim_end_matches(".target")
            )
        };
        for (target, expected) in [
            ("reboot.target", true),
            ("kexec.target", true),
            ("poweroff.target", false),
            ("halt.target", false),
            ("soft-reboot.target", false),
            ("rescue.target", false),
        ] {
            assert_eq!(names_reboot(&jobs(target)), expected, "{target}");
        }
        assert!(!names_reboot(""));
        assert!(!names_reboot("No jobs running.\n"));
        assert!(!names_reboot("7 reboot.target stop waiting\n"));
    }
}
