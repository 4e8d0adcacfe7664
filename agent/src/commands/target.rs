//! The volume that a command is about: a device and its line in crypttab, which together say of which kind it is.

mod error;
mod new_line;

use std::path::{Path, PathBuf};

use latchkey_protocol::encoding::hex;
use sha2::{Digest, Sha256};

pub use error::TargetError;
pub use new_line::{NewLine, OpenedWith, known_of_root};

use super::initramfs;
use crate::files::{self, Files, FilesError};
use crate::volume::crypttab::{self, Entry, Format, Key, LineError, Options};
use crate::volume::device::{self, DeviceError, Probe};
use crate::volume::envelopes;
use crate::volume::gate::Position;
use crate::volume::header::HeaderError;
use crate::volume::mapping;
use crate::volume::opened_in::OpenedIn;
use crate::volume::place::{HeaderPlace, Kind, Place};
use crate::volume::source::{Source, SourceError};
use crate::volume::stack;

/// What stands for the UUID of a header that is not made yet.
const UUID_TO_BE: &str = "00000000-0000-0000-0000-000000000000";

/// A volume that a command is about.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it lies.
    pub place: Place,
    /// The device with its data.
    pub device: PathBuf,
    /// Its kind.
    pub kind: Kind,
    /// The UUID in its header; of a plain volume that of its binding, empty before it is bound.
    pub uuid: String,
    /// The mapping's name in crypttab.
    pub name: String,
    /// The lines of crypttab for it.
    pub entries: Vec<Entry>,
}

impl Target {
    /// The volume that `argument` means: a device, an image file, a mapping or a mount point. Which kind it is, its
    /// line in crypttab says (`name` chooses among several), else the device itself.
    ///
    /// # Errors
    /// `Device`, `NoLine`, `DetachedLuks1`, `NotPlain`, `NoHeader`, `Header`, `Files`.
    pub fn find(files: &Files, argument: &Path, name: Option<&str>) -> Result<Self, TargetError> {
        let (device, entries) = Self::entries(files, argument).map_err(without_line)?;
        let chosen = entries
            .iter()
            .find(|entry| name.is_none_or(|name| entry.name == name))
            .or(entries.first())
            .cloned();
        let options = chosen.as_ref().map(|entry| &entry.options);
        let place = match options {
            Some(options) => Place::of(options, device, files.root()),
            None => Place::attached(device),
        };
        let name = chosen.map(|entry| entry.name);
        let mut target =
            Self::of_place(place, name.clone()).map_err(|error| match (error, name) {
                (TargetError::Device(DeviceError::NotLuks(device)), Some(name)) => {
                    TargetError::NotPlain { device, name }
                }
                (error, _) => without_line(error),
            })?;
        target.entries = entries;
        target.take_uuid_of_binding(files)?;
        Ok(target)
    }

    /// As [`Target::find`], where crypttab may lack the line: then `new` says what it is to be.
    ///
    /// # Errors
    /// As [`Target::find`]; `Present`, `NoName`, `OpenAs`, `NameTaken`, `Line`, `NewName`, `NewOptions`.
    pub fn find_or_new(
        files: &Files,
        argument: &Path,
        new: &NewLine,
    ) -> Result<(Self, Option<String>), TargetError> {
        let (device, entries) = Self::entries(files, argument)?;
        if !entries.is_empty() {
            check_chosen(files, &device, &entries, new)?;
            return Ok((Self::find(files, argument, new.name.as_deref())?, None));
        }
        // Neither says anything of where the volume lies.
        let options = Options::parse(&new.text(None));
        let place = Place::of(&options, device, files.root());
        let (mut target, line) = Self::of_place(place, None)?.with_line(files, new)?;
        target.take_uuid_of_binding(files)?;
        Ok((target, Some(line)))
    }

