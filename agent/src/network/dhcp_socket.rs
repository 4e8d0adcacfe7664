//! Sends and receives DHCP datagrams on an interface that has no address yet.
//!
//! By a packet socket, with Ethernet, IPv4 and UDP headers made and checked here. Where the kernel has no packet
//! sockets, by a UDP socket bound to the interface; then answers must be broadcast, and an address that is not in
//! use yet cannot be a destination.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use tokio::net::UdpSocket;

use super::values::Mac;

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
const ETHERTYPE_IPV4: u16 = 0x0800;
const UDP: u8 = 17;
const ETHERNET_HEADER: usize = 14;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// The largest frame of an interface whose MTU is not out of the ordinary; longer ones are no DHCP.
const FRAME_LIMIT: usize = 9216;

/// Which kind of socket is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// AF_PACKET: sees and sends whole frames.
    Packet,
    /// AF_INET, bound to the interface.
    Udp,
}

/// One socket on one interface.
#[derive(Debug)]
pub struct DhcpSocket {
    mac: Mac,
    /// Of either kind: on a bound packet socket, send(2) and recv(2) do what is needed.
    socket: UdpSocket,
    transport: Transport,
    frame: Vec<u8>,
}

/// A datagram from a server's port.
#[derive(Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// The DHCP message.
    pub payload: &'a [u8],
    /// Who sent the frame, where that can be seen.
    pub from: Option<Mac>,
}

impl DhcpSocket {
    /// Opens a packet socket, or a UDP one where the kernel has no packet sockets. Must be called on a tokio
    /// runtime with I/O.
    ///
    /// # Errors
    /// What the kernel says, e.g. without CAP_NET_RAW.
    pub fn open(index: u32, name: &str, mac: Mac) -> io::Result<Self> {
        match Self::open_as(Transport::Packet, index, name, mac) {
            Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
                Self::open_as(Transport::Udp, index, name, mac)
            }
            other => other,
        }
    }

    /// Opens a socket of one kind.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open_as(transport: Transport, index: u32, name: &str, mac: Mac) -> io::Result<Self> {
        let socket = match transport {
            Transport::Packet => latchkey_secret::packet_socket(index, ETHERTYPE_IPV4)?,
            Transport::Udp => udp_socket(name)?,
        };
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self {
            mac,
            socket,
            transport,
            frame: vec![0; FRAME_LIMIT],
        })
    }

    /// Whether the server must be asked to broadcast its answer.
    pub fn needs_broadcast(&self) -> bool {
        self.transport == Transport::Udp
    }

    /// Broadcasts a message to the servers' port.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn broadcast(&self, payload: &[u8]) -> io::Result<()> {
        match self.transport {
            Transport::Packet => {
                let ends = Ends {
                    from: (self.mac, Ipv4Addr::UNSPECIFIED, CLIENT_PORT),
                    to: (Mac([0xff; 6]), Ipv4Addr::BROADCAST, SERVER_PORT),
                };
                self.put(&encode(&ends, payload)).await
            }
            Transport::Udp => {
                self.socket
                    .send_to(payload, (Ipv4Addr::BROADCAST, SERVER_PORT))
                    .await?;
                Ok(())
            }
        }
    }

    /// Sends a message from `address` to one server whose hardware address is known; only a packet socket can.
    ///
    /// # Errors
    /// What the kernel says; `Unsupported` with a UDP socket.
    pub async fn send_to(
        &self,
        server: (Mac, Ipv4Addr),
        address: Ipv4Addr,
        payload: &[u8],
    ) -> io::Result<()> {
        if self.transport == Transport::Udp {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let ends = Ends {
            from: (self.mac, address, CLIENT_PORT),
            to: (server.0, server.1, SERVER_PORT),
        };
        self.put(&encode(&ends, payload)).await
    }

    /// Waits for the next datagram from a server's port to the client's; anything else is skipped.
    ///
    /// # Errors
    /// What the kernel says, e.g. when the interface is down or gone.
    pub async fn receive(&mut self) -> io::Result<Received<'_>> {
        loop {
            let length = self.socket.recv(&mut self.frame).await?;
            let found = match self.transport {
                Transport::Udp => Some((0..length, None)),
                Transport::Packet => {
                    let found = decode(&self.frame[..length], self.mac);
                    found.map(|(payload, from)| (payload, Some(from)))
                }
            };
            if let Some((payload, from)) = found {
                let payload = &self.frame[payload];
                return Ok(Received { payload, from });
            }
        }
    }

    async fn put(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).await.map(|_| ())
    }
}

fn udp_socket(name: &str) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    socket::setsockopt(&socket, sockopt::Broadcast, &true)?;
    socket::setsockopt(&socket, sockopt::BindToDevice, &name.into())?;
    let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT));
    socket::bind(socket.as_raw_fd(), &any)?;
    Ok(socket)
}

/// Both ends of a datagram: hardware address, address, port.
#[derive(Clone, Copy)]
struct Ends {
    from: (Mac, Ipv4Addr, u16),
    to: (Mac, Ipv4Addr, u16),
}

