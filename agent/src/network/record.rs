//! The record of the running machine's network, which the initramfs replays: `network.json`. What is in it, [`recording`]
//! decides.
//!
//! [`recording`]: super::recording

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::netlink::{Link, Snapshot};
use super::resolv;
use super::values::{InterfaceAddress, Ipv4Config, Mac, Route, is_mtu, is_unicast};

/// Where the record lies below the root directory.
pub const PATH: &str = "etc/latchkey/network.json";

/// Of what is written and understood.
pub const VERSION: u32 = 1;
const SIZE_LIMIT: u64 = 64 * 1024;
/// Most addresses of a card.
pub const ADDRESS_LIMIT: usize = 16;
/// Most routes of a card.
pub const ROUTE_LIMIT: usize = 64;

/// The content of `network.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Those with a default route, then the others, each by index.
    pub interfaces: Vec<RecordedInterface>,
    /// In order; the IPv6 ones wait for the slice that can reach them.
    #[serde(default)]
    pub resolvers: Vec<IpAddr>,
    /// A default route leads through something that is not recorded: cards that are not either are tried as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// The domains in which a short name is looked up, in order (resolv.conf(5)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
}

/// One network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RecordedInterface {
    /// For messages only: in the initramfs it may have another one.
    pub name: String,
    /// The address it used.
    pub mac: Mac,
    /// The address it came with, if the driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permanent_mac: Option<Mac>,
    /// In bytes, where it is not 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// How it got its IPv4 addresses.
    pub ipv4: RecordedIpv4,
}

/// How an interface got its IPv4 addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", deny_unknown_fields, rename_all = "kebab-case")]
pub enum RecordedIpv4 {
    /// From a DHCP server.
    Dhcp {
        /// The address it had.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease: Option<Ipv4Addr>,
        /// It had no default route: one that the server gives yields to that of any other card.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        secondary: bool,
    },
    /// By its configuration.
    Static {
        /// At least one.
        addresses: Vec<InterfaceAddress>,
        /// Without those the kernel makes along with an address.
        routes: Vec<Route>,
    },
}

