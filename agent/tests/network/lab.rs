//! A machine and its network for one test: two fresh network namespaces joined by a virtual cable.
//!
//! The test's thread is in the machine's namespace, where the card is called 'ens3'; the other end, 'peer', is in
//! a namespace of its own. The cable is in once the peer is set up. Needs root, and a kernel with network
//! namespaces and veth: without root a test says that it is skipped, with root whatever is missing makes it fail.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use latchkey::network::{Network, NetworkConfig, NetworkEvent, load, undo_path};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::mpsc::UnboundedReceiver;

/// The card's hardware address.
pub const CARD: &str = "02:00:00:00:00:07";
/// Long enough for a busy machine; no test waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);

type Job = Box<dyn FnOnce() + Send>;

/// The machine; the thread that has it is in its namespace.
pub struct Lab {
    folder: tempfile::TempDir,
    peer: mpsc::Sender<Job>,
    peer_thread: i32,
}

/// Runs a test in a lab, on a current-thread runtime as the agent has.
pub fn in_lab(test: impl AsyncFnOnce(&Lab) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let test = thread::spawn(move || {
        let lab = Lab::new();
        lab.runtime().block_on(test(&lab));
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Lab {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let (peer, jobs) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            jobs.into_iter().for_each(|job| job());
        });
        Self {
            folder: tempfile::tempdir().unwrap(),
            peer,
            peer_thread: told.recv().unwrap(),
        }
    }

    /// Puts the card into the machine; the other end is down.
    pub fn add_card(&self) {
        ip(&format!(
            "link add name ens3 address {CARD} type veth peer name peer"
        ));
        ip(&format!("link set peer netns {}", self.peer_thread));
    }

    /// Puts a second card into the machine, 'ens4'; its other end is 'peer4', down.
    pub fn add_second_card(&self) {
        ip("link add name ens4 address 02:00:00:00:00:08 type veth peer name peer4");
        ip(&format!("link set peer4 netns {}", self.peer_thread));
    }

    /// Does something in the other end's namespace.
    pub fn at_the_peer<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.peer
            .send(Box::new(move || tell.send(job()).unwrap()))
            .unwrap();
        told.recv().expect("the job at the peer does not panic")
    }

    /// Runs `ip` there, several times.
    pub fn peer_ip(&self, commands: &'static [&'static str]) {
        self.at_the_peer(move || commands.iter().for_each(|command| ip(command)));
    }

    /// The root directory of the machine.
    pub fn root(&self) -> PathBuf {
        self.folder.path().into()
    }

    /// Writes a file of the machine.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Reads a file of the machine; empty without one.
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.root().join(path)).unwrap_or_default()
    }

    /// What the agent would be configured with; the card is of the kind veth.
    pub fn config(&self, cmdline: &str) -> NetworkConfig {
        let mut config = load(&self.root(), "", cmdline);
        config.wishes.extra_kinds = vec!["veth".into()];
        config
    }

    /// Starts the network.
    pub fn start(&self, cmdline: &str) -> (Network, UnboundedReceiver<NetworkEvent>) {
        Network::start(self.config(cmdline))
    }

    /// Where the list of changes is.
    pub fn undo_path(&self) -> PathBuf {
        undo_path(&self.root())
    }

    fn runtime(&self) -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }
}

/// The next event.
#[track_caller]
pub fn next(events: &mut UnboundedReceiver<NetworkEvent>) -> impl Future<Output = NetworkEvent> {
    let event = tokio::time::timeout(PATIENCE, events.recv());
    async {
        event
            .await
            .expect("an event in time")
            .expect("the network lives")
    }
}

/// Waits for an `Up` and returns it as "LINK HOW ADDRESS", and the lines of trouble before it.
pub async fn up(events: &mut UnboundedReceiver<NetworkEvent>) -> (String, Vec<String>) {
    let mut troubles = Vec::new();
    loop {
        match next(events).await {
            NetworkEvent::Up { link, how, address } => {
                return (format!("{link} {how:?} {address}"), troubles);
            }
            NetworkEvent::Trouble(line) | NetworkEvent::Beside(line) => troubles.push(line),
            NetworkEvent::Down { link } => panic!("'{link}' went down"),
        }
    }
}

