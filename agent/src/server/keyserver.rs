//! A joined key server as the running system's commands use it: every address is tried once, in order.

use std::future::Future;
use std::io;
use std::time::Duration;

use latchkey_protocol::token::Address;

use super::{CertificateTime, Client, ClientError, Identity, IdentityError, SetupError};
use crate::files::{FilesError, Role, ServerFiles, ServerSettings};

/// A key server that this machine has joined, with one of the machine's identities.
#[derive(Debug)]
pub struct KeyServer {
    /// Who it is and where.
    pub settings: ServerSettings,
    client: Client,
}

/// The files of a joined key server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyServerError {
    /// A file cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Key and certificate are not usable.
    #[error(
        "the files in '{dir}' are not usable\nrestore them, or have this machine taken back: latchkey join --again"
    )]
    Identity {
        /// Their folder.
        dir: String,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// The CA is not usable, or the TLS library refused.
    #[error("failed to prepare the connection with the files in '{dir}'")]
    Setup {
        /// Their folder.
        dir: String,
        /// Why.
        #[source]
        source: SetupError,
    },
}

/// A key server gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// No address worked. Each with what happened there.
    #[error("{}", lines(.0))]
    Everywhere(Vec<ClientError>),
    /// The key server has spoken, and the answer is no.
    #[error(transparent)]
    Final(ClientError),
}

impl Unreachable {
    /// How long to wait before all addresses are tried again: the shortest time that any of them asks for. `None` if none
    /// of them asks.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Everywhere(tries) => {
                let asked = tries.iter().filter_map(|error| error.fault.retry_after());
                asked.min()
            }
            Self::Final(error) => error.fault.retry_after(),
        }
    }
}

impl KeyServer {
    /// The key server of `files`, asked with the identity of `role`.
    ///
    /// # Errors
    /// A variant of [`KeyServerError`] for what is wrong with the files.
    pub fn open(files: &ServerFiles, role: Role) -> Result<Self, KeyServerError> {
        Self::with_certificate(files, role, &files.certificate(role)?)
    }

    /// As [`KeyServer::open`], with `certificate` (PEM) in place of the one in the files.
    ///
    /// # Errors
    /// As [`KeyServer::open`].
    pub fn with_certificate(
        files: &ServerFiles,
        role: Role,
        certificate: &[u8],
    ) -> Result<Self, KeyServerError> {
        let dir = || files.dir.display().to_string();
        let identity = Identity::from_pem(&files.key(role)?, certificate)
            .map_err(|source| KeyServerError::Identity { dir: dir(), source })?;
        let time = CertificateTime(files.settings.joined);
        let client = Client::new(&files.ca()?, &identity, time)
            .map_err(|source| KeyServerError::Setup { dir: dir(), source })?;
        Ok(Self {
            settings: files.settings.clone(),
            client,
        })
    }

    /// Sends `request` to one address after the other until one answers.
    ///
    /// # Errors
    /// `Everywhere` if none answers, `Final` as soon as one refuses.
    pub async fn ask<A>(
        &self,
        request: impl AsyncFn(&Client, &Address) -> Result<A, ClientError>,
    ) -> Result<A, Unreachable> {
        let mut tries = Vec::new();
        for address in &self.settings.addresses {
            match request(&self.client, address).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.fault.is_network_fault() => tries.push(error),
                Err(error) => return Err(Unreachable::Final(error)),
            }
        }
        Err(Unreachable::Everywhere(tries))
    }

    /// Sends `request` to every address, in order, whatever the others answer.
    pub async fn ask_each<A>(
        &self,
        request: impl AsyncFn(&Client, &Address) -> Result<A, ClientError>,
    ) -> Vec<Result<A, ClientError>> {
        let mut answers = Vec::new();
        for address in &self.settings.addresses {
            answers.push(request(&self.client, address).await);
        }
        answers
    }
}

/// Runs `future` to its end on this thread.
///
/// # Errors
/// The kernel's, if it grants no event queue.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(2)
        .build()?;
    let result = runtime.block_on(future);
    // A name lookup that never returns must not hold us.
    runtime.shutdown_background();
    Ok(result)
}

fn lines(errors: &[ClientError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
