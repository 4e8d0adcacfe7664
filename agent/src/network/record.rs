//! The network configuration of the running machine, recorded so that the initramfs can replay it.
//!
//! Recorded are network cards that have an IPv4 address, those with a default route first: the key server may be on
//! a network of its own. Left out in this slice, and said so: whatever software made (bridges, bonds, VLANs, tunnels,
//! container links), IPv6, policy routing, routes with several next hops and routes of routing daemons. An address that has a lifetime, or a route that a DHCP client made,
//! means that the interface is configured by DHCP; then its address is noted only to ask for the same one again.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files;
use super::netlink::{Link, Netlink, NetlinkError, Origin, Snapshot};
use super::resolv;
use super::values::{InterfaceAddress, Ipv4Config, Ipv4Network, Mac, Route, is_unicast};

/// Where the record lies below the root directory.
pub const PATH: &str = "etc/latchkey/network.json";

const VERSION: u32 = 1;
const SIZE_LIMIT: u64 = 64 * 1024;
const INTERFACE_LIMIT: usize = 8;
const ADDRESS_LIMIT: usize = 16;
const ROUTE_LIMIT: usize = 64;
/// Of Ethernet; only another one is recorded.
const USUAL_MTU: u32 = 1500;

/// The content of `network.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Record {
    version: u32,
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

