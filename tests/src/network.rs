//! A network of its own for each scenario, so that several run side by side with the same addresses and nothing in
//! them reaches the world: the guest sees the namespace's loopback as 10.0.2.2.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::tool::{self, ToolError};

/// The host's loopback as the guest sees it.
pub const HOST: &str = "10.0.2.2";

/// A network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused.
    #[error("failed to make a network namespace\nthe boot tests need root")]
    Namespace(#[source] nix::Error),
    /// The host's network cannot be found again.
    #[error("failed to enter the host's network")]
    Host(#[source] io::Error),
    /// The loopback device could not be switched on.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Moves the calling thread, and all that it starts from now on, into a fresh network with only a loopback.
///
/// # Errors
/// `Namespace` without root.
pub fn enter_own() -> Result<(), NetworkError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(NetworkError::Namespace)?;
    tool::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    Ok(())
}

/// Moves the calling thread, and all that it starts from now on, back into the network of the process' first thread,
/// which has never left the host's.
///
/// # Errors
/// `Host` without root.
pub fn enter_host() -> Result<(), NetworkError> {
    let network = File::open("/proc/self/ns/net").map_err(NetworkError::Host)?;
    setns(network, CloneFlags::CLONE_NEWNET).map_err(|error| NetworkError::Host(error.into()))
}

/// A server that accepts every connection and never says a word.
///
/// # Errors
/// If the port is taken.
pub fn silent_server(port: u16) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        let mut kept = Vec::new();
        // Connections stay open until the test process ends.
        while let Ok((connection, _)) = listener.accept() {
            kept.push(connection);
        }
    });
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;
    use std::time::Duration;

    #[test]
    fn a_silent_server_accepts_and_says_nothing() {
        let address = silent_server(0).unwrap();
        let mut connection = TcpStream::connect(address).unwrap();
        connection
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let error = connection.read(&mut [0]).unwrap_err();
        assert!(
            matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ),
            "{error}"
        );
    }
}
