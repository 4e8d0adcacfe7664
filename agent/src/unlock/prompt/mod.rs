//! The prompt: always the boot framework's own, so that everything through which people answer it keeps working.
//!
//! Under systemd the password agents ask (console, Plymouth, `systemd-tty-ask-password-agent` over SSH); elsewhere
//! `askpass` does.

mod askpass;
mod dead_splash;
mod password_agents;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use latchkey_secret::SecretBytes;

use crate::flow::{PromptLimit, PromptLoss};
use crate::volume::crypttab::Options;
pub use askpass::Companion;

/// libcryptsetup's own limit for interactive passphrases is 512; a key that is piped in over SSH may be longer.
const PASSPHRASE_LIMIT: usize = 64 * 1024;
/// Between two attempts when prompting fails, so that a machine without a console does not spin.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// So many failures in a row, and this machine has no way to prompt.
const FAILURES_LIMIT: u32 = 10;

/// What the prompt is for.
#[derive(Debug, Clone)]
pub struct Question {
    /// The mapping.
    pub name: String,
    /// Its device.
    pub device: PathBuf,
    /// Its options, as crypttab has them.
    pub options: String,
    /// Wrong passphrases before.
    pub wrong: u32,
}

/// What came of it.
pub type PromptResult = Result<SecretBytes, PromptLoss>;

/// Who asks on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The program of initramfs-tools.
    Askpass,
    /// systemd's password agents.
    PasswordAgents,
}

/// A prompt that stands. Dropping it ends what belongs to it.
#[derive(Debug)]
pub enum Prompt {
    /// The program runs.
    Askpass(askpass::Askpass),
    /// The query lies there.
    PasswordAgents(password_agents::Query),
}

/// Counts failures to prompt in a row; an empty line is none.
#[derive(Debug, Clone, Default)]
pub struct Failures(Arc<AtomicU32>);

impl Way {
    /// systemd's if it runs this initramfs (sd_booted(3)).
    pub fn of_this_boot() -> Self {
        if Path::new("/run/systemd/system").is_dir() {
            Self::PasswordAgents
        } else {
            Self::Askpass
        }
    }
}

impl Prompt {
    /// Shows the prompt; `answer` gets its result unless [`Prompt::end`] comes first.
    pub fn show(
        way: Way,
        question: &Question,
        failures: &Failures,
        answer: impl FnOnce(PromptResult) + Send + 'static,
    ) -> Self {
        match way {
            Way::Askpass => Self::Askpass(askpass::Askpass::show(question, failures, answer)),
            Way::PasswordAgents => {
                Self::PasswordAgents(password_agents::Query::show(question, failures, answer))
            }
        }
    }

    /// Takes the prompt away. A passphrase that was typed just now is dropped.
    pub async fn end(self) -> Option<Companion> {
        match self {
            Self::Askpass(askpass) => askpass.end().await,
            Self::PasswordAgents(query) => {
                drop(query);
                None
            }
        }
    }

    /// What must outlive the attempt's result.
    pub fn into_companion(self) -> Option<Companion> {
        match self {
            Self::Askpass(askpass) => askpass.into_companion(),
            Self::PasswordAgents(_) => None,
        }
    }
}

impl Failures {
    /// One more in a row; what that means for the prompt.
    fn count(&self) -> PromptLoss {
        if self.0.fetch_add(1, Ordering::Relaxed) < FAILURES_LIMIT {
            PromptLoss::Again
        } else {
            PromptLoss::Impossible
        }
    }

    /// Prompting works: forgets them.
    fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// What the options of crypttab(5) say of the prompt's end; there zero is no limit.
pub fn limit(options: &Options) -> PromptLimit {
    PromptLimit {
        tries: options.tries.and_then(NonZeroU32::new),
        timeout: options.timeout.filter(|timeout| !timeout.is_zero()),
    }
}

/// Ends prompts whose agent was killed: they would ask beside the native one and swallow what is typed.
pub fn end_left_over() {
    askpass::end_left_over();
    password_agents::end_left_over();
}
