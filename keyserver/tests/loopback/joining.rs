//! Joining by token: once, by one machine.

use latchkey_protocol::token::JoinToken;
use latchkey_protocol::wire::{self, JoinAnswer};

use crate::machine::{Keys, Machine};
use crate::server::Server;
use crate::wire::request;

#[test]
fn invite_prints_the_token_and_nothing_else_on_stdout() {
    let server = Server::start();
    let output = server.home.run(&["invite", "web-1", "--ttl", "15m"]);
    let stdout = crate::server::text(&output.stdout);
    let token: JoinToken = stdout.strip_suffix('\n').unwrap().parse().unwrap();
    assert!(!stdout.trim_end().contains('\n'), "{stdout}");
    assert_eq!(token.client.as_str(), "web-1");
    assert_eq!(token.addresses[0].to_string(), "127.0.0.1:7443");
    let hint = crate::server::text(&output.stderr);
    assert!(hint.contains("latchkey join"), "{hint}");
}

#[test]
fn certificates_name_the_invited_client_and_not_the_requested_name() {
    let server = Server::start();
    let machine = Machine::join(&server, "web-1");
    for (identity, role) in [(&machine.boot, "OU=boot"), (&machine.host, "OU=host")] {
        let (_, parsed) = x509_parser::parse_x509_certificate(&identity.certificate).unwrap();
        let subject = parsed.subject().to_string();
        assert!(
            subject.contains("CN=web-1") && subject.contains(role),
            "{subject}"
        );
        assert!(parsed.subject_alternative_name().unwrap().is_none());
    }
    let clients = server.home.json(&["clients"]);
    assert_eq!(clients[0]["name"], "web-1");
    assert_eq!(clients[0]["state"], "joined");
}

#[test]
fn the_same_machine_may_show_its_token_again_and_another_one_raises_the_alarm() {
    let server = Server::start();
    let token = server.invite("web-1");
    let (keys, others) = (Keys::fresh(), Keys::fresh());
    let certificates = |body: &str| -> Vec<[u8; 32]> {
        let answer: JoinAnswer = serde_json::from_str(body).unwrap();
        [answer.boot_certificate, answer.host_certificate]
            .iter()
            .map(|pem| {
                let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_str().as_bytes()).unwrap();
                latchkeyd::ca::key_hash(&pem.contents).unwrap()
            })
            .collect()
    };
    let first = keys.join(server.address, &token);
    let second = keys.join(server.address, &token);
    assert_eq!((first.status, second.status), (200, 200), "{}", second.body);
    assert_eq!(certificates(&first.body), certificates(&second.body));

    let stolen = others.join(server.address, &token);
    assert_eq!(stolen.status, 403);
    let error = stolen.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("used already"), "{error}");
    assert_eq!(server.home.audited("alarm"), 1);
}

#[test]
fn a_newer_invitation_ends_the_one_before() {
    let server = Server::start();
    let old = server.invite("web-1");
    let new = server.invite("web-1");
    let reply = Keys::fresh().join(server.address, &old);
    assert_eq!(reply.status, 403);
    assert!(reply.body.contains("no longer valid"), "{}", reply.body);
    assert_eq!(Keys::fresh().join(server.address, &new).status, 200);
}

#[test]
fn one_key_in_both_roles_is_refused() {
    let server = Server::start();
    let token = server.invite("web-1");
    let mut keys = Keys::fresh();
    keys.host = keys.boot.clone();
    let reply = keys.join(server.address, &token);
    assert_eq!(reply.status, 400, "{}", reply.body);
    assert_eq!(Keys::fresh().join(server.address, &token).status, 200);
}

#[test]
fn a_joined_name_is_not_invited_again_until_it_is_revoked() {
    let server = Server::start();
    Machine::join(&server, "web-1");
    let error = server.home.fails(3, &["invite", "web-1"]);
    assert!(error.contains("latchkeyd revoke web-1"), "{error}");
    server.home.succeeds(&["revoke", "web-1"]);
    Machine::join(&server, "web-1");
}

#[test]
fn a_wrong_secret_and_a_broken_join_get_the_strangers_answer() {
    let server = Server::start();
    let token: JoinToken = server.invite("web-1").parse().unwrap();
    let foreign = JoinToken {
        secret: latchkey_protocol::encoding::Bytes([0; 32]),
        ..token
    };
    let wrong = Keys::fresh()
        .join(server.address, &foreign.to_line())
        .without_date();
    assert_eq!(wrong.status, 403);
    for body in ["", "{", "[]", r#"{"version":1}"#, &"x".repeat(70_000)] {
        let reply = request(server.address, None, "POST", wire::JOIN, body.as_bytes());
        assert_eq!(reply.without_date(), wrong, "{:.20}", body);
    }
}
