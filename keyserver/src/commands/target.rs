//! Which server a command is for.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::de::DeserializeOwned;

use super::Failure;
use crate::admin::client;
use crate::admin::protocol::Request;
use crate::config::{
    Config, ConfigError, DEFAULT_ADMIN_SOCKET, DEFAULT_PATH, FILE_NAME, own_socket,
};

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigSource {
    /// The configuration file [default: /etc/latchkeyd/latchkeyd.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A data directory that was made with 'init --data-dir'; its latchkeyd.toml is the configuration
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub data_dir: Option<PathBuf>,
}

/// Which running server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which server")]
pub struct Target {
    #[command(flatten)]
    source: ConfigSource,
    /// The admin socket of the running server [default: as the configuration says]
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["config", "data_dir"])]
    socket: Option<PathBuf>,
}

impl ConfigSource {
    /// The file.
    pub fn path(&self) -> PathBuf {
        match (&self.data_dir, &self.config) {
            (Some(directory), _) => directory.join(FILE_NAME),
            (None, Some(file)) => file.clone(),
            (None, None) => PathBuf::from(DEFAULT_PATH),
        }
    }

    /// The checked configuration and the file it came from, as an absolute path.
    pub fn load(&self) -> Result<(Config, PathBuf), Failure> {
        let path = absolute(&self.path())?;
        let config = Config::load(&path).map_err(|error| Failure::of(&error))?;
        if let Some(directory) = &self.data_dir
            && !same_directory(directory, &config.data_dir)
        {
            return Err(Failure::usage(format!(
                "'{}' is for another data directory, '{}'\nuse --config, or correct its 'data-dir'",
                path.display(),
                config.data_dir.display()
            )));
        }
        Ok((config, path))
    }
}

impl Target {
    /// Asks the running server.
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Failure> {
        Ok(client::ask(&self.socket()?, request)?)
    }

    /// As [`Target::ask`], with the reason why it failed still at hand.
    pub fn source(&self) -> &ConfigSource {
        &self.source
    }

    /// The admin socket.
    pub fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        if let Some(directory) = &self.source.data_dir
            && !directory.join(FILE_NAME).exists()
        {
            // Approvers cannot look into it.
            return Ok(own_socket(&absolute(directory)?));
        }
        match Config::load(&self.source.path()) {
            Ok(config) => Ok(config.admin_socket),
            // Not everybody who may use the socket may read the file.
            Err(ConfigError::Read(..)) if self.source.config.is_none() => {
                Ok(PathBuf::from(DEFAULT_ADMIN_SOCKET))
            }
            Err(error) => Err(Failure::of(&error)),
        }
    }
}

/// `path` seen from the root.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::of(&error))
}

fn same_directory(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
