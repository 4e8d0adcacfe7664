//! What goes into the flow and what comes out of it: the plan, events, actions.

use std::num::NonZeroU32;
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::{Generation, ServerId, VolumeId};

/// A volume, by its place in [`Plan::volumes`].
pub type VolumeIndex = usize;
/// A key server, by its place in [`Plan::servers`].
pub type ServerIndex = usize;

/// What the flow is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The mappings of crypttab(5).
    pub volumes: Vec<PlannedVolume>,
    /// The key servers, in the order to ask them.
    pub servers: Vec<PlannedServer>,
    /// Why nothing may be opened automatically in this boot, if so: there is only the prompt then.
    pub only_prompt: Option<String>,
    /// Since start: when to give up on devices that are missing, as the boot framework would.
    pub device_limit: Duration,
    /// Makes the jitter of retries; any number.
    pub seed: u64,
}

/// A volume of a [`Plan`].
#[derive(Debug, Clone, Default)]
pub struct PlannedVolume {
    /// The mapping.
    pub name: String,
    /// Whether the boot does without it (`nofail`).
    pub optional: bool,
    /// How long people are prompted for it once no key server can open it in this boot.
    pub prompt_limit: PromptLimit,
}

/// What crypttab(5) says of a volume's prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptLimit {
    /// `tries=`: after so many wrong passphrases; no limit without it.
    pub tries: Option<NonZeroU32>,
    /// `timeout=`: after so long; no limit without it.
    pub timeout: Option<Duration>,
}

impl PromptLimit {
    /// Why the prompt ends after so many wrong passphrases and so long a time; `None` if it goes on.
    pub fn reached(&self, wrong: u32, stood: Duration) -> Option<String> {
        if let Some(tries) = self.tries.filter(|tries| wrong >= tries.get()) {
            return Some(format!(
                "wrong passphrases: {wrong}, and crypttab says 'tries={tries}'"
            ));
        }
        let timeout = self.timeout.filter(|timeout| stood >= *timeout)?;
        Some(format!(
            "no passphrase opened it in time, and crypttab says 'timeout={}'",
            timeout.as_secs()
        ))
    }
}

/// A key server of a [`Plan`].
#[derive(Debug, Clone)]
pub struct PlannedServer {
    /// Which.
    pub id: ServerId,
    /// Its addresses as people know them, in the order to try them.
    pub addresses: Vec<String>,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Only time has passed.
    Tick,
    /// The network is ready for use.
    NetworkUp,
    /// The network went away, or does not come up: why.
    NetworkTrouble(String),
    /// A volume's device appeared; its header is being read.
    Found(VolumeIndex),
    /// A volume's device appeared and its header was read.
    Device(VolumeIndex, Header),
    /// What people should know of a volume before they type its passphrase.
    Warned(VolumeIndex, String),
    /// The answer to the [`Action::Ask`] of that number.
    Answered(u64, Answer),
    /// [`Action::Open`] made the mapping.
    Opened(VolumeIndex),
    /// [`Action::Open`] was refused or failed; nothing is mapped.
    NotOpened(VolumeIndex, Refusal),
    /// A passphrase was typed; the shell holds it.
    Typed,
    /// The prompt ended without a passphrase.
    PromptLost(PromptLoss),
    /// [`Action::TryPassphrase`] has opened a keyslot of one volume; the others are still being tried.
    KeyslotOpened,
    /// The result of [`Action::TryPassphrase`].
    Tried(Tried),
    /// [`Action::Activate`] made the mapping; a warning if the volume is not what was bound.
    Activated(VolumeIndex, Option<String>),
    /// [`Action::Activate`] failed: why.
    NotActivated(VolumeIndex, String),
    /// [`Action::Activate`] found something that the native unlocker has to decide: what.
    Left(VolumeIndex, String),
    /// There is a mapping of its name that we did not make: whose.
    Taken(VolumeIndex, String),
    /// The boot goes on without us.
    Stop,
}

