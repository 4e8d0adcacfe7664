//! The unlock flow: a state machine without I/O.
//!
//! Events come in (network up, device appeared, key server answered, passphrase typed, time passed, told to
//! stop), actions go out (ask, prompt, open, wipe, finish). Every rule on races, retries, deadlines and several
//! volumes is here, and nothing that waits: time is a number in each event, secrets stay with the shell, which
//! carries the actions out (`unlock`). What must always hold:
//!
//! - the prompt stands whenever a bound volume that a passphrase can open is locked and none is being tried. What
//!   crypttab(5) says of its end counts once no key server can open the volume: the native prompt follows then;
//! - credentials are wiped before a mapping is made of a typed passphrase, and before the flow ends;
//! - a mapping is made of one thing at a time, so the first success wins;
//! - whatever a key server says, the prompt stays;
//! - a volume that the boot does not need never holds up those that it does.

mod asking;
mod events;
mod requests;
mod status;
mod volume;

use std::time::Duration;

use asking::Asking;
pub use events::{
    Action, Answer, Event, Header, Outcome, Plan, PlannedServer, PlannedVolume, PromptLimit,
    PromptLoss, Refusal, ServerIndex, Shown, Tried, Verdict, VolumeIndex,
};
use volume::{State, Volume};

/// How much longer the boot takes for volumes that it does not need, once the others are open.
pub const OPTIONAL_LIMIT: Duration = Duration::from_secs(10);

/// The state machine.
#[derive(Debug)]
pub struct Flow {
    volumes: Vec<Volume>,
    asking: Asking,
    only_prompt: Option<String>,
    device_limit: Duration,
    /// When all that the boot needs was open.
    needed_done: Option<Duration>,
    network: Network,
    credentials: bool,
    prompt: Prompt,
    wrong: u32,
    waiting_for_devices: bool,
    status: String,
    finished: bool,
}

