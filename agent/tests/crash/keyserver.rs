//! `latchkeyd`, killed in each step of joining, registration, proof and release, and while it starts.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use latchkey::commands::shares;
use latchkey::files::{Files, Role};
use latchkey::server::{Client, KeyServer, block_on};
use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::release::{Purpose, ReleaseContext};
use latchkey_protocol::token::Address;
use latchkey_protocol::wire::{BootFacts, ReleaseRequest, Text, Verdict, Version, WantedVolume};
use latchkey_protocol::{BootKeyPair, Generation, RequestId, Share, VolumeId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::machine::{Machine, Proxy, Said, latchkeyd, run};
use crate::points::{Points, Tape, kills};
use crate::tally::Tally;
use crate::tracer::{Call, Change, End, Fate, Traced};

const OPERATIONS: [Operation; 4] = [
    Operation::Join,
    Operation::Register,
    Operation::Prove,
    Operation::Release,
];
/// How long a server that has answered may take to meet its point; only a point that is missed waits so long.
const LATE: Duration = Duration::from_secs(2);
/// A TLS record with an alert is shorter, every answer is longer.
const ALERT: u64 = 64;
/// SQLite's.
const PAGE: u64 = 4096;

#[test]
fn a_server_that_is_killed_anywhere_has_lost_nothing_that_it_acknowledged() {
    if !crate::may_trace() {
        return;
    }
    let points = Points::new();
    let tally = Tally::new("latchkeyd");
    let mut world = World::new();
    let (tape, starts) = world.tapes();
    for turn in 0..kills() {
        let point = points.choose(turn, &tape);
        let fate = point.clone();
        let attempt = world.attempt(point.step.0);
        let killed = world.kill_during(&attempt, move |step, number, change| {
            fate.fate(step, number, change)
        });
        match &killed.at {
            Some((step, fate, change)) => tally.kill(format!("{step:?}"), *fate, change),
            None => tally.count(format!("{:?} ended first", point.step.0)),
        }
        // Each of the three finds the store as the kill left it: a start that is killed, the verification, a start.
        if turn % 5 == 4 {
            let point = points.choose(turn / 5, &starts);
            let killed = world
                .server
                .start_and(move |step, number, change| point.fate(step, number, change));
            match killed {
                Some((step, fate, change)) => tally.kill(format!("{step:?}"), fate, &change),
                None => {
                    tally.count("Start ended first".to_owned());
                    world.server.kill();
                }
            }
        } else if turn % 2 == 0 {
            world.verify_audit();
        }
        world.server.start();
        world.check();
        world.repeat(attempt, killed.answer);
    }
    world.check_everything();
    let steps = tape.keys().chain(starts.keys());
    tally.covers(steps.map(|step| format!("{step:?}")));
}

#[test]
fn what_is_durable_when_the_server_dies_is_what_the_order_of_steps_promises() {
    if !crate::may_trace() {
        return;
    }
    let mut world = World::new();
    for operation in OPERATIONS {
        for moment in MOMENTS {
            let attempt = world.attempt(operation);
            let killed =
                world.kill_during(&attempt, move |step, _, change| moment.fate(step.1, change));
            let what = format!("{operation:?}, {moment:?}: {:?}", killed.at);
            assert!(killed.at.is_some(), "{what}");
            let acknowledged = killed.answer.is_ok();
            assert_eq!(acknowledged, moment == Moment::Answered, "{what}");
            world.verify_audit();
            world.server.start();
            let audited = world.server.audited().contains(&attempt.entry());
            match moment {
                Moment::BeforeWriting | Moment::PageTorn => assert!(!audited, "{what}"),
                // In the kernel's hands, so a kill does not lose it; a power cut may.
                Moment::BeforeSync => {}
                Moment::BeforeAnswer | Moment::AnswerTorn | Moment::Answered => {
                    assert!(audited, "{what}");
                }
            }
            world.check();
            world.repeat(attempt, killed.answer);
        }
    }
    world.check_everything();
}

#[test]
fn an_init_that_is_killed_anywhere_is_finished_by_the_next_one() {
    if !crate::may_trace() {
        return;
    }
    let init = |data: &Path| {
        let mut command = Command::new(latchkeyd());
        command
            .args(["init", "--name", "127.0.0.1", "--data-dir"])
            .arg(data);
        command
    };
    let dir = tempfile::tempdir().unwrap();
    let mut changes: usize = 0;
    let (end, said) = Traced::spawn(&init(&dir.path().join("data"))).run("", |_| {
        changes += 1;
        Fate::Live
    });
    assert_eq!(end, End::Exited(0), "{said}");
    // All of them where there are kills enough, else every so manieth.
    for number in (0..changes).step_by(changes.div_ceil(kills())) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let (mut passed, mut at) = (0, String::new());
        let (end, _) = Traced::spawn(&init(&data)).run("", |change| {
            passed += 1;
            if passed <= number {
                return Fate::Live;
            }
            at = format!("killed at {change:?}");
            Fate::Kill
        });
        assert_eq!(end, End::Killed, "change {number} of {changes}");
        let made = data.join("latchkeyd.toml").exists();
        let again = run(&mut init(&data), "");
        // 3: there is a key server already.
        assert_eq!(again.code, if made { 3 } else { 0 }, "{at}: {}", again.err);
        let verify = ["audit", "--verify", "--json", "--data-dir"];
        let verified = run(Command::new(latchkeyd()).args(verify).arg(&data), "").succeeded();
        let verified: Value = serde_json::from_str(&verified.out).unwrap();
        assert_eq!(verified["entries"], 1, "{at}");
    }
}

