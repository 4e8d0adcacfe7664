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
    let journal = connected_to_journal()
        .then(|| JournalLog::new().ok())
        .flatten();
    let logger: Box<dyn Log> = match journal {
        Some(logger) => Box::new(Ours {
            logger,
            others: LevelFilter::Warn,
        }),
        // Of libraries only where something is wrong; their warnings are for their developers.
        None => Box::new(Ours {
            logger: Stderr,
            others: LevelFilter::Error,
        }),
    };
    // It fails only if a logger is there already, which then is as good.
    let _ = log::set_boxed_logger(logger);
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

/// Drops most lines of other crates, which are not written with our care for secrets.
struct Ours<L> {
    logger: L,
    /// From where on those are heard.
    others: LevelFilter,
}

impl<L: Log> Log for Ours<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let own = metadata.target().starts_with("latchkey");
        metadata.level() <= log::max_level() && (own || metadata.level() <= self.others)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.logger.log(record);
        }
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
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
