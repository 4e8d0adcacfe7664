//! Log lines of the running system: to the journal where a service manager connects us to it, else to stderr.
//!
//! At boot the unlock flow tells people and the log by itself (`unlock::console`); what only helps to find a fault goes
//! through here.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Whether stderr is a console on which a prompt may stand.
static IS_BOOT: AtomicBool = AtomicBool::new(false);

/// Logs at debug level from here on, in an initramfs: to the journal where there is one, else to the kernel log. On a console
/// it would run through what is being typed.
pub fn debug_boot() {
    IS_BOOT.store(true, Ordering::Relaxed);
    log::set_max_level(LevelFilter::Debug);
}

/// Writes a line to the kernel log, if there is one.
pub fn kernel_log(line: &str) {
    // Level 7 (debug): kept by dmesg and the journal, not repeated on the console by the kernel. Opened for each line,
    // because the kernel takes ten lines in five seconds from each opening (printk_devkmsg) and drops the rest.
    let log = OpenOptions::new().write(true).open("/dev/kmsg");
    let _ = log.and_then(|mut log| log.write_all(format!("<7>latchkey: {line}\n").as_bytes()));
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
        if record.level() >= log::Level::Debug && IS_BOOT.load(Ordering::Relaxed) {
            return kernel_log(&record.args().to_string());
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
