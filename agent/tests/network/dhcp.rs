//! DHCP on the wire, against scripted servers.

use std::net::Ipv4Addr;
use std::time::Duration;

use latchkey::network::NetworkEvent;
use latchkey::network::dhcp_socket::{DhcpSocket, Transport};
use latchkey::network::values::Mac;
use tokio::time::timeout;

use crate::lab::{
    ACK, CARD, DISCOVER, NAK, OFFER, RELEASE, REQUEST, Request, dhcp_server, in_lab, ip, next,
    state, trouble, up,
};

const MINE: [u8; 4] = [192, 0, 2, 7];
const USUAL: &[(u8, &[u8])] = &[
    (1, &[255, 255, 255, 0]),
    (3, &[192, 0, 2, 1]),
    (6, &[192, 0, 2, 53]),
    (26, &[5, 120]),
    (51, &[0, 0, 14, 16]),
];

#[test]
fn an_unknown_card_is_configured_by_dhcp_and_leaves_no_trace() {
    in_lab(async |lab| {
        lab.add_card();
        let before = state();
        let mut requests = dhcp_server(lab, |request| request.usual_answer(MINE, USUAL));
        let (network, mut events) = lab.start("");
        assert_eq!(up(&mut events).await.0, "ens3 Dhcp 192.0.2.7");
        assert!(
            lab.read("etc/resolv.conf")
                .contains("nameserver 192.0.2.53\n")
        );
        let now = state();
        for expected in [
            "\"gateway\":\"192.0.2.1\"",
            "\"mtu\":1400",
            "\"local\":\"192.0.2.7\",\"prefixlen\":24",
        ] {
            assert!(now.contains(expected), "{expected}: {now}");
        }
        network.take_down().await.unwrap();
        assert_eq!(state(), before);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            kinds.push(requests.recv().await.unwrap().kind);
        }
        assert_eq!(
            kinds,
            [DISCOVER, REQUEST, RELEASE],
            "the lease is given back"
        );
    });
}

#[test]
fn a_recorded_lease_is_asked_for_again() {
    in_lab(async |lab| {
        lab.add_card();
        let record = format!(
            r#"{{"version": 1, "interfaces": [{{"name": "x", "mac": "{CARD}", "mtu": 1300,
                "ipv4": {{"method": "dhcp", "lease": "192.0.2.77"}}}}]}}"#
        );
        lab.write("etc/latchkey/network.json", &record);
        let mut requests = dhcp_server(lab, |request| {
            request.usual_answer(
                request.requested.map_or(MINE, |address| address.octets()),
                &[],
            )
        });
        let (network, mut events) = lab.start("");
        assert_eq!(up(&mut events).await.0, "ens3 Dhcp 192.0.2.77");
        assert_eq!(
            requests.recv().await.unwrap().requested,
            Some(Ipv4Addr::new(192, 0, 2, 77))
        );
        assert!(
            state().contains("\"mtu\":1300"),
            "the recorded MTU, where the server names none"
        );
        network.take_down().await.unwrap();
    });
}

#[test]
fn a_server_that_answers_late_refuses_and_gives_a_second_is_used() {
    in_lab(async |lab| {
        lab.add_card();
        let mut discovers = 0;
        let mut refused = false;
        let mut requests = dhcp_server(lab, move |request| {
            let short: &[(u8, &[u8])] = &[
                (1, &[255, 0, 255, 0]),
                (3, &[192, 0, 2, 1]),
                (51, &[0, 0, 0, 1]),
            ];
            match request.kind {
                DISCOVER => {
                    discovers += 1;
                    (discovers > 1).then(|| request.answer(OFFER, MINE, short))
                }
                REQUEST if !std::mem::replace(&mut refused, true) => {
                    Some(request.answer(NAK, [0; 4], &[]))
                }
                REQUEST => Some(request.answer(ACK, MINE, short)),
                _ => None,
            }
        });
        let (network, mut events) = lab.start("");
        assert_eq!(up(&mut events).await.0, "ens3 Dhcp 192.0.2.7");
        let now = state();
        assert!(
            now.contains("\"local\":\"192.0.2.7\",\"prefixlen\":32"),
            "a wrong mask is none: {now}"
        );
        assert!(now.contains("\"onlink\""), "{now}");
        // It is renewed while it is in use.
        let renewal = loop {
            let request = requests.recv().await.unwrap();
            if request.current == Ipv4Addr::from(MINE) {
                break request;
            }
        };
        assert_eq!(renewal.kind, REQUEST);
        network.take_down().await.unwrap();
    });
}

