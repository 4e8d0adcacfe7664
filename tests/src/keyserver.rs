//! A real `latchkeyd` for one scenario: own data directory, own port, started and stopped at will.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::follower::Follower;
use crate::tool::{self, ToolError};

/// The key server did not do what a scenario needs.
#[derive(Debug, thiserror::Error)]
pub enum KeyServerError {
    /// One of its commands failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Its files or its process.
    #[error("failed to use the key server in '{}'", folder.display())]
    Host {
        /// Where its files are.
        folder: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It does not answer.
    #[error("the key server does not listen on {address} after {} s; it said\n{said}", limit.as_secs())]
    NotListening {
        /// Where it should.
        address: SocketAddr,
        /// How long it was waited for.
        limit: Duration,
        /// What it logged.
        said: String,
    },
}

/// One key server. Ends when it is dropped.
pub struct KeyServer {
    program: PathBuf,
    folder: PathBuf,
    process: Option<Child>,
}

impl KeyServer {
    /// Makes a new one in `folder` that agents reach by `names`.
    ///
    /// # Errors
    /// `Tool` if `latchkeyd init` fails.
    pub fn init(program: &Path, folder: &Path, names: &[String]) -> Result<Self, KeyServerError> {
        let server = Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            process: None,
        };
        fs::create_dir_all(folder).map_err(|source| server.host(source))?;
        let mut init = Command::new(program);
        init.arg("init").arg("--data-dir").arg(server.data());
        for name in names {
            init.args(["--name", name]);
        }
        tool::run(&mut init)?;
        Ok(server)
    }

    /// A copy in `folder` of a key server that does not run.
    ///
    /// # Errors
    /// `Tool` if it cannot be copied, `Host` for its configuration.
    pub fn copy_of(program: &Path, original: &Path, folder: &Path) -> Result<Self, KeyServerError> {
        let server = Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            process: None,
        };
        tool::run(
            Command::new("cp")
                .arg("--archive")
                .arg(original)
                .arg(folder),
        )?;
        // The configuration names its files by absolute paths, those of the folder where it was made.
        let config = server.data().join("latchkeyd.toml");
        let text = fs::read_to_string(&config).map_err(|source| server.host(source))?;
        let old = text
            .lines()
            .find_map(|line| line.strip_prefix("data-dir = \"")?.strip_suffix("/data\""));
        let text = text.replace(old.unwrap_or_default(), &folder.display().to_string());
        fs::write(&config, text).map_err(|source| server.host(source))?;
        Ok(server)
    }

    /// A copy of this one, which does not run, in `folder`.
    ///
    /// # Errors
    /// As [`KeyServer::copy_of`].
    pub fn copy(&self, folder: &Path) -> Result<Self, KeyServerError> {
        Self::copy_of(&self.program, &self.folder, folder)
    }

    /// Starts it on `port` of the loopback and waits until it listens.
    ///
    /// # Errors
    /// `NotListening` if it does not come up.
    pub fn start(&mut self, port: u16) -> Result<(), KeyServerError> {
        self.stop()?;
        const LIMIT: Duration = Duration::from_secs(60);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .map_err(|source| self.host(source))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut serve = Command::new(&self.program);
        serve
            .arg("serve")
            .arg("--data-dir")
            .arg(self.data())
            .args(["--listen", &address.to_string()]);
        let second = log.try_clone().map_err(|source| self.host(source))?;
        let process = serve
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(second)
            .spawn();
        self.process = Some(process.map_err(|source| self.host(source))?);
        let until = Instant::now() + LIMIT;
        while TcpStream::connect(address).is_err() {
            let ended = self
                .process
                .as_mut()
                .is_some_and(|process| matches!(process.try_wait(), Ok(Some(_))));
            if ended || Instant::now() >= until {
                let said = fs::read_to_string(self.log()).unwrap_or_default();
                return Err(KeyServerError::NotListening {
                    address,
                    limit: LIMIT,
                    said,
                });
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends it in order, if it runs.
    ///
    /// # Errors
    /// `Host` if its process cannot be awaited.
    pub fn stop(&mut self) -> Result<(), KeyServerError> {
        self.end(Signal::SIGTERM)
    }

    /// Kills it in the middle of whatever it does.
    ///
    /// # Errors
    /// `Host` if its process cannot be awaited.
    pub fn kill(&mut self) -> Result<(), KeyServerError> {
        self.end(Signal::SIGKILL)
    }

    fn end(&mut self, signal: Signal) -> Result<(), KeyServerError> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        if let Ok(pid) = i32::try_from(process.id()) {
            // It may have ended by itself; then there is nothing to signal.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        process.wait().map_err(|source| self.host(source))?;
        Ok(())
    }

    /// Runs an administrator's command, such as `["invite", "web1"]`, and returns what it printed.
    ///
    /// # Errors
    /// `Tool` if it fails.
    pub fn admin(&self, arguments: &[&str]) -> Result<String, KeyServerError> {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--data-dir").arg(self.data());
        let output = tool::run(&mut command)?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// An administrator who watches `latchkeyd requests --follow`.
    ///
    /// # Errors
    /// `Host` if the command cannot be started.
    pub fn follow(&self) -> Result<Follower, KeyServerError> {
        let mut command = Command::new(&self.program);
        command
            .args(["requests", "--follow", "--json", "--data-dir"])
            .arg(self.data());
        Follower::start(&mut command).map_err(|source| self.host(source))
    }

    /// Gives it one more name, so that its next start makes a new certificate.
    ///
    /// # Errors
    /// `Host` if its configuration cannot be changed.
    pub fn add_name(&self, name: &str) -> Result<(), KeyServerError> {
        let path = self.data().join("latchkeyd.toml");
        let config = fs::read_to_string(&path).map_err(|source| self.host(source))?;
        let changed = config.replacen("names = [", &format!("names = [\"{name}\", "), 1);
        if changed == config {
            return Err(self.host(io::Error::other("no 'names' in latchkeyd.toml")));
        }
        fs::write(&path, changed).map_err(|source| self.host(source))
    }

    /// All that it logged.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("latchkeyd.log")
    }

    fn host(&self, source: io::Error) -> KeyServerError {
        KeyServerError::Host {
            folder: self.folder.clone(),
            source,
        }
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        let _ = self.end(Signal::SIGKILL);
    }
}
