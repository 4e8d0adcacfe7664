//! Somebody unlocks from afar: dropbear in the initramfs, and `cryptroot-unlock` finds the agent's prompt.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use latchkey_tests::bound::PORT;
use latchkey_tests::console::Console;
use latchkey_tests::flavour::Flavour;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::{BootFiles, Disk, Machine};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};
use latchkey_tests::tool;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "dropbear's cryptroot-unlock opens, through a pipe and at a terminal",
    play: over_ssh,
}];

const LIMIT: Duration = Duration::from_secs(240);
const TYPED: &str = "'vda2_crypt' was opened by a typed passphrase";
/// The framework's own, which `cryptroot-unlock` repeats.
const PROMPT: &str = Flavour::DEBIAN12.prompt();
const SSH_PORT: u16 = 2222;

fn over_ssh(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools("`cryptroot-unlock` is a part of cryptsetup-initramfs.")?;
    let key = new_key(stage.folder())?;
    let disk = stage.bound_disk()?;
    let boot = install(stage, &disk, &key)?;
    let start = |name| -> Result<Machine, Failure> {
        let spec = stage.machine(&disk, name).direct(&boot);
        let mut machine = Machine::start(&spec.forward(SSH_PORT, 22))?;
        machine.expect(PROMPT, LIMIT)?;
        wait_for_ssh(&key)?;
        Ok(machine)
    };

    let mut machine = start("pipe")?;
    let mut unlock = ssh(&key);
    tool::run_with_input(unlock.arg("cryptroot-unlock"), PASSPHRASE.as_bytes())?;
    machine.expect(TYPED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;

    let mut machine = start("terminal")?;
    at_a_terminal(&key, &stage.logs().join("ssh.log"))?;
    machine.expect(TYPED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

/// A wrong passphrase first.
fn at_a_terminal(key: &Path, log: &Path) -> Outcome {
    let (ours, theirs) = UnixStream::pair()?;
    let mut unlock = ssh(key);
    unlock
        .args(["-tt", "cryptroot-unlock"])
        .stdin(OwnedFd::from(theirs.try_clone()?))
        .stdout(OwnedFd::from(theirs));
    let mut session = unlock.stderr(Stdio::null()).spawn()?;
    // The command holds the other end of the terminal, which closes with the session only without it.
    drop(unlock);
    let mut terminal = Console::attach(ours, log, Instant::now())?;
    terminal.expect(PROMPT, LIMIT)?;
    terminal.type_line("not the passphrase")?;
    terminal.expect("bad password or options?", LIMIT)?;
    terminal.expect(PROMPT, LIMIT)?;
    terminal.type_line(PASSPHRASE)?;
    let opened = terminal.expect("vda2_crypt set up successfully", LIMIT);
    let _ = session.kill();
    session.wait()?;
    opened?;
    Ok(())
}

/// Installs dropbear-initramfs in the guest as its administrator would; returns the kernel and initramfs of then.
fn install(stage: &Stage, disk: &Disk, key: &Path) -> Result<BootFiles, Failure> {
    const PACKAGES_LIMIT: Duration = Duration::from_secs(900);
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let mut machine = Machine::start(&stage.bound_machine(disk, "install").systemd())?;
    machine.up()?;
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    machine.check(&format!(
        "mkdir -p /etc/dropbear/initramfs
         echo '{}' > /etc/dropbear/initramfs/authorized_keys
         chmod 0600 /etc/dropbear/initramfs/authorized_keys",
        public.trim()
    ))?;
    machine.check_within(
        "DEBIAN_FRONTEND=noninteractive dpkg --install /opt/rig/dropbear/*.deb && sync",
        PACKAGES_LIMIT,
    )?;
    machine.power_off()?;
    Ok(disk.boot_files(stage.folder())?)
}

fn new_key(folder: &Path) -> Result<PathBuf, Failure> {
    let key = folder.join("administrator");
    let mut keygen = Command::new("ssh-keygen");
    tool::run(
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key),
    )?;
    Ok(key)
}

/// QEMU takes connections before anybody listens in the guest.
fn wait_for_ssh(key: &Path) -> Outcome {
    let until = Instant::now() + LIMIT;
    loop {
        match tool::run(ssh(key).arg("true")) {
            Ok(_) => return Ok(()),
            Err(error) => ensure(Instant::now() < until, || error.to_string())?,
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn ssh(key: &Path) -> Command {
    let mut ssh = Command::new("ssh");
    for option in [
        "BatchMode=yes",
        "ConnectTimeout=60",
        "LogLevel=ERROR",
        "ServerAliveInterval=10",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
    ] {
        ssh.args(["-o", option]);
    }
    ssh.args(["-F", "none", "-p", &SSH_PORT.to_string(), "-i"])
        .arg(key)
        .arg("root@127.0.0.1");
    ssh
}
