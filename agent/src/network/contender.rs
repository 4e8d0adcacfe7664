//! Whether another program is about to configure the network: klibc's `ipconfig`, which the framework's own
//! scripts (dropbear's, for instance) run in the background. Two DHCP clients on one card would get into each
//! other's way, so ours lets it go first, for a while; what it sets up is then used as it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// ipconfig gives up its first attempts after about this time; a card without an address then is ours.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to look while it is awaited: a process that ends makes no event.
pub const AGAIN: Duration = Duration::from_millis(250);

/// Watches for the other program, from its making on.
#[derive(Debug)]
pub struct Contender {
    root: PathBuf,
    until: Instant,
}

impl Contender {
    /// Begins to be patient.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.into(),
            until: Instant::now() + PATIENCE,
        }
    }

    /// Whether to wait for it now.
    pub fn is_expected(&self) -> bool {
        Instant::now() < self.until && (self.runs() || self.will_run())
    }

    fn runs(&self) -> bool {
        let Ok(processes) = std::fs::read_dir(self.root.join("proc")) else {
            return false;
        };
        let mut names = processes
            .flatten()
            .filter_map(|process| std::fs::read(process.path().join("comm")).ok());
        names.any(|name| name == b"ipconfig\n")
    }

    /// dropbear's boot script starts it, and it leaves a file for each card that it configured.
    fn will_run(&self) -> bool {
        let is_result = |name: &str| name.starts_with("net-") && name.ends_with(".conf");
        let results = std::fs::read_dir(self.root.join("run"))
            .into_iter()
            .flatten()
            .flatten();
        self.root.join("scripts/init-premount/dropbear").exists()
            && !results
                .map(|entry| entry.file_name())
                .any(|name| is_result(&name.to_string_lossy()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_expected_while_it_runs_or_will_run() {
        for (case, files, expected) in [
            ("nothing", &[][..], false),
            ("other programs", &[("proc/7/comm", "dropbear\n")], false),
            ("it runs", &[("proc/7/comm", "ipconfig\n")], true),
            (
                "dropbear is there",
                &[("scripts/init-premount/dropbear", "")],
                true,
            ),
            (
                "it has finished",
                &[
                    ("scripts/init-premount/dropbear", ""),
                    ("run/net-eth0.conf", ""),
                ],
                false,
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            let mut contender = Contender::new(root.path());
            assert_eq!(contender.is_expected(), expected, "{case}");
            contender.until = Instant::now();
            assert!(!contender.is_expected(), "{case}: not for ever");
        }
    }
}
