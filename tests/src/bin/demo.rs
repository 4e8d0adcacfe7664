//! `make demo`: a key server and a virtual machine with an encrypted root. The machine joins, is bound, reboots
//! unattended; then the key server goes away, and it boots by its passphrase. Everything runs through the machine's
//! own boot loader and the initramfs that `latchkey bind` built in it.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use latchkey_tests::bound::{self, PORT};
use latchkey_tests::failure;
use latchkey_tests::flavour::Flavour;
use latchkey_tests::guest::{self, PASSPHRASE};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::layout::Layout;
use latchkey_tests::machine::{Disk, Machine, PATIENCE, Spec, UP};
use latchkey_tests::network;
use latchkey_tests::product::Product;

/// The machine that it shows.
const FLAVOUR: Flavour = Flavour::DEBIAN12;
const PROMPT: &str = FLAVOUR.prompt();

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failure::explain("the demo", &*error);
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<(), Box<dyn Error>> {
    let begin = Instant::now();
    let folder = tempfile::Builder::new()
        .prefix("latchkey-demo-")
        .tempdir()?;
    let product = Product::install(folder.path())?;
    step(
        begin,
        "a Debian 12 machine with an encrypted root (made once, then cached)",
    );
    let guest = guest::guest(FLAVOUR, Layout::Root)?;
    network::enter_own()?;

    step(
        begin,
        "a key server on this host; the machine reaches it as 10.0.2.2",
    );
    let names = bound::names();
    let mut server = KeyServer::init(&product.latchkeyd(), &folder.path().join("server"), &names)?;
    server.start(PORT)?;
    host(&format!(
        "latchkeyd init --name {} --name {}",
        names[0], names[1]
    ));
    host("latchkeyd serve");

    step(
        begin,
        "the machine as it was: it boots and asks for the passphrase",
    );
    let archive = folder.path().join("installed.tar");
    product.archive(&archive)?;
    let disk = Disk::over(&guest.disk, &folder.path().join("disk.qcow2"))?;
    let log = folder.path().join("console.log");
    let mut machine = Machine::start(&Spec::new(&disk, &log).systemd().payload(&archive))?;
    machine.answer(PROMPT, PASSPHRASE)?;
    println!("    {PROMPT}******");
    machine.up()?;

    step(
        begin,
        "it gets what 'make install' installs, joins the key server, and its root is bound",
    );
    println!(
        "{}",
        indent(&bound::join_and_bind(&mut machine, &server, FLAVOUR)?)
    );

    step(begin, "it reboots, and nobody is there");
    machine.reboot()?;
    unattended(&mut machine)?;
    println!("{}", indent(&server.admin(&["audit"])?));

    step(begin, "the key server is stopped, and the machine reboots");
    server.stop()?;
    host("systemctl stop latchkeyd");
    machine.reboot()?;
    by_passphrase(&mut machine)?;

    machine.power_off()?;
    step(
        begin,
        "done: unattended with the key server, by passphrase without it",
    );
    Ok(())
}

/// The boot must reach the decrypted root without a prompt being answered.
fn unattended(machine: &mut Machine) -> Result<(), Box<dyn Error>> {
    machine.up()?;
    println!(
        "    it is up, and nobody typed anything; the timeline of that boot, by its kernel's clock:"
    );
    timeline(machine)
}

fn by_passphrase(machine: &mut Machine) -> Result<(), Box<dyn Error>> {
    let prompt = machine.expect(PROMPT, PATIENCE)?;
    println!("    {PROMPT}");
    println!("    nobody types for a while; it goes on trying the key server, and does not start");
    match machine.expect(UP, Duration::from_secs(15)) {
        Ok(_) => {
            return Err("the machine came up without key server and without passphrase".into());
        }
        Err(_) => println!("    now the passphrase is typed"),
    }
    machine.console.type_line(PASSPHRASE)?;
    let up = machine.up()?;
    println!(
        "    up {:.1} s after the prompt appeared; the timeline:",
        (up.host - prompt.host).as_secs_f64()
    );
    timeline(machine)
}

fn timeline(machine: &mut Machine) -> Result<(), Box<dyn Error>> {
    const MILESTONES: &str =
        "Linux version|Run /init|vda: vda1|latchkey:|EXT4-fs .dm-0.: mounted|RIG: up";
    println!(
        "{}",
        indent(&machine.check(&format!("dmesg | grep -E '{MILESTONES}' | cut -c 1-150"))?)
    );
    Ok(())
}

fn step(begin: Instant, text: &str) {
    println!("\n[{:3} s] {text}", begin.elapsed().as_secs());
}

fn host(command: &str) {
    println!("    host# {command}");
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
