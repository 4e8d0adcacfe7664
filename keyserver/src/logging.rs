//! Where log lines go: the journal when systemd connected us to it, else standard error, one line per event.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// Begins to log. Other crates' lines are dropped below `warn`: they are not written with our care for secrets.
pub fn start(level: LevelFilter) {
    // A second start (tests in one process) keeps the first logger.
    let _ = match journal() {
        Some(journal) => log::set_boxed_logger(Box::new(Ours(journal))),
        None => log::set_boxed_logger(Box::new(Ours(StandardError))),
    };
    log::set_max_level(level);
}

/// `error` and all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string().replace('\n', "; ");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string().replace('\n', "; ");
        // A transparent error repeats its cause.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}

fn journal() -> Option<JournalLog> {
    connected_to_journal()
        .then(|| JournalLog::new().ok())
        .flatten()
        .map(|journal| journal.with_syslog_identifier("latchkeyd".to_owned()))
}

struct Ours<L>(L);

impl<L: Log> Log for Ours<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let own = metadata.target().starts_with("latchkey");
        own || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_ascii_lowercase();
        // What a peer sent never breaks out of its line.
        let text: String = record
            .args()
            .to_string()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        // One write, so that lines of two threads do not mix; a closed stderr is no reason to stop serving.
        let _ = std::io::stderr()
            .lock()
            .write_all(format!("latchkeyd: {level}: {text}\n").as_bytes());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to open 'x'\ntry y")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        let error = Outer(std::io::Error::other("no such file"));
        assert_eq!(chain(&error), "failed to open 'x'; try y: no such file");
    }
}
