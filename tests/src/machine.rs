//! One virtual machine: QEMU under TCG with the guest's disk, two serial ports and a control socket. Ends when it
//! is dropped.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::channel::{Channel, ChannelError, Output};
use crate::console::{Console, ConsoleError, Sighting};
use crate::disk;
use crate::qmp::{Qmp, QmpError};
use crate::tool::{self, ToolError};

/// The longest a boot step may take on a loaded host; not a limit that a test checks.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// The longest a command in the guest may take there: update-initramfs, mostly.
const COMMAND_PATIENCE: Duration = Duration::from_secs(900);

/// A machine could not be started or did not behave.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A program of the host failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A serial port stayed silent or broke.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A command in the guest failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// QEMU's control socket failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The host's files or processes.
    #[error("failed to run a virtual machine")]
    Host(#[from] io::Error),
    /// `/boot` is not as Debian leaves it.
    #[error("'/boot' of the machine's disk has no file '{name}…'")]
    NoBootFile {
        /// How its name begins.
        name: String,
    },
    /// QEMU ended before it opened its ports.
    #[error("QEMU ended with {status} at its start; it said\n{said}")]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        said: String,
    },
    /// The machine was told to end and still runs.
    #[error("the machine still runs after {} s", limit.as_secs())]
    StillRuns {
        /// How long it was waited for.
        limit: Duration,
    },
}

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

    /// Copies `size` bytes from byte `start` on to a raw file.
    fn extract(&self, start: u64, size: u64, target: &Path) -> Result<(), MachineError> {
        let source = format!(
            "driver=raw,offset={start},size={size},file.driver=qcow2,file.file.driver=file,file.file.filename={}",
            self.path.display()
        );
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-O", "raw", "--image-opts", &source]);
        tool::run(convert.arg(target))?;
        Ok(())
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

/// What the root's first program becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// A bare command channel: all that a boot scenario needs, and half the time.
    Bare,
    /// Debian's systemd with its services.
    Systemd,
}

/// The machine's network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// None at all.
    None,
    /// QEMU's user network: DHCP, and the host's loopback is 10.0.2.2.
    User {
        /// The card's address.
        mac: String,
    },
}

/// The card of every machine that is not told otherwise.
pub const MAC: &str = "52:54:00:6c:6b:01";

/// What to start.
#[derive(Debug, Clone)]
pub struct Spec {
    disk: Disk,
    log: PathBuf,
    init: Init,
    loader: Loader,
    network: Network,
    forwards: Vec<(u16, u16)>,
    disk_is_late: bool,
    memory_mib: u32,
    kernel_line: String,
    clock: Option<String>,
    payloads: Vec<PathBuf>,
    more: Vec<String>,
}

impl Spec {
    /// A machine with 1 GiB of memory on `disk` that logs its console to `log`.
    pub fn new(disk: &Disk, log: &Path) -> Self {
        Self {
            disk: disk.clone(),
            log: log.to_owned(),
            init: Init::Bare,
            loader: Loader::Grub,
            network: Network::User {
                mac: MAC.to_owned(),
            },
            forwards: Vec::new(),
            disk_is_late: false,
            memory_mib: 1024,
            kernel_line: String::new(),
            clock: None,
            payloads: Vec::new(),
            more: Vec::new(),
        }
    }

    /// Boots Debian's systemd instead of the bare command channel.
    #[must_use]
    pub fn systemd(mut self) -> Self {
        self.init = Init::Systemd;
        self
    }

    /// Starts kernel and initramfs without boot loader, which saves a third of a boot under emulation.
    #[must_use]
    pub fn direct(mut self, files: &BootFiles) -> Self {
        self.loader = Loader::Direct(files.clone());
        self
    }

    /// Another network card, or none.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Leads connections to `host`, a port of the host's loopback, to the guest's port `guest`.
    #[must_use]
    pub fn forward(mut self, host: u16, guest: u16) -> Self {
        self.forwards.push((host, guest));
        self
    }

