//! The network against a real kernel, in network namespaces: rows T4, N1 to N7 of the fault catalogue.
#![allow(clippy::unwrap_used)] // the helpers of a test may fail like the test itself

mod dhcp;
mod lab;
mod undo;

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use lab::{Lab, in_lab, ip, next, state, trouble, up};
use latchkey::network::{NetworkEvent, record};

/// A server with one address and a gateway that only a route of its own reaches, as at Hetzner.
const ON_LINK_RECORD: &str = r#"{"version": 1, "resolvers": ["192.0.2.53", "2001:db8::53"], "interfaces": [
    {"name": "eth0", "mac": "02:00:00:00:00:07", "mtu": 1280, "ipv4": {"method": "static",
     "addresses": [{"address": "192.0.2.7", "prefix": 32}],
     "routes": [{"to": "0.0.0.0/0", "via": "172.31.1.1"}, {"to": "172.31.1.1/32"}]}}]}"#;

/// A router at the other end with something behind it: 198.51.100.1.
const ROUTER: &[&str] = &[
    "link set lo up",
    "addr add 198.51.100.1/32 dev lo",
    "addr add 172.31.1.1/32 dev peer",
    "link set peer up",
    "route add 192.0.2.7/32 dev peer",
];

#[test]
fn the_recorded_configuration_reaches_the_internet_and_leaves_no_trace() {
    in_lab(async |lab| {
        lab.add_card();
        lab.peer_ip(ROUTER);
        lab.write("etc/latchkey/network.json", ON_LINK_RECORD);
        let before = state();
        let (network, mut events) = lab.start("");
        assert_eq!(up(&mut events).await.0, "ens3 Recorded 192.0.2.7");
        assert_internet(lab);
        assert!(
            lab.read("etc/resolv.conf")
                .contains("\nnameserver 192.0.2.53\noptions timeout:1 attempts:2\n")
        );
        assert!(state().contains("\"mtu\":1280"));
        network.take_down().await.unwrap();
        assert_eq!(state(), before);
        assert!(!lab.root().join("etc/resolv.conf").exists());
        assert!(!lab.undo_path().exists());
    });
}

#[test]
fn a_cable_plugged_in_late_is_used() {
    in_lab(async |lab| {
        lab.add_card();
        lab.write("etc/latchkey/network.json", ON_LINK_RECORD);
        let (network, mut events) = lab.start("");
        trouble(&mut events, "network: waiting for a link on 'ens3'").await;
        lab.peer_ip(ROUTER);
        assert_eq!(up(&mut events).await.0, "ens3 Recorded 192.0.2.7");
        assert_internet(lab);

        lab.peer_ip(&["link set peer down"]);
        assert_eq!(
            next(&mut events).await,
            NetworkEvent::Down {
                link: "ens3".into()
            }
        );
        lab.peer_ip(&["link set peer up", "route add 192.0.2.7/32 dev peer"]);
        assert_eq!(up(&mut events).await.0, "ens3 Recorded 192.0.2.7");
        assert_internet(lab);
        network.take_down().await.unwrap();
    });
}

/// Two cards: the second leads to a network of its own.
const TWO_CARDS: &str = r#"{"version": 1, "interfaces": [
    {"name": "eth0", "mac": "02:00:00:00:00:07", "ipv4": {"method": "static",
     "addresses": [{"address": "192.0.2.7", "prefix": 24}], "routes": [{"to": "0.0.0.0/0", "via": "192.0.2.1"}]}},
    {"name": "eth1", "mac": "02:00:00:00:00:08", "ipv4": {"method": "static",
     "addresses": [{"address": "10.0.0.7", "prefix": 24}], "routes": []}}]}"#;

