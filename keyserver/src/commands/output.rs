//! What commands print: data on standard output, everything else on standard error. Printing never panics.

use std::io::Write;

use serde::Serialize;

use super::{FAILED, Failure};

/// Prints one line (or block) of data.
pub fn data(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
    written.map_err(|error| Failure {
        code: FAILED,
        text: format!("failed to write to standard output: {error}"),
    })
}

/// Prints something for the person.
pub fn hint(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    data(&serde_json::to_string_pretty(value).map_err(|error| Failure::of(&error))?)
}

/// Prints a value as one line of JSON.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    data(&serde_json::to_string(value).map_err(|error| Failure::of(&error))?)
}

/// Prints rows under a heading, or a hint where there are none.
pub fn listing<const N: usize>(
    heading: [&str; N],
    rows: &[[String; N]],
    none: &str,
) -> Result<(), Failure> {
    if rows.is_empty() {
        hint(none);
        return Ok(());
    }
    data(&table(heading, rows))
}

fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let heading = heading.map(str::to_owned);
    let lines = std::iter::once(&heading).chain(rows);
    let mut widths = [0; N];
    for line in lines.clone() {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    lines
        .map(|line| {
            let cells: Vec<String> = line
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            ["a".to_owned(), "1".to_owned()],
            ["long".to_owned(), String::new()],
        ];
        assert_eq!(table(["NAME", "N"], &rows), "NAME  N\na     1\nlong");
    }
}
