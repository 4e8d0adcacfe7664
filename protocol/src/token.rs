//! The join token: all that a new client needs, in one line that `latchkeyd invite` prints.
//!
//! `latchkey1.` and unpadded base64url of: the CA certificate's SHA-256 (32 bytes), the one-time secret (32),
//! length-prefixed (one byte) client name and addresses, and a checksum (4), so that a line that was not copied
//! whole is told apart from a shorter one. `docs/envelope.md` describes the bytes. The token is a secret until it is
//! used or expires.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::encoding::Bytes;
use crate::ids::{ClientName, ServerId};

const PREFIX: &str = "latchkey1.";
/// Most characters of a token.
pub const LIMIT: usize = 2048;
/// Most addresses in a token.
pub const ADDRESSES_LIMIT: usize = 8;

const CHECKSUM_SIZE: usize = 4;

/// A parsed join token. `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The key server, by its CA certificate's fingerprint.
    pub server: ServerId,
    /// Proves the invitation, once.
    pub secret: Bytes<32>,
    /// The name that the administrator gave.
    pub client: ClientName,
    /// Where the key server listens, `HOST:PORT` each.
    pub addresses: Vec<Address>,
}

/// `HOST:PORT`, where HOST is a DNS name, an IPv4 address or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    host: String,
    port: u16,
}

/// A text that is no join token. It never repeats the token, which is a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No `latchkey1.` in front.
    #[error(
        "a join token begins with 'latchkey1.'; copy the whole line that 'latchkeyd invite' printed"
    )]
    Prefix,
    /// Something is missing, damaged or too long.
    #[error(
        "the join token is incomplete or damaged; copy the whole line that 'latchkeyd invite' printed"
    )]
    Damaged,
}

/// A text that is no `HOST:PORT`; it repeats the beginning of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not of this form.
    #[error(
        "'{0}' is not an address HOST[:PORT], such as 'keys.example.org:7443' or '[2001:db8::1]:7443'"
    )]
    Form(String),
    /// Of this form, and too long for a token.
    #[error(
        "the address '{0}…' has more than {limit} characters with its port, which is more than a join token carries",
        limit = Address::LIMIT
    )]
    Length(String),
}

impl Address {
    /// The default port of key servers.
    pub const DEFAULT_PORT: u16 = 7443;
    /// Most characters of `HOST:PORT`: a token has one byte for their number. A name may have 253 by itself (RFC 1035 §3.1).
    pub const LIMIT: usize = u8::MAX as usize;

    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let beginning = || {
            text.chars()
                .take(80)
                .flat_map(char::escape_default)
                .collect()
        };
        let error = || AddressError::Form(beginning());
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                let plain = !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
                (
                    host,
                    plain
                        .then(|| port.parse().ok())
                        .flatten()
                        .filter(|port| *port != 0)
                        .ok_or_else(error)?,
                )
            }
            _ => (text, Self::DEFAULT_PORT),
        };
        let good = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
            Some(Some(inner)) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            Some(None) => false,
            None => is_host_name(host),
        };
        if !good {
            return Err(error());
        }
        let address = Self {
            host: host.to_ascii_lowercase(),
            port,
        };
        match address.to_string().len() {
            0..=Self::LIMIT => Ok(address),
            _ => Err(AddressError::Length(beginning())),
        }
    }
}

