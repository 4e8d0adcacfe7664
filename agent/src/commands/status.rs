//! `latchkey status`: who this machine is at each key server, whether each address answers, what policies hold, and
//! whether the initramfs is up to date.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use latchkey_protocol::wire::StatusAnswer;
use latchkey_protocol::{ClientName, Generation, ServerId, VolumeId};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

use super::initramfs;
use super::list::{self, Binding, Format, Listed};
use crate::date;
use crate::failure::{chain, printable};
use crate::files::{Files, FilesError, Role, ServerFiles};
use crate::server::{ClientError, KeyServer, block_on, certificate};
use crate::unit_name;
use crate::unlock::kernel_command_line::KernelCommandLine;
use crate::volume::opened_in::OpenedIn;

/// Everything that `latchkey status` tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The key servers that this machine has joined.
    pub servers: Vec<Server>,
    /// Key servers whose files cannot be used, in words.
    pub broken_servers: Vec<String>,
    /// The volumes of crypttab.
    pub volumes: Vec<Listed>,
    /// Images in /boot that are older than what they should hold.
    pub stale_images: Vec<PathBuf>,
    /// What builds them anew.
    pub rebuild_command: String,
}

/// One joined key server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Server {
    /// Its CA's fingerprint.
    pub id: ServerId,
    /// Our name there.
    pub client: ClientName,
    /// When the boot certificate ends, Unix seconds.
    pub boot_certificate_ends: Option<u64>,
    /// When the host certificate ends, Unix seconds.
    pub host_certificate_ends: Option<u64>,
    /// Its addresses.
    pub addresses: Vec<Reached>,
    /// What it holds for this machine, as the first address that answered tells; none if none did.
    pub volumes: Option<Vec<Held>>,
}

/// Whether one address answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reached {
    /// `HOST:PORT`.
    pub address: String,
    /// What went wrong, if something did.
    pub problem: Option<String>,
}

/// A volume at a key server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Held {
    /// Its name there.
    pub volume: VolumeId,
    /// The generation of its share.
    pub generation: Generation,
    /// The policy in force.
    pub policy: String,
    /// Whether the share was destroyed.
    pub destroyed: bool,
}

/// No status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Files of ours.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// No event queue.
    #[error("failed to start")]
    Start(#[source] io::Error),
    /// stdout.
    #[error("failed to write the status")]
    Write(#[source] io::Error),
}

/// Whether all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The next boot can open every bound volume.
    Good,
    /// Something was shown with a `!`.
    Trouble,
}

/// Prints the status to stdout.
///
/// # Errors
/// A variant of [`StatusError`].
pub fn run(files: &Files, format: Format) -> Result<Health, StatusError> {
    let status = gather(files)?;
    print(&status, format).map_err(StatusError::Write)?;
    Ok(status.health())
}

fn gather(files: &Files) -> Result<Status, StatusError> {
    let volumes = list::volumes(files)?;
    let of_volumes = volumes
        .iter()
        .flat_map(|volume| volume.image_inputs.clone());
    let mut status = Status {
        servers: Vec::new(),
        broken_servers: Vec::new(),
        stale_images: initramfs::stale_images(files, of_volumes),
        volumes,
        rebuild_command: initramfs::Builder::of_system(files).to_string(),
    };
    if !status.needs_images() {
        status.stale_images.clear();
    }
    for server in files.servers()? {
        let opened = server.map_err(|error| chain(&error)).and_then(|files| {
            let opened = KeyServer::open(&files, Role::Host).map_err(|error| chain(&error))?;
            Ok((files, opened))
        });
        match opened {
            Ok((files, server)) => status.servers.push(ask(&files, &server)?),
            Err(error) => status.broken_servers.push(error),
        }
    }
    let word = forbidding_word(files);
    for volume in &mut status.volumes {
        let problems: Vec<String> = status
            .servers
            .iter()
            .filter_map(|server| server.problem_with(volume))
            .collect();
        volume.problems.extend(problems);
        if let Some(word) = &word
            && matches!(volume.binding, Binding::Bound { .. })
            && volume.opened_in == OpenedIn::Initramfs
        {
            volume.problems.push(format!(
                "this boot's kernel command line has '{word}': a boot with that opens nothing by itself"
            ));
        }
    }
    Ok(status)
}

/// The word of this boot with which the agent opens nothing automatically. Most boots have the words of the last.
fn forbidding_word(files: &Files) -> Option<String> {
    const INIT: &str = "/sbin/init";
    let text = fs::read_to_string(files.path("/proc/cmdline")).ok()?;
    let line = KernelCommandLine::parse(&text);
    let program = |path: &str| fs::canonicalize(files.path(path)).ok();
    // As the image is built: another name of the same program is no other.
    let named = line.values("init").flatten().last();
    let usual = named.filter(|path| program(path).is_some_and(|it| Some(it) == program(INIT)));
    line.asks_for_shell(usual.unwrap_or(INIT))
}

/// Asks every address, not just until one answers.
fn ask(files: &ServerFiles, server: &KeyServer) -> Result<Server, StatusError> {
    let answers = block_on(server.ask_each(async |client, address| client.status(address).await))
        .map_err(StatusError::Start)?;
    let addresses = server.settings.addresses.iter().zip(&answers);
    let reached = |(address, answer): (&_, &Result<StatusAnswer, ClientError>)| Reached {
        address: ToString::to_string(address),
        problem: answer.as_ref().err().map(|error| error.fault.to_string()),
    };
    Ok(Server {
        id: server.settings.id,
        client: server.settings.client.clone(),
        boot_certificate_ends: certificate_end(files, Role::Boot),
        host_certificate_ends: certificate_end(files, Role::Host),
        addresses: addresses.map(reached).collect(),
        volumes: answers.into_iter().flatten().next().map(held),
    })
}

