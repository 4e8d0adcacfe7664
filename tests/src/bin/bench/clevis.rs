//! Clevis and tang, both as Debian has them, bound with their own defaults.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use latchkey_tests::cache::{self, Key};
use latchkey_tests::flavour::Flavour;
use latchkey_tests::guest::{self, DEVICE, Guest, PASSPHRASE};
use latchkey_tests::machine::{BootFiles, Disk, Machine, Spec};
use latchkey_tests::network::HOST;
use latchkey_tests::tool;

use crate::Failure;

/// Where tang listens on the host.
const PORT: u16 = 7500;
const TANGD: &str = "/usr/libexec/tangd";
const PACKAGES: &[&str] = &["clevis", "clevis-initramfs", "clevis-luks", "curl"];

/// A guest whose root clevis opens, and the keys of its tang.
pub struct Clevis {
    /// Its disk; nobody writes to it.
    pub disk: PathBuf,
    /// Its kernel and initramfs.
    pub boot: BootFiles,
    keys: PathBuf,
}

/// The guest in which clevis is installed.
pub fn guest() -> Result<Guest, Failure> {
    Ok(guest::guest_with(Flavour::DEBIAN12, "clevis", PACKAGES)?)
}

/// `guest`, bound, from the cache; made first if it is not there. The calling thread should be in a network of its own.
pub fn bound(guest: &Guest) -> Result<Clevis, Failure> {
    let key = Key::default()
        .with("guest", &guest.key)
        .with("recipe", include_str!("clevis.rs"));
    let folder = cache::folder_for("clevis-bound", key, |folder| build(guest, folder))?;
    Ok(Clevis {
        disk: folder.join("disk.qcow2"),
        boot: BootFiles::in_folder(&folder),
        keys: folder.join("keys"),
    })
}

impl Clevis {
    /// Starts its tang.
    pub fn start_tang(&self) -> Result<Tang, Failure> {
        Tang::start(&self.keys)
    }
}

fn build(guest: &Guest, folder: &Path) -> Result<(), Failure> {
    eprintln!("binding a guest with clevis (once)");
    let keys = folder.join("keys");
    fs::create_dir(&keys)?;
    tool::run(Command::new("/usr/libexec/tangd-keygen").arg(&keys))?;
    let tang = Tang::start(&keys)?;
    let disk = Disk::over(&guest.disk, &folder.join("disk.qcow2"))?;
    let mut machine = Machine::start(&Spec::new(&disk, &folder.join("console.log")).systemd())?;
    machine.answer(guest.first_prompt(), PASSPHRASE)?;
    machine.up()?;
    machine.check(&format!(
        "set -e
         echo COMPRESSLEVEL=1 > /etc/initramfs-tools/conf.d/rig
         printf %s '{PASSPHRASE}' | clevis luks bind -y -k - -d {DEVICE} tang '{{\"url\":\"http://{HOST}:{PORT}\"}}'
         update-initramfs -u
         sync"
    ))?;
    machine.power_off()?;
    drop(tang);
    disk.boot_files(folder)?;
    Ok(())
}

/// A tang that answers until it is dropped.
pub struct Tang {
    over: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Tang {
    /// As tangd@.service has it: a process for each connection, which is its stdin and stdout.
    fn start(keys: &Path) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
        let (keys, over) = (keys.to_owned(), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&over);
        let acceptor = thread::spawn(move || {
            while let Ok((connection, _)) = listener.accept() {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                // A connection that is not served is one that clevis tries again.
                let _ = answer(&keys, connection);
            }
        });
        Ok(Self {
            over,
            acceptor: Some(acceptor),
        })
    }
}

impl Drop for Tang {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It waits for one more connection.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn answer(keys: &Path, connection: TcpStream) -> io::Result<()> {
    let second = connection.try_clone()?;
    let mut tangd = Command::new(TANGD);
    tangd
        .arg(keys)
        .stdin(OwnedFd::from(connection))
        .stdout(OwnedFd::from(second));
    let mut process = tangd.stderr(Stdio::null()).spawn()?;
    thread::spawn(move || process.wait());
    Ok(())
}
