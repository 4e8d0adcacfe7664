//! The question to systemd's password agents that stands beside the requests: a passphrase opens the volume in any state.
//!
//! systemd-cryptsetup would ask the same way; it is kept back as long as latchkey is at work. Where crypttab says
//! `headless`, nobody is asked.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::failure::chain;
use crate::files::Files;
use crate::flow::PromptLoss;
use crate::unlock::prompt::{Failures, Prompt, PromptResult, Question, Way};
use crate::volume::binding;
use crate::volume::crypttab::Entry;
use crate::volume::place::Place;
use crate::volume::typed::{PassphraseError, check_typed};

/// The question, whether it stands or not yet.
pub struct Typing<'a> {
    files: &'a Files,
    entry: &'a Entry,
    sender: UnboundedSender<PromptResult>,
    answers: UnboundedReceiver<PromptResult>,
    failures: Failures,
    shown: Option<Prompt>,
    wrong: u32,
}

impl<'a> Typing<'a> {
    /// Asks nothing before [`Typing::begin`].
    pub fn new(files: &'a Files, entry: &'a Entry) -> Self {
        let (sender, answers) = unbounded_channel();
        Self {
            files,
            entry,
            sender,
            answers,
            failures: Failures::default(),
            shown: None,
            wrong: 0,
        }
    }

    /// Puts the question, if there is anybody to put it to.
    pub fn begin(&mut self) {
        if is_headless(&self.entry.options.text) || Way::of_this_boot() != Way::PasswordAgents {
            return;
        }
        let question = Question {
            name: self.entry.name.clone(),
            device: self.place().map(|place| place.device).unwrap_or_default(),
            options: self.entry.options.text.clone(),
            wrong: self.wrong,
        };
        let sender = self.sender.clone();
        // The last question goes before the next one comes.
        self.shown = None;
        self.shown = Some(Prompt::show(
            Way::PasswordAgents,
            &question,
            &self.failures,
            move |result| {
                let _ = sender.send(result);
            },
        ));
    }

    /// What somebody typed, as soon as somebody does. May be dropped and called again.
    pub async fn answer(&mut self) -> PromptResult {
        match self.answers.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await, // not while `sender` is there
        }
    }

    /// Opens the volume with what was typed; how it is open then, for people. Else the question is put again.
    pub fn try_answer(&mut self, answer: PromptResult) -> Option<String> {
        match answer {
            Ok(passphrase) => match self.open(&passphrase) {
                Ok(()) => {
                    self.shown = None;
                    return Some("open: a passphrase was typed".to_owned());
                }
                Err(why) => {
                    self.wrong += 1;
                    log::warn!("'{}': {why}", self.entry.name);
                }
            },
            Err(PromptLoss::Impossible) => {
                log::warn!(
                    "'{}': nobody can be asked for a passphrase; the key servers are asked on",
                    self.entry.name
                );
                self.shown = None;
                return None;
            }
            Err(_) => {}
        }
        self.begin();
        None
    }

    fn open(&self, passphrase: &latchkey_secret::SecretBytes) -> Result<(), String> {
        let place = self.place().ok_or("the device is not there")?;
        let found = binding::find(self.files, &self.entry.name, &place).unwrap_or_default();
        let token = found.into_iter().find_map(|found| found.token.ok());
        let key = check_typed(self.entry, &place, token.as_ref(), passphrase);
        let key = key.map_err(|error| chain(&error))?;
        if let Some(Err(mismatch)) = token.as_ref().map(|token| key.matches_bound(token)) {
            log::warn!("'{}': {}", self.entry.name, chain(&mismatch));
        }
        match key.activate(self.entry) {
            Ok(_) | Err(PassphraseError::AlreadyOpen(_)) => Ok(()),
            Err(error) => Err(chain(&error)),
        }
    }

    fn place(&self) -> Option<Place> {
        Place::of_entry(self.entry, self.files).ok()?
    }
}

/// `headless` or `headless=BOOLEAN`, as systemd has it (crypttab(5)); the last one holds.
fn is_headless(options: &str) -> bool {
    let value = |option: &str| match option.trim().split_once('=') {
        None if option.trim() == "headless" => Some(true),
        Some(("headless", value)) => Some(matches!(
            value.to_ascii_lowercase().as_str(),
            "1" | "y" | "yes" | "t" | "true" | "on"
        )),
        _ => None,
    };
    options
        .split(',')
        .filter_map(value)
        .next_back()
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headless_is_a_boolean_of_systemd() {
        for (options, expected) in [
            ("luks", false),
            ("luks,headless,nofail", true),
            ("headless=1", true),
            ("headless=Yes", true),
            ("headless=true", true),
            ("headless=no", false),
            ("headless,headless=0", false),
            ("headlessly", false),
        ] {
            assert_eq!(is_headless(options), expected, "{options}");
        }
    }
}
