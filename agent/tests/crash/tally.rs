//! Where the kills fell: a test whose kills all come too early or too late shows nothing, and must fail.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write;

use crate::tracer::Fate;

pub struct Tally {
    program: &'static str,
    counts: RefCell<BTreeMap<String, usize>>,
    torn: Cell<usize>,
    last: RefCell<String>,
}

impl Tally {
    pub fn new(program: &'static str) -> Self {
        Self {
            program,
            counts: RefCell::default(),
            torn: Cell::default(),
            last: RefCell::default(),
        }
    }

    /// Counts a kill, or one that came too late.
    pub fn count(&self, step: String) {
        *self.counts.borrow_mut().entry(step).or_default() += 1;
    }

    /// Counts a kill in `step`, at `change`.
    pub fn kill(&self, step: String, fate: Fate, change: &str) {
        if let Fate::Tear(_) = fate {
            self.torn.set(self.torn.get() + 1);
        }
        *self.last.borrow_mut() = format!("{step}: {fate:?} at {change}");
        self.count(step);
    }

    /// Each of `steps` was hit, and no more than one point in twenty was missed.
    #[track_caller]
    pub fn covers(&self, steps: impl Iterator<Item = String>) {
        let counts = self.counts.borrow();
        for step in steps {
            assert!(
                counts.contains_key(&step),
                "no kill in '{step}':\n{}",
                self.table()
            );
        }
        let missed = |(step, _): &(&String, &usize)| {
            step.ends_with("ended first") && !step.contains("repair")
        };
        let late: usize = counts.iter().filter(missed).map(|(_, count)| count).sum();
        let all: usize = counts.values().sum();
        assert!(
            late * 20 <= all,
            "too many kills came too late:\n{}",
            self.table()
        );
    }

    fn table(&self) -> String {
        let counts = self.counts.borrow();
        let mut table = format!(
            "{:>5} kills of {}\n",
            counts.values().sum::<usize>(),
            self.program
        );
        for (step, count) in counts.iter() {
            let _ = writeln!(table, "{count:>5} {step}");
        }
        let _ = writeln!(
            table,
            "{:>5} of them in the middle of a write",
            self.torn.get()
        );
        table
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        println!("{}", self.table());
        if std::thread::panicking() {
            eprintln!("the last kill: {}", self.last.borrow());
        }
    }
}
