//! Tells the service manager that there is something new for the units of the running machine.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::files::Files;

/// Stops `latchkey.service`, until [`restart`]: what it remembers of keys that are lost is the original of whoever has a copy.
pub fn stop(files: &Files) {
    if !is_running(files) {
        return;
    }
    let ended = Command::new("systemctl")
        .args(["--quiet", "stop", "latchkey.service"])
        .stdin(Stdio::null())
        .status();
    if !ended.is_ok_and(|status| status.success()) {
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
        let ended = Command::new("systemctl")
            .args(["--no-block", "--quiet", verb, unit])
            .stdin(Stdio::null())
            .status();
        if !ended.is_ok_and(|status| status.success()) {
            log::warn!("failed to {verb} a service of latchkey\nrun: systemctl {verb} {unit}");
        }
    }
}

fn is_running(files: &Files) -> bool {
    files.root() == Path::new("/") && Path::new("/run/systemd/system").is_dir()
}
