//! A packet socket bound to one interface: the address it is bound to has no safe constructor.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType};

/// Opens a raw packet socket (packet(7)) for one interface and one Ethernet protocol, not blocking and closed on
/// exec. What is written to it is a whole Ethernet frame; what is read too.
///
/// # Errors
/// What the kernel says; `EAFNOSUPPORT` where it has no packet sockets, `EPERM` without CAP_NET_RAW.
pub fn packet_socket(index: u32, ethertype: u16) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // With no protocol it receives nothing until it is bound, so no frame of another interface gets in.
    let socket = nix::sys::socket::socket(
        AddressFamily::Packet,
        SockType::Raw,
        flags,
        None::<SockProtocol>,
    )?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer is to a live sockaddr_ll and the length is its size; bind only reads it.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast::<libc::sockaddr>(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(socket)
    } else {
        Err(io::Error::last_os_error())
    }
}
