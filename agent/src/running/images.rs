//! The images that were built on this machine: what builds one leaves its build id, and the host key announces it, so
//! that a new kernel's image is no surprise to the key server.

use latchkey_protocol::encoding::{Bytes, unhex};
use latchkey_protocol::wire::IMAGES_LIMIT;

use crate::files::{self, Files};

/// The build ids in `/var/lib/latchkey/images`, the newest first; lines that are none are passed over.
pub fn built(files: &Files) -> Vec<Bytes<32>> {
    let text = files::read_text(&files.images()).unwrap_or_default();
    parse(&text)
}

fn parse(text: &str) -> Vec<Bytes<32>> {
    let ids = text
        .lines()
        .filter_map(|line| unhex(line.trim()).map(Bytes));
    ids.take(IMAGES_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_eight_are_announced_and_damaged_lines_are_not() {
        let id = |number: usize| format!("{number:02x}").repeat(32);
        let lines: Vec<String> = (0..10).map(id).collect();
        let read = parse(&format!("half\n\n{}\n", lines.join("\n")));
        assert_eq!(read.len(), IMAGES_LIMIT);
        assert_eq!((read[0], read[7]), (Bytes([0; 32]), Bytes([7; 32])));
        assert!(parse("").is_empty());
    }
}