/// A whole Ethernet frame with one UDP datagram (RFC 791, RFC 768).
fn encode(ends: &Ends, payload: &[u8]) -> Vec<u8> {
    let udp_length = (UDP_HEADER + payload.len()) as u16;
    let mut ip = Vec::with_capacity(IP_HEADER);
    ip.extend([0x45, 0x10]); // IPv4, five words, low delay
    ip.extend((IP_HEADER as u16 + udp_length).to_be_bytes());
    ip.extend([0, 0, 0, 0]); // one piece
    ip.extend([64, UDP, 0, 0]); // hops, protocol, checksum below
    ip.extend(ends.from.1.octets());
    ip.extend(ends.to.1.octets());
    let checksum = checksum(&ip, 0);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());

    let mut udp = Vec::with_capacity(usize::from(udp_length));
    udp.extend(ends.from.2.to_be_bytes());
    udp.extend(ends.to.2.to_be_bytes());
    udp.extend(udp_length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let checksum = udp_checksum(&ip, &udp);
    // Zero would mean that there is none.
    udp[6..8].copy_from_slice(&(if checksum == 0 { 0xffff } else { checksum }).to_be_bytes());

    let mut frame = Vec::with_capacity(ETHERNET_HEADER + ip.len() + udp.len());
    frame.extend(ends.to.0.0);
    frame.extend(ends.from.0.0);
    frame.extend(ETHERTYPE_IPV4.to_be_bytes());
    frame.extend(ip);
    frame.extend(udp);
    frame
}

/// Where the datagram lies in a frame to us from a server's port to the client's, and who sent the frame; none if
/// it is anything else.
///
/// The UDP checksum is not looked at: a virtual card may leave it to hardware that does not exist (then it is
/// wrong in every frame), and the link has its own.
fn decode(frame: &[u8], mac: Mac) -> Option<(Range<usize>, Mac)> {
    let (ethernet, ip) = frame.split_at_checked(ETHERNET_HEADER)?;
    let to = ethernet.first_chunk::<6>()?;
    let from = Mac(ethernet.get(6..12)?.try_into().ok()?);
    if (*to != mac.0 && *to != [0xff; 6]) || ethernet[12..] != ETHERTYPE_IPV4.to_be_bytes() {
        return None;
    }
    let header = ip.get(..IP_HEADER)?;
    let words = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] >> 4 != 4 || words < IP_HEADER || header[9] != UDP || is_fragment {
        return None;
    }
    let header = ip.get(..words)?;
    let udp = ip.get(..total)?.get(words..)?;
    let ports = [SERVER_PORT.to_be_bytes(), CLIENT_PORT.to_be_bytes()].concat();
    if checksum(header, 0) != 0 || udp.get(..4)? != ports {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
    let start = ETHERNET_HEADER + words + UDP_HEADER;
    let end = start + udp.get(UDP_HEADER..length)?.len();
    Some((start..end, from))
}

fn udp_checksum(ip: &[u8], udp: &[u8]) -> u16 {
    let (pairs, _) = ip[12..20].as_chunks::<2>();
    let addresses: u32 = pairs
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)))
        .sum();
    checksum(udp, addresses + u32::from(UDP) + udp.len() as u32)
}

/// The Internet checksum (RFC 1071) of `bytes`, on top of a sum of 16-bit words.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let mut sum: u32 = start
        + pairs
            .iter()
            .map(|pair| u32::from(u16::from_be_bytes(*pair)))
            .sum::<u32>();
    if let [last] = odd {
        sum += u32::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Mac = Mac([2, 0, 0, 0, 0, 7]);
    const SERVER: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn from_server(payload: &[u8]) -> Vec<u8> {
        let ends = Ends {
            from: (SERVER, [192, 0, 2, 1].into(), SERVER_PORT),
            to: (CARD, [192, 0, 2, 7].into(), CLIENT_PORT),
        };
        encode(&ends, payload)
    }

    #[test]
    fn a_frame_reads_back_as_it_was_written() {
        for payload in [&b""[..], b"odd", b"even"] {
            let frame = from_server(payload);
            // Padding to the smallest frame is no part of it.
            let padded = [&frame[..], &[0; 40]].concat();
            for frame in [frame, padded] {
                let (found, from) = decode(&frame, CARD).unwrap();
                assert_eq!((&frame[found], from), (payload, SERVER));
            }
        }
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 1071 §3.
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0),
            !0xddf2
        );
        // Summed over header and pseudo-header, a right one gives zero.
        let frame = from_server(b"odd");
        let (ip, udp) = frame[ETHERNET_HEADER..].split_at(IP_HEADER);
        assert_eq!((checksum(ip, 0), udp_checksum(ip, udp)), (0, 0));
    }

    #[test]
    fn anything_else_is_skipped() {
        for (case, change) in [
            (
                "to another card",
                (|frame| frame[5] = 9) as fn(&mut Vec<u8>),
            ),
            ("no IPv4", |frame| frame[13] = 6),
            ("another version", |frame| frame[14] = 0x65),
            ("a header of four words", |frame| frame[14] = 0x44),
            ("a header longer than the frame", |frame| frame[14] = 0x4f),
            ("a length longer than the frame", |frame| frame[16] = 0xff),
            ("a fragment", |frame| frame[20] = 0x20),
            ("TCP", |frame| frame[23] = 6),
            ("a wrong header checksum", |frame| frame[24] ^= 1),
            ("another client port", |frame| frame[37] = 69),
            ("another server port", |frame| frame[35] = 68),
            ("a UDP length longer than the datagram", |frame| {
                frame[38] = 0xff
            }),
            ("a UDP length shorter than its header", |frame| {
                frame[39] = 7
            }),
            ("a third of a frame", |frame| frame.truncate(20)),
            ("nothing", |frame| frame.clear()),
        ] {
            let mut frame = from_server(b"payload");
            assert!(decode(&frame, CARD).is_some());
            change(&mut frame);
            assert_eq!(decode(&frame, CARD), None, "{case}");
        }
        let mut frame = from_server(b"payload");
        frame[..6].fill(0xff);
        assert!(decode(&frame, CARD).is_some(), "broadcast is for us too");
    }

    proptest::proptest! {
        #[test]
        fn no_frame_makes_it_panic(start in 0..60_usize, noise in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
            let mut frame = from_server(b"payload");
            let start = start.min(frame.len());
            frame.truncate(start);
            frame.extend(noise);
            let _ = decode(&frame, CARD);
        }
    }
}
