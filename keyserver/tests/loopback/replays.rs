//! What was recorded on the way is sent again: to the server, and to a machine.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::Duration;

use latchkey_protocol::release::{Purpose, ReleaseContext};
use latchkey_protocol::wire::{self, Verdict};
use latchkey_protocol::{Generation, VolumeId};

use crate::forgeries::telling;
use crate::machine::{Boot, Keys, Machine, verdict};
use crate::server::Server;
use crate::wire::{connect, request};

const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that went each way over one connection.
struct Recording {
    sent: Vec<u8>,
    answered: Vec<u8>,
}

/// Records one connection to `server` that `use_it` makes to the address it is given.
fn record(server: SocketAddr, use_it: impl FnOnce(SocketAddr)) -> Recording {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (done, recorded) = channel();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(server).unwrap();
        let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let sending = std::thread::spawn(move || copy(from, to));
        let answered = copy(server, client);
        done.send(Recording {
            sent: sending.join().unwrap(),
            answered,
        })
        .unwrap();
    });
    use_it(address);
    recorded.recv_timeout(PATIENCE).unwrap()
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        all.extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
    all
}

#[test]
fn a_recorded_connection_releases_nothing_when_it_is_sent_again() {
    let server = telling();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let boot = Boot::begin();
    let recording = record(server.address, |address| {
        let through = Machine {
            address,
            server: machine.server,
            name: machine.name.clone(),
            boot: machine.boot.clone(),
            host: machine.host.clone(),
        };
        through.released(&boot, volume);
    });
    assert_eq!(server.home.audited("released"), 1);

    let mut again = TcpStream::connect(server.address).unwrap();
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    again.write_all(&recording.sent).unwrap();
    let mut answer = Vec::new();
    let _ = again.read_to_end(&mut answer);
    server.log().wait_for("TLS handshake failed");
    assert_eq!(server.home.audited("released"), 1);

    // The other way round: what the server said does not convince a machine that asks anew.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let _ = client.write_all(&recording.answered);
        let _ = client.read_to_end(&mut Vec::new());
    });
    let error = connect(address, Some(&machine.boot)).unwrap_err();
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
}

#[test]
fn a_sealed_answer_opens_for_its_own_boot_and_no_other() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let boot = Boot::begin();
    let Verdict::Released { sealed, .. } = machine.ask(&boot, volume) else {
        panic!("not released");
    };
    let other = Boot::begin();
    let none = VolumeId::random().unwrap();
    let context = |boot: &Boot, purpose, volume| {
        boot.pair
            .open(
                &sealed,
                ReleaseContext {
                    purpose,
                    server: &machine.server,
                    client: &machine.name,
                    request: &boot.id,
                    volume,
                    generation: Generation::FIRST,
                },
            )
            .is_ok()
    };
    assert!(context(&boot, Purpose::Release, &volume), "the boot itself");
    assert!(!context(&other, Purpose::Release, &volume), "another boot");
    assert!(!context(&boot, Purpose::Proof, &volume), "another purpose");
    assert!(!context(&boot, Purpose::Release, &none), "another volume");
    let renamed = Boot {
        id: other.id,
        pair: boot.pair,
    };
    assert!(
        !context(&renamed, Purpose::Release, &volume),
        "another request id"
    );
}

#[test]
fn the_request_of_a_boot_sent_again_with_another_key_is_refused_and_on_record() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    server.home.succeeds(&["policy", "root", "ask"]);
    let boot = Boot::begin();
    assert!(matches!(
        machine.ask(&boot, volume),
        Verdict::Pending { .. }
    ));
    let copied = Boot {
        id: boot.id,
        pair: Boot::begin().pair,
    };
    let reply = request(
        server.address,
        Some(&machine.boot),
        "POST",
        wire::RELEASE,
        &copied.wants(&[volume]),
    );
    assert!(
        matches!(verdict(&reply), Verdict::Denied { .. }),
        "{}",
        reply.body
    );
    let audit = server.home.audit();
    let refused = audit
        .iter()
        .find(|entry| entry["kind"] == "refused")
        .unwrap();
    let text = refused["text"].as_str().unwrap();
    assert!(text.contains("another boot"), "{text}");
}

#[test]
fn a_made_up_join_token_is_a_strangers_and_a_used_one_is_told_and_raises_the_alarm() {
    let server = telling();
    let token = server.invite("web-1");
    assert_eq!(Keys::fresh().join(server.address, &token).status, 200);
    let used = Keys::fresh().join(server.address, &token);
    assert_eq!(used.status, 403);
    assert!(used.body.contains("used already"), "{}", used.body);
    assert_eq!(server.home.audited("alarm"), 1);

    let mut made_up: latchkey_protocol::token::JoinToken = token.parse().unwrap();
    made_up.secret = latchkey_protocol::encoding::Bytes([7; 32]);
    let reply = Keys::fresh().join(server.address, &made_up.to_line());
    let nobody = request(server.address, None, "GET", "/", b"");
    assert_eq!(reply.without_date(), nobody.without_date());
    server.log().wait_for("unknown join token");
}
