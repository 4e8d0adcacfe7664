//! Puts a bootable disk together in a plain file: an MBR with GRUB, an ext4 `/boot`, and a second partition, mostly a LUKS2
//! volume, whose data are encrypted here. No loop device, no device-mapper.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha512};

use crate::layout::{self, Layout};
use crate::lvm::{self, Volume};
use crate::tool::{self, ToolError};
use crate::xts::{self, KEY, SECTOR};

/// Goes into the key of cached disks; raise it with whatever changes what [`make`] writes.
pub const FORMAT: &str = "1: GRUB, 256 MiB /boot, 16 MiB header, 1280 MiB root";

const MIB: u64 = 1 << 20;
/// Where the first partition starts; the boot loader's core image must end before it.
pub(crate) const BOOT_START: u64 = MIB;
pub(crate) const BOOT_SIZE: u64 = 256 * MIB;
pub(crate) const LUKS_START: u64 = BOOT_START + BOOT_SIZE;
/// cryptsetup's default: two metadata areas and the keyslots.
pub(crate) const LUKS_HEADER: u64 = 16 * MIB;
const ROOT_SIZE: u64 = 1280 * MIB;
/// Enough for all the memory of a machine that is hibernated.
const SWAP_SIZE: u64 = 512 * MIB;

/// The logical volumes of [`Layout::Lvm`].
const VOLUMES: [Volume; 2] = [
    Volume {
        name: layout::ROOT,
        size: ROOT_SIZE,
    },
    Volume {
        name: layout::SWAP,
        size: SWAP_SIZE,
    },
];

/// What goes onto the disk.
pub struct Parts<'a> {
    /// The root file system as a folder; its `boot` becomes the first partition.
    pub tree: &'a Path,
    /// What the second partition holds.
    pub layout: Layout,
    /// UUID of the `/boot` file system.
    pub boot_uuid: &'a str,
    /// UUID in the LUKS2 header.
    pub luks_uuid: &'a str,
    /// UUID of the root file system.
    pub root_uuid: &'a str,
    /// The passphrase of keyslot 0, or of plain dm-crypt.
    pub passphrase: &'a str,
}

/// A disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A program of the host failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file could not be read or written.
    #[error("failed to use '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// GRUB grew.
    #[error("the boot loader's core image does not fit before the first partition: {size} bytes")]
    CoreTooLarge {
        /// Bytes of the core image.
        size: usize,
    },
}

/// Writes the disk to `target`; `scratch` holds intermediate images. The `boot` folder of the tree is moved away.
///
/// # Errors
/// `Tool` when mke2fs or cryptsetup fails, `File` for the host's files.
pub fn make(parts: &Parts, scratch: &Path, target: &Path) -> Result<(), DiskError> {
    let boot_tree = scratch.join("boot");
    fs::rename(parts.tree.join("boot"), &boot_tree).map_err(at(&boot_tree))?;
    fs::create_dir(parts.tree.join("boot")).map_err(at(parts.tree))?;

    let boot = scratch.join("boot.ext4");
    let root = scratch.join("root.ext4");
    file_system(&boot_tree, &boot, parts.boot_uuid, BOOT_SIZE)?;
    file_system(parts.tree, &root, parts.root_uuid, ROOT_SIZE)?;

    let mut disk = File::create(target).map_err(at(target))?;
    disk.set_len(LUKS_START + LUKS_HEADER + volume_size(parts.layout))
        .map_err(at(target))?;
    boot_loader(&boot_tree.join("grub"), parts.layout, &disk, target)?;
    copy(&boot, &mut disk, BOOT_START, |_, _| ()).map_err(at(target))?;

    match parts.layout {
        Layout::Clear => copy(&root, &mut disk, LUKS_START, |_, _| ()).map_err(at(target)),
        Layout::Plain => {
            let xts = xts::Twofish256::new(&Sha512::digest(parts.passphrase).into());
            copy(&root, &mut disk, LUKS_START, |sector, data| {
                xts.encrypt(sector, data);
            })
            .map_err(at(target))
        }
        Layout::Root => luks(parts, &[(&root, 0)], scratch, &mut disk, target),
        Layout::Lvm => {
            let head = scratch.join("head.lvm");
            fs::write(&head, lvm::head(layout::GROUP, &VOLUMES)).map_err(at(&head))?;
            let swap = swap(scratch)?;
            let starts = lvm::starts(&VOLUMES);
            let images: [(&Path, u64); 3] = [(&head, 0), (&root, starts[0]), (&swap, starts[1])];
            luks(parts, &images, scratch, &mut disk, target)
        }
    }
}

