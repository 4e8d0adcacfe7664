//! A joined key server as the running system's commands use it: every address is tried once, that of the last answer first.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// Which address answered last.
    last: AtomicUsize,
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
            last: AtomicUsize::new(0),
        })
    }

    /// Sends `request` to one address after the other until one answers; first to the one that did so last, because the
    /// others may cost seconds each, and who asks whether this machine lives waits 20.
    ///
    /// # Errors
    /// `Everywhere` if none answers, `Final` as soon as one refuses.
    pub async fn ask<A>(
        &self,
        request: impl AsyncFn(&Client, &Address) -> Result<A, ClientError>,
    ) -> Result<A, Unreachable> {
        let mut tries = Vec::new();
        let addresses = &self.settings.addresses;
        let last = self.last.load(Ordering::Relaxed);
        for number in with_first(last, addresses.len()) {
            match request(&self.client, &addresses[number]).await {
                Err(error) if error.fault.is_network_fault() => tries.push(error),
                answered => {
                    self.last.store(number, Ordering::Relaxed);
                    return answered.map_err(Unreachable::Final);
                }
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

/// The numbers below `count`, `first` before the others.
fn with_first(first: usize, count: usize) -> impl Iterator<Item = usize> {
    let others = (0..count).filter(move |number| *number != first);
    std::iter::once(first)
        .filter(move |first| *first < count)
        .chain(others)
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

#[cfg(test)]
mod tests {
    use super::with_first;

    #[test]
    fn the_address_that_answered_last_comes_first() {
        let order = |first, count| with_first(first, count).collect::<Vec<_>>();
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(2, 3), [2, 0, 1]);
        assert_eq!(order(0, 0), [0; 0]);
    }
}
