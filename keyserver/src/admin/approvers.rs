//! Who may approve and deny boots over the administrator's socket.

use std::collections::BTreeSet;

use nix::unistd::Uid;

use crate::policy::Approval;
use crate::users;

const ROOT: &str = "root";

/// Users beside root, and the server's own user, who may approve.
#[derive(Debug)]
pub struct Approvers {
    listed: Vec<String>,
    own: String,
}

impl Approvers {
    /// `listed` are those that the configuration names.
    pub fn new(listed: Vec<String>) -> Self {
        Self {
            listed,
            own: users::name(Uid::effective().as_raw()),
        }
    }

    /// Whether the configuration names the user `name`.
    pub fn has(&self, name: &str) -> bool {
        self.listed.iter().any(|listed| listed == name)
    }

    /// Why nobody can give what `approval` wants, if it is so today; on a second line what to do.
    pub fn shortage(&self, approval: &Approval) -> Option<String> {
        let listed = self.listed.iter().map(String::as_str);
        let able: BTreeSet<&str> = match approval.by.as_slice() {
            // Whoever is root may be the server's user as well, and is one person.
            [] => listed
                .filter(|name| *name != self.own)
                .chain([ROOT])
                .collect(),
            by => listed
                .chain([ROOT, self.own.as_str()])
                .filter(|name| by.iter().any(|one| one == name))
                .collect(),
        };
        if able.len() >= approval.count {
            return None;
        }
        let must = match approval.count {
            1 => "1 person must approve".to_owned(),
            count => format!("{count} people must approve"),
        };
        let of = match approval.by.as_slice() {
            [] => String::new(),
            by => format!(", of {}", by.join(", ")),
        };
        let can = match able.is_empty() {
            true => "none of them can".to_owned(),
            false => format!("only {} can", Vec::from_iter(able).join(", ")),
        };
        Some(format!(
            "{must}{of}, and {can}: what this policy asks for is never approved\nname more users in 'approvers' of latchkeyd.toml(5) and restart latchkeyd, or let others approve"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_nobody_can_approve_is_told_from_others() {
        for (listed, count, by, said) in [
            (&[][..], 1, &[][..], None),
            (
                &[],
                2,
                &[],
                Some("2 people must approve, and only root can"),
            ),
            (&[], 1, &["root"], None),
            (&[], 1, &["latchkeyd"], None),
            (
                &[],
                1,
                &["nobodyhere"],
                Some("1 person must approve, of nobodyhere, and none of them can"),
            ),
            (&["alice"], 2, &[], None),
            (&["latchkeyd", "root"], 2, &[], Some("and only root can")),
            (&["alice"], 3, &[], Some("and only alice, root can")),
            (&["alice"], 1, &["alice", "bob"], None),
            (
                &["alice"],
                2,
                &["alice", "bob"],
                Some("2 people must approve, of alice, bob, and only alice can"),
            ),
        ] {
            let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let approvers = Approvers {
                listed: owned(listed),
                own: "latchkeyd".to_owned(),
            };
            let approval = Approval {
                count,
                by: owned(by),
                ..Approval::default()
            };
            let found = approvers.shortage(&approval);
            assert_eq!(
                found.is_some(),
                said.is_some(),
                "{listed:?} {approval:?}: {found:?}"
            );
            if let (Some(found), Some(said)) = (found, said) {
                assert!(found.contains(said), "{found}");
            }
        }
    }
}
