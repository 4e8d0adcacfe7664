//! `latchkeyd.service` as an administrator runs it, under Debian's systemd, on disks that fail.

use latchkey_tests::bound::PORT;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "latchkeyd under systemd in its sandbox survives a reload, a kill, a full and a read-only disk",
    play: under_systemd,
}];

/// The store gets a small file system of its own, with no blocks kept back for root.
const SET_UP: &str = "set -e
    truncate -s 8M /var/store
    mke2fs -q -t ext4 -m 0 -O ^has_journal /var/store
    systemd-sysusers
    mkdir -p /var/lib/latchkeyd
    mount -o loop /var/store /var/lib/latchkeyd
    rmdir /var/lib/latchkeyd/lost+found
    chmod 0700 /var/lib/latchkeyd
    latchkeyd init --name 127.0.0.1
    systemctl enable --now latchkeyd";

fn under_systemd(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot").systemd())?;
    machine.up()?;
    machine.check(SET_UP)?;

    // Joins with the one command that the invitation is for.
    machine
        .check("set -e; latchkeyd invite db1 | latchkey join -; latchkeyd clients | grep db1")?;
    sandbox_holds(&mut machine)?;

    machine.check("systemctl reload latchkeyd && systemctl is-active latchkeyd")?;
    machine.check(
        "set -e
         before=$(systemctl show --value --property MainPID latchkeyd)
         kill -9 $before
         while :; do
             now=$(systemctl show --value --property MainPID latchkeyd)
             [ \"$now\" = 0 ] || [ \"$now\" = \"$before\" ] || [ ! -S /run/latchkeyd/admin.sock ] || break
             sleep 1
         done
         until latchkeyd clients | grep db1; do sleep 1; done",
    )?;

    machine.check(
        "dd if=/dev/zero of=/var/lib/latchkeyd/filler bs=4k 2>/dev/null; df /var/lib/latchkeyd",
    )?;
    let full = until_refused(&mut machine)?;
    ensure(
        full.contains("no space left for the store in '/var/lib/latchkeyd"),
        || full,
    )?;
    machine.check("set -e; systemctl is-active latchkeyd; latchkeyd clients | grep db1")?;
    machine.check(
        "set -e; rm /var/lib/latchkeyd/filler; latchkeyd invite after; latchkeyd audit --verify",
    )?;

    // What the kernel does to a file system after a disk error.
    machine.check("sync; echo u > /proc/sysrq-trigger; until grep '/var/lib/latchkeyd ext4 ro' /proc/mounts; do sleep 1; done")?;
    let read_only = until_refused(&mut machine)?;
    ensure(read_only.contains("is read-only"), || read_only)?;
    machine.check("set -e; systemctl is-active latchkeyd; latchkeyd clients | grep db1")?;
    Ok(())
}

/// The error of the first invitation that is refused; the store may have room of its own for a few.
fn until_refused(machine: &mut Machine) -> Result<String, Failure> {
    Ok(machine.check(
        "for try in $(seq 1000); do
             text=$(latchkeyd invite c$try 2>&1) || { echo \"$text\"; exit 0; }
         done
         exit 1",
    )?)
}

/// The process is what the unit says, seen from outside of it.
fn sandbox_holds(machine: &mut Machine) -> Outcome {
    let facts = machine.check(
        "pid=$(systemctl show --value --property MainPID latchkeyd)
         stat -c 'user %U' /proc/$pid
         grep -E '^(CapEff|NoNewPrivs|Seccomp|VmLck):' /proc/$pid/status
         stat -c 'key %U %a' /etc/latchkeyd/master.key
         stat -c 'store %U %a' /var/lib/latchkeyd
         stat -c 'files %U %a' /var/lib/latchkeyd/*
         nsenter -t $pid -m -- sh -c 'touch /var/lib/outside 2>&1; ls /home /root 2>&1'
         journalctl --unit latchkeyd --priority warning --quiet --no-pager",
    )?;
    for fact in [
        "user latchkeyd",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "key root 600",
        "store latchkeyd 700",
        "Read-only file system",
    ] {
        ensure(facts.contains(fact), || {
            format!("'{fact}' does not hold:\n{facts}")
        })?;
    }
    let locked = facts.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let nothing = locked.is_none_or(|size| size.trim() == "0 kB");
    ensure(!nothing, || format!("no memory is locked:\n{facts}"))
}
