//! The real `latchkey` and `latchkeyd` on the loopback: a machine below a folder, volumes in plain files.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

pub const PASSPHRASE: &str = "correct horse";
pub const UUID: &str = "8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de";

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.out, self.err);
        self
    }

    /// It failed with exit code 1, and each of `texts` is in what it said.
    #[track_caller]
    pub fn failed_saying(self, texts: &[&str]) -> Self {
        assert_eq!(self.code, 1, "{}\n{}", self.out, self.err);
        for text in texts {
            assert!(
                self.err.contains(text),
                "'{text}' is missing in: {}",
                self.err
            );
        }
        self
    }
}

pub fn run(command: &mut Command, input: &str) -> Said {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `latchkeyd` of this build, or the one that the environment variable LATCHKEYD names.
pub fn latchkeyd() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = std::env::var_os("LATCHKEYD") {
            return path.into();
        }
        let path = Path::new(env!("CARGO_BIN_EXE_latchkey")).with_file_name("latchkeyd");
        let build = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "latchkeyd"])
            .status();
        assert!(
            build.unwrap().success() && path.exists(),
            "no latchkeyd was built"
        );
        path
    })
}

/// A running key server. Its address is a proxy's, which lets through as many connections as it is told.
pub struct Server {
    dir: tempfile::TempDir,
    listen: String,
    proxy: Proxy,
    child: Option<Child>,
}

impl Server {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = free.local_addr().unwrap().to_string();
        drop(free);
        let proxy = Proxy::to(&listen);
        let mut server = Self {
            dir,
            listen,
            proxy,
            child: None,
        };
        let name = server.address();
        server.admin(&["init", "--name", &name]).succeeded();
        server.serve();
        server
    }

    /// `HOST:PORT` as the join tokens name it.
    pub fn address(&self) -> String {
        self.proxy.address.clone()
    }

    pub fn serve(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new(latchkeyd())
            .arg("serve")
            .arg("--data-dir")
            .arg(self.data())
            .args(["--listen", &self.listen])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let begin = Instant::now();
        while TcpStream::connect(&self.listen).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(30), "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The volumes whose shares it has.
    pub fn live_volumes(&self) -> Vec<String> {
        let volumes = self.admin(&["volumes", "--json"]).succeeded().out;
        let volumes: serde_json::Value = serde_json::from_str(&volumes).unwrap();
        let live =
            |one: &&serde_json::Value| one["retired"].is_null() && one["destroyed"].is_null();
        let volumes = volumes.as_array().unwrap().iter().filter(live);
        volumes
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect()
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets `count` more connections through, then closes each at once.
    pub fn allow(&self, count: usize) {
        self.proxy.left.store(count, Ordering::SeqCst);
    }

    pub fn admin(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(latchkeyd());
        command.args(arguments).arg("--data-dir").arg(self.data());
        run(&mut command, "")
    }

    /// Of the data folder while it does not run.
    pub fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&self.data(), copy.path());
        copy
    }

    /// Puts a copy in the place of the data folder, while it does not run.
    pub fn put_back(&self, copy: &tempfile::TempDir) {
        std::fs::remove_dir_all(self.data()).unwrap();
        copy_folder(copy.path(), &self.data());
    }

    pub fn invite(&self, client: &str) -> String {
        self.admin(&["invite", client]).succeeded().out
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

pub fn copy_folder(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.args(["-aT", "--"]).args([from, to]);
    run(&mut copy, "").succeeded();
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("the key server's log:\n{}", self.log());
        }
    }
}

/// An address that stays while what is behind it changes.
pub struct Proxy {
    pub address: String,
    left: Arc<AtomicUsize>,
    target: Arc<Mutex<String>>,
}

