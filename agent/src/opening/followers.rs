//! What is started when a volume is open: systemd's own unit for it, the mounts of fstab(5), and what could not start at
//! boot because they were not there.
//!
//! Where the key server was away, the boot has gone on: systemd has dropped the mount and all that requires it. Nothing in
//! systemd starts those again when the device appears. So what requires a mount, was never started in this boot, and is
//! wanted by something that runs, such as multi-user.target, is started now. What an administrator stopped stays stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::process::{Command, Stdio};

use super::fstab;
use crate::commands::service;
use crate::failure::chain;
use crate::files::Files;
use crate::unit_name;

/// Most units that are looked at: a chain of requirements has no more.
const UNITS_LIMIT: usize = 64;
/// What is asked about each.
const PROPERTIES: &str =
    "Id,ActiveState,InactiveExitTimestampMonotonic,Job,WantedBy,RequiredBy,BoundBy,UpheldBy";

/// Starts all of them, and waits for none. What cannot be started is told, and hinders nothing.
pub fn start(files: &Files, name: &str) {
    if !service::is_running(files) {
        return;
    }
    let mut units = vec![unit_name::native(name)];
    let mounts = fstab::mounts(files, name).unwrap_or_else(|error| {
        log::warn!(
            "what lies on '{name}' cannot be told, and is not started: {}",
            chain(&error)
        );
        Vec::new()
    });
    match dropped(&mounts, show) {
        Ok(dropped) => {
            units.extend(mounts);
            if !dropped.is_empty() {
                log::info!("starting what waited for '{name}': {}", dropped.join(", "));
            }
            units.extend(dropped);
        }
        Err(error) => {
            log::warn!("failed to ask systemd what waited for '{name}': {error}");
            units.extend(mounts);
        }
    }
    let start = ["--no-block", "start", "--"].map(str::to_owned);
    if !service::systemctl(&[start.as_slice(), &units].concat()) {
        log::warn!(
            "not all that follows '{name}' could be started\nrun: systemctl start {}",
            units.join(" ")
        );
    }
}

/// The units that the boot dropped because one of `mounts` was not there, those before others that require them.
fn dropped(
    mounts: &[String],
    show: impl Fn(&[String]) -> io::Result<Vec<Unit>>,
) -> io::Result<Vec<String>> {
    let mut seen: BTreeSet<String> = mounts.iter().cloned().collect();
    let mut dropped = Vec::new();
    let mut wave = mounts.to_vec();
    while !wave.is_empty() && seen.len() < UNITS_LIMIT {
        let requiring: Vec<String> = show(&wave)?
            .into_iter()
            .flat_map(|unit| unit.required_by)
            .filter(|name| !name.ends_with(".target") && seen.insert(name.clone()))
            .collect();
        if requiring.is_empty() {
            break;
        }
        let mut next = Vec::new();
        for unit in show(&requiring)? {
            if unit.was_never_started && is_wanted(&unit, &dropped, &show)? {
                dropped.push(unit.name.clone());
                next.push(unit.name);
            }
        }
        wave = next;
    }
    Ok(dropped)
}

/// Whether something that runs, or is about to, wants it.
fn is_wanted(
    unit: &Unit,
    dropped: &[String],
    show: &impl Fn(&[String]) -> io::Result<Vec<Unit>>,
) -> io::Result<bool> {
    if unit.wanted_by.iter().any(|by| dropped.contains(by)) {
        return Ok(true);
    }
    let wanting = show(&unit.wanted_by)?;
    Ok(wanting.iter().any(|by| by.is_active))
}

/// What systemd says of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Unit {
    name: String,
    /// It runs, or a job is about it.
    is_active: bool,
    was_never_started: bool,
    /// Cannot start without it.
    required_by: Vec<String>,
    /// Start it with them.
    wanted_by: Vec<String>,
}

fn show(units: &[String]) -> io::Result<Vec<Unit>> {
    if units.is_empty() {
        return Ok(Vec::new());
    }
    let output = Command::new("systemctl")
        .args(["show", "--no-pager", "--property", PROPERTIES, "--"])
        .args(units)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        Ok(parse(&String::from_utf8_lossy(&output.stdout)))
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(io::Error::other(format!("systemctl: {said}")))
    }
}

