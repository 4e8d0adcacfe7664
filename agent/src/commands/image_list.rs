//! What the commands print that the builders of images call: lists, an item for each line.

use std::fmt::Display;
use std::io::{self, Write};

use crate::files::FilesError;

/// No list.
#[derive(Debug, thiserror::Error)]
pub enum ImageListError {
    /// crypttab.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// stdout.
    #[error("failed to write the list")]
    Write(#[source] io::Error),
}

/// Prints `items`.
///
/// # Errors
/// `Write`.
pub fn print(items: impl IntoIterator<Item = impl Display>) -> Result<(), ImageListError> {
    let mut out = io::stdout().lock();
    for item in items {
        writeln!(out, "{item}").map_err(ImageListError::Write)?;
    }
    Ok(())
}