impl Proxy {
    pub fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let target = Arc::new(Mutex::new(target.to_owned()));
        let (allowed, current) = (left.clone(), target.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let admitted = allowed
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                        left.checked_sub(1)
                    })
                    .is_ok();
                let target = current.lock().unwrap().clone();
                if let (true, Ok(server)) = (admitted, TcpStream::connect(target)) {
                    pump(client.try_clone().unwrap(), server.try_clone().unwrap());
                    pump(server, client);
                }
            }
        });
        Self {
            address,
            left,
            target,
        }
    }

    /// Sends new connections to `target` from now on.
    pub fn turn_to(&self, target: &str) {
        target.clone_into(&mut self.target.lock().unwrap());
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let mut buffer = [0; 16384];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}

/// A machine: everything below a folder.
pub struct Machine {
    pub root: tempfile::TempDir,
}

impl Machine {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let machine = Self { root };
        machine.run_init_in(".");
        machine
    }

    /// A machine that has joined `servers` and whose crypttab names the volume of [`Machine::format`].
    pub fn joined(servers: &[&Server]) -> Self {
        let machine = Self::new();
        for server in servers {
            machine
                .latchkey(&["join", "-"], &server.invite("web-1"))
                .succeeded();
        }
        machine.write_crypttab("luks,discard,initramfs");
        machine
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_latchkey"));
        command.arg("--root").arg(self.root.path()).args(arguments);
        command
    }

    pub fn latchkey(&self, arguments: &[&str], input: &str) -> Said {
        run(&mut self.command(arguments), input)
    }

    pub fn bind(&self, volume: &Volume) -> Said {
        self.latchkey(&bind_arguments(volume), PASSPHRASE)
    }

    pub fn unbind(&self, volume: &Volume) -> Said {
        self.latchkey(&["unbind", volume.path(), "--no-initramfs"], "")
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Lets root lie on a mapping of dm-crypt; else nothing tells of one, and the key servers take its host key for exposed.
    pub fn encrypt_root(&self) {
        let mapping = self.path("sys/dev/block/253:0/dm");
        std::fs::create_dir_all(&mapping).unwrap();
        std::fs::write(mapping.join("name"), "system\n").unwrap();
        std::fs::write(mapping.join("uuid"), "CRYPT-LUKS2-0-system\n").unwrap();
        let mounts = "31 1 253:0 / / rw,relatime - ext4 /dev/dm-0 rw\n";
        std::fs::create_dir_all(self.path("proc/self")).unwrap();
        std::fs::write(self.path("proc/self/mountinfo"), mounts).unwrap();
    }

    /// Lets the root of process 1 be this folder of the machine.
    pub fn run_init_in(&self, folder: &str) {
        let root = self.path("proc/1/root");
        std::fs::create_dir_all(root.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&root);
        std::os::unix::fs::symlink(self.path(folder), root).unwrap();
    }

    pub fn write_crypttab(&self, options: &str) {
        let line = format!("root_crypt UUID={UUID} none {options}\n");
        std::fs::write(self.path("etc/crypttab"), line).unwrap();
    }

    /// Makes crypttab's `UUID=` resolve to `volume`, as udev would.
    pub fn plug_in(&self, volume: &Volume) {
        let links = self.path("dev/disk/by-uuid");
        std::fs::create_dir_all(&links).unwrap();
        std::os::unix::fs::symlink(volume.path(), links.join(UUID)).unwrap();
    }

    /// Lets udev know two devices of the UUID of crypttab.
    pub fn is_there_twice(&self) {
        let (udev, numbers) = (self.path("run/udev/data"), self.path("sys/dev/block"));
        std::fs::create_dir_all(&udev).unwrap();
        std::fs::create_dir_all(&numbers).unwrap();
        for (number, name) in [("254:3", "vda3"), ("254:19", "vdb3")] {
            let device = self.path("sys/devices").join(name);
            std::fs::create_dir_all(&device).unwrap();
            std::os::unix::fs::symlink(device, numbers.join(number)).unwrap();
            let record = format!("E:ID_FS_UUID_ENC={UUID}\n");
            std::fs::write(udev.join(format!("b{number}")), record).unwrap();
        }
    }

    /// The folder of the only key server.
    pub fn server_dir(&self) -> PathBuf {
        let mut found = std::fs::read_dir(self.path("etc/latchkey/servers")).unwrap();
        let dir = found.next().unwrap().unwrap().path();
        assert!(found.next().is_none());
        dir
    }

    /// Removes the backups of headers.
    pub fn remove_backups(&self) {
        for path in self.state("header-") {
            std::fs::remove_file(path).unwrap();
        }
    }

    /// So that the next `bind` has to write it.
    pub fn forget_network(&self) {
        let _ = std::fs::remove_file(self.path("etc/latchkey/network.json"));
    }

    /// Files in /var/lib/latchkey whose names begin with `prefix`.
    pub fn state(&self, prefix: &str) -> Vec<PathBuf> {
        std::fs::read_dir(self.path("var/lib/latchkey"))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.file_name()
                    .unwrap()
                    .to_string_lossy()
                    .starts_with(prefix)
            })
            .collect()
    }
}

