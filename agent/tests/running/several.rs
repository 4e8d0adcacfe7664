//! Several volumes of one machine, one of which the key server holds nothing for any more.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::Service;
use crate::common::machine::{UUID, Volume, bind_arguments};
use crate::world::{Boot, World, is_denied, is_released};

const DATA_UUID: &str = "5d0a1c36-2f0b-4b57-8f3a-77c1f5f0be11";
const TICKET: &str = "rule = \"allow\"\nticket = true\notherwise = \"deny\"\n";

/// A second volume, before or behind the first one in crypttab.
fn plug_in_data(world: &World, first: &str, second: &str) -> Volume {
    let data = Volume::format(&["--type", "luks2", "--uuid", DATA_UUID]);
    let link = world.machine.path(&format!("dev/disk/by-uuid/{DATA_UUID}"));
    std::os::unix::fs::symlink(data.path(), link).unwrap();
    let line = |name: &str| {
        let uuid = if name == "data_crypt" {
            DATA_UUID
        } else {
            UUID
        };
        format!("{name} UUID={uuid} none luks,discard,initramfs\n")
    };
    let crypttab = line(first) + &line(second);
    std::fs::write(world.machine.path("etc/crypttab"), crypttab).unwrap();
    data
}

fn bind(world: &World, data: &Volume) {
    let said = world
        .machine
        .latchkey(&bind_arguments(data), crate::common::machine::PASSPHRASE);
    said.succeeded();
}

/// What the header of `volume` has as tickets.
fn tickets(volume: &Volume) -> Option<Value> {
    let json = volume.json();
    let tokens = json["tokens"].as_object().unwrap().values();
    let mut tickets = tokens.filter(|token| token["type"] == "latchkey-tickets");
    tickets.next().cloned()
}

/// The service moves the ticket of root on, and names the other volume once.
#[track_caller]
fn root_moves_on_alone(world: &World, data: &Volume, why: &str) {
    let (before, of_data) = (world.ticket(), tickets(data));
    let mut service = Service::of(&world.machine);
    service.says("tickets moved on in 1 volumes");
    let said = service.said();
    assert_eq!(said.matches("'data_crypt'").count(), 1, "{said}");
    assert!(
        said.contains(why) && said.contains("latchkey bind"),
        "{said}"
    );
    assert!(!said.contains("'root_crypt'"), "{said}");
    service.ends();
    assert_ne!(world.ticket(), before);
    assert_eq!(tickets(data), of_data);

    let before = world.ticket();
    let said = world.machine.latchkey(&["arm-reboot"], "").succeeded();
    assert!(said.err.contains("expects one boot until"), "{}", said.err);
    assert_eq!(said.err.matches("'data_crypt'").count(), 1, "{}", said.err);
    world.policy(TICKET);
    is_denied(&world.ask(&Boot::new(before)));
    is_released(&world.ask(&Boot::new(world.ticket())));
    assert_eq!(tickets(data), of_data);
}

#[test]
fn a_volume_whose_share_was_destroyed_does_not_hold_up_the_ticket_of_root() {
    for (first, second) in [("root_crypt", "data_crypt"), ("data_crypt", "root_crypt")] {
        let world = World::new();
        let data = plug_in_data(&world, first, second);
        bind(&world, &data);
        world
            .server
            .admin(&["destroy", "data_crypt", "--yes"])
            .succeeded();
        root_moves_on_alone(&world, &data, "destroyed the share of 'data_crypt'");
    }
}

#[test]
fn a_volume_that_the_key_server_does_not_know_does_not_hold_up_the_ticket_of_root() {
    let mut world = World::new();
    let data = plug_in_data(&world, "data_crypt", "root_crypt");
    world.server.stop();
    let saved = world.server.copy();
    world.server.serve();
    bind(&world, &data);
    world.server.stop();
    world.server.put_back(&saved);
    world.server.serve();
    root_moves_on_alone(&world, &data, "does not know 'data_crypt'");
}

#[test]
fn a_volume_whose_header_cannot_be_written_does_not_hold_up_the_ticket_of_root() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mount namespaces need root");
        return;
    }
    let world = World::new();
    let data = plug_in_data(&world, "data_crypt", "root_crypt");
    bind(&world, &data);
    // What this thread starts sees the disk as one that is write-protected.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    for words in [
        &["--make-rprivate", "/"][..],
        &["--bind", data.path(), data.path()],
        &["-o", "remount,bind,ro", data.path()],
    ] {
        let status = Command::new("mount").args(words).status().unwrap();
        assert!(status.success(), "mount {words:?}");
    }
    let (before, of_data) = (world.ticket(), tickets(&data));
    let mut service = Service::of(&world.machine);
    service.says("tickets moved on in 1 volumes");
    let said = service.said();
    assert!(
        said.contains("the header of 'data_crypt' takes no ticket"),
        "{said}"
    );
    service.ends();
    assert_ne!(world.ticket(), before);
    assert_eq!(tickets(&data), of_data);

    let said = world.machine.latchkey(&["arm-reboot"], "").succeeded();
    assert!(said.err.contains("expects one boot until"), "{}", said.err);
    world.policy(TICKET);
    is_released(&world.ask(&Boot::new(world.ticket())));
}

#[test]
fn a_machine_whose_only_volume_was_destroyed_can_still_announce_a_reboot() {
    let world = World::new();
    world
        .server
        .admin(&["destroy", "root_crypt", "--yes"])
        .succeeded();
    let said = world.machine.latchkey(&["arm-reboot"], "").succeeded();
    assert_eq!(said.err.matches("'root_crypt'").count(), 1, "{}", said.err);
    assert_eq!(world.ticket(), None);
}

#[test]
fn a_share_that_is_destroyed_between_the_two_steps_does_not_hold_up_the_others() {
    let world = Arc::new(World::new());
    let data = plug_in_data(&world, "data_crypt", "root_crypt");
    bind(&world, &data);
    let before = world.ticket();
    // A heartbeat, the next tickets, and then the confirmation, which comes too late.
    let destroying = world.clone();
    let address = gate(&world.server.address(), move |number| {
        if number == 2 {
            let destroy = ["destroy", "data_crypt", "--yes"];
            destroying.server.admin(&destroy).succeeded();
        }
    });
    let settings = world.machine.server_dir().join("server.toml");
    let joined = std::fs::read_to_string(&settings).unwrap();
    let through_gate = joined.replace(&world.server.address(), &address);
    assert_ne!(joined, through_gate);
    std::fs::write(&settings, through_gate).unwrap();

    let said = world.machine.latchkey(&["arm-reboot"], "").succeeded();
    assert_eq!(said.err.matches("'data_crypt'").count(), 1, "{}", said.err);
    assert!(
        said.err.contains("destroyed the share of 'data_crypt'"),
        "{}",
        said.err
    );
    assert_ne!(world.ticket(), before);
    world.policy(TICKET);
    is_released(&world.ask(&Boot::new(world.ticket())));
}

/// An address that leads to `target`; each connection waits until `before` has seen its number, from 0.
fn gate(target: &str, before: impl Fn(usize) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let target = target.to_owned();
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().flatten().enumerate() {
            before(number);
            let server = TcpStream::connect(&target).unwrap();
            pump(client.try_clone().unwrap(), server.try_clone().unwrap());
            pump(server, client);
        }
    });
    address
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let mut buffer = [0; 16384];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}
