//! `latchkey list`: the volumes of crypttab, and whether the boot can open them by itself.

use std::io::{self, Write};
use std::path::PathBuf;

use latchkey_protocol::envelope::{Bound, Token};
use latchkey_protocol::{Generation, ServerId, VolumeId};
use serde::Serialize;

use super::bind::report::{self, Report};
use super::image_optional;
use super::initramfs::Framework;
use super::journal::Journal;
use super::rotate::journal::Rotation;
use super::service;
use super::target::{Target, formatted_by, read_crypttab};
use crate::failure::chain;
use crate::files::{Files, FilesError};
use crate::opening::fstab;
use crate::volume::binding;
use crate::volume::crypttab::{Entry, Key};
use crate::volume::envelopes;
use crate::volume::keyslots;
use crate::volume::opened_in::OpenedIn;
use crate::volume::place::{HeaderPlace, Kind};
use crate::volume::plain::Settings;
use crate::volume::source::Source;

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// One volume of crypttab.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listed {
    /// The mapping.
    pub name: String,
    /// The second field of crypttab.
    pub source: String,
    /// The device, if it is there.
    pub device: Option<PathBuf>,
    /// Its kind, such as `LUKS2`, if that could be read.
    pub kind: Option<&'static str>,
    /// The UUID in its header, if that could be read; of a plain volume that of its binding.
    pub uuid: Option<String>,
    /// Where it is opened at boot, if it is bound.
    pub opened_in: OpenedIn,
    /// Whether the mapping is open now.
    pub open: bool,
    /// The state of its binding.
    pub binding: Binding,
    /// Whether an earlier `latchkey rotate` has not come to its end.
    pub rotating: bool,
    /// Whether an earlier `bind` or `unbind` has not come to its end.
    #[serde(skip)]
    pub interrupted: bool,
    /// Whatever keeps the boot from opening it by itself, in words.
    pub problems: Vec<String>,
    /// Whether crypttab leaves it to a prompt at boot, and so to latchkey: neither to a key file nor to be formatted anew.
    #[serde(skip)]
    pub prompted_for: bool,
    /// If it is bound and opened in the initramfs: files that are not older than what the image has to know of it. They need not
    /// be there.
    #[serde(skip)]
    pub image_inputs: Vec<PathBuf>,
}

impl Listed {
    /// Whether a boot is kept from opening it by itself though it is bound, or may be, or a person has to go on with a change.
    pub fn is_in_trouble(&self) -> bool {
        let may_be_bound = match self.binding {
            Binding::Bound { .. } => true,
            Binding::NotBound => false,
            Binding::Unknown => self.prompted_for,
        };
        self.interrupted || may_be_bound && !self.problems.is_empty()
    }
}

/// Whether a volume is bound.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Binding {
    /// A token or an envelope file with an envelope for each of these key servers.
    Bound {
        /// Its name at the key servers.
        volume: VolumeId,
        /// The keyslot that holds the machine secret; a plain volume has none.
        keyslot: Option<u32>,
        /// The key servers.
        servers: Vec<ServerId>,
        /// The generation of each one's share that opens it.
        #[serde(skip)]
        generations: Vec<Generation>,
    },
    /// Neither.
    NotBound,
    /// The device is missing or not what crypttab says, its token is damaged, or its envelope file has another name; `problems`
    /// says more.
    Unknown,
}

/// No listing.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// crypttab or a key server's files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// stdout.
    #[error("failed to write the listing")]
    Write(#[source] io::Error),
}

/// Prints the volumes of crypttab to stdout.
///
/// # Errors
/// A variant of [`ListError`].
pub fn run(files: &Files, format: Format) -> Result<(), ListError> {
    let volumes = volumes(files)?;
    print(&volumes, format).map_err(ListError::Write)
}

/// Prints the UUIDs and names of the bound volumes, a line for each: for the image. One whose device is not there is printed
/// too, with `?` before its UUID, or for it where crypttab does not give that.
///
/// # Errors
/// A variant of [`ListError`].
pub fn run_bound(files: &Files) -> Result<(), ListError> {
    let mut out = io::stdout().lock();
    for entry in read_crypttab(files)? {
        if entry.key != Key::None {
            continue; // it is never prompted for, and so not opened by latchkey
        }
        let listed = volume(files, &entry, &[]);
        match (listed.binding, listed.uuid) {
            (Binding::Bound { .. }, Some(uuid)) => {
                writeln!(out, "{uuid} {}", entry.name).map_err(ListError::Write)?;
            }
            (Binding::NotBound, _) => {}
            _ if !entry.options.unsupported().is_empty() => {} // not opened by latchkey either
            _ => {
                let uuid = match &entry.source {
                    Source::Uuid(uuid) => uuid,
                    _ => "",
                };
                writeln!(out, "?{uuid} {}", entry.name).map_err(ListError::Write)?;
            }
        }
    }
    Ok(())
}