/// Makes a LUKS2 volume of the second partition; each of `images` goes to a byte of its data.
fn luks(
    parts: &Parts,
    images: &[(&Path, u64)],
    scratch: &Path,
    disk: &mut File,
    target: &Path,
) -> Result<(), DiskError> {
    let mut key = [0_u8; KEY];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut key))
        .map_err(at(target))?;
    let header = luks_header(parts, &key, scratch)?;
    copy(&header, disk, LUKS_START, |_, _| ()).map_err(at(target))?;
    let xts = xts::Aes::new(&key);
    for (image, start) in images {
        copy(
            image,
            disk,
            LUKS_START + LUKS_HEADER + start,
            |sector, data| xts.encrypt(start / SECTOR as u64 + sector, data),
        )
        .map_err(at(target))?;
    }
    Ok(())
}

/// Bytes of what is encrypted; of what would be.
fn volume_size(layout: Layout) -> u64 {
    match layout {
        Layout::Root | Layout::Plain | Layout::Clear => ROOT_SIZE,
        Layout::Lvm => lvm::size(&VOLUMES),
    }
}

/// The first mebibyte of a swap area: mkswap(8) writes no more than a page.
fn swap(scratch: &Path) -> Result<PathBuf, DiskError> {
    let swap = scratch.join("swap");
    let set_size = |size| {
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&swap);
        file.and_then(|file| file.set_len(size)).map_err(at(&swap))
    };
    set_size(SWAP_SIZE)?;
    tool::run(
        Command::new("mkswap")
            .args(["--quiet", "--uuid", SWAP_UUID])
            .arg(&swap),
    )?;
    set_size(MIB)?;
    Ok(swap)
}

const SWAP_UUID: &str = "5f0c6c1e-9a51-4f67-9c0b-1a7c8e000004";

fn file_system(tree: &Path, image: &Path, uuid: &str, size: u64) -> Result<(), DiskError> {
    // The two features are newer than what every GRUB and e2fsck of the guest understands.
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^orphan_file,^metadata_csum_seed",
        "-U",
        uuid,
        "-d",
    ]);
    mke2fs.arg(tree).arg(image).arg(format!("{}M", size / MIB));
    tool::run(&mut mke2fs)?;
    Ok(())
}

/// boot.img loads the sector after itself, where diskboot.img finds the rest of core.img right behind: GRUB's
/// default block list, so nothing has to be patched in but the partition table.
fn boot_loader(grub: &Path, layout: Layout, disk: &File, target: &Path) -> Result<(), DiskError> {
    let boot = grub.join("boot.img");
    let mut first = fs::read(&boot).map_err(at(&boot))?;
    first.resize(SECTOR, 0);
    partition_table(&mut first, LUKS_HEADER + volume_size(layout));
    let core = grub.join("core.img");
    let core = fs::read(&core).map_err(at(&core))?;
    if (SECTOR + core.len()) as u64 > BOOT_START {
        return Err(DiskError::CoreTooLarge { size: core.len() });
    }
    disk.write_all_at(&first, 0).map_err(at(target))?;
    disk.write_all_at(&core, SECTOR as u64).map_err(at(target))
}