/// The named points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeWriting,
    PageTorn,
    BeforeSync,
    BeforeAnswer,
    AnswerTorn,
    Answered,
}

const MOMENTS: [Moment; 6] = [
    Moment::BeforeWriting,
    Moment::PageTorn,
    Moment::BeforeSync,
    Moment::BeforeAnswer,
    Moment::AnswerTorn,
    Moment::Answered,
];

impl Moment {
    fn fate(self, phase: Phase, change: &Change) -> Fate {
        let writes = change.call == Call::Write;
        let is_answer = phase == Phase::Answer && is_answer(change);
        match self {
            Self::BeforeWriting if phase == Phase::Write => Fate::Kill,
            Self::PageTorn if phase == Phase::Write && writes && change.length >= PAGE => {
                Fate::Tear(change.length / 2)
            }
            Self::BeforeSync if phase == Phase::Sync => Fate::Kill,
            Self::BeforeAnswer if is_answer => Fate::Kill,
            Self::AnswerTorn if is_answer => Fate::Tear(change.length / 2),
            Self::Answered if phase == Phase::Close => Fate::Kill,
            _ => Fate::Live,
        }
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Start,
    Join,
    Register,
    Prove,
    Release,
}

/// How far the server has come with it, told from what it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// TLS.
    Receive,
    /// From the first byte in the store.
    Write,
    /// The first sync after a page was written.
    Sync,
    /// All after that, up to the answer.
    Answer,
    /// The answer is out.
    Close,
}

type Step = (Operation, Phase);
/// Where the server was killed, and how.
type Hit = (Step, Fate, String);
type Decide = Box<dyn FnMut(&Step, usize, &Change) -> Fate + Send>;

fn is_answer(change: &Change) -> bool {
    change.call == Call::Write && change.place == "socket" && change.length > ALERT
}

/// Follows the server through one operation.
struct Watch {
    operation: Option<Operation>,
    phase: Phase,
    page: bool,
    decide: Decide,
    tape: Tape<Step>,
    killed: Option<Hit>,
}

#[derive(Clone)]
struct Watcher(Arc<(Mutex<Watch>, Condvar)>);

impl Watcher {
    fn new() -> Self {
        let watch = Watch {
            operation: None,
            phase: Phase::Receive,
            page: false,
            decide: Box::new(|_, _, _| Fate::Live),
            tape: Tape::new(),
            killed: None,
        };
        Self(Arc::new((Mutex::new(watch), Condvar::new())))
    }

