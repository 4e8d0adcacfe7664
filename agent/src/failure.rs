//! How an error is shown: one line with everything that caused it.

use std::error::Error;

/// `error` and all its causes, joined by `: `. A cause that the text before it already tells is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}

/// `text` from a peer, fit for a console: line ends become `; `, other control
/// characters are escaped, at most 400 characters are kept.
pub fn printable(text: &str) -> String {
    let escape = |c: char| {
        let keep = !c.is_control();
        keep.then_some(c)
            .into_iter()
            .chain((!keep).then(|| c.escape_default()).into_iter().flatten())
    };
    let lines: Vec<&str> = text.trim().lines().collect();
    lines
        .join("; ")
        .chars()
        .take(400)
        .flat_map(escape)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to open '{0}'")]
    struct Outer(&'static str, #[source] std::io::Error);

    #[test]
    fn the_chain_names_every_cause_once() {
        let error = Outer("a", std::io::Error::other("no such thing"));
        assert_eq!(chain(&error), "failed to open 'a': no such thing");
    }

    #[test]
    fn a_peer_cannot_move_the_cursor() {
        assert_eq!(
            printable("a\x1b[2J\u{9b}ü\rb\nc\n"),
            "a\\u{1b}[2J\\u{9b}ü\\rb; c"
        );
        assert_eq!(printable(&"x".repeat(1000)).len(), 400);
    }
}
