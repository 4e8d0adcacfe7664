//! DHCP messages as bytes: what a client sends, and the few fields of an answer that it looks at.
//!
//! RFC 2131 §2 (the fixed part), RFC 2132 (options), RFC 3396 (an option in several pieces). Written by hand and
//! not with a general library, because an option that we do not use must not make an answer unreadable, however
//! it is malformed; and because whoever is on the link can send anything.

use std::net::Ipv4Addr;

use super::values::Mac;

/// Options by number, RFC 2132 unless said otherwise.
pub mod option {
    #![allow(missing_docs)]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const MTU: u8 = 26;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETER_LIST: u8 = 55;
    pub const MAXIMUM_SIZE: u8 = 57;
    /// RFC 3442.
    pub const CLASSLESS_ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Client: who is there?
    Discover,
    /// Server: take this.
    Offer,
    /// Client: I take it, or I keep it.
    Request,
    /// Server: it is yours.
    Ack,
    /// Server: it is not yours.
    Nak,
    /// Client: I give it back.
    Release,
}

/// A message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What for.
    pub kind: Kind,
    /// Of this exchange.
    pub transaction: u32,
    /// Whose.
    pub mac: Mac,
    /// Since the exchange began.
    pub seconds: u16,
    /// The answer must be broadcast: we cannot receive anything else.
    pub broadcast: bool,
    /// The address that we have and use, or none.
    pub current: Option<Ipv4Addr>,
    /// The address that we want.
    pub requested: Option<Ipv4Addr>,
    /// The server that is meant.
    pub server: Option<Ipv4Addr>,
}

/// An answer to us, taken apart but not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// What for.
    pub kind: Kind,
    /// "Your address".
    pub address: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

const FIXED: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Relays and servers drop shorter ones (RFC 1542 §2.1).
const SMALLEST: usize = 300;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

impl Outgoing {
    /// The bytes to send as the payload of a UDP datagram.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[0] = 1; // from a client
        bytes[1] = 1; // Ethernet
        bytes[2] = 6; // of six bytes
        bytes[4..8].copy_from_slice(&self.transaction.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.seconds.to_be_bytes());
        bytes[10] = if self.broadcast { 0x80 } else { 0 };
        bytes[12..16].copy_from_slice(&self.current.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        bytes.extend(COOKIE);
        let mut put = |code: u8, value: &[u8]| {
            bytes.extend([code, value.len() as u8]);
            bytes.extend(value);
        };
        put(option::MESSAGE_TYPE, &[self.kind.code()]);
        if let Some(address) = self.requested {
            put(option::REQUESTED_ADDRESS, &address.octets());
        }
        if let Some(server) = self.server {
            put(option::SERVER_ID, &server.octets());
        }
        if self.kind != Kind::Release {
            put(option::MAXIMUM_SIZE, &1472_u16.to_be_bytes());
            // 121 before 3, as RFC 3442 wants it. No host name: nothing about the machine is told.
            put(
                option::PARAMETER_LIST,
                &[
                    option::CLASSLESS_ROUTES,
                    option::SUBNET_MASK,
                    option::ROUTER,
                    option::DNS,
                    option::MTU,
                    option::LEASE_TIME,
                    option::SERVER_ID,
                ],
            );
        }
        bytes.push(option::END);
        bytes.resize(bytes.len().max(SMALLEST), option::PAD);
        bytes
    }
}

