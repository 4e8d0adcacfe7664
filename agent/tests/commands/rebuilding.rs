//! How images are rebuilt: whatever happens meanwhile, there is one to boot from.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::machine::{Machine, PASSPHRASE, Said, Server, Volume, run};

const KERNELS: [&str; 2] = ["6.1.0", "6.2.0"];

/// Lets `program` below the machine's root be this script.
fn program(machine: &Machine, program: &str, script: &str) {
    let path = machine.path(program);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// A machine whose images Debian's dracut builds, with an image of each kernel.
fn with_dracut(server: &Server) -> Machine {
    let machine = Machine::joined(&[server]);
    program(&machine, "etc/kernel/postinst.d/dracut", "");
    fs::create_dir(machine.path("boot")).unwrap();
    for kernel in KERNELS {
        fs::create_dir_all(machine.path("lib/modules").join(kernel)).unwrap();
        fs::write(machine.path(&format!("boot/vmlinuz-{kernel}")), "").unwrap();
        fs::write(machine.path(&format!("boot/initrd.img-{kernel}")), "old").unwrap();
    }
    machine
}

/// Binds, where dracut(8) is this script: it is called with `--force --quiet IMAGE KERNEL`.
fn bind(machine: &Machine, volume: &Volume, dracut: &str) -> Said {
    program(machine, "usr/bin/dracut", dracut);
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", machine.path("usr/bin").display());
    let bind = ["bind", volume.path(), "--key-file", "-"];
    run(machine.command(&bind).env("PATH", path), PASSPHRASE)
}

/// The files in /boot that are no kernels, with what is in them.
fn images(machine: &Machine) -> Vec<(String, String)> {
    let entries = fs::read_dir(machine.path("boot")).unwrap();
    let mut images: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .filter(|(name, _)| !name.starts_with("vmlinuz-"))
        .collect();
    images.sort();
    images
}

fn both(content: &str) -> [(String, String); 2] {
    KERNELS.map(|kernel| (format!("initrd.img-{kernel}"), content.to_owned()))
}

#[test]
fn an_image_that_dracut_cannot_write_leaves_the_one_from_before() {
    // As dracut does where /boot is full, and killed in the middle of it.
    for dracut in [
        "echo half >\"$3\"; rm -f \"$3\"; exit 1",
        "echo half >\"$3\"; kill -KILL $$",
        "exit 0",
    ] {
        let server = Server::start();
        let machine = with_dracut(&server);
        let volume = Volume::luks2();
        let said = bind(&machine, &volume, dracut);
        said.failed_saying(&["is bound, but the initramfs was not rebuilt"]);
        assert_eq!(images(&machine), both("old"), "{dracut}");
    }
}

#[test]
fn images_of_dracut_are_replaced_whole_with_the_mode_that_it_gives() {
    let server = Server::start();
    let machine = with_dracut(&server);
    fs::write(
        machine.path("boot/.initrd.img-5.0.0.latchkey-new"),
        "killed",
    )
    .unwrap();
    // A link, as to another file system that the boot loader reads.
    let [first, second] = KERNELS.map(|kernel| machine.path(&format!("boot/initrd.img-{kernel}")));
    fs::create_dir(machine.path("esp")).unwrap();
    fs::rename(&second, machine.path("esp/initrd")).unwrap();
    std::os::unix::fs::symlink(machine.path("esp/initrd"), &second).unwrap();
    let hook = "echo \"$1 $2 $(cat \"$2\")\" >>\"${0%/etc/*}/told\"";
    program(&machine, "etc/initramfs/post-update.d/loader", hook);
    let dracut = "[ -n \"$NO_POST_UPDATE_HOOKS\" ] && umask 077 && printf new >\"$3\"";
    bind(&machine, &Volume::luks2(), dracut).succeeded();
    assert_eq!(images(&machine), both("new"));
    assert!(second.is_symlink());
    let mode = fs::metadata(&first).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let told = fs::read_to_string(machine.path("told")).unwrap();
    let line = |(kernel, image)| format!("{kernel} {image} new\n");
    let images = [first.display(), second.display()];
    let expected: String = KERNELS.into_iter().zip(images).map(line).collect();
    assert_eq!(told, expected);
}

#[test]
fn the_builder_is_found_where_it_lies_without_path() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let rebuilt = machine.path("rebuilt");
    // It finds its own programs too.
    program(
        &machine,
        "usr/sbin/mkinitramfs",
        &format!("/bin/touch {}", rebuilt.display()),
    );
    program(&machine, "usr/sbin/update-initramfs", "mkinitramfs");
    let volume = Volume::luks2();
    let bind = ["bind", volume.path(), "--key-file", "-"];
    run(machine.command(&bind).env("PATH", "/nowhere"), PASSPHRASE).succeeded();
    assert!(rebuilt.exists());
}

#[test]
fn where_dracut_overwrites_images_the_error_says_to_look_for_them() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    bind(&machine, &Volume::luks2(), "exit 1").failed_saying(&[
        "'dracut --force --regenerate-all' failed",
        "see that '/boot' still has one for every kernel",
    ]);
}