/// Paragraphs of `PROPERTY=VALUE`, one for each unit.
fn parse(text: &str) -> Vec<Unit> {
    let unit = |paragraph: &str| {
        let values: BTreeMap<&str, &str> = paragraph
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let value = |name: &str| values.get(name).copied().unwrap_or_default();
        let names = |properties: &[&str]| {
            let names = properties
                .iter()
                .flat_map(|name| value(name).split_whitespace());
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        let state = value("ActiveState");
        Unit {
            name: value("Id").to_owned(),
            is_active: matches!(state, "active" | "activating" | "reloading")
                || !matches!(value("Job"), "" | "0"),
            was_never_started: state == "inactive"
                && matches!(value("InactiveExitTimestampMonotonic"), "" | "0"),
            required_by: names(&["RequiredBy", "BoundBy"]),
            wanted_by: names(&["WantedBy", "RequiredBy", "UpheldBy"]),
        }
    };
    text.split("\n\n")
        .map(unit)
        .filter(|unit| !unit.name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `systemctl show` prints them: name, state, when it was started, what wants it, what requires it.
    fn systemd(units: &'static [[&'static str; 5]]) -> impl Fn(&[String]) -> io::Result<Vec<Unit>> {
        move |asked| {
            let text: Vec<String> = asked
                .iter()
                .filter_map(|name| units.iter().find(|unit| unit[0] == name))
                .map(|[id, state, started, wanted_by, required_by]| {
                    format!(
                        "Id={id}\nActiveState={state}\nInactiveExitTimestampMonotonic={started}\nJob=0\n\
                         WantedBy={wanted_by}\nRequiredBy={required_by}\nBoundBy=\nUpheldBy=\n"
                    )
                })
                .collect();
            Ok(parse(&text.join("\n")))
        }
    }

    #[test]
    fn what_the_boot_dropped_is_started_and_nothing_else() {
        let show = systemd(&[
            [
                "srv.mount",
                "inactive",
                "0",
                "remote-fs.target",
                "database.service stopped.service unwanted.service running.service failed.service remote-fs.target",
            ],
            [
                "database.service",
                "inactive",
                "0",
                "multi-user.target",
                "site.service",
            ],
            [
                "site.service",
                "inactive",
                "0",
                "",
                "database.service multi-user.target",
            ],
            [
                "stopped.service",
                "inactive",
                "512",
                "multi-user.target",
                "",
            ],
            ["unwanted.service", "inactive", "0", "rescue.target", ""],
            ["running.service", "active", "77", "multi-user.target", ""],
            ["failed.service", "failed", "78", "multi-user.target", ""],
            ["multi-user.target", "active", "99", "", ""],
            ["rescue.target", "inactive", "0", "", ""],
        ]);
        let found = dropped(&["srv.mount".to_owned()], show).unwrap();
        assert_eq!(found, ["database.service", "site.service"]);
    }

    #[test]
    fn a_circle_of_requirements_ends() {
        let show = systemd(&[
            ["srv.mount", "inactive", "0", "", "a.service"],
            [
                "a.service",
                "inactive",
                "0",
                "multi-user.target",
                "b.service",
            ],
            [
                "b.service",
                "inactive",
                "0",
                "a.service",
                "a.service srv.mount",
            ],
            ["multi-user.target", "active", "9", "", ""],
        ]);
        let found = dropped(&["srv.mount".to_owned()], show).unwrap();
        assert_eq!(found, ["a.service", "b.service"]);
    }

    #[test]
    fn what_waits_for_its_turn_counts_as_running() {
        let units = parse(
            "Id=multi-user.target\nActiveState=inactive\nJob=17\nWantedBy=\n\nId=x.service\nActiveState=inactive\nJob=0\n",
        );
        assert_eq!(
            units.iter().map(|unit| unit.is_active).collect::<Vec<_>>(),
            [true, false]
        );
        assert!(units[1].was_never_started);
    }
}
