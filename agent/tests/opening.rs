//! Data volumes that the running system opens: the real programs, the real key server, LUKS in plain files. The mapping
//! itself needs device-mapper, which only the boot tests have.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use common::machine::{Machine, PASSPHRASE, Said, Server, UUID, Volume};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A machine with a data volume that is bound for the running system.
fn bound(server: &Server) -> (Machine, Volume) {
    let machine = Machine::joined(&[server]);
    machine.write_crypttab("luks,_netdev,nofail");
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    // Without --no-initramfs: this machine has nothing that could build one.
    let arguments = ["bind", volume.path(), "--key-file", "-"];
    machine.latchkey(&arguments, PASSPHRASE).succeeded();
    (machine, volume)
}

/// `latchkey open`, as its unit runs it, and what it says, line by line.
struct Opening {
    child: Child,
    lines: BufReader<std::process::ChildStderr>,
}

impl Opening {
    fn of(machine: &Machine) -> Self {
        let mut command = machine.command(&["open", "root_crypt"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        Self { child, lines }
    }

    /// The first line that has `text`.
    #[track_caller]
    fn says(&mut self, text: &str) -> String {
        let mut said = String::new();
        loop {
            let begin = said.len();
            let read = self.lines.read_line(&mut said).unwrap();
            assert!(read > 0, "'{text}' is missing in: {said}");
            if said[begin..].contains(text) {
                return said[begin..].to_owned();
            }
        }
    }

    #[track_caller]
    fn ends_when_told(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn count(server: &Server, kind: &str) -> usize {
    let audit = server.admin(&["audit", "--kind", kind, "--json"]);
    audit.succeeded().out.lines().count()
}

#[test]
fn a_data_volume_is_bound_for_the_running_system_and_without_an_image() {
    let server = Server::start();
    let (machine, volume) = bound(&server);
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&machine.latchkey(arguments, "").succeeded().out).unwrap()
    };
    assert_eq!(json(&["list", "--json"])[0]["opened-in"], "running-system");
    let listed = machine.latchkey(&["list"], "").succeeded().out;
    assert!(listed.contains("opened in the running system"), "{listed}");
    let status = machine.latchkey(&["status"], "").succeeded().out;
    assert!(
        status.contains("systemctl status 'latchkey@root_crypt.service'"),
        "{status}"
    );
    let volumes = server.admin(&["volumes", "--json"]).succeeded().out;
    let volumes: Value = serde_json::from_str(&volumes).unwrap();
    // Nothing tells of an encrypted root below the test's folder.
    assert_eq!(volumes[0]["opened-by"], "exposed-host-key");
    // An image that is old is no trouble for a machine that needs none.
    let image = machine.path("boot/initrd.img-1");
    std::fs::create_dir_all(image.parent().unwrap()).unwrap();
    let old = std::fs::File::create(image).unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    machine.latchkey(&["status"], "").succeeded();
    let unbind = ["unbind", volume.path()];
    machine.latchkey(&unbind, "").succeeded();
    volume.opens_with_the_passphrase();
}

#[test]
fn the_key_server_is_told_whether_every_copy_of_the_disk_has_the_host_key() {
    let server = Server::start();
    let bound = |encrypt_root| {
        let machine = Machine::new();
        let name = format!("root-{encrypt_root}");
        machine
            .latchkey(&["join", "-"], &server.invite(&name))
            .succeeded();
        machine.write_crypttab("luks,initramfs");
        if encrypt_root {
            machine.encrypt_root();
        }
        let volume = Volume::luks2();
        machine.bind(&volume).succeeded()
    };
    let encrypted = bound(true);
    let exposed = bound(false);
    let warns = |said: &Said| said.err.contains("only the key server's policy");
    assert_eq!([warns(&encrypted), warns(&exposed)], [false, true]);
    let volumes = server.admin(&["volumes", "--json"]).succeeded().out;
    let volumes: Value = serde_json::from_str(&volumes).unwrap();
    for volume in volumes.as_array().unwrap() {
        let expected = match volume["client"].as_str().unwrap() {
            "root-true" => "boot-key",
            _ => "exposed-boot-key",
        };
        assert_eq!(volume["opened-by"], expected, "{volume}");
    }
}

#[test]
fn the_share_is_fetched_with_the_host_key_and_audited_as_what_it_is() {
    let server = Server::start();
    let (machine, _volume) = bound(&server);
    let mut opening = Opening::of(&machine);
    // The keyslot opened; device-mapper is what is missing here.
    opening.says("asking the key server");
    opening.says("failed to open");
    assert_eq!(count(&server, "opened"), 1);
    assert_eq!(count(&server, "released"), 0);
    assert!(machine.path("run/latchkey/waiting/root_crypt").exists());
    opening.ends_when_told();
    assert!(!machine.path("run/latchkey/waiting/root_crypt").exists());
}

#[test]
fn it_waits_for_a_key_server_that_is_away_and_asks_it_when_it_is_back() {
    let mut server = Server::start();
    let (machine, _volume) = bound(&server);
    server.stop();
    let mut opening = Opening::of(&machine);
    opening.says("no key server answers, trying on");
    server.serve();
    opening.says("failed to open");
    assert_eq!(count(&server, "opened"), 1);
    opening.ends_when_told();
}

#[test]
fn the_policy_is_followed_and_its_answer_told() {
    let server = Server::start();
    let (machine, _volume) = bound(&server);
    let policy = |rule: &str| {
        let name = ["policy", "web-1/root_crypt", rule];
        server.admin(&name).succeeded();
    };
    policy("deny");
    let mut opening = Opening::of(&machine);
    opening.says("the key server denied: the volume's policy denies every release");
    opening.ends_when_told();

    policy("ask");
    let mut opening = Opening::of(&machine);
    let line = opening.says("waiting for approval of request");
    let (_, rest) = line.split_once("request ").unwrap();
    let (id, code) = rest.split_once(", code ").unwrap();
    server.admin(&["approve", id, code.trim()]).succeeded();
    opening.says("failed to open");
    assert_eq!(count(&server, "opened"), 1);
    opening.ends_when_told();
}

#[test]
fn what_is_no_business_of_latchkeys_is_left_to_systemd_at_once() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    for (options, name, why) in [
        ("luks,_netdev,nofail", "root_crypt", "is not bound"),
        ("luks,_netdev,nofail,swap", "root_crypt", "option 'swap'"),
        ("luks", "other", "has no line 'other'"),
    ] {
        machine.write_crypttab(options);
        let said = machine.latchkey(&["open", name], "");
        assert_eq!(said.code, 4, "{}", said.err);
        assert!(said.err.contains(why), "{}", said.err);
        assert!(!machine.path("run/latchkey/waiting").join(name).exists());
    }
}

#[test]
fn a_device_that_comes_later_is_waited_for() {
    let server = Server::start();
    let (machine, volume) = bound(&server);
    let link = machine.path("dev/disk/by-uuid").join(UUID);
    std::fs::remove_file(&link).unwrap();
    let mut opening = Opening::of(&machine);
    opening.says("waiting for the device 'UUID=");
    std::thread::sleep(Duration::from_millis(10));
    std::os::unix::fs::symlink(volume.path(), &link).unwrap();
    opening.says("failed to open");
    opening.ends_when_told();
}

#[test]
fn a_header_on_a_device_that_comes_later_is_waited_for() {
    let server = Server::start();
    let (machine, volume) = bound(&server);
    machine.write_crypttab("luks,_netdev,nofail,header=/dev/header");
    let mut opening = Opening::of(&machine);
    opening.says("waiting for the header's device '/dev/header'");
    std::os::unix::fs::symlink(volume.path(), machine.path("dev/header")).unwrap();
    // A header that is somewhere else now is another volume, but it was read.
    opening.says("the volume is one with a detached header, bound was LUKS2");
    opening.ends_when_told();
}

#[test]
fn a_key_server_that_wants_to_be_left_alone_is_while_another_is_away() {
    let mut away = Server::start();
    let slow = Server::start();
    let machine = Machine::joined(&[&away, &slow]);
    machine.write_crypttab("luks,_netdev,nofail");
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    let arguments = ["bind", volume.path(), "--key-file", "-"];
    machine.latchkey(&arguments, PASSPHRASE).succeeded();
    let deny = ["policy", "web-1/root_crypt", "deny"];
    slow.admin(&deny).succeeded();
    away.stop();
    let mut opening = Opening::of(&machine);
    opening.says("the key server denied");
    // The one that is away is tried again until it is there.
    away.serve();
    opening.says("failed to open");
    assert_eq!(slow.log().matches("asked for volume").count(), 1);
    opening.ends_when_told();
}
