//! `make bench`: how long a boot takes, how much an image grows, how much memory the agent needs, each beside what
//! else there is. Leaves figures in a folder; `report` makes `docs/benchmarks.md` and its pictures of them.

mod boot;
mod clevis;
mod image;
mod memory;
mod picture;
mod report;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use latchkey_tests::bound::{self, Bound};
use latchkey_tests::failure;
use latchkey_tests::flavour::Flavour;
use latchkey_tests::guest::{self, Guest};
use latchkey_tests::layout::Layout;
use latchkey_tests::network;
use latchkey_tests::product::Product;
use serde_json::Value;

/// What any part of it can end with.
pub type Failure = Box<dyn Error>;

/// What the machines show at their prompt, with and without latchkey.
const PROMPT: &str = Flavour::DEBIAN12.prompt();

const USAGE: &str = "usage: bench boot|image|memory|machines|report FIGURES_FOLDER";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (Some(part), Some(figures), None) = (words.next(), words.next(), words.next()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&part, Path::new(&figures)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failure::explain(&format!("bench {part}"), &*error);
            ExitCode::FAILURE
        }
    }
}

fn run(part: &str, figures: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(figures)?;
    let measure = match part {
        "boot" => boot::measure,
        "image" => image::measure,
        "memory" => memory::measure,
        "machines" => memory::measure_machines,
        "report" => return report::write(figures),
        _ => return Err(USAGE.into()),
    };
    let measured = measure(&Bench::set_up()?)?;
    let file = figures.join(format!("{part}.json"));
    std::fs::write(&file, serde_json::to_string_pretty(&measured)?)?;
    Ok(())
}

/// The guests that are compared.
pub struct Bench {
    folder: tempfile::TempDir,
    /// Debian as it is installed.
    pub plain: Guest,
    /// The same with clevis, not bound.
    pub with_clevis: Guest,
    /// The same with latchkey, bound.
    pub bound: Bound,
    product: Product,
}

impl Bench {
    fn set_up() -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("latchkey-bench-")
            .tempdir()?;
        let product = Product::install(folder.path())?;
        // The guests come from the mirror, so before this thread leaves the host's network.
        let plain = guest::guest(Flavour::DEBIAN12, Layout::Root)?;
        let with_clevis = clevis::guest()?;
        network::enter_own()?;
        let bound = bound::bound(&plain, &product)?;
        Ok(Self {
            folder,
            plain,
            with_clevis,
            bound,
            product,
        })
    }

    /// For files of the run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The key server's program.
    pub fn latchkeyd(&self) -> PathBuf {
        self.product.latchkeyd()
    }
}

/// The middle of the numbers; of an even count, the mean of the two in the middle.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// A number of the figures, by a JSON pointer (RFC 6901).
pub fn number(figures: &Value, pointer: &str) -> f64 {
    figures
        .pointer(pointer)
        .and_then(Value::as_f64)
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
