//! Writes one line into crypttab, and takes the very same line out again.
//!
//! The file is the administrator's: what stood there stays, byte for byte, a copy goes to /var/lib/latchkey, and what
//! was written is read back. After a power cut the old or the new file is there.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::date;
use crate::files::{self, Files, FilesError};
use crate::volume::crypttab;

/// Mode of a crypttab that did not exist.
const NEW_MODE: u32 = 0o600;

/// Adds `line`; returns where the file from before was copied to, if there was one.
///
/// # Errors
/// `Read`, `Write`; `Format` if the line does not read back.
pub fn add(files: &Files, line: &str) -> Result<Option<PathBuf>, FilesError> {
    let path = real(&files.crypttab());
    let before = files::if_any(files::read(&path))?;
    let backup = match &before {
        Some(before) => {
            files::make_dir(&files.state())?;
            let backup = backup_path(files);
            files::write_new(&backup, before)?;
            Some(backup)
        }
        None => None,
    };
    let mut after = before.unwrap_or_default();
    if !after.is_empty() && !after.ends_with(b"\n") {
        after.push(b'\n');
    }
    after.extend(line.as_bytes());
    after.push(b'\n');
    replace(&path, &after)?;
    let written = files::if_any(files::read(&path))?.unwrap_or_default();
    let wanted = crypttab::parse(line).pop();
    let last = crypttab::parse(&String::from_utf8_lossy(&written)).pop();
    if written == after && last.map(Result::ok) == wanted.map(Result::ok) {
        Ok(backup)
    } else {
        Err(FilesError::Format {
            path,
            reason: "it reads back differently from what was written".to_owned(),
        })
    }
}

/// Takes `line` out again, if it still stands there as it was written.
///
/// # Errors
/// `Read`, `Write`.
pub fn remove(files: &Files, line: &str) -> Result<(), FilesError> {
    let path = real(&files.crypttab());
    let Some(before) = files::if_any(files::read(&path))? else {
        return Ok(());
    };
    let mut lines: Vec<&[u8]> = before.split_inclusive(|byte| *byte == b'\n').collect();
    let is_it = |one: &&[u8]| one.strip_suffix(b"\n").unwrap_or(one) == line.as_bytes();
    let Some(place) = lines.iter().rposition(is_it) else {
        return Ok(());
    };
    lines.remove(place);
    replace(&path, &lines.concat())
}

/// Where a link leads, so that it stays one.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn backup_path(files: &Files) -> PathBuf {
    let name = format!("crypttab-{}", date::stamp(date::now()));
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    std::iter::once(name.clone())
        .chain(numbered)
        .map(|name| files.state().join(name))
        .find(|path| !path.exists())
        .expect("there are more numbers than files")
}

/// Replaces the file in one step; it keeps its mode.
fn replace(path: &Path, text: &[u8]) -> Result<(), FilesError> {
    let new = path.with_file_name(".crypttab.latchkey-new");
    let write = || -> io::Result<()> {
        let mode = match fs::metadata(path) {
            Ok(metadata) => metadata.permissions().mode() & 0o777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => NEW_MODE,
            Err(error) => return Err(error),
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(NEW_MODE)
            .open(&new)?;
        file.write_all(text)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| FilesError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "data PARTUUID=0a none plain,cipher=aes-xts-plain64,hash=sha256,size=512";

    fn machine(crypttab: Option<&str>) -> (tempfile::TempDir, Files) {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        fs::create_dir(root.path().join("etc")).unwrap();
        if let Some(text) = crypttab {
            fs::write(files.crypttab(), text).unwrap();
            fs::set_permissions(files.crypttab(), Permissions::from_mode(0o640)).unwrap();
        }
        (root, files)
    }

    #[test]
    fn a_line_comes_and_goes_and_the_rest_stays() {
        for before in [
            "# mine\nroot UUID=1 none luks",
            "root UUID=1 none luks\n",
            "\n\n",
        ] {
            let (_root, files) = machine(Some(before));
            let backup = add(&files, LINE).unwrap().unwrap();
            assert_eq!(fs::read_to_string(&backup).unwrap(), before);
            let text = fs::read_to_string(files.crypttab()).unwrap();
            assert!(
                text.starts_with(before) && text.ends_with(&format!("\n{LINE}\n")),
                "{text}"
            );
            let mode = fs::metadata(files.crypttab()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o640);
            remove(&files, LINE).unwrap();
            remove(&files, LINE).unwrap();
            let after = fs::read_to_string(files.crypttab()).unwrap();
            assert_eq!(after.trim_end_matches('\n'), before.trim_end_matches('\n'));
        }
    }

    #[test]
    fn without_a_file_one_is_made() {
        let (_root, files) = machine(None);
        assert_eq!(add(&files, LINE).unwrap(), None);
        assert_eq!(
            fs::read_to_string(files.crypttab()).unwrap(),
            format!("{LINE}\n")
        );
    }

    #[test]
    fn a_line_that_was_edited_stays() {
        let edited = format!("{LINE},nofail\n");
        let (_root, files) = machine(Some(&edited));
        remove(&files, LINE).unwrap();
        assert_eq!(fs::read_to_string(files.crypttab()).unwrap(), edited);
    }
}
