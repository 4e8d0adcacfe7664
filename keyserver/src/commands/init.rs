//! `latchkeyd init`: makes a key server. Nothing is overwritten; an interrupted one goes on where it stopped.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use clap::Args;
use latchkey_protocol::token::Address;
use nix::unistd::Uid;

use super::target::absolute;
use super::{Failure, output};
use crate::config::{CAPABILITY_HINT, Config, NewConfig, OPEN_PORTS};
use crate::keyring;

/// Make a key server: master key, store, CA, certificate and configuration
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd init --name keys.example.org
  latchkeyd init --name keys.example.org --name 203.0.113.7:7443
  latchkeyd init --data-dir ./demo --name 127.0.0.1:7443

Files (without --data-dir):
  /etc/latchkeyd/latchkeyd.toml   the configuration
  /etc/latchkeyd/master.key       the master key: without it the store is worthless. Keep a copy
                                  of it apart from copies of the store.
  /var/lib/latchkeyd              the store
With --data-dir D store and configuration lie in D, and beside it the master key, D.master-key, and
the folder of the running server's admin socket, D.run.

If it is interrupted, run the same command again: it goes on where it stopped.")]
pub struct Init {
    /// A name or address by which machines reach this server; may be given several times
    #[arg(long = "name", value_name = "HOST_OR_IP[:PORT]", required = true)]
    names: Vec<Address>,
    /// Keep store and configuration in this directory [default: /var/lib/latchkeyd, /etc/latchkeyd]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the master key goes [default: /etc/latchkeyd/master.key, or DIR.master-key]
    #[arg(long, value_name = "FILE")]
    master_key: Option<PathBuf>,
}

impl Init {
    pub fn run(self) -> Result<(), Failure> {
        let new = NewConfig {
            data_dir: self.data_dir.as_deref().map(absolute).transpose()?,
            master_key: self.master_key.as_deref().map(absolute).transpose()?,
            names: self.names,
        };
        let own_directory = new.data_dir.clone();
        let (config, path) = new.build().map_err(Failure::usage)?;
        if path.exists() {
            return Err(Failure::refused(format!(
                "there is a key server already: '{}' exists\nnothing was changed; start it with 'latchkeyd serve', or make another one with --data-dir",
                path.display()
            )));
        }
        if own_directory.is_none() {
            make_folder(path.parent().unwrap_or(Path::new("/")))?;
        }
        take_over(&config.data_dir).map_err(|error| failed(&config.data_dir, &error))?;
        let (opened, steps) = keyring::init(&config).map_err(|error| Failure::of(&error))?;
        for step in steps {
            output::hint(&step);
        }
        write_config(&path, &config)?;
        output::hint(&format!("wrote '{}'", path.display()));
        output::data(&format!(
            "CA fingerprint (SHA-256): {}",
            opened.service.server()
        ))?;
        if let Some(warning) = low_port(&config) {
            output::hint(&warning);
        }
        output::hint(&next_steps(&config, own_directory.as_deref()));
        Ok(())
    }
}

/// What to do where the unit of latchkeyd may not listen.
fn low_port(config: &Config) -> Option<String> {
    let port = config.listen.iter().map(SocketAddr::port).min()?;
    (1..OPEN_PORTS).contains(&port).then(|| {
        format!("warning: port {port} needs a capability, which latchkeyd.service does not give: {CAPABILITY_HINT}")
    })
}

fn next_steps(config: &Config, own_directory: Option<&Path>) -> String {
    let key = config.master_key.display();
    match own_directory {
        None => format!(
            "Next:\n  keep a copy of '{key}' in a safe place, apart from copies of the store\n  systemctl enable --now latchkeyd\n  latchkeyd invite NAME"
        ),
        Some(directory) => {
            let directory = directory.display();
            format!(
                "Next:\n  keep a copy of '{key}' in a safe place, apart from copies of the store\n  latchkeyd serve --data-dir {directory}\n  latchkeyd invite NAME --data-dir {directory}"
            )
        }
    }
}

/// Makes the folder of the configuration, which the server's own user must be able to read: what is secret in it
/// has a mode of its own.
fn make_folder(folder: &Path) -> Result<(), Failure> {
    match std::fs::create_dir(folder) {
        Ok(()) => std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755))
            .map_err(|error| failed(folder, &error)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(folder, &error)),
    }
}

/// Makes root the owner of a store's folder that systemd gave to the server's user when the server was started
/// before it was set up. It gives it back at the next start.
fn take_over(folder: &Path) -> std::io::Result<()> {
    let Ok(facts) = std::fs::symlink_metadata(folder) else {
        return Ok(());
    };
    if !Uid::effective().is_root() || !facts.is_dir() || facts.uid() == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"store.") {
            lchown(entry.path(), Some(0), Some(0))?;
        }
    }
    lchown(folder, Some(0), Some(0))
}

/// Writes the configuration as one step: whoever reads sees all of it or nothing.
fn write_config(path: &Path, config: &Config) -> Result<(), Failure> {
    let temporary = path.with_extension("toml.new");
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&temporary)?;
        file.write_all(config.to_toml().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    let hint = match error.kind() {
        std::io::ErrorKind::PermissionDenied => "\nrun this command as root, or use --data-dir",
        _ => "",
    };
    Failure {
        code: super::FAILED,
        text: format!("failed to make '{}': {error}{hint}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_the_unit_may_not_listen_on_is_warned_of() {
        for (name, warned) in [
            ("keys.example.org:443", true),
            ("keys.example.org:1023", true),
            ("keys.example.org:1024", false),
            ("keys.example.org", false),
        ] {
            let new = NewConfig {
                data_dir: None,
                master_key: None,
                names: vec![name.parse().unwrap()],
            };
            let (config, _) = new.build().unwrap();
            let warning = low_port(&config);
            assert_eq!(warning.is_some(), warned, "{name}: {warning:?}");
        }
    }
}
