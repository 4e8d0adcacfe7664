//! From `init` to the end of the server: files, faults, signals.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use latchkey_protocol::token::JoinToken;
use latchkey_protocol::wire;
use nix::sys::signal::Signal;

use crate::machine::{Keys, Machine};
use crate::server::{Home, Server, latchkeyd, master_key, text};
use crate::wire::{connect, reply, request};

#[test]
fn init_makes_private_files_and_shows_the_fingerprint() {
    let home = Home::empty();
    let output = home.succeeds(&["init", "--name", "keys.example.org", "--name", "[::1]:8443"]);
    let fingerprint = output.trim().rsplit(' ').next().unwrap();
    assert!(
        fingerprint.parse::<latchkey_protocol::ServerId>().is_ok(),
        "{output}"
    );
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&home.data_dir()), 0o700);
    assert_eq!(mode(&master_key(&home)), 0o600);
    home.succeeds(&["check-config"]);
    let server = home.serve();
    let token: JoinToken = server.invite("a").parse().unwrap();
    assert_eq!(token.server.to_string(), fingerprint);
    let addresses: Vec<_> = token.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["keys.example.org:7443", "[::1]:8443"]);
}

#[test]
fn init_overwrites_nothing() {
    let home = Home::made();
    let before = std::fs::read(master_key(&home)).unwrap();
    let error = home.fails(3, &["init", "--name", "other"]);
    assert!(error.contains("there is a key server already"), "{error}");
    assert_eq!(std::fs::read(master_key(&home)).unwrap(), before);
}

#[test]
fn an_interrupted_init_goes_on_where_it_stopped() {
    let home = Home::made();
    let fingerprint = |home: &Home| {
        std::fs::remove_file(home.config()).unwrap();
        let output = home.succeeds(&["init", "--name", "127.0.0.1"]);
        output.trim().rsplit(' ').next().unwrap().to_owned()
    };
    let first = fingerprint(&home);
    assert_eq!(fingerprint(&home), first, "the CA stays");

    // Stopped between the master key and the store.
    std::fs::remove_dir_all(home.data_dir()).unwrap();
    home.succeeds(&["init", "--name", "127.0.0.1"]);
    home.serve().stop();
}

#[test]
fn init_takes_over_a_folder_that_was_made_for_the_servers_user() {
    if !nix::unistd::Uid::effective().is_root() {
        // Only root can make a folder that belongs to someone else.
        return;
    }
    let home = Home::empty();
    std::fs::create_dir(home.data_dir()).unwrap();
    std::fs::set_permissions(home.data_dir(), PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(home.data_dir(), Some(65534), Some(65534)).unwrap();
    home.succeeds(&["init", "--name", "127.0.0.1"]);
    // As systemd does before it starts the server: then root checks what belongs to the server's user.
    for entry in std::fs::read_dir(home.data_dir()).unwrap() {
        std::os::unix::fs::chown(entry.unwrap().path(), Some(65534), Some(65534)).unwrap();
    }
    std::os::unix::fs::chown(home.data_dir(), Some(65534), Some(65534)).unwrap();
    home.succeeds(&["audit", "--verify"]);
    for entry in std::fs::read_dir(home.data_dir()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().uid(), 65534, "{entry:?}");
    }
}

