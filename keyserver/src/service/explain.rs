//! What a policy would say of a request, made up or from the audit: for `latchkeyd policy test`. Nothing is released and
//! nothing changes.

use std::net::IpAddr;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{RequestId, VolumeId};
use latchkey_protocol::release::Purpose;
use latchkey_protocol::wire::{BootFacts, Text, WantedVolume};
use serde::{Deserialize, Serialize};

use super::asked::home;
use super::policies::{owner, volume_record};
use super::{AdminError, Service};
use crate::audit::{self, AuditEntry, Head};
use crate::clock::UnixMillis;
use crate::policy::{
    self, Change, Finding, Life, Policy, PolicyRequest, Standing, StoreState, StoredState, Sum,
};
use crate::records::{Armed, Client, Machine, Trace, Volume, key};
use crate::sealed::RecordError;

/// Entries of the audit that are searched for a request, the newest first.
const SEARCHED: u64 = 100_000;
/// How many of them are read at once.
const PAGE: u64 = 500;

/// A request to think of. What is not said is as at the volume's last boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Supposed {
    /// The volume that is asked for.
    pub volume: VolumeId,
    /// A policy to try in place of the one in force.
    pub policy: Option<Policy>,
    /// A boot session of the audit: its address and time.
    pub request: Option<RequestId>,
    /// From where.
    pub peer: Option<IpAddr>,
    /// When.
    pub at: Option<UnixMillis>,
    /// What ticket the header shows.
    pub ticket: SupposedTicket,
    /// Whether the running machine answers.
    pub life: SupposedLife,
    /// Whether the reboot was announced.
    pub announced: bool,
    /// What has changed since the last boot.
    pub changed: Vec<Change>,
}

/// The ticket of a [`Supposed`] request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SupposedTicket {
    /// The one of the last boot.
    #[default]
    Good,
    /// An earlier one.
    Stale,
    /// None.
    Missing,
}

/// The running machine of a [`Supposed`] request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SupposedLife {
    /// It does not answer.
    #[default]
    Silent,
    /// It answers.
    Alive,
}

/// What would come of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// Whose policy was asked.
    pub scope: String,
    /// It in one sentence.
    pub policy_text: String,
    /// What it does not stop.
    pub limits: String,
    /// From where the request comes.
    pub peer: IpAddr,
    /// When.
    pub at: UnixMillis,
    /// What each condition says.
    pub findings: Vec<Finding>,
    /// What that comes to.
    pub outcome: String,
    /// What the audit has of the request, if it is one of it.
    pub history: Vec<AuditEntry>,
}

impl Service {
    /// What the policy would say of a request.
    ///
    /// # Errors
    /// `NoVolume`, `NoRequest`, `Policy`, `Record`.
    pub fn explain(&self, supposed: &Supposed) -> Result<Explanation, AdminError> {
        if let Some(policy) = &supposed.policy {
            policy.check().map_err(AdminError::Policy)?;
        }
        let now = self.clock.now();
        let uptime = self.uptime()?;
        let history = match &supposed.request {
            Some(request) => self.history(request)?,
            None => Vec::new(),
        };
        let first = history
            .iter()
            .find(|entry| entry.event.volume.is_none_or(|id| id == supposed.volume));
        let at = supposed
            .at
            .or_else(|| first.map(|entry| entry.time))
            .unwrap_or(now);
        self.records.transact(now, |work| {
            let volume = volume_record(work, &supposed.volume)?;
            let (client, group) = owner(work, &volume)?;
            let found = policy::in_force(&volume, &client, group.as_ref());
            let trace: Option<Trace> = work.read(&key::trace(&volume.id))?;
            let machine: Option<Machine> = work.read(&key::machine(&client.name))?;
            // One that is tried was not set before anything that was released: no boot has used it up.
            let (policy, set, scope) = match &supposed.policy {
                Some(policy) => (policy, UnixMillis(u64::MAX), "not set yet".to_owned()),
                None => (found.policy, found.set, found.scope.to_string()),
            };
            let peer = supposed
                .peer
                .or_else(|| first.and_then(|entry| entry.event.peer))
                .or_else(|| last_address(trace.as_ref(), &client))
                .ok_or_else(|| AdminError::Policy("say from which address: --from".to_owned()))?
                .to_canonical();
            let scene = Scene::new(supposed, trace.as_ref(), machine, &client, at);
            let request = scene.request(&client, &volume, peer);
            let state = StoredState {
                volume: Some(&volume),
                policy,
                policy_set: set,
                home: home(&volume, &client),
                session: None,
                machine: Some(&scene.machine),
                trace: trace.as_ref(),
                life: match supposed.life {
                    SupposedLife::Silent => Life::Silent,
                    SupposedLife::Alive => Life::Alive,
                },
                store: StoreState::Newest,
                uptime,
            };
            let findings = policy::findings(policy, &request, state, at);
            Ok(Explanation {
                outcome: outcome(policy, &findings, &client, &volume),
                scope,
                policy_text: policy.sentence(),
                limits: policy.limits().to_owned(),
                peer,
                at,
                findings,
                history: history.clone(),
            })
        })
    }

