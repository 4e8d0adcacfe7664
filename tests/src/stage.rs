//! Runs boot scenarios: each a story on its own stage, with a network, a folder and copies of the bound machine of
//! its own; a few of them side by side; one line for each.

use std::collections::VecDeque;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::bound::{self, Bound};
use crate::flavour::Flavour;
use crate::guest::{self, Guest};
use crate::keyserver::{KeyServer, KeyServerError};
use crate::machine::{Disk, MachineError, Spec};
use crate::network;
use crate::product::Product;

/// Why a scenario failed.
pub type Failure = Box<dyn Error + Send + Sync>;
/// How a scenario ended.
pub type Outcome = Result<(), Failure>;

/// One story.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name: the fact it proves.
    pub name: &'static str,
    /// The story.
    pub play: fn(&Stage) -> Outcome,
}

/// What a scenario plays on.
pub struct Stage {
    folder: tempfile::TempDir,
    logs: PathBuf,
    guest: Guest,
    bound: Bound,
    product: Product,
}

impl Stage {
    /// A copy of the key server that the bound machine joined, not yet running.
    ///
    /// # Errors
    /// As [`KeyServer::copy_of`].
    pub fn key_server(&self) -> Result<KeyServer, KeyServerError> {
        KeyServer::copy_of(
            &self.product.latchkeyd(),
            &self.bound.server,
            &self.folder.path().join("server"),
        )
    }

    /// Another key server, which no machine knows and which bears the same names.
    ///
    /// # Errors
    /// As [`KeyServer::init`].
    pub fn foreign_key_server(&self) -> Result<KeyServer, KeyServerError> {
        let names =
            [bound::PORT, bound::SECOND_PORT].map(|port| format!("{}:{port}", network::HOST));
        KeyServer::init(
            &self.product.latchkeyd(),
            &self.folder.path().join("foreign"),
            &names,
        )
    }

    /// A copy of the bound machine's disk.
    ///
    /// # Errors
    /// As [`Disk::over`].
    pub fn bound_disk(&self) -> Result<Disk, MachineError> {
        Disk::over(&self.bound.disk, &self.folder.path().join("bound.qcow2"))
    }

    /// A disk with a Debian that never had latchkey.
    ///
    /// # Errors
    /// As [`Disk::over`].
    pub fn plain_disk(&self) -> Result<Disk, MachineError> {
        Disk::over(&self.guest.disk, &self.folder.path().join("plain.qcow2"))
    }

    /// A machine that boots through its own boot loader; `boot` names its logs.
    pub fn machine(&self, disk: &Disk, boot: &str) -> Spec {
        Spec::new(disk, &self.logs.join(format!("{boot}.log")))
    }

    /// A machine with the kernel and initramfs that `bind` left in `/boot`, started without boot loader.
    pub fn bound_machine(&self, disk: &Disk, boot: &str) -> Spec {
        self.machine(disk, boot).direct(&self.bound.boot)
    }

    /// A folder for this scenario's files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The cached bound machine itself.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Where the console logs go.
    pub fn logs(&self) -> &Path {
        &self.logs
    }
}

/// Fails a scenario with a reason unless `holds`.
///
/// # Errors
/// The reason.
pub fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(reason().into()) }
}

/// What the command line of a test program asks for; it understands what `cargo test` passes on.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    run: bool,
    list: bool,
    jobs: usize,
    filters: Vec<String>,
}

impl Arguments {
    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// A word that means nothing.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self {
            run: false,
            list: false,
            jobs: SIDE_BY_SIDE,
            filters: Vec::new(),
        };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--ignored" | "--include-ignored" => arguments.run = true,
                "--list" => arguments.list = true,
                "--jobs" => {
                    let number = words
                        .next()
                        .and_then(|number| number.parse().ok())
                        .filter(|number| *number > 0);
                    arguments.jobs =
                        number.ok_or("'--jobs' needs a number of machines side by side")?;
                }
                "--nocapture" | "--no-capture" | "--quiet" | "-q" => {}
                unknown if unknown.starts_with('-') => {
                    return Err(format!(
                        "unknown option '{unknown}'\nusage: [--ignored] [--list] [--jobs N] [NAME…]"
                    ));
                }
                filter => arguments.filters.push(filter.to_owned()),
            }
        }
        Ok(arguments)
    }

    fn wants(&self, scenario: &Scenario) -> bool {
        self.filters.is_empty()
            || self
                .filters
                .iter()
                .any(|filter| scenario.name.contains(filter.as_str()))
    }
}

/// Two machines fill two cores and 2 GiB.
const SIDE_BY_SIDE: usize = 2;

