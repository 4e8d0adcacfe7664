//! Whether udev has finished with a network interface: until then it may still be renamed, and a name cannot be
//! changed while the interface is up.
//!
//! udev writes `/run/udev/data/n<index>` when it has initialised an interface (sd-device uses the same sign).

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe;

/// Where udev notes what it has done.
#[derive(Debug)]
pub struct Udev {
    run: PathBuf,
    watch: Option<Watch>,
    watched: Option<PathBuf>,
}

#[derive(Debug)]
struct Watch {
    inotify: Inotify,
    /// The same inotify instance, for tokio, which has no type of its own for it; all that is done with it is to
    /// wait and read.
    events: pipe::Receiver,
}

impl Watch {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events =
            pipe::Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Self { inotify, events })
    }
}

impl Udev {
    /// Starts to watch below `root`. Must be called on a tokio runtime with I/O.
    pub fn watch(root: &Path) -> Self {
        let mut udev = Self {
            run: root.join("run/udev"),
            // Without inotify there is still the slow tick.
            watch: Watch::new().ok(),
            watched: None,
        };
        udev.rearm();
        udev
    }

    /// Whether the interface may be touched: udev has finished with it, or there is no udev.
    pub fn has_finished(&self, index: u32) -> bool {
        !self.run.join("control").exists() || self.run.join(format!("data/n{index}")).exists()
    }

    /// Waits until something changed where udev keeps its notes.
    pub async fn changed(&mut self) {
        self.rearm();
        let Some(watch) = &self.watch else {
            return std::future::pending().await;
        };
        let mut events = [0; 4096];
        let mut found = false;
        // Read until it is empty: only then is the next wake-up a new one.
        loop {
            match watch.events.try_read(&mut events) {
                Ok(_) => found = true,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return std::future::pending().await;
                }
                Err(_) if found => return,
                Err(_) => {
                    if watch.events.readable().await.is_err() {
                        return std::future::pending().await;
                    }
                }
            }
        }
    }

    /// To be called before looking at [`Self::has_finished`], so that nothing falls between looking and waiting.
    pub fn rearm(&mut self) {
        let Some(watch) = &self.watch else { return };
        let data = self.run.join("data");
        let parents = [
            Some(data.as_path()),
            Some(self.run.as_path()),
            self.run.parent(),
        ];
        let Some(folder) = parents.into_iter().flatten().find(|folder| folder.is_dir()) else {
            return;
        };
        if self.watched.as_deref() == Some(folder) {
            return;
        }
        let wanted =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        if watch.inotify.add_watch(folder, wanted).is_ok() {
            self.watched = Some(folder.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_runtime(test: impl AsyncFnOnce()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    }

    #[test]
    fn without_udev_every_interface_may_be_touched() {
        on_runtime(async || {
            let root = tempfile::tempdir().unwrap();
            assert!(Udev::watch(root.path()).has_finished(2));
        });
    }

    #[test]
    fn with_udev_its_note_is_waited_for() {
        on_runtime(async || {
            let root = tempfile::tempdir().unwrap();
            let run = root.path().join("run/udev");
            std::fs::create_dir_all(&run).unwrap();
            std::fs::write(run.join("control"), "").unwrap();
            let mut udev = Udev::watch(root.path());
            assert!(!udev.has_finished(2));

            std::fs::create_dir(run.join("data")).unwrap();
            udev.changed().await;
            std::fs::write(run.join("data/new"), "").unwrap();
            // The folder appeared after the watch began, so a note made before it was watched is only seen by looking.
            udev.rearm();
            std::fs::rename(run.join("data/new"), run.join("data/n2")).unwrap();
            udev.changed().await;
            assert!(udev.has_finished(2));
            assert!(!udev.has_finished(3));
        });
    }
}