/// The volumes of crypttab.
///
/// # Errors
/// `Read`, `Format`.
pub fn volumes(files: &Files) -> Result<Vec<Listed>, FilesError> {
    let joined: Vec<ServerId> = files
        .servers()?
        .into_iter()
        .flatten()
        .map(|server| server.settings.id)
        .collect();
    let entries = read_crypttab(files)?;
    warn_of_others(files, &entries);
    Ok(entries
        .iter()
        .map(|entry| volume(files, entry, &joined))
        .collect())
}

/// Names the envelope files that none of the `entries` of crypttab is about.
pub fn warn_of_others(files: &Files, entries: &[Entry]) {
    for name in envelopes::names(files) {
        if entries.iter().all(|entry| entry.name != name) {
            log::warn!(
                "'{}' belongs to no line of crypttab; if its volume has another name there now, give the file that name; if \
                 it is gone, remove the file",
                envelopes::path(files, &name).display()
            );
        }
    }
}

fn volume(files: &Files, entry: &Entry, joined: &[ServerId]) -> Listed {
    let mut problems = problems_of_entry(files, entry);
    let device = match entry.source.resolve_below(files.root()) {
        Ok(device) => device.map(|device| files.path(&device.to_string_lossy())),
        Err(error) => {
            problems.push(error.to_string());
            None
        }
    };
    let (binding, target) = match &device {
        Some(device) => binding(files, entry, device, joined, &mut problems),
        None => {
            problems.push("the device is not there".to_owned());
            (Binding::Unknown, None)
        }
    };
    let uuid = target.as_ref().map(|target| target.uuid.clone());
    let rotating = target
        .as_ref()
        .is_some_and(|target| !matches!(Rotation::load(files, target), Ok(None)));
    // One that cannot be read is one too.
    let interrupted = target
        .as_ref()
        .is_some_and(|target| !matches!(Journal::load(files, target), Ok(None)));
    if interrupted {
        problems.push("an earlier 'bind' or 'unbind' was interrupted: run it again".to_owned());
    }
    let opened_in = OpenedIn::of(entry, files.root());
    let mut image_inputs = Vec::new();
    if let (Binding::Bound { volume, .. }, Some(target)) = (&binding, &target) {
        match opened_in {
            OpenedIn::Initramfs => {
                image_inputs = inputs_of_image(files, target);
                problems.extend(left_out(files, entry));
            }
            OpenedIn::RunningSystem => {
                problems.extend(unfinished(files, target, *volume));
                let held = held_up(files, &entry.name);
                problems.extend(held.unwrap_or_else(|error| Some(chain(&error))));
            }
        }
    }
    Listed {
        name: entry.name.clone(),
        source: entry.source.to_string(),
        opened_in,
        open: crate::volume::mapping::name_is_taken(&entry.name),
        kind: target.map(|target| target.kind.name()),
        uuid: uuid.filter(|uuid| !uuid.is_empty()),
        device,
        binding,
        rotating,
        interrupted,
        problems,
        image_inputs,
        prompted_for: entry.key == Key::None
            && !entry.options.noauto
            && formatted_by(files, entry).is_empty(),
    }
}

/// What lies in the image of a bound volume, and the report that a `bind` leaves which did not come to rebuild it.
fn inputs_of_image(files: &Files, target: &Target) -> Vec<PathBuf> {
    let mut inputs = vec![report::path(files, target)];
    match &target.place.header {
        HeaderPlace::Detached(header) if header.is_file() => inputs.push(header.clone()),
        _ if target.luks2_header().is_none() => inputs.push(envelopes::path(files, &target.name)),
        _ => {}
    }
    inputs
}

/// Whether a `bind` did not come to have the running system open the volume.
fn unfinished(files: &Files, target: &Target, volume: VolumeId) -> Option<String> {
    let left = Report::read(files, target).ok()??;
    let is_left = left.volume == volume && !service::is_enabled(files, &target.name);
    is_left.then(|| {
        format!(
            "nothing opens it: 'latchkey bind {}' does what an earlier one left to do",
            target.device.display()
        )
    })
}

/// Whether only the framework that this system had before takes the volume into the image.
fn left_out(files: &Files, entry: &Entry) -> Option<String> {
    let framework = Framework::of_system(files);
    let is_of_other = framework.other().takes(&entry.options) && !framework.takes(&entry.options);
    (is_of_other && !image_optional::is_needed(files, &entry.name)).then(|| {
        format!(
            "it is in no new image: this system's initramfs goes by '{}' in crypttab, not '{}'",
            framework.word(),
            framework.other().word()
        )
    })
}

/// Whether fstab has something on the volume that the boot does not go on without.
fn held_up(files: &Files, name: &str) -> Result<Option<String>, FilesError> {
    let Some(held) = fstab::held_up(files, name)? else {
        return Ok(None);
    };
    let lines = held.lines;
    Ok(Some(match fstab::held_up_by_name(files, name)? {
        Some(_) => format!(
            "the boot needs {lines} before it asks a key server, so it is left to systemd's prompt"
        ),
        None => format!(
            "the boot waits for {lines} in vain: write '_netdev,nofail' among the options in fstab"
        ),
    }))
}

