//! Tells the service manager that there is something new for `latchkey.service`.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::files::Files;

/// Has `latchkey.service` begin anew, so that it sees a key server or a volume that was added. Where nothing but the boot
/// would start it (a chroot, an image being made, another service manager) nothing happens.
pub fn restart(files: &Files) {
    let running = files.root() == Path::new("/") && Path::new("/run/systemd/system").is_dir();
    if !running {
        return;
    }
    let ended = Command::new("systemctl")
        .args(["--no-block", "--quiet", "restart", "latchkey.service"])
        .stdin(Stdio::null())
        .status();
    if !ended.is_ok_and(|status| status.success()) {
        log::warn!("failed to start the service\nrun: systemctl start latchkey.service");
    }
}
