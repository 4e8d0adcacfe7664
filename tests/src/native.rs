//! The guest as it is, with an initramfs that was built in it as those of the others were: in a chroot, Debian leaves
//! out what only a running machine shows to be needed, such as fsck.

use std::fs;
use std::path::Path;

use latchkey_tests::cache::{self, Key};
use latchkey_tests::guest::{Guest, PASSPHRASE, PROMPT};
use latchkey_tests::machine::{BootFiles, Disk, Machine, Spec};

use crate::Failure;

/// The initramfs from the cache; made first if it is not there.
pub fn boot_files(guest: &Guest) -> Result<BootFiles, Failure> {
    let key = Key::default()
        .with("guest", &guest.key)
        .with("recipe", include_str!("native.rs"));
    let folder = cache::folder_for("native", key, |folder| build(&guest.disk, folder))?;
    Ok(BootFiles::in_folder(&folder))
}

fn build(plain: &Path, folder: &Path) -> Result<(), Failure> {
    eprintln!("building the initramfs of a guest with nothing added (once)");
    let path = folder.join("disk.qcow2");
    let disk = Disk::over(plain, &path)?;
    let mut machine = Machine::start(&Spec::new(&disk, &folder.join("console.log")).systemd())?;
    machine.answer(PROMPT, PASSPHRASE)?;
    machine.up()?;
    machine.check(
        "echo COMPRESSLEVEL=1 > /etc/initramfs-tools/conf.d/rig && update-initramfs -u && sync",
    )?;
    machine.power_off()?;
    disk.boot_files(folder)?;
    Ok(fs::remove_file(path)?)
}