/// What a volume's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// It carries no latchkey token: the framework's own business.
    NotBound,
    /// Its name at the key servers, the envelopes of its token, and what the shell shows of it to the key servers.
    Bound(VolumeId, Vec<(ServerId, Generation)>, Shown),
    /// The same of a volume that only a volume key opens: no passphrase ever does.
    BoundByKey(VolumeId, Vec<(ServerId, Generation)>, Shown),
    /// It was bound once, but neither a key server nor a prompt of ours could open it now: why. The native unlocker may.
    LeftAlone(String),
    /// It carries a token, but nothing can be opened automatically: why.
    Unusable(String),
}

/// What key servers want to see of a header; the flow decides nothing by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The ticket for each key server that gave one.
    pub tickets: Vec<(ServerId, Bytes<32>)>,
    /// Of the facts that were bound, as the header now has them.
    pub fingerprint: Bytes<32>,
}

/// Why an automatic opening did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The volume is not as it was bound: automatic opening of it is over for this boot.
    Gate(String),
    /// This key server's share does not open it; another's may.
    Share(String),
}

/// A key server's answer, without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// One verdict a volume.
    Verdicts(Vec<(VolumeIndex, Verdict)>),
    /// Not reached, not to be trusted, or not understood: the next address may do better.
    Fault(String),
    /// It answers, but not now; at the earliest after this time.
    Busy(Duration),
    /// It does not know this machine's boot key.
    Refused,
}

/// A key server's verdict on one volume, without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The shell holds the share.
    Released,
    /// A person has to approve.
    Pending {
        /// The request's short number.
        id: String,
        /// The code that the console shows.
        code: String,
        /// When to ask again.
        retry: Duration,
    },
    /// Not decided yet, and no person is needed for it.
    Wait {
        /// What the key server waits for.
        reason: String,
        /// When to ask again.
        retry: Duration,
    },
    /// Refused for now.
    Denied {
        /// Why.
        reason: String,
        /// When to ask again.
        retry: Duration,
    },
    /// Gone for good.
    Destroyed,
}

/// The end of a prompt without a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptLoss {
    /// An empty line, or the program died: ask again.
    Again,
    /// There is no way to prompt on this machine.
    Impossible,
}

/// What became of a typed passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// It opens a keyslot of these volumes; the shell holds their volume keys.
    Right(Vec<VolumeIndex>),
    /// It opens none.
    Wrong,
    /// It could not be tried everywhere, and opened nothing where it could: why.
    Failed(String),
}

/// Something for the shell to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask a key server for the shares of these volumes.
    Ask {
        /// Comes back with the answer.
        number: u64,
        /// The server.
        server: ServerIndex,
        /// Which of its addresses.
        address: usize,
        /// The volumes and the generations that their envelopes need.
        volumes: Vec<(VolumeIndex, VolumeId, Generation)>,
    },
    /// Forget the request that is under way, if any.
    CancelAsk,
    /// Open a volume with the share that this server released, through the gate.
    Open(VolumeIndex, ServerIndex),
    /// The native unlocker need not wait for this volume any more: we can do nothing for it.
    Leave(VolumeIndex),
    /// Prompt for this volume's passphrase; so many were wrong before.
    Prompt(VolumeIndex, u32),
    /// Take the prompt away.
    EndPrompt,
    /// Try the typed passphrase on these volumes' keyslots, without mapping anything.
    TryPassphrase(Vec<VolumeIndex>),
    /// Map this volume with the key that the typed passphrase opened.
    Activate(VolumeIndex),
    /// Forget the volume keys that the typed passphrase opened, those that were mapped excepted.
    ForgetTyped,
    /// Wipe boot key, session key, shares and machine secrets, and take the network down: nothing more will be
    /// asked.
    Wipe,
    /// Tell people and the log.
    Say(String),
    /// Show this line above the prompt.
    Status(String),
    /// No bound volume is there yet: the framework may go on looking for devices (true), or not (false).
    WaitForDevices(bool),
    /// Call again with [`Event::Tick`] at this time.
    WakeAt(Duration),
    /// Leave.
    Finish(Outcome),
}

/// How the flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every bound volume is open.
    Open,
    /// No volume here is bound.
    NothingBound,
    /// A device did not appear in time; what was there is open.
    DeviceMissing,
    /// What the boot needs is open; it does not wait for the rest.
    OptionalLeft,
    /// Told to stop.
    Stopped,
    /// There is nothing more that we could do; the native prompt can.
    NativePrompt,
}
