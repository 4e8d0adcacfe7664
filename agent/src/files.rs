//! Where latchkey's files lie on a client, and with which modes: the one place that knows.
//!
//! Every path is below a root, `/` unless a test says otherwise. Private keys are read onto locked pages only.
//! All that latchkey writes is 0600 in folders of 0700: names of volumes and key servers are nobody's business.

mod io;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use latchkey_protocol::token::{ADDRESSES_LIMIT, Address};
use latchkey_protocol::{ClientName, ServerId};
use latchkey_secret::{SecretBytes, SecretError};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use io::FILE_MODE;
pub use io::{
    if_any, make_dir, read, read_key, read_lossy, read_text, remove, remove_dir, rename, replace,
    sync, unfinished, write_new,
};

/// How long whoever changes something waits for another one to end.
pub const BUSY_LIMIT: Duration = Duration::from_secs(10);
/// How often to look whether it has ended.
pub const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// All paths of a client, below one root.
#[derive(Debug, Clone)]
pub struct Files {
    root: PathBuf,
}

/// Held while a command changes something.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// The folder of one joined key server, with its settings.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    /// `/etc/latchkey/servers/<first 16 digits of its id>`.
    pub dir: PathBuf,
    /// `server.toml`.
    pub settings: ServerSettings,
}

/// `server.toml`: who a key server is, where it listens, and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServerSettings {
    /// The fingerprint of its CA.
    pub id: ServerId,
    /// Our name there.
    pub client: ClientName,
    /// `HOST:PORT` each, asked in this order; 1 to 8.
    pub addresses: Vec<Address>,
    /// When this machine joined, Unix seconds: server certificates that ended before are refused.
    pub joined: u64,
}

/// Which of the two identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `boot.key`: lies in the initramfs, may only ask for releases.
    Boot,
    /// `host.key`: stays on the encrypted disk, for everything else.
    Host,
}

