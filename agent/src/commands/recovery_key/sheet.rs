//! The recovery sheet: all that a person needs to open a volume on a machine that has cryptsetup and not latchkey.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use latchkey_secret::{SecretBytes, SecretError};
use nix::sys::stat::makedev;

use super::pdf;
use crate::files::{self, FilesError};

/// Most bytes of a sheet as text.
const LIMIT: usize = 64 << 10;
/// The line of a sheet where its secret stands.
const INDENT: &str = "    ";
/// Major and minor number of /dev/null (null(4)).
const NULL: (u64, u64) = (1, 3);

/// What a sheet says. Everything but the secret is for everybody's eyes.
pub struct Sheet<'a> {
    /// Its first line.
    pub title: String,
    /// What the volume is, by name.
    pub facts: Vec<(&'static str, String)>,
    /// What the secret is.
    pub secret_name: &'static str,
    /// Printable ASCII.
    pub secret: &'a SecretBytes,
    /// What to do, in paragraphs; a command stands alone.
    pub steps: Vec<Step>,
}

/// A paragraph.
pub enum Step {
    /// A sentence.
    Say(String),
    /// A command line.
    Run(String),
}

/// Where a sheet goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// stdout, as text.
    Stdout,
    /// A new file: PDF if it is called so, else text.
    File(PathBuf),
}

impl Destination {
    /// `-` is stdout, if somebody could read it there.
    ///
    /// # Errors
    /// `Nobody`.
    pub fn of(argument: &Path) -> Result<Self, SheetError> {
        if argument != Path::new("-") {
            return Ok(Self::File(argument.to_owned()));
        }
        // One that was closed is /dev/null since this process began.
        let stdout = stdout().and_then(|stdout| stdout.metadata());
        match stdout.is_ok_and(|stdout| stdout.rdev() != makedev(NULL.0, NULL.1)) {
            true => Ok(Self::Stdout),
            false => Err(SheetError::Nobody),
        }
    }

    /// Says what to do with the sheet that went there.
    pub fn remind(&self) {
        match self {
            Self::Stdout => {
                log::info!("write the recovery sheet down or print it; it is not shown again")
            }
            Self::File(path) => log::info!(
                "the recovery sheet is in '{0}': print it, keep it away from this machine, then 'shred -u {0}'",
                path.display()
            ),
        }
    }

    /// Removes a sheet whose secret opens nothing.
    fn take_back(&self) {
        if let Self::File(path) = self
            && let Err(error) = fs::remove_file(path)
        {
            log::warn!(
                "'{}' has a key that opens nothing, and cannot be removed: {error}",
                path.display()
            );
        }
    }
}

/// There is no sheet.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    /// The file is there.
    #[error("'{0}' exists already; name another file for the recovery sheet")]
    Exists(PathBuf),
    /// The file.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// stdout is closed, or goes nowhere.
    #[error(
        "nobody reads standard output, and the recovery sheet would be lost\nname a file for it"
    )]
    Nobody,
    /// stdout.
    #[error("failed to print the recovery sheet")]
    Print(#[source] io::Error),
    /// No memory for it.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl Sheet<'_> {
    /// Puts it there, then has `make` give the key its keyslot: no key is ever in a header and on no paper. A sheet whose key
    /// opens nothing is taken back.
    ///
    /// # Errors
    /// A variant of [`SheetError`]; those of `make`.
    pub fn before<E: From<SheetError>>(
        &self,
        destination: &Destination,
        make: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.write(destination)?;
        make().inspect_err(|_| destination.take_back())
    }

    /// Prints it, or writes it through to the disk (mode 0600).
    ///
    /// # Errors
    /// A variant of [`SheetError`].
    pub fn write(&self, destination: &Destination) -> Result<(), SheetError> {
        let Destination::File(path) = destination else {
            let text = self.text()?;
            return stdout()
                .and_then(|mut stdout| stdout.write_all(text.expose_secret()))
                .map_err(SheetError::Print);
        };
        if path.symlink_metadata().is_ok() {
            return Err(SheetError::Exists(path.clone()));
        }
        if path.extension() == Some(OsStr::new("pdf")) {
            files::write_new(path, &pdf::of(self))?;
        } else {
            files::write_new(path, self.text()?.expose_secret())?;
        }
        Ok(())
    }

    /// As text, on locked pages.
    fn text(&self) -> Result<SecretBytes, SecretError> {
        let mut text = SecretBytes::with_capacity(LIMIT)?;
        let mut line = |line: &dyn Display| text.push(format!("{line}\n").as_bytes());
        line(&self.title)?;
        line(&"")?;
        for (name, value) in &self.facts {
            line(&format_args!("{name}: {value}"))?;
        }
        line(&format_args!("\n{}:\n", self.secret_name))?;
        text.push(INDENT.as_bytes())?;
        text.push(self.secret.expose_secret())?;
        text.push(b"\n")?;
        for step in &self.steps {
            let step = match step {
                Step::Say(sentence) => format!("\n{sentence}\n"),
                Step::Run(command) => format!("\n{INDENT}{command}\n"),
            };
            text.push(step.as_bytes())?;
        }
        Ok(text)
    }
}

/// Without the buffer of [`io::stdout`], which keeps what it was given, and takes it for written where nothing can be.
fn stdout() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// A word of a command line, quoted for sh(1) where it must be.
pub fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:=,+@%".contains(&byte);
    match !word.is_empty() && word.bytes().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &[u8]) -> SecretBytes {
        let mut secret = SecretBytes::with_capacity(text.len()).unwrap();
        secret.push(text).unwrap();
        secret
    }

    fn sheet(secret: &SecretBytes) -> Sheet<'_> {
        Sheet {
            title: "Recovery sheet for 'data'".to_owned(),
            facts: vec![("Device", "/dev/vdb".to_owned())],
            secret_name: "Recovery key",
            secret,
            steps: vec![
                Step::Say("To open it:".to_owned()),
                Step::Run("cryptsetup open /dev/vdb data".to_owned()),
            ],
        }
    }

    #[test]
    fn the_text_says_what_the_volume_is_and_how_it_opens() {
        let secret = secret(b"cbde-fghi");
        let text = sheet(&secret).text().unwrap();
        let text = str::from_utf8(text.expose_secret()).unwrap();
        assert_eq!(
            text,
            "Recovery sheet for 'data'\n\nDevice: /dev/vdb\n\nRecovery key:\n\n    cbde-fghi\n\n\
             To open it:\n\n    cryptsetup open /dev/vdb data\n"
        );
    }

    #[test]
    fn a_file_is_for_its_owner_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let secret = secret(b"cbde-fghi");
        for name in ["sheet.txt", "sheet.pdf"] {
            let path = folder.path().join(name);
            let file = Destination::of(&path).unwrap();
            sheet(&secret).write(&file).unwrap();
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
            let content = std::fs::read(&path).unwrap();
            assert_eq!(content.starts_with(b"%PDF-"), name.ends_with("pdf"));
            let again = sheet(&secret).write(&file).unwrap_err();
            assert!(again.to_string().contains("exists already"), "{again}");
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn words_that_a_shell_would_read_otherwise_are_quoted() {
        for (word, expected) in [
            ("/dev/disk/by-uuid/1-2", "/dev/disk/by-uuid/1-2"),
            ("", "''"),
            ("my disk", "'my disk'"),
            ("a'b", r"'a'\''b'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
