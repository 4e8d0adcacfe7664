//! What somebody does who can write a machine's disk while it is off: change the LUKS2 header, put another volume
//! in the root's place, make a LUKS1 volume of it.
//!
//! Header format: LUKS2 On-Disk Format Specification 1.1, chapter 2.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::disk::{LUKS_HEADER, LUKS_START};
use crate::guest;
use crate::machine::{Disk, MachineError};
use crate::tool;

/// Byte and length of the fields that we need in the binary header.
const HEADER_SIZE_AT: usize = 8;
const CHECKSUM_AT: usize = 448;
const CHECKSUM_SIZE: usize = 64;
const BINARY_SIZE: usize = 4096;

/// The passphrase of [`StolenDisk::put_own_volume`].
pub const OWN_PASSPHRASE: &str = "the passphrase of a stranger";

/// A copy of a machine's disk, to be tampered with.
#[derive(Debug)]
pub struct StolenDisk {
    disk: Disk,
}

impl StolenDisk {
    /// A copy of `disk`, which no machine uses from now on, in `folder`. It takes the room of what is changed.
    ///
    /// # Errors
    /// `Tool` if qemu-img fails.
    pub fn copy_of(disk: &Disk, folder: &Path) -> Result<Self, MachineError> {
        let disk = Disk::over(disk.path(), &folder.join("stolen.qcow2"))?;
        Ok(Self { disk })
    }

    /// The disk, put back into a machine.
    pub fn put_back(self) -> Disk {
        self.disk
    }

    /// The header's JSON.
    ///
    /// # Errors
    /// `Host` if there is none.
    pub fn header(&self) -> Result<Value, MachineError> {
        let (area, _) = self.area(0)?;
        json_of(&area)
    }

    /// Changes both copies of the header's JSON and makes their checksums right again.
    ///
    /// # Errors
    /// `Host` if there is no header.
    pub fn change_header(&self, change: impl Fn(&mut Value)) -> Result<(), MachineError> {
        let (_, size) = self.area(0)?;
        for start in [0, size] {
            let (mut area, _) = self.area(start)?;
            let mut json = json_of(&area)?;
            change(&mut json);
            let text = serde_json::to_vec(&json).map_err(io::Error::other)?;
            area[BINARY_SIZE..].fill(0);
            area[BINARY_SIZE..BINARY_SIZE + text.len()].copy_from_slice(&text);
            area[CHECKSUM_AT..CHECKSUM_AT + CHECKSUM_SIZE].fill(0);
            let checksum = Sha256::digest(&area);
            area[CHECKSUM_AT..CHECKSUM_AT + checksum.len()].copy_from_slice(&checksum);
            self.disk.write_at(LUKS_START + start, &area)?;
        }
        Ok(())
    }

    /// Puts a LUKS2 volume with the same UUID and a key of one's own in the root's place; it carries the machine's
    /// own token, and a keyslot where that token says. Returns the volume key.
    ///
    /// # Errors
    /// `Tool` if cryptsetup fails.
    pub fn put_own_volume(&self) -> Result<Vec<u8>, MachineError> {
        let header = self.header()?;
        let (id, token) = header["tokens"]
            .as_object()
            .and_then(|tokens| tokens.iter().find(|(_, token)| token["type"] == "latchkey"))
            .ok_or_else(|| io::Error::other("the volume is not bound"))?;
        let slot = token["keyslots"][0].as_str().unwrap_or_default();

        let folder = self.folder();
        let (image, passphrase) = (folder.join("own.img"), folder.join("own.passphrase"));
        let (key, json) = (folder.join("own.key"), folder.join("own.json"));
        File::create(&image)?.set_len(64 << 20)?;
        std::fs::write(&passphrase, OWN_PASSPHRASE)?;
        std::fs::write(&json, token.to_string())?;
        let volume_key: Vec<u8> = (0..64_u8)
            .map(|byte| byte.wrapping_mul(37) ^ 0xa5)
            .collect();
        std::fs::write(&key, &volume_key)?;
        let cheap = [
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "--batch-mode",
        ];
        let mut format = Command::new("cryptsetup");
        format
            .args(["luksFormat", "--type", "luks2", "--uuid", guest::LUKS_UUID])
            .args(cheap);
        format
            .args(["--key-size", "512", "--sector-size", "512"])
            .arg("--volume-key-file")
            .arg(&key);
        tool::run(format.arg("--key-file").arg(&passphrase).arg(&image))?;
        let mut add = Command::new("cryptsetup");
        add.args(["luksAddKey", "--key-slot", slot]).args(cheap);
        tool::run(add.arg("--key-file").arg(&passphrase).arg(&image).arg(&key))?;
        let mut import = Command::new("cryptsetup");
        import.args(["token", "import", "--token-id", id, "--json-file"]);
        tool::run(import.arg(&json).arg(&image))?;
        self.put_volume(&std::fs::read(&image)?)?;
        Ok(volume_key)
    }

