//! A splash screen that died while it had the prompt, under systemd.
//!
//! Plymouth's pid file is what keeps systemd's console agent from starting (`ConditionPathExists=!/run/plymouth/pid` in
//! `systemd-ask-password-console.path`), and a Plymouth that was killed leaves it: nobody would be asked any more.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::sleep;

const PID_FILE: &str = "/run/plymouth/pid";
const CONSOLE_AGENT: &str = "systemd-ask-password-console.path";
const PAUSE: Duration = Duration::from_secs(2);

/// Has the console ask in the place of a splash screen that died. Never ends.
pub async fn replace_dead() -> Infallible {
    loop {
        sleep(PAUSE).await;
        if remove_stale(Path::new(PID_FILE), Path::new("/proc")) {
            log::warn!("the splash screen died: the console asks");
            start_console_agent().await;
        }
    }
}

/// Removes `pid_file` if nothing runs under the process id in it.
fn remove_stale(pid_file: &Path, proc: &Path) -> bool {
    let Ok(text) = fs::read_to_string(pid_file) else {
        return false; // there is no splash screen
    };
    // Empty while it starts.
    let Ok(pid) = text.trim().parse::<u32>() else {
        return false;
    };
    match fs::read_to_string(proc.join(format!("{pid}/stat"))) {
        Ok(stat) if !is_over(&stat) => return false,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return false,
        _ => {}
    }
    match fs::remove_file(pid_file) {
        Ok(()) => true,
        Err(error) => {
            log::warn!("failed to remove '{}': {error}", pid_file.display());
            false
        }
    }
}

/// Whether a process has ended that nobody has waited for yet; the state follows the name, which may have brackets in it
/// (proc_pid_stat(5)).
fn is_over(stat: &str) -> bool {
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| matches!(rest.trim_start().as_bytes().first(), Some(b'Z' | b'X')))
}

async fn start_console_agent() {
    let started = Command::new("systemctl")
        .args(["start", "--no-block", CONSOLE_AGENT])
        .status()
        .await;
    match started {
        Ok(status) if status.success() => {}
        Ok(status) => log::warn!("failed to start {CONSOLE_AGENT}: {status}"),
        Err(error) => log::warn!("failed to start {CONSOLE_AGENT}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a pid file with `text`, where process 7 has this `stat`.
    fn removed(text: &str, stat: Option<&str>) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let (pid_file, proc) = (folder.path().join("pid"), folder.path().join("proc"));
        fs::write(&pid_file, text).unwrap();
        fs::create_dir_all(proc.join("7")).unwrap();
        if let Some(stat) = stat {
            fs::write(proc.join("7/stat"), stat).unwrap();
        }
        let removed = remove_stale(&pid_file, &proc);
        assert_eq!(removed, !pid_file.exists());
        removed
    }

    #[test]
    fn the_pid_file_of_a_dead_splash_screen_goes_and_that_of_a_living_one_stays() {
        assert!(removed("7\n", None));
        assert!(removed("7", Some("7 (plymouthd) Z 1 7")));
        assert!(!removed("7\n", Some("7 (plymouthd) S 1 7")));
        assert!(!removed("7\n", Some("7 (a ) Z b) S 1 7")));
        assert!(!removed("", None));
        assert!(!remove_stale(Path::new("/nowhere/pid"), Path::new("/proc")));
    }
}