impl Incoming {
    /// Takes an answer apart; none if it is not one to this exchange of this card.
    pub fn decode(bytes: &[u8], transaction: u32, mac: Mac) -> Option<Self> {
        let fixed = bytes.get(..FIXED)?;
        let is_ours = fixed[..3] == [2, 1, 6]
            && fixed[4..8] == transaction.to_be_bytes()
            && fixed[28..34] == mac.0;
        let (cookie, rest) = bytes.get(FIXED..)?.split_at_checked(COOKIE.len())?;
        if !is_ours || cookie != COOKIE {
            return None;
        }
        let mut options = Vec::new();
        collect(rest, &mut options);
        // RFC 2132 §9.3: the fields for a server's name and a boot file may hold options instead, file first.
        let overload = options
            .iter()
            .find(|(code, _)| *code == option::OVERLOAD)
            .map(|(_, value)| value.clone());
        if let Some([which]) = overload.as_deref() {
            if which & 1 != 0 {
                collect(&fixed[FILE], &mut options);
            }
            if which & 2 != 0 {
                collect(&fixed[SNAME], &mut options);
            }
        }
        let kind = match options
            .iter()
            .find(|(code, _)| *code == option::MESSAGE_TYPE)?
            .1[..]
        {
            [2] => Kind::Offer,
            [5] => Kind::Ack,
            [6] => Kind::Nak,
            _ => return None,
        };
        let address = <[u8; 4]>::try_from(&fixed[16..20]).ok()?.into();
        Some(Self {
            kind,
            address,
            options,
        })
    }

    /// The content of an option; none if it is missing.
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options
            .iter()
            .find(|(found, _)| *found == code)
            .map(|(_, value)| value.as_slice())
    }

    /// The option's content as one address; none if it is anything else.
    pub fn address_option(&self, code: u8) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.option(code)?)
            .ok()
            .map(Ipv4Addr::from)
    }

    /// The option's content as a list of addresses; empty if it is anything else.
    pub fn addresses_option(&self, code: u8) -> Vec<Ipv4Addr> {
        let value = self.option(code).unwrap_or_default();
        let (addresses, rest) = value.as_chunks::<4>();
        if rest.is_empty() {
            addresses.iter().copied().map(Ipv4Addr::from).collect()
        } else {
            Vec::new()
        }
    }
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
        }
    }
}

