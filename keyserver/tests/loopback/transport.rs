//! What the port speaks: TLS 1.3 with X25519MLKEM768 and HTTP/1.1, one request for each connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use latchkey_protocol::ServerId;
use latchkey_protocol::token::JoinToken;
use latchkey_protocol::wire::STATUS;
use rustls::crypto::aws_lc_rs::kx_group;

use crate::machine::Machine;
use crate::server::Server;
use crate::wire::{client_config, connect, connect_with, exchange};

#[test]
fn the_chain_ends_in_the_ca_that_the_token_names() {
    let server = Server::start();
    let token: JoinToken = server.invite("web-1").parse().unwrap();
    let config = |pinned| client_config(latchkeyd::tls::provider(), None, Some(pinned));
    connect_with(server.address, config(token.server)).unwrap();
    let other = ServerId::from_bytes([1; 32]);
    assert!(connect_with(server.address, config(other)).is_err());
}

#[test]
fn another_key_exchange_is_refused() {
    let server = Server::start();
    let mut provider = latchkeyd::tls::provider();
    provider.kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
    let error = connect_with(server.address, client_config(provider, None, None)).unwrap_err();
    assert!(error.to_string().contains("HandshakeFailure"), "{error}");
}

#[test]
fn tls_1_2_is_refused() {
    let server = Server::start();
    // A ClientHello (RFC 5246 §7.4.1.2) for TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 on X25519, without the
    // extension that offers TLS 1.3.
    let extensions: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 29, // supported_groups: x25519
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 6, 0, 4, 8, 4, 8, 7, // signature_algorithms: rsa_pss_rsae_sha256, ed25519
    ];
    let mut body = vec![3, 3];
    body.extend([7; 32]); // random
    body.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]); // no session, one cipher suite, no compression
    body.extend([0, u8::try_from(extensions.len()).unwrap()]);
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let mut hello = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    hello.extend(body);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.write_all(&hello).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    // A fatal alert (RFC 8446 §6): protocol_version.
    assert_eq!(answer.get(..1), Some(&[21][..]), "{answer:?}");
    assert_eq!(answer.get(5..), Some(&[2, 70][..]), "{answer:?}");
}

#[test]
fn only_http_1_1_is_negotiated_and_sessions_are_not_resumed() {
    let server = Server::start();
    let mut config = client_config(latchkeyd::tls::provider(), None, None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(connect_with(server.address, config).is_err());

    let mut stream = connect(server.address, None).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    stream
        .write_all(format!("GET {STATUS} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
        .unwrap();
    crate::wire::reply(&mut stream).unwrap();
    assert_eq!(stream.conn.tls13_tickets_received(), 0);
}

#[test]
fn one_connection_has_one_request() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    let get = format!("GET {STATUS} HTTP/1.1\r\nHost: a\r\n\r\n");
    let reply = exchange(
        server.address,
        Some(&machine.host),
        get.repeat(2).as_bytes(),
    )
    .unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("connection"), Some("close"));
    assert!(!reply.body.contains("HTTP/1.1"), "{}", reply.body);
}

#[test]
fn what_is_not_http_or_too_large_a_head_is_turned_away() {
    let server = Server::start();
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000));
    for bytes in [
        &b"\x16\x03nonsense\r\n\r\n"[..],
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let answer = exchange(server.address, None, bytes);
        let turned_away = !matches!(&answer, Ok(reply) if reply.status < 400);
        assert!(turned_away, "{answer:?}");
    }
    // It serves on.
    assert!(exchange(server.address, None, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").is_ok());
}

#[test]
fn silent_peers_are_closed() {
    let server = Server::start();
    let mut nothing = TcpStream::connect(server.address).unwrap();
    nothing
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut no_request = connect(server.address, None).unwrap();
    let mut half = connect(server.address, None).unwrap();
    half.write_all(b"GET / HT").unwrap();
    // Each read ends because the server closes; a timeout of ours would be an error.
    let mut answer = Vec::new();
    assert_eq!(nothing.read_to_end(&mut answer).unwrap(), 0);
    for stream in [&mut no_request, &mut half] {
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let timed_out =
            matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out && !answer.starts_with(b"HTTP/1.1 2"), "{read:?}");
    }
}