#[derive(Debug)]
enum Network {
    Up,
    Down(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prompt {
    Absent,
    Shown(VolumeIndex),
    /// A typed passphrase is being tried.
    Trying,
    Impossible,
}

impl Flow {
    /// A flow and what to do first.
    pub fn start(plan: Plan) -> (Self, Vec<Action>) {
        let mut flow = Self {
            volumes: plan.volumes.into_iter().map(Volume::new).collect(),
            asking: Asking::new(plan.servers, plan.seed),
            credentials: true,
            only_prompt: plan.only_prompt,
            device_limit: plan.device_limit,
            needed_done: None,
            network: Network::Down("waiting for the network".to_owned()),
            prompt: Prompt::Absent,
            wrong: 0,
            waiting_for_devices: false,
            status: String::new(),
            finished: false,
        };
        let mut actions = Vec::new();
        if let Some(reason) = &flow.only_prompt {
            actions.push(Action::Say(format!("no automatic opening: {reason}")));
            flow.wipe(&mut actions);
        }
        flow.advance(Duration::ZERO, &mut actions);
        (flow, actions)
    }

    /// Takes one event at `now` (since start) and says what to do, in that order.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
        match event {
            Event::Tick => {}
            Event::NetworkUp => {
                self.network = Network::Up;
                self.asking.network_came_up(now);
            }
            Event::NetworkTrouble(why) => self.network = Network::Down(why),
            Event::Found(volume) => {
                let volume = &mut self.volumes[volume];
                if volume.is_missing() {
                    volume.read_since.get_or_insert(now);
                }
            }
            Event::Device(volume, header) => {
                self.device_appeared(now, volume, header, &mut actions);
            }
            Event::Warned(index, why) => {
                let volume = &self.volumes[index];
                if !volume.is_done() {
                    actions.push(Action::Say(format!("'{}': {why}", volume.name)));
                }
            }
            Event::Answered(number, answer) => self.answered(now, number, answer, &mut actions),
            Event::Opened(volume) => self.opened(volume, &mut actions),
            Event::NotOpened(volume, refusal) => {
                self.not_opened(now, volume, refusal, &mut actions)
            }
            Event::Typed => self.typed(&mut actions),
            Event::PromptLost(loss) => {
                self.prompt = match loss {
                    PromptLoss::Again => Prompt::Absent,
                    PromptLoss::Impossible => Prompt::Impossible,
                };
            }
            Event::KeyslotOpened => self.wipe(&mut actions),
            Event::Tried(result) => self.tried(result, &mut actions),
            Event::Activated(volume, warning) => {
                if let Some(warning) = warning {
                    let name = &self.volumes[volume].name;
                    actions.push(Action::Say(format!("WARNING: '{name}': {warning}")));
                }
                self.opened(volume, &mut actions);
            }
            Event::NotActivated(volume, why) => {
                let volume = &mut self.volumes[volume];
                actions.push(Action::Say(format!(
                    "failed to open '{}': {why}",
                    volume.name
                )));
                volume.state = State::Locked;
            }
            Event::Left(index, why) => self.volumes[index].leave(index, &why, &mut actions),
            Event::Taken(index, why) => self.taken(index, &why, &mut actions),
            Event::Stop => {
                self.finish(Outcome::Stopped, &mut actions);
                return actions;
            }
        }
        self.advance(now, &mut actions);
        actions
    }

    fn device_appeared(
        &mut self,
        now: Duration,
        index: VolumeIndex,
        header: Header,
        actions: &mut Vec<Action>,
    ) {
        let volume = &mut self.volumes[index];
        if volume.state != State::Missing {
            return;
        }
        volume.read_since = None;
        volume.state = State::Locked;
        self.reading_goes_on(now);
        let volume = &mut self.volumes[index];
        let by_key = matches!(header, Header::BoundByKey(..));
        match header {
            Header::NotBound => volume.state = State::NotBound,
            Header::Unusable(why) => volume.refuse(why, actions),
            Header::LeftAlone(why) => volume.leave(index, &why, actions),
            Header::Bound(id, envelopes, _) | Header::BoundByKey(id, envelopes, _) => {
                volume.typeable = !by_key;
                volume.id = Some(id);
                volume.envelopes = envelopes
                    .into_iter()
                    .filter_map(|(server, generation)| {
                        Some((self.asking.index_of(server)?, generation))
                    })
                    .collect();
                for (server, _) in &volume.envelopes {
                    self.asking.has_news_for(now, *server);
                }
                if volume.envelopes.is_empty() {
                    volume.refuse(
                        "none of its key servers is known here; run 'latchkey bind' again"
                            .to_owned(),
                        actions,
                    );
                }
            }
        }
    }

    fn answered(&mut self, now: Duration, number: u64, answer: Answer, actions: &mut Vec<Action>) {
        let Some(server) = self.asking.answered(now, number, &answer) else {
            return; // the answer to a request that was cancelled
        };
        let Answer::Verdicts(verdicts) = answer else {
            return;
        };
        let asked: Vec<VolumeIndex> = verdicts.iter().map(|(index, _)| *index).collect();
        for (index, verdict) in verdicts {
            let Some(volume) = self.volumes.get_mut(index) else {
                continue;
            };
            match verdict {
                Verdict::Released if !volume.released.contains(&server) => {
                    volume.released.push(server)
                }
                Verdict::Destroyed => {
                    volume.envelopes.retain(|(other, _)| *other != server);
                    if volume.envelopes.is_empty() && volume.released.is_empty() {
                        volume.refuse(
                            "its share was destroyed at the key server".to_owned(),
                            actions,
                        );
                    }
                }
                _ => {}
            }
        }
        // What has appeared meanwhile need not wait for what this server said of others.
        let wanted = self.wants(server);
        if wanted.iter().any(|(index, ..)| !asked.contains(index)) {
            self.asking.has_news_for(now, server);
        }
    }

    fn opened(&mut self, index: VolumeIndex, actions: &mut Vec<Action>) {
        // Taken away first, so that what is said does not bring it back.
        self.end_prompt_of(index, actions);
        let volume = &mut self.volumes[index];
        let how = if volume.state == State::OpeningTyped {
            "by a typed passphrase"
        } else {
            "automatically"
        };
        actions.push(Action::Say(format!("'{}' was opened {how}", volume.name)));
        volume.state = State::Open;
    }

    fn taken(&mut self, index: VolumeIndex, why: &str, actions: &mut Vec<Action>) {
        // While we open it the mapping may be ours.
        if !self.volumes[index].is_locked() {
            return;
        }
        self.end_prompt_of(index, actions);
        self.volumes[index].leave(index, why, actions);
    }

    fn end_prompt_of(&mut self, index: VolumeIndex, actions: &mut Vec<Action>) {
        if self.prompt == Prompt::Shown(index) {
            actions.push(Action::EndPrompt);
            self.prompt = Prompt::Absent;
        }
    }

    fn not_opened(
        &mut self,
        now: Duration,
        index: VolumeIndex,
        refusal: Refusal,
        actions: &mut Vec<Action>,
    ) {
        let volume = &mut self.volumes[index];
        let State::OpeningAutomatically(server) = volume.state else {
            return;
        };
        volume.state = State::Locked;
        match refusal {
            Refusal::Gate(why) => volume.refuse(why, actions),
            Refusal::Share(why) => {
                actions.push(Action::Say(format!("'{}': {why}", volume.name)));
                self.asking.useless_share(now, server, &why);
            }
        }
    }

    fn typed(&mut self, actions: &mut Vec<Action>) {
        let locked: Vec<_> = self.indices(Volume::waits_for_a_passphrase);
        if locked.is_empty() {
            self.prompt = Prompt::Absent;
        } else {
            self.prompt = Prompt::Trying;
            for index in &locked {
                self.volumes[*index].wrong += 1; // until it is found right
            }
            actions.push(Action::TryPassphrase(locked));
        }
    }

    fn tried(&mut self, result: Tried, actions: &mut Vec<Action>) {
        self.prompt = Prompt::Absent;
        match result {
            Tried::Right(volumes) => {
                self.wrong = 0;
                for volume in &mut self.volumes {
                    volume.wrong = 0;
                }
                // Wiped as soon as a keyslot opened, and before the first mapping exists: whoever owns the volume that was
                // just opened, and it may be a stranger's, must find nothing here.
                self.wipe(actions);
                for index in volumes {
                    if self.volumes[index].state == State::Locked {
                        self.volumes[index].state = State::OpeningTyped;
                        actions.push(Action::Activate(index));
                    }
                }
                actions.push(Action::ForgetTyped);
            }
            Tried::Wrong => {
                self.typed_in_vain("no keyslot opens with this passphrase".to_owned(), actions);
            }
            Tried::Failed(why) => self.typed_in_vain(why, actions),
        }
    }

    fn typed_in_vain(&mut self, why: String, actions: &mut Vec<Action>) {
        self.wrong += 1;
        self.status.clear(); // this line would stand between it and the next prompt
        actions.push(Action::Say(why));
    }

    /// Everything that follows from the state as it now is.
    fn advance(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.leave_what_is_not_prompted_for(now, actions);
        if self.needed_done.is_none() && self.needed().all(Volume::is_done) {
            self.needed_done = Some(now);
        }
        if let Some(outcome) = self.outcome(now) {
            self.finish(outcome, actions);
            return;
        }
        if self.credentials && !self.automatic_is_possible() {
            self.wipe(actions);
        }
        self.open_what_was_released(actions);
        self.ask(now, actions);
        self.tell_status(actions);
        self.show_prompt(actions);
        self.tell_device_state(now, actions);
        let device_limit = self
            .volumes
            .iter()
            .any(Volume::is_missing)
            .then_some(self.device_limit);
        let due = match self.reading_limit(now) {
            limit @ Some(_) => limit,
            None if self.may_ask() => self.asking.next_due(now, |server| self.wants(server)),
            None => None,
        };
        // A limit that has passed wakes nobody again: what it means is looked at with every event.
        let prompt_ends = self.volumes.iter().filter_map(Volume::prompt_ends);
        let limits = device_limit.into_iter().chain(self.optional_limit());
        let slow = self.volumes.iter().filter_map(Volume::reading_ends);
        let limits = limits.chain(prompt_ends).chain(slow);
        let limits = limits.filter(|limit| *limit > now);
        if let Some(wake) = limits.chain(due).min() {
            actions.push(Action::WakeAt(wake));
        }
    }

    /// Once no key server can open a volume any more in this boot, it is the native unlocker's where nobody is prompted for
    /// it: no passphrase opens it, or its prompt has ended.
    fn leave_what_is_not_prompted_for(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.prompt == Prompt::Trying {
            return; // what is being tried may be right
        }
        for index in 0..self.volumes.len() {
            let volume = &mut self.volumes[index];
            let is_over = volume.refused.is_some() || !self.credentials;
            if !volume.is_locked() || !is_over {
                continue;
            }
            volume.only_prompt_since.get_or_insert(now);
            if let Some(why) = volume.is_not_prompted_for(now) {
                self.end_prompt_of(index, actions);
                self.volumes[index].leave(index, &why, actions);
            }
        }
    }

    fn outcome(&self, now: Duration) -> Option<Outcome> {
        let settled = |volume: &Volume| volume.is_done() || volume.is_missing();
        if self.volumes.iter().all(Volume::is_done) {
            let any_open = self
                .volumes
                .iter()
                .any(|volume| volume.state == State::Open);
            return Some(if any_open {
                Outcome::Open
            } else {
                Outcome::NothingBound
            });
        }
        if self.volumes.iter().all(settled) && now >= self.device_limit {
            return Some(Outcome::DeviceMissing);
        }
        let busy = self.prompt == Prompt::Trying || self.volumes.iter().any(Volume::is_opening);
        if !busy && self.optional_limit().is_some_and(|limit| now >= limit) {
            return Some(Outcome::OptionalLeft);
        }
        let idle = self
            .volumes
            .iter()
            .all(|volume| settled(volume) || volume.is_locked());
        let helpless = self.prompt == Prompt::Impossible && !self.automatic_is_possible();
        (idle && helpless).then_some(Outcome::NativePrompt)
    }

    /// The volumes that the boot does not go on without.
    fn needed(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().filter(|volume| !volume.optional)
    }

    /// When the boot goes on without the volumes that it does not need, once that is known.
    fn optional_limit(&self) -> Option<Duration> {
        let left = |volume: &Volume| volume.optional && !volume.is_done();
        let done = self.needed_done.filter(|_| self.volumes.iter().any(left))?;
        if self.needed().next().is_some() {
            Some(done + OPTIONAL_LIMIT)
        } else {
            Some(self.device_limit)
        }
    }

    /// Whether any volume could still be opened without a person.
    fn automatic_is_possible(&self) -> bool {
        self.only_prompt.is_none()
            && self.credentials
            && self.volumes.iter().any(|volume| match volume.state {
                State::Missing | State::OpeningAutomatically(_) => true,
                State::Locked => volume.refused.is_none(),
                State::NotBound | State::OpeningTyped | State::Open => false,
            })
    }

    fn open_what_was_released(&mut self, actions: &mut Vec<Action>) {
        // One thing at a time: a passphrase that is being tried goes first.
        let busy = self.prompt == Prompt::Trying || self.volumes.iter().any(Volume::is_opening);
        if busy || !self.credentials {
            return;
        }
        let ready = |volume: &Volume| {
            volume.is_locked() && volume.refused.is_none() && !volume.released.is_empty()
        };
        if let Some(index) = self.volumes.iter().position(ready) {
            let volume = &mut self.volumes[index];
            let server = volume.released.remove(0);
            volume.state = State::OpeningAutomatically(server);
            actions.push(Action::Open(index, server));
        }
    }

    fn show_prompt(&mut self, actions: &mut Vec<Action>) {
        let opening = self.volumes.iter().any(Volume::is_opening);
        if self.prompt == Prompt::Absent
            && !opening
            && let Some(index) = self.volumes.iter().position(Volume::waits_for_a_passphrase)
        {
            self.prompt = Prompt::Shown(index);
            actions.push(Action::Prompt(index, self.wrong));
        }
    }

    fn tell_device_state(&mut self, now: Duration, actions: &mut Vec<Action>) {
        // The framework may have to bring the device of one that the boot needs: no other holds that up. But for a volume that was
        // left to it, it would prompt beside us.
        let is_brought = self.needed().any(Volume::is_missing)
            && !self.needed().any(|volume| volume.state == State::NotBound);
        let counts = |volume: &&Volume| !volume.optional || !is_brought;
        let busy =
            self.volumes.iter().filter(counts).any(|volume| {
                volume.is_locked() || volume.is_opening() || volume.is_being_read(now)
            });
        let waiting = !busy && self.volumes.iter().any(Volume::is_missing);
        if waiting != self.waiting_for_devices {
            self.waiting_for_devices = waiting;
            if !self.volumes.iter().any(Volume::is_locked) {
                self.status.clear(); // it is the devices now
            }
            actions.push(Action::WaitForDevices(waiting));
        }
    }

    fn wipe(&mut self, actions: &mut Vec<Action>) {
        if self.credentials {
            self.credentials = false;
            self.asking.cancel();
            for volume in &mut self.volumes {
                volume.released.clear();
            }
            actions.extend([Action::CancelAsk, Action::Wipe]);
        }
    }

    fn finish(&mut self, outcome: Outcome, actions: &mut Vec<Action>) {
        if matches!(self.prompt, Prompt::Shown(_)) {
            actions.push(Action::EndPrompt);
        }
        self.prompt = Prompt::Absent;
        self.wipe(actions);
        // The agent's end may wait for a header that is never read to its end; the boot does not.
        if !self.waiting_for_devices && self.volumes.iter().any(Volume::is_missing) {
            actions.push(Action::WaitForDevices(true));
        }
        self.finished = true;
        actions.push(Action::Finish(outcome));
    }

    fn indices(&self, filter: impl Fn(&Volume) -> bool) -> Vec<VolumeIndex> {
        (0..self.volumes.len())
            .filter(|index| filter(&self.volumes[*index]))
            .collect()
    }
}
