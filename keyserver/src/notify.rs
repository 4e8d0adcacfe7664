//! Tells systemd how the daemon stands (sd_notify(3)). Without `NOTIFY_SOCKET` nothing happens.

use sd_notify::NotifyState;

/// The daemon answers requests.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The configuration is being read again; followed by [`ready`].
pub fn reloading() {
    // systemd 253 wants the time of a reload's begin.
    let begin = NotifyState::monotonic_usec_now();
    let states = [NotifyState::Reloading].into_iter().chain(begin);
    send(&states.collect::<Vec<_>>());
}

/// The daemon finishes what runs and ends.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("failed to tell systemd how the daemon stands: {error}");
    }
}
