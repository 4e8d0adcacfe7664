//! The I/O around the flow: turns what happens into events, and actions into what happens.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::thread::Builder;
use std::time::{Duration, Instant};

use latchkey_protocol::RequestId;
use latchkey_secret::SecretBytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant as TokioInstant, interval, sleep, sleep_until};

use super::asker::Answered;
use super::boot::Boot;
use super::console::Console;
use super::credentials::Credentials;
use super::look::is_taken;
use super::prompt::{Companion, Failures, Prompt, PromptResult, Question, Way};
use super::runtime::Runtime;
use super::service_manager;
use super::session::Session;
use super::volumes;
use super::worker::{Job, Told, Worker};
use crate::failure::{chain, printable};
use crate::files::Files;
use crate::flow::{Action, Answer, Event, Flow, Header, Outcome, Plan, ServerIndex, VolumeIndex};
use crate::network::{self, Network, NetworkConfig, NetworkEvent};
use crate::volume::crypttab::Entry;
use crate::volume::mapping;

/// How often to look for a device that is missing.
const DEVICE_PAUSE: Duration = Duration::from_millis(50);
/// How often to look whether somebody else opened a volume.
const MAPPING_PAUSE: Duration = Duration::from_secs(1);
/// How long the network's configuration may take to go.
const NETWORK_LIMIT: Duration = Duration::from_secs(5);

/// Everything that the actions act on.
pub struct Shell {
    runtime: Runtime,
    console: Console,
    entries: Vec<Entry>,
    devices: Vec<Device>,
    /// Volumes that are open, with udev still at them.
    unlinked: Vec<VolumeIndex>,
    session: Option<Session>,
    request: Option<RequestId>,
    network: NetworkState,
    worker: Worker,
    prompt: PromptState,
    typed: Option<SecretBytes>,
    messages: UnboundedReceiver<Message>,
    sender: UnboundedSender<Message>,
    started: Instant,
    wake: Option<Duration>,
}

enum Device {
    Missing,
    Present(PathBuf),
}

enum NetworkState {
    Wanted(NetworkConfig),
    Running(Network, UnboundedReceiver<NetworkEvent>),
    Over,
}

struct PromptState {
    way: Way,
    shown: Option<Prompt>,
    /// Tells the answers of prompts that were ended from the present one's.
    number: u64,
    failures: Failures,
    companion: Option<Companion>,
}

enum Message {
    Worker(Event),
    /// The device of a volume answers.
    Reached(VolumeIndex),
    Linked,
    Answered(Answered),
    Prompt(u64, PromptResult),
}

