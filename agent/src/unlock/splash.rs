//! What people are told where a splash screen hides the console: Plymouth shows it.
//!
//! A code that is to be compared on the phone is of no use behind a picture. Only a Plymouth that draws gets the lines: one that
//! shows text shows the console too. Its protocol is that of `plymouth message` (ply-boot-protocol.h): a letter, 2, the length and
//! the argument with its zero byte; the answer is not waited for.

use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// An abstract socket (unix(7)).
const SOCKET: &[u8] = b"/org/freedesktop/plymouthd";
/// The length is one byte and counts the zero.
const LIMIT: usize = 254;

/// Shows a line, if there is a Plymouth.
pub fn show(line: &str) {
    if let Err(error) = send(SOCKET, line) {
        log::debug!("the splash screen does not show what is said: {error}");
    }
}

/// To a Plymouth that hangs the line is lost: nothing here is waited for.
fn send(name: &[u8], line: &str) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
    UnixStream::from(socket).write_all(&message(line))
}

fn message(line: &str) -> Vec<u8> {
    let mut end = line.len().min(LIMIT);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let mut packet = vec![b'M', 2, u8::try_from(end + 1).unwrap_or(u8::MAX)];
    packet.extend_from_slice(&line.as_bytes()[..end]);
    packet.push(0);
    packet
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use super::*;

    #[test]
    fn a_line_is_sent_as_plymouth_reads_it() {
        let name = format!("latchkey-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        send(name.as_bytes(), "code 17").unwrap();
        let mut received = Vec::new();
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"M\x02\x08code 17\0");
        drop((stream, listener));
        assert!(send(name.as_bytes(), "nobody there").is_err());
    }

    #[test]
    fn a_long_line_is_cut_between_two_letters() {
        let packet = message(&format!("{}ü", "x".repeat(253)));
        assert_eq!(packet.len(), 3 + 253 + 1);
        assert_eq!(packet[2], 254);
        assert_eq!(message(&"x".repeat(300))[2], 255);
    }
}
