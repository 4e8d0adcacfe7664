//! What is believed of a DHCP server's answer.
//!
//! Anyone on the link can be the server, so each value is checked by itself, and one that makes no sense counts
//! as missing. Taken are address, mask, routes, resolvers, MTU and times, as numbers; there is no text in a lease.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::dhcp_message::{Incoming, option};
use super::resolv;
use super::values::{InterfaceAddress, Ipv4Config, Ipv4Network, Route, is_unicast, prefix_of_mask};

/// An address of a DHCP server, with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What to set.
    pub config: Ipv4Config,
    /// The server that gave it.
    pub server: Ipv4Addr,
    /// How long it is used without being renewed.
    pub time: Duration,
}

/// Shorter leases are used this long all the same: renewing more often would only flood the link, and the boot
/// is over in a minute.
const SHORTEST: Duration = Duration::from_secs(30);
/// Longer ones (also "for ever") count as this long.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Where the server names none.
const USUAL: Duration = Duration::from_secs(3600);
/// A wider mask than this would hide most of the Internet behind ARP.
const WIDEST_PREFIX: u8 = 8;
const ROUTE_LIMIT: usize = 32;
const MTU_SMALLEST: u16 = 576;

impl Lease {
    /// Checks an offer or an acknowledgement; none if its address or server cannot be one.
    pub fn from_message(message: &Incoming) -> Option<Self> {
        let address = Some(message.address).filter(|address| is_unicast(*address))?;
        let server = message
            .address_option(option::SERVER_ID)
            .filter(|server| is_unicast(*server))?;
        let mut config = Ipv4Config {
            addresses: vec![InterfaceAddress {
                address,
                prefix: prefix(message, address),
                peer: None,
            }],
            routes: routes(message, address),
            mtu: mtu(message),
            resolvers: resolvers(message),
        };
        config.order_routes();
        Some(Self {
            config,
            server,
            time: time(message),
        })
    }

    /// The address itself.
    pub fn address(&self) -> Ipv4Addr {
        // `from_message` is the only maker and puts in exactly one.
        self.config
            .addresses
            .first()
            .map_or(Ipv4Addr::UNSPECIFIED, |address| address.address)
    }
}

/// With a mask that cannot be right only the gateway is taken to be on the link: everything else goes through it.
fn prefix(message: &Incoming, address: Ipv4Addr) -> u8 {
    let mask = message
        .address_option(option::SUBNET_MASK)
        .and_then(prefix_of_mask);
    let fits = |prefix: &u8| {
        let network = Ipv4Network::containing(address, *prefix);
        (WIDEST_PREFIX..=32).contains(prefix)
            && network.is_some_and(|network| network.has_host(address))
    };
    mask.filter(fits).unwrap_or(32)
}

fn routes(message: &Incoming, address: Ipv4Addr) -> Vec<Route> {
    let usable = |gateway: Ipv4Addr| is_unicast(gateway) && gateway != address;
    if let Some(routes) = message.option(option::CLASSLESS_ROUTES).and_then(classless) {
        let mut taken: Vec<Route> = Vec::new();
        for (to, gateway) in routes {
            let via = (!gateway.is_unspecified()).then_some(gateway);
            let sensible =
                via.is_none_or(usable) && (to == Ipv4Network::ALL || is_unicast_network(to));
            // A default route without a gateway would be ARP for the whole Internet.
            let sensible = sensible && !(via.is_none() && to.prefix() < WIDEST_PREFIX);
            if sensible && taken.len() < ROUTE_LIMIT && !taken.iter().any(|route| route.to == to) {
                taken.push(Route {
                    to,
                    via,
                    on_link: false,
                    metric: None,
                    source: None,
                });
            }
        }
        // RFC 3442: where this option is, the routers of option 3 do not count.
        return taken;
    }
    let gateway = message
        .addresses_option(option::ROUTER)
        .into_iter()
        .find(|gateway| usable(*gateway));
    let route = |gateway| Route {
        to: Ipv4Network::ALL,
        via: Some(gateway),
        on_link: false,
        metric: None,
        source: None,
    };
    gateway.map(route).into_iter().collect()
}