    /// Leaves the disk out until [`Machine::plug_disk`].
    #[must_use]
    pub fn late_disk(mut self) -> Self {
        self.disk_is_late = true;
        self
    }

    /// Other than 1 GiB of memory.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Adds words to the kernel's command line, as an administrator does at the boot loader.
    #[must_use]
    pub fn kernel_line(mut self, words: &str) -> Self {
        self.kernel_line = words.to_owned();
        self
    }

    /// Sets the real-time clock at power-on, in UTC, such as `1970-01-01T00:00:00`.
    #[must_use]
    pub fn clock(mut self, clock: &str) -> Self {
        self.clock = Some(clock.to_owned());
        self
    }

    /// Adds a read-only disk, `/dev/vdb` and on.
    #[must_use]
    pub fn payload(mut self, image: &Path) -> Self {
        self.payloads.push(image.to_owned());
        self
    }

    /// Hands QEMU further arguments.
    #[must_use]
    pub fn qemu(mut self, arguments: &[&str]) -> Self {
        self.more
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    fn command(&self, ports: &Path) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-machine",
            "pc",
            "-accel",
            "tcg",
            "-cpu",
            "max,la57=off",
            "-smp",
            "2",
            "-display",
            "none",
        ]);
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-m",
            &self.memory_mib.to_string(),
        ]);
        for (name, device) in [(CONSOLE, "serial"), (CHANNEL, "serial"), (CONTROL, "mon")] {
            qemu.args([
                "-chardev",
                &format!("socket,id={name},path={}", ports.join(name).display()),
            ]);
            match device {
                "mon" => qemu.args(["-mon", &format!("chardev={name},mode=control")]),
                _ => qemu.args(["-serial", &format!("chardev:{name}")]),
            };
        }
        let disk = self.disk.path.display();
        qemu.args([
            "-drive",
            &format!("file={disk},format=qcow2,if=none,id=disk,cache=unsafe,discard=unmap"),
        ]);
        if !self.disk_is_late {
            qemu.args(["-device", "virtio-blk-pci,drive=disk,addr=0x4,bootindex=1"]);
        }
        for (number, payload) in self.payloads.iter().enumerate() {
            let file = payload.display();
            let drive = format!("file={file},format=raw,if=none,id=payload{number},readonly=on");
            qemu.args(["-drive", &drive]);
            let slot = FIRST_PAYLOAD_SLOT + number;
            qemu.args([
                "-device",
                &format!("virtio-blk-pci,drive=payload{number},addr={slot:#x}"),
            ]);
        }
        qemu.args(["-device", "virtio-rng-pci,addr=0x5"]);
        if let Network::User { mac } = &self.network {
            let mut user = "user,id=net0".to_owned();
            for (host, guest) in &self.forwards {
                user += &format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
            }
            qemu.args(["-netdev", &user]);
            qemu.args([
                "-device",
                &format!("virtio-net-pci,id=nic0,netdev=net0,mac={mac},addr=0x3,romfile="),
            ]);
        }
        if self.init == Init::Systemd {
            qemu.args(["-smbios", "type=3,asset=systemd"]);
        }
        if let Loader::Direct(files) = &self.loader {
            qemu.arg("-kernel")
                .arg(&files.kernel)
                .arg("-initrd")
                .arg(&files.initramfs);
            qemu.arg("-append")
                .arg(format!("{KERNEL_LINE} {}", self.kernel_line));
        } else if !self.kernel_line.is_empty() {
            // QEMU reads a comma as the end of a value unless it is doubled.
            qemu.args([
                "-smbios",
                &format!("type=1,serial={}", self.kernel_line.replace(',', ",,")),
            ]);
        }
        if let Some(clock) = &self.clock {
            qemu.args(["-rtc", &format!("base={clock}")]);
        }
        qemu.args(&self.more);
        qemu
    }
}

/// What starts the kernel.
#[derive(Debug, Clone)]
enum Loader {
    /// The guest's own boot loader and `/boot`.
    Grub,
    /// QEMU, from files on the host.
    Direct(BootFiles),
}

