//! The key-server client against servers that misbehave (rows S1 to S9, T5, T6).
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Ca, Chain, FaultServer, answer, ed25519, leaf};
use latchkey::server::{
    CONNECT_LIMIT, CertificateTime, Client, Fault, Identity, Join, REQUEST_LIMIT, block_on,
};
use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::token::Address;
use latchkey_protocol::wire::{
    BODY_LIMIT, BootFacts, JoinRequest, ReleaseAnswer, ReleaseRequest, Text, Version, WantedVolume,
};
use latchkey_protocol::{Generation, RequestId, ServerId, VolumeId};
use latchkey_secret::SecretBytes;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, date_time_ymd};
use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// 2026-11-20, when the image of these tests was built.
const BUILT: CertificateTime = CertificateTime(1_795_132_800);
const JSON: &str = "application/json";

fn client(ca: &Ca) -> Client {
    let key = ed25519();
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .unwrap();
    let pem = SecretBytes::read_from(&mut key.serialize_pem().as_bytes(), 4096).unwrap();
    let identity = Identity::from_pem(&pem, certificate.pem().as_bytes()).unwrap();
    Client::new(&ca.pem(), &identity, BUILT).unwrap()
}

fn request() -> ReleaseRequest {
    ReleaseRequest {
        version: Version::default(),
        request: RequestId::random().unwrap(),
        ephemeral_key: Bytes([3; 32]),
        volumes: vec![WantedVolume {
            volume: "0b6ee3f6-2a1c-4a51-8f1b-0123456789ab".parse().unwrap(),
            generation: Generation::FIRST,
        }],
        facts: BootFacts {
            kernel: Text::cut("6.1"),
            command_line: Bytes([0; 32]),
            image_built: BUILT.0,
            image: None,
            header: None,
        },
        tickets: Vec::new(),
    }
}

fn release(client: &Client, address: &Address) -> Result<ReleaseAnswer, Fault> {
    block_on(client.release(address, &request()))
        .unwrap()
        .map_err(|error| {
            assert_eq!(&error.address, address);
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("key server '{address}': "))
            );
            error.fault
        })
}

/// What the client says to a server of the right CA that gives `answer`.
fn fault_of(answer: impl Into<Vec<u8>>) -> Fault {
    let ca = Ca::new();
    let server = FaultServer::answering(ca.issue("127.0.0.1", |_| ()).config(), answer);
    let fault = release(&client(&ca), &server.address).unwrap_err();
    assert_eq!(
        server.request_count(),
        1,
        "asked once, never again by itself"
    );
    fault
}

