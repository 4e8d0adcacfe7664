//! How much memory the agent needs at most, and the smallest machine that still boots with it and without.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::initramfs::START;
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{BootFiles, Disk, Machine, PATIENCE, Spec, UP};
use serde_json::{Value, json};

use crate::{Bench, Failure, PROMPT};

/// Says how much memory the agent had resident at most, as long as it lived (proc_pid_status(5), VmHWM).
const WATCHER: &str = r#"
(
    until [ -s /run/latchkey/agent.pid ]; do sleep 0.05; done
    pid=$(cat /run/latchkey/agent.pid)
    while [ -e /proc/$pid/exe ] && [ ! -e /run/latchkey/ended ]; do
        while read -r name size unit; do
            [ "$name" = VmHWM: ] && peak=$size
        done </proc/$pid/status
        sleep 0.05
    done
    echo "RIG: peak $peak kB" >/dev/console
) </dev/null >/dev/null 2>&1 &
"#;

/// Where the search for the smallest machine begins and ends, and how fine it is.
const LARGEST_MIB: u32 = 512;
const SMALLEST_MIB: u32 = 64;
const STEP_MIB: u32 = 8;
/// A machine that has too little hangs or panics.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// The agent's peak.
pub fn measure(bench: &Bench) -> Result<Value, Failure> {
    let _server = serve(bench)?;
    let peak = peak(bench)?;
    println!("the agent's peak: {peak} KiB");
    Ok(json!({ "agent-peak-kib": peak }))
}

/// The smallest machines.
pub fn measure_machines(bench: &Bench) -> Result<Value, Failure> {
    let _server = serve(bench)?;
    let plain = Disk::existing(&bench.plain.disk);
    let (plain, boot) = small_image(bench, &plain, "plain")?;
    let native = smallest(bench, &plain, &boot, true)?;
    let bound = Disk::existing(&bench.bound.disk);
    let (bound, boot) = small_image(bench, &bound, "bound")?;
    let latchkey = smallest(bench, &bound, &boot, false)?;
    Ok(json!({ "plain-mib": native, "latchkey-mib": latchkey }))
}

fn serve(bench: &Bench) -> Result<KeyServer, Failure> {
    let folder = bench.folder().join("server");
    let mut server = KeyServer::copy_of(&bench.latchkeyd(), &bench.bound.server, &folder)?;
    server.start(PORT)?;
    Ok(server)
}

fn peak(bench: &Bench) -> Result<u64, Failure> {
    let folder = tempfile::tempdir_in(bench.folder())?;
    let disk = Disk::over(&bench.bound.disk, &folder.path().join("disk.qcow2"))?;
    let boot = bench
        .bound
        .boot
        .with_files(folder.path(), &[(START, WATCHER.as_bytes())])?;
    let spec = Spec::new(&disk, &folder.path().join("console.log")).direct(&boot);
    let mut machine = Machine::start(&spec)?;
    machine.expect("RIG: peak ", PATIENCE)?;
    Ok(machine.console.take_until(" kB", PATIENCE)?.parse()?)
}

/// The disk of a guest in which an initramfs with the modules of this machine alone was made, and that initramfs. It is the disk
/// to boot: its header has the ticket that the key server expects after that boot.
fn small_image(bench: &Bench, base: &Disk, name: &str) -> Result<(Disk, BootFiles), Failure> {
    let folder = bench.folder().join(name);
    std::fs::create_dir(&folder)?;
    let disk = Disk::over(base.path(), &folder.join("disk.qcow2"))?;
    let mut machine = Machine::start(&Spec::new(&disk, &folder.join("console.log")).systemd())?;
    // The key server is there: the bound machine opens by itself.
    let texts = [PROMPT, UP];
    if machine.console.expect_any(&texts, PATIENCE)?.0 == 0 && name == "plain" {
        machine.console.type_line(PASSPHRASE)?;
    }
    machine.wait_ready()?;
    machine.check(
        "echo MODULES=dep > /etc/initramfs-tools/conf.d/modules && echo COMPRESSLEVEL=1 > /etc/initramfs-tools/conf.d/rig
         update-initramfs -u && sync",
    )?;
    machine.power_off()?;
    let boot = disk.boot_files(&folder)?;
    Ok((disk, boot))
}

/// MiB of the smallest machine that boots.
fn smallest(bench: &Bench, disk: &Disk, boot: &BootFiles, typed: bool) -> Result<u32, Failure> {
    if !comes_up(bench, disk, boot, LARGEST_MIB, typed)? {
        return Err(format!("a machine with {LARGEST_MIB} MiB does not boot").into());
    }
    let (mut boots, mut fails) = (LARGEST_MIB, SMALLEST_MIB);
    while boots - fails > STEP_MIB {
        let tried = (boots + fails) / 2 / STEP_MIB * STEP_MIB;
        let up = comes_up(bench, disk, boot, tried, typed)?;
        println!(
            "{tried} MiB, {}: {}",
            if typed { "plain" } else { "latchkey" },
            if up { "up" } else { "not enough" }
        );
        if up {
            boots = tried;
        } else {
            fails = tried;
        }
    }
    Ok(boots)
}

fn comes_up(
    bench: &Bench,
    disk: &Disk,
    boot: &BootFiles,
    mib: u32,
    typed: bool,
) -> Result<bool, Failure> {
    let folder = tempfile::tempdir_in(bench.folder())?;
    let disk = Disk::over(disk.path(), &folder.path().join("disk.qcow2"))?;
    let spec = Spec::new(&disk, &folder.path().join("console.log"))
        .direct(boot)
        .memory_mib(mib);
    let mut machine = Machine::start(&spec)?;
    let fatal = ["Kernel panic", "Out of memory", "(initramfs)"];
    if typed {
        let Ok((0, _)) = machine
            .console
            .expect_any(&[&[PROMPT], &fatal[..]].concat(), BOOT_LIMIT)
        else {
            return Ok(false);
        };
        machine.console.type_line(PASSPHRASE)?;
    }
    let ended = machine
        .console
        .expect_any(&[&[UP], &fatal[..]].concat(), BOOT_LIMIT);
    Ok(matches!(ended, Ok((0, _))))
}