#[test]
fn what_happens_to_one_card_is_no_trouble_while_another_is_up() {
    in_lab(async |lab| {
        lab.add_card();
        lab.add_second_card();
        lab.write("etc/latchkey/network.json", TWO_CARDS);
        lab.peer_ip(&["link set peer up", "link set peer4 up"]);
        let (network, mut events) = lab.start("");
        let mut both = [up(&mut events).await.0, up(&mut events).await.0];
        both.sort();
        assert_eq!(both, ["ens3 Recorded 192.0.2.7", "ens4 Recorded 10.0.0.7"]);

        lab.peer_ip(&["link set peer4 down"]);
        for line in ["'ens4' went down", "waiting for a link on 'ens4'"] {
            let line = format!("network: {line}");
            assert_eq!(next(&mut events).await, NetworkEvent::Beside(line));
        }
        lab.peer_ip(&["link set peer down"]);
        let link = "ens3".to_owned();
        assert_eq!(next(&mut events).await, NetworkEvent::Down { link });
        trouble(&mut events, "network: waiting for a link on 'ens3'").await;
        lab.peer_ip(&["link set peer4 up"]);
        assert_eq!(up(&mut events).await.0, "ens4 Recorded 10.0.0.7");
        network.take_down().await.unwrap();
    });
}

#[test]
fn what_dracut_configures_is_used_and_nothing_is_added() {
    in_lab(async |lab| {
        lab.add_card();
        lab.peer_ip(&["link set peer up"]);
        for path in ["lib/dracut-lib.sh", "lib/net-lib.sh"] {
            lab.write(path, "");
        }
        let (network, mut events) = lab.start("rd.neednet=1 ip=192.0.2.9::192.0.2.1:24::ens3:off");
        trouble(
            &mut events,
            "network: another program is configuring 'ens3'",
        )
        .await;
        ip("link set ens3 up");
        ip("addr add 192.0.2.9/24 dev ens3");
        assert_eq!(up(&mut events).await.0, "ens3 AlreadyThere 192.0.2.9");
        let configured = state();
        network.take_down().await.unwrap();
        assert_eq!(state(), configured);
    });
}

