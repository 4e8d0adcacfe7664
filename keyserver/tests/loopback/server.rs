//! A key server in a folder of its own, and the output of its commands.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than anything takes on a busy machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything of one key server on disk.
pub struct Home {
    folder: tempfile::TempDir,
}

/// A running key server.
pub struct Server {
    pub home: Home,
    pub address: SocketAddr,
    child: Child,
    log: Log,
}

/// What the server wrote to standard error so far.
#[derive(Clone)]
pub struct Log(Arc<(Mutex<LogLines>, Condvar)>);

#[derive(Default)]
struct LogLines {
    lines: Vec<String>,
    ended: bool,
}

impl Home {
    /// A folder where nothing was made yet.
    pub fn empty() -> Self {
        Self::empty_in(&std::env::temp_dir())
    }

    /// As [`Home::empty`], in a folder that the test chose.
    pub fn empty_in(base: &Path) -> Self {
        let folder = tempfile::tempdir_in(base).unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        Self { folder }
    }

    /// After `latchkeyd init`.
    #[track_caller]
    pub fn made() -> Self {
        Self::made_in(&std::env::temp_dir())
    }

    /// As [`Home::made`], in a folder that the test chose.
    #[track_caller]
    pub fn made_in(base: &Path) -> Self {
        let home = Self::empty_in(base);
        home.succeeds(&["init", "--name", "127.0.0.1:7443"]);
        home
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.data_dir().join("latchkeyd.toml")
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("data.run/admin.sock")
    }

    /// Runs `latchkeyd ARGUMENTS… --data-dir …`.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = latchkeyd(arguments);
        command.arg("--data-dir").arg(self.data_dir());
        command.output().unwrap()
    }

    /// The standard output of a command that succeeds.
    #[track_caller]
    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?} failed: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// The standard error of a command that ends with `code`.
    #[track_caller]
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        error
    }

    /// What a listing says with `--json`.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        serde_json::from_str(&self.succeeds(&arguments)).unwrap()
    }

    /// Every entry of the audit.
    #[track_caller]
    pub fn audit(&self) -> Vec<serde_json::Value> {
        self.succeeds(&["audit", "--json"])
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// How many entries of a kind the audit has.
    #[track_caller]
    pub fn audited(&self, kind: &str) -> usize {
        self.audit()
            .iter()
            .filter(|entry| entry["kind"] == kind)
            .count()
    }

    /// Starts the server on a free port.
    #[track_caller]
    pub fn serve(self) -> Server {
        self.serve_with(|_| ())
    }

    /// As [`Home::serve`], with something changed about the command.
    #[track_caller]
    pub fn serve_with(self, change: impl FnOnce(&mut Command)) -> Server {
        let mut command = latchkeyd(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(self.data_dir()).stderr(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let log = Log::follow(child.stderr.take().unwrap());
        let line = log.wait_for("listening on ");
        let address = line.rsplit(' ').next().unwrap().parse().unwrap();
        log.wait_for(" is ready");
        Server {
            home: self,
            address,
            child,
            log,
        }
    }
}

impl Server {
    /// A fresh key server that runs.
    #[track_caller]
    pub fn start() -> Self {
        Home::made().serve()
    }

    /// The join token of a new invitation.
    #[track_caller]
    pub fn invite(&self, client: &str) -> String {
        self.home.succeeds(&["invite", client]).trim().to_owned()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logs.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(id), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it and gives its folder back.
    #[track_caller]
    pub fn stop(mut self) -> Home {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.ended().code(), Some(0), "{}", self.log.all());
        std::mem::replace(&mut self.home, Home::empty())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Log {
    fn follow(source: impl std::io::Read + Send + 'static) -> Self {
        let log = Self(Arc::default());
        let filling = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                filling.update(|lines| lines.lines.push(line));
            }
            filling.update(|lines| lines.ended = true);
        });
        log
    }

    fn update(&self, change: impl FnOnce(&mut LogLines)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    /// Waits for a line with these words.
    #[track_caller]
    pub fn wait_for(&self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.0.0.lock().unwrap();
        loop {
            if let Some(line) = lines.lines.iter().find(|line| line.contains(words)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !lines.ended && !left.is_zero(),
                "no line with {words:?} in:\n{}",
                lines.lines.join("\n")
            );
            lines = self.0.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Waits until `count` lines have these words; all lines.
    #[track_caller]
    pub fn wait_for_all(&self, words: &str, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = self.0.0.lock().unwrap().lines.clone();
            let found = lines.iter().filter(|line| line.contains(words)).count();
            if found == count {
                return lines;
            }
            let more = found < count && Instant::now() < deadline;
            assert!(
                more,
                "{found} lines with {words:?} in:\n{}",
                lines.join("\n")
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All lines.
    pub fn all(&self) -> String {
        self.0.0.lock().unwrap().lines.join("\n")
    }
}

/// The program with arguments.
pub fn latchkeyd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_latchkeyd"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM")
        .env_remove("CREDENTIALS_DIRECTORY");
    command
}

/// Bytes that are text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The master key of a home.
pub fn master_key(home: &Home) -> PathBuf {
    let mut name = home.data_dir().into_os_string();
    name.push(".master-key");
    Path::new(&name).to_owned()
}