/// Option 121 (RFC 3442): none if it is empty or malformed anywhere.
fn classless(mut value: &[u8]) -> Option<Vec<(Ipv4Network, Ipv4Addr)>> {
    let mut routes = Vec::new();
    while let [width, rest @ ..] = value {
        let significant = usize::from(width.div_ceil(8));
        let (destination, rest) = rest
            .split_at_checked(significant)
            .filter(|_| *width <= 32)?;
        let (gateway, rest) = rest.split_first_chunk::<4>()?;
        let mut base = [0; 4];
        base[..significant].copy_from_slice(destination);
        routes.push((
            Ipv4Network::containing(base.into(), *width)?,
            Ipv4Addr::from(*gateway),
        ));
        value = rest;
    }
    (!routes.is_empty()).then_some(routes)
}

fn is_unicast_network(network: Ipv4Network) -> bool {
    // Halves of everything are in use to override a default route, so a wide one may begin at 0.0.0.0.
    is_unicast(network.base())
        || (network.base().is_unspecified() && (1..WIDEST_PREFIX).contains(&network.prefix()))
}

fn resolvers(message: &Incoming) -> Vec<Ipv4Addr> {
    let mut taken = Vec::new();
    for address in message.addresses_option(option::DNS) {
        if is_unicast(address) && !taken.contains(&address) && taken.len() < resolv::LIMIT {
            taken.push(address);
        }
    }
    taken
}

fn mtu(message: &Incoming) -> Option<u32> {
    let mtu = u16::from_be_bytes(message.option(option::MTU)?.try_into().ok()?);
    (mtu >= MTU_SMALLEST).then_some(mtu.into())
}