/// The same as in `tests/guest/grub.cfg`.
const KERNEL_LINE: &str = "root=/dev/mapper/vda2_crypt ro console=ttyS0 printk.time=1";

const CONSOLE: &str = "console";
const CHANNEL: &str = "channel";
const CONTROL: &str = "control";
const FIRST_PAYLOAD_SLOT: usize = 0x8;

/// A running machine.
pub struct Machine {
    /// The first serial port: boot loader, kernel, prompts.
    pub console: Console,
    /// QEMU's control socket.
    pub qmp: Qmp,
    /// When it was powered on: what the host's clock of every sighting counts from.
    pub started: Instant,
    channel: Channel,
    qemu: Child,
    _ports: tempfile::TempDir,
}

impl Machine {
    /// Powers the machine on.
    ///
    /// # Errors
    /// `Died` if QEMU does not take its arguments, `Host` for the host's files.
    pub fn start(spec: &Spec) -> Result<Self, MachineError> {
        let ports = tempfile::Builder::new().prefix("latchkey-vm-").tempdir()?;
        let listen = |name| UnixListener::bind(ports.path().join(name));
        let (console, channel, control) = (listen(CONSOLE)?, listen(CHANNEL)?, listen(CONTROL)?);
        let start = Instant::now();
        let mut command = spec.command(ports.path());
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| ToolError::Start {
                program: command.get_program().to_string_lossy().into_owned(),
                source,
            })?;
        let console = Console::attach(accept(&console, &mut qemu)?, &spec.log, start)?;
        let channel_log = spec.log.with_extension("channel.log");
        let channel = Channel::new(Console::attach(
            accept(&channel, &mut qemu)?,
            &channel_log,
            start,
        )?);
        let control = accept(&control, &mut qemu)?;
        let qmp = match Qmp::attach(control) {
            Ok(qmp) => qmp,
            Err(error) => return Err(died(&mut qemu)?.unwrap_or(error.into())),
        };
        Ok(Self {
            console,
            qmp,
            started: start,
            channel,
            qemu,
            _ports: ports,
        })
    }

    /// Waits for a text on the console.
    ///
    /// # Errors
    /// `Console` after `limit` or if the machine ends.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<Sighting, MachineError> {
        Ok(self.console.expect(text, limit)?)
    }

    /// Waits for a prompt on the console and answers it; returns when the prompt appeared.
    ///
    /// # Errors
    /// `Console` if it does not appear.
    pub fn answer(&mut self, prompt: &str, text: &str) -> Result<Sighting, MachineError> {
        let sighting = self.console.expect(prompt, PATIENCE)?;
        self.console.type_line(text)?;
        Ok(sighting)
    }

    /// Waits until the decrypted root runs its first program, and then until it takes commands.
    ///
    /// # Errors
    /// `Console` or `Channel` if it does not come up.
    pub fn up(&mut self) -> Result<Sighting, MachineError> {
        let sighting = self.console.expect(UP, PATIENCE)?;
        self.channel.wait_ready(PATIENCE)?;
        Ok(sighting)
    }

    /// Waits until the booted guest takes commands, for those who waited for its start themselves.
    ///
    /// # Errors
    /// `Channel` if it does not.
    pub fn wait_ready(&mut self) -> Result<(), MachineError> {
        Ok(self.channel.wait_ready(PATIENCE)?)
    }

    /// Runs a shell script in the guest and returns how it ended.
    ///
    /// # Errors
    /// `Channel` if the guest does not answer.
    pub fn run(&mut self, script: &str) -> Result<Output, MachineError> {
        Ok(self.channel.run(script, COMMAND_PATIENCE)?)
    }

    /// Runs a shell script in the guest that has to succeed; returns what it printed.
    ///
    /// # Errors
    /// `Channel` if it fails.
    pub fn check(&mut self, script: &str) -> Result<String, MachineError> {
        Ok(self.channel.check(script, COMMAND_PATIENCE)?)
    }

    /// Like [`Machine::check`] for a script that may take as long as `limit`.
    ///
    /// # Errors
    /// `Channel` if it fails.
    pub fn check_within(&mut self, script: &str, limit: Duration) -> Result<String, MachineError> {
        Ok(self.channel.check(script, limit)?)
    }

    /// Plugs the disk in that [`Spec::late_disk`] left out.
    ///
    /// # Errors
    /// `Qmp` if QEMU refuses.
    pub fn plug_disk(&mut self) -> Result<(), MachineError> {
        let device = json!({ "driver": "virtio-blk-pci", "drive": "disk", "addr": "0x4" });
        self.qmp.execute("device_add", device)?;
        Ok(())
    }

    /// Slows reading from the disk down to so many bytes per second, or lets it run free again.
    ///
    /// # Errors
    /// `Qmp` if QEMU refuses.
    pub fn limit_disk(&mut self, rate: Option<u64>) -> Result<(), MachineError> {
        let limits = json!({
            "device": "disk", "bps": 0, "bps_rd": rate.unwrap_or(0), "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
        });
        self.qmp.execute("block_set_io_throttle", limits)?;
        Ok(())
    }

    /// Pulls the network cable out (`false`) or puts it in.
    ///
    /// # Errors
    /// `Qmp` if QEMU refuses.
    pub fn set_link(&mut self, up: bool) -> Result<(), MachineError> {
        self.qmp
            .execute("set_link", json!({ "name": "nic0", "up": up }))?;
        Ok(())
    }

    /// Shuts the guest down in order and waits until the machine is off.
    ///
    /// # Errors
    /// `StillRuns` if it does not end.
    pub fn power_off(mut self) -> Result<(), MachineError> {
        // The bare init is no systemd that could stop services: sync, read-only, off.
        let script = "if [ -d /run/systemd/system ]; then systemctl poweroff; else\n\
                      sync; echo u > /proc/sysrq-trigger; echo o > /proc/sysrq-trigger; fi";
        self.channel.send_last(script)?;
        self.wait_off(PATIENCE)
    }

    /// Reboots the guest in order, through its boot loader; its console stays open.
    ///
    /// # Errors
    /// `Channel` if the port is broken.
    pub fn reboot(&mut self) -> Result<(), MachineError> {
        let script = "if [ -d /run/systemd/system ]; then systemctl reboot; else\n\
                      sync; echo u > /proc/sysrq-trigger; echo b > /proc/sysrq-trigger; fi";
        Ok(self.channel.send_last(script)?)
    }

    /// Waits until the machine is off.
    ///
    /// # Errors
    /// `StillRuns` after `limit`.
    pub fn wait_off(&mut self, limit: Duration) -> Result<(), MachineError> {
        let until = Instant::now() + limit;
        while self.qemu.try_wait()?.is_none() {
            if Instant::now() >= until {
                return Err(MachineError::StillRuns { limit });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

/// What the guest's first program writes to the kernel log.
pub const UP: &str = "RIG: up";

impl Drop for Machine {
    fn drop(&mut self) {
        // SIGTERM lets QEMU close the disk properly.
        if let Ok(pid) = i32::try_from(self.qemu.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if self.wait_off(Duration::from_secs(10)).is_err() {
            let _ = self.qemu.kill();
            let _ = self.qemu.wait();
        }
    }
}

const POLL: Duration = Duration::from_millis(50);

/// The connection that QEMU opens to one of our ports at its start.
fn accept(port: &UnixListener, qemu: &mut Child) -> Result<UnixStream, MachineError> {
    port.set_nonblocking(true)?;
    loop {
        match port.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(died) = died(qemu)? {
            return Err(died);
        }
        thread::sleep(POLL);
    }
}

/// Why QEMU ended, if it did.
fn died(qemu: &mut Child) -> io::Result<Option<MachineError>> {
    // Its sockets close a moment before it can be awaited.
    thread::sleep(POLL);
    let Some(status) = qemu.try_wait()? else {
        return Ok(None);
    };
    let said = qemu
        .stderr
        .take()
        .map(io::read_to_string)
        .transpose()?
        .unwrap_or_default();
    Ok(Some(MachineError::Died { status, said }))
}
