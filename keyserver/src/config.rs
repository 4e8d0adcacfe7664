//! `latchkeyd.toml`: a raw struct is read, a checked one comes out. Unknown keys are refused.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use latchkey_protocol::token::{ADDRESSES_LIMIT, Address};
use log::LevelFilter;
use serde::{Deserialize, Serialize};

use crate::service::life::BEAT;

/// Where the configuration lies unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/latchkeyd/latchkeyd.toml";
/// The default `data-dir`.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/latchkeyd";
/// The default `master-key`; outside the data directory, so that a copy of the one is not a copy of the other.
pub const DEFAULT_MASTER_KEY: &str = "/etc/latchkeyd/master.key";
/// The default `admin-socket`.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/latchkeyd/admin.sock";
/// The name of a configuration file inside a data directory (`--data-dir`).
pub const FILE_NAME: &str = "latchkeyd.toml";
/// Most bytes of a configuration file.
const SIZE_LIMIT: u64 = 64 * 1024;
/// Most characters of all names together, so that a join token stays within its own limit.
const NAMES_SIZE_LIMIT: usize = 1024;
/// Most users who may approve.
const APPROVERS_LIMIT: usize = 64;
/// Longest time between two beats, in seconds.
const LIFE_INTERVAL_LIMIT: u64 = 60;
/// Most addresses to listen on.
const LISTEN_LIMIT: usize = 16;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the store lies.
    pub data_dir: PathBuf,
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// What agents reach this server by: the names in its certificate and the addresses in join tokens.
    pub names: Vec<Address>,
    /// The file with the master key; a systemd credential goes before it.
    pub master_key: PathBuf,
    /// The socket of the administrator's commands.
    pub admin_socket: PathBuf,
    /// Users beside root who may approve and deny boots over that socket, and read the audit.
    pub approvers: Vec<String>,
    /// Between two beats of a running machine's stream; two of them without an answer are silence.
    pub life_interval: Duration,
    /// The least important level that is logged.
    pub log_level: LevelFilter,
}

/// A configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read '{0}'\nmake a key server with 'latchkeyd init --name HOST' first")]
    Read(PathBuf, #[source] std::io::Error),
    /// More bytes than a configuration has.
    #[error("'{0}' has more than {SIZE_LIMIT} bytes")]
    Size(PathBuf),
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("failed to parse '{0}'\n{1}\nlatchkeyd.toml(5) lists every key")]
    Syntax(PathBuf, String),
    /// A value that cannot be.
    #[error("in '{path}': {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key and what is wrong with its value.
        problem: String,
    },
}

/// The file as it is written.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Raw {
    data_dir: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<Vec<String>>,
    names: Vec<String>,
    master_key: Option<PathBuf>,
    admin_socket: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approvers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    life_interval_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_level: Option<String>,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// Any of [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        use std::io::Read;
        let read = |source| ConfigError::Read(path.to_owned(), source);
        let file = std::fs::File::open(path).map_err(read)?;
        let mut text = String::new();
        file.take(SIZE_LIMIT + 1)
            .read_to_string(&mut text)
            .map_err(read)?;
        if text.len() as u64 > SIZE_LIMIT {
            return Err(ConfigError::Size(path.to_owned()));
        }
        Self::parse(&text, path)
    }

    /// Checks the text of a configuration that lies at `path`.
    ///
    /// # Errors
    /// `Syntax`, `Value`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax(path.to_owned(), error.to_string()))?;
        check(raw, path).map_err(|problem| ConfigError::Value {
            path: path.to_owned(),
            problem,
        })
    }

    /// The text of a file that says the same.
    pub fn to_toml(&self) -> String {
        let raw = Raw {
            data_dir: Some(self.data_dir.clone()),
            listen: Some(self.listen.iter().map(ToString::to_string).collect()),
            names: self.names.iter().map(ToString::to_string).collect(),
            master_key: Some(self.master_key.clone()),
            admin_socket: Some(self.admin_socket.clone()),
            approvers: (!self.approvers.is_empty()).then(|| self.approvers.clone()),
            life_interval_s: Some(self.life_interval.as_secs())
                .filter(|seconds| *seconds != BEAT.as_secs()),
            log_level: None,
        };
        let body = toml::to_string(&raw).expect("strings and lists are TOML");
        format!("# Configuration of latchkeyd; see latchkeyd.toml(5).\n{body}")
    }
}