/// What can be wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Reading.
    #[error("failed to read the network record '{}'", path.display())]
    Read {
        /// The record.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not a record.
    #[error("the network record is damaged")]
    Damaged(#[source] serde_json::Error),
    /// Of another version.
    #[error("the network record has version {0}, not {VERSION}")]
    Version(u32),
    /// A record of something impossible.
    #[error("the network record of '{interface}' is wrong: {what}")]
    Wrong {
        /// Its name.
        interface: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// Reads the record below `root`; none if there is none.
///
/// # Errors
/// Any `LoadError`.
pub fn load(root: &Path) -> Result<Option<Record>, LoadError> {
    let path = root.join(PATH);
    let failed = |source| LoadError::Read {
        path: path.clone(),
        source,
    };
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.len() > SIZE_LIMIT => {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    parse(&std::fs::read(&path).map_err(failed)?).map(Some)
}

/// Reads a record from its text.
///
/// # Errors
/// `Damaged`, `Version`, `Wrong`.
pub fn parse(text: &[u8]) -> Result<Record, LoadError> {
    let record: Record = serde_json::from_slice(text).map_err(LoadError::Damaged)?;
    if record.version != VERSION {
        return Err(LoadError::Version(record.version));
    }
    for interface in &record.interfaces {
        let wrong = |what| {
            Err(LoadError::Wrong {
                interface: interface.name.escape_default().to_string(),
                what,
            })
        };
        if interface.mtu.is_some_and(|mtu| !is_mtu(mtu)) {
            return wrong("its MTU is out of range");
        }
        if let RecordedIpv4::Static { addresses, routes } = &interface.ipv4 {
            if addresses.is_empty() || addresses.len() > ADDRESS_LIMIT || routes.len() > ROUTE_LIMIT
            {
                return wrong("it has no address or too much of something");
            }
            if !addresses
                .iter()
                .all(|address| is_unicast(address.address) && (1..=32).contains(&address.prefix))
            {
                return wrong("one of its addresses is impossible");
            }
        }
    }
    Ok(record)
}

impl RecordedInterface {
    /// Whether `link` is this network card.
    pub fn is(&self, link: &Link) -> bool {
        let permanent = self.permanent_mac.is_some() && link.permanent_mac == self.permanent_mac;
        link.mac == Some(self.mac) || permanent
    }

    /// Whether its card is there, and has no address now.
    pub fn is_absent(&self, now: &Snapshot) -> bool {
        let link = now.links.iter().find(|link| self.is(link));
        link.is_some_and(|link| now.global_addresses(link.index).next().is_none())
    }

    /// Its static configuration; none where it uses DHCP.
    pub fn static_config(&self, resolvers: &[Ipv4Addr]) -> Option<Ipv4Config> {
        let RecordedIpv4::Static { addresses, routes } = &self.ipv4 else {
            return None;
        };
        let mut config = Ipv4Config {
            addresses: addresses.clone(),
            routes: routes.clone(),
            mtu: self.mtu,
            resolvers: resolvers.to_vec(),
        };
        config.order_routes();
        Some(config)
    }
}

impl Record {
    /// The resolvers that IPv4 reaches.
    pub fn ipv4_resolvers(&self) -> Vec<Ipv4Addr> {
        let addresses = self.resolvers.iter().filter_map(|address| match address {
            IpAddr::V4(address) if is_unicast(*address) => Some(*address),
            _ => None,
        });
        addresses.take(resolv::LIMIT).collect()
    }

    /// The domains in which a short name is looked up.
    pub fn domains(&self) -> Vec<String> {
        let good = self
            .search
            .iter()
            .filter(|domain| resolv::is_domain(domain));
        good.take(resolv::SEARCH_LIMIT).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::recording::from_snapshot;
    use super::super::recording::tests::server;
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let mut record = from_snapshot(&server(), vec!["9.9.9.9".parse().unwrap()], &[]).unwrap();
        record.search = vec!["example.net".to_owned()];
        record.interfaces.push(RecordedInterface {
            name: "ens4".into(),
            mac: Mac([2, 0, 0, 0, 0, 9]),
            permanent_mac: Some(Mac([2, 0, 0, 0, 0, 8])),
            mtu: Some(1280),
            ipv4: RecordedIpv4::Dhcp {
                lease: None,
                secondary: true,
            },
        });
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(parse(&text).unwrap(), record);
    }

    #[test]
    fn a_wrong_record_is_refused() {
        let good = String::from_utf8(
            serde_json::to_vec(&from_snapshot(&server(), Vec::new(), &[]).unwrap()).unwrap(),
        );
        let good = good.unwrap();
        for (old, new, expected) in [
            ("", "", ""),
            ("\"version\":1", "\"version\":2", "has version 2"),
            ("\"version\":1", "\"version\":1,\"more\":1", "damaged"),
            (
                "\"method\":\"static\"",
                "\"method\":\"static\",\"more\":1",
                "damaged",
            ),
            ("\"method\":\"static\"", "\"method\":\"magic\"", "damaged"),
            ("\"prefix\":32", "\"prefix\":33", "impossible"),
            ("\"prefix\":32", "\"prefix\":0", "impossible"),
            ("192.0.2.7", "224.0.0.1", "impossible"),
            ("192.0.2.7", "$(reboot)", "damaged"),
            ("172.31.1.1/32", "172.31.1.1/24", "damaged"),
            ("02:00:00:00:00:02", "02:00:00:00:00", "damaged"),
            ("\"ipv4\"", "\"mtu\":60,\"ipv4\"", "MTU"),
        ] {
            let text = good.replacen(old, new, if old.is_empty() { 0 } else { 1 });
            assert_eq!(text == good, old.is_empty(), "the text has no {old}");
            match parse(text.as_bytes()) {
                Ok(_) => assert!(expected.is_empty(), "{new} was taken"),
                Err(error) => assert!(
                    !expected.is_empty() && error.to_string().contains(expected),
                    "{new}: {error}"
                ),
            }
        }
    }

    #[test]
    fn a_missing_record_is_none_and_a_huge_one_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(load(root.path()).unwrap().is_none());
        std::fs::create_dir_all(root.path().join("etc/latchkey")).unwrap();
        std::fs::write(root.path().join(PATH), vec![b' '; SIZE_LIMIT as usize + 1]).unwrap();
        assert!(matches!(load(root.path()), Err(LoadError::Read { .. })));
    }
}
