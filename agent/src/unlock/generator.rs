//! `latchkey generate`: what the initramfs' systemd.generator(7) of latchkey runs. For each volume that may be ours it puts a gate before
//! systemd's own unlocker.
//!
//! The gates are instances of `latchkey-gate@.service`; systemd-cryptsetup's unit of the same volume wants its gate, which
//! is ordered before it. Where the image says which volumes are bound, others get no gate and are never delayed.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::boot::Boot;
use super::volumes;
use crate::files::{Files, FilesError};
use crate::unit_name;

const GATE: &str = "/usr/lib/systemd/system/latchkey-gate@.service";
const NATIVE: &str = "systemd-cryptsetup";

/// The gates could not be put up. The native unlocker then prompts beside the agent.
#[derive(Debug, thiserror::Error)]
pub enum GeneratorError {
    /// A file that is needed.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A link could not be made.
    #[error("failed to make '{path}'")]
    Link {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes the links into `folder`, the generator's first argument.
///
/// # Errors
/// Every variant of [`GeneratorError`].
pub fn run(files: &Files, folder: &Path) -> Result<(), GeneratorError> {
    let boot = Boot::read(files);
    if boot.is_switched_off() {
        return Ok(());
    }
    let mut entries = volumes::of_this_boot(files, &boot.command_line, |_| {})?;
    volumes::retain_gated(files, &mut entries);
    for entry in entries {
        let instance = unit_name::escape(&entry.name);
        let wants = folder.join(format!("{NATIVE}@{instance}.service.wants"));
        let gate = wants.join(format!("latchkey-gate@{instance}.service"));
        let linked = fs::create_dir_all(&wants).and_then(|()| match symlink(GATE, &gate) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
        linked.map_err(|source| GeneratorError::Link {
            path: gate.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de";
    const B: &str = "9b3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0df";

    fn gates(bound: Option<&str>, command_line: &str) -> Vec<String> {
        let crypttab = format!("root-1 UUID={A} none luks\ndata UUID={B} none luks\n");
        gates_of(&crypttab, bound, command_line)
    }

    fn gates_of(crypttab: &str, bound: Option<&str>, command_line: &str) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let mut contents = vec![("etc/crypttab", crypttab), ("proc/cmdline", command_line)];
        contents.extend(bound.map(|bound| ("etc/latchkey/bound", bound)));
        for (path, content) in contents {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let folder = root.path().join("generated");
        run(&Files::under(root.path()), &folder).unwrap();
        run(&Files::under(root.path()), &folder).unwrap();
        let mut found = Vec::new();
        for wants in fs::read_dir(&folder).into_iter().flatten().flatten() {
            for gate in fs::read_dir(wants.path()).unwrap().flatten() {
                assert_eq!(fs::read_link(gate.path()).unwrap(), Path::new(GATE));
                let (wants, gate) = (wants.file_name(), gate.file_name());
                found.push(format!("{}/{}", wants.display(), gate.display()));
            }
        }
        found.sort();
        found
    }

    const ROOT: &str =
        r"systemd-cryptsetup@root\x2d1.service.wants/latchkey-gate@root\x2d1.service";
    const DATA: &str = "systemd-cryptsetup@data.service.wants/latchkey-gate@data.service";

    #[test]
    fn every_volume_that_may_be_bound_gets_a_gate() {
        assert_eq!(gates(None, "quiet"), [DATA, ROOT]);
        assert_eq!(gates(Some(&format!("{A}\n")), "quiet"), [ROOT]);
        assert_eq!(gates(Some(""), "quiet"), [""; 0]);
        assert_eq!(gates(None, "quiet latchkey=off"), [""; 0]);
        // At its build nobody could look at this one.
        assert_eq!(gates(Some(&format!("?{A} root-1\n")), "quiet"), [ROOT]);
    }

    #[test]
    fn a_volume_that_is_named_by_its_path_gets_a_gate_if_its_name_is_bound() {
        let crypttab = "root-1 /dev/vda2 none luks\ndata PARTUUID=1-1 none luks\n";
        assert_eq!(gates_of(crypttab, None, ""), [DATA, ROOT]);
        let bound = format!("{A} root-1\n");
        assert_eq!(gates_of(crypttab, Some(&bound), ""), [ROOT]);
    }
}
