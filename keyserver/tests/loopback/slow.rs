//! Peers that are slow, silent or too many, and a process that may open too few files.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use latchkey_protocol::wire::{LIFE, RELEASE, STATUS};
use latchkeyd::admission::Admission;

use crate::forgeries::telling;
use crate::inside::{Inside, unlimited};
use crate::machine::Machine;
use crate::server::{Home, Server};
use crate::wire::{connect, exchange, request};

/// Longer than anything takes on a busy machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two bytes of a slow peer.
const SLOW: Duration = Duration::from_millis(200);

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Sends `bytes` one by one, without an end, until the server closes.
#[track_caller]
fn drip(stream: &mut (impl Read + Write), socket: &TcpStream, bytes: &[u8]) {
    socket.set_read_timeout(Some(SLOW)).unwrap();
    let begun = Instant::now();
    for byte in bytes.iter().cycle() {
        assert!(begun.elapsed() < PATIENCE, "the server does not close");
        if !bytes.is_empty()
            && stream
                .write_all(&[*byte])
                .and_then(|()| stream.flush())
                .is_err()
        {
            return;
        }
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// Waits until the server closes.
#[track_caller]
fn wait_for_end(stream: &mut impl Read) {
    let ended = stream.read_to_end(&mut Vec::new());
    let late = matches!(&ended, Err(error) if error.kind() == ErrorKind::WouldBlock);
    assert!(!late, "the server does not close");
}

#[test]
fn each_kind_of_slow_peer_is_closed_at_its_own_deadline() {
    let server = telling();
    let address = server.address;
    let tls = || connect(address, None).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut silent = TcpStream::connect(address).unwrap();
            silent.set_read_timeout(Some(PATIENCE)).unwrap();
            wait_for_end(&mut silent);
        });
        scope.spawn(|| {
            let mut hello = TcpStream::connect(address).unwrap();
            let socket = hello.try_clone().unwrap();
            // A record of 16 KiB that never ends.
            drip(&mut hello, &socket, b"\x16\x03\x01\x40\x00\x01\x00\x3f");
        });
        scope.spawn(|| wait_for_end(&mut tls()));
        scope.spawn(|| {
            let mut head = tls();
            let socket = head.sock.try_clone().unwrap();
            head.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            drip(&mut head, &socket, b"X: y\r\n");
        });
        scope.spawn(|| {
            let mut body = tls();
            let socket = body.sock.try_clone().unwrap();
            let head =
                format!("POST {RELEASE} HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n");
            body.write_all(head.as_bytes()).unwrap();
            drip(&mut body, &socket, b" ");
        });
    });
    for words in [
        "nothing came in time",
        "no TLS handshake in time",
        "HTTP failed",
    ] {
        server.log().wait_for(words);
    }
}

#[test]
fn silent_connections_leave_for_one_that_says_what_it_wants() {
    let server = Inside::start(Admission::new(4, 100));
    let silent: Vec<TcpStream> = (0..12)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    let mut no_request: Vec<_> = (0..4)
        .map(|_| connect(server.address, None).unwrap())
        .collect();
    for _ in 0..8 {
        let reply = exchange(server.address, None, get(STATUS).as_bytes()).unwrap();
        assert_eq!(reply.status, 403);
    }
    // Those that waited longest are the ones that left.
    for stream in &mut no_request {
        wait_for_end(stream);
    }
    drop(silent);
}

#[test]
fn without_descriptors_the_server_rests_says_so_once_and_recovers() {
    let server = Server::start();
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .unwrap()
        .count();
    limit_files(&server, open + 4);
    let mut held: Vec<TcpStream> = (0..20)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    server.log().wait_for("failed to accept connections");
    let before = processor_time(&server);
    let watched = Duration::from_secs(1);
    std::thread::sleep(watched);
    let used = processor_time(&server) - before;
    assert!(used < watched / 3, "a busy loop: {used:?} of {watched:?}");
    // It waits in the backlog until those that say nothing were closed.
    let reply = request(server.address, None, "GET", STATUS, b"");
    assert_eq!(reply.status, 403);
    server.log().wait_for_all("failed to accept connections", 1);
    for stream in &mut held {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        wait_for_end(stream);
    }
}

/// Lowers the process's limit of open files while it runs.
#[track_caller]
fn limit_files(server: &Server, limit: usize) {
    let pid = server.pid().to_string();
    let limit = format!("--nofile={limit}:");
    let status = Command::new("prlimit")
        .args(["--pid", &pid, &limit])
        .status();
    assert!(status.unwrap().success());
}

/// User and system time of the process so far: utime and stime of proc_pid_stat(5).
fn processor_time(server: &Server) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // A tick is a hundredth of a second on every Linux that we run on.
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_low_limit_of_open_files_is_told_at_the_start() {
    let server = Home::made().serve_with(|command| {
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n 256 && exec \"$@\"", "sh"]);
        limited.arg(command.get_program()).args(command.get_args());
        limited.stdin(Stdio::null()).stderr(Stdio::piped());
        limited
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM");
        *command = limited;
    });
    let line = server.log().wait_for("the limit of 256 open files");
    assert!(
        line.contains("192 connections") && line.contains("16 running machines"),
        "{line}"
    );
    let enough = Server::start();
    assert!(
        !enough.log().all().contains("open files"),
        "{}",
        enough.log().all()
    );
}

/// Whether a machine that has no stream yet gets one.
fn gets_a_stream(machine: &Machine) -> bool {
    let mut stream = connect(machine.address, Some(&machine.host)).unwrap();
    stream.write_all(get(LIFE).as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    status.ends_with(b" 200")
}

/// A stream to `machine`, of which the first line was read.
fn stream_of(machine: &Machine) -> crate::wire::Stream {
    let mut stream = connect(machine.address, Some(&machine.host)).unwrap();
    stream.write_all(get(LIFE).as_bytes()).unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    stream
}

#[test]
fn a_stream_that_nobody_reads_is_ended_and_one_that_is_read_stands() {
    let unread = Duration::from_millis(500);
    let server = Inside::start_with(unlimited(), Duration::from_millis(1), unread);
    server.service.set_streams_limit(1);
    let (first, second) = (server.named("web-1"), server.named("web-2"));

    let mut read = stream_of(&first);
    let begun = Instant::now();
    while begun.elapsed() < 4 * unread {
        assert_ne!(read.read(&mut [0; 4096]).unwrap(), 0, "the stream ended");
    }
    assert!(!gets_a_stream(&second), "the place was free");

    let unread = read;
    let begun = Instant::now();
    while !gets_a_stream(&second) {
        assert!(begun.elapsed() < PATIENCE, "the stream was not ended");
        std::thread::sleep(SLOW);
    }
    drop(unread);
}