/// The configuration of `init`.
#[derive(Debug)]
pub struct NewConfig {
    /// `--data-dir`, absolute.
    pub data_dir: Option<PathBuf>,
    /// `--master-key`, absolute.
    pub master_key: Option<PathBuf>,
    /// `--name`.
    pub names: Vec<Address>,
}

impl NewConfig {
    /// The configuration and the file that it belongs into. With a data directory of its own everything lies in or
    /// beside that directory, so that several servers fit on one machine. Beside it lies what the store's folder, which is
    /// the server's alone, is too closed for, or must not have.
    ///
    /// # Errors
    /// What is wrong with a value.
    pub fn build(self) -> Result<(Config, PathBuf), String> {
        let port = self
            .names
            .first()
            .map_or(Address::DEFAULT_PORT, Address::port);
        let mut raw = Raw {
            names: self.names.iter().map(ToString::to_string).collect(),
            listen: Some(vec![format!("[::]:{port}")]),
            master_key: self.master_key,
            ..Raw::default()
        };
        let path = match &self.data_dir {
            None => PathBuf::from(DEFAULT_PATH),
            Some(dir) => {
                raw.master_key
                    .get_or_insert_with(|| beside(dir, ".master-key"));
                raw.admin_socket = Some(own_socket(dir));
                dir.join(FILE_NAME)
            }
        };
        raw.data_dir = self.data_dir;
        Ok((check(raw, &path)?, path))
    }
}

/// The admin socket of a server with the data directory `dir` of its own.
pub fn own_socket(dir: &Path) -> PathBuf {
    beside(dir, ".run").join("admin.sock")
}

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    dir.with_file_name(name)
}

fn check(raw: Raw, path: &Path) -> Result<Config, String> {
    let names = raw
        .names
        .iter()
        .map(|name| name.parse().map_err(|error| format!("'names': {error}")))
        .collect::<Result<Vec<Address>, _>>()?;
    if names.is_empty() || names.len() > ADDRESSES_LIMIT {
        return Err(format!(
            "'names' needs 1 to {ADDRESSES_LIMIT} addresses by which agents reach this server"
        ));
    }
    if let Some(name) = repeated(&names) {
        return Err(format!("'names' has '{name}' twice"));
    }
    if names
        .iter()
        .map(|name| name.to_string().len())
        .sum::<usize>()
        > NAMES_SIZE_LIMIT
    {
        return Err(format!(
            "'names' has more than {NAMES_SIZE_LIMIT} characters: join tokens would be too long"
        ));
    }
    let listen = match raw.listen {
        None => vec![SocketAddr::new(
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            Address::DEFAULT_PORT,
        )],
        Some(list) => list
            .iter()
            .map(|text| listen_address(text).map_err(|error| format!("'listen': {error}")))
            .collect::<Result<_, _>>()?,
    };
    if listen.is_empty() || listen.len() > LISTEN_LIMIT {
        return Err(format!("'listen' needs 1 to {LISTEN_LIMIT} addresses"));
    }
    if let Some(address) = repeated(&listen) {
        return Err(format!("'listen' has '{address}' twice"));
    }
    if let Some((all, one)) = contained(&listen) {
        return Err(format!(
            "'listen' has '{all}', which is all addresses of its kind, and '{one}'\nleave one of them out"
        ));
    }
    let config = Config {
        data_dir: absolute("data-dir", raw.data_dir, DEFAULT_DATA_DIR)?,
        listen,
        names,
        master_key: absolute("master-key", raw.master_key, DEFAULT_MASTER_KEY)?,
        admin_socket: absolute("admin-socket", raw.admin_socket, DEFAULT_ADMIN_SOCKET)?,
        approvers: approvers(raw.approvers.unwrap_or_default())?,
        life_interval: match raw.life_interval_s.unwrap_or(BEAT.as_secs()) {
            seconds @ 1..=LIFE_INTERVAL_LIMIT => Duration::from_secs(seconds),
            other => {
                return Err(format!(
                    "'life-interval-s' is {other}, not a number from 1 to {LIFE_INTERVAL_LIMIT}"
                ));
            }
        },
        log_level: match raw.log_level {
            None => LevelFilter::Info,
            Some(level) => log_level(&level)?,
        },
    };
    if config.master_key.starts_with(&config.data_dir) {
        return Err(format!(
            "'master-key' is '{}', inside the data directory\nwhoever copies the one must not get the other: \
             put it elsewhere",
            config.master_key.display()
        ));
    }
    if config.admin_socket == path
        || config.admin_socket == config.master_key
        || is_of_store(&config.admin_socket, &config.data_dir)
    {
        return Err(format!(
            "'admin-socket' is '{}', another file of latchkeyd\ngive it another path",
            config.admin_socket.display()
        ));
    }
    if config.admin_socket.as_os_str().len() > SOCKET_PATH_LIMIT {
        return Err(format!(
            "'admin-socket' is '{}', longer than the {SOCKET_PATH_LIMIT} bytes of a socket's path\ngive it a shorter path",
            config.admin_socket.display()
        ));
    }
    Ok(config)
}

