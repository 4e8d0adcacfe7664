//! A flow with its clock, what the shell around it would know, and the invariants.

use std::time::Duration;

use latchkey::flow::{
    Action, Answer, Event, Flow, Header, Outcome, Plan, PlannedServer, PlannedVolume, Shown,
    Verdict,
};
use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::{Generation, ServerId, VolumeId};

pub fn server(number: u8) -> ServerId {
    ServerId::from_bytes([number; 32])
}

pub fn plan(volumes: usize, servers: u8) -> Plan {
    Plan {
        volumes: (0..volumes)
            .map(|number| PlannedVolume {
                name: format!("crypt{number}"),
                ..PlannedVolume::default()
            })
            .collect(),
        servers: (0..servers)
            .map(|number| PlannedServer {
                id: server(number),
                addresses: vec![format!("a{number}:7443"), format!("b{number}:7443")],
            })
            .collect(),
        only_prompt: None,
        device_limit: Duration::from_secs(30),
        seed: 7,
    }
}

pub fn bound(servers: u8) -> Header {
    let id = VolumeId::random().expect("randomness");
    let envelopes = (0..servers)
        .map(|number| (server(number), Generation::FIRST))
        .collect();
    let shown = Shown {
        tickets: vec![(server(0), Bytes([7; 32]))],
        fingerprint: Bytes([8; 32]),
    };
    Header::Bound(id, envelopes, shown)
}

/// A volume that only a volume key opens.
pub fn by_key() -> Header {
    match bound(1) {
        Header::Bound(id, envelopes, shown) => Header::BoundByKey(id, envelopes, shown),
        other => other,
    }
}

/// A flow, the clock, and what the shell around it would know.
pub struct Rig {
    pub flow: Flow,
    pub now: Duration,
    pub log: Vec<Action>,
    pub asked: Option<(u64, usize, usize, Vec<usize>)>,
    pub prompt: bool,
    pub trying: bool,
    pub opening: Option<(usize, bool)>,
    pub to_activate: Vec<usize>,
    pub wiped: bool,
    pub locked: Vec<bool>,
    pub typeable: Vec<bool>,
    pub appeared: Vec<bool>,
    pub finished: Option<Outcome>,
    pub wake: Option<Duration>,
}

impl Rig {
    pub fn new(plan: Plan) -> Self {
        let volumes = plan.volumes.len();
        let (flow, actions) = Flow::start(plan);
        let mut rig = Self {
            flow,
            now: Duration::ZERO,
            log: Vec::new(),
            asked: None,
            prompt: false,
            trying: false,
            opening: None,
            to_activate: Vec::new(),
            wiped: false,
            locked: vec![false; volumes],
            typeable: vec![true; volumes],
            appeared: vec![false; volumes],
            finished: None,
            wake: None,
        };
        rig.apply(actions);
        rig
    }

    pub fn event(&mut self, event: Event) -> Vec<Action> {
        match &event {
            Event::Device(volume, header)
                if !std::mem::replace(&mut self.appeared[*volume], true) =>
            {
                self.locked[*volume] = !matches!(header, Header::NotBound);
                self.typeable[*volume] = !matches!(header, Header::BoundByKey(..));
            }
            Event::Opened(volume) | Event::Activated(volume, _) => {
                self.locked[*volume] = false;
                self.end_opening(*volume);
            }
            Event::NotOpened(volume, _)
            | Event::NotActivated(volume, _)
            | Event::Left(volume, _) => self.end_opening(*volume),
            Event::Typed => {
                assert!(self.prompt, "only a prompt gives a passphrase");
                self.prompt = false;
            }
            Event::PromptLost(_) => self.prompt = false,
            Event::Tried(_) => self.trying = false,
            _ => {}
        }
        let actions = self.flow.handle(self.now, event);
        self.apply(actions.clone());
        actions
    }

    pub fn end_opening(&mut self, volume: usize) {
        self.to_activate.retain(|other| *other != volume);
        self.opening = None;
    }

    pub fn apply(&mut self, actions: Vec<Action>) {
        self.wake = None;
        for action in &actions {
            assert!(self.finished.is_none(), "{action:?} after the end");
            match action {
                Action::Ask {
                    number,
                    server,
                    address,
                    volumes,
                } => {
                    assert!(!self.wiped, "asked without credentials");
                    assert!(self.asked.is_none(), "two requests at once");
                    assert!(*address < 2);
                    let volumes = volumes.iter().map(|(volume, ..)| *volume).collect();
                    self.asked = Some((*number, *server, *address, volumes));
                }
                Action::CancelAsk => self.asked = None,
                Action::Open(volume, _) => {
                    assert!(!self.wiped, "opened with wiped credentials");
                    assert!(
                        !self.trying && self.opening.is_none(),
                        "two openings at once"
                    );
                    assert!(self.locked[*volume]);
                    self.opening = Some((*volume, true));
                }
                Action::Prompt(volume, _) => {
                    assert!(!self.prompt && !self.trying, "two prompts");
                    assert!(
                        self.locked[*volume] && self.typeable[*volume],
                        "a prompt for what no passphrase opens"
                    );
                    self.prompt = true;
                }
                Action::Leave(volume) => self.locked[*volume] = false,
                Action::EndPrompt => {
                    assert!(self.prompt, "no prompt to end");
                    self.prompt = false;
                }
                Action::TryPassphrase(volumes) => {
                    assert!(
                        volumes
                            .iter()
                            .all(|volume| self.locked[*volume] && self.typeable[*volume])
                            && !volumes.is_empty()
                    );
                    self.trying = true;
                }
                Action::Activate(volume) => {
                    assert!(
                        self.wiped,
                        "a typed mapping before the credentials were wiped"
                    );
                    self.to_activate.push(*volume);
                }
                Action::Wipe => {
                    assert!(!self.wiped, "wiped twice");
                    self.wiped = true;
                }
                Action::WakeAt(time) => {
                    assert!(*time > self.now, "woken again at once");
                    self.wake = Some(*time);
                }
                Action::Finish(outcome) => {
                    assert!(
                        self.wiped && !self.prompt,
                        "left with credentials or a prompt"
                    );
                    self.finished = Some(*outcome);
                }
                Action::Say(_)
                | Action::Status(_)
                | Action::WaitForDevices(_)
                | Action::ForgetTyped => {}
            }
        }
        self.log.extend(actions);
    }

    /// What a person at the console may rely on.
    pub fn check(&self, prompt_possible: bool) {
        let busy = self.trying || self.opening.is_some() || !self.to_activate.is_empty();
        let mut volumes = self.locked.iter().zip(&self.typeable);
        let waits = volumes.any(|(locked, typeable)| *locked && *typeable);
        if self.finished.is_none() && prompt_possible && !busy && waits {
            assert!(
                self.prompt,
                "a locked volume and no prompt; {:#?}",
                self.log
            );
        }
    }

    #[track_caller]
    pub fn expect(actions: &[Action], wanted: impl Fn(&Action) -> bool) {
        assert!(actions.iter().any(wanted), "not in {actions:?}");
    }

    pub fn ready() -> Self {
        let mut rig = Self::new(plan(1, 1));
        rig.event(Event::Device(0, bound(1)));
        rig.event(Event::NetworkUp);
        rig
    }

    pub fn answer(&mut self, answer: Answer) -> Vec<Action> {
        let (number, ..) = self.asked.take().expect("a request is under way");
        self.event(Event::Answered(number, answer))
    }
}

pub fn released() -> Answer {
    Answer::Verdicts(vec![(0, Verdict::Released)])
}
