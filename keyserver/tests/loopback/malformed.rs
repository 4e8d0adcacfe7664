//! Requests that are no good HTTP, or that two readers could read in two ways: none is acted on, none gets two answers, and
//! what the answer is does not depend on what exists.

use latchkey_protocol::wire;

use crate::machine::{Boot, Machine};
use crate::server::Server;
use crate::wire::{Identity, Reply, exchange, request};

/// Heads and what follows them. `BODY` is a good request for a release, `LEN` its length.
const CASES: [(&str, &str); 27] = [
    (
        "a length and chunks",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length: LEN\r\nTransfer-Encoding: chunked\r\n\r\nBODY",
    ),
    (
        "chunks and a length",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nBODY",
    ),
    (
        "two lengths",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length: LEN\r\nContent-Length: 0\r\n\r\nBODY",
    ),
    (
        "two lengths in one",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length: LEN, 0\r\n\r\nBODY",
    ),
    (
        "a negative length",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nBODY",
    ),
    (
        "a length with a sign",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length: +LEN\r\n\r\nBODY",
    ),
    (
        "a length in hexadecimal",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length: 0xff\r\n\r\nBODY",
    ),
    (
        "a length beyond 64 bits",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nBODY",
    ),
    (
        "a length beyond the limit",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\nBODY",
    ),
    (
        "a length of nothing",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nBODY",
    ),
    (
        "an empty length",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nBODY",
    ),
    (
        "no length",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\n\r\nBODY",
    ),
    (
        "chunks of another name",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\nBODY",
    ),
    (
        "chunks, but not last",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\nBODY",
    ),
    (
        "chunks twice",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\nBODY",
    ),
    (
        "a chunk without a length",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nBODY\r\n0\r\n\r\n",
    ),
    (
        "a chunk of a great length",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nBODY",
    ),
    (
        "a folded header",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\nContent-Length: LEN\r\n\r\nBODY",
    ),
    (
        "a space before the colon",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nContent-Length : LEN\r\n\r\nBODY",
    ),
    (
        "a zero byte in a header",
        "POST /v1/release HTTP/1.1\r\nHost: a\r\nX: \0\r\nContent-Length: LEN\r\n\r\nBODY",
    ),
    (
        "a line of carriage returns",
        "POST /v1/release HTTP/1.1\rHost: a\rContent-Length: LEN\r\rBODY",
    ),
    ("HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nBODY"),
    (
        "an upgrade to HTTP/2",
        "GET /v1/release HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n",
    ),
    (
        "HTTP/3",
        "POST /v1/release HTTP/3.0\r\nHost: a\r\nContent-Length: LEN\r\n\r\nBODY",
    ),
    ("HTTP/0.9", "GET /v1/release\r\n\r\n"),
    (
        "a tunnel",
        "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: a\r\n\r\nBODY",
    ),
    (
        "an endless line",
        "POST /v1/release?LONG HTTP/1.1\r\nHost: a\r\n\r\nBODY",
    ),
];

fn bytes(case: &str, body: &str) -> Vec<u8> {
    let long = "x".repeat(100_000);
    let text = case.replace("LEN", &body.len().to_string());
    text.replace("LONG", &long)
        .replace("BODY", body)
        .into_bytes()
}

/// What a peer sees, without what differs between any two answers.
fn seen(server: &Server, identity: Option<&Identity>, case: &str, body: &str) -> Option<Reply> {
    let answer = exchange(server.address, identity, &bytes(case, body));
    answer.ok().map(Reply::without_date)
}

#[test]
fn what_can_be_read_in_two_ways_is_not_acted_on() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    for (name, case) in CASES {
        let body = String::from_utf8(Boot::begin().wants(&[volume])).unwrap();
        if let Some(reply) = seen(&server, Some(&machine.boot), case, &body) {
            assert!(reply.status >= 400, "{name}: {reply:?}");
            assert!(
                !reply.body.contains("HTTP/1.1 "),
                "{name}: two answers: {reply:?}"
            );
            assert!(
                !reply.body.contains(&volume.to_string()),
                "{name}: {reply:?}"
            );
        }
    }
    assert_eq!(server.home.audited("released"), 0);
    machine.released(&Boot::begin(), volume);
}

#[test]
fn what_strangers_hear_of_it_does_not_depend_on_what_exists() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    let unknown = Identity::self_signed("web-1");
    let none = latchkey_protocol::VolumeId::random().unwrap();
    for (name, case) in CASES {
        let asked = [volume, none].map(|volume| {
            let body = String::from_utf8(Boot::begin().wants(&[volume])).unwrap();
            seen(&server, Some(&unknown), case, &body).map(|reply| (reply.status, reply.body))
        });
        // Where the server closes before it has read all, its answer may be lost on the way.
        if let [Some(existing), Some(missing)] = &asked {
            assert_eq!(existing, missing, "{name}");
        }
    }
}

#[test]
fn of_several_requests_on_one_connection_the_first_alone_is_answered() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let (volume, _) = machine.register("root");
    // A request that no stranger may make, behind one that he may.
    let body = Boot::begin().wants(&[volume]);
    let first = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let second = format!(
        "POST {} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        wire::RELEASE,
        body.len()
    );
    let all = [first.as_bytes(), second.as_bytes(), &body].concat();
    let reply = exchange(server.address, Some(&machine.boot), &all).unwrap();
    let nobody = request(server.address, None, "GET", "/", b"");
    assert_eq!(reply.without_date(), nobody.without_date());
    assert_eq!(server.home.audited("released"), 0);
}
