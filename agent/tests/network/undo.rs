//! Taking the network away from another process, and after the agent was killed.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use latchkey::network::{Network, undo_from};

use crate::lab::{Lab, dhcp_server, in_lab, ip, next, state, up};

/// Where the agent that is to be killed finds its files; set only for that process.
const VICTIM: &str = "LATCHKEY_TEST_VICTIM";

#[test]
fn after_a_kill_another_process_takes_everything_away() {
    in_lab(async |lab| {
        lab.add_card();
        lab.write("etc/resolv.conf", "# nothing of note\n");
        dhcp_server(lab, |request| {
            let options: &[(u8, &[u8])] = &[
                (1, &[255; 4]),
                (6, &[192, 0, 2, 53]),
                (26, &[5, 0]),
                (121, &[32, 192, 0, 2, 1, 0, 0, 0, 0, 0, 192, 0, 2, 1]),
            ];
            request.usual_answer([192, 0, 2, 7], options)
        });
        let before = state();
        let mut victim = victim(lab);
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("Up {")),
            "the network came up"
        );
        victim.kill().unwrap();
        victim.wait().unwrap();
        assert_ne!(state(), before);
        assert!(lab.read("etc/resolv.conf").contains("192.0.2.53"));

        undo_from(&lab.undo_path()).await.unwrap();
        assert_eq!(state(), before);
        assert_eq!(lab.read("etc/resolv.conf"), "# nothing of note\n");
        undo_from(&lab.undo_path()).await.unwrap();
        assert_eq!(state(), before, "once more changes nothing");
    });
}

#[test]
fn an_agent_that_follows_a_killed_one_takes_its_changes_away_too() {
    in_lab(async |lab| {
        lab.add_card();
        dhcp_server(lab, |request| {
            request.usual_answer([192, 0, 2, 7], &[(1, &[255, 255, 255, 0])])
        });
        let before = state();
        let mut victim = victim(lab);
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("Up {")),
            "the network came up"
        );
        victim.kill().unwrap();
        victim.wait().unwrap();

        let (network, mut events) = lab.start("");
        assert!(format!("{:?}", next(&mut events).await).contains("AlreadyThere"));
        network.take_down().await.unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn only_what_was_added_is_taken_away() {
    in_lab(async |lab| {
        lab.add_card();
        lab.peer_ip(&["link set peer up"]);
        // Somebody has a route already that the agent would add.
        ip("link set lo up");
        ip("route add 198.51.100.0/24 dev lo");
        let record = r#"{"version": 1, "interfaces": [{"name": "ens3", "mac": "02:00:00:00:00:07", "ipv4":
            {"method": "static", "addresses": [{"address": "192.0.2.7", "prefix": 24}],
             "routes": [{"to": "198.51.100.0/24"}]}}]}"#;
        lab.write("etc/latchkey/network.json", record);
        let (network, mut events) = lab.start("");
        up(&mut events).await;
        // And somebody comes to use the card meanwhile.
        ip("addr add 203.0.113.5/24 dev ens3");
        network.take_down().await.unwrap();
        let now = state();
        assert!(now.contains("\"dst\":\"198.51.100.0/24\""), "{now}");
        assert!(
            now.contains("203.0.113.5") && !now.contains("192.0.2.7"),
            "{now}"
        );
        assert!(
            now.contains("\"dst\":\"203.0.113.0/24\""),
            "the card is still up: {now}"
        );
    });
}

#[test]
fn a_list_of_changes_that_never_happened_undoes_nothing() {
    in_lab(async |lab| {
        lab.add_card();
        let before = state();
        let index = nix::net::if_::if_nametoindex("ens3").unwrap();
        let list = format!(
            r#"{{"version": 1, "changes": [
                {{"change": "link-up", "index": {index}, "mac": "02:00:00:00:00:07"}},
                {{"change": "mtu", "index": {index}, "before": 1400, "after": 1280}},
                {{"change": "address", "index": {index}, "address": {{"address": "192.0.2.7", "prefix": 24}}}},
                {{"change": "route", "index": {index}, "route": {{"to": "0.0.0.0/0", "via": "192.0.2.1"}}}},
                {{"change": "route", "index": 4711, "route": {{"to": "0.0.0.0/0", "via": "192.0.2.1"}}}},
                {{"change": "address", "index": 4711, "address": {{"address": "192.0.2.7", "prefix": 24}}}},
                {{"change": "link-up", "index": 4711, "mac": null}},
                {{"change": "resolvers", "path": "{}", "before": {{"was": "missing"}}}}]}}"#,
            lab.root().join("etc/resolv.conf").display()
        );
        lab.write("run/latchkey/network-undo.json", &list);
        undo_from(&lab.undo_path()).await.unwrap();
        assert_eq!(state(), before);
        assert!(!lab.undo_path().exists());
    });
}

/// Not a test of its own: the agent that the tests above kill.
#[test]
fn victim_process() {
    let Some(root) = std::env::var_os(VICTIM) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut config = latchkey::network::load(root.as_ref(), "", "");
        config.wishes.extra_kinds = vec!["veth".into()];
        let (_network, mut events) = Network::start(config);
        while let Some(event) = events.recv().await {
            println!("{event:?}");
        }
    });
}

/// Starts that process in the lab.
fn victim(lab: &Lab) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "undo::victim_process", "--nocapture"])
        .env(VICTIM, lab.root())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}