/// What can go wrong while recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Reading the configuration.
    #[error("failed to read the network configuration")]
    Netlink(#[from] NetlinkError),
    /// Nothing that could be replayed.
    #[error(
        "no network card has an IPv4 address{}\n\
         without a record the initramfs uses DHCP, or what 'ip=' on the kernel command line says",
        others(.left_out)
    )]
    NoInterface {
        /// Names and kinds of interfaces with a default route that cannot be recorded.
        left_out: Vec<(String, String)>,
    },
    /// Writing the record.
    #[error("failed to write the network record '{}'", path.display())]
    Write {
        /// The record.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
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

/// Records the configuration of this machine in `network.json` below `root`, atomically.
///
/// `extra_kinds` are kinds of software interfaces (as `ip -d link` names them) that count as network cards too;
/// usually none. Needs a tokio runtime with I/O and time.
///
/// # Errors
/// Any `RecordError`; an earlier record stays as it was then.
pub async fn record(root: &Path, extra_kinds: &[String]) -> Result<Record, RecordError> {
    let (netlink, _) = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    let (resolvers, search) = resolvers(root);
    let mut record = Record {
        search,
        ..from_snapshot(&snapshot, resolvers, extra_kinds)?
    };
    if with_default_route(&snapshot).is_empty()
        && let Ok(Some(earlier)) = load(root)
    {
        record.keep_absent(earlier, &snapshot);
    }
    let left_out = left_out(&snapshot, extra_kinds);
    if !left_out.is_empty() {
        log::warn!(
            "not all of the network is recorded{}\n\
             the boot has the network cards alone, and asks by DHCP on those that are not recorded: where the key server is not \
             reached so, write 'ip=' on the kernel command line",
            others(&left_out)
        );
    }
    let path = root.join(PATH);
    let failed = |source| RecordError::Write {
        path: path.clone(),
        source,
    };
    let mut text = serde_json::to_vec_pretty(&record).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    // A record that says the same stays as it is: its age tells whether an image holds it.
    if std::fs::read(&path).ok().as_ref() != Some(&text) {
        files::replace(&path, &text, 0o600).map_err(failed)?;
    }
    Ok(record)
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
        if interface
            .mtu
            .is_some_and(|mtu| !(576..=65_535).contains(&mtu))
        {
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

/// Decides what of a configuration is recorded.
///
/// # Errors
/// `NoInterface`.
pub fn from_snapshot(
    snapshot: &Snapshot,
    resolvers: Vec<IpAddr>,
    extra_kinds: &[String],
) -> Result<Record, RecordError> {
    let routed = with_default_route(snapshot);
    let (first, then): (Vec<_>, Vec<_>) = snapshot
        .links
        .iter()
        .filter(|link| link.is_card(extra_kinds) && link.up)
        .partition(|link| routed.contains(&link.index));
    let interfaces: Vec<RecordedInterface> = first
        .into_iter()
        .chain(then)
        .filter_map(|link| interface(snapshot, link))
        .take(INTERFACE_LIMIT)
        .collect();
    if interfaces.is_empty() {
        return Err(RecordError::NoInterface {
            left_out: left_out(snapshot, extra_kinds),
        });
    }
    Ok(Record {
        version: VERSION,
        interfaces,
        resolvers,
        partial: !left_out(snapshot, extra_kinds).is_empty(),
        search: Vec::new(),
    })
}

/// Whether this machine has an IPv4 default route by now, and each card that is recorded below `root` and there an address.
///
/// # Errors
/// `Netlink`.
pub async fn is_settled(root: &Path) -> Result<bool, RecordError> {
    let (netlink, _) = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    let earlier = load(root).ok().flatten().map(|earlier| earlier.interfaces);
    let mut earlier = earlier.unwrap_or_default().into_iter();
    Ok(!with_default_route(&snapshot).is_empty()
        && !earlier.any(|interface| interface.is_absent(&snapshot)))
}

fn with_default_route(snapshot: &Snapshot) -> BTreeSet<u32> {
    let routes = snapshot.routes.iter();
    routes
        .filter(|found| found.route.to == Ipv4Network::ALL)
        .map(|found| found.index)
        .collect()
}

/// Names and kinds of interfaces with a default route that cannot be recorded.
fn left_out(snapshot: &Snapshot, extra_kinds: &[String]) -> Vec<(String, String)> {
    let routed = with_default_route(snapshot);
    let links = routed.into_iter().filter_map(|index| snapshot.link(index));
    let made = links.filter_map(|link| Some((link.name.clone(), link.kind.clone()?)));
    made.filter(|(_, kind)| !extra_kinds.contains(kind))
        .collect()
}

impl RecordedInterface {
    /// Whether `link` is this network card.
    pub fn is(&self, link: &Link) -> bool {
        let permanent = self.permanent_mac.is_some() && link.permanent_mac == self.permanent_mac;
        link.mac == Some(self.mac) || permanent
    }

    /// Whether its card is there, and has no address now.
    fn is_absent(&self, now: &Snapshot) -> bool {
        let link = now.links.iter().find(|link| self.is(link));
        link.is_some_and(|link| {
            let addresses = now.addresses.iter();
            addresses
                .filter(|found| found.index == link.index && found.global)
                .count()
                == 0
        })
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
    /// Keeps what is known of the cards whose network is away at the moment: the next boot may find it again.
    fn keep_absent(&mut self, earlier: Self, now: &Snapshot) {
        let absent = earlier.interfaces.into_iter();
        let absent = absent.filter(|interface| interface.is_absent(now));
        self.interfaces.splice(0..0, absent);
        self.interfaces.truncate(INTERFACE_LIMIT);
    }

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

fn interface(snapshot: &Snapshot, link: &Link) -> Option<RecordedInterface> {
    let found = snapshot
        .addresses
        .iter()
        .filter(|found| found.index == link.index && found.global);
    let found: Vec<_> = found.take(ADDRESS_LIMIT).collect();
    let first = found.first()?;
    let addresses: Vec<InterfaceAddress> = found.iter().map(|found| found.address).collect();

    let ours = || {
        snapshot
            .routes
            .iter()
            .filter(|found| found.index == link.index)
    };
    let has_lease = found.iter().find(|found| found.expires);
    let ipv4 = if has_lease.is_some() || ours().any(|found| found.origin == Origin::Dhcp) {
        RecordedIpv4::Dhcp {
            lease: Some(has_lease.unwrap_or(first).address.address),
            secondary: !with_default_route(snapshot).contains(&link.index),
        }
    } else {
        let routes = ours().filter(|found| found.origin == Origin::Administrator);
        let routes = routes.take(ROUTE_LIMIT).map(|found| {
            // The kernel refuses a source that is none of the machine's addresses.
            let source = found
                .route
                .source
                .filter(|source| addresses.iter().any(|has| has.address == *source));
            Route {
                source,
                ..found.route
            }
        });
        RecordedIpv4::Static {
            routes: routes.collect(),
            addresses,
        }
    };
    Some(RecordedInterface {
        name: link.name.clone(),
        mac: link.mac?,
        permanent_mac: link.permanent_mac,
        mtu: Some(link.mtu).filter(|mtu| *mtu != USUAL_MTU && (576..=65_535).contains(mtu)),
        ipv4,
    })
}

/// What systemd-resolved forwards to, else what programs ask, and the domains in which they look.
fn resolvers(root: &Path) -> (Vec<IpAddr>, Vec<String>) {
    let files = ["run/systemd/resolve/resolv.conf", "etc/resolv.conf"];
    let texts = files
        .iter()
        .filter_map(|path| std::fs::read_to_string(root.join(path)).ok());
    texts
        .map(|text| (resolv::parse(&text), resolv::parse_search(&text)))
        .find(|(found, _)| !found.is_empty())
        .unwrap_or_default()
}

fn others(interfaces: &[(String, String)]) -> String {
    let parts = interfaces.iter().map(|(name, kind)| {
        format!("; '{name}' has the default route, but its kind '{kind}' is not recorded yet")
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::super::netlink::{LinkAddress, LinkRoute};
    use super::*;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.into(),
            alt_names: Vec::new(),
            mac: Some(Mac([2, 0, 0, 0, 0, index as u8])),
            permanent_mac: None,
            mtu: 1500,
            kind: kind.map(String::from),
            ethernet: true,
            up: true,
            carrier: true,
            enslaved: false,
        }
    }

    fn address(index: u32, address: [u8; 4], prefix: u8, expires: bool) -> LinkAddress {
        let address = InterfaceAddress {
            address: address.into(),
            prefix,
            peer: None,
        };
        LinkAddress {
            index,
            address,
            expires,
            global: true,
        }
    }

    fn route(index: u32, to: &str, via: Option<[u8; 4]>, origin: Origin) -> LinkRoute {
        let via = via.map(Ipv4Addr::from);
        let route = Route {
            to: to.parse().unwrap(),
            via,
            on_link: false,
            metric: None,
            source: None,
        };
        LinkRoute {
            index,
            route,
            origin,
        }
    }

    /// A card with a fixed address, an on-link gateway, and a container's link beside it.
    fn server() -> Snapshot {
        Snapshot {
            links: vec![
                link(2, "ens3", None),
                link(3, "veth1", Some("veth")),
                link(4, "ens4", None),
            ],
            addresses: vec![
                address(2, [192, 0, 2, 7], 32, false),
                address(3, [172, 17, 0, 1], 16, false),
                address(4, [10, 0, 0, 2], 24, false),
            ],
            routes: vec![
                route(2, "0.0.0.0/0", Some([172, 31, 1, 1]), Origin::Administrator),
                route(2, "172.31.1.1/32", None, Origin::Administrator),
                route(3, "172.17.0.0/16", None, Origin::Kernel),
                route(4, "10.0.0.0/24", None, Origin::Kernel),
                route(2, "198.51.100.0/24", Some([172, 31, 1, 2]), Origin::Other),
            ],
        }
    }

    #[test]
    fn a_fixed_address_is_recorded_with_its_routes() {
        let record = from_snapshot(&server(), Vec::new(), &[]).unwrap();
        let names: Vec<&str> = record
            .interfaces
            .iter()
            .map(|found| found.name.as_str())
            .collect();
        assert_eq!(
            names,
            ["ens3", "ens4"],
            "a container's link is no card: {record:?}"
        );
        let interface = &record.interfaces[0];
        assert_eq!((interface.name.as_str(), interface.mtu), ("ens3", None));
        let config = interface.static_config(&[]).unwrap();
        assert_eq!(config.addresses[0].address, Ipv4Addr::new(192, 0, 2, 7));
        let routes: Vec<String> = config
            .routes
            .iter()
            .map(|route| route.to.to_string())
            .collect();
        assert_eq!(
            routes,
            ["172.31.1.1/32", "0.0.0.0/0"],
            "on-link first, none of a routing daemon"
        );
    }

    #[test]
    fn a_lifetime_or_a_route_of_dhcp_means_dhcp() {
        let mut by_lifetime = server();
        by_lifetime.addresses[0].expires = true;
        let mut by_route = server();
        by_route.routes[0].origin = Origin::Dhcp;
        for (case, snapshot) in [("lifetime", by_lifetime), ("route", by_route)] {
            let record = from_snapshot(&snapshot, Vec::new(), &[]).unwrap();
            let lease = Some(Ipv4Addr::new(192, 0, 2, 7));
            assert_eq!(
                record.interfaces[0].ipv4,
                RecordedIpv4::Dhcp {
                    lease,
                    secondary: false
                },
                "{case}"
            );
        }
    }

    #[test]
    fn what_software_made_is_left_out_and_named() {
        let mut snapshot = server();
        snapshot.links[0].kind = Some("bridge".into());
        let record = from_snapshot(&snapshot, Vec::new(), &[]).unwrap();
        assert_eq!(record.interfaces[0].name, "ens4");
        assert!(record.partial);
        snapshot.links[2].up = false;
        let error = from_snapshot(&snapshot, Vec::new(), &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("'ens3' has the default route, but its kind 'bridge'"),
            "{error}"
        );
        assert!(from_snapshot(&snapshot, Vec::new(), &["bridge".into()]).is_ok());
        let error = from_snapshot(&Snapshot::default(), Vec::new(), &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("no network card has an IPv4 address\n"),
            "{error}"
        );
    }

    #[test]
    fn a_card_whose_network_is_away_is_kept() {
        let earlier = from_snapshot(&server(), Vec::new(), &[]).unwrap();
        let mut now = server();
        now.routes.clear();
        now.addresses.retain(|found| found.index != 2);
        let mut record = from_snapshot(&now, Vec::new(), &[]).unwrap();
        assert_eq!(record.interfaces.len(), 1);
        record.keep_absent(earlier.clone(), &now);
        assert_eq!(record.interfaces[0], earlier.interfaces[0]);
        assert_eq!(record.interfaces.len(), 2);
        // Another card, under which nobody would find it.
        now.links[0].mac = Some(Mac([2, 0, 0, 0, 0, 9]));
        let mut record = from_snapshot(&now, Vec::new(), &[]).unwrap();
        record.keep_absent(earlier, &now);
        assert_eq!(record.interfaces.len(), 1);
    }

    #[test]
    fn the_cards_with_a_default_route_come_first() {
        let mut snapshot = server();
        for route in &mut snapshot.routes {
            route.index = 6 - route.index;
        }
        let record = from_snapshot(&snapshot, Vec::new(), &[]).unwrap();
        assert_eq!(record.interfaces[0].name, "ens4");
    }

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