    fn begin(
        &self,
        operation: Operation,
        decide: impl FnMut(&Step, usize, &Change) -> Fate + Send + 'static,
    ) {
        *self.0.0.lock().unwrap() = Watch {
            operation: Some(operation),
            phase: Phase::Receive,
            page: false,
            decide: Box::new(decide),
            tape: Tape::new(),
            killed: None,
        };
    }

    fn change(&self, change: &Change) -> Fate {
        let mut watch = self.0.0.lock().unwrap();
        let fate = watch.change(change);
        self.0.1.notify_all();
        fate
    }

    /// Stops watching, when `enough` has happened or [`LATE`] has passed; where the server was killed, and the tape.
    fn end(&self, enough: fn(&Watch) -> bool) -> (Option<Hit>, Tape<Step>) {
        let watch = self.0.0.lock().unwrap();
        let more = |watch: &mut Watch| !enough(watch);
        let (mut watch, _) = self.0.1.wait_timeout_while(watch, LATE, more).unwrap();
        watch.operation = None;
        (watch.killed.take(), std::mem::take(&mut watch.tape))
    }
}

impl Watch {
    fn change(&mut self, change: &Change) -> Fate {
        let Some(operation) = self.operation else {
            return Fate::Live;
        };
        let store = change.place.starts_with("store.sqlite3");
        let writes = store && change.call == Call::Write;
        let syncs = store && change.call == Call::Sync;
        self.page |= writes && change.length >= PAGE;
        self.phase = match self.phase {
            Phase::Receive if writes => Phase::Write,
            // SQLite syncs the head of a new log before the first page.
            Phase::Write if syncs && self.page => Phase::Sync,
            Phase::Sync => Phase::Answer,
            phase => phase,
        };
        let step = (operation, self.phase);
        let number = self.tape.entry(step).or_default();
        let fate = (self.decide)(&step, *number, change);
        *number += 1;
        if fate != Fate::Live {
            self.killed
                .get_or_insert_with(|| (step, fate, format!("{change:?}")));
        }
        if self.phase == Phase::Answer && is_answer(change) {
            self.phase = Phase::Close;
        }
        fate
    }
}

/// A key server that dies, and comes back under the same address.
struct Server {
    dir: tempfile::TempDir,
    proxy: Proxy,
    watcher: Watcher,
    running: Option<Running>,
}

struct Running {
    pid: Pid,
    follower: JoinHandle<End>,
}

impl Server {
    fn new() -> Self {
        let server = Self {
            dir: tempfile::tempdir().unwrap(),
            proxy: Proxy::to("127.0.0.1:1"),
            watcher: Watcher::new(),
            running: None,
        };
        server
            .admin(&["init", "--name", &server.proxy.address])
            .succeeded();
        server
    }

    /// Starts it; it is ready.
    #[track_caller]
    fn start(&mut self) {
        if let Err(log) = self.try_start() {
            panic!("the server does not start again:\n{log}");
        }
    }

    /// Starts it to kill it before it is ready; `None` if it became ready.
    #[track_caller]
    fn start_and(
        &mut self,
        decide: impl FnMut(&Step, usize, &Change) -> Fate + Send + 'static,
    ) -> Option<Hit> {
        self.watcher.begin(Operation::Start, decide);
        let started = self.try_start();
        let (killed, _) = self.watcher.end(|_| true);
        if let Err(log) = started {
            assert!(killed.is_some(), "the server does not start again:\n{log}");
            return killed;
        }
        None
    }

