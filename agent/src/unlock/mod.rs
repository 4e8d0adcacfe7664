//! `latchkey unlock`: carries out what the flow decides, in the initramfs.
//!
//! [`run`] is one boot: harden, read the facts and the boot key, then network, devices, prompt and key servers side
//! by side until the flow says that it is over. Three threads: this one (network, prompt, timers), one that asks
//! key servers (`asker`), one that calls libcryptsetup (`worker`).

pub mod asker;
pub mod boot;
pub mod cleanup;
pub mod console;
pub mod credentials;
pub mod finish;
pub mod generator;
pub mod hibernation;
pub mod kernel_command_line;
pub mod prompt;
pub mod runtime;
pub mod service_manager;
pub mod session;
pub mod volumes;
pub mod wait;
pub mod withdraw;
pub mod worker;

mod ending;
mod look;
mod optional;
mod shell;
pub(crate) mod shown;
mod splash;
mod volume_words;

use std::time::Duration;

use latchkey_secret::{guardian, process};

use crate::failure::chain;
use crate::files::{Files, FilesError};
use crate::flow::{Outcome, Plan, PlannedServer, PlannedVolume};
use crate::logging;
use crate::volume::crypttab::Entry;
use boot::Boot;
use console::Console;
use credentials::Credentials;
use prompt::Way;
use runtime::Runtime;
use shell::Shell;

/// What `latchkey unlock` is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Only these volumes of crypttab; all if empty.
    pub names: Vec<String>,
    /// How long devices may be missing.
    pub device_limit: Duration,
}

/// The boot goes on without us. Nothing was opened; the native prompt follows.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// The process could not be made unreadable to others.
    #[error("failed to harden the process")]
    Harden(#[source] std::io::Error),
    /// A file that is needed.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// One of the volumes asked for is not there, or is left to the native unlocker.
    #[error("there is no volume '{0}' in crypttab for latchkey to open")]
    NoSuchVolume(String),
    /// A thread or the runtime could not be started.
    #[error("failed to start")]
    Start(#[source] std::io::Error),
}

/// One boot.
///
/// # Errors
/// Every variant of [`UnlockError`].
pub fn run(files: &Files, settings: &Settings) -> Result<Outcome, UnlockError> {
    process::harden().map_err(UnlockError::Harden)?;
    // The boot waits for the next volume, and not for all that udev does about the last one.
    process::hurry();
    process::pin_name_service();
    latchkey_secret::udev::link();
    let boot = Boot::read(files);
    if boot.command_line.wants_debug() {
        logging::debug_boot();
    }
    if boot.is_switched_off() {
        service_manager::ready(); // nothing to wait for
        credentials::wipe_files(files);
        return Ok(Outcome::NativePrompt);
    }
    let mut console = Console::open();
    console.note("started");
    let runtime = Runtime::of(files);
    let entries = volumes(files, &boot, &settings.names, &mut console)?;
    runtime.begin(entries.iter().map(|entry| entry.name.as_str()))?;
    service_manager::ready();
    start_guardian(&runtime, &mut console);
    let credentials = Credentials::take(files, |problem| console.say(&problem));
    let (only_prompt, credentials) = match (boot.forbids_automatic(), credentials) {
        (Some(why), credentials) => {
            drop(credentials); // before anything else is done
            (Some(why), None)
        }
        (None, Err(why)) => (Some(why), None),
        (None, Ok(credentials)) => (None, Some(credentials)),
    };
    let plan = Plan {
        volumes: planned(&entries, &optional::names(files)),
        servers: credentials
            .as_ref()
            .map(planned_servers)
            .unwrap_or_default(),
        only_prompt,
        device_limit: settings.device_limit,
        seed: seed(),
    };
    let outcome = Shell::start(files, runtime, console, &boot, entries, credentials)
        .map_err(UnlockError::Start)?
        .run(plan)
        .map_err(UnlockError::Start)?;
    optional::leave(files, outcome);
    Ok(outcome)
}

/// Before there is anything secret: from here on, whoever kills the agent leaves nothing of it in memory.
fn start_guardian(runtime: &Runtime, console: &mut Console) {
    let started = guardian::watch().map_err(|error| error.to_string());
    let noted = started.and_then(|id| runtime.set_guardian(id).map_err(|error| chain(&error)));
    if let Err(why) = noted {
        console.note(&format!(
            "if the agent is killed, its memory is not wiped: {why}"
        ));
    }
}

/// The volumes of this boot, or those among them that were asked for.
fn volumes(
    files: &Files,
    boot: &Boot,
    names: &[String],
    console: &mut Console,
) -> Result<Vec<Entry>, UnlockError> {
    let mut entries = volumes::of_this_boot(files, &boot.command_line, |line| console.say(line))?;
    if let Some(missing) = names
        .iter()
        .find(|name| !entries.iter().any(|entry| entry.name == **name))
    {
        return Err(UnlockError::NoSuchVolume(missing.clone()));
    }
    entries.retain(|entry| names.is_empty() || names.contains(&entry.name));
    if Way::of_this_boot() == Way::PasswordAgents {
        volumes::retain_gated(files, &mut entries); // systemd prompts for the others at once
    }
    Ok(entries)
}

fn planned(entries: &[Entry], optional: &[String]) -> Vec<PlannedVolume> {
    let planned = |entry: &Entry| PlannedVolume {
        name: entry.name.clone(),
        optional: entry.options.nofail && optional.contains(&entry.name),
        prompt_limit: prompt::limit(&entry.options),
    };
    entries.iter().map(planned).collect()
}

/// The key servers as the flow knows them.
pub fn planned_servers(credentials: &Credentials) -> Vec<PlannedServer> {
    let planned = |server: &credentials::Server| PlannedServer {
        id: server.settings.id,
        addresses: server
            .settings
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
    };
    credentials.servers.iter().map(planned).collect()
}

/// Spreads the retries of many machines.
fn seed() -> u64 {
    let mut bytes = [0u8; 8];
    // Without randomness the retries of this machine are merely predictable.
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
