//! The agent's traces in `/run/latchkey`, for the boot scripts and for the running system. No secrets.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use latchkey_protocol::wire::BootReport;
use latchkey_secret::guardian;
use nix::unistd::Pid;

use crate::files::{self, Files, FilesError};

/// A file for each volume that the agent holds.
const HELD: &str = "held";
/// Names of mappings, by lines.
const BEGUN: &str = "begun-automatically";
const OPENED: &str = "opened-automatically";

/// The folder `/run/latchkey`.
#[derive(Debug, Clone)]
pub struct Runtime {
    dir: PathBuf,
}

impl Runtime {
    /// The folder below the root of `files`; made by [`Runtime::begin`].
    pub fn of(files: &Files) -> Self {
        Self {
            dir: files.runtime(),
        }
    }

    /// Makes the folder and leaves this process's id there, and which volumes the native unlockers are to wait for.
    ///
    /// # Errors
    /// `Write`.
    pub fn begin<'a>(&self, held: impl IntoIterator<Item = &'a str>) -> Result<(), FilesError> {
        files::make_dir(&self.dir)?;
        files::make_dir(&self.dir.join(HELD))?;
        for name in held {
            self.write(&format!("{HELD}/{name}"), b"")?;
        }
        self.write("agent.pid", format!("{}\n", std::process::id()).as_bytes())
    }

    /// The native unlocker need not wait for this volume any more: it is open, or the native unlocker's business.
    ///
    /// # Errors
    /// `Write`.
    pub fn hand_over(&self, name: &str) -> Result<(), FilesError> {
        files::remove(&self.dir.join(HELD).join(name))
    }

    /// Whether the native unlocker is to wait for this volume while the agent lives.
    pub fn holds(&self, name: &str) -> bool {
        self.dir.join(HELD).join(name).exists()
    }

    /// The volumes that the native unlocker is to wait for.
    pub fn held(&self) -> Vec<String> {
        let held = fs::read_dir(self.dir.join(HELD));
        held.into_iter()
            .flatten()
            .flatten()
            .filter_map(|file| file.file_name().into_string().ok())
            .collect()
    }

    /// Leaves the process id of the guardian, which wipes the agent's memory after its end.
    ///
    /// # Errors
    /// `Write`.
    pub fn set_guardian(&self, guardian: i32) -> Result<(), FilesError> {
        self.write("guardian.pid", format!("{guardian}\n").as_bytes())
    }

    /// The agent that wrote its id, if it lives.
    pub fn agent(&self) -> Option<Pid> {
        self.process("agent.pid", "latchkey")
    }

    /// The agent's guardian, if it lives.
    pub fn guardian(&self) -> Option<Pid> {
        self.process("guardian.pid", guardian::NAME.to_str().ok()?)
    }

    fn process(&self, file: &str, name: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.dir.join(file)).ok()?;
        let pid = text.trim().parse().ok().filter(|pid| *pid > 1)?;
        // The number may be another process's by now.
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (comm.trim_end() == name).then(|| Pid::from_raw(pid))
    }

    /// Whether the agent has nothing to do but wait for devices.
    pub fn set_waiting_for_devices(&self, waiting: bool) -> Result<(), FilesError> {
        if waiting {
            self.write("waiting-for-devices", b"")
        } else {
            files::remove(&self.dir.join("waiting-for-devices"))
        }
    }

    /// See [`Runtime::set_waiting_for_devices`].
    pub fn is_waiting_for_devices(&self) -> bool {
        self.dir.join("waiting-for-devices").exists()
    }

    /// Notes that the mapping `name` is about to be made automatically: if the agent dies meanwhile, it may stand.
    pub fn begin_automatic(&self, name: &str) -> Result<(), FilesError> {
        let begun = self.begun_automatically();
        self.write_names(BEGUN, begun.iter().map(String::as_str).chain([name]))
    }

    /// Notes that it was not made after all, or is gone: what bears the name from now on was made by somebody else.
    pub fn refuse_automatic(&self, name: &str) -> Result<(), FilesError> {
        for file in [OPENED, BEGUN] {
            let names = self.names(file);
            let others = names.iter().filter(|one| *one != name);
            self.write_names(file, others.map(String::as_str))?;
        }
        Ok(())
    }

    /// Notes that it was made: its header and volume key are the bound ones.
    pub fn end_automatic(&self, name: &str) -> Result<(), FilesError> {
        let opened = self.opened_automatically();
        self.write_names(OPENED, opened.iter().map(String::as_str).chain([name]))
    }

    /// The mappings that were opened automatically, or may have been.
    pub fn begun_automatically(&self) -> Vec<String> {
        self.names(BEGUN)
    }

    /// The mappings that were opened automatically.
    pub fn opened_automatically(&self) -> Vec<String> {
        self.names(OPENED)
    }

    fn names(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn write_names<'a>(
        &self,
        file: &str,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<(), FilesError> {
        let names: BTreeSet<_> = names.collect();
        let text: String = names.iter().map(|name| format!("{name}\n")).collect();
        self.write(file, text.as_bytes())
    }

    /// Leaves the report for the running system.
    pub fn leave_report(&self, report: &BootReport) -> Result<(), FilesError> {
        let json = serde_json::to_vec(report).map_err(|error| FilesError::Write {
            path: self.dir.join("report.json"),
            source: error.into(),
        })?;
        self.write("report.json", &json)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), FilesError> {
        files::replace(&self.dir.join(name), content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found_again() {
        let root = tempfile::tempdir().unwrap();
        let runtime = Runtime::of(&Files::under(root.path()));
        assert_eq!(runtime.agent(), None);
        runtime.begin(["a", "b"]).unwrap();
        assert!(runtime.holds("a") && !runtime.holds("c"));
        runtime.hand_over("a").unwrap();
        runtime.hand_over("c").unwrap();
        assert!(!runtime.holds("a") && runtime.holds("b"));
        assert!(!runtime.is_waiting_for_devices());
        runtime.set_waiting_for_devices(true).unwrap();
        assert!(runtime.is_waiting_for_devices());
        runtime.set_waiting_for_devices(false).unwrap();
        runtime.set_waiting_for_devices(false).unwrap();
        assert!(!runtime.is_waiting_for_devices());
        for name in ["b", "a", "c", "b"] {
            runtime.begin_automatic(name).unwrap();
        }
        runtime.end_automatic("b").unwrap();
        runtime.refuse_automatic("c").unwrap();
        assert_eq!(runtime.begun_automatically(), ["a", "b"]);
        assert_eq!(runtime.opened_automatically(), ["b"]);
        runtime.refuse_automatic("a").unwrap();
        runtime.refuse_automatic("a").unwrap();
        assert_eq!(runtime.begun_automatically(), ["b"]);
        runtime.refuse_automatic("b").unwrap();
        assert!(runtime.opened_automatically().is_empty());
    }
}