/// Waits for this line of trouble.
pub async fn trouble(events: &mut UnboundedReceiver<NetworkEvent>, expected: &str) {
    loop {
        match next(events).await {
            NetworkEvent::Trouble(line) if line == expected => return,
            NetworkEvent::Trouble(_) => {}
            other => panic!("{other:?} instead of: {expected}"),
        }
    }
}

/// Runs `ip` in the namespace of this thread.
#[track_caller]
pub fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

/// Interfaces, addresses and routes as they are in the namespace of this thread, to compare. Without the queueing
/// discipline, which the kernel gives a card when it is first set up, and which nothing takes back.
pub fn state() -> String {
    let show = |arguments: &str| {
        let output = Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .expect("ip runs");
        assert!(output.status.success(), "ip {arguments}");
        String::from_utf8(output.stdout).unwrap()
    };
    let links = show("-j addr").replace("\"qdisc\":\"noop\"", "\"qdisc\":\"noqueue\"");
    links + &show("-j -4 route show table all") + &show("-j -6 route show table all")
}

/// What a client sent to a DHCP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub bytes: Vec<u8>,
    /// Option 53.
    pub kind: u8,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// The address it uses.
    pub current: Ipv4Addr,
}

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
pub const RELEASE: u8 = 7;

impl Request {
    fn parse(bytes: &[u8]) -> Self {
        let mut options = &bytes[240..];
        let mut option = |wanted: u8| {
            options = &bytes[240..];
            while let [code, length, rest @ ..] = options {
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                if *code == wanted {
                    return Some(value.to_vec());
                }
                options = rest;
            }
            None
        };
        let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map(Ipv4Addr::from).unwrap();
        Self {
            kind: option(53).map_or(0, |value| value[0]),
            requested: option(50).map(|value| address(&value)),
            current: address(&bytes[12..16]),
            bytes: bytes.into(),
        }
    }

    /// An answer with these options, besides message type and server.
    pub fn answer(&self, kind: u8, address: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 236];
        bytes[..3].copy_from_slice(&[2, 1, 6]);
        bytes[4..8].copy_from_slice(&self.bytes[4..8]);
        bytes[16..20].copy_from_slice(&address);
        bytes[28..34].copy_from_slice(&self.bytes[28..34]);
        bytes.extend([99, 130, 83, 99, 53, 1, kind, 54, 4, 192, 0, 2, 1]);
        for (code, value) in options {
            bytes.extend([*code, value.len() as u8]);
            bytes.extend(*value);
        }
        bytes.push(255);
        bytes
    }

    /// What an ordinary server answers.
    pub fn usual_answer(&self, address: [u8; 4], options: &[(u8, &[u8])]) -> Option<Vec<u8>> {
        match self.kind {
            DISCOVER => Some(self.answer(OFFER, address, options)),
            REQUEST => Some(self.answer(ACK, address, options)),
            _ => None,
        }
    }
}

/// A DHCP server at the other end, which has the address 192.0.2.1 and a cable in; `behave` says what it answers.
/// The requests can be received as they come (await them: the agent runs on the same thread).
pub fn dhcp_server(
    lab: &Lab,
    mut behave: impl FnMut(&Request) -> Option<Vec<u8>> + Send + 'static,
) -> UnboundedReceiver<Request> {
    lab.peer_ip(&["addr add 192.0.2.1/24 dev peer", "link set peer up"]);
    let (tell, requests) = tokio::sync::mpsc::unbounded_channel();
    let socket = lab.at_the_peer(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).unwrap();
        setsockopt(&socket.as_fd(), sockopt::Broadcast, &true).unwrap();
        setsockopt(&socket.as_fd(), sockopt::BindToDevice, &"peer".into()).unwrap();
        socket
    });
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            let request = Request::parse(&buffer[..length]);
            let answer = behave(&request);
            if let Some(answer) = answer {
                socket.send_to(&answer, (Ipv4Addr::BROADCAST, 68)).unwrap();
            }
            // The test may be over.
            let _ = tell.send(request);
        }
    });
    requests
}