    /// What it said if it ended before it was ready.
    fn try_start(&mut self) -> Result<(), String> {
        assert!(self.running.is_none());
        let mut command = Command::new(latchkeyd());
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.dir.path().join("data"));
        let (begun, begins) = mpsc::channel();
        let watcher = self.watcher.clone();
        let follower = std::thread::spawn(move || {
            let mut traced = Traced::spawn(&command);
            begun
                .send((traced.pid(), traced.child.stderr.take().unwrap()))
                .unwrap();
            traced.follow(|change| watcher.change(change))
        });
        let (pid, stderr) = begins.recv().unwrap();
        let mut stderr = BufReader::new(stderr);
        let mut log = String::new();
        let mut line = String::new();
        while !line.ends_with(" is ready\n") {
            line.clear();
            if stderr.read_line(&mut line).unwrap() == 0 {
                follower.join().unwrap();
                return Err(log);
            }
            if let Some((_, address)) = line.trim_end().split_once("listening on ") {
                self.proxy.turn_to(address);
            }
            log.push_str(&line);
        }
        // Nobody reads the rest, but the server must be able to write it.
        std::thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
        self.running = Some(Running { pid, follower });
        Ok(())
    }

    /// Kills it if it lives.
    fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            // Until the follower has ended the number is this server's.
            if !running.follower.is_finished() {
                let _ = kill(running.pid, Signal::SIGKILL);
            }
            assert_eq!(running.follower.join().unwrap(), End::Killed);
        }
    }

    fn admin(&self, arguments: &[&str]) -> Said {
        let (command, rest) = arguments.split_first().unwrap();
        let data = self.dir.path().join("data");
        run(
            Command::new(latchkeyd())
                .arg(command)
                .arg("--data-dir")
                .arg(data)
                .args(rest),
            "",
        )
    }

    /// Kind and subject of every entry of the audit.
    #[track_caller]
    fn audited(&self) -> BTreeSet<Entry> {
        let text = self.admin(&["audit", "--json"]).succeeded().out;
        let entry = |line: &str| {
            let entry: Value = serde_json::from_str(line).unwrap();
            let subject = match entry["kind"].as_str().unwrap() {
                "joined" => "client",
                "registered" => "volume",
                _ => "request",
            };
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            Entry(text("kind"), text(subject))
        };
        text.lines().map(entry).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kill();
        } else if let Some(running) = self.running.take() {
            let _ = kill(running.pid, Signal::SIGKILL);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(String, String);

/// A request, such that it can be repeated.
enum Attempt {
    Join {
        machine: Machine,
        name: String,
        token: String,
    },
    Register(VolumeId),
    Prove(Session),
    Release(Session),
}

/// One boot, or one proof.
struct Session {
    id: RequestId,
    pair: BootKeyPair,
    volume: VolumeId,
}

impl Attempt {
    fn operation(&self) -> Operation {
        match self {
            Self::Join { .. } => Operation::Join,
            Self::Register(_) => Operation::Register,
            Self::Prove(_) => Operation::Prove,
            Self::Release(_) => Operation::Release,
        }
    }

    /// What the audit says of it.
    fn entry(&self) -> Entry {
        let (kind, subject) = match self {
            Self::Join { name, .. } => ("joined", name.clone()),
            Self::Register(volume) => ("registered", volume.to_string()),
            Self::Prove(session) => ("proved", session.id.to_string()),
            Self::Release(session) => ("released", session.id.to_string()),
        };
        Entry(kind.to_owned(), subject)
    }
}

/// How an operation ended during which the server was killed.
struct Killed {
    at: Option<Hit>,
    /// What the client has, or what it says.
    answer: Result<Option<Share>, String>,
}

/// The server, its clients, and all that it has acknowledged to them.
struct World {
    server: Server,
    _machine: Machine,
    host: KeyServer,
    boot: KeyServer,
    joined: Vec<(String, Machine)>,
    volumes: Vec<(VolumeId, Share)>,
    acknowledged: BTreeSet<Entry>,
    names: usize,
}

impl World {
    fn new() -> Self {
        let mut server = Server::new();
        server.start();
        let machine = Machine::new();
        let token = server.admin(&["invite", "web-1"]).succeeded().out;
        machine.latchkey(&["join", "-"], &token).succeeded();
        let open = |role| {
            let files = Files::under(machine.root.path()).all_servers().unwrap();
            KeyServer::open(&files[0], role).unwrap()
        };
        let mut world = Self {
            server,
            host: open(Role::Host),
            boot: open(Role::Boot),
            _machine: machine,
            joined: Vec::new(),
            volumes: Vec::new(),
            acknowledged: BTreeSet::new(),
            names: 0,
        };
        let first = world.attempt(Operation::Register);
        let answer = world.ask(&first);
        world.keep(first, answer.unwrap());
        world
    }

    /// Every operation once without a kill, and a start after one.
    fn tapes(&mut self) -> (Tape<Step>, Tape<Step>) {
        let mut tape = Tape::new();
        for operation in OPERATIONS {
            let attempt = self.attempt(operation);
            self.server.watcher.begin(operation, |_, _, _| Fate::Live);
            let answer = self.ask(&attempt);
            // The connection's end comes after the answer.
            let closed = |watch: &Watch| watch.tape.keys().any(|step| step.1 == Phase::Close);
            let (_, steps) = self.server.watcher.end(closed);
            tape.extend(steps);
            self.keep(attempt, answer.unwrap());
        }
        assert_eq!(
            tape.len(),
            OPERATIONS.len() * 5,
            "phases of each operation: {tape:?}"
        );
        self.server.kill();
        self.server
            .watcher
            .begin(Operation::Start, |_, _, _| Fate::Live);
        self.server.start();
        let (_, starts) = self.server.watcher.end(|_| true);
        assert!(
            starts.values().sum::<usize>() > 5,
            "a start changes things: {starts:?}"
        );
        (tape, starts)
    }

    fn attempt(&mut self, operation: Operation) -> Attempt {
        match operation {
            Operation::Start => unreachable!("nobody asks for it"),
            Operation::Join => {
                self.names += 1;
                let name = format!("joins-{}", self.names);
                Attempt::Join {
                    token: self.server.admin(&["invite", &name]).succeeded().out,
                    machine: Machine::new(),
                    name,
                }
            }
            Operation::Register => Attempt::Register(VolumeId::random().unwrap()),
            Operation::Prove => Attempt::Prove(self.session()),
            Operation::Release => Attempt::Release(self.session()),
        }
    }

    fn session(&self) -> Session {
        let (volume, _) = self.volumes.last().unwrap();
        Session {
            id: RequestId::random().unwrap(),
            pair: BootKeyPair::generate().unwrap(),
            volume: *volume,
        }
    }

    fn kill_during(
        &mut self,
        attempt: &Attempt,
        decide: impl FnMut(&Step, usize, &Change) -> Fate + Send + 'static,
    ) -> Killed {
        self.server.watcher.begin(attempt.operation(), decide);
        let answer = self.ask(attempt);
        let (at, _) = self.server.watcher.end(|watch| watch.killed.is_some());
        self.server.kill();
        if answer.is_ok() {
            self.acknowledged.insert(attempt.entry());
        }
        Killed { at, answer }
    }

    fn ask(&self, attempt: &Attempt) -> Result<Option<Share>, String> {
        match attempt {
            Attempt::Join { machine, token, .. } => {
                let said = machine.latchkey(&["join", "-"], token);
                if said.code == 0 {
                    Ok(None)
                } else {
                    Err(said.err)
                }
            }
            Attempt::Register(volume) => shares::register(
                &self.host,
                *volume,
                "root",
                latchkey_protocol::wire::OpenedBy::BootKey,
            )
            .map(|registered| Some(registered.share))
            .map_err(|error| error.to_string()),
            Attempt::Prove(session) => self.fetch(Purpose::Proof, session).map(Some),
            Attempt::Release(session) => self.fetch(Purpose::Release, session).map(Some),
        }
    }

    fn fetch(&self, purpose: Purpose, session: &Session) -> Result<Share, String> {
        let request = ReleaseRequest {
            version: Version::default(),
            request: session.id,
            ephemeral_key: session.pair.public(),
            volumes: vec![WantedVolume {
                volume: session.volume,
                generation: Generation::FIRST,
            }],
            facts: BootFacts {
                kernel: Text::cut("6.1.0"),
                command_line: Bytes([0; 32]),
                image_built: 0,
                image: None,
                header: None,
            },
            tickets: Vec::new(),
        };
        let release =
            async |client: &Client, address: &Address| client.release(address, &request).await;
        let proof =
            async |client: &Client, address: &Address| client.proof(address, &request).await;
        let asked = async {
            match purpose {
                Purpose::Release => self.boot.ask(release).await,
                _ => self.host.ask(proof).await,
            }
        };
        let mut answer = block_on(asked)
            .unwrap()
            .map_err(|error| error.to_string())?;
        let Verdict::Released { sealed, .. } = answer.verdicts.remove(0).verdict else {
            panic!("not released");
        };
        let context = ReleaseContext {
            purpose,
            server: &self.host.settings.id,
            client: &self.host.settings.client,
            request: &session.id,
            volume: &session.volume,
            generation: Generation::FIRST,
        };
        Ok(session.pair.open(&sealed, context).unwrap())
    }

    /// Asks for the same again after the kill: the answer is that of before, or the first one.
    #[track_caller]
    fn repeat(&mut self, attempt: Attempt, before: Result<Option<Share>, String>) {
        let again = self.ask(&attempt);
        let share = match (&attempt, before, again) {
            (Attempt::Join { name, .. }, Ok(_), Err(said)) => {
                assert!(
                    said.contains(&format!("joined that key server already, as '{name}'")),
                    "{said}"
                );
                None
            }
            (_, Ok(Some(before)), Ok(Some(again))) => {
                assert!(
                    before.0.matches(&again.0),
                    "another share than the one acknowledged"
                );
                Some(again)
            }
            (_, Err(_), Ok(again)) => again,
            (_, _, again) => panic!("{:?}: {:?}", attempt.entry(), again.map(|_| ())),
        };
        self.keep(attempt, share);
    }

    /// Remembers what was acknowledged.
    #[track_caller]
    fn keep(&mut self, attempt: Attempt, share: Option<Share>) {
        self.acknowledged.insert(attempt.entry());
        match attempt {
            Attempt::Join { machine, name, .. } => self.joined.push((name, machine)),
            Attempt::Register(volume) => self.volumes.push((volume, share.unwrap())),
            Attempt::Prove(session) | Attempt::Release(session) => {
                let known = self
                    .volumes
                    .iter()
                    .find(|(volume, _)| *volume == session.volume);
                assert!(
                    known.unwrap().1.0.matches(&share.unwrap().0),
                    "another share than the registered one"
                );
            }
        }
    }

    /// The chain in the store of a server that does not run.
    #[track_caller]
    fn verify_audit(&self) {
        self.server.admin(&["audit", "--verify"]).succeeded();
    }

    /// Everything that was acknowledged is in the audit, whose chain is whole; the newest volume and client are there.
    #[track_caller]
    fn check(&self) {
        self.verify_audit();
        let audited = self.server.audited();
        let lost: Vec<_> = self.acknowledged.difference(&audited).collect();
        assert!(
            lost.is_empty(),
            "acknowledged, and not in the audit: {lost:?}"
        );
        for (volume, share) in self.volumes.iter().rev().take(2) {
            self.is_kept(*volume, share);
        }
        if let Some((_, machine)) = self.joined.last() {
            machine.latchkey(&["status"], "").succeeded();
        }
    }

    #[track_caller]
    fn check_everything(&self) {
        self.check();
        for (volume, share) in &self.volumes {
            self.is_kept(*volume, share);
        }
        for (name, machine) in &self.joined {
            let said = machine.latchkey(&["status"], "").succeeded();
            assert!(said.out.contains(name), "{}", said.out);
        }
    }

    #[track_caller]
    fn is_kept(&self, volume: VolumeId, share: &Share) {
        let proved = shares::prove(&self.host, volume, Generation::FIRST).unwrap();
        assert!(
            proved.0.matches(&share.0),
            "another share than the registered one"
        );
    }
}
