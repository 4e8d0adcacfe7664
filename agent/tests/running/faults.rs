//! What the service makes of a key server that misbehaves, or is of an earlier version.

use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use latchkey_protocol::ServerId;
use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::wire::LifeLine;
use serde_json::json;

use crate::Service;
use crate::common::machine::Machine;
use crate::common::{Ca, FaultServer, answer, ed25519};

const JSON: &str = "application/json";
const CHALLENGE: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// A machine that has joined whatever answers at the address of `server`.
fn joined(ca: &Ca, server: &FaultServer) -> Machine {
    let machine = Machine::new();
    let id = ServerId::of_ca(&ca.der());
    let dir = machine.path(&format!("etc/latchkey/servers/{}", id.short()));
    std::fs::create_dir_all(&dir).unwrap();
    let settings = format!(
        "id = \"{id}\"\nclient = \"web-1\"\naddresses = [\"{}\"]\njoined = 1795132800\n",
        server.address
    );
    let key = ed25519();
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .unwrap();
    for (name, content) in [
        ("server.toml", settings),
        ("ca.pem", String::from_utf8(ca.pem()).unwrap()),
        ("host.key", key.serialize_pem()),
        ("host.pem", certificate.pem()),
    ] {
        std::fs::write(dir.join(name), content).unwrap();
    }
    machine
}

/// A key server that answers heartbeats, and gives each stream to `stream`, with its number from 0.
fn server(ca: &Ca, stream: impl Fn(&mut dyn Write, usize) + Send + Sync + 'static) -> FaultServer {
    hearing(ca, stream, |_| {})
}

/// The same; each answer to a challenge goes to `hear` before it is taken.
fn hearing(
    ca: &Ca,
    stream: impl Fn(&mut dyn Write, usize) + Send + Sync + 'static,
    hear: impl Fn(&str) + Send + Sync + 'static,
) -> FaultServer {
    let streams = std::sync::atomic::AtomicUsize::new(0);
    FaultServer::by_request(
        ca.issue("127.0.0.1", |_| {}).config(),
        move |out, request, _| {
            let head = String::from_utf8_lossy(request);
            let said = if head.starts_with("GET /v1/life ") {
                let number = streams.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let _ = out.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n",
            );
                let _ = out.flush();
                stream(out, number);
                return;
            } else if head.starts_with("POST /v1/heartbeat ") {
                let body = json!({
                    "version": 1, "head_key": CHALLENGE, "heartbeat_every": 3600, "life_every": 1, "renew": false,
                });
                answer("200 OK", JSON, "", &body.to_string())
            } else {
                if head.starts_with("POST /v1/life/answer ") {
                    hear(&head);
                }
                answer("200 OK", JSON, "", "{\"version\":1}")
            };
            let _ = out.write_all(said.as_bytes());
        },
    )
}

/// One chunk of the stream.
fn send(out: &mut dyn Write, line: &str) -> bool {
    let chunk = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
    out.write_all(chunk.as_bytes()).is_ok() && out.flush().is_ok()
}

fn asked(server: &FaultServer, path: &str) -> usize {
    let requests = server.requests.lock().unwrap();
    let is_it = |request: &&Vec<u8>| request.starts_with(path.as_bytes());
    requests.iter().filter(is_it).count()
}

/// Holds a stream open until the test is over.
fn gate() -> (Sender<()>, Mutex<Receiver<()>>) {
    let (sender, receiver) = channel();
    (sender, Mutex::new(receiver))
}

#[test]
fn a_challenge_is_answered_over_a_connection_of_its_own_while_the_stream_stands() {
    let ca = Ca::new();
    let (open, wait) = gate();
    let server = server(&ca, move |out, _| {
        // At once, before any beat: a machine that comes back may be waited for.
        send(out, &format!("{{\"challenge\":\"{CHALLENGE}\"}}"));
        let _ = wait.lock().unwrap().recv();
    });
    let machine = joined(&ca, &server);
    let mut service = Service::of(&machine);
    service.until("answered", || asked(&server, "POST /v1/life/answer ") == 1);
    let requests = server.requests.lock().unwrap().clone();
    let answered = requests
        .iter()
        .find(|request| request.starts_with(b"POST /v1/life/answer "))
        .unwrap();
    let body = String::from_utf8_lossy(answered);
    assert!(
        body.ends_with(&format!("{{\"version\":1,\"challenge\":\"{CHALLENGE}\"}}")),
        "{body}"
    );
    service.says("another one boots with its boot key");
    // One connection for each request: the stream was never interrupted.
    assert_eq!(asked(&server, "GET /v1/life "), 1);
    service.ends();
    drop(open);
}