#[test]
fn a_renewal_that_brings_other_routes_replaces_the_old_ones() {
    in_lab(async |lab| {
        lab.add_card();
        let before = state();
        let mut acknowledged = 0;
        dhcp_server(lab, move |request| {
            acknowledged += i32::from(request.kind == REQUEST);
            let gateway: &[u8] = if acknowledged > 1 {
                &[192, 0, 2, 2]
            } else {
                &[192, 0, 2, 1]
            };
            request.usual_answer(
                MINE,
                &[(1, &[255, 255, 255, 0]), (3, gateway), (51, &[0, 0, 0, 1])],
            )
        });
        let (network, mut events) = lab.start("");
        up(&mut events).await;
        // A new carrier makes it ask whether the lease still holds.
        lab.peer_ip(&["link set peer down"]);
        assert_eq!(
            next(&mut events).await,
            NetworkEvent::Down {
                link: "ens3".into()
            }
        );
        lab.peer_ip(&["link set peer up"]);
        up(&mut events).await;
        // And the answer changes the configuration.
        up(&mut events).await;
        let now = state();
        assert!(
            now.contains("\"gateway\":\"192.0.2.2\"") && !now.contains("\"gateway\":\"192.0.2.1\""),
            "{now}"
        );
        network.take_down().await.unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn hostile_options_make_no_file_and_no_route() {
    in_lab(async |lab| {
        lab.add_card();
        dhcp_server(lab, |request| {
            let command: &[u8] = b"';touch /tmp/owned;'$(touch /tmp/owned)`touch /tmp/owned`\n";
            request.usual_answer(
                MINE,
                &[
                    (1, &[255, 255, 255, 0]),
                    (3, &[127, 0, 0, 1, 224, 0, 0, 1, 192, 0, 2, 1]),
                    (6, &[127, 0, 0, 53, 192, 0, 2, 53]),
                    (26, &[0, 68]),
                    (12, command),
                    (15, command),
                    (17, command),
                    (67, command),
                    (119, &[255, 255, 255]),
                    (121, &[33, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                    (121, &[]),
                    (66, &[0; 255]),
                ],
            )
        });
        let (network, mut events) = lab.start("");
        assert_eq!(up(&mut events).await.0, "ens3 Dhcp 192.0.2.7");
        assert_eq!(state().matches("\"gateway\":\"192.0.2.1\"").count(), 1);
        assert!(state().contains("\"mtu\":1500"));
        let mut files: Vec<String> = Vec::new();
        let mut folders = vec![lab.root()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => files.push(entry.file_name().into_string().unwrap()),
                }
            }
        }
        files.sort();
        assert_eq!(files, ["network-undo.json", "resolv.conf"]);
        let resolvers = lab.read("etc/resolv.conf");
        assert!(
            resolvers
                .lines()
                .skip(1)
                .eq(["nameserver 192.0.2.53", "options timeout:1 attempts:2"]),
            "{resolvers}"
        );
        network.take_down().await.unwrap();
    });
}

#[test]
fn nobody_answering_is_told_and_a_later_answer_is_used() {
    in_lab(async |lab| {
        lab.add_card();
        lab.peer_ip(&["link set peer up"]);
        let (network, mut events) = lab.start("");
        trouble(&mut events, "network: no answer to DHCP on 'ens3'").await;
        dhcp_server(lab, |request| request.usual_answer(MINE, USUAL));
        assert_eq!(up(&mut events).await.0, "ens3 Dhcp 192.0.2.7");
        network.take_down().await.unwrap();
    });
}

#[test]
fn without_packet_sockets_udp_does() {
    in_lab(async |lab| {
        lab.add_card();
        ip("link set ens3 up");
        let mut requests = dhcp_server(lab, |request| request.usual_answer(MINE, USUAL));
        let mac: Mac = CARD.parse().unwrap();
        let index = nix::net::if_::if_nametoindex("ens3").unwrap();
        let mut socket = DhcpSocket::open_as(Transport::Udp, index, "ens3", mac).unwrap();
        assert!(socket.needs_broadcast());
        let mut discover = vec![0; 240];
        discover[28..34].copy_from_slice(&mac.0);
        discover.extend([53, 1, DISCOVER, 255]);
        // A card that was just switched on may drop what is sent at once; a client sends it again too.
        let answer = loop {
            socket.broadcast(&discover).await.unwrap();
            if let Ok(answer) = timeout(Duration::from_secs(1), socket.receive()).await {
                break answer.unwrap().payload.to_vec();
            }
        };
        let request: Request = requests.recv().await.unwrap();
        assert_eq!(answer, request.answer(OFFER, MINE, USUAL));
    });
}
