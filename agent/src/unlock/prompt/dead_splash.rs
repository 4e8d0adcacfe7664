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

use tokio::process::Command;
use tokio::time::sleep;

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
        match look(Path::new(FOLDER), Path::new("/proc")) {
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
fn look(folder: &Path, proc: &Path) -> Splash {
    let pid_file = folder.join("pid");
    let text = match fs::read_to_string(&pid_file) {
        Ok(text) => text,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Splash::Living,
        Err(_) if folder.exists() => return Splash::Gone,
        Err(_) => return Splash::Never,
    };
    // Empty while it starts.
    let Ok(pid) = text.trim().parse::<u32>() else {
        return Splash::Living;
    };
    match fs::read_to_string(proc.join(format!("{pid}/stat"))) {
        Ok(stat) if !is_over(&stat) => return Splash::Living,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Splash::Living,
        _ => {}
    }
    match fs::remove_file(&pid_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("failed to remove '{}': {error}", pid_file.display());
            Splash::Living
        }
        _ => Splash::Gone,
    }
}

/// Whether a process has ended that nobody has waited for yet; the state follows the name, which may have brackets in it
/// (proc_pid_stat(5)).
fn is_over(stat: &str) -> bool {
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| matches!(rest.trim_start().as_bytes().first(), Some(b'Z' | b'X')))
}

/// Whether that was done. Never in the place of a job that is under way.
async fn start_console_agent() -> bool {
    let started = Command::new("systemctl")
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
    use super::*;

    /// What is seen of a pid file with `text`, where process 7 has this `stat`; whether the file is there afterwards.
    fn seen(text: &str, stat: Option<&str>) -> (Splash, bool) {
        let folder = tempfile::tempdir().unwrap();
        let (pid_file, proc) = (folder.path().join("pid"), folder.path().join("proc"));
        fs::write(&pid_file, text).unwrap();
        fs::create_dir_all(proc.join("7")).unwrap();
        if let Some(stat) = stat {
            fs::write(proc.join("7/stat"), stat).unwrap();
        }
        (look(folder.path(), &proc), pid_file.exists())
    }

    #[test]
    fn the_pid_file_of_a_killed_splash_screen_goes_and_that_of_a_living_one_stays() {
        assert_eq!(seen("7\n", None), (Splash::Gone, false));
        assert_eq!(
            seen("7", Some("7 (plymouthd) Z 1 7")),
            (Splash::Gone, false)
        );
        assert_eq!(
            seen("7\n", Some("7 (plymouthd) S 1 7")),
            (Splash::Living, true)
        );
        assert_eq!(
            seen("7\n", Some("7 (a ) Z b) S 1 7")),
            (Splash::Living, true)
        );
        assert_eq!(seen("", None), (Splash::Living, true));
    }

    #[test]
    fn one_that_crashed_or_quit_has_left_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let proc = Path::new("/proc");
        assert_eq!(look(folder.path(), proc), Splash::Gone);
        assert_eq!(look(&folder.path().join("absent"), proc), Splash::Never);
    }
}
