//! Runs boot scenarios: each a story on its own stage, a few of them side by side; one line for each.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::flavour::Flavour;
use crate::layout::Layout;
use crate::matrix::{Cell, Matrix, Seen};
use crate::network;
use crate::product::Product;
use crate::stage::{Failure, Ground, NotHere, Outcome, Scenario, Stage, chain};

/// What a test program can play.
pub struct Program<'a> {
    /// The scenarios, each played on the machine of Debian 12 unless another flavour is named.
    pub scenarios: &'a [Scenario],
    /// Further scenarios, which are played only with `--longer` or when the command line names them.
    pub longer: &'a [Scenario],
    /// The rows of the table of flavours.
    pub rows: &'a [Scenario],
    /// Where logs go.
    pub folder: &'a Path,
    /// The results of the rows.
    pub results: &'a Path,
    /// The page for users, with the table of them.
    pub page: &'a Path,
}

impl Program<'_> {
    /// Plays what the command line names. Scenarios need root and many minutes, so without `--ignored` they are only
    /// counted, as `cargo test` does with ignored tests. Logs go to a folder for each scenario.
    pub fn run(&self) -> ExitCode {
        let arguments = match Arguments::parse(std::env::args().skip(1)) {
            Ok(arguments) => arguments,
            Err(usage) => {
                eprintln!("{usage}");
                return ExitCode::from(2);
            }
        };
        let (all, more) = match (arguments.set, arguments.filters.as_slice()) {
            (Set::Matrix, _) => (self.rows, &[][..]),
            (Set::Longer, _) => (self.longer, &[][..]),
            (Set::Usual, []) => (self.scenarios, &[][..]),
            (Set::Usual, _) => (self.scenarios, self.longer),
        };
        let wanted: Vec<&Scenario> = all
            .iter()
            .chain(more)
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
            return self.check_page();
        }
        let played = if arguments.set == Set::Matrix {
            self.fill_matrix(&arguments, &wanted)
        } else {
            self.play_scenarios(&arguments, &wanted)
        };
        match played {
            Ok(tally) => tally.exit_code(),
            Err(failure) => {
                println!("the machines could not be prepared: {}", chain(&*failure));
                println!("0 passed, {} failed", wanted.len());
                ExitCode::FAILURE
            }
        }
    }

    fn play_scenarios(
        &self,
        arguments: &Arguments,
        wanted: &[&Scenario],
    ) -> Result<Tally, Failure> {
        let (product, _folder) = product()?;
        let mut tally = Tally::default();
        for flavour in arguments.flavours_or(&[Flavour::DEBIAN12]) {
            let mut logs = self.folder.to_owned();
            if flavour != Flavour::DEBIAN12 {
                println!("{flavour}:");
                logs.push(flavour.name());
            }
            let ground = Ground::prepare(flavour, Layout::Root, &product)?;
            play_all(wanted, arguments.jobs, &ground, &logs, |_, cell| {
                tally.count(&cell);
                Ok(())
            })?;
        }
        Ok(tally)
    }

    /// Plays the rows on every flavour that is named, and keeps and tells each result at once; a machine that cannot be bound
    /// fills its column with the reason.
    fn fill_matrix(&self, arguments: &Arguments, wanted: &[&Scenario]) -> Result<Tally, Failure> {
        let (matrix, seen) = (self.matrix(), Seen::now()?);
        matrix.tell()?;
        let (product, _folder) = product()?;
        let mut tally = Tally::default();
        for flavour in arguments.flavours_or(&Flavour::ALL) {
            println!("{flavour}:");
            let ground = Ground::prepare(flavour, Layout::Root, &product)?;
            let logs = self.folder.join("matrix").join(flavour.name());
            play_all(wanted, arguments.jobs, &ground, &logs, |row, cell| {
                tally.count(&cell);
                Ok(matrix.record(flavour, row.name, cell, &seen)?)
            })?;
        }
        println!("the table is in {}", self.page.display());
        Ok(tally)
    }

    fn matrix(&self) -> Matrix {
        let rows: Vec<&str> = self.rows.iter().map(|row| row.name).collect();
        Matrix::new(self.results, self.page, &rows)
    }

    /// Nobody may have written by hand what the rows did not show.
    fn check_page(&self) -> ExitCode {
        match self.matrix().is_told() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => {
                let (page, results) = (self.page.display(), self.results.display());
                eprintln!("the table in {page} is not what {results} says");
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("the table cannot be compared: {}", chain(&error));
                ExitCode::FAILURE
            }
        }
    }
}

fn product() -> Result<(Product, tempfile::TempDir), Failure> {
    let folder = tempfile::Builder::new().prefix("latchkey-").tempdir()?;
    Ok((Product::install(folder.path())?, folder))
}

/// What the command line of a test program asks for; it understands what `cargo test` passes on.
#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    run: bool,
    list: bool,
    set: Set,
    jobs: usize,
    flavours: Vec<Flavour>,
    filters: Vec<String>,
}

/// Which scenarios a command line chooses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Usual,
    Longer,
    Matrix,
}

