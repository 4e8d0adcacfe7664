//! Which policy is in force: the most specific one, whole.

use std::fmt;

use crate::clock::UnixMillis;
use crate::policy::Policy;
use crate::records::{Client, Group, GroupName, Origin, Volume};

/// A policy in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InForce<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// When it was set.
    pub set: UnixMillis,
    /// Whose it is.
    pub scope: Scope<'a>,
}

/// Whose policy is in force for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// The volume's own.
    Volume,
    /// The volume's, from a version that did not yet know whether somebody had set it: it counts as its own.
    Before,
    /// Its client's.
    Client,
    /// Its client's group's.
    Group(&'a GroupName),
    /// Nobody set one: what the volume was given when it was bound.
    Bound,
}

/// The policy in force for `volume`: its own, or its client's, or its client's group's, or what it was bound with.
pub fn in_force<'a>(
    volume: &'a Volume,
    client: &'a Client,
    group: Option<&'a Group>,
) -> InForce<'a> {
    let own = |set, scope| InForce {
        policy: &volume.policy,
        set,
        scope,
    };
    match volume.origin {
        Origin::Before => return own(volume.created, Scope::Before),
        Origin::Set(at) => return own(at, Scope::Volume),
        Origin::Bound => {}
    }
    if let Some(found) = &client.policy {
        return InForce {
            policy: &found.policy,
            set: found.set,
            scope: Scope::Client,
        };
    }
    let group = group.filter(|group| client.group.as_ref() == Some(&group.name));
    if let Some((group, found)) = group.and_then(|group| Some((group, group.policy.as_ref()?))) {
        return InForce {
            policy: &found.policy,
            set: found.set,
            scope: Scope::Group(&group.name),
        };
    }
    own(volume.created, Scope::Bound)
}

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume => f.write_str("set for the volume"),
            Self::Before => f.write_str(
                "kept from an earlier version of latchkeyd, and goes before the client's and the group's",
            ),
            Self::Client => f.write_str("set for the client"),
            Self::Group(name) => write!(f, "set for the group '{name}'"),
            Self::Bound => f.write_str("given when it was bound"),
        }
    }
}