fn problems_of_entry(files: &Files, entry: &Entry) -> Vec<String> {
    let mut problems = Vec::new();
    if let Key::File(path) = &entry.key {
        problems.push(format!("crypttab names the key file '{}'", path.display()));
    }
    for option in entry.options.unsupported() {
        problems.push(format!("latchkey does not honour the option '{option}'"));
    }
    for option in formatted_by(files, entry) {
        problems.push(format!("'{option}' formats it anew whenever it is opened"));
    }
    problems
}

/// The state of a device's binding, and what it is.
fn binding(
    files: &Files,
    entry: &Entry,
    device: &std::path::Path,
    joined: &[ServerId],
    problems: &mut Vec<String>,
) -> (Binding, Option<Target>) {
    // The device as the kernel calls it: links do not tell one volume from another.
    let device = device.canonicalize().unwrap_or_else(|_| device.to_owned());
    match Target::of_entry(files, entry, device) {
        Ok(target) => (binding_of(files, &target, joined, problems), Some(target)),
        Err(error) => {
            problems.push(first_line(&chain(&error)));
            (Binding::Unknown, None)
        }
    }
}

fn binding_of(
    files: &Files,
    target: &Target,
    joined: &[ServerId],
    problems: &mut Vec<String>,
) -> Binding {
    let mut found = match binding::find(files, &target.name, &target.place) {
        Ok(found) => found,
        Err(error) => {
            problems.push(first_line(&chain(&error)));
            return Binding::Unknown;
        }
    };
    if found.len() > 1 {
        problems.push(format!("the header has {} latchkey tokens", found.len()));
    }
    let first = (!found.is_empty()).then(|| found.remove(0).token);
    match first {
        None => match target.envelope_before(files) {
            None => Binding::NotBound,
            Some(before) => {
                problems.push(format!(
                    "it was bound under another name: rename '{}' to '{}'",
                    before.display(),
                    envelopes::path(files, &target.name).display()
                ));
                Binding::Unknown
            }
        },
        Some(Err(error)) => {
            problems.push(error.to_string());
            Binding::Unknown
        }
        Some(Ok(token)) => bound(target, &token, joined, problems),
    }
}

fn bound(
    target: &Target,
    token: &Token,
    joined: &[ServerId],
    problems: &mut Vec<String>,
) -> Binding {
    let servers: Vec<ServerId> = token.envelopes.iter().map(|e| e.server).collect();
    let bound_kind = Kind::of_bound(&token.bound);
    if bound_kind != target.kind {
        problems.push(format!(
            "it is {}, bound was {}",
            target.kind.name(),
            bound_kind.name()
        ));
    }
    if let (Some(slot), Some(header)) = (token.bound.keyslot(), target.place.luks_header()) {
        let keyslots = keyslots::list(header).unwrap_or_default();
        if !keyslots.iter().any(|one| one.slot == slot) {
            problems.push(format!("keyslot {slot} of the binding is gone"));
        }
    }
    if let (Bound::Plain(bound), HeaderPlace::None(options)) = (&token.bound, &target.place.header)
    {
        match Settings::of(options).map(|settings| settings.check(bound)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => problems.push(error.to_string()),
            Err(error) => problems.push(first_line(&error.to_string())),
        }
    }
    if token.uuid != target.uuid {
        problems.push(format!(
            "the token is of the volume with the UUID {}",
            token.uuid
        ));
    }
    for server in joined.iter().filter(|server| !servers.contains(server)) {
        problems.push(format!(
            "not bound to the joined key server {}",
            server.short()
        ));
    }
    if !servers.iter().any(|server| joined.contains(server)) {
        problems.push("this machine has joined none of the key servers it is bound to".to_owned());
    }
    Binding::Bound {
        volume: token.volume,
        keyslot: token.bound.keyslot(),
        servers,
        generations: token.envelopes.iter().map(|e| e.generation).collect(),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn print(volumes: &[Listed], format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if format == Format::Json {
        serde_json::to_writer_pretty(&mut out, volumes)?;
        return writeln!(out);
    }
    for volume in volumes {
        let state = match &volume.binding {
            Binding::Bound { servers, .. } => {
                let servers: Vec<String> = servers.iter().map(ServerId::short).collect();
                let servers = servers.join(", ");
                match volume.opened_in {
                    OpenedIn::Initramfs => format!("bound to {servers}"),
                    OpenedIn::RunningSystem => {
                        format!("bound to {servers}, opened in the running system")
                    }
                }
            }
            Binding::NotBound => "not bound".to_owned(),
            Binding::Unknown => "unknown".to_owned(),
        };
        writeln!(out, "{}\t{}\t{state}", volume.name, volume.source)?;
        if volume.rotating {
            writeln!(
                out,
                "\tits rotation is not finished: 'latchkey rotate' goes on with it"
            )?;
        }
        for problem in &volume.problems {
            writeln!(out, "\t! {problem}")?;
        }
    }
    Ok(())
}