const USAGE: &str = "usage: [--ignored] [--list] [--longer | --matrix] [--flavour NAME]… [--jobs N] [NAME…]\nflavours:";

impl Arguments {
    /// Reads the words after the program's name; a word that means nothing is an error.
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self {
            run: false,
            list: false,
            set: Set::Usual,
            jobs: SIDE_BY_SIDE,
            flavours: Vec::new(),
            filters: Vec::new(),
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--ignored" | "--include-ignored" => arguments.run = true,
                "--list" => arguments.list = true,
                "--longer" => arguments.set = Set::Longer,
                "--matrix" => arguments.set = Set::Matrix,
                "--flavour" => {
                    let flavour = words.next().and_then(|name| Flavour::named(&name));
                    arguments
                        .flavours
                        .push(flavour.ok_or_else(|| usage("'--flavour' needs a flavour"))?);
                }
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
                    return Err(usage(&format!("unknown option '{unknown}'")));
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

    fn flavours_or(&self, otherwise: &[Flavour]) -> Vec<Flavour> {
        if self.flavours.is_empty() {
            otherwise.to_vec()
        } else {
            self.flavours.clone()
        }
    }
}

fn usage(error: &str) -> String {
    let names = Flavour::ALL.map(Flavour::name).join(" ");
    format!("{error}\n{USAGE} {names}")
}

/// Two machines fill two cores and 2 GiB.
const SIDE_BY_SIDE: usize = 2;

/// How many scenarios ended how.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    fn count(&mut self, cell: &Cell) {
        *match cell {
            Cell::Yes(_) => &mut self.passed,
            Cell::No(_) => &mut self.failed,
            Cell::NotHere(_) => &mut self.skipped,
        } += 1;
    }

    fn exit_code(&self) -> ExitCode {
        let skipped = match self.skipped {
            0 => String::new(),
            number => format!(", {number} not for this flavour"),
        };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed);
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Plays the scenarios, `jobs` at a time, and hands on each result as it comes.
///
/// # Errors
/// The first of `ended`; nothing is begun after it.
fn play_all<'a>(
    scenarios: &[&'a Scenario],
    jobs: usize,
    ground: &Ground,
    logs: &Path,
    ended: impl FnMut(&'a Scenario, Cell) -> Result<(), Failure> + Send,
) -> Result<(), Failure> {
    let queue: Mutex<VecDeque<&Scenario>> = Mutex::new(scenarios.iter().copied().collect());
    let ended = Mutex::new(ended);
    let worker = || {
        while let Some(scenario) = next(&queue) {
            let begin = Instant::now();
            let logs = logs.join(scenario.name);
            let cell = match set(&logs, ground) {
                Ok(stage) => Cell::of(play(scenario, &stage), stage.seconds()),
                Err(error) => Cell::No(error.to_string()),
            };
            report(scenario.name, begin.elapsed(), &cell, &logs);
            let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(failure) = ended(scenario, cell) {
                queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                return Err(failure);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        let ends = workers.into_iter().map(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| Err(panic_text(&*panic).into()))
        });
        ends.fold(Ok(()), Result::and)
    })
}

fn next<'a>(queue: &Mutex<VecDeque<&'a Scenario>>) -> Option<&'a Scenario> {
    queue
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop_front()
}

fn set(logs: &Path, ground: &Ground) -> io::Result<Stage> {
    match fs::remove_dir_all(logs) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(logs)?,
    }
    Stage::new(ground, logs)
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

impl Cell {
    fn of(outcome: Outcome, seconds: Option<u64>) -> Self {
        match outcome {
            Ok(()) => Self::Yes(seconds),
            Err(failure) => match failure.downcast_ref::<NotHere>() {
                Some(NotHere(reason)) => Self::NotHere((*reason).to_owned()),
                None => Self::No(chain(&*failure)),
            },
        }
    }
}

fn report(name: &str, took: Duration, cell: &Cell, logs: &Path) {
    let took = took.as_secs();
    match cell {
        Cell::Yes(_) => println!("ok     {name} ({took} s)"),
        Cell::NotHere(reason) => println!("-      {name}\n       {reason}"),
        Cell::No(reason) => {
            let reason = reason.replace('\n', "\n       ");
            println!(
                "FAILED {name} ({took} s)\n       {reason}\n       logs: {}",
                logs.display()
            );
        }
    }
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
    fn flavours_are_those_that_are_named_or_the_usual_ones() {
        let usual = [Flavour::DEBIAN12];
        assert_eq!(parse(&[]).unwrap().flavours_or(&usual), usual);
        let named = parse(&["--matrix", "--flavour", "debian13", "--flavour", "debian12"]).unwrap();
        assert_eq!(named.set, Set::Matrix);
        let names: Vec<_> = named
            .flavours_or(&usual)
            .iter()
            .map(|flavour| flavour.name())
            .collect();
        assert_eq!(names, ["debian13", "debian12"]);
    }

    #[test]
    fn wrong_words_are_refused() {
        for words in [
            &["--jobs"][..],
            &["--jobs", "0"],
            &["--job", "2"],
            &["--flavour"],
            &["--flavour", "debian11"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
