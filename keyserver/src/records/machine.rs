//! What the key server remembers of a machine's life: when it was heard of, its images, an announced reboot. And of groups
//! of machines. The rules by which these move on are here, without I/O.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, IdError, RequestId};
use latchkey_protocol::wire::IMAGES_LIMIT;
use serde::{Deserialize, Serialize};

use super::{Record, key};
use crate::clock::{UnixMillis, Uptime};
use crate::policy::Policy;

/// How long a boot session may fetch what was released to it once.
pub const FETCH: Duration = Duration::from_secs(600);
/// Between two durable notes that a machine was heard of.
const HEARD_STEP: Duration = Duration::from_secs(60);

/// A group's name: what a client's name may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupName(ClientName);

/// Machines that share a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// When it was made.
    pub created: UnixMillis,
    /// Its policy.
    pub policy: Option<SetPolicy>,
}

/// A policy that an administrator set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// The policy.
    pub policy: Policy,
    /// When it was set: setting it again allows a one-time release again.
    pub set: UnixMillis,
}

/// One boot: the request id that its agent drew and the key that it made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSession {
    /// The request id.
    pub request: RequestId,
    /// The key.
    pub ephemeral_key: Bytes<32>,
    /// When something was released to it first.
    pub at: UnixMillis,
}

/// What is remembered of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Whose it is.
    pub client: ClientName,
    /// When its host key spoke last, to the minute.
    pub heard: Option<Heard>,
    /// The boot session that the running system came up by, as it said last.
    pub boot: Option<RequestId>,
    /// Images that were built on it, the newest first.
    pub images: Vec<Bytes<32>>,
    /// An announced reboot.
    pub armed: Option<Armed>,
    /// When its host certificate was made.
    pub certified: Option<UnixMillis>,
}

/// When a machine was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heard {
    /// By the clock on the wall, for people.
    pub at: UnixMillis,
    /// By the time that the key server has run.
    pub uptime: Uptime,
}

/// An announced reboot: one boot session is expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Armed {
    /// When it was announced.
    pub at: UnixMillis,
    /// Until when.
    pub until: UnixMillis,
    /// Which administrator did it; none: the machine.
    pub by: Option<String>,
    /// The boot session that the machine ran in then, as it had said last.
    pub boot: Option<RequestId>,
    /// The boot sessions that something had been released to by then: the machine may run in one that it has not told of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<RequestId>,
    /// The boot session that used it up.
    pub used: Option<BootSession>,
}

impl BootSession {
    /// The session of this request and key.
    pub fn is(&self, request: RequestId, ephemeral_key: &Bytes<32>) -> bool {
        self.request == request && self.ephemeral_key == *ephemeral_key
    }

    /// Whether it is this session, and may still fetch.
    pub fn fetches(&self, request: RequestId, ephemeral_key: &Bytes<32>, now: UnixMillis) -> bool {
        self.is(request, ephemeral_key) && now.is_within(self.at, self.at.plus(FETCH))
    }
}

impl Machine {
    /// A machine of which nothing is known.
    pub fn new(client: ClientName) -> Self {
        Self {
            client,
            heard: None,
            boot: None,
            images: Vec::new(),
            armed: None,
            certified: None,
        }
    }

    /// Notes that its host key spoke.
    pub fn hear(&mut self, heard: Heard) {
        let recent = |before: Heard| {
            before.uptime <= heard.uptime && heard.uptime.since(before.uptime) < HEARD_STEP
        };
        if !self.heard.is_some_and(recent) {
            self.heard = Some(heard);
        }
    }

    /// Announces a reboot; an earlier announcement ends. `earlier` are the boot sessions that something was released to.
    pub fn arm(
        &mut self,
        now: UnixMillis,
        lifetime: Duration,
        by: Option<String>,
        earlier: Vec<RequestId>,
    ) -> UnixMillis {
        let until = now.plus(lifetime);
        self.armed = Some(Armed {
            at: now,
            until,
            by,
            boot: self.boot,
            earlier,
            used: None,
        });
        until
    }

