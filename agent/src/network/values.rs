//! The values that all parts of the network code speak in: hardware addresses, IPv4 networks, routes.
//!
//! Each can only be made from something valid, so that later code needs no checks of its own.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address; written as six lower-case hex pairs with colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// An IPv4 network in CIDR notation, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Network {
    base: Ipv4Addr,
    prefix: u8,
}

/// An IPv4 address of an interface with the length of its network prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct InterfaceAddress {
    /// The address itself.
    pub address: Ipv4Addr,
    /// 1 to 32.
    pub prefix: u8,
    /// The other end, for an address of the point-to-point kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Ipv4Addr>,
}

/// One IPv4 route of the main table, on one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Route {
    /// Destination; `0.0.0.0/0` is the default route.
    pub to: Ipv4Network,
    /// Gateway; without one the destination is reached directly on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Ipv4Addr>,
    /// The gateway is on the link although no route says so (`ip route … onlink`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub on_link: bool,
    /// The smaller one wins; none is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// Source address to prefer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Ipv4Addr>,
}

/// Everything IPv4 that one interface is given, wherever it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipv4Config {
    /// Never empty where it is applied.
    pub addresses: Vec<InterfaceAddress>,
    /// Routes without a gateway come first, because the others may depend on them.
    pub routes: Vec<Route>,
    /// 576 or more.
    pub mtu: Option<u32>,
    /// At most three.
    pub resolvers: Vec<Ipv4Addr>,
}

/// A text that is not the value it should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is not {expected}")]
pub struct ValueError {
    text: String,
    expected: &'static str,
}

impl Ipv4Network {
    /// The default route's destination.
    pub const ALL: Self = Self {
        base: Ipv4Addr::UNSPECIFIED,
        prefix: 0,
    };

    /// The network of `prefix` bits that `address` lies in; none if there are no such networks.
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self {
            base: Ipv4Addr::from(u32::from(address) & mask(prefix)),
            prefix,
        })
    }

    /// The first address.
    pub fn base(self) -> Ipv4Addr {
        self.base
    }

    /// Number of leading bits, 0 to 32.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == u32::from(self.base)
    }

    /// Whether `address` is one a host may have in it: neither its first nor its last, where those are reserved.
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        let host = u32::from(address) & !mask(self.prefix);
        self.contains(address) && (self.prefix >= 31 || (host != 0 && host != !mask(self.prefix)))
    }
}

impl InterfaceAddress {
    /// The network that the kernel makes an on-link route for.
    pub fn network(self) -> Option<Ipv4Network> {
        Ipv4Network::containing(self.peer.unwrap_or(self.address), self.prefix)
    }
}

impl Ipv4Config {
    /// Puts the routes into an order in which they can be added, and marks gateways that nothing else makes
    /// reachable as being on the link (a /32 address with a gateway outside, as some providers hand out).
    pub fn order_routes(&mut self) {
        self.routes.sort_by_key(|route| route.via.is_some());
        let direct: Vec<Ipv4Network> = (self
            .addresses
            .iter()
            .filter_map(|address| address.network()))
        .chain(
            self.routes
                .iter()
                .filter(|route| route.via.is_none())
                .map(|route| route.to),
        )
        .collect();
        for route in &mut self.routes {
            if let Some(gateway) = route.via {
                route.on_link |= !direct.iter().any(|network| network.contains(gateway));
            }
        }
    }
}

