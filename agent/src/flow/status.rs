//! The one line above the prompt: why the automatic way is not, or not yet, working.

use super::asking::Said;
use super::{Action, Flow, Network, Prompt, Volume};

impl Flow {
    /// Shows the line when it has changed; it changes with the state, not with every retry.
    pub(super) fn tell_status(&mut self, actions: &mut Vec<Action>) {
        if let Some(line) = self.status_line()
            && line != self.status
        {
            actions.push(Action::Status(line.clone()));
            self.status = line;
        }
    }

    fn status_line(&self) -> Option<String> {
        // There is no prompt to stand above while a passphrase is being tried.
        if !self.volumes.iter().any(Volume::is_locked) || self.prompt == Prompt::Trying {
            return None;
        }
        if let Some(reason) = &self.only_prompt {
            return Some(format!("no automatic opening in this boot: {reason}"));
        }
        let mut locked = self.volumes.iter().filter(|volume| volume.is_locked());
        let refused = locked.clone().find_map(|volume| volume.refused.as_deref());
        // A volume whose disk is missing keeps the credentials, but not the hope for these.
        if !self.credentials || locked.all(|volume| volume.refused.is_some()) {
            let why = refused.unwrap_or("the credentials were wiped");
            return Some(format!("no automatic opening: {why}"));
        }
        if let Network::Down(why) = &self.network {
            return Some(why.clone());
        }
        let said: Vec<_> = self
            .asking
            .servers()
            .iter()
            .filter_map(|server| server.said.line())
            .collect();
        if said.is_empty() {
            Some("asking the key server".to_owned())
        } else {
            Some(said.join("; "))
        }
    }
}

impl Said {
    fn line(&self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Unreachable(why) => Some(format!("no key server answers, trying on: {why}")),
            Self::Busy => Some("the key server is busy, asking again".to_owned()),
            Self::Pending { id, code } => {
                Some(format!("waiting for approval of request {id}, code {code}"))
            }
            Self::Waiting(reason) => Some(format!("not yet: {reason}")),
            Self::Denied(reason) => Some(format!("the key server denied: {reason}")),
            Self::Refused => {
                Some("the key server denied: the key server refuses this machine".to_owned())
            }
            Self::Destroyed => Some("the key server destroyed the share for good".to_owned()),
        }
    }
}