#[test]
fn a_second_server_on_one_store_is_refused() {
    let server = Server::start();
    let output = server.home.run(&["serve", "--listen", "127.0.0.1:0"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("in use by"), "{error}");
    assert!(
        error.contains("only one latchkeyd may serve a store"),
        "{error}"
    );
    server.home.succeeds(&["clients"]);
}

#[test]
fn a_taken_port_is_named() {
    let server = Server::start();
    let home = Home::made();
    let output = home.run(&["serve", "--listen", &server.address.to_string()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains(&format!("failed to listen on '{}'", server.address)),
        "{error}"
    );
}

#[test]
fn a_server_killed_without_warning_starts_again() {
    let mut server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, share) = machine.register("root");
    server.signal(Signal::SIGKILL);
    server.ended();
    let home = std::mem::replace(&mut server.home, Home::empty());
    let server = home.serve();
    let machine = Machine {
        address: server.address,
        ..machine
    };
    assert!(machine.proved(volume).0.matches(&share.0));
}

#[test]
fn sigterm_finishes_the_request_that_runs() {
    let mut server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let body = br#"{"version":1,"request":null,"lines":["root open"]}"#;
    let mut stream = connect(server.address, Some(&machine.host)).unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        wire::REPORT,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server asks for the body: the request runs.
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");

    server.signal(Signal::SIGTERM);
    server.log().wait_for("stopping");
    stream.write_all(body).unwrap();
    let reply = reply(&mut stream).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(server.ended().code(), Some(0));
    assert!(std::net::TcpStream::connect(server.address).is_err());
    assert!(!server.home.socket().exists());
}

#[test]
fn idle_connections_do_not_hold_up_the_end() {
    let mut server = Server::start();
    let idle = connect(server.address, None).unwrap();
    server.signal(Signal::SIGINT);
    assert_eq!(server.ended().code(), Some(0));
    assert!(!server.log().all().contains("gave up"));
    drop(idle);
}

#[test]
fn a_bad_configuration_on_reload_leaves_the_old_one_in_force() {
    let server = Server::start();
    let token = server.invite("web-1");
    std::fs::write(server.home.config(), "names = 7").unwrap();
    server.signal(Signal::SIGHUP);
    let line = server.log().wait_for("keeping the old configuration");
    assert!(line.contains("latchkeyd.toml"), "{line}");
    assert_eq!(Keys::fresh().join(server.address, &token).status, 200);
    // Commands name the mistake; the socket is there for those who know it.
    let error = server.home.fails(1, &["clients"]);
    assert!(error.contains("latchkeyd.toml"), "{error}");
    let socket = server.home.socket();
    let output = latchkeyd(&["clients", "--socket", &socket.display().to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_reload_takes_new_names_into_certificate_and_tokens() {
    let server = Server::start();
    let before: JoinToken = server.invite("a").parse().unwrap();
    let config = std::fs::read_to_string(server.home.config()).unwrap();
    let changed = config.replace("names = [", "names = [\"keys.example.org\", ");
    assert_ne!(config, changed);
    std::fs::write(server.home.config(), changed).unwrap();
    server.signal(Signal::SIGHUP);
    server.log().wait_for("reloaded");
    let after: JoinToken = server.invite("a").parse().unwrap();
    assert_eq!(after.server, before.server, "the CA stays");
    assert_eq!(after.addresses[0].host(), "keys.example.org");
    let stream = connect(server.address, None).unwrap();
    let leaf = &stream.conn.peer_certificates().unwrap()[0];
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
    let names = format!(
        "{:?}",
        parsed.subject_alternative_name().unwrap().unwrap().value
    );
    assert!(names.contains("keys.example.org"), "{names}");
}

#[test]
fn the_server_certificate_stays_the_same_over_a_restart() {
    let server = Server::start();
    let leaf = |server: &Server| {
        let stream = connect(server.address, None).unwrap();
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let first = leaf(&server);
    let server = server.stop().serve();
    assert_eq!(leaf(&server), first);
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let home = Home::made();
    let good = std::fs::read_to_string(home.config()).unwrap();
    for (text, words) in [
        (format!("{good}colour = 'red'\n"), "unknown field `colour`"),
        (good.replace("names", "name"), "unknown field `name`"),
        ("names = ".to_owned(), "failed to parse"),
        (
            good.replace("127.0.0.1:7443", "a b"),
            "'a b' is not an address",
        ),
    ] {
        std::fs::write(home.config(), text).unwrap();
        for command in ["check-config", "serve", "clients"] {
            let error = home.fails(1, &[command]);
            assert!(error.contains(words), "{command}: {error}");
        }
    }
}

#[test]
fn another_or_no_master_key_is_told_apart() {
    let (home, other) = (Home::made(), Home::made());
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    std::fs::copy(master_key(&other), master_key(&home)).unwrap();
    let error = home.fails(1, &serve);
    assert!(error.contains("not the one of this store"), "{error}");
    std::fs::remove_file(master_key(&home)).unwrap();
    let error = home.fails(1, &serve);
    assert!(error.contains("there is no master key"), "{error}");
}

#[test]
fn a_systemd_credential_goes_before_the_file() {
    let home = Home::made();
    let credentials = tempfile::tempdir().unwrap();
    let credential = credentials.path().join("latchkeyd.master-key");
    std::fs::rename(master_key(&home), &credential).unwrap();
    let output = latchkeyd(&["audit", "--verify", "--data-dir"])
        .arg(home.data_dir())
        .env("CREDENTIALS_DIRECTORY", credentials.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_store_that_cannot_be_written_is_refused_at_start() {
    // Root writes everywhere, so the server runs as another user where the test is root.
    let home = Home::made();
    let paths = |home: &Home| {
        let mut paths: Vec<_> = std::fs::read_dir(home.data_dir())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.extend([home.data_dir(), master_key(home)]);
        paths
    };
    let mut serve = latchkeyd(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
    serve.arg(home.data_dir());
    if nix::unistd::Uid::effective().is_root() {
        const NOBODY: u32 = 65534;
        for path in paths(&home) {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // The program may lie where only root can reach it.
        let program = home.data_dir().with_file_name("latchkeyd");
        std::fs::copy(env!("CARGO_BIN_EXE_latchkeyd"), &program).unwrap();
        let mut other = std::process::Command::new(program);
        other.args(serve.get_args());
        std::os::unix::process::CommandExt::uid(&mut other, NOBODY);
        std::os::unix::process::CommandExt::gid(&mut other, NOBODY);
        serve = other;
    }
    for path in paths(&home) {
        let mode = if path.is_dir() { 0o500 } else { 0o400 };
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let output = serve.output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains(&home.data_dir().display().to_string()),
        "{error}"
    );
    std::fs::set_permissions(home.data_dir(), PermissionsExt::from_mode(0o700)).unwrap();
}

#[test]
fn the_audit_is_verified_with_and_without_a_server() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    machine.register("root");
    let running = server.home.json(&["audit", "--verify"]);
    assert!(running["entries"].as_u64().unwrap() >= 3, "{running}");
    let home = server.stop();
    let stopped = home.json(&["audit", "--verify"]);
    assert_eq!(stopped["head"], running["head"]);
}

#[test]
fn a_key_server_that_was_never_made_says_how_to_make_one() {
    let home = Home::empty();
    let error = home.fails(1, &["serve"]);
    assert!(error.contains("latchkeyd init --name HOST"), "{error}");
}

#[test]
fn systemd_is_told_how_the_server_stands() {
    let home = Home::made();
    let socket = home.data_dir().with_file_name("notify");
    let systemd = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    systemd
        .set_read_timeout(Some(std::time::Duration::from_secs(60)))
        .unwrap();
    let told = || {
        let mut buffer = [0; 256];
        let length = systemd.recv(&mut buffer).unwrap();
        text(&buffer[..length]).trim_end().to_owned()
    };
    let mut server = home.serve_with(|command| {
        command.env("NOTIFY_SOCKET", &socket);
    });
    assert_eq!(told(), "READY=1");
    server.signal(Signal::SIGHUP);
    assert!(told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(told(), "READY=1");
    server.signal(Signal::SIGTERM);
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn at_debug_the_log_says_why_strangers_were_refused() {
    let home = Home::made();
    let config = std::fs::read_to_string(home.config()).unwrap();
    std::fs::write(home.config(), format!("{config}log-level = 'debug'\n")).unwrap();
    let server = home.serve();
    let machine = Machine::join(&server, "web-1");
    let unknown = crate::wire::Identity::self_signed("x");
    for (identity, words) in [
        (None, "no client certificate"),
        (Some(&unknown), "unknown client key"),
        (
            Some(&machine.boot),
            "client 'web-1': the Boot key is not for this endpoint",
        ),
    ] {
        request(server.address, identity, "GET", wire::STATUS, b"");
        let line = server.log().wait_for(words);
        assert!(line.contains("GET /v1/status from 127.0.0.1:"), "{line}");
    }
}

#[test]
fn what_strangers_do_is_not_in_the_log() {
    let server = Server::start();
    for _ in 0..3 {
        request(server.address, None, "GET", "/secret-path", b"");
    }
    assert!(
        !server.log().all().contains("secret-path"),
        "{}",
        server.log().all()
    );
}

#[test]
fn a_store_in_the_place_of_the_admin_socket_is_not_removed() {
    let home = Home::made();
    let good = std::fs::read_to_string(home.config()).unwrap();
    let link = home.data_dir().with_file_name("link");
    std::os::unix::fs::symlink(home.data_dir(), &link).unwrap();
    // By another name it is found out when the socket is made.
    for (folder, words) in [
        (&home.data_dir(), "another file of latchkeyd"),
        (&link, "exists and is no socket"),
    ] {
        let text: String = good
            .lines()
            .filter(|line| !line.starts_with("admin-socket"))
            .map(|line| format!("{line}\n"))
            .collect();
        let path = folder.join("store.sqlite3");
        let text = format!("{text}admin-socket = '{}'\n", path.display());
        std::fs::write(home.config(), text).unwrap();
        let error = home.fails(1, &["serve", "--listen", "127.0.0.1:0"]);
        assert!(error.contains(words), "{error}");
    }
    std::fs::write(home.config(), good).unwrap();
    home.serve().stop();
}
