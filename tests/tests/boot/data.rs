//! A data volume that the running system opens: the key server is away, and nothing of the boot waits for it.

use std::fs::File;
use std::time::Duration;

use latchkey_tests::bound::{self, PORT};
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "a data volume opens in the running system when its key server is back, and the boot does not wait for it; K7, K8 what \
           somebody else opened is open, a name that is taken is not",
    play: data_volume,
}];

const LIMIT: Duration = Duration::from_secs(300);

/// A volume that only bind has still to be told of, its mount, and a service that needs it.
const PREPARE: &str = "\
    set -e
    exec 2>&1
    disk=/dev/disk/by-id/virtio-data0
    printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 \\
        --pbkdf-force-iterations 1000 --key-file - $disk
    printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - $disk my-data
    mkfs.ext4 -q /dev/mapper/my-data
    mkdir /srv/data
    mount /dev/mapper/my-data /srv/data
    echo 'this is the data' > /srv/data/file
    umount /srv/data
    echo '/dev/mapper/my-data /srv/data ext4 _netdev,nofail 0 2' >> /etc/fstab
    cat > /etc/systemd/system/needs-data.service <<UNIT
[Unit]
RequiresMountsFor=/srv/data
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/cp /srv/data/file /run/copied
[Install]
WantedBy=multi-user.target
UNIT
    systemctl enable needs-data.service
    before=$(stat -c %Y /boot/initrd.img-*)
    printf %s \"$PASSPHRASE\" | latchkey bind $disk --name my-data --options luks,_netdev,nofail --key-file -
    [ \"$before\" = \"$(stat -c %Y /boot/initrd.img-*)\" ]
    systemctl is-enabled 'latchkey@my\\x2ddata.service'
    cat /etc/crypttab
    latchkey list";

/// The boot is over, and nothing has failed.
const BOOTED: &str = "\
    state=$(systemctl is-system-running --wait)
    [ \"$state\" = running ] && systemctl is-active --quiet multi-user.target && exit 0
    echo \"$state\"
    systemctl list-jobs
    systemctl --failed
    exit 1";

/// The service that needs the mount has started.
const FOLLOWED: &str = "\
    for second in $(seq 120); do
        systemctl is-active --quiet needs-data.service && break
        sleep 1
    done
    systemctl is-active needs-data.service srv-data.mount 'systemd-cryptsetup@my\\x2ddata.service' &&
        cat /run/copied && exit 0
    systemctl status --no-pager --full 'latchkey@my\\x2ddata.service' srv-data.mount needs-data.service
    journalctl --boot --no-pager --lines 60
    exit 1";

/// The volume is open and fstab's mount on it there; then the service is started by hand.
const STARTED: &str = "\
    for second in $(seq 120); do
        mountpoint -q /srv/data && break
        sleep 1
    done
    systemctl start needs-data.service";

/// Nothing is open any more.
const CLOSED: &str = "\
    [ ! -e /dev/mapper/my-data ] && ! mountpoint -q /srv/data && ! systemctl is-active --quiet needs-data && exit 0
    dmsetup ls
    systemctl status --no-pager --full 'latchkey@my\\x2ddata.service' srv-data.mount needs-data.service
    exit 1";

fn data_volume(stage: &Stage) -> Outcome {
    let (mut server, archive) = stage.own_installation()?;
    server.start(PORT)?;
    let disk = stage.plain_disk()?;
    let data = stage.folder().join("data.raw");
    File::create(&data)?.set_len(64 << 20)?;
    let spec = |boot: &str| stage.machine(&disk, boot).systemd().data_disk(&data);
    bind(stage, &spec("bind").payload(&archive), &server)?;

    server.stop()?;
    let mut machine = boot(stage, &spec("away"))?;
    let said = status(&mut machine)?;
    ensure(said.contains("no key server answers, trying on"), || {
        format!("systemctl status says '{said}'")
    })?;
    machine.check(CLOSED)?;
    // Ten minutes, longer than systemd waits for any device, and the network goes and comes meanwhile.
    machine.check_within(
        "ifdown --force ens3; sleep 5; ifup ens3; sleep 595",
        Duration::from_secs(900),
    )?;
    machine.check(CLOSED)?;
    server.start(PORT)?;
    let said = machine.check_within(FOLLOWED, LIMIT)?;
    ensure(said.contains("this is the data"), || said.clone())?;
    let said = status(&mut machine)?;
    ensure(said.contains("open: key server"), || said.clone())?;
    by_hand(&mut machine, &mut server)?;
    taken(&mut machine, &mut server)?;
    machine.power_off()?;
    let console = std::fs::read(stage.logs().join("away.log"))?;
    let console = String::from_utf8_lossy(&console);
    for hang in ["A stop job is running", "Failed unmounting"] {
        ensure(!console.contains(hang), || {
            format!("the shutdown says '{hang}'")
        })?;
    }

    server.start(PORT)?;
    let mut machine = boot(stage, &spec("there"))?;
    machine.check_within(FOLLOWED, LIMIT)?;
    machine.power_off()?;
    let audit = server.admin(&["audit", "--kind", "opened"])?;
    ensure(audit.contains("as the policy allows"), || audit.clone())
}

/// Makes the volume in a machine that has joined, and binds it.
fn bind(stage: &Stage, spec: &Spec, server: &KeyServer) -> Outcome {
    let mut machine = boot(stage, spec)?;
    bound::install_and_join(&mut machine, server, stage.flavour())?;
    let said = machine.check(&format!("PASSPHRASE='{PASSPHRASE}'\n{PREPARE}"))?;
    for text in ["opened in the running system", "this line was added"] {
        ensure(said.contains(text), || said.clone())?;
    }
    // What was opened by hand is taken over: it can be mounted now, and is closed in order.
    machine.check_within("systemctl start srv-data.mount", LIMIT)?;
    machine.power_off()?;
    Ok(())
}

fn by_hand(machine: &mut Machine, server: &mut KeyServer) -> Outcome {
    let unit = r"'latchkey@my\x2ddata.service'";
    machine.check(&format!("systemctl stop {unit}"))?;
    machine.check(CLOSED)?;
    for verb in ["start", "restart"] {
        machine.check(&format!("systemctl {verb} {unit}\n{STARTED}"))?;
        machine.check_within(FOLLOWED, LIMIT)?;
    }
    // Without key server a person can type, beside it.
    server.stop()?;
    machine.check(&format!("systemctl stop {unit}; systemctl start {unit}"))?;
    machine.check(CLOSED)?;
    machine.check(&format!(
        "for second in $(seq 60); do
             socket=$(sed -n 's/^Socket=//p' /run/systemd/ask-password/ask.latchkey-* 2>/dev/null) && break
             sleep 1
         done
         printf %s '{PASSPHRASE}' | /lib/systemd/systemd-reply-password 1 \"$socket\"
         {STARTED}"
    ))?;
    machine.check_within(FOLLOWED, LIMIT)?;
    let said = status(machine)?;
    ensure(said.contains("a passphrase was typed"), || said.clone())
}

/// Rows K7 and K8: somebody else opens the volume, or gives its name to something else.
fn taken(machine: &mut Machine, server: &mut KeyServer) -> Outcome {
    let unit = r"'latchkey@my\x2ddata.service'";
    let again = format!("systemctl stop {unit}; systemctl start {unit}");
    machine.check(&format!(
        "{again}
         printf %s '{PASSPHRASE}' |
             cryptsetup open --key-file - /dev/disk/by-id/virtio-data0 my-data
         {STARTED}"
    ))?;
    machine.check_within(FOLLOWED, LIMIT)?;
    machine.check(&format!("systemctl stop {unit}"))?;
    machine.check(CLOSED)?;

    server.start(PORT)?;
    let said = machine.check_within(
        &format!(
            "dmsetup create my-data --table '0 8 zero'; systemctl start {unit}
             until said=$(systemctl show --value --property StatusText {unit}); echo \"$said\" | grep -q 'has the name'; do
                 sleep 1
             done
             echo \"$said\""
        ),
        LIMIT,
    )?;
    ensure(
        said.contains("a mapping that encrypts nothing has the name 'my-data'"),
        || format!("systemctl status says '{said}'"),
    )?;
    machine.check("dmsetup table my-data | grep zero && ! mountpoint -q /srv/data")?;
    machine.check(&format!("dmsetup remove my-data\n{STARTED}"))?;
    machine.check_within(FOLLOWED, LIMIT)?;
    Ok(())
}

/// A machine that is up, with all of its boot done.
fn boot(stage: &Stage, spec: &Spec) -> Result<Machine, Failure> {
    let mut machine = Machine::start(spec)?;
    stage.note(stage.first_boot(&mut machine)?);
    machine.check_within(BOOTED, LIMIT)?;
    Ok(machine)
}

fn status(machine: &mut Machine) -> Result<String, Failure> {
    let unit = r"'latchkey@my\x2ddata.service'";
    Ok(machine.check(&format!(
        "systemctl show --value --property StatusText {unit}"
    ))?)
}
