//! What holds on which flavour: the results of the rows, each with the product that it was seen on, and the page that tells
//! of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::flavour::Flavour;
use crate::page::{self, NoPlace};
use crate::tool::{self, ToolError};

/// How a row ended on a flavour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// The fact holds; with the moment that the scenario noted, in seconds.
    Yes(Option<u64>),
    /// It does not, and why.
    No(String),
    /// It means nothing on this flavour, and why.
    NotHere(String),
}

/// What a result was seen on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// The day, as `2026-01-02`.
    pub date: String,
    /// The commit of the product.
    pub commit: String,
}

impl Seen {
    /// Today, and the product of this checkout.
    ///
    /// # Errors
    /// If git does not say which commit this is.
    pub fn now() -> Result<Self, ToolError> {
        let date = tool::run(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
        Ok(Self {
            date: String::from_utf8_lossy(&date).trim().to_owned(),
            commit: commit()?,
        })
    }
}

/// The results cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    /// A file of results, or the page.
    #[error("failed to use '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file of results holds something else.
    #[error("'{}' is no file of results", .0.display())]
    Results(PathBuf),
    /// The page has no place for the table.
    #[error(transparent)]
    Page(#[from] NoPlace),
}

/// The results of all runs, and where they are told.
#[derive(Debug)]
pub struct Matrix {
    results: PathBuf,
    page: PathBuf,
    rows: Vec<String>,
}

/// By the names of the flavour and the row.
type Cells = BTreeMap<(String, String), (Cell, Seen)>;

impl Matrix {
    /// The file of results and the page that tells of them, whose table has these rows.
    pub fn new(results: &Path, page: &Path, rows: &[&str]) -> Self {
        Self {
            results: results.to_owned(),
            page: page.to_owned(),
            rows: rows.iter().map(|row| (*row).to_owned()).collect(),
        }
    }

    /// Replaces the result of a row on a flavour, in the file and on the page, for runs that go on side by side or are
    /// ended before their time. Results of rows that are no more go.
    ///
    /// # Errors
    /// `File`, `Results`, `Page`.
    pub fn record(
        &self,
        flavour: Flavour,
        row: &str,
        cell: Cell,
        seen: &Seen,
    ) -> Result<(), MatrixError> {
        let _lock = self.lock()?;
        let mut cells = self.cells()?;
        cells.retain(|(_, known), _| self.rows.contains(known));
        let key = (flavour.name().to_owned(), row.to_owned());
        cells.insert(key, (cell, seen.clone()));
        fs::write(&self.results, text(&cells)).map_err(at(&self.results))?;
        self.write_page(&cells)
    }

    /// Makes the page tell what the results say, such as after somebody else's were merged.
    ///
    /// # Errors
    /// `File`, `Results`, `Page`.
    pub fn tell(&self) -> Result<(), MatrixError> {
        let _lock = self.lock()?;
        self.write_page(&self.cells()?)
    }

    fn lock(&self) -> Result<File, MatrixError> {
        let page = File::open(&self.page).map_err(at(&self.page))?;
        page.lock().map_err(at(&self.page))?;
        Ok(page)
    }

    fn write_page(&self, cells: &Cells) -> Result<(), MatrixError> {
        let page = fs::read_to_string(&self.page).map_err(at(&self.page))?;
        fs::write(&self.page, self.told(&page, cells)?).map_err(at(&self.page))
    }

    /// Whether the page tells what the results say.
    ///
    /// # Errors
    /// `File`, `Results`, `Page`.
    pub fn is_told(&self) -> Result<bool, MatrixError> {
        let page = fs::read_to_string(&self.page).map_err(at(&self.page))?;
        Ok(self.told(&page, &self.cells()?)? == page)
    }

    /// The page with the table of these results.
    fn told(&self, page: &str, cells: &Cells) -> Result<String, NoPlace> {
        let cell = |flavour: Flavour, row: &str| {
            let key = (flavour.name().to_owned(), row.to_owned());
            cells.get(&key).map(|(cell, seen)| (cell, seen))
        };
        page::put(page, &page::table(&self.rows, cell))
    }