/// Adds the options in `bytes` to `options`, pieces of one option joined (RFC 3396 §7). Stops where it makes no
/// more sense.
fn collect(mut bytes: &[u8], options: &mut Vec<(u8, Vec<u8>)>) {
    while let [code, rest @ ..] = bytes {
        match (*code, rest) {
            (option::PAD, _) => bytes = rest,
            (option::END, _) | (_, []) => return,
            (code, [length, rest @ ..]) => {
                let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else {
                    return;
                };
                match options.iter_mut().find(|(found, _)| *found == code) {
                    Some((_, earlier)) => earlier.extend(value),
                    None => options.push((code, value.to_vec())),
                }
                bytes = rest;
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use dhcproto::v4::{self, DhcpOption, Message, MessageType, OptionCode};
    use dhcproto::{Decodable as _, Decoder, Encodable as _, Encoder};

    use super::*;

    pub const CARD: Mac = Mac([2, 0, 0, 0, 0, 7]);

    /// An answer with these raw options, as a server would send it.
    pub fn answer(
        transaction: u32,
        mac: Mac,
        address: [u8; 4],
        options: &[(u8, &[u8])],
    ) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[..3].copy_from_slice(&[2, 1, 6]);
        bytes[4..8].copy_from_slice(&transaction.to_be_bytes());
        bytes[16..20].copy_from_slice(&address);
        bytes[28..34].copy_from_slice(&mac.0);
        bytes.extend(COOKIE);
        for (code, value) in options {
            bytes.extend([*code, value.len() as u8]);
            bytes.extend(*value);
        }
        bytes.push(option::END);
        bytes
    }

    #[test]
    fn another_implementation_reads_what_we_write() {
        let request = Outgoing {
            kind: Kind::Request,
            transaction: 0x1234_5678,
            mac: CARD,
            seconds: 9,
            broadcast: true,
            current: None,
            requested: Some([192, 0, 2, 7].into()),
            server: Some([192, 0, 2, 1].into()),
        };
        let bytes = request.encode();
        assert!(bytes.len() >= SMALLEST);
        let read = Message::decode(&mut Decoder::new(&bytes)).unwrap();
        assert_eq!(
            (read.xid(), read.secs(), read.chaddr()),
            (0x1234_5678, 9, &CARD.0[..])
        );
        assert!(read.flags().broadcast());
        assert_eq!(read.opts().msg_type(), Some(MessageType::Request));
        let wanted = Some(&DhcpOption::RequestedIpAddress([192, 0, 2, 7].into()));
        assert_eq!(read.opts().get(OptionCode::RequestedIpAddress), wanted);
        let server = Some(&DhcpOption::ServerIdentifier([192, 0, 2, 1].into()));
        assert_eq!(read.opts().get(OptionCode::ServerIdentifier), server);
    }

    #[test]
    fn we_read_what_another_implementation_writes() {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(7, none, [192, 0, 2, 7].into(), none, none, &CARD.0);
        message.set_opcode(v4::Opcode::BootReply);
        message
            .opts_mut()
            .insert(DhcpOption::MessageType(MessageType::Offer));
        message
            .opts_mut()
            .insert(DhcpOption::Router(vec![[192, 0, 2, 1].into()]));
        message.opts_mut().insert(DhcpOption::InterfaceMtu(1400));
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        let read = Incoming::decode(&bytes, 7, CARD).unwrap();
        assert_eq!(
            (read.kind, read.address),
            (Kind::Offer, [192, 0, 2, 7].into())
        );
        assert_eq!(
            read.addresses_option(option::ROUTER),
            [Ipv4Addr::new(192, 0, 2, 1)]
        );
        assert_eq!(read.option(option::MTU), Some(&[5, 120][..]));
    }

    #[test]
    fn answers_to_others_are_not_ours() {
        let offer = |change: fn(&mut Vec<u8>)| {
            let mut bytes = answer(7, CARD, [192, 0, 2, 7], &[(option::MESSAGE_TYPE, &[2])]);
            change(&mut bytes);
            Incoming::decode(&bytes, 7, CARD).is_some()
        };
        assert!(offer(|_| ()));
        for (case, change) in [
            ("a request", (|bytes| bytes[0] = 1) as fn(&mut Vec<u8>)),
            ("another kind of link", |bytes| bytes[1] = 6),
            ("another transaction", |bytes| bytes[7] = 8),
            ("another card", |bytes| bytes[33] = 8),
            ("no cookie", |bytes| bytes[FIXED] = 0),
            ("a message of a client", |bytes| bytes[FIXED + 6] = 1),
            ("no message type", |bytes| bytes[FIXED + 4] = option::MTU),
            ("only the fixed part", |bytes| bytes.truncate(FIXED)),
            ("half a cookie", |bytes| bytes.truncate(FIXED + 2)),
            ("nothing", |bytes| bytes.clear()),
        ] {
            assert!(!offer(change), "{case}");
        }
    }

    #[test]
    fn options_in_pieces_and_in_other_fields_are_joined() {
        let pieces: &[(u8, &[u8])] = &[
            (option::MESSAGE_TYPE, &[5]),
            (option::DNS, &[192, 0]),
            (option::OVERLOAD, &[3]),
            (option::DNS, &[2, 53]),
        ];
        let mut bytes = answer(7, CARD, [192, 0, 2, 7], pieces);
        bytes[FILE.start..FILE.start + 4].copy_from_slice(&[option::MTU, 1, 5, option::END]);
        bytes[SNAME.start..SNAME.start + 4].copy_from_slice(&[option::MTU, 1, 120, option::END]);
        let read = Incoming::decode(&bytes, 7, CARD).unwrap();
        assert_eq!(
            read.addresses_option(option::DNS),
            [Ipv4Addr::new(192, 0, 2, 53)]
        );
        assert_eq!(read.option(option::MTU), Some(&[5, 120][..]));
    }
}
