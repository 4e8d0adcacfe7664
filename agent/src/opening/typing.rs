//! The question to systemd's password agents that stands beside the requests: a passphrase opens the volume in any state.
//!
//! systemd-cryptsetup would ask the same way; it is kept back as long as latchkey is at work. Where crypttab says
//! `headless`, nobody is asked, and nobody any more after its `tries=` or `timeout=`; the key servers are asked on.

use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

use crate::failure::chain;
use crate::files::Files;
use crate::flow::{PromptLimit, PromptLoss};
use crate::unlock::prompt::{self, Failures, Prompt, PromptResult, Question, Way};
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
    limit: PromptLimit,
    /// When it was first put, as long as it is put again.
    begun: Option<Instant>,
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
            limit: prompt::limit(&entry.options),
            begun: None,
        }
    }

    /// Puts the question, if there is anybody to put it to.
    pub fn begin(&mut self) {
        if is_headless(&self.entry.options.text) || Way::of_this_boot() != Way::PasswordAgents {
            return;
        }
        self.begun = Some(Instant::now());
        self.put();
    }

    fn put(&mut self) {
        if let Some(why) = self.over() {
            self.end(&format!(
                "nobody is asked for its passphrase any more: {why}"
            ));
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

    /// Why the question is not put again, once that is so.
    fn over(&self) -> Option<String> {
        let stood = self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        self.limit.reached(self.wrong, stood)
    }

    fn end(&mut self, why: &str) {
        log::warn!("'{}': {why}; the key servers are asked on", self.entry.name);
        self.shown = None;
        self.begun = None;
    }

    /// What somebody typed, as soon as somebody does, or that nobody did in time. May be dropped and called again.
    pub async fn answer(&mut self) -> PromptResult {
        let ends = self.begun.zip(self.limit.timeout);
        let ends = ends.and_then(|(begun, timeout)| begun.checked_add(timeout));
        tokio::select! {
            Some(answer) = self.answers.recv() => answer,
            () = sleep_until(ends.unwrap_or_else(Instant::now)), if ends.is_some() => Err(PromptLoss::Again),
            else => std::future::pending().await, // not while `sender` is there
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
                self.end("nobody can be asked for a passphrase");
                return None;
            }
            Err(PromptLoss::Again) => {}
        }
        self.put();
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
    use latchkey_secret::SecretBytes;
    use tokio::time::timeout;

    use super::*;
    use crate::volume::crypttab::parse;

    fn entry(options: &str) -> Entry {
        let line = format!("data UUID=6f1f4c5e-0c5e-4b0a-8f53-1f6f0f5c9d11 none {options}\n");
        parse(&line).remove(0).unwrap()
    }

    /// What comes within 100 s.
    async fn next(typing: &mut Typing<'_>) -> Option<PromptResult> {
        timeout(Duration::from_secs(100), typing.answer())
            .await
            .ok()
    }

    #[tokio::test(start_paused = true)]
    async fn after_its_timeout_the_question_is_not_put_again() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        for (options, ends) in [
            ("luks,timeout=60", true),
            ("luks,timeout=3600", false),
            ("luks,timeout=18446744073709551615ms", false),
            ("luks,timeout=0", false),
            ("luks", false),
        ] {
            let entry = entry(options);
            let mut typing = Typing::new(&files, &entry);
            assert!(next(&mut typing).await.is_none(), "it was not put yet");
            typing.begun = Some(Instant::now());
            let answer = next(&mut typing).await;
            assert_eq!(answer.is_some(), ends, "{options}");
            if let Some(answer) = answer {
                assert_eq!(typing.try_answer(answer), None);
                assert!(typing.begun.is_none() && next(&mut typing).await.is_none());
            }
        }
    }

    #[test]
    fn after_its_tries_the_question_is_not_put_again() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        let entry = entry("luks,tries=2");
        let mut typing = Typing::new(&files, &entry);
        typing.begun = Some(Instant::now());
        typing.wrong = 1;
        assert_eq!(typing.over(), None);
        let typed = SecretBytes::read_from(&mut &b"wrong"[..], 16).unwrap();
        assert_eq!(typing.try_answer(Ok(typed)), None);
        assert_eq!((typing.wrong, typing.begun), (2, None));
    }

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
