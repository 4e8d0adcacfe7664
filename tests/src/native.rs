//! The guest as it is, with an initramfs that was built in it as those of the others were: in a chroot, Debian leaves
//! out what only a running machine shows to be needed, such as fsck, and dracut all that is of one machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::{self, CacheError, Key};
use crate::guest::{Guest, PASSPHRASE};
use crate::machine::{BootFiles, Disk, Machine, MachineError, Spec};

/// The initramfs could not be built.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The cache folder cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The machine that builds it.
    #[error("failed to build an initramfs in the guest")]
    Machine(#[from] MachineError),
    /// A file of the result.
    #[error("failed to use '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The kernel and the initramfs from the cache; made first if they are not there.
///
/// # Errors
/// Whatever step failed.
pub fn boot_files(guest: &Guest) -> Result<BootFiles, NativeError> {
    let key = Key::default()
        .with("guest", &guest.key)
        .with("settle", guest.flavour.settle())
        .with("recipe", include_str!("native.rs"));
    let kind = format!("native-{}", guest.name());
    let folder = cache::folder_for(&kind, key, |folder| build(guest, folder))?;
    Ok(BootFiles::in_folder(&folder))
}

fn build(guest: &Guest, folder: &Path) -> Result<(), NativeError> {
    let flavour = guest.flavour;
    eprintln!("building the initramfs of the guest {flavour} with nothing added (once)");
    let path = folder.join("disk.qcow2");
    let disk = Disk::over(&guest.disk, &path)?;
    let mut machine = Machine::start(&Spec::new(&disk, &folder.join("console.log")).systemd())?;
    machine.answer(guest.first_prompt(), PASSPHRASE)?;
    machine.up()?;
    machine.check(&format!(
        "set -e\n{}\n{}\nsync",
        flavour.settle(),
        flavour.rebuild()
    ))?;
    machine.power_off()?;
    disk.boot_files(folder)?;
    fs::remove_file(&path).map_err(|source| NativeError::File { path, source })
}
