//! A copy of the store of a running server, and a server that it is put in place for.

use std::os::unix::fs::MetadataExt;

use latchkey_protocol::wire::Verdict;

use crate::machine::{Boot, Machine};
use crate::server::{Home, Server, master_key};

/// A new data folder with configuration and master key of `home`, and no store.
fn without_store(home: &Home) -> Home {
    let new = Home::empty();
    std::fs::create_dir(new.data_dir()).unwrap();
    std::fs::set_permissions(
        new.data_dir(),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    let text = std::fs::read_to_string(home.config()).unwrap();
    let [old, moved] = [home, &new].map(|home| home.data_dir().display().to_string());
    std::fs::write(new.config(), text.replace(&old, &moved)).unwrap();
    std::fs::copy(master_key(home), master_key(&new)).unwrap();
    new
}

#[test]
fn a_copy_of_a_running_store_releases_and_lists_as_before_in_a_new_place() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, share) = machine.register("root");
    server.home.succeeds(&["group", "web-1", "web"]);
    server
        .home
        .succeeds(&["policy", "root", "allow", "--from", "127.0.0.1"]);
    let file = server.home.data_dir().with_file_name("copy.store");
    let path = file.to_str().unwrap();
    let said = server.home.succeeds(&["backup", path]);
    assert!(said.contains(path), "{said}");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let listed = |home: &Home| ["clients", "volumes", "groups"].map(|what| home.json(&[what]));
    let (lists, audit) = (listed(&server.home), server.home.audit());
    assert_eq!(audit.last().unwrap()["kind"], "backed-up");
    let error = server.home.fails(3, &["backup", path]);
    assert!(error.contains("exists already"), "{error}");
    // What comes after it is not in it.
    server.home.succeeds(&["invite", "web-2"]);
    let seen = machine.heartbeat(None, None).head;

    let home = without_store(&server.home);
    // The log of a store that is gone would be taken for the copy's.
    let log = home.data_dir().join("store.sqlite3-wal");
    std::fs::write(&log, "left").unwrap();
    let error = home.fails(3, &["restore", path]);
    assert!(error.contains("store.sqlite3-wal' exists"), "{error}");
    std::fs::remove_file(&log).unwrap();
    home.succeeds(&["restore", path]);
    let error = home.fails(3, &["restore", path]);
    assert!(error.contains("there is a store already"), "{error}");
    drop(server);
    let server = home.serve();
    assert_eq!(listed(&server.home), lists);
    assert_eq!(server.home.audit(), audit);
    let machine = Machine {
        address: server.address,
        ..machine
    };
    assert!(machine.released(&Boot::begin(), volume).0.matches(&share.0));

    // A machine that has seen more says so.
    assert_eq!(machine.heartbeat(seen, None).head, None);
    let Verdict::Denied { reason, .. } = machine.ask(&Boot::begin(), volume) else {
        panic!("not denied");
    };
    assert!(reason.as_str().contains("was put back"), "{reason:?}");
    server
        .home
        .succeeds(&["accept-rollback", "--reason", "disk failed"]);
    machine.released(&Boot::begin(), volume);
}

#[test]
fn what_is_no_copy_of_this_server_is_not_put_in_place() {
    let server = Server::start();
    let file = server.home.data_dir().with_file_name("copy.store");
    let path = file.to_str().unwrap();
    server.home.succeeds(&["backup", path]);
    let home = without_store(&server.home);
    let nothing = |home: &Home, words: &str| {
        let error = home.fails(1, &["restore", path]);
        assert!(error.contains(words), "{error}");
        let left = std::fs::read_dir(home.data_dir()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["latchkeyd.toml"]);
    };
    let other = without_store(&Home::made());
    nothing(&other, "not the one of this store");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    nothing(&home, "damaged");
    std::fs::write(&file, whole).unwrap();
    // Root puts it in place for the server's user.
    let owner = match nix::unistd::Uid::effective().is_root() {
        true => 65534,
        false => nix::unistd::geteuid().as_raw(),
    };
    std::os::unix::fs::chown(home.data_dir(), Some(owner), None).unwrap();
    home.succeeds(&["restore", path]);
    let store = std::fs::metadata(home.data_dir().join("store.sqlite3")).unwrap();
    assert_eq!(store.uid(), owner);
    let audit = home.json(&["audit", "--verify"]);
    assert!(audit["entries"].as_u64().unwrap() >= 2, "{audit}");
}
