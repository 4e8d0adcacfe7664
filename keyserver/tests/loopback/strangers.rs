//! Whoever is not known in the right role learns nothing; whoever is known hears what was wrong.

use latchkey_protocol::VolumeId;
use latchkey_protocol::wire;

use crate::machine::{Boot, Machine};
use crate::server::Server;
use crate::wire::{Identity, Reply, exchange, request};

const REFUSED: &str = r#"{"version":1,"error":"refused"}"#;

/// Every endpoint, and some that are none.
fn requests(volume: VolumeId) -> Vec<(&'static str, String, Vec<u8>)> {
    let wants = Boot::begin().wants(&[volume]);
    let one = format!("{}/{volume}", wire::VOLUMES);
    let none = format!("{}/{}", wire::VOLUMES, VolumeId::random().unwrap());
    vec![
        ("POST", wire::RELEASE.to_owned(), wants.clone()),
        ("POST", wire::PROOF.to_owned(), wants),
        ("POST", wire::VOLUMES.to_owned(), b"{}".to_vec()),
        ("POST", wire::REJOIN.to_owned(), b"{}".to_vec()),
        ("POST", wire::REPORT.to_owned(), b"not json".to_vec()),
        ("GET", wire::STATUS.to_owned(), Vec::new()),
        ("POST", wire::TICKETS_NEXT.to_owned(), b"{}".to_vec()),
        ("POST", wire::TICKETS_CONFIRM.to_owned(), b"{}".to_vec()),
        (
            "POST",
            wire::HEARTBEAT.to_owned(),
            br#"{"version":1}"#.to_vec(),
        ),
        ("GET", wire::LIFE.to_owned(), Vec::new()),
        ("POST", wire::LIFE_ANSWER.to_owned(), b"{}".to_vec()),
        ("POST", wire::RENEW.to_owned(), b"[".to_vec()),
        ("POST", wire::ROTATE.to_owned(), b"{}".to_vec()),
        (
            "POST",
            wire::ROTATE_END.to_owned(),
            br#"{"version":1}"#.to_vec(),
        ),
        ("DELETE", one, Vec::new()),
        ("DELETE", none, Vec::new()),
        ("GET", wire::RELEASE.to_owned(), Vec::new()),
        ("PUT", "/v1/nothing".to_owned(), b"x".to_vec()),
        ("GET", "/".to_owned(), Vec::new()),
    ]
}

#[track_caller]
fn same_refusal(reply: Reply, first: &mut Option<Reply>, what: &str) {
    let reply = reply.without_date();
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (403, REFUSED),
        "{what}"
    );
    let first = first.get_or_insert_with(|| Reply {
        status: reply.status,
        headers: reply.headers.clone(),
        body: reply.body.clone(),
    });
    assert_eq!(&reply, first, "{what}");
}

#[test]
fn every_stranger_gets_the_same_answer_whatever_exists() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let unknown = Identity::self_signed("web-1");
    let mut first = None;
    for identity in [None, Some(&unknown)] {
        for (method, path, body) in requests(volume) {
            let reply = request(server.address, identity, method, &path, &body);
            same_refusal(reply, &mut first, &format!("{method} {path}"));
        }
    }
}

#[test]
fn a_certificate_is_no_proof_without_its_key() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let forged = Identity {
        certificate: machine.boot.certificate.clone(),
        key: Identity::self_signed("x").key,
    };
    let body = Boot::begin().wants(&[VolumeId::random().unwrap()]);
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        wire::RELEASE,
        body.len()
    );
    let answer = exchange(
        server.address,
        Some(&forged),
        &[head.as_bytes(), &body].concat(),
    );
    assert!(answer.is_err(), "{answer:?}");
}

#[test]
fn the_boot_key_opens_no_other_endpoint_and_the_host_key_no_release() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let mut first = None;
    for (method, path, body) in requests(volume) {
        let release = method == "POST" && path == wire::RELEASE;
        let wrong = if release {
            &machine.host
        } else {
            &machine.boot
        };
        let reply = request(server.address, Some(wrong), method, &path, &body);
        same_refusal(reply, &mut first, &format!("{method} {path}"));
    }
    let live = server.home.json(&["volumes"]);
    assert!(live[0]["retired"].is_null(), "{live}");
}

#[test]
fn known_keys_hear_what_is_wrong_with_a_body() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let good = String::from_utf8(Boot::begin().wants(&[volume])).unwrap();
    for (body, status, words) in [
        (String::new(), 400, "EOF"),
        ("nonsense".to_owned(), 400, "line 1"),
        (good.replacen('{', r#"{"extra":1,"#, 1), 400, "extra"),
        (
            good.replacen(r#""version":1"#, r#""version":2"#, 1),
            400,
            "version 2",
        ),
        (
            good.replacen(r#""version":1,"#, r#""version":1,"version":1,"#, 1),
            400,
            "duplicate",
        ),
        (good[..good.len() - 1].to_owned(), 400, "EOF"),
        ("[".repeat(10_000), 400, "line 1"),
        (" ".repeat(wire::BODY_LIMIT + 1), 413, "larger than 65536"),
    ] {
        let reply = request(
            server.address,
            Some(&machine.boot),
            "POST",
            wire::RELEASE,
            body.as_bytes(),
        );
        assert_eq!(reply.status, status, "{body:.40}: {}", reply.body);
        let error = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(words), "{body:.40}: {error}");
    }
    let reply = request(
        server.address,
        Some(&machine.host),
        "GET",
        wire::STATUS,
        b"{}",
    );
    assert_eq!(reply.status, 400, "{}", reply.body);
}

#[test]
fn a_chunked_body_has_the_same_limit() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        wire::REPORT
    );
    let chunk = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
    let bytes = format!("{head}{}0\r\n\r\n", chunk.repeat(3));
    let reply = exchange(server.address, Some(&machine.host), bytes.as_bytes()).unwrap();
    assert_eq!(reply.status, 413, "{}", reply.body);
}

#[test]
fn a_body_cut_short_is_not_acted_on() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let body = Boot::begin().wants(&[volume]);
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        wire::RELEASE,
        body.len() + 1
    );
    let mut stream = crate::wire::connect(server.address, Some(&machine.boot)).unwrap();
    {
        use std::io::Write;
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let answer = crate::wire::reply(&mut stream);
    assert!(
        !matches!(&answer, Ok(reply) if reply.status == 200),
        "{answer:?}"
    );
    assert_eq!(server.home.audited("released"), 0);
}
