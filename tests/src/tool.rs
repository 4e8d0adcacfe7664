//! Runs the host's programs (mmdebstrap, cryptsetup, mke2fs, qemu-img, …) and turns their failures into errors
//! that show what the program said.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

/// Why a program of the host did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started at all.
    #[error("failed to start '{program}'\nrun `make deps`, which installs what the tests need")]
    Start {
        /// The program's name.
        program: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It ran and failed.
    #[error("'{command}' failed with {status}\n{stderr}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
}

/// Runs `command` to its end with `input` on its stdin; returns its stdout.
///
/// # Errors
/// `Start` if the program is missing, `Failed` if it exits non-zero.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Vec<u8>, ToolError> {
    let name = command_program(command);
    let start = |source| ToolError::Start {
        program: name.clone(),
        source,
    };
    let line = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // Beside the reading of what it prints, which it may not want to wait with.
        scope.spawn(move || {
            // A program that ends without reading its stdin tells us why by its status.
            stdin.map(|mut stdin| stdin.write_all(input))
        });
        child.wait_with_output()
    });
    let output = output.map_err(start)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let skip = stderr.lines().count().saturating_sub(SHOWN_LINES);
    Err(ToolError::Failed {
        command: line,
        status: output.status,
        stderr: stderr.lines().skip(skip).collect::<Vec<_>>().join("\n"),
    })
}

/// Like [`run_with_input`] with nothing on stdin.
///
/// # Errors
/// As there.
pub fn run(command: &mut Command) -> Result<Vec<u8>, ToolError> {
    run_with_input(command, b"")
}

/// How many of a failed program's last lines an error shows.
const SHOWN_LINES: usize = 20;

fn command_program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn describe(command: &Command) -> String {
    let arguments = command
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(command_program(command))
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_a_program_is_returned() {
        let output = run_with_input(&mut Command::new("cat"), b"in and out").unwrap();
        assert_eq!(output, b"in and out");
    }

    #[test]
    fn a_failure_shows_what_the_program_said() {
        let error =
            run(Command::new("sh").args(["-c", "echo so it goes >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("so it goes"), "{error}");
    }

    #[test]
    fn a_missing_program_names_the_remedy() {
        let error = run(&mut Command::new("no-such-program-of-the-rig")).unwrap_err();
        assert!(error.to_string().contains("make deps"), "{error}");
    }
}
