//! Recording the network configuration of the running machine, so that the initramfs can replay it.
//!
//! Recorded are network cards that have an IPv4 address, those with a default route first: the key server may be on
//! a network of its own. Left out in this slice, and said so: whatever software made (bridges, bonds, VLANs, tunnels,
//! container links), IPv6, policy routing, routes with several next hops and routes of routing daemons. An address that
//! has a lifetime, or a route that a DHCP client made, means that the interface is configured by DHCP; then its address is
//! noted only to ask for the same one again.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::netlink::{Link, Netlink, NetlinkError, Origin, Snapshot};
use super::record::{self, Record, RecordedInterface, RecordedIpv4};
use super::values::{InterfaceAddress, Ipv4Network, Route, is_mtu};
use super::{files, resolv};

/// Most cards of a record.
const INTERFACE_LIMIT: usize = 8;
/// Of Ethernet; only another one is recorded.
const USUAL_MTU: u32 = 1500;

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
    let routed = with_default_route(&snapshot);
    if routed.is_empty()
        && let Ok(Some(earlier)) = record::load(root)
    {
        keep_absent(&mut record, earlier, &snapshot);
    }
    if record.partial {
        log::warn!(
            "not all of the network is recorded{}\n\
             the boot has the network cards alone, and asks by DHCP on those that are not recorded: where the key server is not \
             reached so, write 'ip=' on the kernel command line",
            others(&left_out(&snapshot, &routed, extra_kinds))
        );
    }
    let path = root.join(record::PATH);
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
        .filter_map(|link| interface(snapshot, link, routed.contains(&link.index)))
        .take(INTERFACE_LIMIT)
        .collect();
    let left_out = left_out(snapshot, &routed, extra_kinds);
    if interfaces.is_empty() {
        return Err(RecordError::NoInterface { left_out });
    }
    Ok(Record {
        version: record::VERSION,
        interfaces,
        resolvers,
        partial: !left_out.is_empty(),
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
    let earlier = record::load(root)
        .ok()
        .flatten()
        .map(|earlier| earlier.interfaces);
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
fn left_out(
    snapshot: &Snapshot,
    routed: &BTreeSet<u32>,
    extra_kinds: &[String],
) -> Vec<(String, String)> {
    let links = routed.iter().filter_map(|index| snapshot.link(*index));
    let made = links.filter_map(|link| Some((link.name.clone(), link.kind.clone()?)));
    made.filter(|(_, kind)| !extra_kinds.contains(kind))
        .collect()
}

/// Keeps what is known of the cards whose network is away at the moment: the next boot may find it again.
fn keep_absent(record: &mut Record, earlier: Record, now: &Snapshot) {
    let absent = earlier.interfaces.into_iter();
    let absent = absent.filter(|interface| interface.is_absent(now));
    record.interfaces.splice(0..0, absent);
    record.interfaces.truncate(INTERFACE_LIMIT);
}

fn interface(
    snapshot: &Snapshot,
    link: &Link,
    has_default_route: bool,
) -> Option<RecordedInterface> {
    let found = snapshot.global_addresses(link.index);
    let found: Vec<_> = found.take(record::ADDRESS_LIMIT).collect();
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
            secondary: !has_default_route,
        }
    } else {
        let routes = ours().filter(|found| found.origin == Origin::Administrator);
        let routes = routes.take(record::ROUTE_LIMIT).map(|found| {
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
        mtu: Some(link.mtu).filter(|mtu| *mtu != USUAL_MTU && is_mtu(*mtu)),
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
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use super::super::netlink::{LinkAddress, LinkRoute};
    use super::super::values::Mac;
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
    pub fn server() -> Snapshot {
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
        keep_absent(&mut record, earlier.clone(), &now);
        assert_eq!(record.interfaces[0], earlier.interfaces[0]);
        assert_eq!(record.interfaces.len(), 2);
        // Another card, under which nobody would find it.
        now.links[0].mac = Some(Mac([2, 0, 0, 0, 0, 9]));
        let mut record = from_snapshot(&now, Vec::new(), &[]).unwrap();
        keep_absent(&mut record, earlier, &now);
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
}
