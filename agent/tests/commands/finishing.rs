//! The last steps of `bind`: the boot has to hear of what is bound.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::common::machine::{
    Machine, PASSPHRASE, Said, Server, UUID, Volume, bind_arguments, run,
};

/// Lets update-initramfs(8) be this script.
fn update_initramfs(machine: &Machine, script: &str) {
    let tool = machine.path("bin/update-initramfs");
    std::fs::create_dir_all(tool.parent().unwrap()).unwrap();
    std::fs::write(&tool, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Binds, and rebuilds the initramfs.
fn bind(machine: &Machine, volume: &Volume) -> Said {
    let bind = ["bind", volume.path(), "--key-file", "-", "--json"];
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", machine.path("bin").display());
    run(machine.command(&bind).env("PATH", path), PASSPHRASE)
}

fn status(machine: &Machine) -> (i32, Value) {
    let said = machine.latchkey(&["status", "--json"], "");
    (said.code, serde_json::from_str(&said.out).unwrap())
}

/// An image that is newer than all that was there before the volume was bound.
fn build_image(machine: &Machine) {
    let early = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let date = |path: &Path, time| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(time).unwrap();
    };
    date(&machine.server_dir().join("boot.key"), early);
    let network = machine.path("etc/latchkey/network.json");
    if network.exists() {
        date(&network, early);
    }
    let image = machine.path("boot/initrd.img-1");
    std::fs::create_dir_all(image.parent().unwrap()).unwrap();
    std::fs::write(&image, "").unwrap();
    date(&image, early + Duration::from_secs(1));
}

#[test]
fn an_image_that_was_not_rebuilt_is_seen_and_the_next_run_rebuilds_it() {
    for (script, code) in [("exit 1", 1), ("kill -TERM $PPID; sleep 1", -1)] {
        let server = Server::start();
        let machine = Machine::joined(&[&server]);
        let volume = Volume::luks2();
        machine.plug_in(&volume);
        update_initramfs(&machine, script);
        let said = bind(&machine, &volume);
        assert_eq!(said.code, code, "{script}: {}", said.err);
        assert_eq!(volume.count("tokens"), 1);
        // Who asked for it hears what was bound, if anybody can say it.
        let told: Option<Value> = serde_json::from_str(&said.out).ok();
        assert_eq!(told.is_some(), code == 1, "{script}: {}", said.out);
        build_image(&machine);
        let (code, seen) = status(&machine);
        assert_eq!(code, 3, "{script}: {seen}");
        let stale = seen["stale-images"].as_array().unwrap();
        assert_eq!(stale.len(), 1, "{script}: {seen}");

        update_initramfs(&machine, "exit 0");
        let said = bind(&machine, &volume).succeeded();
        let report: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(report["uuid"], UUID, "{script}");
        assert_eq!(report["servers"][0]["client"], "web-1", "{script}");
        assert!(told.is_none_or(|told| told == report), "{script}: {report}");
        assert_eq!(machine.state("bound-").len(), 0, "{script}");
        build_image(&machine);
        assert_eq!(status(&machine).0, 0, "{script}");
        bind(&machine, &volume).failed_saying(&["is bound already"]);
    }
}

#[test]
fn what_was_bound_and_not_finished_can_be_unbound() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    update_initramfs(&machine, "exit 1");
    bind(&machine, &volume).failed_saying(&["is bound, but the initramfs was not rebuilt"]);
    machine.unbind(&volume).succeeded();
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 0));
    // The headers from before stay, that of the binding and that of its end.
    assert_eq!(machine.state("header-").len(), 2);
    assert_eq!(machine.state("bound-").len(), 0);
    machine.bind(&volume).succeeded();
}

#[test]
fn what_an_unbind_left_to_do_is_seen_and_the_next_run_does_it() {
    for (script, code) in [("exit 1", 1), ("kill -TERM $PPID; sleep 1", -1)] {
        let server = Server::start();
        let machine = Machine::joined(&[&server]);
        let volume = Volume::luks2();
        machine.plug_in(&volume);
        machine.bind(&volume).succeeded();
        let unbind = || {
            let path = std::env::var("PATH").unwrap();
            let path = format!("{}:{path}", machine.path("bin").display());
            let unbind = ["unbind", volume.path()];
            run(machine.command(&unbind).env("PATH", path), "")
        };
        update_initramfs(&machine, script);
        let said = unbind();
        assert_eq!(said.code, code, "{script}: {}", said.err);
        assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 0));
        let (code, seen) = status(&machine);
        let problem = seen["volumes"][0]["problems"][0].as_str().unwrap();
        assert!(problem.contains("was interrupted"), "{script}: {problem}");
        assert_eq!(code, 3, "{script}: {seen}");

        let rebuilt = machine.path("rebuilt");
        update_initramfs(&machine, &format!("touch {}", rebuilt.display()));
        unbind().succeeded();
        assert!(rebuilt.exists(), "{script}");
        assert_eq!(status(&machine).0, 0, "{script}");
        unbind().failed_saying(&["is not bound"]);
    }
}

#[test]
fn an_image_that_is_older_than_an_envelope_file_is_stale() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::format(&["--type", "luks1"]);
    machine.plug_in(&volume);
    build_image(&machine);
    assert_eq!(status(&machine).0, 0);
    machine.bind(&volume).succeeded();
    build_image(&machine);
    let (code, seen) = status(&machine);
    assert_eq!(seen["stale-images"].as_array().unwrap().len(), 1, "{seen}");
    assert_eq!(code, 3);
}

/// What leaves a volume to the running system.
const LATE: &str = "luks,_netdev,nofail";

/// A machine with a volume that is not bound yet.
fn with_volume(server: &Server, options: &str) -> (Machine, Volume) {
    let machine = Machine::joined(&[server]);
    machine.write_crypttab(options);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    (machine, volume)
}