fn held(answer: StatusAnswer) -> Vec<Held> {
    answer
        .volumes
        .into_iter()
        .map(|volume| Held {
            volume: volume.volume,
            generation: volume.generation,
            policy: printable(volume.policy.as_str()),
            destroyed: volume.destroyed,
        })
        .collect()
}

fn certificate_end(files: &ServerFiles, role: Role) -> Option<u64> {
    let pem = files.certificate(role).ok()?;
    certificate::end(&CertificateDer::from_pem_slice(&pem).ok()?)
}

impl Server {
    /// Why a boot would get no share here for a volume that is bound to this key server, if it told what it holds.
    fn problem_with(&self, listed: &Listed) -> Option<String> {
        let Binding::Bound {
            volume,
            servers,
            generations,
            ..
        } = &listed.binding
        else {
            return None;
        };
        let place = servers.iter().position(|server| *server == self.id)?;
        let (server, wanted) = (self.id.short(), generations[place]);
        let mut all = self.volumes.as_ref()?.iter();
        match all.find(|held| held.volume == *volume) {
            None => Some(format!("key server {server} does not know it")),
            Some(held) if held.destroyed => {
                Some(format!("key server {server} destroyed its share"))
            }
            // In the middle of a rotation it has two.
            Some(held) if held.generation != wanted && !listed.rotating => Some(format!(
                "key server {server} has generation {} of its share, and generation {wanted} is needed",
                held.generation
            )),
            Some(_) => None,
        }
    }

    fn is_good(&self) -> bool {
        self.addresses
            .iter()
            .all(|address| address.problem.is_none())
            && self.boot_certificate_ends.is_some()
            && self.host_certificate_ends.is_some()
    }
}

impl Status {
    /// Whether an image has anything of ours to do: not where all that is bound is opened in the running system.
    fn needs_images(&self) -> bool {
        let bound = self
            .volumes
            .iter()
            .filter(|volume| matches!(volume.binding, Binding::Bound { .. }));
        bound.clone().count() == 0
            || bound
                .into_iter()
                .any(|volume| volume.opened_in == OpenedIn::Initramfs)
    }

    fn health(&self) -> Health {
        let good = self.broken_servers.is_empty()
            && self.stale_images.is_empty()
            && self.servers.iter().all(Server::is_good)
            && !self.volumes.iter().any(Listed::is_in_trouble);
        if good { Health::Good } else { Health::Trouble }
    }
}

fn print(status: &Status, format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if format == Format::Json {
        serde_json::to_writer_pretty(&mut out, status)?;
        return writeln!(out);
    }
    if status.servers.is_empty() && status.broken_servers.is_empty() {
        writeln!(out, "no key server was joined; 'latchkey join' joins one")?;
    }
    for server in &status.servers {
        print_server(&mut out, server, &status.volumes)?;
    }
    for problem in &status.broken_servers {
        writeln!(out, "! {problem}")?;
    }
    for volume in &status.volumes {
        let name = &volume.name;
        match &volume.binding {
            Binding::Bound {
                volume: id,
                keyslot,
                ..
            } => {
                let keyslot = keyslot.map_or(String::new(), |slot| format!(", keyslot {slot}"));
                writeln!(out, "volume '{name}' is bound as {id}{keyslot}")?;
                if volume.opened_in == OpenedIn::RunningSystem {
                    let unit = unit_name::ours(name);
                    writeln!(
                        out,
                        "  opened in the running system: systemctl status '{unit}'"
                    )?;
                }
            }
            Binding::NotBound => writeln!(out, "volume '{name}' is not bound")?,
            Binding::Unknown => writeln!(out, "volume '{name}' cannot be read")?,
        }
        let mark = if volume.is_in_trouble() { "! " } else { "" };
        for problem in &volume.problems {
            writeln!(out, "  {mark}{problem}")?;
        }
    }
    for image in &status.stale_images {
        let image = image.display();
        writeln!(
            out,
            "! '{image}' is older than what it should hold: {}",
            status.rebuild_command
        )?;
    }
    Ok(())
}

fn print_server(out: &mut impl Write, server: &Server, listed: &[Listed]) -> io::Result<()> {
    writeln!(
        out,
        "key server {} knows this machine as '{}'",
        server.id.short(),
        server.client
    )?;
    for address in &server.addresses {
        match &address.problem {
            None => writeln!(out, "  {} answers", address.address)?,
            Some(problem) => writeln!(out, "  ! {}: {problem}", address.address)?,
        }
    }
    for (what, end) in [
        ("boot", server.boot_certificate_ends),
        ("host", server.host_certificate_ends),
    ] {
        match end {
            Some(end) => writeln!(out, "  {what} certificate until {}", date::date(end))?,
            None => writeln!(out, "  ! {what} certificate cannot be read")?,
        }
    }
    for held in server.volumes.iter().flatten() {
        let is_it = |listed: &&Listed| matches!(listed.binding, Binding::Bound { volume, .. } if volume == held.volume);
        let name = listed
            .iter()
            .find(is_it)
            .map_or("not of crypttab", |listed| &listed.name);
        let Held {
            volume,
            policy,
            generation,
            ..
        } = held;
        if held.destroyed {
            writeln!(out, "  volume {volume} ({name}): its share was destroyed")?;
        } else {
            writeln!(
                out,
                "  volume {volume} ({name}), generation {generation}: {policy}"
            )?;
        }
    }
    Ok(())
}