/// Whether one host on the Internet or in a private network can have this address: neither "this network",
/// loopback, multicast, reserved nor broadcast (RFC 6890).
pub fn is_unicast(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

/// Whether it can be the MTU of a card that speaks IPv4, in bytes (RFC 791, 3.2).
pub fn is_mtu(mtu: u32) -> bool {
    (576..=65_535).contains(&mtu)
}

/// The prefix length of a netmask, none if its bits are not contiguous.
pub fn prefix_of_mask(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    let prefix = bits.leading_ones();
    (bits.count_ones() == prefix).then_some(prefix as u8)
}

fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

fn is_false(value: &bool) -> bool {
    !value
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Mac {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError {
            text: text.into(),
            expected: "a hardware address such as '52:54:00:12:34:56'",
        };
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or_else(wrong)?;
            let is_pair = pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = if is_pair {
                u8::from_str_radix(pair, 16).map_err(|_| wrong())?
            } else {
                return Err(wrong());
            };
        }
        if pairs.next().is_some() {
            Err(wrong())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl fmt::Debug for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Ipv4Network {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let parse = || {
            let (base, prefix) = text.split_once('/')?;
            let base: Ipv4Addr = base.parse().ok()?;
            let network = Self::containing(base, prefix.parse().ok()?)?;
            (network.base == base).then_some(network)
        };
        parse().ok_or_else(|| ValueError {
            text: text.into(),
            expected: "a network such as '192.0.2.0/24'",
        })
    }
}

impl TryFrom<String> for Ipv4Network {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<Ipv4Network> for String {
    fn from(network: Ipv4Network) -> Self {
        network.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_six_hex_pairs() {
        for (text, good) in [
            ("52:54:00:12:34:56", true),
            ("52:54:00:12:34:5", false),
            ("52:54:00:12:34", false),
            ("52:54:00:12:34:56:78", false),
            ("+2:54:00:12:34:56", false),
            ("52-54-00-12-34-56", false),
            ("", false),
        ] {
            assert_eq!(
                text.parse::<Mac>().map(|mac| mac.to_string()).ok(),
                good.then(|| text.into()),
                "'{text}'"
            );
        }
    }

    #[test]
    fn networks_have_no_host_bits() {
        for (text, good) in [
            ("0.0.0.0/0", true),
            ("192.0.2.0/24", true),
            ("192.0.2.1/32", true),
            ("192.0.2.1/24", false),
            ("192.0.2.0/33", false),
            ("192.0.2.0", false),
            ("2001:db8::/32", false),
        ] {
            assert_eq!(text.parse::<Ipv4Network>().is_ok(), good, "'{text}'");
        }
    }

    #[test]
    fn masks_are_contiguous() {
        for (mask, prefix) in [
            ([255, 255, 255, 0], Some(24)),
            ([255, 255, 255, 255], Some(32)),
            ([0, 0, 0, 0], Some(0)),
            ([255, 0, 255, 0], None),
            ([0, 0, 0, 255], None),
        ] {
            assert_eq!(prefix_of_mask(mask.into()), prefix, "{mask:?}");
        }
    }

    #[test]
    fn a_gateway_outside_every_direct_network_is_on_link() {
        let route = |to: &str, via: Option<[u8; 4]>| Route {
            to: to.parse().unwrap(),
            via: via.map(Ipv4Addr::from),
            on_link: false,
            metric: None,
            source: None,
        };
        let address = |prefix| InterfaceAddress {
            address: [192, 0, 2, 7].into(),
            prefix,
            peer: None,
        };
        for (case, prefix, routes, on_link) in [
            (
                "inside the subnet",
                24,
                vec![route("0.0.0.0/0", Some([192, 0, 2, 1]))],
                false,
            ),
            (
                "outside",
                32,
                vec![route("0.0.0.0/0", Some([192, 0, 2, 1]))],
                true,
            ),
            (
                "by a direct route listed later",
                32,
                vec![
                    route("0.0.0.0/0", Some([172, 31, 1, 1])),
                    route("172.31.1.1/32", None),
                ],
                false,
            ),
        ] {
            let mut config = Ipv4Config {
                addresses: vec![address(prefix)],
                routes,
                ..Ipv4Config::default()
            };
            config.order_routes();
            let gateway = config.routes.last().unwrap();
            assert_eq!(
                (gateway.via.is_some(), gateway.on_link),
                (true, on_link),
                "{case}"
            );
        }
    }
}
