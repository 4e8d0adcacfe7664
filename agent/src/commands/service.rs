//! Tells the service manager that there is something new for the units of the running machine.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::chain;
use crate::files::{self, Files};
use crate::unit_name;

/// Stops `latchkey.service`, until [`restart`]: what it remembers of keys that are lost is the original of whoever has a copy.
pub fn stop(files: &Files) {
    if !is_running(files) {
        return;
    }
    if !systemctl(&["stop", "latchkey.service"]) {
        log::warn!(
            "failed to stop latchkey's service\nas long as it is connected nobody can approve: systemctl stop latchkey.service"
        );
    }
}

/// Has `latchkey.service` begin anew, so that it sees a key server or a volume that was added, and `latchkey-arm.service` if it
/// has not begun. Where nothing but the boot would start them (a chroot, an image being made, another service manager)
/// nothing happens.
pub fn restart(files: &Files) {
    if !is_running(files) {
        return;
    }
    for (verb, unit) in [
        ("restart", "latchkey.service"),
        ("start", "latchkey-arm.service"),
    ] {
        if !systemctl(&["--no-block", verb, unit]) {
            log::warn!("failed to {verb} a service of latchkey\nrun: systemctl {verb} {unit}");
        }
    }
}

/// Where an enabled unit is linked, by the `[Install]` section of `latchkey@.service`.
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";

/// Whether `latchkey@.service` opens a volume at each boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enabled {
    /// It does, or this is no system of which units are enabled.
    Yes,
    /// `systemctl enable` failed.
    No,
}

/// Has `latchkey@.service` open the volume `name` at each boot, and from now on.
pub fn enable(files: &Files, name: &str) -> Enabled {
    if files.root() != Path::new("/") {
        return Enabled::Yes;
    }
    let unit = unit_name::ours(name);
    reload(files); // our own generator may have masked it, for a line of fstab that is gone
    if !systemctl(&["enable", &unit]) {
        return Enabled::No;
    }
    log::info!("'{unit}' opens it at each boot");
    if is_running(files) && !systemctl(&["--no-block", "start", &unit]) {
        log::warn!("failed to start a service of latchkey\nrun: systemctl start '{unit}'");
    }
    Enabled::Yes
}

/// Lets systemd's generator hear of a new line of crypttab.
pub fn reload(files: &Files) {
    if is_running(files) && !systemctl(&["daemon-reload"]) {
        log::warn!("failed to tell systemd of the change\nrun: systemctl daemon-reload");
    }
}

/// Whether `latchkey@.service` opens the volume `name` at each boot.
pub fn is_enabled(files: &Files, name: &str) -> bool {
    files.root() == Path::new("/") && systemctl(&["is-enabled", &unit_name::ours(name)])
}

/// Has `latchkey@.service` open the volume `name` no more, in a chroot too. What is open stays open.
pub fn disable(files: &Files, name: &str) {
    if files.root() != Path::new("/") {
        return;
    }
    let unit = unit_name::ours(name);
    if !systemctl(&["disable", &unit]) {
        log::warn!("failed to disable a service of latchkey\nrun: systemctl disable '{unit}'");
    }
    // One that is masked systemctl passes over.
    if let Err(error) = files::remove(&Path::new(WANTS).join(unit)) {
        log::warn!("{}", chain(&error));
    }
}

/// Whether systemd runs this very system, so that there are units.
pub fn is_running(files: &Files) -> bool {
    files.root() == Path::new("/") && Path::new("/run/systemd/system").is_dir()
}

/// Whether `files` are those of the running system, and not of one that is set up or repaired from another, as in a chroot.
/// Where nobody can tell, they are not.
pub fn is_of_running_system(files: &Files) -> bool {
    let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (place(files.root()), place(&files.path("/proc/1/root"))) {
        (Ok(ours), Ok(of_init)) => ours == of_init,
        _ => false,
    }
}

/// Whether `systemctl` did as it was told.
pub fn systemctl(words: &[impl AsRef<OsStr>]) -> bool {
    let ended = Command::new("systemctl")
        .arg("--quiet")
        .args(words)
        .stdin(Stdio::null())
        .status();
    ended.is_ok_and(|status| status.success())
}
