//! Log lines of the running system: to the journal where a service manager connects us to it, else to stderr.
//!
//! At boot the unlock flow logs by itself.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// Begins to log; everything of `level` and above.
pub fn start(level: LevelFilter) {
    let installed =
        connected_to_journal() && JournalLog::new().is_ok_and(|journal| journal.install().is_ok());
    if !installed {
        // It fails only if a logger is there already, which then is as good.
        let _ = log::set_logger(&Stderr);
    }
    log::set_max_level(level);
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // Libraries are heard only where something is wrong; their warnings are for their developers.
        let ours = record.target().starts_with("latchkey");
        if !self.enabled(record.metadata()) || !(ours || record.level() <= log::Level::Error) {
            return;
        }
        let sign = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        // Printing must never end the program: stderr may be gone.
        let _ = writeln!(std::io::stderr(), "latchkey: {sign}{}", record.args());
    }

    fn flush(&self) {}
}