pub fn bind_arguments(volume: &Volume) -> Vec<&str> {
    vec!["bind", volume.path(), "--key-file", "-", "--no-initramfs"]
}

/// A LUKS volume in a plain file.
pub struct Volume {
    file: tempfile::NamedTempFile,
}

impl Volume {
    /// LUKS2 with one keyslot, whose key derivation costs little.
    pub fn luks2() -> Self {
        Self::format(&["--type", "luks2"])
    }

    pub fn format(options: &[&str]) -> Self {
        let volume = Self::plain();
        let cheap = [
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "2000",
            "--uuid",
            UUID,
        ];
        let cheap = if options.contains(&"luks1") {
            &cheap[2..]
        } else {
            &cheap[..]
        };
        let arguments = [
            "luksFormat",
            "--batch-mode",
            "--key-file",
            "-",
            volume.path(),
        ];
        run(
            Command::new("cryptsetup")
                .args(arguments)
                .args(cheap)
                .args(options),
            PASSPHRASE,
        )
        .succeeded();
        volume
    }

    /// As `luksFormat --integrity hmac-sha256` makes the header, which needs device-mapper: 32 bytes of the volume key are
    /// for AES-XTS, 32 for HMAC. Both copies of the header are written anew (LUKS2 on-disk format, 2.1).
    pub fn luks2_with_integrity() -> Self {
        const METADATA: usize = 0x4000;
        const CHECKSUM: std::ops::Range<usize> = 448..512;
        let volume = Self::luks2();
        let mut json = volume.json();
        json["segments"]["0"]["integrity"] = serde_json::json!({
            "type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"
        });
        let json = json.to_string();
        let mut bytes = volume.bytes();
        for copy in [0, 1] {
            let header = &mut bytes[copy * METADATA..(copy + 1) * METADATA];
            header[4096..].fill(0);
            header[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
            header[CHECKSUM].fill(0);
            let checksum = Sha256::digest(&*header);
            header[CHECKSUM.start..CHECKSUM.start + 32].copy_from_slice(&checksum);
        }
        std::fs::write(volume.path(), bytes).unwrap();
        volume
    }

    /// 32 MiB without anything on them.
    pub fn plain() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(32 << 20).unwrap();
        Self { file }
    }

    pub fn path(&self) -> &str {
        self.file.path().to_str().unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }

    /// The header's JSON.
    pub fn json(&self) -> serde_json::Value {
        let dump = ["luksDump", "--dump-json-metadata", self.path()];
        let said = run(Command::new("cryptsetup").args(dump), "").succeeded();
        serde_json::from_str(&said.out).unwrap()
    }

    pub fn count(&self, kind: &str) -> usize {
        self.json()[kind].as_object().unwrap().len()
    }

    #[track_caller]
    pub fn opens_with_the_passphrase(&self) {
        let test = ["open", "--test-passphrase", "--key-file", "-", self.path()];
        run(Command::new("cryptsetup").args(test), PASSPHRASE).succeeded();
    }
}
