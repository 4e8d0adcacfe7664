//! What systemd is told where it runs the agent (sd_notify(3)). Without `NOTIFY_SOCKET` nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// The agent is at work: whoever waits for it may begin to. For the gate: it has done its waiting.
pub fn ready() {
    send(&NotifyState::Ready);
}

/// What is being waited for, as `systemctl status` shows it.
pub fn status(line: &str) {
    send(&NotifyState::Status(line));
}

/// The start goes on; it may take so much longer before systemd takes it for hung.
pub fn still_starting(longer: Duration) {
    let microseconds = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
    send(&NotifyState::ExtendTimeoutUsec(microseconds));
}

fn send(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        log::warn!("failed to tell systemd: {error}");
    }
}