    /// Takes what a heartbeat says. One that comes after the announcement was used ends it, and so does one from a boot
    /// that is not known to have begun before it: a typed passphrase may have opened that one. `Unused` if so.
    pub fn beat(&mut self, boot: Option<RequestId>, images: &[Bytes<32>]) -> Announced {
        let announced = match &self.armed {
            Some(armed) if armed.used.is_some() => Announced::Over,
            Some(armed) if armed.is_of_later(boot) => Announced::Unused,
            _ => Announced::AsBefore,
        };
        if announced != Announced::AsBefore {
            self.armed = None;
        }
        self.boot = boot;
        self.images = images.iter().take(IMAGES_LIMIT).copied().collect();
        announced
    }

    /// Notes that something was released to `session` because its boot was announced.
    pub fn booted_as_announced(&mut self, session: BootSession) {
        if let Some(armed) = &mut self.armed {
            armed.used.get_or_insert(session);
        }
    }
}

/// What a heartbeat says of an announced reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// There is none, or it has yet to come.
    AsBefore,
    /// The machine has come up by it.
    Over,
    /// The machine has come up without it.
    Unused,
}

impl Armed {
    /// Whether a system that came up by `boot` did so after the announcement. One that came up without any session, where no
    /// agent asked, is another one than that which had named its own; of two without nobody can tell.
    fn is_of_later(&self, boot: Option<RequestId>) -> bool {
        match boot {
            Some(boot) => self.boot != Some(boot) && !self.earlier.contains(&boot),
            None => self.boot.is_some(),
        }
    }

    /// Whether it expects this session at `now`.
    pub fn expects(&self, request: RequestId, ephemeral_key: &Bytes<32>, now: UnixMillis) -> bool {
        match &self.used {
            None => now.is_within(self.at, self.until),
            Some(used) => used.fetches(request, ephemeral_key, now),
        }
    }
}

impl Record for Group {
    fn key(&self) -> String {
        key::group(&self.name)
    }
}

impl Record for Machine {
    fn key(&self) -> String {
        key::machine(&self.client)
    }
}

impl FromStr for GroupName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn session(number: u8, at: UnixMillis) -> BootSession {
        BootSession {
            request: format!("{number:032x}").parse().unwrap(),
            ephemeral_key: Bytes([number; 32]),
            at,
        }
    }

    #[test]
    fn an_announced_reboot_is_for_one_session_and_ends() {
        let mut machine = Machine::new("web-1".parse().unwrap());
        let until = machine.arm(NOW, 15 * MINUTE, None, Vec::new());
        let expects = |machine: &Machine, number: u8, now: UnixMillis| {
            let session = session(number, now);
            let armed = machine.armed.as_ref();
            armed.is_some_and(|armed| armed.expects(session.request, &session.ephemeral_key, now))
        };
        assert!(expects(&machine, 1, NOW) && expects(&machine, 2, NOW));
        assert!(!expects(&machine, 1, until));
        machine.booted_as_announced(session(1, NOW));
        machine.booted_as_announced(session(2, NOW));
        assert!(expects(&machine, 1, NOW.plus(9 * MINUTE)));
        assert!(!expects(&machine, 1, NOW.plus(FETCH)));
        assert!(!expects(&machine, 2, NOW));
        machine.beat(machine.boot, &[]);
        assert!(!expects(&machine, 1, NOW), "it is up");
    }

    #[test]
    fn a_heartbeat_before_the_reboot_leaves_the_announcement_and_one_after_ends_it() {
        let [one, other] = [1, 2].map(|number| Some(session(number, NOW).request));
        for (before, after, ends) in [
            (one, other, true),
            (None, one, true),
            // No agent ran where the passphrase was typed.
            (one, None, true),
            (None, None, false),
        ] {
            let mut machine = Machine::new("web-1".parse().unwrap());
            machine.beat(before, &[]);
            machine.arm(NOW, 15 * MINUTE, None, Vec::new());
            machine.beat(before, &[]);
            assert!(machine.armed.is_some(), "{before:?}");
            machine.beat(after, &[]);
            assert_eq!(machine.armed.is_none(), ends, "{before:?} {after:?}");
        }
    }
}
