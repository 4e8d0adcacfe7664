//! What this boot can ask with: a key pair of its own, and the boot key of each key server.
//!
//! The key files are overwritten in place as they are read: the initramfs lies in memory that is freed, but not
//! cleared, at the switch to the real root. An agent that is started again finds none, and only prompts.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use latchkey_protocol::release::ReleaseError;
use latchkey_protocol::{BootKeyPair, RequestId};
use latchkey_secret::SecretBytes;

use crate::failure::chain;
use crate::files::{Files, Role, ServerFiles, ServerSettings};
use crate::server::{CertificateTime, Client, Identity};

/// Everything secret that the flow's `Wipe` drops, but for the shares.
#[derive(Debug)]
pub struct Credentials {
    /// The boot session's key pair.
    pub session: BootKeyPair,
    /// The boot session's name.
    pub request: RequestId,
    /// The key servers, as their folders are ordered.
    pub servers: Vec<Server>,
}

/// One key server and what to speak to it with.
#[derive(Debug)]
pub struct Server {
    /// Who and where.
    pub settings: ServerSettings,
    /// The material of a [`Client`].
    pub material: ClientMaterial,
}

/// The files that a [`Client`] is made of; made where it is used, so that it never moves between threads.
#[derive(Debug)]
pub struct ClientMaterial {
    key: SecretBytes,
    certificate: Vec<u8>,
    ca: Vec<u8>,
}

impl ClientMaterial {
    /// The client, trusting certificates that had not ended at `time` (Unix seconds).
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub fn client(&self, time: u64) -> Result<Client, String> {
        let identity =
            Identity::from_pem(&self.key, &self.certificate).map_err(|error| chain(&error))?;
        Client::new(&self.ca, &identity, CertificateTime(time)).map_err(|error| chain(&error))
    }
}

impl Credentials {
    /// Reads every key server's boot key and overwrites its file. What is wrong with one is told by `problem` and
    /// hides no other.
    ///
    /// # Errors
    /// One line: why there is nothing to ask with.
    pub fn take(files: &Files, mut problem: impl FnMut(String)) -> Result<Self, String> {
        let mut servers = Vec::new();
        for server in files.servers().map_err(|error| chain(&error))? {
            match server
                .map_err(|error| chain(&error))
                .and_then(|server| take_one(&server))
            {
                Ok(server) => servers.push(server),
                Err(why) => problem(why),
            }
        }
        if servers.is_empty() {
            return Err(
                "there is no boot key in this initramfs, or it was used in this boot already"
                    .to_owned(),
            );
        }
        let session = BootKeyPair::generate().map_err(|error: ReleaseError| chain(&error))?;
        let request = RequestId::random().map_err(|error| error.to_string())?;
        Ok(Self {
            session,
            request,
            servers,
        })
    }
}

/// Overwrites and removes every boot key below `files`, read or not.
pub fn wipe_files(files: &Files) {
    for server in files.servers().into_iter().flatten().flatten() {
        let path = server.key_path(Role::Boot);
        if let Err(error) = overwrite(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("failed to overwrite '{}': {error}", path.display());
        }
    }
}

fn take_one(server: &ServerFiles) -> Result<Server, String> {
    let path = server.key_path(Role::Boot);
    let key = server.key(Role::Boot);
    // Overwritten whether it could be read or not.
    let overwritten = overwrite(&path);
    let key = key.map_err(|error| chain(&error))?;
    overwritten.map_err(|error| format!("failed to overwrite '{}': {error}", path.display()))?;
    let certificate = server
        .certificate(Role::Boot)
        .map_err(|error| chain(&error))?;
    let ca = server.ca().map_err(|error| chain(&error))?;
    Ok(Server {
        settings: server.settings.clone(),
        material: ClientMaterial {
            key,
            certificate,
            ca,
        },
    })
}

/// Zeros over the file's content in place, then removes it.
fn overwrite(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    if !latchkey_secret::CONTROL {
        file.write_all(&vec![0; length])?;
        file.sync_all()?;
    }
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn a_key_file_is_overwritten_in_place_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot.key");
        fs::write(&path, b"a private key").unwrap();
        let mut witness = File::open(&path).unwrap();
        overwrite(&path).unwrap();
        assert!(!path.exists());
        let mut content = Vec::new();
        witness.read_to_end(&mut content).unwrap();
        assert_eq!(content, [0; 13]);
    }

    #[test]
    fn without_a_key_there_is_nothing_to_ask_with() {
        let dir = tempfile::tempdir().unwrap();
        let error = Credentials::take(&Files::under(dir.path()), |_| {}).unwrap_err();
        assert!(error.contains("used in this boot already"), "{error}");
    }
}
