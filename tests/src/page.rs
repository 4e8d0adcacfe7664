//! The table of `docs/compatibility.md`; what stands around it is written by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::flavour::Flavour;
use crate::matrix::{Cell, Seen};

const BEGIN: &str = "<!-- table -->\n";
const END: &str = "<!-- end of table -->\n";

/// The page has no place for the table.
#[derive(Debug, thiserror::Error)]
#[error("the page has no lines '{}' and '{}' for the table between them", BEGIN.trim(), END.trim())]
pub struct NoPlace;

/// The page with this table in the place of the one that it has.
///
/// # Errors
/// [`NoPlace`].
pub fn put(page: &str, table: &str) -> Result<String, NoPlace> {
    let (before, rest) = page.split_once(BEGIN).ok_or(NoPlace)?;
    let (_, after) = rest.split_once(END).ok_or(NoPlace)?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// The table in Markdown, its rows in this order; what was not played is a question mark.
pub fn table<'a>(
    rows: &[String],
    cell: impl Fn(Flavour, &str) -> Option<(&'a Cell, &'a Seen)>,
) -> String {
    let mut notes = Notes::default();
    let mut table = line("", Flavour::ALL.map(Flavour::title));
    table += "|---|---|---|---|---|---|---|\n";
    let products = Flavour::ALL.map(|flavour| {
        let cells = rows.iter().filter_map(|row| cell(flavour, row));
        products(cells.map(|(_, seen)| seen))
    });
    table += &line("commit of the product, day", products);
    for row in rows {
        let cells = Flavour::ALL.map(|flavour| match cell(flavour, row) {
            Some((cell, _)) => notes.text(cell),
            None => "?".to_owned(),
        });
        table += &line(row, cells);
    }
    table + &notes.list()
}

fn line(first: &str, cells: [impl AsRef<str>; 6]) -> String {
    let cells = cells.each_ref().map(AsRef::as_ref);
    format!("| {first} | {} |\n", cells.join(" | "))
}

/// The products that a column was seen on, the newest first; with the number of rows where there are several.
fn products<'a>(seen: impl Iterator<Item = &'a Seen>) -> String {
    let mut counts: BTreeMap<&Seen, usize> = BTreeMap::new();
    for seen in seen {
        *counts.entry(seen).or_default() += 1;
    }
    let text = |(seen, count): (&&Seen, &usize)| {
        let rows = match (counts.len(), count) {
            (1, _) => String::new(),
            (_, 1) => " (1 row)".to_owned(),
            (_, count) => format!(" ({count} rows)"),
        };
        format!("{}, {}{rows}", seen.commit, seen.date)
    };
    let products: Vec<String> = counts.iter().rev().map(text).collect();
    products.join("; ")
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(date: &str, commit: &str) -> Seen {
        Seen {
            date: date.to_owned(),
            commit: commit.to_owned(),
        }
    }

    #[test]
    fn cells_say_what_was_found() {
        let seen = seen("2026-01-02", "0123");
        let [first, second, third, fourth, ..] = Flavour::ALL;
        let cells = [
            (first, Cell::Yes(Some(12))),
            (
                second,
                Cell::No("no | way; the last lines of 'log' are\nmore".to_owned()),
            ),
            (third, Cell::NotHere("Has no shell.".to_owned())),
            (fourth, Cell::NotHere("No door.".to_owned())),
        ];
        let table = table(&["opens".to_owned()], |flavour, _| {
            let (_, cell) = cells.iter().find(|(known, _)| *known == flavour)?;
            Some((cell, &seen))
        });
        assert!(
            table.contains("| opens | yes (12 s) | no: no \\| way | - (1) | - (2) | ? | ? |\n"),
            "{table}"
        );
        assert!(
            table.ends_with("\n\n1. Has no shell.\n2. No door.\n"),
            "{table}"
        );
    }

    #[test]
    fn a_column_says_which_products_it_was_seen_on() {
        let (old, new) = (seen("2026-01-02", "ffff"), seen("2026-02-01", "0000"));
        assert_eq!(products([&old, &old].into_iter()), "ffff, 2026-01-02");
        assert_eq!(
            products([&old, &new, &old].into_iter()),
            "0000, 2026-02-01 (1 row); ffff, 2026-01-02 (2 rows)"
        );
        assert_eq!(products([].into_iter()), "");
    }

    #[test]
    fn what_stands_around_the_table_stays() {
        let page = format!("before\n{BEGIN}old\n{END}after\n");
        let new = put(&page, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}new\n{END}after\n"));
        assert!(put("before\nafter\n", "new\n").is_err());
    }
}