    /// The place of the audit's last entry; 0 if there is none.
    ///
    /// # Errors
    /// The store's.
    pub fn audit_end(&self) -> Result<u64, RecordError> {
        let head: Option<Head> = self.records.read(audit::HEAD)?;
        Ok(head.map_or(0, |head| head.sequence))
    }

    /// What the audit has of a boot session, the oldest first.
    ///
    /// # Errors
    /// `NoRequest`, `Record`.
    pub fn history(&self, request: &RequestId) -> Result<Vec<AuditEntry>, AdminError> {
        let end = self.audit_end()?;
        let mut found = Vec::new();
        let mut after = end;
        while after > end.saturating_sub(SEARCHED) && after > 0 {
            after = after.saturating_sub(PAGE);
            let page = self.audit(after, usize::try_from(PAGE).unwrap_or(usize::MAX))?;
            let of_it: Vec<AuditEntry> = page
                .into_iter()
                .filter(|entry| entry.event.request == Some(*request))
                .collect();
            // Entries of one boot lie together; a gap of a page ends the search.
            let gap = of_it.is_empty() && !found.is_empty();
            found.splice(0..0, of_it);
            if gap {
                break;
            }
        }
        match found.is_empty() {
            true => Err(AdminError::NoRequest(request.to_string())),
            false => Ok(found),
        }
    }
}

/// A request that nobody made.
struct Scene {
    facts: BootFacts,
    ticket: Option<Bytes<32>>,
    machine: Machine,
    request: RequestId,
    key: Bytes<32>,
}

impl Scene {
    fn new(
        supposed: &Supposed,
        trace: Option<&Trace>,
        machine: Option<Machine>,
        client: &Client,
        at: UnixMillis,
    ) -> Self {
        let last = trace.and_then(|trace| trace.last.as_ref());
        let mut facts = BootFacts {
            kernel: Text::cut(last.map_or("", |last| &last.kernel)),
            command_line: last.map_or(Bytes([0; 32]), |last| last.command_line),
            image_built: 0,
            image: last.and_then(|last| last.image),
            header: last.and_then(|last| last.header),
        };
        for change in &supposed.changed {
            let other = Bytes([0xa5; 32]);
            match change {
                Change::Kernel => facts.kernel = Text::cut("another kernel"),
                Change::CommandLine => facts.command_line = other,
                Change::Image => facts.image = Some(other),
                Change::Header => facts.header = Some(other),
                // That is what the address is for.
                Change::Address => {}
            }
        }
        let current = trace.and_then(|trace| trace.current.or(trace.next));
        let mut machine = machine.unwrap_or_else(|| Machine::new(client.name.clone()));
        if supposed.announced {
            machine.armed = Some(Armed {
                at,
                until: UnixMillis(u64::MAX),
                by: None,
                boot: None,
                earlier: Vec::new(),
                used: None,
            });
        }
        Self {
            facts,
            ticket: match supposed.ticket {
                SupposedTicket::Good => current,
                SupposedTicket::Stale => current.map(|ticket| Bytes(ticket.0.map(|byte| !byte))),
                SupposedTicket::Missing => None,
            },
            machine,
            request: supposed.request.unwrap_or_else(no_request),
            key: Bytes([0; 32]),
        }
    }

    fn request<'a>(
        &'a self,
        client: &'a Client,
        volume: &Volume,
        peer: IpAddr,
    ) -> PolicyRequest<'a> {
        PolicyRequest {
            purpose: match volume.opened_by.is_in_initramfs() {
                true => Purpose::Release,
                false => Purpose::Opening,
            },
            client: &client.name,
            standing: Standing::Good,
            request: self.request,
            ephemeral_key: &self.key,
            peer,
            wanted: WantedVolume {
                volume: volume.id,
                generation: volume.generation,
            },
            ticket: self.ticket.as_ref(),
            facts: &self.facts,
        }
    }
}

fn outcome(policy: &Policy, findings: &[Finding], client: &Client, volume: &Volume) -> String {
    if volume.state != crate::records::VolumeState::Live {
        return "refused: the share is gone for good".to_owned();
    }
    if client.revoked.is_some() {
        return "refused: the client is revoked".to_owned();
    }
    if client.locked.is_some() {
        return "refused: the client is locked out".to_owned();
    }
    match policy::sum(policy, findings) {
        Sum::Release => "released without a person".to_owned(),
        Sum::Wait => "the running machine is asked first".to_owned(),
        Sum::Deny(condition) => format!("refused because of '{}'", condition.name()),
        Sum::Ask => match policy.approval.count {
            1 => "a person is asked".to_owned(),
            count => format!("{count} people are asked"),
        },
    }
}

fn last_address(trace: Option<&Trace>, client: &Client) -> Option<IpAddr> {
    let last = trace.and_then(|trace| trace.last.as_ref());
    let joined = client.joined.as_ref();
    last.map(|last| last.peer)
        .or_else(|| joined.map(|joined| joined.from))
}

/// The id of no boot: agents draw theirs at random.
fn no_request() -> RequestId {
    "00000000000000000000000000000000"
        .parse()
        .expect("32 hexadecimal digits are a request id")
}
