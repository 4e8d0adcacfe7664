//! One boot of the agent: its flow, its session with the key server over TLS, its reader of headers. Its clock is the key
//! server's, moved to whatever the flow waits for. At the end there is no device-mapper: what a share opens is the envelope.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use latchkey::files::Files;
use latchkey::flow::{Action, Answer, Event, Flow, Plan, PlannedVolume, Verdict};
use latchkey::unlock::asker::Answered;
use latchkey::unlock::boot::Boot as Facts;
use latchkey::unlock::credentials::Credentials;
use latchkey::unlock::planned_servers;
use latchkey::unlock::session::Session;
use latchkey::unlock::volumes::of_this_boot;
use latchkey::unlock::worker::{Job, Told, Worker};
use latchkey::volume::header::HeaderCopy;
use latchkey::volume::tokens;
use latchkey_protocol::RequestId;
use latchkey_protocol::envelope::Released;
use latchkeyd::clock::Clock;

use crate::common::machine::copy_folder;
use crate::keyserver::KeyServer;
use crate::network::Place;

/// Real time that nothing here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A disk as it was when it was copied: the image in /boot, and the volume.
pub struct Disk {
    root: tempfile::TempDir,
    volume: tempfile::NamedTempFile,
}

/// What a boot comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Released,
    Asked,
    Refused,
}

enum Message {
    Worker(Event),
    Answered(Answered),
}

/// One boot session.
pub struct Boot {
    pub request: RequestId,
    session: Option<Session>,
    worker: Worker,
    messages: Receiver<Message>,
    volume: PathBuf,
    end: Option<End>,
    /// By the flow's clock.
    wake: Option<Duration>,
    asks: bool,
    probes: bool,
    plan: Option<Plan>,
}

impl Disk {
    /// Of a machine whose files lie below `root`.
    pub fn copy(root: &Path, volume: &Path) -> Self {
        let copy = Self {
            root: tempfile::tempdir().unwrap(),
            volume: tempfile::NamedTempFile::new().unwrap(),
        };
        copy_folder(&root.join("etc"), &copy.root.path().join("etc"));
        std::fs::copy(volume, copy.volume.path()).unwrap();
        copy
    }

    /// A boot of it at `place`, which reads the volume at `volume` if it is not the copied one.
    pub fn boots(&self, place: Place, server: &KeyServer, volume: Option<&Path>) -> Boot {
        // The agent overwrites the boot keys in its image.
        let image = tempfile::tempdir().unwrap();
        copy_folder(self.root.path(), image.path());
        let files = Files::under(image.path());
        let joined = files.all_servers().unwrap().remove(0);
        let settings = joined.dir.join("server.toml");
        let text = std::fs::read_to_string(&settings).unwrap();
        let known = joined.settings.addresses[0].to_string();
        std::fs::write(&settings, text.replace(&known, &server.address(place))).unwrap();
        Boot::start(&files, volume.unwrap_or(self.volume.path()))
    }
}

impl Boot {
    fn start(files: &Files, volume: &Path) -> Self {
        let facts = Facts::read(files);
        assert_eq!(facts.forbids_automatic(), None);
        let entries = of_this_boot(files, &facts.command_line, |line| panic!("{line}")).unwrap();
        let (sender, messages) = channel();
        let to_worker = sender.clone();
        let worker = Worker::start(files.clone(), entries, move |told| {
            if let Told::Event(event) = told {
                let _ = to_worker.send(Message::Worker(event));
            }
        });
        let credentials = Credentials::take(files, |problem| panic!("{problem}")).unwrap();
        let plan = Plan {
            volumes: vec![PlannedVolume {
                name: "root_crypt".to_owned(),
                ..PlannedVolume::default()
            }],
            servers: planned_servers(&credentials),
            only_prompt: None,
            device_limit: Duration::from_secs(30),
            seed: 7,
        };
        let session = Session::start(credentials, facts.facts(), move |answered| {
            let _ = sender.send(Message::Answered(answered));
        })
        .unwrap();
        Self {
            request: session.request(),
            session: Some(session),
            worker: worker.unwrap(),
            messages,
            volume: volume.to_owned(),
            end: None,
            wake: None,
            asks: false,
            probes: false,
            plan: Some(plan),
        }
    }

    /// Until it has the share, waits for a person, or is refused. `before_time_passes` may look after the key server.
    pub fn ends(
        mut self,
        server: &mut KeyServer,
        mut before_time_passes: impl FnMut(&mut KeyServer),
    ) -> (RequestId, End) {
        let clock = server.clock.clone();
        let began = clock.passed();
        let (mut flow, actions) = Flow::start(self.plan.take().unwrap());
        self.perform(actions);
        self.worker.queue(Job::Probe(0, self.volume.clone()));
        self.probes = true;
        let mut events = vec![Event::NetworkUp];
        while self.end.is_none() {
            let event = match events.pop() {
                Some(event) => event,
                None if self.asks || self.probes => self.hear(),
                None => {
                    before_time_passes(server);
                    let due = began + self.wake.take().expect("the flow waits for something");
                    clock.pass(due.saturating_sub(clock.passed()));
                    Event::Tick
                }
            };
            if let Some(session) = &mut self.session {
                session.note(&event);
            }
            let actions = flow.handle(clock.passed() - began, event);
            self.perform(actions);
        }
        if let Some(session) = self.session.take() {
            session.end();
        }
        self.worker.end();
        (self.request, self.end.unwrap())
    }

    /// The next answer, of the key server or of the thread that reads headers.
    fn hear(&mut self) -> Event {
        match self.messages.recv_timeout(LIMIT).unwrap() {
            Message::Worker(event) => {
                self.probes = false;
                event
            }
            Message::Answered(answered) => {
                self.asks = false;
                let session = self.session.as_mut().unwrap();
                let answer = session.receive(answered.server, answered.result);
                if let Answer::Verdicts(verdicts) = &answer {
                    self.end = match &verdicts[0].1 {
                        // The flow opens the volume with it.
                        Verdict::Released | Verdict::Wait { .. } => None,
                        Verdict::Pending { .. } => Some(End::Asked),
                        Verdict::Denied { .. } | Verdict::Destroyed => Some(End::Refused),
                    };
                }
                Event::Answered(answered.number, answer)
            }
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ask {
                    number,
                    server,
                    address,
                    volumes,
                } => {
                    let session = self.session.as_mut().unwrap();
                    session.ask(number, server, address, volumes);
                    self.asks = true;
                }
                Action::Open(volume, server) => {
                    let session = self.session.as_mut().unwrap();
                    let job = session.take_share(volume, server).unwrap();
                    open_envelope(&self.volume, &job);
                    self.end = Some(End::Released);
                }
                Action::WakeAt(time) => self.wake = Some(time),
                Action::Wipe | Action::Finish(_) => panic!("{action:?} before it has ended"),
                _ => {} // what a person sees
            }
        }
    }
}

/// The share is what the envelope in the header was made for.
fn open_envelope(volume: &Path, job: &Job) {
    let Job::Open {
        server,
        share,
        generation,
        ..
    } = job
    else {
        panic!("{job:?}");
    };
    let header = HeaderCopy::read(volume).unwrap();
    let token = tokens::find_in(header.json()).remove(0).token.unwrap();
    let released = Released {
        share,
        volume: token.volume,
        generation: *generation,
    };
    let envelope = token.envelope_of(*server).unwrap();
    token.open(envelope, released).unwrap();
}
