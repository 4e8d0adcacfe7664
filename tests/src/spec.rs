//! What to start: a machine's parts, and the QEMU command for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::layout::Layout;
use crate::overlay::{BootFiles, Disk};

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
    layout: Layout,
    names_resume: bool,
    pub(crate) log: PathBuf,
    init: Init,
    loader: Loader,
    network: Network,
    forwards: Vec<(u16, u16)>,
    disk_is_late: bool,
    memory_mib: u32,
    kernel_line: String,
    clock: Option<String>,
    payloads: Vec<PathBuf>,
    data_disks: Vec<PathBuf>,
    more: Vec<String>,
}

impl Spec {
    /// A machine with 1 GiB of memory on `disk` that logs its console to `log`.
    pub fn new(disk: &Disk, log: &Path) -> Self {
        Self {
            disk: disk.clone(),
            layout: Layout::Root,
            names_resume: true,
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
            data_disks: Vec::new(),
            more: Vec::new(),
        }
    }

    /// Boots Debian's systemd instead of the bare command channel.
    #[must_use]
    pub fn systemd(mut self) -> Self {
        self.init = Init::Systemd;
        self
    }

    /// Another layout of the disk, for a machine that starts without boot loader.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Leaves `resume=` to the initramfs' own settings, for a machine that starts without boot loader.
    #[must_use]
    pub fn resume_from_image(mut self) -> Self {
        self.names_resume = false;
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

    /// Leaves the disk out until [`plug_disk`](crate::machine::Machine::plug_disk).
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

    /// Adds a raw disk that is written to. The guest knows the first as `/dev/disk/by-id/virtio-data0`.
    #[must_use]
    pub fn data_disk(mut self, image: &Path) -> Self {
        self.data_disks.push(image.to_owned());
        self
    }

    /// Adds a raw disk, `data0` for the guest, that is left out until
    /// [`plug_data_disk`](crate::machine::Machine::plug_data_disk).
    #[must_use]
    pub fn late_data_disk(self, image: &Path) -> Self {
        self.qemu(&["-drive", &raw_drive(image, LATE_DATA)])
    }

    /// Hands QEMU further arguments.
    #[must_use]
    pub fn qemu(mut self, arguments: &[&str]) -> Self {
        self.more
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    pub(crate) fn command(&self, ports: &Path) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-machine", "pc", "-accel", "tcg", "-cpu", CPU, "-smp", "2", "-display", "none",
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
        let disk = self.disk.path().display();
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
        for (number, disk) in self.data_disks.iter().enumerate() {
            qemu.args(["-drive", &raw_drive(disk, &format!("data{number}"))]);
            let slot = FIRST_DATA_SLOT + number;
            qemu.args([
                "-device",
                &format!("virtio-blk-pci,drive=data{number},serial=data{number},addr={slot:#x}"),
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
            let words = self.layout.kernel_words();
            let words = if self.names_resume {
                words
            } else {
                words.split(" resume=").next().unwrap_or(words)
            };
            qemu.arg("-append")
                .arg(format!("{words} {KERNEL_LINE} {}", self.kernel_line));
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

fn raw_drive(image: &Path, id: &str) -> String {
    let file = image.display();
    format!("file={file},format=raw,if=none,id={id},cache=unsafe")
}

/// All that QEMU can emulate but five levels of page tables, and but fast `rep stosb`: the kernel would clear its pages
/// by it, byte after byte, and was seen to take minutes for one of them on a busy host. Nor virtual machines within this one:
/// the kernel would load its large module for them, and was seen to stand still for most of a minute meanwhile, or for ever.
const CPU: &str = "max,la57=off,erms=off,svm=off";

/// What starts the kernel.
#[derive(Debug, Clone)]
enum Loader {
    /// The guest's own boot loader and `/boot`.
    Grub,
    /// QEMU, from files on the host.
    Direct(BootFiles),
}

/// The same as in `tests/guest/grub.cfg`.
const KERNEL_LINE: &str = "ro console=ttyS0 printk.time=1";

pub(crate) const CONSOLE: &str = "console";
pub(crate) const CHANNEL: &str = "channel";
pub(crate) const CONTROL: &str = "control";
pub(crate) const LATE_DATA: &str = "late-data";
const FIRST_PAYLOAD_SLOT: usize = 0x8;
const FIRST_DATA_SLOT: usize = 0x10;
