//! Tells systemd how the daemon stands: sd_notify(3) without its library. Without `NOTIFY_SOCKET` nothing happens.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::time::{ClockId, clock_gettime};

/// The daemon answers requests.
pub fn ready() {
    send("READY=1");
}

/// The configuration is being read again; followed by [`ready`].
pub fn reloading() {
    // systemd 253 wants the time of a reload's begin.
    let microseconds = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1000
    });
    send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
}

/// The daemon finishes what runs and ends.
pub fn stopping() {
    send("STOPPING=1");
}

fn send(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        log::warn!("failed to tell systemd '{state}': {error}");
    }
}
