//! Asking a person on the running system for something that must not be seen: no echo, straight onto locked pages.
//!
//! The terminal is put back on every way out, a signal included. At boot the framework's own prompt is used
//! instead.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use latchkey_secret::{SecretBytes, SecretError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};

/// Most bytes of a typed passphrase, as in cryptsetup; also enough for a join token.
const TYPED_LIMIT: usize = latchkey_protocol::token::LIMIT;
/// Most bytes of a key file, as in cryptsetup.
const KEY_FILE_LIMIT: u64 = 8 * 1024 * 1024;
/// Most bytes from a pipe, whose length is not known beforehand.
const PIPE_LIMIT: u64 = 64 * 1024;

/// Signals that end us; each finds the terminal as it was.
const SIGNALS: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// Nothing was typed or read.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// There is no terminal.
    #[error("there is no terminal to ask on")]
    NoTerminal(#[source] io::Error),
    /// The terminal failed.
    #[error("failed to read from the terminal")]
    Terminal(#[source] io::Error),
    /// Ctrl-C, Ctrl-D on an empty line, or a signal.
    #[error("cancelled")]
    Cancelled,
    /// A key file cannot be read.
    #[error("failed to read '{path}'")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// No memory for what is typed.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// What a person types after `question`, without the end of the line.
///
/// # Errors
/// A variant of [`PromptError`] but `File`.
pub fn ask_hidden(question: &str) -> Result<SecretBytes, PromptError> {
    let tty = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(PromptError::NoTerminal)?;
    let terminal = Hidden::new(tty)?;
    terminal.say(question)?;
    let line = terminal.read_line();
    terminal.say("\r\n")?;
    line
}

/// The whole of a key file; `-` is stdin. A line end in it counts, as with cryptsetup.
///
/// # Errors
/// `File`.
pub fn read_key_file(path: &Path) -> Result<SecretBytes, PromptError> {
    let read = || {
        if path == Path::new("-") {
            return read_at_most(&mut io::stdin().lock(), PIPE_LIMIT);
        }
        let mut file = File::open(path).map_err(SecretError::Read)?;
        let metadata = file.metadata().map_err(SecretError::Read)?;
        let limit = if metadata.is_file() {
            metadata.len().min(KEY_FILE_LIMIT)
        } else {
            PIPE_LIMIT
        };
        read_at_most(&mut file, limit)
    };
    read().map_err(|source| PromptError::File {
        path: path.display().to_string(),
        source,
    })
}

fn read_at_most(source: &mut impl Read, limit: u64) -> Result<SecretBytes, SecretError> {
    let limit = usize::try_from(limit).map_err(|_| SecretError::TooLong(0))?;
    SecretBytes::read_from(source, limit)
}

/// A terminal without echo, until it is dropped. Keys make no signals: Ctrl-C is read as a key.
struct Hidden {
    tty: File,
    before: Termios,
    signals: SignalFd,
    blocked: SigSet,
}

impl Hidden {
    fn new(tty: File) -> Result<Self, PromptError> {
        let terminal = |errno: nix::Error| PromptError::Terminal(errno.into());
        let before = tcgetattr(&tty).map_err(terminal)?;
        let blocked: SigSet = SIGNALS.into_iter().collect();
        let signals =
            SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .map_err(terminal)?;
        blocked.thread_block().map_err(terminal)?;
        let hidden = Self {
            tty,
            before,
            signals,
            blocked,
        };
        let mut raw = hidden.before.clone();
        raw.local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG);
        raw.input_flags.remove(InputFlags::IXON);
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        // Not flushed: what was typed ahead is meant for us.
        tcsetattr(&hidden.tty, SetArg::TCSADRAIN, &raw).map_err(terminal)?;
        Ok(hidden)
    }

    fn say(&self, text: &str) -> Result<(), PromptError> {
        (&self.tty)
            .write_all(text.as_bytes())
            .map_err(PromptError::Terminal)
    }

    fn read_line(&self) -> Result<SecretBytes, PromptError> {
        let mut line = Line::new()?;
        loop {
            self.wait()?;
            let mut key = [0u8];
            match (&self.tty).read(&mut key) {
                Ok(0) => return Err(PromptError::Cancelled),
                Ok(_) => match line.press(key[0])? {
                    Pressed::More => {}
                    Pressed::Done => return Ok(line.text),
                    Pressed::Cancelled => return Err(PromptError::Cancelled),
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PromptError::Terminal(error)),
            }
        }
    }

    /// Returns when a key can be read.
    fn wait(&self) -> Result<(), PromptError> {
        loop {
            let mut events = [
                PollFd::new(self.tty.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut events, PollTimeout::NONE) {
                Ok(_) => {}
                Err(nix::Error::EINTR) => continue,
                Err(errno) => return Err(PromptError::Terminal(errno.into())),
            }
            if let Ok(Some(signal)) = self.signals.read_signal() {
                self.die_of(signal.ssi_signo);
                return Err(PromptError::Cancelled);
            }
            if events[0].any().unwrap_or(true) {
                return Ok(());
            }
        }
    }

    /// Puts the terminal back and lets the signal do what it does without us.
    fn die_of(&self, number: u32) {
        self.restore();
        let signal = SIGNALS.into_iter().find(|signal| *signal as u32 == number);
        if let Some(signal) = signal {
            let _ = raise(signal);
        }
    }

    fn restore(&self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(&self.tty, SetArg::TCSADRAIN, &self.before);
        let _ = self.blocked.thread_unblock();
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        self.restore();
    }
}

/// What is typed so far.
struct Line {
    text: SecretBytes,
}

#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    More,
    Done,
    Cancelled,
}

impl Line {
    fn new() -> Result<Self, SecretError> {
        Ok(Self {
            text: SecretBytes::with_capacity(TYPED_LIMIT)?,
        })
    }

    fn press(&mut self, key: u8) -> Result<Pressed, SecretError> {
        const CTRL_C: u8 = 3;
        const CTRL_D: u8 = 4;
        const BACKSPACE: u8 = 8;
        const CTRL_U: u8 = 21;
        const DELETE: u8 = 127;
        match key {
            b'\r' | b'\n' => return Ok(Pressed::Done),
            CTRL_C => return Ok(Pressed::Cancelled),
            CTRL_D if self.text.is_empty() => return Ok(Pressed::Cancelled),
            CTRL_D => return Ok(Pressed::Done),
            CTRL_U => self.text.truncate(0),
            BACKSPACE | DELETE => self.erase(),
            key => self.text.push(&[key])?,
        }
        Ok(Pressed::More)
    }

    /// Erases one character of UTF-8.
    fn erase(&mut self) {
        let is_continuation = |byte: u8| byte & 0xc0 == 0x80;
        while let Some(last) = self.text.expose_secret().last().copied() {
            self.text.truncate(self.text.len() - 1);
            if !is_continuation(last) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> Option<Vec<u8>> {
        let mut line = Line::new().unwrap();
        for key in keys {
            match line.press(*key).unwrap() {
                Pressed::More => {}
                Pressed::Done => return Some(line.text.expose_secret().to_vec()),
                Pressed::Cancelled => return None,
            }
        }
        None
    }

    #[test]
    fn keys_edit_the_line() {
        for (keys, expected) in [
            (&b"abc\r"[..], Some(&b"abc"[..])),
            (b"\n", Some(b"")),
            (b"ab\x7fc\n", Some(b"ac")),
            (b"\x08\x7fa\n", Some(b"a")),
            ("aü\x7fb\n".as_bytes(), Some(b"ab")),
            (b"wrong\x15right\n", Some(b"right")),
            (b"abc\x04", Some(b"abc")),
            (b"\x04", None),
            (b"abc\x03\n", None),
            (b"a b\tc\n", Some(b"a b\tc")),
        ] {
            assert_eq!(typed(keys).as_deref(), expected, "{keys:?}");
        }
    }

    #[test]
    fn a_key_file_is_read_whole_with_its_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, b"secret\n").unwrap();
        assert_eq!(read_key_file(&path).unwrap().expose_secret(), b"secret\n");
        let error = read_key_file(&dir.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none"));
        let large = File::create(&path).unwrap();
        large.set_len(KEY_FILE_LIMIT + 1).unwrap();
        assert!(read_key_file(&path).is_err());
    }
}