/// A file of ours could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Reading failed.
    #[error("failed to read '{}'", .path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Reading a private key failed.
    #[error("failed to read '{}'", .path.display())]
    ReadKey {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// Writing failed; what was there before is still there.
    #[error("failed to write '{}'", .path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another command that changes something is at work.
    #[error("another latchkey command is at work\nwait for it to end, then run this again")]
    Busy,
    /// Not the TOML or JSON it should be.
    #[error("'{}' is not understood: {reason}\ncorrect the file, or restore it from a backup", .path.display())]
    Format {
        /// What.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl FilesError {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

impl Files {
    /// The files of the running system.
    pub fn system() -> Self {
        Self::under("/")
    }

    /// The files below `root`.
    pub fn under(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `absolute` below the root.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// `/etc/crypttab`.
    pub fn crypttab(&self) -> PathBuf {
        self.path("/etc/crypttab")
    }

    /// `/etc/latchkey/network.json`: the recorded network.
    pub fn network(&self) -> PathBuf {
        self.path("/etc/latchkey/network.json")
    }

    /// `/etc/latchkey/envelopes`: what LUKS1 headers and plain volumes have no room for.
    pub fn envelopes(&self) -> PathBuf {
        self.path("/etc/latchkey/envelopes")
    }

    /// `/var/lib/latchkey`: header backups and the journals of `bind`.
    pub fn state(&self) -> PathBuf {
        self.path("/var/lib/latchkey")
    }

    /// `/var/lib/latchkey/images`: the build ids of the images that were built on this machine, the newest first.
    pub fn images(&self) -> PathBuf {
        self.state().join("images")
    }

    /// `/var/lib/latchkey/head-ID.json`: the newest end of the audit that a key server showed.
    pub fn head(&self, id: &ServerId) -> PathBuf {
        self.state().join(format!("head-{}.json", id.short()))
    }

    /// `/run/latchkey`: what the boot left; no secrets.
    pub fn runtime(&self) -> PathBuf {
        self.path("/run/latchkey")
    }

    /// `/run/latchkey/moved-on-ID`: in this boot the tickets were moved on; of which epoch of the key server's audit.
    pub fn moved_on(&self, id: &ServerId) -> PathBuf {
        self.runtime().join(format!("moved-on-{}", id.short()))
    }

    /// `/run/latchkey/report.json`: the report of this boot.
    pub fn report(&self) -> PathBuf {
        self.runtime().join("report.json")
    }

    /// `/etc/latchkey/servers`.
    pub fn servers_dir(&self) -> PathBuf {
        self.path("/etc/latchkey/servers")
    }

    /// The folder of the key server `id`, whether it exists or not.
    pub fn server_dir(&self, id: &ServerId) -> PathBuf {
        self.servers_dir().join(id.short())
    }

    /// The folder of a key server while joining it is not finished.
    pub fn joining_dir(&self, id: &ServerId) -> PathBuf {
        self.servers_dir().join(format!("{}.joining", id.short()))
    }

    /// Keeps other latchkey commands that change something out, until the result is dropped. One that is at work is waited for,
    /// [`BUSY_LIMIT`] at most: the service takes its turns too, each time that it writes a ticket into a header.
    ///
    /// # Errors
    /// `Busy` if one does not end, `Write`.
    pub fn lock(&self) -> Result<Lock, FilesError> {
        self.lock_within(BUSY_LIMIT)
    }

    /// As [`Files::lock`], without waiting.
    ///
    /// # Errors
    /// `Busy` if one is at work, `Write`.
    pub fn try_lock(&self) -> Result<Lock, FilesError> {
        self.lock_file("lock")
    }

    fn lock_within(&self, limit: Duration) -> Result<Lock, FilesError> {
        let begin = Instant::now();
        loop {
            match self.try_lock() {
                Err(FilesError::Busy) if begin.elapsed() < limit => thread::sleep(BUSY_PAUSE),
                taken => return taken,
            }
        }
    }

    /// Keeps others that move the tickets of the key server `id` on out, until the result is dropped.
    ///
    /// # Errors
    /// `Busy` if one is at work, `Write`.
    pub fn lock_tickets(&self, id: &ServerId) -> Result<Lock, FilesError> {
        self.lock_file(&format!("tickets-{}.lock", id.short()))
    }

    fn lock_file(&self, name: &str) -> Result<Lock, FilesError> {
        make_dir(&self.state())?;
        let path = self.state().join(name);
        let error = |source| FilesError::Write {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(error)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Lock { _file: lock }),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(FilesError::Busy),
            Err((_, errno)) => Err(error(errno.into())),
        }
    }

    /// Every key server that this machine has joined, in the order of their ids; one that cannot be read does
    /// not hide the others. Empty if the machine never joined.
    ///
    /// # Errors
    /// `Read` if the folder exists but cannot be listed.
    pub fn servers(&self) -> Result<Vec<Result<ServerFiles, FilesError>>, FilesError> {
        let path = self.servers_dir();
        let read_error = |source| FilesError::Read {
            path: path.clone(),
            source,
        };
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(read_error)?,
        };
        let mut dirs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(read_error)?;
            // Others are unfinished joins and what editors leave behind.
            if is_short_id(&entry.file_name().to_string_lossy()) {
                dirs.push(entry.path());
            }
        }
        dirs.sort();
        Ok(dirs.into_iter().map(ServerFiles::read).collect())
    }

    /// As [`Files::servers`], but one that cannot be read is an error.
    ///
    /// # Errors
    /// `Read`, `Format`.
    pub fn all_servers(&self) -> Result<Vec<ServerFiles>, FilesError> {
        self.servers()?.into_iter().collect()
    }
}

impl ServerFiles {
    /// Reads `dir/server.toml`; `dir` may be one whose name says with an ending that it is not in use.
    ///
    /// # Errors
    /// `Read`, `Format`.
    pub fn read(dir: PathBuf) -> Result<Self, FilesError> {
        let path = dir.join("server.toml");
        let text = read_text(&path)?;
        let format = |reason: String| FilesError::Format {
            path: path.clone(),
            reason,
        };
        let settings: ServerSettings =
            toml::from_str(&text).map_err(|error| format(error.message().to_owned()))?;
        if !(1..=ADDRESSES_LIMIT).contains(&settings.addresses.len()) {
            return Err(format(format!(
                "'addresses' must hold 1 to {ADDRESSES_LIMIT} addresses"
            )));
        }
        if dir
            .file_stem()
            .is_none_or(|name| name.to_string_lossy() != settings.id.short())
        {
            return Err(format(format!(
                "'id' belongs into the folder '{}'",
                settings.id.short()
            )));
        }
        Ok(Self { dir, settings })
    }