    fn cells(&self) -> Result<Cells, MatrixError> {
        let kept = match fs::read(&self.results) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Cells::new()),
            kept => kept.map_err(at(&self.results))?,
        };
        let kept: Option<Value> = serde_json::from_slice(&kept).ok();
        let kept = kept.as_ref().and_then(Value::as_array);
        kept.and_then(|kept| kept.iter().map(read).collect())
            .ok_or_else(|| MatrixError::Results(self.results.clone()))
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> MatrixError {
    move |source| MatrixError::File {
        path: path.to_owned(),
        source,
    }
}

/// A line for each result, so that their history can be read.
fn text(cells: &Cells) -> String {
    let line = |((flavour, row), (cell, seen)): (&(String, String), &(Cell, Seen))| {
        let (outcome, more) = match cell {
            Cell::Yes(seconds) => ("yes", json!(seconds)),
            Cell::No(reason) => ("no", json!(reason)),
            Cell::NotHere(reason) => ("not-here", json!(reason)),
        };
        json!({
            "flavour": flavour, "row": row, "outcome": outcome, "more": more,
            "commit": seen.commit, "date": seen.date,
        })
        .to_string()
    };
    let lines: Vec<String> = cells.iter().map(line).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

fn read(line: &Value) -> Option<((String, String), (Cell, Seen))> {
    let word = |field: &str| Some(line[field].as_str()?.to_owned());
    let cell = match line["outcome"].as_str()? {
        "yes" => Cell::Yes(line["more"].as_u64()),
        "no" => Cell::No(word("more")?),
        "not-here" => Cell::NotHere(word("more")?),
        _ => return None,
    };
    let seen = Seen {
        date: word("date")?,
        commit: word("commit")?,
    };
    Some(((word("flavour")?, word("row")?), (cell, seen)))
}

/// What is installed is made of these; other changes leave the results as they are.
const PRODUCT: [&str; 12] = [
    ":/agent/src",
    ":/keyserver/src",
    ":/protocol/src",
    ":/secret/src",
    ":/image",
    ":/initramfs-tools-hook",
    ":/dracut-module",
    ":/systemd",
    ":/native",
    ":/.cargo",
    ":/Cargo.toml",
    ":/Cargo.lock",
];

/// The last commit that changed what is installed.
fn commit() -> Result<String, ToolError> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |words: &[&str]| -> Result<String, ToolError> {
        let mut git = Command::new("git");
        git.arg("-C").arg(checkout).args(words).arg("--");
        let said = tool::run(git.args(PRODUCT))?;
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    };
    let commit = git(&["log", "-1", "--format=%h", "--abbrev=12"])?;
    let changed = git(&["status", "--porcelain"])?;
    Ok(if changed.is_empty() {
        commit
    } else {
        format!("{commit} with changes")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Compatibility\n\n<!-- table -->\n<!-- end of table -->\n\nBy hand.\n";

    fn seen(commit: &str) -> Seen {
        Seen {
            date: "2026-01-02".to_owned(),
            commit: commit.to_owned(),
        }
    }

    fn matrix(folder: &Path) -> Matrix {
        let page = folder.join("page.md");
        if !page.exists() {
            fs::write(&page, PAGE).unwrap();
        }
        Matrix::new(&folder.join("results.json"), &page, &["opens", "asks"])
    }

    #[test]
    fn results_of_several_runs_add_up_each_with_its_product() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second, third, ..] = Flavour::ALL;
        let (matrix, beside) = (matrix(folder.path()), matrix(folder.path()));
        let (older, newer) = (seen("0123"), seen("4567"));
        for (matrix, flavour, row, cell, seen) in [
            (&matrix, first, "opens", Cell::Yes(Some(3)), &older),
            (&matrix, first, "asks", Cell::Yes(None), &older),
            (&beside, second, "opens", Cell::No("why".to_owned()), &newer),
            (
                &matrix,
                third,
                "opens",
                Cell::NotHere("why not".to_owned()),
                &older,
            ),
            (&beside, first, "asks", Cell::No("later".to_owned()), &newer),
        ] {
            matrix.record(flavour, row, cell, seen).unwrap();
        }
        let told: Vec<(Cell, String)> = matrix
            .cells()
            .unwrap()
            .into_values()
            .map(|(cell, seen)| (cell, seen.commit))
            .collect();
        let expected = [
            (Cell::No("later".to_owned()), "4567"),
            (Cell::Yes(Some(3)), "0123"),
            (Cell::No("why".to_owned()), "4567"),
            (Cell::NotHere("why not".to_owned()), "0123"),
        ];
        assert_eq!(
            told,
            expected.map(|(cell, commit)| (cell, commit.to_owned()))
        );
        let page = fs::read_to_string(&matrix.page).unwrap();
        assert!(page.contains("| opens | yes (3 s) | no: why |"), "{page}");
        assert!(page.ends_with("\n\nBy hand.\n"), "{page}");
    }

    #[test]
    fn a_page_that_says_something_else_than_the_results_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let matrix = matrix(folder.path());
        matrix
            .record(
                Flavour::DEBIAN12,
                "opens",
                Cell::No("why".to_owned()),
                &seen("0123"),
            )
            .unwrap();
        assert!(matrix.is_told().unwrap());
        let page = fs::read_to_string(&matrix.page).unwrap();
        fs::write(&matrix.page, page.replace("no: why", "yes")).unwrap();
        assert!(!matrix.is_told().unwrap());
        matrix.tell().unwrap();
        assert!(matrix.is_told().unwrap());
    }

    #[test]
    fn the_result_of_a_row_that_is_no_more_goes() {
        let folder = tempfile::tempdir().unwrap();
        let mut matrix = matrix(folder.path());
        matrix
            .record(Flavour::DEBIAN12, "opens", Cell::Yes(None), &seen("0123"))
            .unwrap();
        matrix.rows.remove(0);
        matrix
            .record(Flavour::DEBIAN12, "asks", Cell::Yes(None), &seen("0123"))
            .unwrap();
        let rows: Vec<String> = matrix
            .cells()
            .unwrap()
            .into_keys()
            .map(|(_, row)| row)
            .collect();
        assert_eq!(rows, ["asks"]);
    }

    #[test]
    fn what_is_no_file_of_results_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let matrix = matrix(folder.path());
        for text in ["", "{}", "[1]", r#"[{"flavour":"debian12","row":"opens"}]"#] {
            fs::write(&matrix.results, text).unwrap();
            let refused = matrix.record(Flavour::DEBIAN12, "opens", Cell::Yes(None), &seen("0123"));
            assert!(matches!(refused, Err(MatrixError::Results(_))), "{text}");
            assert_eq!(fs::read_to_string(&matrix.results).unwrap(), text);
            assert_eq!(fs::read_to_string(&matrix.page).unwrap(), PAGE);
        }
    }
}
