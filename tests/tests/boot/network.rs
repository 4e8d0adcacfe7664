//! The running system's network is its own business: a boot with latchkey leaves nothing that a boot without it would
//! not have.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::initramfs::START;
use latchkey_tests::machine::{Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};
use serde_json::Value;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "the network after an unattended boot is that of a boot without latchkey",
        play: unattended,
    },
    Scenario {
        name: "the network after kill -9 of the agent is that of a boot without latchkey",
        play: killed,
    },
];

const LIMIT: Duration = Duration::from_secs(240);

pub fn unattended(stage: &Stage) -> Outcome {
    let control = without_latchkey(stage)?;
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let spec = stage
        .bound_machine(&stage.bound_disk()?, "latchkey")
        .systemd();
    let mut machine = Machine::start(&spec)?;
    machine.expect("'vda2_crypt' was opened automatically", LIMIT)?;
    let network = settled(&mut machine)?;
    machine.power_off()?;
    compare(&control, &network)
}

fn killed(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools("Its killer is written for the shell of initramfs-tools.")?;
    let control = without_latchkey(stage)?;
    let boot = stage
        .bound()?
        .boot
        .with_files(stage.folder(), &[(START, KILLER.as_bytes())])?;
    let spec = stage
        .bound_machine(&stage.bound_disk()?, "killed")
        .direct(&boot)
        .systemd();
    let mut machine = Machine::start(&spec)?;
    machine.expect(stage.prompt(), LIMIT)?;
    machine.expect("RIG: killing the agent", LIMIT)?;
    machine.expect("RIG: at the native prompt, boot keys: 0", LIMIT)?;
    machine.console.type_line(PASSPHRASE)?;
    machine.expect("vda2_crypt: set up successfully", LIMIT)?;
    let network = settled(&mut machine)?;
    machine.power_off()?;
    compare(&control, &network)
}

/// Kills the agent when its network is up and its prompt stands, and counts the boot keys that are left when the
/// native prompt stands.
const KILLER: &str = r#"
(
    until [ -s /run/latchkey/agent.pid ] && grep -q ^e /proc/net/route && pidof askpass; do sleep 1; done
    sleep 5
    echo 'RIG: killing the agent' >/dev/console
    kill -KILL "$(cat /run/latchkey/agent.pid)"
    until [ -e /run/latchkey/ended ] && pidof askpass; do sleep 1; done
    echo "RIG: at the native prompt, boot keys: $(ls /etc/latchkey/servers/*/boot.key | wc -l)" >/dev/console
) </dev/null >/dev/null 2>&1 &
"#;

fn without_latchkey(stage: &Stage) -> Result<Vec<(&'static str, Value)>, Failure> {
    let spec: Spec = stage
        .bound_machine(&stage.bound_disk()?, "control")
        .kernel_line("latchkey=off")
        .systemd();
    let mut machine = Machine::start(&spec)?;
    machine.answer(stage.native_prompt(), PASSPHRASE)?;
    let network = settled(&mut machine)?;
    machine.power_off()?;
    let addresses = &network[1].1;
    ensure(addresses.to_string().contains("10.0.2.15"), || {
        format!("the control boot has no network to compare with: {addresses}")
    })?;
    Ok(network)
}

/// What the running system's network is once it has settled: addresses of both protocols are there and checked.
fn settled(machine: &mut Machine) -> Result<Vec<(&'static str, Value)>, Failure> {
    machine.up()?;
    machine.check(
        "while systemctl is-system-running | grep -qE 'initializing|starting'; do sleep 1; done
         systemctl start ifup@ens3 # on a busy host udev may have missed the card; else this does nothing
         for second in $(seq 60); do
             ip -4 address show scope global | grep -q inet && ip -6 address show dev ens3 | grep -q 'inet6 fec0' &&
                 ! ip address | grep -q tentative && exit 0
             sleep 1
         done
         ip address; systemctl status ifup@ens3; exit 1",
    )?;
    let mut network = Vec::new();
    for (name, command) in [
        ("links", "ip -json link"),
        ("addresses", "ip -json address"),
        ("IPv4 routes", "ip -json -4 route show table all"),
        ("IPv6 routes", "ip -json -6 route show table all"),
        ("rules", "ip -json rule"),
    ] {
        let mut value: Value = serde_json::from_str(&machine.check(command)?)?;
        without_moments(&mut value);
        network.push((name, value));
    }
    let resolvers = machine.check("cat /etc/resolv.conf")?;
    network.push(("resolvers", resolvers.into()));
    Ok(network)
}

/// Drops what differs between any two boots, and the order of lists.
fn without_moments(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for moment in [
                "valid_life_time",
                "preferred_life_time",
                "expires",
                "ifindex",
            ] {
                fields.remove(moment);
            }
            fields.values_mut().for_each(without_moments);
        }
        Value::Array(items) => {
            items.iter_mut().for_each(without_moments);
            items.sort_by_key(Value::to_string);
        }
        _ => {}
    }
}

fn compare(control: &[(&str, Value)], network: &[(&str, Value)]) -> Outcome {
    for ((name, expected), (_, found)) in control.iter().zip(network) {
        ensure(expected == found, || {
            format!("{name} differ\nwithout latchkey: {expected}\nwith latchkey:    {found}")
        })?;
    }
    Ok(())
}
