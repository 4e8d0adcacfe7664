//! A serial port of a guest: everything it printed, when, and a way to type. The rig knows two clocks: the host's,
//! counted from the machine's start, and the guest's, read from the kernel's `[   12.345678]` prefixes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Something a scenario waited for did not come, or the port broke.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The text did not appear in time.
    #[error("waited {} s for '{text}' in vain; the last lines of '{}' are\n{tail}", limit.as_secs(), log.display())]
    Silent {
        /// What was waited for.
        text: String,
        /// How long.
        limit: Duration,
        /// Where all of the output is.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The machine ended first.
    #[error("the machine ended before '{text}' appeared; the last lines of '{}' are\n{tail}", log.display())]
    Ended {
        /// What was waited for.
        text: String,
        /// Where all of the output is.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The port cannot be used.
    #[error("failed to use the serial port logged in '{}'", log.display())]
    Port {
        /// Where all of the output is.
        log: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// When a text appeared.
#[derive(Debug, Clone, Copy)]
pub struct Sighting {
    /// By the host, since the machine's start.
    pub host: Duration,
    /// By the guest, since its kernel started. Exact on a line of the kernel's log, else the last such line's time
    /// plus what the host counted since.
    pub guest: Option<Duration>,
}

/// One serial port. Expectations look only at what came after the last thing that was expected.
pub struct Console {
    shared: Arc<Shared>,
    port: UnixStream,
    log: PathBuf,
    seen: usize,
}

impl Console {
    /// Reads `port` until it closes and copies it to `log`, each line with the seconds since `start`.
    ///
    /// # Errors
    /// `Port` if the log cannot be written.
    pub fn attach(port: UnixStream, log: &Path, start: Instant) -> Result<Self, ConsoleError> {
        let broken = |source| ConsoleError::Port {
            log: log.to_owned(),
            source,
        };
        let shared = Arc::new(Shared::default());
        let reader = port.try_clone().map_err(broken)?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(broken)?;
        let copy = Arc::clone(&shared);
        thread::spawn(move || collect(reader, file, start, &copy));
        Ok(Self {
            shared,
            port,
            log: log.to_owned(),
            seen: 0,
        })
    }

    /// Waits until `text` appears.
    ///
    /// # Errors
    /// `Silent` after `limit`, `Ended` if the machine is gone.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<Sighting, ConsoleError> {
        self.expect_any(&[text], limit)
            .map(|(_, sighting)| sighting)
    }

    /// Waits until `text` appears; the next expectation begins where this one did.
    ///
    /// # Errors
    /// As [`Console::expect`].
    pub fn expect_beside(&mut self, text: &str, limit: Duration) -> Result<Sighting, ConsoleError> {
        let seen = self.seen;
        let sighting = self.expect(text, limit);
        self.seen = seen;
        sighting
    }

    /// Waits until one of `texts` appears; says which. Of several that are there the earliest counts.
    ///
    /// # Errors
    /// As [`Console::expect`].
    pub fn expect_any(
        &mut self,
        texts: &[&str],
        limit: Duration,
    ) -> Result<(usize, Sighting), ConsoleError> {
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            let found = texts
                .iter()
                .enumerate()
                .filter_map(|(which, text)| Some((state.find(text, self.seen)?, which, text.len())))
                .min();
            if let Some((at, which, length)) = found {
                self.seen = at + length;
                return Ok((which, state.sighting(at)));
            }
            let now = Instant::now();
            let text = texts.join("' or '");
            if state.closed {
                return Err(ConsoleError::Ended {
                    text,
                    log: self.log.clone(),
                    tail: state.tail(),
                });
            }
            if now >= until {
                return Err(ConsoleError::Silent {
                    text,
                    limit,
                    log: self.log.clone(),
                    tail: state.tail(),
                });
            }
            let waited = self.shared.changed.wait_timeout(state, until - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The first appearance of `text` since the machine's start, whatever was expected meanwhile.
    pub fn first(&self, text: &str) -> Option<Sighting> {
        let state = self.shared.lock();
        state.find(text, 0).map(|at| state.sighting(at))
    }

    /// How often `text` appeared since the machine's start.
    pub fn count(&self, text: &str) -> usize {
        self.text().matches(text).count()
    }

    /// All that was printed so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).into_owned()
    }

    /// Where the output is copied to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Types `text` and the Enter key.
    ///
    /// # Errors
    /// `Port` if the machine is gone.
    pub fn type_line(&mut self, text: &str) -> Result<(), ConsoleError> {
        self.send(format!("{text}\n").as_bytes())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// `Port` if the machine is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), ConsoleError> {
        let log = &self.log;
        self.port
            .write_all(bytes)
            .map_err(|source| ConsoleError::Port {
                log: log.clone(),
                source,
            })
    }

    /// What appears next, up to and without `end`.
    ///
    /// # Errors
    /// As [`Console::expect`].
    pub fn take_until(&mut self, end: &str, limit: Duration) -> Result<String, ConsoleError> {
        self.take_until_any(&[end], limit)
    }

    /// The rest of a line: one on its own ends with a carriage return, one above a prompt with an escape.
    ///
    /// # Errors
    /// As [`Console::expect`].
    pub fn take_line(&mut self, limit: Duration) -> Result<String, ConsoleError> {
        self.take_until_any(&["\r", "\x1b"], limit)
    }

    fn take_until_any(&mut self, ends: &[&str], limit: Duration) -> Result<String, ConsoleError> {
        let from = self.seen;
        let (which, _) = self.expect_any(ends, limit)?;
        let state = self.shared.lock();
        let taken = &state.bytes[from..self.seen - ends[which].len()];
        Ok(String::from_utf8_lossy(taken).into_owned())
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of one piece above the prompt and the beginning of the next.
const NEXT_PIECE: &str = "\x1b8\x1b[B\x1bD\x1b[A\x1b7\r\x1b[L";

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// Offset of each piece that arrived and when.
    arrivals: Vec<(usize, Duration)>,
    closed: bool,
}

impl State {
    fn find(&self, text: &str, from: usize) -> Option<usize> {
        let rest = self.bytes.get(from..)?;
        rest.windows(text.len())
            .position(|window| window == text.as_bytes())
            .map(|at| from + at)
    }

    /// Makes one line again of what the agent puts above a prompt in pieces as wide as the terminal; `from` is where the
    /// newest bytes begin.
    fn join_lines(&mut self, from: usize) {
        let mut begin = from.saturating_sub(NEXT_PIECE.len());
        while let Some(at) = self.find(NEXT_PIECE, begin) {
            self.bytes.drain(at..at + NEXT_PIECE.len());
            begin = at;
        }
    }

    fn sighting(&self, at: usize) -> Sighting {
        let host = self.arrival(at);
        let lines = self.bytes[..at].iter().enumerate().rev();
        let mut starts = lines
            .filter(|(_, byte)| **byte == b'\n')
            .map(|(end, _)| end + 1)
            .chain([0]);
        let own_line = starts.next().unwrap_or(0);
        let stamped = |start: &usize| kernel_time(&self.bytes[*start..]).map(|time| (*start, time));
        let guest = match stamped(&own_line) {
            Some((_, time)) => Some(time),
            None => starts
                .find_map(|start| stamped(&start))
                .map(|(start, time)| time + (host - self.arrival(start))),
        };
        Sighting { host, guest }
    }

    fn arrival(&self, at: usize) -> Duration {
        let after = self.arrivals.partition_point(|(offset, _)| *offset <= at);
        after
            .checked_sub(1)
            .map_or(Duration::ZERO, |before| self.arrivals[before].1)
    }

    fn tail(&self) -> String {
        const LINES: usize = 25;
        let text = String::from_utf8_lossy(&self.bytes);
        let skip = text.lines().count().saturating_sub(LINES);
        text.lines()
            .skip(skip)
            .map(|line| format!("    {line}\n"))
            .collect()
    }
}

/// The time in a line `[   12.345678] …`.
fn kernel_time(line: &[u8]) -> Option<Duration> {
    const LONGEST: usize = 24;
    let line = line.strip_prefix(b"[")?;
    let end = line.iter().take(LONGEST).position(|byte| *byte == b']')?;
    let (seconds, fraction) = std::str::from_utf8(&line[..end])
        .ok()?
        .trim_start()
        .split_once('.')?;
    let micros: u64 = (fraction.len() == 6).then(|| fraction.parse().ok())??;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros))
}

fn collect(mut port: UnixStream, mut log: File, start: Instant, shared: &Shared) {
    let mut piece = [0_u8; 4096];
    let mut line_begins = true;
    while let Ok(length) = port.read(&mut piece) {
        if length == 0 {
            break;
        }
        let now = start.elapsed();
        let piece = &piece[..length];
        let mut copy = Vec::with_capacity(length + 64);
        for byte in piece.iter().filter(|byte| **byte != b'\r') {
            if line_begins {
                copy.extend_from_slice(format!("{:9.3} ", now.as_secs_f64()).as_bytes());
            }
            copy.push(*byte);
            line_begins = *byte == b'\n';
        }
        // The log is for people; an expectation does not fail because the disk is full.
        let _ = log.write_all(&copy);
        let mut state = shared.lock();
        let offset = state.bytes.len();
        state.arrivals.push((offset, now));
        state.bytes.extend_from_slice(piece);
        state.join_lines(offset);
        shared.changed.notify_all();
    }
    shared.lock().closed = true;
    shared.changed.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (Console, UnixStream, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let console = Console::attach(ours, &folder.path().join("log"), Instant::now()).unwrap();
        (console, theirs, folder)
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_expected_beside_may_come_before_or_after() {
        let (mut console, mut port, _folder) = console();
        port.write_all(b"message prompt ").unwrap();
        console
            .expect_beside("prompt", Duration::from_secs(5))
            .unwrap();
        console.expect("message", Duration::from_secs(5)).unwrap();
        console.expect("prompt", Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn a_text_is_expected_once() {
        let (mut console, mut guest, _folder) = console();
        guest.write_all(b"one two one").unwrap();
        console.expect("one", SOON).unwrap();
        console.expect("one", SOON).unwrap();
        drop(guest);
        let error = console.expect("one", SOON).unwrap_err();
        assert!(matches!(error, ConsoleError::Ended { .. }), "{error}");
        assert_eq!(console.count("one"), 2);
    }

    #[test]
    fn the_earliest_of_several_texts_counts() {
        let (mut console, mut guest, _folder) = console();
        guest.write_all(b"prompt: up").unwrap();
        let (which, _) = console.expect_any(&["up", "prompt"], SOON).unwrap();
        assert_eq!(which, 1);
    }

    #[test]
    fn a_kernel_line_carries_the_guests_time() {
        let (mut console, mut guest, _folder) = console();
        guest
            .write_all(b"[    1.500000] vda: vda1\r\nPlease unlock: ")
            .unwrap();
        let kernel = console.expect("vda1", SOON).unwrap();
        assert_eq!(kernel.guest, Some(Duration::from_millis(1500)));
        let prompt = console.expect("unlock", SOON).unwrap();
        assert!(prompt.guest >= kernel.guest, "{prompt:?}");
    }

    #[test]
    fn kernel_times_are_recognised() {
        let cases = [
            ("[    0.000000] Linux", Some(Duration::ZERO)),
            (
                "[12345.678901] x",
                Some(Duration::from_micros(12_345_678_901)),
            ),
            ("[  OK  ] Started", None),
            ("[*     ] (1 of 2)", None),
            ("plain", None),
        ];
        for (line, time) in cases {
            assert_eq!(kernel_time(line.as_bytes()), time, "{line}");
        }
    }

    #[test]
    fn a_line_in_pieces_above_the_prompt_is_one_line() {
        let (mut console, mut guest, _folder) = console();
        let (first, second) = NEXT_PIECE.split_at(5);
        guest
            .write_all(format!("Prompt: \x1bD\x1b[A\x1b7\r\x1b[Lno key ser{first}").as_bytes())
            .unwrap();
        console.expect("no key ser", SOON).unwrap();
        guest
            .write_all(format!("{second}ver answers\x1b8\x1b[B").as_bytes())
            .unwrap();
        console.expect("ver answers", SOON).unwrap();
        assert!(console.first("no key server answers").is_some());
    }
}