fn destroyed(volume: &str) -> String {
    let body =
        format!(r#"{{"version":1,"verdicts":[{{"volume":"{volume}","verdict":"destroyed"}}]}}"#);
    answer("200 OK", JSON, "", &body)
}

fn good() -> String {
    destroyed("0b6ee3f6-2a1c-4a51-8f1b-0123456789ab")
}

#[test]
fn a_good_answer_is_understood_and_the_request_is_plain() {
    let ca = Ca::new();
    let server = FaultServer::answering(ca.issue("127.0.0.1", |_| ()).config(), good());
    let answer = release(&client(&ca), &server.address).unwrap();
    assert_eq!(answer.verdicts.len(), 1);
    let requests = server.requests.lock().unwrap();
    let text = String::from_utf8_lossy(&requests[0]).to_lowercase();
    assert!(text.starts_with("post /v1/release http/1.1\r\n"), "{text}");
    for absent in ["accept-encoding", "cookie", "user-agent", "referer"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
}

#[test]
fn proxies_of_the_environment_are_ignored() {
    // A variable of this process would reach other tests, so a child runs one test again.
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["a_good_answer", "--test-threads=1"])
        .env("HTTPS_PROXY", "http://127.0.0.1:1")
        .env("https_proxy", "http://127.0.0.1:1")
        .env("ALL_PROXY", "http://127.0.0.1:1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
fn each_status_has_its_fault() {
    let body = r#"{"version":1,"error":"no\u001b such"}"#;
    let fault = |status: &str, extra: &str| fault_of(answer(status, JSON, extra, body));
    assert!(matches!(fault("403 X", ""), Fault::Refused(reason) if reason == "no\\u{1b} such"));
    assert!(matches!(
        fault("409 X", ""),
        Fault::Rejected { status: 409, .. }
    ));
    assert!(matches!(
        fault("500 X", ""),
        Fault::ServerTrouble { status: 500, .. }
    ));
    assert!(matches!(fault("502 X", ""), Fault::ServerTrouble { .. }));
    assert!(matches!(fault("204 X", ""), Fault::Unexpected(204)));
    for (status, extra, seconds) in [
        ("429 X", "retry-after: 7\r\n", Some(7)),
        ("503 X", "retry-after: 1000000000\r\n", Some(300)),
        ("503 X", "retry-after: -1\r\n", None),
        ("503 X", "", None),
    ] {
        let fault = fault(status, extra);
        assert!(matches!(fault, Fault::Busy { .. }), "{fault}");
        assert_eq!(
            fault.retry_after(),
            seconds.map(Duration::from_secs),
            "{status} {extra}"
        );
    }
}

#[test]
fn only_refusals_are_final() {
    let body = r#"{"version":1,"error":"x"}"#;
    for (status, network) in [
        ("403 X", false),
        ("410 X", false),
        ("503 X", true),
        ("302 X", true),
    ] {
        let fault = fault_of(answer(status, JSON, "", body));
        assert_eq!(fault.is_network_fault(), network, "{fault}");
    }
}

#[test]
fn redirects_are_never_followed() {
    let ca = Ca::new();
    let target = FaultServer::answering(ca.issue("127.0.0.1", |_| ()).config(), good());
    for status in ["301 X", "302 X", "307 X", "308 X"] {
        let location = format!("location: https://{}/v1/release\r\n", target.address);
        let server = FaultServer::answering(
            ca.issue("127.0.0.1", |_| ()).config(),
            answer(status, JSON, &location, ""),
        );
        let fault = release(&client(&ca), &server.address).unwrap_err();
        assert!(matches!(fault, Fault::Redirected(_)), "{status}: {fault}");
    }
    assert_eq!(
        target.connections.load(std::sync::atomic::Ordering::SeqCst),
        0
    );
}

#[test]
fn answers_that_are_not_the_expected_json_are_refused() {
    for (body, expected) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("<html>", "expected value"),
        ("[]", "invalid length"),
        (r#"{"version":2,"verdicts":[]}"#, "version 2"),
        (r#"{"version":1,"verdicts":[],"more":1}"#, "unknown field"),
        (
            r#"{"version":1,"verdicts":[],"verdicts":[]}"#,
            "duplicate field",
        ),
    ] {
        let fault = fault_of(answer("200 OK", JSON, "", body));
        assert!(
            matches!(&fault, Fault::Parse(text) if text.contains(expected)),
            "{body}: {fault}"
        );
    }
    for kind in [
        "text/html",
        "",
        "application/jsonx",
        "text/application/json",
    ] {
        let fault = fault_of(answer("200 OK", kind, "", "{}"));
        assert!(matches!(fault, Fault::ContentType(_)), "{kind}: {fault}");
    }
}

#[test]
fn verdicts_on_other_volumes_are_refused() {
    for text in [
        destroyed("11111111-2a1c-4a51-8f1b-0123456789ab"),
        answer("200 OK", JSON, "", r#"{"version":1,"verdicts":[]}"#),
    ] {
        assert!(matches!(fault_of(text), Fault::OtherVolumes));
    }
}

#[test]
fn oversized_answers_are_refused_at_the_limit() {
    let body = " ".repeat(BODY_LIMIT + 1);
    assert!(matches!(
        fault_of(answer("200 OK", JSON, "", &body)),
        Fault::TooLarge
    ));
    // A chunk bomb and a body without an announced length: read up to the limit, no further.
    let ca = Ca::new();
    for head in [
        "transfer-encoding: chunked\r\n",
        "content-length: 1099511627776\r\n",
    ] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\n{head}\r\n");
        let server =
            FaultServer::scripted(ca.issue("127.0.0.1", |_| ()).config(), move |stream, _| {
                let _ = stream.write_all(head.as_bytes());
                let mut chunk = b"4000\r\n".to_vec();
                chunk.extend([b' '; 0x4000]);
                chunk.extend(b"\r\n");
                while stream
                    .write_all(&chunk)
                    .and_then(|()| stream.flush())
                    .is_ok()
                {}
            });
        let fault = release(&client(&ca), &server.address).unwrap_err();
        assert!(matches!(fault, Fault::TooLarge), "{fault}");
    }
    let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    assert!(matches!(fault_of(head), Fault::Interrupted(_)));
}

#[test]
fn cut_off_and_lying_answers_are_refused() {
    let whole = good();
    for bytes in [
        whole.as_bytes()[..whole.len() - 5].to_vec(),
        whole.as_bytes()[..20].to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        Vec::new(),
    ] {
        let fault = fault_of(bytes);
        assert!(matches!(fault, Fault::Interrupted(_)), "{fault}");
    }
}

#[test]
fn unreachable_and_silent_servers_have_their_own_faults_and_limits() {
    let ca = Ca::new();
    let client = client(&ca);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap().to_string().parse().unwrap();
    drop(closed);
    let fault = release(&client, &address).unwrap_err();
    assert_eq!(fault.to_string(), "connection refused");

    let fault = release(&client, &"no-such-host.invalid".parse().unwrap()).unwrap_err();
    assert!(
        matches!(fault, Fault::Lookup(_) | Fault::LookupTimeout),
        "{fault}"
    );

    let silent = FaultServer::raw(|tcp: TcpStream, _| {
        std::thread::sleep(Duration::from_secs(60));
        drop(tcp);
    });
    let begin = Instant::now();
    let fault = release(&client, &silent.address).unwrap_err();
    assert!(matches!(fault, Fault::ConnectTimeout), "{fault}");
    assert!(begin.elapsed() >= CONNECT_LIMIT && begin.elapsed() < REQUEST_LIMIT);

    let slow = FaultServer::scripted(ca.issue("127.0.0.1", |_| ()).config(), |stream, _| {
        for byte in good().bytes() {
            if stream
                .write_all(&[byte])
                .and_then(|()| stream.flush())
                .is_err()
            {
                return;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    let fault = release(&client, &slow.address).unwrap_err();
    assert!(matches!(fault, Fault::Timeout), "{fault}");

    let plain = FaultServer::raw(|mut tcp: TcpStream, _| {
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let fault = release(&client, &plain.address).unwrap_err();
    assert!(fault.is_network_fault(), "{fault}");
}

/// The fault with a server that presents `chain`; nothing may have been sent to it.
fn refused(ca: &Ca, chain: Chain) -> Fault {
    let server = FaultServer::answering(chain.config(), good());
    let fault = release(&client(ca), &server.address).unwrap_err();
    assert_eq!(server.request_count(), 0, "{fault}");
    fault
}

#[test]
fn only_the_pinned_ca_is_trusted() {
    let (ca, other) = (Ca::new(), Ca::new());
    assert!(matches!(
        refused(&ca, other.issue("127.0.0.1", |_| ())),
        Fault::OtherCa
    ));

    // The pinned CA beside a leaf of another one.
    let mut chain = other.issue("127.0.0.1", |_| ());
    chain.certificates[1] = ca.der();
    assert!(matches!(refused(&ca, chain), Fault::OtherCa));

    let (params, key) = leaf("127.0.0.1", |_| ());
    let chain = Chain {
        certificates: vec![params.self_signed(&key).unwrap().der().clone()],
        key: key.serialize_der().try_into().unwrap(),
    };
    assert!(matches!(refused(&ca, chain), Fault::OtherCa));
}

#[test]
fn a_client_certificate_of_the_pinned_ca_makes_no_server() {
    let ca = Ca::new();
    let client_only = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let fault = refused(&ca, ca.issue("127.0.0.1", client_only));
    assert!(matches!(fault, Fault::Certificate(_)), "{fault}");

    // A thief's boot certificate as an intermediate for a certificate of his own.
    for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa] {
        let (mut params, boot_key) = leaf("web-1", client_only);
        params.is_ca = is_ca;
        let boot = params.signed_by(&boot_key, &ca.0).unwrap();
        let issuer = rcgen::Issuer::from_params(&params, &boot_key);
        let (params, key) = leaf("127.0.0.1", |_| ());
        let forged = params.signed_by(&key, &issuer).unwrap();
        let chain = Chain {
            certificates: vec![forged.der().clone(), boot.der().clone(), ca.der()],
            key: key.serialize_der().try_into().unwrap(),
        };
        let fault = refused(&ca, chain);
        assert!(
            matches!(fault, Fault::Certificate(_) | Fault::OtherCa),
            "{fault}"
        );
    }
}

#[test]
fn the_certificate_must_be_for_the_host() {
    let ca = Ca::new();
    for name in ["127.0.0.2", "localhost"] {
        let fault = refused(&ca, ca.issue(name, |_| ()));
        assert!(fault.to_string().contains("another host name"), "{fault}");
    }
}

#[test]
fn only_an_end_before_the_image_was_built_counts() {
    let ca = Ca::new();
    let valid = |from: i32, until: i32| {
        ca.issue("127.0.0.1", |params| {
            params.not_before = date_time_ymd(from, 1, 1);
            params.not_after = date_time_ymd(until, 1, 1);
        })
    };
    let fault = refused(&ca, valid(2020, 2026));
    assert!(fault.to_string().contains("it has ended"), "{fault}");
    // Issued after the image, in use, and not to begin for decades: the machine's clock has no say.
    for (from, until) in [(2020, 2030), (2027, 2028), (2090, 2106)] {
        let server = FaultServer::answering(valid(from, until).config(), good());
        assert!(
            release(&client(&ca), &server.address).is_ok(),
            "{from} to {until}"
        );
    }
}

#[test]
fn a_server_without_the_hybrid_key_exchange_or_tls_1_3_gets_no_request() {
    let ca = Ca::new();
    let classic = CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    };
    let config = ca
        .issue("127.0.0.1", |_| ())
        .config_with(classic, &[&rustls::version::TLS13]);
    let server = FaultServer::answering(config, good());
    let fault = release(&client(&ca), &server.address).unwrap_err();
    assert!(matches!(fault, Fault::Tls(_)), "{fault}");
    assert_eq!(server.request_count(), 0);
}

fn join(server: ServerId, address: &Address) -> Result<(), Fault> {
    let request = JoinRequest {
        version: Version::default(),
        secret: Bytes([9; 32]),
        boot_csr: Text::cut("a"),
        host_csr: Text::cut("b"),
    };
    let join = Join::new(server, BUILT).unwrap();
    let result = block_on(join.join(address, &request)).unwrap();
    result.map(|_| ()).map_err(|error| error.fault)
}

#[test]
fn joining_trusts_the_ca_of_the_fingerprint_alone() {
    let (ca, other) = (Ca::new(), Ca::new());
    let id = ServerId::of_ca(&ca.der());
    let body = r#"{"version":1,"boot_certificate":"a","host_certificate":"b"}"#;
    let good = || answer("200 OK", JSON, "", body);
    let server = FaultServer::answering(ca.issue("127.0.0.1", |_| ()).config(), good());
    join(id, &server.address).unwrap();

    let mut beside = other.issue("127.0.0.1", |_| ());
    beside.certificates.push(ca.der());
    let mut alone = ca.issue("127.0.0.1", |_| ());
    alone.certificates.truncate(1);
    for (chain, other_server) in [
        (other.issue("127.0.0.1", |_| ()), true),
        (alone, true),
        (beside, false),
        (ca.issue("localhost", |_| ()), false),
        (
            ca.issue("127.0.0.1", |params| {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            false,
        ),
    ] {
        let server = FaultServer::answering(chain.config(), good());
        let fault = join(id, &server.address).unwrap_err();
        assert_eq!(matches!(fault, Fault::OtherServer), other_server, "{fault}");
        assert_eq!(
            server.request_count(),
            0,
            "the secret must not be sent: {fault}"
        );
    }
    // The leaf's own fingerprint in the token makes no CA of it.
    let chain = ca.issue("127.0.0.1", |_| ());
    let id = ServerId::of_ca(&chain.certificates[0]);
    let server = FaultServer::answering(chain.config(), good());
    assert!(join(id, &server.address).is_err());
    assert_eq!(server.request_count(), 0);
}

#[test]
fn volume_ids_in_paths_are_plain() {
    let ca = Ca::new();
    let server = FaultServer::answering(
        ca.issue("127.0.0.1", |_| ()).config(),
        answer("200 OK", JSON, "", r#"{"version":1}"#),
    );
    let volume: VolumeId = "0b6ee3f6-2a1c-4a51-8f1b-0123456789ab".parse().unwrap();
    block_on(client(&ca).retire(&server.address, volume))
        .unwrap()
        .unwrap();
    let requests = server.requests.lock().unwrap();
    let expected = format!("DELETE /v1/volumes/{volume} HTTP/1.1\r\n");
    assert!(requests[0].starts_with(expected.as_bytes()));
}
