//! What holds on which flavour: results of the runs of one product, kept in a file, and the table that users read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::flavour::Flavour;
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

/// There is no table yet.
#[derive(Debug, thiserror::Error)]
#[error("no result of this product yet for\n{}", .0.join("\n"))]
pub struct Incomplete(Vec<String>);

/// The results cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    /// git does not say which commit this is.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The file of results.
    #[error("failed to use '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// All results of one commit.
#[derive(Debug)]
pub struct Matrix {
    path: PathBuf,
    commit: String,
    date: String,
    cells: BTreeMap<(String, String), Cell>,
}

impl Matrix {
    /// The results of earlier runs from `path`, as far as they are of the present commit.
    ///
    /// # Errors
    /// `Tool` if git fails; a file that cannot be read counts as none.
    pub fn open(path: &Path) -> Result<Self, MatrixError> {
        let commit = commit()?;
        let date = tool::run(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
        let kept = fs::read(path).ok();
        let kept: Value = kept
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            cells: if kept["commit"] == commit.as_str() {
                cells(&kept["cells"])
            } else {
                BTreeMap::new()
            },
            commit,
            date: String::from_utf8_lossy(&date).trim().to_owned(),
        })
    }

    /// Replaces the result of a row on a flavour.
    pub fn set(&mut self, flavour: Flavour, row: &str, cell: Cell) {
        self.cells
            .insert((flavour.name().to_owned(), row.to_owned()), cell);
    }

    /// Keeps the results for later runs.
    ///
    /// # Errors
    /// `File` if they cannot be written.
    pub fn save(&self) -> Result<(), MatrixError> {
        let cells: Vec<Value> = self
            .cells
            .iter()
            .map(|((flavour, row), cell)| {
                let (outcome, more) = match cell {
                    Cell::Yes(seconds) => ("yes", json!(seconds)),
                    Cell::No(reason) => ("no", json!(reason)),
                    Cell::NotHere(reason) => ("not-here", json!(reason)),
                };
                json!({ "flavour": flavour, "row": row, "outcome": outcome, "more": more })
            })
            .collect();
        let results = json!({ "commit": self.commit, "date": self.date, "cells": cells });
        fs::write(&self.path, format!("{results:#}\n")).map_err(|source| MatrixError::File {
            path: self.path.clone(),
            source,
        })
    }

    /// The table in Markdown, its rows in this order. It tells of one product, so it is whole or there is none.
    ///
    /// # Errors
    /// `Incomplete` names the rows that were not played yet, and where.
    pub fn table(&self, rows: &[&str]) -> Result<String, Incomplete> {
        let missing = self.missing(rows);
        if !missing.is_empty() {
            return Err(Incomplete(missing));
        }
        let mut notes = Notes::default();
        let mut table = String::from("| |");
        for flavour in Flavour::ALL {
            let _ = write!(table, " {} |", flavour.title());
        }
        table += "\n|---|---|---|---|---|---|---|\n";
        for row in rows {
            let _ = write!(table, "| {row} |");
            for flavour in Flavour::ALL {
                if let Some(cell) = self.cell(flavour, row) {
                    let _ = write!(table, " {} |", notes.text(cell));
                }
            }
            table.push('\n');
        }
        let (date, commit) = (&self.date, &self.commit);
        Ok(format!(
            "{HEAD}Product of commit {commit}, {date}.\n\n{table}{}",
            notes.list()
        ))
    }

    /// One line for each row that has no result on some flavour.
    fn missing(&self, rows: &[&str]) -> Vec<String> {
        let missing = |row: &&str| {
            let flavours: Vec<&str> = Flavour::ALL
                .into_iter()
                .filter(|flavour| self.cell(*flavour, row).is_none())
                .map(Flavour::name)
                .collect();
            (!flavours.is_empty()).then(|| format!("'{row}' on {}", flavours.join(", ")))
        };
        rows.iter().filter_map(missing).collect()
    }

    fn cell(&self, flavour: Flavour, row: &str) -> Option<&Cell> {
        self.cells.get(&(flavour.name().to_owned(), row.to_owned()))
    }
}

const HEAD: &str = "# Compatibility

Which machines latchkey was seen to work on, and what was seen. `make test-matrix` writes this page: it makes a virtual
machine of each kind with an encrypted root, binds it, and boots it once or more for each row, by the machine's own
kernel and initramfs. Seconds count from the start of the kernel on an emulated processor, several times slower than a
real one; they are there to be compared with each other.

";

