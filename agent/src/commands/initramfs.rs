//! Rebuilding the initramfs after something changed that lies in it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::SystemTime;

use crate::files::{Files, Role};

/// Rebuilds the images of all kernels, so that an older one chosen in the boot menu works too.
const PROGRAM: &str = "update-initramfs";
const ARGUMENTS: [&str; 3] = ["-u", "-k", "all"];

/// Whether a command rebuilds the images at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// It does.
    Yes,
    /// `--no-initramfs`: somebody else does.
    No,
}

/// The images were not rebuilt. The volume itself is as the command says.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The program is not there or cannot run.
    #[error(
        "failed to run '{PROGRAM}'\n\
         rebuild the initramfs of every kernel, else the next boot does not know of the change"
    )]
    Run(#[source] io::Error),
    /// It failed; its output is above.
    #[error(
        "'{PROGRAM} -u -k all' failed ({0}); its messages stand above\n\
         correct what it complains about and run it again, else the next boot does not know of the change"
    )]
    Failed(ExitStatus),
}

/// Runs `update-initramfs`; its output goes to stderr.
///
/// # Errors
/// `Run`, `Failed`.
pub fn rebuild(wish: Rebuild) -> Result<(), RebuildError> {
    if wish == Rebuild::No {
        log::info!(
            "the initramfs is not rebuilt, as asked: run '{PROGRAM} -u -k all' before the next boot"
        );
        return Ok(());
    }
    log::info!("rebuilding the initramfs of every kernel");
    let status = Command::new(PROGRAM)
        .args(ARGUMENTS)
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .map_err(RebuildError::Run)?;
    if status.success() {
        Ok(())
    } else {
        Err(RebuildError::Failed(status))
    }
}

/// Images in /boot that are older than a boot key or the recorded network, which they therefore do not hold.
pub fn stale_images(files: &Files) -> Vec<PathBuf> {
    let modified = |path: &PathBuf| fs::metadata(path).and_then(|found| found.modified()).ok();
    let mut inputs = vec![files.network()];
    if let Ok(servers) = files.servers() {
        inputs.extend(
            servers
                .into_iter()
                .flatten()
                .map(|server| server.key_path(Role::Boot)),
        );
    }
    let newest: Option<SystemTime> = inputs.iter().filter_map(modified).max();
    let Some(newest) = newest else {
        return Vec::new();
    };
    let mut stale: Vec<PathBuf> = fs::read_dir(files.path("/boot"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_image(path) && modified(path).is_some_and(|built| built < newest))
        .collect();
    stale.sort();
    stale
}

fn is_image(path: &std::path::Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("initrd.img-") && !name.ends_with(".bak") && !name.ends_with(".dpkg-bak")
}
