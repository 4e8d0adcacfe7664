//! A machine's disk as a file over an image that stays as it is, and what can be taken out of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::disk;
use crate::machine::MachineError;
use crate::tool;

/// A writable disk over an image that stays as it is.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// A new disk `path` whose content is that of `base`, a raw or qcow2 image.
    ///
    /// # Errors
    /// `Tool` if qemu-img fails.
    pub fn over(base: &Path, path: &Path) -> Result<Self, MachineError> {
        let format = if base.extension().is_some_and(|extension| extension == "raw") {
            "raw"
        } else {
            "qcow2"
        };
        let mut create = Command::new("qemu-img");
        create
            .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
            .arg(base)
            .arg(path);
        tool::run(&mut create)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// A disk that an earlier machine left.
    pub fn existing(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The qcow2 file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies kernel and initramfs out of the `/boot` of a disk that no machine uses.
    ///
    /// # Errors
    /// `Tool` if qemu-img or debugfs fails.
    pub fn boot_files(&self, folder: &Path) -> Result<BootFiles, MachineError> {
        let partition = folder.join("boot.ext4");
        self.extract(disk::BOOT_START, disk::BOOT_SIZE, &partition)?;
        let debugfs = |request: &str| {
            tool::run(
                Command::new("debugfs")
                    .args(["-R", request])
                    .arg(&partition),
            )
        };
        let listing = String::from_utf8_lossy(&debugfs("ls -p /")?).into_owned();
        let names = || listing.lines().filter_map(|line| line.split('/').nth(5));
        let files = BootFiles::in_folder(folder);
        for (prefix, target) in [
            ("vmlinuz-", &files.kernel),
            ("initrd.img-", &files.initramfs),
        ] {
            let found = names()
                .find(|name| name.starts_with(prefix))
                .unwrap_or(prefix);
            debugfs(&format!("dump /{found} {}", target.display()))?;
            if std::fs::metadata(target)?.len() == 0 {
                return Err(MachineError::NoBootFile {
                    name: found.to_owned(),
                });
            }
        }
        std::fs::remove_file(&partition)?;
        Ok(files)
    }

    /// Copies the LUKS2 header of the encrypted root, keyslots included, out of a disk that no machine uses.
    ///
    /// # Errors
    /// `Tool` if qemu-img fails.
    pub fn luks_header(&self, target: &Path) -> Result<(), MachineError> {
        self.extract(disk::LUKS_START, disk::LUKS_HEADER, target)
    }

    /// The `size` bytes from byte `start` on of a disk that no machine uses; both are counted in whole sectors.
    ///
    /// # Errors
    /// `Tool` if qemu-img fails.
    pub fn read_at(&self, start: u64, size: u64) -> Result<Vec<u8>, MachineError> {
        let part = self.path.with_extension("part");
        self.extract(start, size, &part)?;
        let content = std::fs::read(&part)?;
        std::fs::remove_file(&part)?;
        Ok(content)
    }

    /// Writes `content`, which is whole sectors, at byte `start` of a disk that no machine uses.
    ///
    /// # Errors
    /// `Tool` if qemu-img fails.
    pub fn write_at(&self, start: u64, content: &[u8]) -> Result<(), MachineError> {
        let part = self.path.with_extension("part");
        std::fs::write(&part, content)?;
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-n", "-f", "raw", "--target-image-opts"]);
        tool::run(
            convert
                .arg(&part)
                .arg(self.area(start, content.len() as u64)),
        )?;
        std::fs::remove_file(&part)?;
        Ok(())
    }

    /// Copies `size` bytes from byte `start` on to a raw file.
    fn extract(&self, start: u64, size: u64, target: &Path) -> Result<(), MachineError> {
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-O", "raw", "--image-opts"]);
        tool::run(convert.arg(self.area(start, size)).arg(target))?;
        Ok(())
    }

    /// `size` bytes from byte `start` on, as qemu-img takes a part of an image.
    fn area(&self, start: u64, size: u64) -> String {
        format!(
            "driver=raw,offset={start},size={size},file.driver=qcow2,file.file.driver=file,file.file.filename={}",
            self.path.display()
        )
    }
}

/// Kernel and initramfs, outside of the machine's disk.
#[derive(Debug, Clone)]
pub struct BootFiles {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl BootFiles {
    /// Those that [`Disk::boot_files`] left in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            kernel: folder.join("vmlinuz"),
            initramfs: folder.join("initrd.img"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_the_image_below_stays() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base.raw");
        std::fs::write(&base, vec![7; 1 << 20]).unwrap();
        let disk = Disk::over(&base, &folder.path().join("over.qcow2")).unwrap();
        let mut content = vec![9; 4096];
        content[512..1024].fill(0);
        disk.write_at(65536 - 512, &content).unwrap();
        let mut expected = vec![7; 512];
        expected.extend(&content);
        expected.extend([7; 512]);
        assert_eq!(disk.read_at(65536 - 1024, 5120).unwrap(), expected);
        assert_eq!(std::fs::read(&base).unwrap(), vec![7; 1 << 20]);
    }
}
