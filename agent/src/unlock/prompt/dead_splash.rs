//! A splash screen that ends while it has the prompt, under systemd.
//!
//! While Plymouth's pid file is there, systemd's console agent does not start (`ConditionPathExists=!/run/plymouth/pid` in
//! `systemd-ask-password-console.path`), and nothing starts it later: when Plymouth has crashed, and taken the file away, or was
//! killed, and left it, nobody would be asked any more.

use std::convert::Infallible;
use std::fs;
use std::future::pending;
use std::io;
use std::path::Path;
use std::time::Duration;

use latchkey_secret::process;
use tokio::time::sleep;

use crate::unlock::ending;

/// Plymouth makes it, and leaves it.
const FOLDER: &str = "/run/plymouth";
const CONSOLE_AGENT: &str = "systemd-ask-password-console.path";
const PAUSE: Duration = Duration::from_secs(2);
/// To start the console agent, for each splash screen.
const TRIES: u32 = 5;

#[derive(Debug, PartialEq, Eq)]
enum Splash {
    /// There was none in this boot.
    Never,
    /// It asks, or is about to.
    Living,
    Gone,
}

/// Has the console ask in the place of a splash screen that has gone. Never ends. In the running system nobody's prompt depends
/// on it.
pub async fn replace() -> Infallible {
    if !Path::new("/etc/initrd-release").exists() {
        pending::<()>().await;
    }
    let mut tries = TRIES;
    loop {
        sleep(PAUSE).await;
        match look(Path::new(FOLDER)) {
            Splash::Living => tries = TRIES,
            Splash::Gone if tries > 0 => {
                // Without effect where the console asks already, and where a splash screen is just being started.
                let started = start_console_agent().await;
                tries = if started { 0 } else { tries - 1 };
            }
            Splash::Gone | Splash::Never => {}
        }
    }
}

/// Removes the pid file of a process that is no more.
fn look(folder: &Path) -> Splash {
    let pid_file = folder.join("pid");
    let text = match fs::read_to_string(&pid_file) {
        Ok(text) => text,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Splash::Living,
        Err(_) if folder.exists() => return Splash::Gone,
        Err(_) => return Splash::Never,
    };
    // Empty while it starts.
    let Ok(pid) = text.trim().parse() else {
        return Splash::Living;
    };
    let has_ended = match process::pidfd(pid) {
        Ok(None) => true,
        Ok(Some(handle)) => ending::is_gone(&handle, Duration::ZERO),
        Err(_) => false,
    };
    if !has_ended {
        return Splash::Living;
    }
    match fs::remove_file(&pid_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("failed to remove '{}': {error}", pid_file.display());
            Splash::Living
        }
        _ => Splash::Gone,
    }
}

/// Whether that was done. Never in the place of a job that is under way.
async fn start_console_agent() -> bool {
    let started = tokio::process::Command::new("systemctl")
        .args(["start", "--no-block", "--job-mode=fail", CONSOLE_AGENT])
        .status()
        .await;
    match started {
        Ok(status) if status.success() => {
            log::info!("there is no splash screen any more: the console asks");
            return true;
        }
        Ok(status) => log::warn!("failed to start {CONSOLE_AGENT}: {status}"),
        Err(error) => log::warn!("failed to start {CONSOLE_AGENT}: {error}"),
    }
    false
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What is seen of a pid file with `text`; whether the file is there afterwards.
    fn seen(text: &str) -> (Splash, bool) {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        fs::write(&pid_file, text).unwrap();
        (look(folder.path()), pid_file.exists())
    }

    #[test]
    fn the_pid_file_of_a_killed_splash_screen_goes_and_that_of_a_living_one_stays() {
        let mut splash = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = splash.id().to_string();
        assert_eq!(seen(&format!("{pid}\n")), (Splash::Living, true));
        assert_eq!(seen(""), (Splash::Living, true));
        splash.kill().unwrap();
        let handle = process::pidfd(splash.id().cast_signed()).unwrap().unwrap();
        assert!(ending::is_gone(&handle, Duration::from_secs(60)));
        assert_eq!(
            seen(&pid),
            (Splash::Gone, false),
            "nobody has waited for it"
        );
        splash.wait().unwrap();
        assert_eq!(seen(&format!("{pid}\n")), (Splash::Gone, false));
    }

    #[test]
    fn one_that_crashed_or_quit_has_left_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(look(folder.path()), Splash::Gone);
        assert_eq!(look(&folder.path().join("absent")), Splash::Never);
    }
}