    /// `ca.pem`.
    ///
    /// # Errors
    /// `Read`.
    pub fn ca(&self) -> Result<Vec<u8>, FilesError> {
        read(&self.dir.join("ca.pem"))
    }

    /// The private key of `role`, in PEM.
    ///
    /// # Errors
    /// `ReadKey`.
    pub fn key(&self, role: Role) -> Result<SecretBytes, FilesError> {
        read_key(&self.key_path(role))
    }

    /// Where the private key of `role` lies.
    pub fn key_path(&self, role: Role) -> PathBuf {
        self.dir.join(role.key_name())
    }

    /// Where the certificate of `role` lies.
    pub fn certificate_path(&self, role: Role) -> PathBuf {
        self.dir.join(role.certificate_name())
    }

    /// The certificate of `role`, in PEM.
    ///
    /// # Errors
    /// `Read`.
    pub fn certificate(&self, role: Role) -> Result<Vec<u8>, FilesError> {
        read(&self.certificate_path(role))
    }
}

impl Role {
    /// The name of the key's file.
    pub fn key_name(self) -> &'static str {
        match self {
            Self::Boot => "boot.key",
            Self::Host => "host.key",
        }
    }

    /// The name of the certificate's file.
    pub fn certificate_name(self) -> &'static str {
        match self {
            Self::Boot => "boot.pem",
            Self::Host => "host.pem",
        }
    }
}

fn is_short_id(name: &str) -> bool {
    name.len() == 16
        && name
            .bytes()
            .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ServerSettings {
        ServerSettings {
            id: ServerId::from_bytes([7; 32]),
            client: "web-1".parse().unwrap(),
            addresses: vec!["keys.example.org".parse().unwrap()],
            joined: 1_795_000_000,
        }
    }

    fn server_with(text: &str) -> Result<ServerFiles, FilesError> {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        let dir = files.server_dir(&settings().id);
        make_dir(&dir).unwrap();
        write_new(&dir.join("server.toml"), text.as_bytes()).unwrap();
        files.servers().unwrap().remove(0)
    }

    #[test]
    fn server_settings_read_back() {
        let text = toml::to_string(&settings()).unwrap();
        assert_eq!(server_with(&text).unwrap().settings, settings());
    }

    #[test]
    fn unknown_and_wrong_settings_are_refused_and_named() {
        let text = toml::to_string(&settings()).unwrap();
        for (text, expected) in [
            (format!("{text}proxy = \"x\"\n"), "unknown field `proxy`"),
            (
                text.replace("keys.example.org:7443", "a b"),
                "not an address",
            ),
            (text.replace("[\"keys.example.org:7443\"]", "[]"), "1 to 8"),
            (text.replace("0707", "0808"), "belongs into the folder"),
            (text.replace("client", "name"), "unknown field `name`"),
            (text[..text.len() / 2].to_owned(), "'"),
            (String::new(), "missing field"),
            ("\u{0}".to_owned(), "'"),
        ] {
            let error = server_with(&text).unwrap_err();
            assert!(matches!(error, FilesError::Format { .. }), "{text}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_broken_server_does_not_hide_the_others() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        assert!(files.servers().unwrap().is_empty());
        make_dir(&files.servers_dir().join("0000000000000000")).unwrap();
        make_dir(&files.servers_dir().join("0707070707070707.joining")).unwrap();
        let dir = files.server_dir(&settings().id);
        make_dir(&dir).unwrap();
        replace(
            &dir.join("server.toml"),
            toml::to_string(&settings()).unwrap().as_bytes(),
        )
        .unwrap();
        let servers = files.servers().unwrap();
        assert_eq!(servers.len(), 2);
        assert!(servers[0].is_err());
        assert_eq!(servers[1].as_ref().unwrap().settings, settings());
        assert!(files.all_servers().is_err());
    }

    #[test]
    fn only_one_command_changes_things_at_a_time_and_the_next_waits_for_it() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        let lock = files.lock().unwrap();
        assert!(matches!(files.try_lock(), Err(FilesError::Busy)));
        let limit = BUSY_PAUSE * 3;
        assert!(matches!(files.lock_within(limit), Err(FilesError::Busy)));
        let other = thread::spawn(move || {
            thread::sleep(BUSY_PAUSE * 3);
            drop(lock);
        });
        files.lock().unwrap();
        other.join().unwrap();
    }
}