impl Shell {
    /// Starts the two other threads.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(
        files: &Files,
        runtime: Runtime,
        console: Console,
        boot: &Boot,
        entries: Vec<Entry>,
        credentials: Option<Credentials>,
    ) -> io::Result<Self> {
        let (sender, messages) = mpsc::unbounded_channel();
        let to_worker = sender.clone();
        let worker = Worker::start(files.clone(), entries.clone(), move |told| {
            let _ = to_worker.send(match told {
                Told::Event(event) => Message::Worker(event),
                Told::Linked => Message::Linked,
            });
        })?;
        let to_session = sender.clone();
        let answered = move |answered| {
            let _ = to_session.send(Message::Answered(answered));
        };
        let session = credentials
            .map(|credentials| Session::start(credentials, boot.facts(), answered))
            .transpose()?;
        let network = match &session {
            Some(_) => {
                let image = volumes::command_line_of_image(files);
                let config = network::load(&files.path("/"), &image, &boot.command_line_text);
                NetworkState::Wanted(config)
            }
            None => NetworkState::Over, // there is nobody to ask
        };
        Ok(Self {
            runtime,
            console,
            devices: entries.iter().map(|_| Device::Missing).collect(),
            entries,
            unlinked: Vec::new(),
            request: session.as_ref().map(Session::request),
            session,
            network,
            worker,
            prompt: PromptState {
                way: Way::of_this_boot(),
                shown: None,
                number: 0,
                failures: Failures::default(),
                companion: None,
            },
            typed: None,
            messages,
            sender,
            started: Instant::now(),
            wake: None,
        })
    }

    /// Runs the flow to its end.
    ///
    /// # Errors
    /// The runtime could not be started.
    pub fn run(mut self, plan: Plan) -> io::Result<Outcome> {
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let outcome = executor.block_on(self.follow(plan));
        executor.shutdown_background();
        let dropped = self.worker.end();
        // What the thread did last nobody has heard of yet.
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Worker(event) = message {
                note_opening(&self.runtime, &self.entries, &event);
            }
        }
        for volume in dropped {
            if let Err(error) = self.runtime.refuse_automatic(&self.entries[volume].name) {
                log::error!("{}", chain(&error));
            }
        }
        if let Err(error) = self
            .runtime
            .leave_report(&self.console.report(self.request))
        {
            log::warn!("{}", chain(&error));
        }
        outcome
    }

    async fn follow(&mut self, plan: Plan) -> io::Result<Outcome> {
        let mut terminate = signal(SignalKind::terminate())?;
        // At a console that is the controlling terminal, Ctrl-C must not end the prompt.
        let _interrupt = signal(SignalKind::interrupt())?;
        self.start_network();
        let (mut flow, actions) = Flow::start(plan);
        let mut outcome = self.perform(actions).await;
        let mut look = interval(MAPPING_PAUSE);
        while outcome.is_none() {
            self.look_for_devices();
            let wake = self.started + self.wake.unwrap_or(Duration::from_secs(3600));
            let missing = self.misses_devices();
            let event = tokio::select! {
                biased;
                _ = terminate.recv() => {
                    self.worker.stop();
                    Some(Event::Stop)
                }
                Some(message) = self.messages.recv() => self.received(message),
                Some(event) = next(&mut self.network) => self.network_event(event),
                _ = look.tick() => {
                    self.look_for_mappings();
                    None
                }
                () = sleep(DEVICE_PAUSE), if missing => None,
                () = sleep_until(TokioInstant::from_std(wake)) => Some(Event::Tick),
            };
            if let Some(event) = event {
                self.hand_over(&event);
                if let Some(session) = &mut self.session {
                    session.note(&event);
                }
                let actions = flow.handle(self.started.elapsed(), event);
                outcome = self.perform(actions).await;
                self.typed = None; // what was typed when nothing was left to try it on
            }
        }
        Ok(outcome.unwrap_or(Outcome::Stopped))
    }

    /// A volume that is not bound need not be waited for, nor one that is open, once it is found in `/dev`.
    fn hand_over(&mut self, event: &Event) {
        match event {
            Event::Opened(volume) | Event::Activated(volume, _) => self.unlinked.push(*volume),
            Event::Device(volume, Header::NotBound) => self.leave(*volume),
            _ => {}
        }
    }

    fn leave(&self, volume: VolumeIndex) {
        if let Err(error) = self.runtime.hand_over(&self.entries[volume].name) {
            log::warn!("{}", chain(&error)); // it waits until we have gone
        }
    }

    fn start_network(&mut self) {
        if let NetworkState::Wanted(config) =
            std::mem::replace(&mut self.network, NetworkState::Over)
        {
            let (network, events) = Network::start(config);
            self.network = NetworkState::Running(network, events);
        }
    }

    fn misses_devices(&self) -> bool {
        self.devices
            .iter()
            .any(|device| matches!(device, Device::Missing))
    }

    /// Sees which volumes somebody else opened, of those that are not done.
    fn look_for_mappings(&self) {
        for (index, device) in self.devices.iter().enumerate() {
            let name = &self.entries[index].name;
            if let Device::Present(path) = device
                && self.runtime.holds(name)
                && let Some(why) = is_taken(name, path)
            {
                let _ = self.sender.send(Message::Worker(Event::Taken(index, why)));
            }
        }
    }

    fn look_for_devices(&mut self) {
        if !self.misses_devices() {
            return;
        }
        let is_present = |device: &Device| match device {
            Device::Present(path) => fs::canonicalize(path).ok(),
            Device::Missing => None,
        };
        let mut seen: Vec<PathBuf> = self.devices.iter().filter_map(is_present).collect();
        for (index, device) in self.devices.iter_mut().enumerate() {
            if !matches!(device, Device::Missing) {
                continue;
            }
            let entry = &self.entries[index];
            let header_is_missing = || {
                let header = entry.options.header_device();
                header.is_some_and(|header| !header.exists())
            };
            match entry.source.resolve() {
                Ok(None) => {}
                // A header on a device of its own comes when that does.
                Ok(Some(_)) if header_is_missing() => {}
                Ok(Some(path)) => {
                    let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
                    if seen.contains(&real) {
                        // dracut names a volume on its own command line too; the first name is crypttab's.
                        let name = &self.entries[index].name;
                        self.console
                            .note(&format!("'{name}' is another name of a volume"));
                        *device = Device::Present(PathBuf::new());
                        let _ = self
                            .sender
                            .send(Message::Worker(Event::Device(index, Header::NotBound)));
                        continue;
                    }
                    let found = Message::Worker(Event::Found(index));
                    let _ = self.sender.send(found);
                    let sender = self.sender.clone();
                    let devices = [Some(&*path), entry.options.header_device()];
                    reach(devices.into_iter().flatten(), move || {
                        let _ = sender.send(Message::Reached(index));
                    });
                    *device = Device::Present(path);
                    seen.push(real);
                }
                Err(error) => {
                    // Not to be guessed which of two it is: the native unlocker and its prompt remain.
                    self.console.say(&chain(&error));
                    *device = Device::Present(PathBuf::new());
                    let _ = self
                        .sender
                        .send(Message::Worker(Event::Device(index, Header::NotBound)));
                }
            }
        }
    }

    /// What a message means for the flow; `None` if it is out of date.
    fn received(&mut self, message: Message) -> Option<Event> {
        match message {
            Message::Worker(event) => {
                note_opening(&self.runtime, &self.entries, &event);
                Some(event)
            }
            Message::Reached(volume) => {
                if let Device::Present(path) = &self.devices[volume] {
                    self.worker.queue(Job::Probe(volume, path.clone()));
                }
                None
            }
            Message::Linked => {
                for volume in std::mem::take(&mut self.unlinked) {
                    self.leave(volume);
                }
                None
            }
            Message::Answered(answered) => Some(self.answered(answered)),
            Message::Prompt(number, result) => {
                if number != self.prompt.number {
                    return None;
                }
                self.console.prompt(false);
                self.prompt.companion = self.prompt.shown.take().and_then(Prompt::into_companion);
                Some(match result {
                    Ok(typed) => {
                        self.typed = Some(typed);
                        Event::Typed
                    }
                    Err(loss) => Event::PromptLost(loss),
                })
            }
        }
    }

    /// What news of the network mean for the flow; `None` if it can ask as before.
    fn network_event(&mut self, event: NetworkEvent) -> Option<Event> {
        match event {
            NetworkEvent::Up { link, how, address } => {
                self.console
                    .note(&format!("network up: '{link}' has {address} ({how:?})"));
                Some(Event::NetworkUp)
            }
            NetworkEvent::Down { link } => Some(Event::NetworkTrouble(format!(
                "network: '{link}' went down"
            ))),
            NetworkEvent::Trouble(why) => Some(Event::NetworkTrouble(why)),
            NetworkEvent::Beside(why) => {
                self.console.note(&why);
                None
            }
        }
    }

    /// Opens the sealed shares of an answer and tells the flow the rest.
    fn answered(&mut self, answered: Answered) -> Event {
        let Answered {
            number,
            server,
            result,
        } = answered;
        let answer = match &mut self.session {
            Some(session) => {
                if result.is_ok() {
                    self.console.note("the key server answered");
                }
                session.receive(server, result)
            }
            None => Answer::Refused, // wiped meanwhile; the flow ignores it
        };
        Event::Answered(number, answer)
    }

    async fn perform(&mut self, actions: Vec<Action>) -> Option<Outcome> {
        self.wake = None;
        let mut outcome = None;
        for action in actions {
            match action {
                Action::Ask {
                    number,
                    server,
                    address,
                    volumes,
                } => {
                    if let Some(session) = &mut self.session {
                        self.console
                            .note(&format!("asking '{}'", session.address(server, address)));
                        session.ask(number, server, address, volumes);
                    }
                }
                Action::CancelAsk => {
                    if let Some(session) = &self.session {
                        session.cancel();
                    }
                }
                Action::Open(volume, server) => self.open(volume, server),
                Action::Leave(volume) => self.leave(volume),
                Action::Prompt(volume, wrong) => self.show_prompt(volume, wrong),
                Action::EndPrompt => self.end_prompt().await,
                Action::TryPassphrase(volumes) => {
                    if let Some(typed) = self.typed.take() {
                        self.console.note("trying a typed passphrase");
                        self.worker.queue(Job::Try(volumes, typed));
                    }
                }
                Action::Activate(volume) => self.worker.queue(Job::Activate(volume)),
                Action::ForgetTyped => self.worker.queue(Job::Forget),
                Action::Wipe => self.wipe().await,
                Action::Say(line) => self.console.say(&printable(&line)),
                Action::Status(line) => self.console.say_status(&printable(&line)),
                Action::WaitForDevices(waiting) => {
                    if waiting && let Some(line) = self.missing() {
                        service_manager::status(&printable(&line));
                    }
                    if let Err(error) = self.runtime.set_waiting_for_devices(waiting) {
                        log::warn!("{}", chain(&error));
                    }
                }
                Action::WakeAt(time) => self.wake = Some(time),
                Action::Finish(end) => {
                    self.prompt.companion = None;
                    outcome = Some(end);
                }
            }
        }
        outcome
    }

    fn open(&mut self, volume: VolumeIndex, server: ServerIndex) {
        let share = self
            .session
            .as_mut()
            .and_then(|session| session.take_share(volume, server));
        let name = &self.entries[volume].name;
        // Noted before it happens: whatever goes wrong later, `finish` must know.
        let noted = self.runtime.begin_automatic(name);
        match (share, noted) {
            (Some(job), Ok(())) => {
                self.console.note(&format!("opening '{name}'"));
                self.worker.queue(job);
            }
            (_, noted) => {
                let why = noted
                    .err()
                    .map_or("its share is gone".to_owned(), |error| chain(&error));
                let refused = Event::NotOpened(volume, crate::flow::Refusal::Share(why));
                let _ = self.sender.send(Message::Worker(refused));
            }
        }
    }

    fn show_prompt(&mut self, volume: VolumeIndex, wrong: u32) {
        let Device::Present(device) = &self.devices[volume] else {
            return;
        };
        let question = Question {
            name: self.entries[volume].name.clone(),
            device: device.clone(),
            options: self.entries[volume].options.text.clone(),
            wrong,
        };
        // The last attempt's companion goes before the next one's comes.
        self.prompt.companion = None;
        self.prompt.number += 1;
        let (number, sender) = (self.prompt.number, self.sender.clone());
        let way = self.prompt.way;
        let prompt = Prompt::show(way, &question, &self.prompt.failures, move |result| {
            let _ = sender.send(Message::Prompt(number, result));
        });
        self.console.prompt(true);
        self.prompt.shown = Some(prompt);
    }

    async fn end_prompt(&mut self) {
        self.prompt.number += 1;
        self.console.prompt(false);
        if let Some(prompt) = self.prompt.shown.take() {
            self.prompt.companion = prompt.end().await;
        }
    }

    /// What `systemctl status` says while devices are waited for.
    fn missing(&self) -> Option<String> {
        let devices = self.entries.iter().zip(&self.devices);
        let missing = devices.filter(|(_, device)| matches!(device, Device::Missing));
        let names: Vec<_> = missing.map(|(entry, _)| entry.name.as_str()).collect();
        (!names.is_empty()).then(|| format!("waiting for the disk of '{}'", names.join("', '")))
    }

    /// Drops everything secret but a typed passphrase's volume keys, and takes the network down.
    async fn wipe(&mut self) {
        if let Some(session) = self.session.take() {
            session.end();
            self.console.note("credentials wiped");
        }
        if let NetworkState::Running(network, _) =
            std::mem::replace(&mut self.network, NetworkState::Over)
        {
            match tokio::time::timeout(NETWORK_LIMIT, network.take_down()).await {
                Ok(Ok(())) => self.console.note("network taken down"),
                Ok(Err(error)) => self.console.say(&format!("network: {}", chain(&error))),
                Err(_) => self.console.say("network: not taken down in time"),
            }
        }
    }
}

