//! The service and `arm-reboot` with the real key server: what a boot gets afterwards, and what a copy of the disk gets.

use std::fs;

use latchkey::files::Role;
use latchkey::running::renewal;
use latchkey::server::{KeyServer, block_on};

use crate::world::{Boot, World, is_denied, is_released};

const TICKET: &str = "rule = \"allow\"\nticket = true\notherwise = \"deny\"\n";
const ARMED: &str = "rule = \"allow\"\narmed = true\nticket = true\notherwise = \"deny\"\n";
const LIFE: &str = "rule = \"allow\"\nticket = true\nlife = true\notherwise = \"deny\"\n";

#[test]
fn after_each_boot_the_ticket_moves_on_and_an_old_copy_of_the_disk_is_refused() {
    let world = World::new();
    assert_eq!(world.ticket(), None, "none before the service has run");
    let envelopes = world.volume.json()["tokens"]["0"].clone();
    world.up().ends();
    let first = world.ticket().unwrap();
    world.policy(TICKET);
    is_released(&world.boot(Some(first)));
    // Started again in the same boot it leaves the header alone.
    let mut again = crate::Service::of(&world.machine);
    again.says("hears that this machine lives");
    again.ends();
    assert_eq!(world.ticket(), Some(first));

    world.up().ends();
    let second = world.ticket().unwrap();
    assert_ne!(first, second);
    is_denied(&world.boot(Some(first)));
    is_denied(&world.boot(None));
    is_released(&world.boot(Some(second)));
    assert_eq!(world.volume.json()["tokens"]["0"], envelopes);
    assert_eq!(world.volume.count("tokens"), 2);
    world.volume.opens_with_the_passphrase();

    world.machine.unbind(&world.volume).succeeded();
    assert_eq!(world.volume.count("tokens"), 0, "both tokens went");
}

#[test]
fn a_copy_that_boots_while_the_original_runs_is_refused_with_an_alarm() {
    let world = World::new();
    let mut original = world.up();
    world.policy(LIFE);
    let fresh_copy = Boot::new(world.ticket());
    is_denied(&world.ask(&fresh_copy));
    original.says("another one boots with its boot key");
    let audit = world.audit();
    assert!(audit.contains("that one is a copy"), "{audit}");
    // The original is undisturbed.
    original.until("still there", || true);
    original.ends();
}

#[test]
fn an_announced_reboot_is_released_to_one_boot_session() {
    let world = World::new();
    world.up().ends();
    world.policy(ARMED);
    is_denied(&world.boot(world.ticket()));
    let before = world.ticket();
    let said = world
        .machine
        .latchkey(&["arm-reboot", "--ttl", "5m"], "")
        .succeeded();
    assert!(
        said.err.contains("expects one boot until 20"),
        "{}",
        said.err
    );
    assert!(said.err.contains(" UTC"), "{}", said.err);
    is_denied(&world.boot(before));
    let boot = Boot::new(world.ticket());
    is_released(&world.ask(&boot));
    is_released(&world.ask(&boot));
    is_denied(&world.boot(world.ticket()));
}

#[test]
fn a_reboot_is_announced_at_the_key_servers_that_answer() {
    let mut world = World::new();
    let other = crate::common::machine::Server::start();
    world
        .machine
        .latchkey(&["join", "-"], &other.invite("web-1"))
        .succeeded();
    let announced = world.machine.latchkey(&["arm-reboot"], "").succeeded();
    let lines = announced.err.matches("expects one boot until").count();
    assert_eq!(lines, 2, "{}", announced.err);
    world.server.stop();
    let said = world.machine.latchkey(&["arm-reboot"], "");
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(
        said.err.contains("was not told of the reboot"),
        "{}",
        said.err
    );
    assert!(said.err.contains("expects one boot until"), "{}", said.err);
}

#[test]
fn an_image_that_was_built_here_is_announced_before_it_boots() {
    let world = World::new();
    let mut service = world.up();
    world.policy(TICKET);
    let boot = |image| world.ask(&Boot::new(world.ticket()).of_image(image));
    is_released(&boot([1; 32]));
    world.policy("rule = \"allow\"\nticket = true\nchanges = [\"image\"]\notherwise = \"deny\"\n");
    is_released(&boot([1; 32]));
    is_denied(&boot([2; 32]));
    let built = format!("{}\n{}\n", "02".repeat(32), "01".repeat(32));
    fs::write(world.files().images(), built).unwrap();
    // The service sees it at the next beat.
    service.until("announced", || {
        matches!(
            boot([2; 32]),
            latchkey_protocol::wire::Verdict::Released { .. }
        )
    });
    is_denied(&boot([3; 32]));
    service.ends();
}

#[test]
fn a_renewed_certificate_replaces_the_old_one_when_it_was_used() {
    let world = World::new();
    let joined = world.server_files();
    let path = joined.certificate_path(Role::Host);
    let before = fs::read(&path).unwrap();
    let server = KeyServer::open(&joined, Role::Host).unwrap();
    block_on(renewal::renew(&joined, &server)).unwrap().unwrap();
    assert_ne!(fs::read(&path).unwrap(), before);
    world.machine.latchkey(&["status"], "").succeeded();

    // A key server that is away: the old one stays.
    let now = fs::read(&path).unwrap();
    world.server.allow(0);
    block_on(renewal::renew(&joined, &server))
        .unwrap()
        .unwrap_err();
    // One that renews but does not take the new one.
    world.server.allow(1);
    block_on(renewal::renew(&joined, &server))
        .unwrap()
        .unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), now);
}

#[test]
fn a_key_server_that_was_put_back_hears_of_it_from_the_first_machine() {
    let mut world = World::new();
    world.up().ends();
    world.policy(TICKET);
    world.server.stop();
    let saved = world.server.copy();
    world.server.serve();
    let head = world.files().head(&world.server_files().settings.id);
    let earlier = fs::read(&head).unwrap();
    is_released(&world.boot(world.ticket()));
    world.up().ends();
    let newest = fs::read(&head).unwrap();
    assert_ne!(newest, earlier);

    world.server.stop();
    world.server.put_back(&saved);
    world.server.serve();
    let mut service = crate::Service::of(&world.machine);
    service.says("hears that this machine lives");
    let server = &world.server;
    service.until("an alarm", || {
        server
            .admin(&["audit"])
            .succeeded()
            .out
            .contains("the store was put back")
    });
    service.ends();
    assert_eq!(fs::read(&head).unwrap(), newest, "it is shown again");
    is_denied(&world.boot(world.ticket()));

    // The store that is accepted does not know the ticket of this boot. The machine runs on, and gets another one.
    world
        .server
        .admin(&["accept-rollback", "--reason", "a test"])
        .succeeded();
    let stale = world.ticket();
    let mut service = crate::Service::of(&world.machine);
    service.says("tickets moved on in 1 volumes");
    service.ends();
    assert_ne!(world.ticket(), stale);
    is_released(&world.boot(world.ticket()));
}