/// The MBR's four entries of 16 bytes at 446 (UEFI specification, 5.2.1); cylinders and heads are not filled in.
fn partition_table(sector: &mut [u8], luks_size: u64) {
    const TABLE: usize = 446;
    const LINUX: u8 = 0x83;
    const ACTIVE: u8 = 0x80;
    sector[440..444].copy_from_slice(b"LKEY");
    sector[TABLE..510].fill(0);
    let entries = [(ACTIVE, BOOT_START, BOOT_SIZE), (0, LUKS_START, luks_size)];
    for (number, (status, start, size)) in entries.into_iter().enumerate() {
        let entry = &mut sector[TABLE + 16 * number..][..16];
        entry[0] = status;
        entry[4] = LINUX;
        entry[8..12].copy_from_slice(&sectors(start).to_le_bytes());
        entry[12..16].copy_from_slice(&sectors(size).to_le_bytes());
    }
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
}

fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR as u64).expect("the disk is smaller than 2 TiB")
}

/// A LUKS2 header for the given volume key, made by cryptsetup on a plain file. The keyslot is cheap enough for an
/// emulated processor and still Argon2id.
fn luks_header(parts: &Parts, key: &[u8; KEY], scratch: &Path) -> Result<PathBuf, DiskError> {
    let header = scratch.join("header.luks");
    let key_file = scratch.join("volume.key");
    fs::write(&key_file, key).map_err(at(&key_file))?;
    File::create(&header)
        .and_then(|file| file.set_len(LUKS_HEADER + volume_size(parts.layout)))
        .map_err(at(&header))?;
    let mut format = Command::new("cryptsetup");
    format.args([
        "luksFormat",
        "--batch-mode",
        "--type",
        "luks2",
        "--cipher",
        "aes-xts-plain64",
    ]);
    format.args([
        "--key-size",
        "512",
        "--sector-size",
        "512",
        "--hash",
        "sha256",
    ]);
    format.args([
        "--pbkdf",
        "argon2id",
        "--pbkdf-memory",
        "32768",
        "--pbkdf-force-iterations",
        "4",
    ]);
    format.args([
        "--pbkdf-parallel",
        "1",
        "--uuid",
        parts.luks_uuid,
        "--key-file",
        "-",
        "--volume-key-file",
    ]);
    format.arg(&key_file).arg(&header);
    tool::run_with_input(&mut format, parts.passphrase.as_bytes())?;
    File::options()
        .write(true)
        .open(&header)
        .and_then(|file| file.set_len(LUKS_HEADER))
        .map_err(at(&header))?;
    Ok(header)
}

/// Copies a file to `offset` of the disk; `change` sees each piece with the number of its first sector.
fn copy(
    from: &Path,
    disk: &mut File,
    offset: u64,
    change: impl Fn(u64, &mut [u8]),
) -> io::Result<()> {
    let mut from = File::open(from)?;
    disk.seek(SeekFrom::Start(offset))?;
    let mut piece = vec![0_u8; MIB as usize];
    let mut done = 0;
    while done < from.metadata()?.len() {
        from.read_exact(&mut piece)?;
        change(done / SECTOR as u64, &mut piece);
        disk.write_all(&piece)?;
        done += MIB;
    }
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    |source| DiskError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_table_names_both_partitions() {
        let mut sector = vec![0xee; SECTOR];
        partition_table(&mut sector, LUKS_HEADER + ROOT_SIZE);
        assert_eq!(sector[446], 0x80, "the first partition is active");
        assert_eq!(
            sector[454..462],
            [0x00, 0x08, 0, 0, 0x00, 0x00, 0x08, 0],
            "256 MiB from sector 2048"
        );
        assert_eq!(sector[462], 0);
        assert_eq!(sector[478..510], [0; 32], "the other entries are empty");
        assert_eq!(sector[510..], [0x55, 0xaa]);
    }
}
