//! What a program of the rig says when it fails.

use std::error::Error;

/// Prints `what` failed and why, each cause on a line of its own.
pub fn explain(what: &str, failure: &dyn Error) {
    eprintln!("{what} failed: {failure}");
    let mut cause = failure.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}