/// The footnotes of a table: each reason once, in the order in which they come.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn text(&mut self, cell: &Cell) -> String {
        match cell {
            Cell::Yes(Some(seconds)) => format!("yes ({seconds} s)"),
            Cell::Yes(None) => "yes".to_owned(),
            Cell::No(reason) => format!("no: {}", one_line(reason)),
            Cell::NotHere(reason) => self.dash(one_line(reason)),
        }
    }

    fn dash(&mut self, note: String) -> String {
        let number = self.0.iter().position(|known| *known == note);
        let number = number.unwrap_or_else(|| {
            self.0.push(note);
            self.0.len() - 1
        });
        format!("- ({})", number + 1)
    }

    fn list(&self) -> String {
        let mut list = String::new();
        for (number, note) in (1..).zip(&self.0) {
            let separator = if number == 1 { "\n" } else { "" };
            let _ = writeln!(list, "{separator}{number}. {note}");
        }
        list
    }
}

/// The first line of a reason, as a cell can hold it, without the words that lead over to a console's last lines.
fn one_line(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    let line = line.split("; the last lines of").next().unwrap_or_default();
    line.replace('|', "\\|")
}

fn cells(kept: &Value) -> BTreeMap<(String, String), Cell> {
    let cell = |cell: &Value| {
        let more = &cell["more"];
        let reason = || more.as_str().unwrap_or_default().to_owned();
        let outcome = match cell["outcome"].as_str()? {
            "yes" => Cell::Yes(more.as_u64()),
            "no" => Cell::No(reason()),
            "not-here" => Cell::NotHere(reason()),
            _ => return None,
        };
        let name = |field: &str| Some(cell[field].as_str()?.to_owned());
        Some(((name("flavour")?, name("row")?), outcome))
    };
    kept.as_array()
        .map(|cells| cells.iter().filter_map(cell).collect())
        .unwrap_or_default()
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
impl Matrix {
    /// Without any result.
    pub(crate) fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            commit: "0123".to_owned(),
            date: "2026-01-02".to_owned(),
            cells: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_say_what_was_found() {
        let mut matrix = Matrix::empty(Path::new("unused"));
        let [first, second, third, ..] = Flavour::ALL;
        matrix.set(first, "opens", Cell::Yes(Some(12)));
        matrix.set(
            second,
            "opens",
            Cell::No("no | way; the last lines of 'log' are\nmore".to_owned()),
        );
        matrix.set(third, "opens", Cell::NotHere("Has no shell.".to_owned()));
        for flavour in &Flavour::ALL[3..] {
            matrix.set(*flavour, "opens", Cell::NotHere("No door.".to_owned()));
        }
        let table = matrix.table(&["opens"]).unwrap();
        assert!(
            table.contains(
                "| opens | yes (12 s) | no: no \\| way | - (1) | - (2) | - (2) | - (2) |\n"
            ),
            "{table}"
        );
        assert!(
            table.ends_with("\n\n1. Has no shell.\n2. No door.\n"),
            "{table}"
        );
        assert!(table.contains("commit 0123, 2026-01-02."), "{table}");
    }

    #[test]
    fn a_table_with_a_hole_is_none_and_the_hole_is_named() {
        let mut matrix = Matrix::empty(Path::new("unused"));
        for flavour in Flavour::ALL {
            matrix.set(flavour, "opens", Cell::No("why".to_owned()));
            matrix.set(flavour, "asks", Cell::NotHere("why not".to_owned()));
        }
        assert!(matrix.table(&["opens", "asks"]).is_ok());
        for (flavour, row) in [("debian13", "asks"), ("debian12", "asks")] {
            matrix.cells.remove(&(flavour.to_owned(), row.to_owned()));
        }
        assert!(matrix.table(&["opens"]).is_ok(), "a row of no table");
        let incomplete = matrix.table(&["opens", "asks"]).unwrap_err().to_string();
        assert_eq!(
            incomplete,
            "no result of this product yet for\n'asks' on debian12, debian13"
        );
    }

    #[test]
    fn kept_results_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut matrix = Matrix::empty(&folder.path().join("matrix.json"));
        for (flavour, cell) in Flavour::ALL.into_iter().zip([
            Cell::Yes(None),
            Cell::Yes(Some(3)),
            Cell::No("why".to_owned()),
            Cell::NotHere("why not".to_owned()),
        ]) {
            matrix.set(flavour, "opens", cell);
        }
        matrix.save().unwrap();
        let kept: Value = serde_json::from_slice(&fs::read(&matrix.path).unwrap()).unwrap();
        assert_eq!(cells(&kept["cells"]), matrix.cells);
    }
}
