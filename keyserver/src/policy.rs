//! Decides releases. A pure function of the request, the stored state and the time.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most address ranges in one policy.
pub const RANGES_LIMIT: usize = 32;

/// On which conditions a volume's share is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// What holds for requests from the ranges in `from`.
    pub rule: Rule,
    /// Source addresses; none means any address.
    #[serde(default)]
    pub from: Vec<Range>,
    /// What holds for requests from anywhere else.
    #[serde(default)]
    pub elsewhere: Elsewhere,
}

/// What a policy says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Release without a person.
    Allow,
    /// Ask a person.
    Ask,
    /// Never release.
    Deny,
}

/// What a policy says of requests from addresses that it does not list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Elsewhere {
    /// Ask a person.
    Ask,
    /// Never release.
    #[default]
    Deny,
}

/// Addresses with a common prefix, as `192.0.2.0/24`, `2001:db8::/64` or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        match address.to_canonical() {
            address @ IpAddr::V4(_) => Self {
                address,
                prefix: 32,
            },
            address @ IpAddr::V6(_) => Self {
                address,
                prefix: 64,
            },
        }
    }
}

impl Policy {
    /// The policy in one sentence.
    pub fn sentence(&self) -> String {
        unimplemented!()
    }
}

impl FromStr for Range {
    type Err = RangeError;
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let _ = text;
        unimplemented!()
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
