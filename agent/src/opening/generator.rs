//! `latchkey generate-data`: what the running system's systemd.generator(7) of latchkey runs. It leaves to systemd what
//! `latchkey@.service` would open too late.
//!
//! That unit begins when the system is initialised. Where fstab(5) has something on the volume that must be there before, the
//! two would wait for each other; systemd ends such a circle by dropping a unit of its choice, local-fs.target for one. So our
//! unit is masked as long as fstab says so, and systemd's own unit prompts for the volume, as it did before it was bound.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::fstab;
use crate::commands::target::read_crypttab;
use crate::failure::{chain, printable};
use crate::files::{Files, FilesError};
use crate::unit_name;
use crate::volume::opened_in::OpenedIn;

/// A volume could not be left to systemd.
#[derive(Debug, thiserror::Error)]
pub enum GeneratorError {
    /// crypttab.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A unit could not be masked.
    #[error("failed to make '{path}'")]
    Mask {
        /// Which link.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Masks our units of such volumes in `folder`, the generator's second argument: it comes before what is enabled.
///
/// # Errors
/// Every variant of [`GeneratorError`].
pub fn run(files: &Files, folder: &Path) -> Result<(), GeneratorError> {
    let entries = read_crypttab(files)?;
    let in_running_system = |entry: &&crate::volume::crypttab::Entry| {
        OpenedIn::of(entry, files.root()) == OpenedIn::RunningSystem
    };
    for entry in entries.iter().filter(in_running_system) {
        let why = match fstab::held_up_by_name(files, &entry.name) {
            Ok(None) => continue,
            Ok(Some(held)) => format!("the boot needs {} early", held.lines),
            // In doubt it is as before the volume was bound.
            Err(error) => chain(&error),
        };
        let mask = folder.join(unit_name::ours(&entry.name));
        let masked = fs::create_dir_all(folder).and_then(|()| match symlink("/dev/null", &mask) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            masked => masked,
        });
        masked.map_err(|source| GeneratorError::Mask {
            path: mask.display().to_string(),
            source,
        })?;
        log::warn!(
            "'{}' is left to systemd: {}",
            printable(&entry.name),
            printable(&why)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(fstab: &str) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        let crypttab = "my-data UUID=a none luks,_netdev,nofail\nroot UUID=b none luks\n";
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(files.crypttab(), crypttab).unwrap();
        fs::write(files.path("/etc/fstab"), fstab).unwrap();
        let folder = root.path().join("generated/early");
        run(&files, &folder).unwrap();
        run(&files, &folder).unwrap();
        let links = fs::read_dir(&folder).into_iter().flatten().flatten();
        let links = links.map(|link| {
            assert_eq!(fs::read_link(link.path()).unwrap(), Path::new("/dev/null"));
            link.file_name().into_string().unwrap()
        });
        links.collect()
    }

    #[test]
    fn what_the_boot_needs_early_is_left_to_systemd() {
        let line = |options: &str| format!("/dev/mapper/my-data /srv ext4 {options} 0 2\n");
        let ours = r"latchkey@my\x2ddata.service";
        assert_eq!(masked(""), [""; 0]);
        assert_eq!(masked(&line("_netdev,nofail")), [""; 0]);
        for late in [
            "noauto",
            "nofail",
            "_netdev",
            "defaults,x-systemd.automount",
        ] {
            assert_eq!(masked(&line(late)), [""; 0], "{late}");
        }
        for early in [
            &line("defaults"),
            "/dev/mapper/my-data /var ext4 _netdev,nofail 0 2\n",
            "/dev/mapper/my-data none swap sw,nofail 0 0\n",
        ] {
            assert_eq!(masked(early), [ours], "{early}");
        }
        assert_eq!(masked("/dev/mapper/root / ext4 defaults 0 1\n"), [""; 0]);
        let too_long = "#\n".repeat(200_000);
        assert_eq!(masked(&too_long), [ours], "nobody can tell");
    }
}