    /// A volume without a line in crypttab, with the one that `new` says.
    fn with_line(self, files: &Files, new: &NewLine) -> Result<(Self, String), TargetError> {
        let open = mapping::mapping_on(&self.device).map(|mapping| mapping.name);
        let name = self.new_name(new.name.as_deref(), open)?;
        check_name(files, &name)?;
        let source = match self.kind {
            // udev makes no links to what lies in a file.
            _ if self.device.is_file() => Source::Path(self.device.clone()),
            Kind::Luks2 | Kind::Luks1 => Source::Uuid(self.uuid.clone()),
            _ => Source::lasting(&self.device, files.root()),
        };
        let of_root = stack::lies_partly_on(files.root(), Path::new("/"), &name);
        let options = new.text(known_of_root(of_root));
        if options.contains(|c: char| c.is_ascii_whitespace()) {
            return Err(TargetError::NewOptions(options));
        }
        let line = format!(
            "{} {} none {options}",
            crypttab::escape(&name),
            crypttab::escape(&source.to_string()),
        );
        let entry = crypttab::parse(&line).pop();
        let entry = entry
            .and_then(Result::ok)
            .filter(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| TargetError::NewName(name.clone()))?;
        let target = Self {
            name,
            entries: vec![entry],
            ..self
        };
        Ok((target, line))
    }

    /// What a new line calls the mapping: as it is open, else as it is chosen, else after the UUID.
    fn new_name(&self, chosen: Option<&str>, open: Option<String>) -> Result<String, TargetError> {
        match (chosen, open) {
            (Some(chosen), Some(open)) if mapping::mangled(chosen) != open => {
                Err(TargetError::OpenAs {
                    device: self.device.clone(),
                    open,
                    chosen: chosen.to_owned(),
                })
            }
            (Some(chosen), _) => Ok(chosen.to_owned()),
            (None, Some(open)) => Ok(open),
            (None, None) if self.uuid.is_empty() => Err(TargetError::NoName(self.device.clone())),
            (None, None) => Ok(format!("luks-{}", self.uuid)),
        }
    }

    /// The volume of a line of crypttab whose source is `device`.
    ///
    /// # Errors
    /// As [`Target::find`].
    pub fn of_entry(files: &Files, entry: &Entry, device: PathBuf) -> Result<Self, TargetError> {
        let place = Place::of(&entry.options, device, files.root());
        let mut target = Self::of_place(place, Some(entry.name.clone()))?;
        target.entries = vec![entry.clone()];
        target.take_uuid_of_binding(files)?;
        Ok(target)
    }

    /// Refuses a device for a new LUKS2 header, at its beginning, that could not be bound then by its line in crypttab, or by
    /// the one that `new` says; returns that line.
    ///
    /// # Errors
    /// `NoPlaceForHeader`; as [`Target::find_or_new`] and [`Target::entry`].
    pub fn check_new(files: &Files, argument: &Path, new: &NewLine) -> Result<Entry, TargetError> {
        let (device, entries) = Self::entries(files, argument)?;
        let has_line = !entries.is_empty();
        let mut target = Self {
            place: Place::attached(device.clone()),
            device: device.clone(),
            kind: Kind::Luks2,
            uuid: UUID_TO_BE.to_owned(),
            name: String::new(),
            entries,
        };
        if has_line {
            check_chosen(files, &device, &target.entries, new)?;
        } else {
            (target, _) = target.with_line(files, new)?;
        }
        let elsewhere = |entry: &&Entry| {
            let place = Place::of(&entry.options, device.clone(), files.root());
            !matches!(place.header, HeaderPlace::Attached)
        };
        if let Some(entry) = target.entries.iter().find(elsewhere) {
            return Err(TargetError::NoPlaceForHeader(entry.name.clone()));
        }
        target.entry(files, new.name.as_deref())
    }

    fn of_place(place: Place, name: Option<String>) -> Result<Self, TargetError> {
        let (kind, uuid) = place
            .identify()
            .map_err(|error| match (&place.header, error) {
                (HeaderPlace::Attached, HeaderError::NotLuks1(device)) => {
                    DeviceError::NotLuks(device).into()
                }
                (_, HeaderError::NotLuks1(header)) => TargetError::NoHeader(header),
                (_, error) => TargetError::Header(error),
            })?;
        if kind == Kind::DetachedLuks1 {
            return Err(TargetError::DetachedLuks1(place.device));
        }
        let uuid = uuid.unwrap_or_default();
        Ok(Self {
            device: place.device.clone(),
            name: name.unwrap_or_else(|| format!("luks-{uuid}")),
            place,
            kind,
            uuid,
            entries: Vec::new(),
        })
    }

