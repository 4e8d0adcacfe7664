//! A program that prints a JSON line for each thing that happens, and when each line came.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

/// The program. Ends when it is dropped.
pub struct Follower {
    process: Child,
    lines: Receiver<Line>,
}

/// A line that it printed.
#[derive(Debug)]
pub struct Line {
    text: String,
    came: SystemTime,
}

impl Follower {
    /// Starts `command`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let (send, lines) = mpsc::channel();
        if let Some(output) = process.stdout.take() {
            thread::spawn(move || {
                for text in BufReader::new(output).lines().map_while(Result::ok) {
                    let came = SystemTime::now();
                    if send.send(Line { text, came }).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self { process, lines })
    }

    /// The next line that contains `text`.
    ///
    /// # Errors
    /// None came within `limit`, or the program ended.
    pub fn expect(&mut self, text: &str, limit: Duration) -> io::Result<Line> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .map_err(|error| io::Error::other(format!("no line with '{text}': {error}")))?;
            if line.text.contains(text) {
                return Ok(line);
            }
        }
    }
}

impl Line {
    /// How long after its own `time` (milliseconds since 1970) the line came.
    ///
    /// # Errors
    /// The line is no JSON object with a time that has passed.
    pub fn after(&self) -> io::Result<Duration> {
        let time = serde_json::from_str::<Value>(&self.text)
            .ok()
            .and_then(|line| line["time"].as_u64())
            .and_then(|time| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(time)))
            .ok_or_else(|| io::Error::other(format!("no time in '{}'", self.text)))?;
        self.came.duration_since(time).map_err(io::Error::other)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
