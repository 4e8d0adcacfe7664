//! Ranges of source addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Addresses with a common prefix: `192.0.2.0/24`, `2001:db8::/64`, or a single address. There is one spelling of
/// each: bits after the prefix are zero, IPv4 is never written as IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    address: IpAddr,
    prefix: u8,
}

/// A text that is no [`Range`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an address range: {problem}")]
pub struct RangeError {
    text: String,
    problem: String,
}

impl Range {
    /// The range that a machine's address stands for: an IPv4 address alone, an IPv6 address with its /64.
    pub fn around(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let prefix = if address.is_ipv4() { 32 } else { 64 };
        Self {
            address: masked(address, prefix),
            prefix,
        }
    }

    /// Whether `address` lies in it; an IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

impl FromStr for Range {
    type Err = RangeError;
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let error = |problem: &str| RangeError {
            text: text
                .chars()
                .take(80)
                .flat_map(char::escape_default)
                .collect(),
            problem: problem.to_owned(),
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| {
            error("expected an address such as '192.0.2.7' or a range such as '192.0.2.0/24'")
        })?;
        if address.to_canonical() != address {
            return Err(error("write an IPv4 address as IPv4"));
        }
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) => number(digits)
                .filter(|prefix| *prefix <= most)
                .ok_or_else(|| error(&format!("the prefix is a number from 0 to {most}")))?,
        };
        let masked = masked(address, prefix);
        if masked != address {
            return Err(error(&format!("did you mean '{masked}/{prefix}'?")));
        }
        Ok(Self { address, prefix })
    }
}

/// 0 to 255 in its only spelling.
fn number(digits: &str) -> Option<u8> {
    let number: u8 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// `address` with all bits after `prefix` cleared; `prefix` is within the address's length.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Range {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_have_one_spelling() {
        for (text, spelled) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::/64", "2001:db8::/64"),
            ("2001:DB8:0::1", "2001:db8::1/128"),
        ] {
            assert_eq!(range(text).to_string(), spelled);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "/",
            "192.0.2.7/24",
            "192.0.2.0/33",
            "192.0.2.0/",
            "192.0.2.0/+8",
            "192.0.2.0/08",
            "192.0.2/24",
            "192.0.2.0/24/1",
            " 192.0.2.0",
            "192.0.2.0 ",
            "192.0.2.07",
            "host",
            "2001:db8::1/64",
            "::/129",
            "::/256",
            "fe80::1%eth0",
            "::ffff:192.0.2.7",
            "[::1]",
            "::1:70000",
        ] {
            assert!(bad.parse::<Range>().is_err(), "{bad:?}");
        }
        let error = "192.0.2.7/24".parse::<Range>().unwrap_err().to_string();
        assert!(error.contains("'192.0.2.0/24'"), "{error}");
    }

    #[test]
    fn a_range_contains_what_shares_its_prefix() {
        for (text, inside, outside) in [
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.0/24", "::ffff:192.0.2.9", "::ffff:192.0.3.9"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("::/0", "2001:db8::1", "192.0.2.7"),
            ("::/0", "::1", "::ffff:192.0.2.7"),
            ("2001:db8::/64", "2001:db8::ffff:1", "2001:db8:0:1::1"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::2"),
        ] {
            let range = range(text);
            assert!(range.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(
                !range.contains(outside.parse().unwrap()),
                "{text} {outside}"
            );
        }
    }

    #[test]
    fn a_machine_stands_for_its_address_or_its_64() {
        for (address, expected) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ] {
            let range = Range::around(address.parse().unwrap());
            assert_eq!(range.to_string(), expected);
            assert_eq!(range.to_string().parse(), Ok(range));
        }
    }
}