/// Leaves `report` as one that was killed before the unit was enabled: what lies there then is what is printed at the end.
fn leave(machine: &Machine, report: &str) -> PathBuf {
    let left = machine.path(&format!("var/lib/latchkey/bound-{UUID}.json"));
    std::fs::write(&left, report).unwrap();
    left
}

#[test]
fn a_data_volume_that_nothing_opens_is_seen_and_the_next_run_goes_on() {
    let server = Server::start();
    let (machine, volume) = with_volume(&server, LATE);
    let mut arguments = bind_arguments(&volume);
    arguments.push("--json");
    let report = machine.latchkey(&arguments, PASSPHRASE).succeeded().out;
    assert_eq!(status(&machine).0, 0);
    let left = leave(&machine, &report);
    let (code, seen) = status(&machine);
    assert_eq!(code, 3, "{seen}");
    let problem = seen["volumes"][0]["problems"][0].as_str().unwrap();
    assert!(problem.contains("nothing opens it"), "{problem}");
    let again = machine.latchkey(&arguments, PASSPHRASE).succeeded().out;
    assert_eq!(again, report);
    assert!(!left.exists());
    assert_eq!(status(&machine).0, 0);
}

#[test]
fn a_binding_for_the_running_system_is_not_finished_for_the_initramfs() {
    let server = Server::start();
    let (machine, volume) = with_volume(&server, LATE);
    let left = leave(&machine, &bind(&machine, &volume).succeeded().out);
    // The key server would refuse the boot key.
    machine.write_crypttab("luks,initramfs");
    update_initramfs(&machine, "exit 0");
    bind(&machine, &volume).failed_saying(&["is bound already"]);
    assert!(left.exists());
}

#[test]
fn an_image_that_somebody_else_is_to_rebuild_is_stale_until_it_is() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    machine.plug_in(&volume);
    build_image(&machine);
    machine.bind(&volume).succeeded();
    let (code, seen) = status(&machine);
    assert_eq!(
        (code, seen["stale-images"].as_array().unwrap().len()),
        (3, 1)
    );
    // Who rebuilds nothing again is told the same again.
    machine.bind(&volume).failed_saying(&["is bound already"]);
    std::fs::write(machine.path("boot/initrd.img-1"), "rebuilt").unwrap();
    assert_eq!(status(&machine).0, 0);
}

#[test]
fn a_data_volume_that_the_boot_needs_early_is_not_bound_for_the_running_system() {
    let server = Server::start();
    let (machine, volume) = with_volume(&server, LATE);
    let fstab = |options: &str| {
        let line = format!("/dev/mapper/root_crypt /srv ext4 {options} 0 2\n");
        std::fs::write(machine.path("etc/fstab"), line).unwrap();
    };
    fstab("defaults");
    machine
        .latchkey(&bind_arguments(&volume), PASSPHRASE)
        .failed_saying(&[
            "the boot needs '/srv' on",
            "nothing was changed",
            "write '_netdev,nofail'",
            "'initramfs' in place of '_netdev'",
        ]);
    assert_eq!((volume.count("keyslots"), volume.count("tokens")), (1, 0));
    fstab("_netdev,nofail");
    machine
        .latchkey(&bind_arguments(&volume), PASSPHRASE)
        .succeeded();
    assert_eq!(status(&machine).0, 0);
    fstab("defaults");
    let (code, seen) = status(&machine);
    assert_eq!(code, 3, "{seen}");
    let problem = seen["volumes"][0]["problems"][0].as_str().unwrap();
    assert!(problem.contains("left to systemd's prompt"), "{problem}");
}

#[test]
fn nothing_is_formatted_that_the_boot_needs_early() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::plain();
    let before = volume.bytes();
    let fstab = "/dev/mapper/data /srv ext4 defaults 0 2\n";
    std::fs::write(machine.path("etc/fstab"), fstab).unwrap();
    let mut arguments = bind_arguments(&volume);
    arguments.extend(["--format", "--name", "data", "--options", LATE]);
    machine
        .latchkey(&arguments, PASSPHRASE)
        .failed_saying(&["the boot needs '/srv' on", "nothing was changed"]);
    assert!(volume.bytes() == before, "it was formatted");
}

#[test]
fn a_volume_that_the_new_framework_leaves_out_is_seen() {
    let server = Server::start();
    let (machine, volume) = with_volume(&server, "luks,initramfs");
    machine.encrypt_root();
    machine.bind(&volume).succeeded();
    let problems = || -> Value {
        let listed = machine.latchkey(&["list", "--json"], "").succeeded().out;
        serde_json::from_str::<Value>(&listed).unwrap()[0]["problems"].clone()
    };
    assert_eq!(problems(), serde_json::json!([]));
    let dracut = machine.path("usr/bin/dracut");
    std::fs::create_dir_all(dracut.parent().unwrap()).unwrap();
    std::fs::write(dracut, "").unwrap();
    assert_eq!(
        problems(),
        serde_json::json!([
            "it is in no new image: this system's initramfs goes by 'x-initrd.attach' in crypttab, not 'initramfs'"
        ])
    );
    for word in ["x-initrd.attach", "force"] {
        machine.write_crypttab(&format!("luks,initramfs,{word}"));
        assert_eq!(problems(), serde_json::json!([]));
    }
}

#[test]
fn the_network_of_another_system_is_not_recorded() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let record = machine.path("etc/latchkey/network.json");
    std::fs::write(&record, "right").unwrap();
    machine.run_init_in("etc");
    let said = machine.bind(&Volume::luks2()).succeeded();
    assert_eq!(std::fs::read_to_string(&record).unwrap(), "right");
    assert!(said.err.contains("was not recorded"), "{}", said.err);
}