/// Reads the beginning of each device, in a thread of its own, and then calls `reached`, whether it could be read or not. A disk
/// that swallows what it is asked must not keep the thread that opens the others.
fn reach<'a>(devices: impl Iterator<Item = &'a Path>, reached: impl Fn() + Clone + Send + 'static) {
    let devices: Vec<PathBuf> = devices.map(Path::to_owned).collect();
    let then = reached.clone();
    let read = move || {
        for device in devices {
            let mut beginning = [0; 4096];
            let _ = File::open(device).and_then(|mut device| device.read(&mut beginning));
        }
        then();
    };
    let thread = Builder::new().name("device".to_owned()).spawn(read);
    if let Err(error) = thread {
        log::warn!("no thread to reach a device: {error}");
        reached();
    }
}

async fn next(network: &mut NetworkState) -> Option<NetworkEvent> {
    match network {
        NetworkState::Running(_, events) => events.recv().await,
        _ => None,
    }
}

/// What became of an opening that was noted before it began.
fn note_opening(runtime: &Runtime, entries: &[Entry], event: &Event) {
    let noted = match event {
        Event::Opened(volume) => runtime.end_automatic(&entries[*volume].name),
        Event::NotOpened(volume, _) => {
            let name = &entries[*volume].name;
            if mapping::name_is_taken(name) {
                return;
            }
            runtime.refuse_automatic(name)
        }
        _ => return,
    };
    if let Err(error) = noted {
        log::error!("{}", chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// A pipe that nobody writes to: whoever opens it waits.
    #[test]
    fn a_device_that_does_not_answer_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let (silent, file) = (folder.path().join("silent"), folder.path().join("file"));
        mkfifo(&silent, Mode::S_IRUSR).unwrap();
        fs::write(&file, "header").unwrap();
        let absent = folder.path().join("absent");
        let (reached, told) = channel();
        for (number, device) in [&silent, &file, &absent].into_iter().enumerate() {
            let reached = reached.clone();
            reach([&**device].into_iter(), move || {
                let _ = reached.send(number);
            });
        }
        let limit = Duration::from_secs(60);
        let mut found = [(); 2].map(|()| told.recv_timeout(limit).unwrap());
        found.sort();
        assert_eq!(found, [1, 2]);
        drop(fs::OpenOptions::new().write(true).open(&silent).unwrap());
        assert_eq!(told.recv_timeout(limit), Ok(0), "it answers late");
    }
}