/// Ports below need a capability, which the unit of latchkeyd does not give.
pub const OPEN_PORTS: u16 = 1024;
/// How to give it.
pub const CAPABILITY_HINT: &str = "systemctl edit latchkeyd, and write there:
  [Service]
  CapabilityBoundingSet=CAP_NET_BIND_SERVICE
  AmbientCapabilities=CAP_NET_BIND_SERVICE";

/// unix(7): `sun_path`, without the zero byte.
const SOCKET_PATH_LIMIT: usize = 107;

/// Whether `path` is a name that the store in `data_dir` has files of.
fn is_of_store(path: &Path, data_dir: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    path.parent() == Some(data_dir) && name.as_encoded_bytes().starts_with(b"store.")
}

/// `ADDRESS:PORT` with a numeric address; an IPv6 address stands in brackets.
///
/// # Errors
/// What it should be.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "'{}' is not ADDRESS:PORT, such as '[::]:7443' or '192.0.2.1:7443'",
            text.escape_default()
        )
    })
}

/// Two addresses that cannot be listened on side by side, because the first one is all that are like the second.
fn contained(listen: &[SocketAddr]) -> Option<(&SocketAddr, &SocketAddr)> {
    let all = listen.iter().filter(|all| all.ip().is_unspecified());
    all.flat_map(|all| listen.iter().map(move |one| (all, one)))
        .find(|(all, one)| {
            all != one
                && all.is_ipv4() == one.is_ipv4()
                && all.port() == one.port()
                && all.port() != 0
        })
}

fn approvers(names: Vec<String>) -> Result<Vec<String>, String> {
    if names.len() > APPROVERS_LIMIT {
        return Err(format!("'approvers' has more than {APPROVERS_LIMIT} users"));
    }
    let odd =
        |name: &&String| name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == ':');
    if let Some(name) = names.iter().find(odd) {
        return Err(format!(
            "'approvers' has '{}', which is no user's name",
            name.escape_default()
        ));
    }
    match repeated(&names) {
        Some(name) => Err(format!("'approvers' has '{name}' twice")),
        None => Ok(names),
    }
}

fn log_level(text: &str) -> Result<LevelFilter, String> {
    Ok(match text {
        "error" => LevelFilter::Error,
        "warn" => LevelFilter::Warn,
        "info" => LevelFilter::Info,
        "debug" => LevelFilter::Debug,
        other => {
            return Err(format!(
                "'log-level' is '{}', not one of 'error', 'warn', 'info', 'debug'",
                other.escape_default()
            ));
        }
    })
}

fn absolute(key: &str, value: Option<PathBuf>, default: &str) -> Result<PathBuf, String> {
    let path = value.unwrap_or_else(|| PathBuf::from(default));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!(
            "'{key}' is '{}', not an absolute path",
            path.display()
        ))
    }
}