#[test]
fn a_card_that_appears_late_is_used() {
    in_lab(async |lab| {
        lab.write("etc/latchkey/network.json", ON_LINK_RECORD);
        let before = state();
        let (network, mut events) = lab.start("");
        trouble(&mut events, "network: waiting for a network card").await;
        lab.add_card();
        lab.peer_ip(ROUTER);
        assert_eq!(up(&mut events).await.0, "ens3 Recorded 192.0.2.7");
        // It goes away again, and with it the network.
        ip("link del ens3");
        assert_eq!(
            next(&mut events).await,
            NetworkEvent::Down {
                link: "ens3".into()
            }
        );
        trouble(&mut events, "network: waiting for a network card").await;
        network.take_down().await.unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn a_card_is_not_touched_before_udev_has_finished_with_it() {
    in_lab(async |lab| {
        lab.write("run/udev/control", "");
        lab.write("etc/latchkey/network.json", ON_LINK_RECORD);
        lab.add_card();
        lab.peer_ip(ROUTER);
        let before = state();
        let (network, mut events) = lab.start("");
        trouble(
            &mut events,
            "network: waiting for udev to finish with 'ens3'",
        )
        .await;
        assert_eq!(state(), before);
        // As udev does it: the name first, its note last.
        ip("link set ens3 name wan0");
        lab.write(
            &format!(
                "run/udev/data/n{}",
                nix::net::if_::if_nametoindex("wan0").unwrap()
            ),
            "",
        );
        assert_eq!(up(&mut events).await.0, "wan0 Recorded 192.0.2.7");
        network.take_down().await.unwrap();
        assert_eq!(state(), before.replace("ens3", "wan0"));
    });
}

#[test]
fn what_somebody_else_configured_is_used_and_left() {
    in_lab(async |lab| {
        lab.add_card();
        lab.peer_ip(ROUTER);
        ip("link set ens3 up");
        ip("addr add 192.0.2.7/32 dev ens3");
        ip("route add 172.31.1.1 dev ens3");
        ip("route add default via 172.31.1.1");
        lab.write("run/net-ens3.conf", "IPV4DNS0='192.0.2.99'\n");
        let before = state();
        let (network, mut events) = lab.start("");
        assert_eq!(up(&mut events).await.0, "ens3 AlreadyThere 192.0.2.7");
        assert!(
            lab.read("etc/resolv.conf")
                .contains("nameserver 192.0.2.99\n")
        );
        network.take_down().await.unwrap();
        assert_eq!(state(), before);
        assert_internet(lab);
    });
}

#[test]
fn the_kernel_command_line_wins() {
    in_lab(async |lab| {
        lab.add_card();
        lab.peer_ip(&["link set peer up"]);
        lab.write("etc/latchkey/network.json", ON_LINK_RECORD);
        let before = state();
        let (network, mut events) =
            lab.start("ip=198.51.100.9::198.51.100.1:255.255.255.0::ens3:off:192.0.2.54");
        assert_eq!(up(&mut events).await.0, "ens3 CommandLine 198.51.100.9");
        assert!(
            lab.read("etc/resolv.conf")
                .contains("nameserver 192.0.2.54\n")
        );
        network.take_down().await.unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn what_is_recorded_is_what_is_replayed() {
    in_lab(async |lab| {
        lab.add_card();
        lab.peer_ip(ROUTER);
        ip("link set ens3 up mtu 1400");
        ip("addr add 192.0.2.7/32 dev ens3");
        ip("route add 172.31.1.1 dev ens3");
        ip("route add default via 172.31.1.1 metric 100");
        ip("link add br0 type bridge");
        ip("addr add 10.0.0.1/24 dev br0");
        lab.write("etc/resolv.conf", "nameserver 127.0.0.53\n");
        lab.write(
            "run/systemd/resolve/resolv.conf",
            "nameserver 192.0.2.53\nsearch example.net\n",
        );
        let running = state();

        let refused = record(&lab.root(), &[]).await.unwrap_err().to_string();
        assert!(
            refused
                .contains("'ens3' has the default route, but its kind 'veth' is not recorded yet"),
            "{refused}"
        );
        assert!(!lab.root().join("etc/latchkey/network.json").exists());
        let recorded = record(&lab.root(), &["veth".into()]).await.unwrap();
        assert_eq!(recorded.interfaces.len(), 1);

        // The next boot: nothing is configured.
        for command in [
            "addr flush dev ens3",
            "link set ens3 down mtu 1500",
            "link del br0",
        ] {
            ip(command);
        }
        let (network, mut events) = lab.start("");
        assert_eq!(up(&mut events).await.0, "ens3 Recorded 192.0.2.7");
        assert_internet(lab);
        let routes = |state: &str| state.matches("\"metric\":100").count();
        assert_eq!(routes(&state()), routes(&running));
        assert!(state().contains("\"mtu\":1400"));
        network.take_down().await.unwrap();
    });
}

#[test]
fn an_address_with_a_lifetime_is_recorded_as_dhcp() {
    in_lab(async |lab| {
        lab.add_card();
        lab.peer_ip(ROUTER);
        ip("link set ens3 up");
        ip("addr add 192.0.2.7/24 dev ens3 valid_lft 600 preferred_lft 600");
        ip("route add default via 192.0.2.1");
        record(&lab.root(), &["veth".into()]).await.unwrap();
        let text = lab.read("etc/latchkey/network.json");
        assert!(
            text.contains("\"method\": \"dhcp\"") && text.contains("\"lease\": \"192.0.2.7\""),
            "{text}"
        );
    });
}

#[test]
fn a_damaged_record_is_told_and_dhcp_remains() {
    in_lab(async |lab| {
        lab.write("etc/latchkey/network.json", "{\"version\": 1, ");
        lab.add_card();
        let (_network, mut events) = lab.start("");
        let NetworkEvent::Trouble(line) = next(&mut events).await else {
            panic!("no trouble")
        };
        assert!(
            line.starts_with("network: the network record is damaged: ")
                && line.ends_with("; using DHCP"),
            "{line}"
        );
        trouble(&mut events, "network: waiting for a link on 'ens3'").await;
    });
}

/// Something behind the router can be talked to.
#[track_caller]
fn assert_internet(lab: &Lab) {
    // A port of its own each time: a process that another test starts may hold the last one's listener for a moment.
    let address = (Ipv4Addr::new(198, 51, 100, 1), 0);
    let listener = lab.at_the_peer(move || TcpListener::bind(address).unwrap());
    let address = listener.local_addr().unwrap();
    let mut connection = TcpStream::connect(address).expect("a connection through the gateway");
    drop(listener.accept().unwrap());
    assert_eq!(connection.read(&mut [0]).unwrap(), 0);
}