    /// Gives the root of a guest, not bound yet, a LUKS1 header with the same UUID, volume key and passphrase.
    ///
    /// # Errors
    /// `Tool` if cryptsetup fails.
    pub fn put_luks1_header(&self) -> Result<(), MachineError> {
        let folder = self.folder();
        let (image, passphrase) = (folder.join("luks1.img"), folder.join("luks1.passphrase"));
        let key = folder.join("luks1.key");
        std::fs::write(&passphrase, guest::PASSPHRASE)?;
        self.disk.luks_header(&image)?;
        let mut dump = Command::new("cryptsetup");
        dump.args(["luksDump", "--batch-mode", "--dump-volume-key"]);
        dump.arg("--volume-key-file").arg(&key);
        tool::run(dump.arg("--key-file").arg(&passphrase).arg(&image))?;

        File::create(&image)?.set_len(LUKS_HEADER + (1 << 20))?;
        let sectors = (LUKS_HEADER / 512).to_string();
        let mut format = Command::new("cryptsetup");
        format.args(["luksFormat", "--type", "luks1", "--uuid", guest::LUKS_UUID]);
        format.args(["--batch-mode", "--pbkdf-force-iterations", "2000"]);
        format.args(["--cipher", "aes-xts-plain64", "--key-size", "512"]);
        format.args(["--align-payload", &sectors, "--volume-key-file"]);
        format.arg(&key).arg("--key-file").arg(&passphrase);
        tool::run(format.arg(&image))?;
        let mut header = vec![0; usize::try_from(LUKS_HEADER).map_err(io::Error::other)?];
        File::open(&image)?.read_exact(&mut header)?;
        self.put_volume(&header)
    }

    /// Overwrites the beginning of what the root's volume holds, and leaves its header as it is.
    ///
    /// # Errors
    /// `Host` if the disk cannot be written to.
    pub fn destroy_content(&self) -> Result<(), MachineError> {
        let noise = vec![0x5a; 1 << 20];
        self.disk.write_at(LUKS_START + LUKS_HEADER, &noise)
    }

    /// Puts an ext4 file system in the root's place that bears the LUKS volume's UUID.
    ///
    /// # Errors
    /// `Tool` if mke2fs fails.
    pub fn put_plain_file_system(&self) -> Result<(), MachineError> {
        let image = self.folder().join("own.ext4");
        let mut make = Command::new("mke2fs");
        make.args(["-q", "-F", "-t", "ext4", "-U", guest::LUKS_UUID]);
        tool::run(make.arg(&image).arg("64M"))?;
        self.put_volume(&std::fs::read(&image)?)
    }

    fn put_volume(&self, image: &[u8]) -> Result<(), MachineError> {
        self.disk.write_at(LUKS_START, image)
    }

    /// One metadata area, binary header and JSON, that starts `start` bytes into the volume.
    fn area(&self, start: u64) -> Result<(Vec<u8>, u64), MachineError> {
        let binary = self.disk.read_at(LUKS_START + start, BINARY_SIZE as u64)?;
        let size = binary[HEADER_SIZE_AT..][..8].try_into();
        let size = u64::from_be_bytes(size.map_err(io::Error::other)?);
        if !(BINARY_SIZE as u64..=1 << 22).contains(&size) {
            return Err(io::Error::other("no LUKS2 header").into());
        }
        Ok((self.disk.read_at(LUKS_START + start, size)?, size))
    }

    fn folder(&self) -> &Path {
        self.disk.path().parent().unwrap_or(Path::new("/"))
    }
}

fn json_of(area: &[u8]) -> Result<Value, MachineError> {
    let json = &area[BINARY_SIZE..];
    let end = json
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(json.len());
    Ok(serde_json::from_slice(&json[..end]).map_err(io::Error::other)?)
}
