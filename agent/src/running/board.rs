//! What the service is doing, in one line, as `systemctl status` shows it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use latchkey_protocol::ServerId;

use crate::unlock::service_manager;

/// One entry for each key server; shared by all that work for it.
#[derive(Debug, Default)]
pub struct Board(RefCell<BTreeMap<String, Entry>>);

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Entry {
    link: String,
    trouble: Option<String>,
}

impl Board {
    /// How the connection to `server` stands.
    pub fn link(&self, server: &ServerId, link: &str) {
        self.change(server, |entry| link.clone_into(&mut entry.link));
    }

    /// What could not be done for `server`, or that all was done.
    pub fn trouble(&self, server: &ServerId, trouble: Option<&str>) {
        let first_line = |text: &str| text.lines().next().unwrap_or_default().to_owned();
        self.change(server, |entry| entry.trouble = trouble.map(first_line));
    }

    fn change(&self, server: &ServerId, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.0.borrow_mut();
        let entry = entries.entry(server.short()).or_default();
        let before = entry.clone();
        change(entry);
        if *entry != before {
            service_manager::status(&line(&entries));
        }
    }
}

fn line(entries: &BTreeMap<String, Entry>) -> String {
    let parts: Vec<String> = entries
        .iter()
        .map(|(server, entry)| match &entry.trouble {
            None => format!("key server {server}: {}", entry.link),
            Some(trouble) => format!("key server {server}: {}, but {trouble}", entry.link),
        })
        .collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_every_key_server_and_its_trouble() {
        let board = Board::default();
        let (a, b) = (
            ServerId::from_bytes([0x0a; 32]),
            ServerId::from_bytes([0x0b; 32]),
        );
        board.link(&a, "connected");
        board.link(&b, "not reached");
        board.trouble(&a, Some("its head is older\nmore of it"));
        let shown = line(&board.0.borrow());
        assert_eq!(
            shown,
            "key server 0a0a0a0a0a0a0a0a: connected, but its head is older; \
             key server 0b0b0b0b0b0b0b0b: not reached"
        );
        board.trouble(&a, None);
        assert!(!line(&board.0.borrow()).contains("but"));
    }
}
