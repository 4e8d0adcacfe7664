//! One virtual machine: QEMU under TCG with the guest's disk, two serial ports and a control socket. Ends when it
//! is dropped.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::channel::{Channel, ChannelError, Output};
use crate::console::{Console, ConsoleError, Sighting};
use crate::qmp::{Qmp, QmpError};
use crate::spec::{CHANNEL, CONSOLE, CONTROL, LATE_DATA};
use crate::tool::ToolError;

pub use crate::overlay::{BootFiles, Disk};
pub use crate::spec::{Init, MAC, Network, Spec};

/// The longest a boot step may take on a loaded host; not a limit that a test checks.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// Programs print their prompt first; then some switch the echo off and drop what was typed by then.
const BEFORE_TYPING: Duration = Duration::from_secs(2);
/// The longest a command in the guest may take there: update-initramfs, mostly.
const COMMAND_PATIENCE: Duration = Duration::from_secs(2700);

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

    /// Waits for a text that may come before or after what is expected next.
    ///
    /// # Errors
    /// As [`Machine::expect`].
    pub fn expect_beside(&mut self, text: &str, limit: Duration) -> Result<Sighting, MachineError> {
        Ok(self.console.expect_beside(text, limit)?)
    }

    /// Waits for a prompt on the console and answers it; returns when the prompt appeared.
    ///
    /// # Errors
    /// `Console` if it does not appear.
    pub fn answer(&mut self, prompt: &str, text: &str) -> Result<Sighting, MachineError> {
        let sighting = self.console.expect(prompt, PATIENCE)?;
        self.answer_now(text)?;
        Ok(sighting)
    }

    /// Answers the first prompt of this boot, which may have come before what was waited for last, or be yet to come.
    ///
    /// # Errors
    /// `Console` if it does not appear.
    pub fn answer_first(&mut self, prompt: &str, text: &str) -> Result<(), MachineError> {
        if self.console.first(prompt).is_none() {
            self.console.expect(prompt, PATIENCE)?;
        }
        self.answer_now(text)
    }

    /// Types an answer to the prompt that stands, a moment after it appeared: the program that shows it first clears what
    /// was typed before.
    ///
    /// # Errors
    /// `Console` if the port is broken.
    pub fn answer_now(&mut self, text: &str) -> Result<(), MachineError> {
        thread::sleep(BEFORE_TYPING);
        Ok(self.console.type_line(text)?)
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
        self.plug(json!({ "drive": "disk", "addr": "0x4" }))
    }

    /// Plugs the data disk in that [`Spec::late_data_disk`] left out.
    ///
    /// # Errors
    /// `Qmp` if QEMU refuses.
    pub fn plug_data_disk(&mut self) -> Result<(), MachineError> {
        self.plug(json!({ "drive": LATE_DATA, "serial": "data0" }))
    }

    fn plug(&mut self, mut device: Value) -> Result<(), MachineError> {
        device["driver"] = "virtio-blk-pci".into();
        self.qmp.execute("device_add", device)?;
        Ok(())
    }

    /// Pulls out the device that QEMU calls `id`; returns when the guest let it go.
    ///
    /// # Errors
    /// `Qmp` if QEMU refuses, `StillRuns` if the guest does not.
    pub fn unplug(&mut self, id: &str) -> Result<(), MachineError> {
        self.qmp.execute("device_del", json!({ "id": id }))?;
        let begin = Instant::now();
        loop {
            let devices = json!({ "path": "/machine/peripheral" });
            let devices = self.qmp.execute("qom-list", devices)?;
            let mut devices = devices.as_array().into_iter().flatten();
            if !devices.any(|device| device["name"] == id) {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(MachineError::StillRuns { limit: PATIENCE });
            }
            thread::sleep(Duration::from_millis(200));
        }
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

    /// Stops the machine's processor, with everything that it wrote on its disk, while `act` runs.
    ///
    /// # Errors
    /// `Qmp` if QEMU refuses.
    pub fn while_paused<T>(&mut self, act: impl FnOnce() -> T) -> Result<T, MachineError> {
        self.qmp.execute("stop", json!({}))?;
        let done = act();
        self.qmp.execute("cont", json!({}))?;
        Ok(done)
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

    /// Hibernates the guest to its swap and waits until the machine is off. What comes back, at another machine with the
    /// same disk, says so in the kernel log ([`Machine::resumed`]).
    ///
    /// # Errors
    /// `StillRuns` if it does not end.
    pub fn hibernate(mut self) -> Result<(), MachineError> {
        // The machine is switched off as always, not by its firmware's own sleep.
        let script = format!(
            "echo shutdown > /sys/power/disk
             echo disk > /sys/power/state
             echo '<5>{RESUMED}' > /dev/kmsg"
        );
        self.channel.send_last(&script)?;
        self.wait_off(COMMAND_PATIENCE)
    }

    /// Waits until the hibernated guest is back.
    ///
    /// # Errors
    /// `Console` if it does not come back.
    pub fn resumed(&mut self) -> Result<Sighting, MachineError> {
        Ok(self.console.expect(RESUMED, PATIENCE)?)
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
/// What a guest that was hibernated writes there.
const RESUMED: &str = "RIG: resumed";

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
