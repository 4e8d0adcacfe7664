//! What people and the log are told during a boot.
//!
//! Lines go to the console, to the log, and into the report that the running system sends to the key server. Under
//! systemd the log is the journal and the console is every terminal that the kernel uses as one, elsewhere they are the
//! kernel log and `/dev/console`. While a prompt stands, a line is put above it, so that neither the prompt nor what is being
//! typed is disturbed. Nothing here ever panics, because a console may be gone, and no secret ever gets here.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use latchkey_protocol::RequestId;
use latchkey_protocol::wire::{BootReport, Text, Version};
use latchkey_secret::terminal;
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::time::{ClockId, clock_gettime};

use super::prompt::Way;
use super::service_manager;
use super::splash;
use crate::logging;

/// Most lines that a report keeps; a night of retries must not grow without end.
const LINES_LIMIT: usize = 200;
/// Columns of a terminal that does not say how many it has, as on a serial line.
const COLUMNS: usize = 80;
/// The virtual terminal that is in front.
const FRONT: &str = "tty0";

/// The console, the log and the report.
#[derive(Debug)]
pub struct Console {
    output: Output,
    prompt_stands: bool,
    lines: Vec<Text>,
    dropped: usize,
}

/// Where lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// The console and the kernel log.
    Initramfs,
    /// The kernel's consoles, and stderr, which is the journal.
    Systemd,
    /// Nowhere: for tests.
    #[cfg(test)]
    Nowhere,
}

impl Console {
    /// Of this machine.
    pub fn open() -> Self {
        let output = match Way::of_this_boot() {
            Way::Askpass => Output::Initramfs,
            Way::PasswordAgents => Output::Systemd,
        };
        Self {
            output,
            prompt_stands: false,
            lines: Vec::new(),
            dropped: 0,
        }
    }

    /// Tells people, the log and the report what is being waited for, and systemd, whose `systemctl status` shows it.
    pub fn say_status(&mut self, line: &str) {
        if self.output == Output::Systemd {
            service_manager::status(line);
        }
        self.say(line);
    }

    /// Tells people, the log and the report.
    pub fn say(&mut self, line: &str) {
        let text = format!("latchkey: {line}");
        match self.output {
            Output::Initramfs => match open_console("console") {
                Some(mut console) => show(&text, &mut console, self.prompt_stands),
                None => show(&text, &mut std::io::stderr().lock(), self.prompt_stands),
            },
            Output::Systemd => {
                for mut console in consoles() {
                    show(&text, &mut console, self.prompt_stands);
                }
            }
            #[cfg(test)]
            Output::Nowhere => return self.note(line),
        }
        if open_console(FRONT).is_some_and(terminal::is_drawn_on) {
            splash::show(&text);
        }
        self.note(line);
    }

    /// Tells the log and the report only: a step and when it was done.
    pub fn note(&mut self, line: &str) {
        match self.output {
            Output::Initramfs => logging::kernel_log(line),
            Output::Systemd => {
                let _ = writeln!(std::io::stderr(), "<6>{line}"); // sd-daemon(3): informational
            }
            #[cfg(test)]
            Output::Nowhere => {}
        }
        if self.lines.len() < LINES_LIMIT {
            self.lines
                .push(Text::cut(&format!("{:9.3} {line}", uptime())));
        } else {
            self.dropped += 1;
        }
    }

    /// A prompt stands on the console now, or none does.
    pub fn prompt(&mut self, stands: bool) {
        self.prompt_stands = stands;
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
}

/// The terminals that the kernel uses as consoles (Documentation/ABI/testing/sysfs-tty); else the one it takes for them.
fn consoles() -> Vec<File> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let found: Vec<File> = active
        .split_ascii_whitespace()
        .filter_map(open_console)
        .collect();
    if found.is_empty() {
        open_console("console").into_iter().collect()
    } else {
        found
    }
}

/// Not as our controlling terminal, and never to wait for: one that somebody has stopped with Ctrl-S loses lines instead.
fn open_console(name: &str) -> Option<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(O_NOCTTY | O_NONBLOCK);
    options.open(Path::new("/dev").join(name)).ok()
}

/// While a program reads a passphrase, ours or the boot framework's, above its line; else simply as the next line.
fn show(line: &str, terminal: &mut (impl Write + AsFd), prompt_stands: bool) {
    let text = if hides_typing(&*terminal) {
        above_the_cursor(line)
    } else if prompt_stands {
        format!("\r\n{line}\r\n") // the program has not come so far, or is there no more
    } else {
        format!("{line}\r\n")
    };
    let _ = terminal.write_all(text.as_bytes());
    let _ = terminal.flush();
}

/// Puts lines above the one that the cursor is in and leaves the cursor where it is in that one. For each: a line more
/// at the bottom if there is none (IND, up), an empty one in the place of the cursor's (save, IL), the text in it, and
/// back (restore, down): ECMA-48 and DEC's VT100, which the kernel's terminal and those at the end of serial lines speak.
fn above_the_cursor(line: &str) -> String {
    let letters: Vec<char> = line.chars().collect();
    letters
        .chunks(COLUMNS - 1)
        .map(|part| {
            let part: String = part.iter().collect();
            format!("\x1bD\x1b[A\x1b7\r\x1b[L{part}\x1b8\x1b[B")
        })
        .collect()
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
            output: Output::Nowhere,
            prompt_stands: false,
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

    /// What a terminal of 80 columns shows after `output`, and the column of its cursor.
    fn shown(rows: usize, output: &str) -> (Vec<String>, usize) {
        let mut terminal = avt::Terminal::new(COLUMNS, rows).unwrap();
        terminal.feed(output);
        let lines = terminal
            .screen()
            .visible_lines()
            .map(|line| line.text().trim_end().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        (lines, terminal.cursor_position().col)
    }

    #[test]
    fn a_line_above_the_prompt_leaves_what_is_being_typed_as_it_is() {
        let line = above_the_cursor("latchkey: no key server answers");
        let typed = format!("first\r\nsecond\r\nPassphrase: ***{line}**");
        let expected = [
            "first",
            "second",
            "latchkey: no key server answers",
            "Passphrase: *****",
        ];
        assert_eq!(shown(10, &typed), (expected.map(String::from).into(), 17));
        // The prompt stands in the last line: the terminal scrolls.
        assert_eq!(
            shown(3, &typed),
            (
                expected[1..]
                    .iter()
                    .map(|line| (*line).to_owned())
                    .collect(),
                17
            )
        );
    }

    #[test]
    fn a_line_longer_than_the_terminal_becomes_two() {
        let long = "0123456789".repeat(10);
        let (lines, column) = shown(10, &format!("Passphrase: {}", above_the_cursor(&long)));
        assert_eq!(lines, [&long[..79], &long[79..], "Passphrase:"]);
        assert_eq!(column, 12);
    }
}