    /// A plain volume has its UUID from its binding; a LUKS1 volume without a line of crypttab its name.
    fn take_uuid_of_binding(&mut self, files: &Files) -> Result<(), FilesError> {
        match self.kind {
            Kind::Plain => {
                if let Some(Ok(token)) = envelopes::read(files, &self.name)? {
                    self.uuid = token.uuid;
                }
            }
            Kind::Luks1 if self.entries.is_empty() => {
                if let Some(name) = envelopes::name_of(files, &self.uuid) {
                    self.name = name;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The envelope file of a LUKS1 volume whose line in crypttab was renamed after it was bound.
    pub fn envelope_before(&self, files: &Files) -> Option<PathBuf> {
        let is_sought = self.kind == Kind::Luks1 && !envelopes::path(files, &self.name).exists();
        let name = envelopes::name_of(files, &self.uuid).filter(|_| is_sought)?;
        Some(envelopes::path(files, &name))
    }

    /// Refuses a volume that is bound under another name.
    ///
    /// # Errors
    /// `Renamed`.
    pub fn check_renamed(&self, files: &Files) -> Result<(), TargetError> {
        match self.envelope_before(files) {
            None => Ok(()),
            Some(from) => Err(TargetError::Renamed {
                device: self.device.clone(),
                to: envelopes::path(files, &self.name),
                from,
            }),
        }
    }

    /// Refuses a LUKS volume that is there twice: a disk and its copy have the same binding, and what the key servers forget of
    /// the one opens the other no more. A line of crypttab that names this device by something else tells them apart.
    ///
    /// # Errors
    /// `Source` if another device has its UUID.
    pub fn check_only(&self, files: &Files) -> Result<(), TargetError> {
        let is_told_apart = |entry: &Entry| !matches!(entry.source, Source::Uuid(_));
        let is_known_by_uuid = matches!(self.kind, Kind::Luks2 | Kind::Luks1);
        if is_known_by_uuid && !self.entries.iter().any(is_told_apart) {
            let wanted = Source::Uuid(self.uuid.clone());
            let link = wanted.resolve_below(files.root())?;
            // udev knows the one, and the other lies in a file.
            if let Some(link) = link.filter(|link| !is_link_to(link, &self.device, files)) {
                return Err(SourceError::Ambiguous {
                    wanted: wanted.to_string(),
                    devices: vec![link, self.device.clone()],
                }
                .into());
            }
        }
        Ok(())
    }

    /// Whether its line in crypttab leaves it to the running system.
    pub fn is_for_running_system(&self, files: &Files) -> bool {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.name == self.name);
        entry.is_some_and(|entry| OpenedIn::of(entry, files.root()) == OpenedIn::RunningSystem)
    }

    /// What the journal of a change of this volume is called.
    pub fn key(&self) -> String {
        match self.kind {
            Kind::Plain => {
                let digest = Sha256::digest(self.name.as_bytes());
                format!("plain-{}", hex(&digest[..16]))
            }
            _ => self.uuid.clone(),
        }
    }

    /// What its LUKS2 header lies on, if it has one.
    pub fn luks2_header(&self) -> Option<&Path> {
        match self.kind {
            Kind::Luks2 | Kind::DetachedLuks2 => self.place.luks_header(),
            Kind::Luks1 | Kind::DetachedLuks1 | Kind::Plain => None,
        }
    }

    /// Whether its header is attached.
    pub fn position(&self) -> Position {
        match self.kind {
            Kind::DetachedLuks2 | Kind::DetachedLuks1 => Position::Detached,
            Kind::Luks2 | Kind::Luks1 | Kind::Plain => Position::Attached,
        }
    }

    /// The crypttab entry by which the boot opens this volume; `name` chooses among several.
    ///
    /// # Errors
    /// As [`Target::line`]; `KeyFile`, `KeyScript`, `Unsupported`, `Formatted`, `Source`; `NoEntry`.
    pub fn entry(&self, files: &Files, name: Option<&str>) -> Result<Entry, TargetError> {
        let entry = self
            .line(files, name)?
            .ok_or_else(|| TargetError::NoEntry {
                device: self.device.clone(),
                crypttab: files.crypttab(),
            })?;
        check_key(&entry)?;
        check_options(files, &entry)?;
        // The boot would not guess which of two devices is meant.
        entry.source.resolve_below(files.root())?;
        Ok(entry)
    }

    /// The line of crypttab for this volume, if there is one, whatever it says; `name` chooses among several.
    ///
    /// # Errors
    /// `OtherName`, `Several`.
    pub fn line(&self, files: &Files, name: Option<&str>) -> Result<Option<Entry>, TargetError> {
        let crypttab = files.crypttab();
        let mut entries = self.entries.clone();
        let names = |entries: &[Entry]| {
            let names: Vec<String> = entries.iter().map(|e| format!("'{}'", e.name)).collect();
            names.join(", ")
        };
        if let Some(name) = name
            && !entries.is_empty()
        {
            let others = names(&entries);
            entries.retain(|entry| entry.name == name);
            if entries.is_empty() {
                return Err(TargetError::OtherName {
                    crypttab,
                    name: name.to_owned(),
                    device: self.device.clone(),
                    others,
                });
            }
        }
        if entries.len() > 1 {
            return Err(TargetError::Several {
                crypttab,
                device: self.device.clone(),
                names: names(&entries),
            });
        }
        Ok(entries.pop())
    }

    /// The device that `argument` means, and the lines of crypttab for it.
    fn entries(files: &Files, argument: &Path) -> Result<(PathBuf, Vec<Entry>), TargetError> {
        let device = device::find(argument)?;
        let probe = device::probe(&device).map_err(|source| TargetError::Read {
            path: device.clone(),
            source,
        })?;
        let uuid = match probe {
            Probe::Luks2 { uuid } | Probe::Luks1 { uuid } => Some(uuid),
            Probe::NotLuks => None,
            Probe::Missing => return Err(DeviceError::Missing(device).into()),
            Probe::NotADevice => return Err(DeviceError::NotADevice(device).into()),
        };
        let mut entries = read_crypttab(files)?;
        entries.retain(|entry| is_meant(entry, &device, uuid.as_deref(), files));
        Ok((device, entries))
    }
}

/// The error of a command that writes no line into crypttab.
fn without_line(error: TargetError) -> TargetError {
    match error {
        TargetError::Device(DeviceError::NotLuks(path)) => TargetError::NoLine(path),
        error => error,
    }
}

/// Whether a crypttab entry means the device with this UUID in its header.
fn is_meant(entry: &Entry, device: &Path, luks_uuid: Option<&str>, files: &Files) -> bool {
    if let (Source::Uuid(wanted), Some(uuid)) = (&entry.source, luks_uuid) {
        return wanted.eq_ignore_ascii_case(uuid);
    }
    if entry.source == Source::Path(device.to_owned()) {
        return true;
    }
    let Ok(Some(link)) = entry.source.resolve_below(files.root()) else {
        return false;
    };
    is_link_to(&link, device, files)
}

fn is_link_to(link: &Path, device: &Path, files: &Files) -> bool {
    let same = |path: &Path| path.canonicalize().is_ok_and(|path| path == device);
    same(link) || same(&files.root().join(link.strip_prefix("/").unwrap_or(link)))
}

/// Refuses options for a new line where the device has `entries`, unless they are those of one.
fn check_chosen(
    files: &Files,
    device: &Path,
    entries: &[Entry],
    new: &NewLine,
) -> Result<(), TargetError> {
    if entries.iter().any(|e| new.is_chosen(&e.options.text)) {
        return Ok(());
    }
    Err(TargetError::Present {
        device: device.to_owned(),
        name: entries[0].name.clone(),
        crypttab: files.crypttab(),
    })
}

/// Refuses a second line of one name: both frameworks would take the first.
fn check_name(files: &Files, name: &str) -> Result<(), TargetError> {
    for line in lines_of_crypttab(files)? {
        match line {
            Ok(entry) if entry.name == name => {
                return Err(TargetError::NameTaken {
                    name: name.to_owned(),
                    crypttab: files.crypttab(),
                });
            }
            Err(error) if error.name() == name => return Err(TargetError::Line(error)),
            _ => {}
        }
    }
    Ok(())
}

fn lines_of_crypttab(files: &Files) -> Result<Vec<Result<Entry, LineError>>, FilesError> {
    let text = files::if_any(files::read_lossy(&files.crypttab()))?;
    Ok(crypttab::parse(&text.unwrap_or_default()))
}

/// The entries of crypttab; lines that are none are warned of. Empty if there is no such file.
///
/// # Errors
/// `Read`.
pub fn read_crypttab(files: &Files) -> Result<Vec<Entry>, FilesError> {
    let mut entries = Vec::new();
    for line in lines_of_crypttab(files)? {
        match line {
            Ok(entry) => entries.push(entry),
            Err(error) => log::warn!("{error}; the line is passed over"),
        }
    }
    Ok(entries)
}

/// The options by which the volume is formatted whenever it is opened. initramfs-tools passes over `swap` for LUKS, as Debian's
/// installer expects of the swap area that it makes in one (`luks,swap`).
pub fn formatted_by<'a>(files: &Files, entry: &'a Entry) -> &'a [String] {
    let options = &entry.options;
    let is_of_installer = options.format == Format::Luks
        && options.formatted_by == ["swap"]
        && initramfs::has_initramfs_tools(files)
        && OpenedIn::of(entry, files.root()) == OpenedIn::Initramfs;
    if is_of_installer {
        &[]
    } else {
        &options.formatted_by
    }
}

fn check_options(files: &Files, entry: &Entry) -> Result<(), TargetError> {
    let name = || entry.name.clone();
    if let Some(option) = formatted_by(files, entry).first() {
        return Err(TargetError::Formatted {
            name: name(),
            option: option.clone(),
        });
    }
    let unsupported = entry.options.unsupported();
    if unsupported.is_empty() {
        Ok(())
    } else {
        Err(TargetError::Unsupported {
            name: name(),
            options: unsupported.join("', '"),
        })
    }
}

fn check_key(entry: &Entry) -> Result<(), TargetError> {
    let keyscript = |option: &String| option.starts_with("keyscript=");
    if entry.options.other.iter().any(keyscript) {
        return Err(TargetError::KeyScript(entry.name.clone()));
    }
    match &entry.key {
        Key::None => Ok(()),
        Key::File(key) => Err(TargetError::KeyFile {
            name: entry.name.clone(),
            key: key.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_line_calls_an_open_mapping_as_it_is_called() {
        let target = |uuid: &str| Target {
            place: Place::attached("/dev/vda3"),
            device: "/dev/vda3".into(),
            kind: Kind::Luks2,
            uuid: uuid.to_owned(),
            name: String::new(),
            entries: Vec::new(),
        };
        let name = |uuid, chosen, open: Option<&str>| {
            target(uuid).new_name(chosen, open.map(str::to_owned)).ok()
        };
        for (chosen, open, expected) in [
            (None, None, "luks-abc"),
            (None, Some("luks-x"), "luks-x"),
            (Some("root"), None, "root"),
            (Some("root"), Some("root"), "root"),
            (Some("my data"), Some("my\\x20data"), "my data"),
        ] {
            let told = format!("{chosen:?}, {open:?}");
            assert_eq!(
                name("abc", chosen, open).as_deref(),
                Some(expected),
                "{told}"
            );
        }
        let refused = |uuid: &str, chosen, open: Option<&str>| {
            let error = target(uuid).new_name(chosen, open.map(str::to_owned));
            error.unwrap_err().to_string()
        };
        let error = refused("abc", Some("root"), Some("luks-x"));
        assert!(error.contains("is open as 'luks-x'"), "{error}");
        assert!(refused("", None, None).contains("--name"));
    }
}