fn time(message: &Incoming) -> Duration {
    let seconds = message
        .option(option::LEASE_TIME)
        .and_then(|value| value.try_into().ok())
        .map(u32::from_be_bytes);
    let time = seconds.map_or(USUAL, |seconds| Duration::from_secs(seconds.into()));
    time.clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    use super::super::dhcp_message::tests::{CARD, answer};
    use super::*;

    fn lease(address: [u8; 4], options: &[(u8, &[u8])]) -> Option<Lease> {
        let mut all: Vec<(u8, &[u8])> = vec![(option::MESSAGE_TYPE, &[5])];
        if !options.iter().any(|(code, _)| *code == option::SERVER_ID) {
            all.push((option::SERVER_ID, &[192, 0, 2, 1]));
        }
        all.extend(options);
        Lease::from_message(&Incoming::decode(&answer(7, CARD, address, &all), 7, CARD).unwrap())
    }

    fn say(lease: &Lease) -> String {
        let mut text = format!("{}/{}", lease.address(), lease.config.addresses[0].prefix);
        for route in &lease.config.routes {
            let via = route.via.map_or("link".into(), |via| via.to_string());
            text += &format!(
                ", {} via {via}{}",
                route.to,
                if route.on_link { "!" } else { "" }
            );
        }
        for resolver in &lease.config.resolvers {
            text += &format!(", dns {resolver}");
        }
        if let Some(mtu) = lease.config.mtu {
            text += &format!(", mtu {mtu}");
        }
        text
    }

    #[test]
    fn what_is_taken() {
        let mask: (u8, &[u8]) = (option::SUBNET_MASK, &[255, 255, 255, 0]);
        let router: (u8, &[u8]) = (option::ROUTER, &[192, 0, 2, 1]);
        for (case, options, expected) in [
            (
                "usual",
                &[mask, router, (option::DNS, &[9, 9, 9, 9])][..],
                "192.0.2.7/24, 0.0.0.0/0 via 192.0.2.1, dns 9.9.9.9",
            ),
            (
                "no mask",
                &[router],
                "192.0.2.7/32, 0.0.0.0/0 via 192.0.2.1!",
            ),
            (
                "mask with a hole",
                &[(1, &[255, 0, 255, 0]), router],
                "192.0.2.7/32, 0.0.0.0/0 via 192.0.2.1!",
            ),
            ("mask of everything", &[(1, &[0, 0, 0, 0])], "192.0.2.7/32"),
            (
                "mask that makes the address a broadcast",
                &[(1, &[255, 255, 255, 248])],
                "192.0.2.7/32",
            ),
            (
                "mask of five bytes",
                &[(1, &[255, 255, 255, 0, 0])],
                "192.0.2.7/32",
            ),
            (
                "point to point",
                &[(1, &[255, 255, 255, 254])],
                "192.0.2.7/31",
            ),
            (
                "router outside",
                &[(1, &[255; 4]), (3, &[172, 31, 1, 1])],
                "192.0.2.7/32, 0.0.0.0/0 via 172.31.1.1!",
            ),
            (
                "first router unusable",
                &[mask, (3, &[127, 0, 0, 1, 192, 0, 2, 9])],
                "192.0.2.7/24, 0.0.0.0/0 via 192.0.2.9",
            ),
            (
                "router is ourselves",
                &[mask, (3, &[192, 0, 2, 7])],
                "192.0.2.7/24",
            ),
            ("router of no length", &[mask, (3, &[])], "192.0.2.7/24"),
            (
                "router of a strange length",
                &[mask, (3, &[192, 0, 2, 1, 5])],
                "192.0.2.7/24",
            ),
            (
                "classless routes replace the router",
                &[
                    (1, &[255; 4]),
                    router,
                    (121, &[32, 172, 31, 1, 1, 0, 0, 0, 0, 0, 172, 31, 1, 1]),
                ],
                "192.0.2.7/32, 172.31.1.1/32 via link, 0.0.0.0/0 via 172.31.1.1",
            ),
            (
                "classless routes of no length",
                &[mask, router, (121, &[])],
                "192.0.2.7/24, 0.0.0.0/0 via 192.0.2.1",
            ),
            (
                "classless routes cut off",
                &[mask, router, (121, &[0, 192, 0, 2])],
                "192.0.2.7/24, 0.0.0.0/0 via 192.0.2.1",
            ),
            (
                "classless route too wide",
                &[mask, router, (121, &[33, 1, 2, 3, 4, 5, 192, 0, 2, 1])],
                "192.0.2.7/24, 0.0.0.0/0 via 192.0.2.1",
            ),
            (
                "the same destination twice",
                &[mask, (121, &[0, 192, 0, 2, 1, 0, 192, 0, 2, 9])],
                "192.0.2.7/24, 0.0.0.0/0 via 192.0.2.1",
            ),
            (
                "host bits in a destination",
                &[mask, (121, &[20, 10, 1, 255, 192, 0, 2, 1])],
                "192.0.2.7/24, 10.1.240.0/20 via 192.0.2.1",
            ),
            (
                "everything on the link",
                &[mask, (121, &[0, 0, 0, 0, 0])],
                "192.0.2.7/24",
            ),
            (
                "loopback and multicast elsewhere",
                &[mask, (121, &[8, 127, 192, 0, 2, 1, 4, 224, 192, 0, 2, 1])],
                "192.0.2.7/24",
            ),
            (
                "resolvers on this machine",
                &[mask, (6, &[127, 0, 0, 1, 0, 0, 0, 0])],
                "192.0.2.7/24",
            ),
            (
                "too many resolvers, some twice",
                &[
                    mask,
                    (
                        6,
                        &[1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4],
                    ),
                ],
                "192.0.2.7/24, dns 1.1.1.1, dns 2.2.2.2, dns 3.3.3.3",
            ),
            (
                "small MTU",
                &[mask, (26, &[2, 64])],
                "192.0.2.7/24, mtu 576",
            ),
            ("too small MTU", &[mask, (26, &[2, 63])], "192.0.2.7/24"),
            ("MTU of one byte", &[mask, (26, &[255])], "192.0.2.7/24"),
        ] {
            assert_eq!(
                say(&lease([192, 0, 2, 7], options).expect(case)),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn an_impossible_address_or_server_is_no_lease() {
        for address in [
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [255, 255, 255, 255],
            [240, 0, 0, 1],
        ] {
            assert_eq!(lease(address, &[]), None, "{address:?}");
        }
        for server in [
            &[][..],
            &[0, 0, 0, 0],
            &[127, 0, 0, 1],
            &[192, 0, 2],
            &[192, 0, 2, 1, 0],
            &[255; 4],
        ] {
            assert_eq!(
                lease([192, 0, 2, 7], &[(option::SERVER_ID, server)]),
                None,
                "{server:?}"
            );
        }
    }

    #[test]
    fn lease_times_are_bounded() {
        for (value, seconds) in [
            (&[0, 0, 0, 0][..], 30),
            (&[0, 0, 0, 1], 30),
            (&[0, 0, 2, 0], 512),
            (&[255, 255, 255, 255], 7 * 24 * 3600),
            (&[0, 1], 3600),
            (&[], 3600),
        ] {
            let lease = lease([192, 0, 2, 7], &[(option::LEASE_TIME, value)]).unwrap();
            assert_eq!(lease.time, Duration::from_secs(seconds), "{value:?}");
        }
    }

    /// Options that a hostile server would try: those we read, with any content, of any length, any number of times.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let known =
            prop::sample::select(vec![1_u8, 3, 6, 26, 51, 52, 54, 121, 12, 15, 17, 67, 119]);
        let code = prop_oneof![4 => known, 1 => any::<u8>()];
        let shell = prop::sample::select(vec![
            "$(reboot)",
            "';reboot;'",
            "`id`",
            "\u{0}\n",
            "../../etc/passwd",
        ]);
        let value = prop_oneof![
            2 => vec(any::<u8>(), 0..=255),
            2 => vec(any::<u8>(), 0..=9),
            1 => shell.prop_map(|text| text.as_bytes().to_vec()),
            1 => vec(prop::sample::select(vec![0_u8, 8, 24, 32, 33, 127, 255]), 0..40),
        ];
        let honest_length = prop_oneof![9 => Just(None), 1 => any::<u8>().prop_map(Some)];
        vec((code, value, honest_length), 0..12).prop_map(|options| {
            let mut bytes = Vec::new();
            for (code, value, length) in options {
                bytes.extend([code, length.unwrap_or(value.len() as u8)]);
                bytes.extend(value);
            }
            bytes
        })
    }

    #[test]
    fn hostile_answers_never_panic_and_never_give_an_invalid_configuration() {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        let config = Config {
            cases: 2000,
            failure_persistence: None,
            ..Config::default()
        };
        let taken = std::cell::Cell::new(0);
        let address = prop_oneof![3 => Just([192, 0, 2, 7]), 1 => any::<[u8; 4]>()];
        TestRunner::new_with_rng(config, rng)
            .run(
                &(address, hostile(), vec(any::<u8>(), 192)),
                |(address, options, fields)| {
                    let mut bytes = answer(7, CARD, address, &[(53, &[5]), (54, &[192, 0, 2, 1])]);
                    bytes.pop();
                    bytes.extend(options);
                    bytes[44..236].copy_from_slice(&fields);
                    let Some(message) = Incoming::decode(&bytes, 7, CARD) else {
                        return Ok(());
                    };
                    let Some(lease) = Lease::from_message(&message) else {
                        return Ok(());
                    };
                    taken.set(taken.get() + 1);
                    check(&lease)
                },
            )
            .unwrap();
        assert!(
            taken.get() >= 200,
            "only {} of them were leases at all",
            taken.get()
        );
    }

    fn check(lease: &Lease) -> Result<(), TestCaseError> {
        let config = &lease.config;
        prop_assert_eq!(config.addresses.len(), 1);
        let InterfaceAddress {
            address,
            prefix,
            peer,
        } = config.addresses[0];
        prop_assert!(is_unicast(address) && (8..=32).contains(&prefix) && peer.is_none());
        prop_assert!(config.routes.len() <= ROUTE_LIMIT && config.resolvers.len() <= 3);
        for route in &config.routes {
            prop_assert!(
                route
                    .via
                    .is_none_or(|via| is_unicast(via) && via != address),
                "{:?}",
                route
            );
            prop_assert!(route.via.is_some() || route.to.prefix() >= 8, "{:?}", route);
            prop_assert!(route.source.is_none() && route.metric.is_none());
        }
        prop_assert!(
            config
                .resolvers
                .iter()
                .all(|resolver| is_unicast(*resolver))
        );
        prop_assert!(config.mtu.is_none_or(|mtu| (576..=65_535).contains(&mtu)));
        prop_assert!((SHORTEST..=LONGEST).contains(&lease.time));
        Ok(())
    }
}
