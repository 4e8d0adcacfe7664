//! What people and the log are told during a boot.
//!
//! Lines go to the console (stderr), to the kernel log, and into the report that the running system sends to the
//! key server. The prompt's program writes to the same console: after a line of ours its prompt is shown anew.
//! Nothing here ever panics, because stderr may be gone, and no secret ever gets here.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsFd;

use latchkey_protocol::RequestId;
use latchkey_protocol::wire::{BootReport, Text, Version};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::time::{ClockId, clock_gettime};

/// Most lines that a report keeps; a night of retries must not grow without end.
const LINES_LIMIT: usize = 200;
/// Kernel log level 7 (debug): kept by dmesg and the journal, not repeated on the console by the kernel.
const LEVEL: &str = "<7>";

/// The console, the kernel log and the report.
#[derive(Debug)]
pub struct Console {
    kernel_log: Option<&'static str>,
    prompt: Option<String>,
    lines: Vec<Text>,
    dropped: usize,
}

impl Console {
    /// Of this machine.
    pub fn open() -> Self {
        Self {
            kernel_log: Some("/dev/kmsg"),
            prompt: None,
            lines: Vec::new(),
            dropped: 0,
        }
    }

    /// Tells people, the log and the report.
    pub fn say(&mut self, line: &str) {
        self.show(line);
        self.note(line);
    }

    /// Tells the log and the report only: a step and when it was done.
    pub fn note(&mut self, line: &str) {
        if let Some(path) = self.kernel_log {
            // The kernel takes ten lines in five seconds from each opening of it (printk_devkmsg) and drops the rest.
            let log = OpenOptions::new().write(true).open(path);
            let _ = log
                .and_then(|mut log| log.write_all(format!("{LEVEL}latchkey: {line}\n").as_bytes()));
        }
        if self.lines.len() < LINES_LIMIT {
            self.lines
                .push(Text::cut(&format!("{:9.3} {line}", uptime())));
        } else {
            self.dropped += 1;
        }
    }

    /// A prompt with this text stands on the console now, or none.
    pub fn prompt(&mut self, text: Option<String>) {
        self.prompt = text;
    }

    /// The report of this boot.
    pub fn report(&self, request: Option<RequestId>) -> BootReport {
        let mut lines = self.lines.clone();
        if self.dropped > 0 {
            lines.push(Text::cut(&format!(
                "{} more lines were left out",
                self.dropped
            )));
        }
        BootReport {
            version: Version::default(),
            request,
            lines,
        }
    }

    fn show(&self, line: &str) {
        let mut stderr = std::io::stderr().lock();
        let _ = match &self.prompt {
            Some(prompt) if hides_typing(&stderr) => {
                write!(stderr, "\r\nlatchkey: {line}\r\n{prompt}")
            }
            // The prompt's program has not come that far: it shows the prompt itself, and until then whatever is
            // typed would be seen and then lost.
            Some(_) => write!(stderr, "\r\nlatchkey: {line}\r\n"),
            None => write!(stderr, "latchkey: {line}\r\n"),
        };
        let _ = stderr.flush();
    }
}

/// Whether a terminal's echo is off, as the prompt's program leaves it while it reads.
fn hides_typing(terminal: impl AsFd) -> bool {
    tcgetattr(terminal).is_ok_and(|settings| !settings.local_flags.contains(LocalFlags::ECHO))
}

/// Seconds since the kernel started, time in suspend included.
fn uptime() -> f64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0.0, |time| std::time::Duration::from(time).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_bounded_and_says_what_is_missing() {
        let mut console = Console {
            kernel_log: None,
            prompt: None,
            lines: Vec::new(),
            dropped: 0,
        };
        for number in 0..LINES_LIMIT + 5 {
            console.note(&format!("line {number}"));
        }
        let report = console.report(None);
        assert_eq!(report.lines.len(), LINES_LIMIT + 1);
        assert!(report.lines[LINES_LIMIT].as_str().contains("5 more lines"));
    }
}