/// Letters, digits, hyphens and dots (RFC 1123 §2.1): also covers IPv4 addresses.
fn is_host_name(host: &str) -> bool {
    (1..=253).contains(&host.len())
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || c == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl JoinToken {
    /// The line that the administrator passes on.
    pub fn to_line(&self) -> String {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(self.server.as_bytes());
        bytes.extend_from_slice(&self.secret.0);
        let addresses = self.addresses.iter().map(ToString::to_string);
        for text in std::iter::once(self.client.to_string()).chain(addresses) {
            bytes.push(
                u8::try_from(text.len())
                    .expect("names have 64 bytes at most, addresses `Address::LIMIT`"),
            );
            bytes.extend_from_slice(text.as_bytes());
        }
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(line: &str) -> Result<Self, TokenError> {
        let line = line.trim();
        let body = line.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if line.len() > LIMIT {
            return Err(TokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| TokenError::Damaged)?;
        let (bytes, check) = bytes
            .split_last_chunk::<CHECKSUM_SIZE>()
            .ok_or(TokenError::Damaged)?;
        if *check != checksum(bytes) {
            return Err(TokenError::Damaged);
        }
        let (server, rest) = bytes.split_first_chunk::<32>().ok_or(TokenError::Damaged)?;
        let (secret, mut rest) = rest.split_first_chunk::<32>().ok_or(TokenError::Damaged)?;
        let mut texts = Vec::new();
        while let Some((length, tail)) = rest.split_first() {
            let (text, tail) = tail
                .split_at_checked(usize::from(*length))
                .ok_or(TokenError::Damaged)?;
            texts.push(std::str::from_utf8(text).map_err(|_| TokenError::Damaged)?);
            rest = tail;
        }
        let (client, addresses) = texts.split_first().ok_or(TokenError::Damaged)?;
        let addresses: Result<Vec<Address>, _> =
            addresses.iter().map(|text| text.parse()).collect();
        let addresses = addresses.map_err(|_| TokenError::Damaged)?;
        if addresses.is_empty() || addresses.len() > ADDRESSES_LIMIT {
            return Err(TokenError::Damaged);
        }
        Ok(Self {
            server: ServerId::from_bytes(*server),
            secret: Bytes(*secret),
            client: client.parse().map_err(|_| TokenError::Damaged)?,
            addresses,
        })
    }
}

/// For people who copy lines; it protects nothing.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_SIZE] {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    *digest
        .first_chunk()
        .expect("a digest is longer than its checksum")
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({} at {})", self.client, self.server.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            server: ServerId::from_bytes([7; 32]),
            secret: Bytes([9; 32]),
            client: "web-1".parse().unwrap(),
            addresses: vec![
                "keys.example.org".parse().unwrap(),
                "[2001:db8::1]:7444".parse().unwrap(),
            ],
        }
    }

    #[test]
    fn a_token_reads_back() {
        let line = token().to_line();
        assert_eq!(line.parse(), Ok(token()));
        assert_eq!(format!("  {line}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains('9'));
    }

    #[test]
    fn damaged_tokens_are_refused_without_repeating_them() {
        let line = token().to_line();
        for cut in 0..line.len() {
            assert!(line[..cut].parse::<JoinToken>().is_err(), "cut at {cut}");
        }
        for at in PREFIX.len()..line.len() {
            for typed in ["A", "b", "_", ""] {
                let mistyped = format!("{}{typed}{}", &line[..at], &line[at + 1..]);
                if mistyped != line {
                    assert_eq!(
                        mistyped.parse::<JoinToken>(),
                        Err(TokenError::Damaged),
                        "'{typed}' at {at}"
                    );
                }
            }
        }
        assert_eq!(
            "latchkey2.abc".parse::<JoinToken>(),
            Err(TokenError::Prefix)
        );
        assert_eq!(
            "latchkey1.a b".parse::<JoinToken>(),
            Err(TokenError::Damaged)
        );
        assert_eq!(
            format!("latchkey1.{}", "A".repeat(LIMIT)).parse::<JoinToken>(),
            Err(TokenError::Damaged)
        );
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for (text, host, port) in [
            ("keys.example.org", "keys.example.org", 7443),
            ("KEYS:1", "keys", 1),
            ("10.0.2.2:7443", "10.0.2.2", 7443),
            ("[::1]", "::1", 7443),
            ("[::1]:9", "::1", 9),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port), "{text}");
        }
        for bad in [
            "", ":1", "a:", "a:0", "a:65536", "a:+1", "::1", "[::1", "[x]:1", "a b", "a/b:1", "-a",
            "a..b", "a:1:2",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_address_fits_into_a_token() {
        let name =
            |length: usize| format!("{}a", "abcdefghi.".repeat(26))[261 - length..].to_owned();
        for (length, port, fits) in [
            (249, 65535, true),
            (250, 65535, false),
            (250, 7443, true),
            (251, 7443, false),
            (253, 1, true),
            (253, 10, false),
        ] {
            let text = format!("{}:{port}", name(length));
            let address = text.parse::<Address>();
            assert_eq!(address.is_ok(), fits, "{length} {port}: {address:?}");
            match address {
                Ok(address) => {
                    let token = JoinToken {
                        addresses: vec![address],
                        ..token()
                    };
                    assert_eq!(token.to_line().parse(), Ok(token));
                }
                Err(error) => assert!(error.to_string().contains("255"), "{error}"),
            }
        }
        assert!(
            name(251).parse::<Address>().is_err(),
            "the default port counts"
        );
    }
}
