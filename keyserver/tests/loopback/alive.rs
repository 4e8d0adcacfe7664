//! A machine that runs, as a key server sees it: its tickets, its heartbeats, its stream. And commands that go on.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::wire::{
    self, Arm, ConfirmRequest, HeartbeatAnswer, HeartbeatRequest, LifeAnswer, LifeLine,
    ReleaseRequest, Shown, SignedHead, TicketsAnswer, TicketsRequest, Verdict, Version,
    VolumeTicket,
};
use latchkey_protocol::{RequestId, VolumeId};
use serde::Serialize;

use crate::machine::{Boot, Machine, verdict};
use crate::server::{Home, latchkeyd};
use crate::wire::{Reply, Stream, connect, request};

/// A stream of proof of life, as a machine keeps it.
pub struct Life(BufReader<Stream>);

impl Life {
    #[track_caller]
    pub fn open(machine: &Machine) -> Self {
        let mut stream = connect(machine.address, Some(&machine.host)).unwrap();
        let head = format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", wire::LIFE);
        stream.write_all(head.as_bytes()).unwrap();
        stream.flush().unwrap();
        let mut life = Self(BufReader::new(stream));
        assert_eq!(life.next(), Some(LifeLine::Beat(0)));
        life
    }

    /// The next line; none at the stream's end.
    pub fn next(&mut self) -> Option<LifeLine> {
        loop {
            let mut line = String::new();
            match self.0.read_line(&mut line) {
                Ok(0) | Err(_) => return None,
                // The head of the answer and the lengths of the chunks are no lines of it.
                Ok(_) => {
                    if let Ok(line) = serde_json::from_str(&line) {
                        return Some(line);
                    }
                }
            }
        }
    }

    #[track_caller]
    pub fn challenge(&mut self) -> Bytes<32> {
        loop {
            match self.next() {
                Some(LifeLine::Challenge(challenge)) => return challenge,
                Some(LifeLine::Beat(_)) => {}
                None => panic!("the stream ended"),
            }
        }
    }
}

impl Machine {
    pub fn post(&self, path: &str, body: &impl Serialize) -> Reply {
        let body = serde_json::to_vec(body).unwrap();
        request(self.address, Some(&self.host), "POST", path, &body)
    }

    #[track_caller]
    pub fn move_ticket(&self, volume: VolumeId, arm: Option<u32>) -> Bytes<32> {
        let reply = self.post(
            wire::TICKETS_NEXT,
            &TicketsRequest {
                version: Version::default(),
                volumes: vec![Shown {
                    volume,
                    shown: None,
                }],
            },
        );
        assert_eq!(reply.status, 200, "{}", reply.body);
        let answer: TicketsAnswer = serde_json::from_str(&reply.body).unwrap();
        let ticket = answer.tickets[0];
        let reply = self.confirm(ticket, arm);
        assert_eq!(reply.status, 200, "{}", reply.body);
        ticket.ticket
    }

    pub fn confirm(&self, ticket: VolumeTicket, arm: Option<u32>) -> Reply {
        self.post(
            wire::TICKETS_CONFIRM,
            &ConfirmRequest {
                version: Version::default(),
                tickets: vec![ticket],
                arm: arm.map(|seconds| Arm { seconds }),
            },
        )
    }

    #[track_caller]
    pub fn heartbeat(&self, head: Option<SignedHead>, boot: Option<RequestId>) -> HeartbeatAnswer {
        let reply = self.post(
            wire::HEARTBEAT,
            &HeartbeatRequest {
                version: Version::default(),
                head,
                images: Vec::new(),
                boot,
            },
        );
        assert_eq!(reply.status, 200, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }

    pub fn answers(&self, challenge: Bytes<32>) -> Reply {
        self.post(
            wire::LIFE_ANSWER,
            &LifeAnswer {
                version: Version::default(),
                challenge,
            },
        )
    }

    #[track_caller]
    pub fn shows(&self, boot: &Boot, volume: VolumeId, ticket: Bytes<32>) -> Verdict {
        let mut wants: ReleaseRequest = serde_json::from_slice(&boot.wants(&[volume])).unwrap();
        wants.tickets = vec![VolumeTicket { volume, ticket }];
        let body = serde_json::to_vec(&wants).unwrap();
        verdict(&request(
            self.address,
            Some(&self.boot),
            "POST",
            wire::RELEASE,
            &body,
        ))
    }

    /// As the agent does: asks on for as long as it is told to wait.
    #[track_caller]
    pub fn waits_for(&self, boot: &Boot, volume: VolumeId, ticket: Bytes<32>) -> Verdict {
        loop {
            match self.shows(boot, volume, ticket) {
                Verdict::Wait { .. } => std::thread::sleep(std::time::Duration::from_millis(100)),
                other => return other,
            }
        }
    }
}

/// The lines of a command that goes on.
pub struct Follow {
    child: Child,
    lines: Receiver<String>,
}

impl Follow {
    pub fn start(home: &Home, arguments: &[&str]) -> Self {
        let mut child = latchkeyd(arguments)
            .arg("--data-dir")
            .arg(home.data_dir())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    #[track_caller]
    pub fn wait_for(&self, words: &str) -> String {
        loop {
            let line = self
                .lines
                .recv_timeout(std::time::Duration::from_secs(60))
                .unwrap_or_else(|_| panic!("no line with {words:?}"));
            if line.contains(words) {
                return line;
            }
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