/// Plays the scenarios that the command line names. They need root and many minutes, so without `--ignored` they are
/// only counted, as `cargo test` does with ignored tests. Logs go to a folder for each scenario in `logs`.
pub fn run(scenarios: &[Scenario], logs: &Path) -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    let wanted: Vec<&Scenario> = scenarios
        .iter()
        .filter(|scenario| arguments.wants(scenario))
        .collect();
    if arguments.list {
        for scenario in wanted {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    if !arguments.run {
        println!(
            "{} boot scenarios ignored; --ignored plays them",
            wanted.len()
        );
        return ExitCode::SUCCESS;
    }
    match play_all(&wanted, arguments.jobs, logs) {
        Ok((passed, failed)) => {
            println!("{passed} passed, {failed} failed");
            if failed == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(failure) => {
            println!("the machines could not be prepared: {}", chain(&*failure));
            println!("0 passed, {} failed", wanted.len());
            ExitCode::FAILURE
        }
    }
}

fn play_all(scenarios: &[&Scenario], jobs: usize, logs: &Path) -> Result<(usize, usize), Failure> {
    let folder = tempfile::Builder::new().prefix("latchkey-").tempdir()?;
    let product = Product::install(folder.path())?;
    let guest = guest::guest(Flavour::DEBIAN12)?;
    // In a thread, because the network namespace is the thread's.
    let bound = thread::scope(|scope| {
        let make = || -> Result<Bound, Failure> {
            network::enter_own()?;
            Ok(bound::bound(&guest, &product)?)
        };
        scope
            .spawn(make)
            .join()
            .unwrap_or_else(|_| Err("making the bound machine panicked".into()))
    })?;

    let queue: Mutex<VecDeque<&Scenario>> = Mutex::new(scenarios.iter().copied().collect());
    let failed = Mutex::new(0);
    let next = || {
        queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let worker = || {
        while let Some(scenario) = next() {
            let begin = Instant::now();
            let logs = logs.join(scenario.name);
            let outcome =
                set(&logs, &guest, &bound, &product).and_then(|stage| play(scenario, &stage));
            if !report(scenario.name, begin.elapsed(), &outcome, &logs) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(worker);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((scenarios.len() - failed, failed))
}

fn set(logs: &Path, guest: &Guest, bound: &Bound, product: &Product) -> Result<Stage, Failure> {
    match fs::remove_dir_all(logs) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(logs)?,
    }
    let folder = tempfile::Builder::new().prefix("latchkey-").tempdir()?;
    let (guest, bound, product) = (guest.clone(), bound.clone(), product.clone());
    Ok(Stage {
        folder,
        logs: logs.to_owned(),
        guest,
        bound,
        product,
    })
}

/// Plays one scenario in a thread with a network of its own; a panic is a failure of that scenario alone.
fn play(scenario: &Scenario, stage: &Stage) -> Outcome {
    let story = || {
        network::enter_own()?;
        (scenario.play)(stage)
    };
    thread::scope(|scope| scope.spawn(story).join())
        .unwrap_or_else(|panic| Err(panic_text(&*panic).into()))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the scenario panicked: {}", text.unwrap_or("no text"))
}

fn report(name: &str, took: Duration, outcome: &Outcome, logs: &Path) -> bool {
    match outcome {
        Ok(()) => println!("ok     {name} ({} s)", took.as_secs()),
        Err(failure) => {
            let text = chain(&**failure).replace('\n', "\n       ");
            println!(
                "FAILED {name} ({} s)\n       {text}\n       logs: {}",
                took.as_secs(),
                logs.display()
            );
        }
    }
    outcome.is_ok()
}

fn chain(failure: &(dyn Error + 'static)) -> String {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, String> {
        Arguments::parse(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn the_command_line_is_read_as_cargo_passes_it() {
        let cases: [(&[&str], bool, usize, &[&str]); 4] = [
            (&[], false, 2, &[]),
            (&["--ignored"], true, 2, &[]),
            (
                &["--ignored", "--jobs", "1", "server"],
                true,
                1,
                &["server"],
            ),
            (&["--nocapture", "a", "b"], false, 2, &["a", "b"]),
        ];
        for (words, run, jobs, filters) in cases {
            let arguments = parse(words).unwrap();
            assert_eq!((arguments.run, arguments.jobs), (run, jobs), "{words:?}");
            assert_eq!(arguments.filters, filters, "{words:?}");
        }
    }

    #[test]
    fn wrong_words_are_refused() {
        for words in [&["--jobs"][..], &["--jobs", "0"], &["--job", "2"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