#[test]
fn an_answer_that_hangs_holds_up_neither_the_next_one_nor_the_stream() {
    let ca = Ca::new();
    let second = CHALLENGE.replace("BwcH", "CAgI");
    let both = [CHALLENGE.to_owned(), second.clone()];
    let (open, wait) = gate();
    let (taken, hangs) = gate();
    let server = hearing(
        &ca,
        move |out, _| {
            for challenge in &both {
                send(out, &format!("{{\"challenge\":\"{challenge}\"}}"));
            }
            let _ = wait.lock().unwrap().recv();
        },
        move |request| {
            if request.contains(CHALLENGE) {
                let _ = hangs.lock().unwrap().recv();
            }
        },
    );
    let machine = joined(&ca, &server);
    let mut service = Service::of(&machine);
    let answers = |challenge: &str| {
        let requests = server.requests.lock().unwrap();
        let bodies = requests.iter().map(|bytes| String::from_utf8_lossy(bytes));
        let of = |body: &std::borrow::Cow<'_, str>| {
            body.starts_with("POST /v1/life/answer ") && body.contains(challenge)
        };
        bodies.filter(of).count()
    };
    service.until("both answered", || {
        answers(CHALLENGE) > 0 && answers(&second) > 0
    });
    assert_eq!(answers(CHALLENGE), 1, "the hanging one was given up before");
    assert_eq!(asked(&server, "GET /v1/life "), 1);
    service.ends();
    drop((open, taken));
}

#[test]
fn of_a_flood_a_few_are_answered_at_once_and_all_in_the_end() {
    const FLOOD: u8 = 30;
    let ca = Ca::new();
    let (open, wait) = gate();
    let (release, held) = gate();
    let heard = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = heard.clone();
    let server = hearing(
        &ca,
        move |out, _| {
            for number in 0..FLOOD {
                let challenge = Bytes([number; 32]);
                let line = serde_json::to_string(&LifeLine::Challenge(challenge)).unwrap();
                send(out, &line);
            }
            let _ = wait.lock().unwrap().recv();
        },
        move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let _ = held.lock().unwrap().recv();
        },
    );
    let heard = || heard.load(std::sync::atomic::Ordering::SeqCst);
    let machine = joined(&ca, &server);
    let mut service = Service::of(&machine);
    service.until("as many as may be", || heard() == 8);
    // One is let go, and the next one comes: never more than eight stand.
    for taken in 1..=3 {
        release.send(()).unwrap();
        service.until("one more", || heard() == 8 + taken);
    }
    drop(release);
    service.until("all", || heard() >= usize::from(FLOOD));
    assert_eq!(asked(&server, "GET /v1/life "), 1);
    service.ends();
    drop(open);
}

#[test]
fn a_stream_that_falls_silent_breaks_or_says_nonsense_is_opened_anew() {
    let ca = Ca::new();
    let (open, wait) = gate();
    let server = server(&ca, move |out, number| match number {
        0 => {} // ends at once
        1 => {
            send(out, "{\"beat\":-1}");
        }
        2 => {
            send(out, &"x".repeat(2000));
        }
        3 => {
            send(out, "{\"beat\":0}");
            let _ = wait.lock().unwrap().recv();
        }
        _ => {
            while send(out, "{\"beat\":1}") {
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        }
    });
    let machine = joined(&ca, &server);
    let mut service = Service::of(&machine);
    service.until("a fifth stream", || asked(&server, "GET /v1/life ") == 5);
    service.ends();
    drop(open);
}

#[test]
fn a_key_server_of_an_earlier_version_gets_the_report_and_is_left_in_peace() {
    let ca = Ca::new();
    let config = ca.issue("127.0.0.1", |_| {}).config();
    let server = FaultServer::by_request(config, |out, request, _| {
        let said = if request.starts_with(b"POST /v1/report ") {
            answer("200 OK", JSON, "", "{\"version\":1}")
        } else {
            let body = "{\"version\":1,\"error\":\"no such endpoint\"}";
            answer("404 Not Found", JSON, "", body)
        };
        let _ = out.write_all(said.as_bytes());
    });
    let machine = joined(&ca, &server);
    std::fs::create_dir_all(machine.path("run/latchkey")).unwrap();
    let report = json!({ "version": 1, "request": null, "lines": ["opened 'root_crypt'"] });
    std::fs::write(machine.path("run/latchkey/report.json"), report.to_string()).unwrap();
    let mut service = Service::of(&machine);
    service.says("has the report of this boot");
    service.says("no such endpoint");
    service.ends();
    assert_eq!(asked(&server, "GET /v1/life "), 1);
    assert_eq!(asked(&server, "POST /v1/heartbeat "), 1);

    let mut again = Service::of(&machine);
    again.says("no such endpoint");
    again.ends();
    assert_eq!(asked(&server, "POST /v1/report "), 1, "it is sent once");
}

#[test]
fn without_a_key_server_there_is_nothing_to_run() {
    Machine::new()
        .latchkey(&["run"], "")
        .failed_saying(&["no key server", "latchkey join"]);
    Machine::new()
        .latchkey(&["arm-reboot"], "")
        .failed_saying(&["has not joined any key server"]);
}

#[test]
fn a_reboot_that_nobody_was_told_of_is_not_announced() {
    let ca = Ca::new();
    let config = ca.issue("127.0.0.1", |_| {}).config();
    let body = "{\"version\":1,\"error\":\"no such endpoint\"}";
    let server = FaultServer::answering(config, answer("404 Not Found", JSON, "", body));
    let machine = joined(&ca, &server);
    machine.latchkey(&["arm-reboot"], "").failed_saying(&[
        "no such endpoint",
        "not announced",
        "latchkey status",
    ]);
}