fn repeated<T: PartialEq>(list: &[T]) -> Option<&T> {
    list.iter()
        .enumerate()
        .find_map(|(at, item)| list[..at].contains(item).then_some(item))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new(DEFAULT_PATH)).map_err(|error| error.to_string())
    }

    #[test]
    fn names_alone_are_enough() {
        let config = parse("names = ['keys.example.org']").unwrap();
        assert_eq!(config.data_dir, Path::new(DEFAULT_DATA_DIR));
        assert_eq!(config.listen, ["[::]:7443".parse().unwrap()]);
        assert_eq!(config.names[0].to_string(), "keys.example.org:7443");
        assert_eq!(config.master_key, Path::new(DEFAULT_MASTER_KEY));
        assert_eq!(config.admin_socket, Path::new(DEFAULT_ADMIN_SOCKET));
        assert_eq!(config.log_level, LevelFilter::Info);
    }

    #[test]
    fn addresses_that_can_be_listened_on_side_by_side_are_good() {
        for list in [
            "'0.0.0.0:7', '[::]:7'",
            "'192.0.2.1:7', '[::]:7'",
            "'0.0.0.0:7', '[::1]:7'",
            "'0.0.0.0:7', '192.0.2.1:8'",
            "'0.0.0.0:0', '127.0.0.1:0'",
        ] {
            assert_eq!(
                parse(&format!("names = ['a']\nlisten = [{list}]")).err(),
                None
            );
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let text = "names = ['a', '[::1]:1']\nlisten = ['127.0.0.1:0']\ndata-dir = '/d'\nmaster-key = '/m'\n\
            approvers = ['alice', 'bob']\nlife-interval-s = 3";
        let config = parse(text).unwrap();
        assert_eq!(parse(&config.to_toml()), Ok(config));
    }

    #[test]
    fn mistakes_are_named() {
        let long_socket = format!("names = ['a']\nadmin-socket = '/{}'", "a".repeat(107));
        for (text, words) in [
            ("", "missing field `names`"),
            ("names = []", "'names' needs 1 to 8"),
            ("names = ['a', 'a:7443']", "'names' has 'a:7443' twice"),
            ("names = ['a b']", "'a b' is not an address"),
            ("names = ['a']\nname = 'b'", "unknown field `name`"),
            (
                "names = ['a']\nlisten = ['7443']",
                "'7443' is not ADDRESS:PORT",
            ),
            ("names = ['a']\nlisten = []", "'listen' needs"),
            (
                "names = ['a']\nlisten = ['[::1]:7', '[::]:7']",
                "'[::]:7', which is all addresses of its kind, and '[::1]:7'",
            ),
            (
                "names = ['a']\ndata-dir = 'x'",
                "'data-dir' is 'x', not an absolute path",
            ),
            (
                "names = ['a']\nmaster-key = '/var/lib/latchkeyd/k'",
                "inside the data directory",
            ),
            (
                "names = ['a']\nadmin-socket = '/var/lib/latchkeyd/store.sqlite3'",
                "another file of latchkeyd",
            ),
            (
                "names = ['a']\nadmin-socket = '/etc/latchkeyd/master.key'",
                "another file of latchkeyd",
            ),
            (
                "names = ['a']\nadmin-socket = '/etc/latchkeyd/latchkeyd.toml'",
                "another file of latchkeyd",
            ),
            (&long_socket, "longer than the 107 bytes of a socket's path"),
            ("names = ['a']\nlog-level = 'loud'", "'log-level' is 'loud'"),
            ("names = 'a'", "invalid type"),
            ("names = ['a']\napprovers = ['a b']", "no user's name"),
            ("names = ['a']\napprovers = ['a', 'a']", "'a' twice"),
            ("names = ['a']\nlife-interval-s = 0", "1 to 60"),
            ("names = ['a']\nlife-interval-s = 61", "1 to 60"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_data_dir_of_its_own_keeps_everything_in_and_beside_it() {
        let new = NewConfig {
            data_dir: Some("/srv/k".into()),
            master_key: None,
            names: vec!["10.0.2.2:8443".parse().unwrap()],
        };
        let (config, path) = new.build().unwrap();
        assert_eq!(path, Path::new("/srv/k/latchkeyd.toml"));
        assert_eq!(config.master_key, Path::new("/srv/k.master-key"));
        assert_eq!(config.admin_socket, Path::new("/srv/k.run/admin.sock"));
        assert_eq!(config.listen, ["[::]:8443".parse().unwrap()]);
    }
}
