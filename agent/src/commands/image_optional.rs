//! `latchkey image-optional`: which bound volumes the boot goes on without.
//!
//! `nofail` alone does not say it: whatever crypttab has, no boot goes on without root, or `/usr`, or the space that a
//! hibernated system comes back from. A boot that passed that by would use file systems that the hibernated system has mounted.

use std::fs;
use std::path::{Path, PathBuf};

use super::image_list::{self, ImageListError};
use super::target::read_crypttab;
use crate::files::{self, Files, FilesError};
use crate::unlock::kernel_command_line::KernelCommandLine;
use crate::volume::binding;
use crate::volume::crypttab::{Entry, Key};
use crate::volume::place::Place;
use crate::volume::source::Source;
use crate::volume::stack;

/// Prints their names, one for each line.
///
/// # Errors
/// A variant of [`ImageListError`].
pub fn run(files: &Files) -> Result<(), ImageListError> {
    let mut entries = read_crypttab(files)?;
    entries.retain(|entry| {
        let fits = entry.key == Key::None && entry.options.nofail && !entry.name.contains('\n');
        fits && is_bound(files, entry) && !is_needed(files, &entry.name)
    });
    image_list::print(entries.iter().map(|entry| &entry.name))
}

/// What is not bound is none of our business, and what cannot be read now may not be.
fn is_bound(files: &Files, entry: &Entry) -> bool {
    let Ok(Some(place)) = Place::of_entry(entry, files) else {
        return false;
    };
    binding::find(files, &entry.name, &place).is_ok_and(|found| !found.is_empty())
}

/// Whether root, `/usr` or a space to resume from lies on it; in doubt root does.
pub(super) fn is_needed(files: &Files, name: &str) -> bool {
    let lies_on = |mount_point| stack::lies_partly_on(files.root(), Path::new(mount_point), name);
    let resumes_from = |devices: Vec<PathBuf>| {
        let mut devices = devices.iter();
        devices.any(|device| stack::device_lies_on(files.root(), device, &[name]))
    };
    lies_on("/").unwrap_or(true)
        || lies_on("/usr").unwrap_or(false)
        || resume_devices(files).map_or(true, resumes_from)
}

/// Where a hibernated system would be: what the kernel command line or initramfs-tools names (initramfs.conf(5)), else every
/// swap area in use, as initramfs-tools and dracut choose among those.
///
/// # Errors
/// `Read`.
fn resume_devices(files: &Files) -> Result<Vec<PathBuf>, FilesError> {
    let read = |path: &Path| {
        let text = files::if_any(files::read_lossy(path))?;
        Ok::<_, FilesError>(text.unwrap_or_default())
    };
    let line = KernelCommandLine::parse(&read(&files.path("/proc/cmdline"))?);
    if line.values("noresume").next().is_some() {
        return Ok(Vec::new());
    }
    let mut named: Vec<String> = line.values("resume").flatten().map(str::to_owned).collect();
    let more = fs::read_dir(files.path("/etc/initramfs-tools/conf.d"));
    let more = more.into_iter().flatten().flatten().map(|file| file.path());
    let more = more.filter(|path| path.is_file());
    let settings = [files.path("/etc/initramfs-tools/initramfs.conf")];
    for file in settings.into_iter().chain(more) {
        let text = read(&file)?;
        let values = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("RESUME="));
        named.extend(values.map(|value| value.trim_matches(['"', '\'']).to_owned()));
    }
    if named.iter().any(|value| value == "none") {
        return Ok(Vec::new());
    }
    named.retain(|value| !matches!(value.as_str(), "" | "auto"));
    if named.is_empty() {
        let areas = read(&files.path("/proc/swaps"))?;
        let devices = areas
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        named.extend(
            devices
                .filter(|path| path.starts_with("/dev/"))
                .map(str::to_owned),
        );
    }
    let resolve = |value: &String| Source::parse(value).resolve_below(files.root()).ok()?;
    Ok(named.iter().filter_map(resolve).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_to_resume_from_is_the_named_one_or_any_that_is_in_use() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        for (path, content) in [
            ("/dev/dm-1", ""),
            ("/dev/dm-2", ""),
            (
                "/proc/swaps",
                "Filename Type Size\n/dev/dm-1 partition 1\n/swapfile file 1\n",
            ),
            (
                "/etc/initramfs-tools/initramfs.conf",
                "# RESUME=/dev/x\nMODULES=most\n",
            ),
            ("/etc/initramfs-tools/conf.d/resume", "RESUME=auto\n"),
        ] {
            let path = files.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let devices = || resume_devices(&files).unwrap();
        assert_eq!(devices(), [Path::new("/dev/dm-1")]);
        let resume = files.path("/etc/initramfs-tools/conf.d/resume");
        fs::write(&resume, b"# f\xfcr\nRESUME=\"/dev/dm-2\"\n").unwrap();
        assert_eq!(devices(), [Path::new("/dev/dm-2")]);
        fs::write(files.path("/proc/cmdline"), "quiet resume=/dev/dm-1\n").unwrap();
        assert_eq!(devices(), [Path::new("/dev/dm-1"), Path::new("/dev/dm-2")]);
        fs::write(&resume, "RESUME=none\n").unwrap();
        assert!(devices().is_empty());
        fs::remove_file(&resume).unwrap();
        fs::write(files.path("/proc/cmdline"), "quiet noresume\n").unwrap();
        assert!(devices().is_empty());
    }
}
