//! Is there a hibernated system to come back to? Then nothing secret may be in memory any more when it does.
//!
//! The kernel marks the first page of the swap space (kernel/power/swap.c): `S1SUSPEND` in the place of the signature.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::kernel_command_line::KernelCommandLine;
use super::volumes;
use crate::files::Files;
use crate::volume::source::Source;

const PAGE: u64 = 4096;
/// Bytes before the end of the first page (include/linux/swap.h, `union swap_header`).
const SIGNATURE: u64 = 10;
const HIBERNATED: &[u8] = b"S1SUSPEND";
const EFI_VARIABLE: &str =
    "/sys/firmware/efi/efivars/HibernateLocation-8cf2644b-4b0b-428f-9387-6d876050dc67";

/// Whether `resume=` names a space with a hibernated system; without that word, whether any mapping is such a space,
/// because systemd and dracut also find it by other ways. The mapping need not be ours: a logical volume in one of ours is
/// not.
pub fn is_waiting(files: &Files) -> bool {
    let of_kernel = fs::read_to_string(files.path("/proc/cmdline")).unwrap_or_default();
    let line = KernelCommandLine::parse(&of_kernel);
    if line.values("noresume").next().is_some() {
        return false;
    }
    // systemd 255 writes there where it hibernates to, and clears it when it has come back.
    if files.path(EFI_VARIABLE).exists() {
        return true;
    }
    let of_image = volumes::command_line_of_image(files);
    let both = KernelCommandLine::parse(&format!("{of_image} {of_kernel}"));
    let offset = both
        .values("resume_offset")
        .flatten()
        .last()
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    let named: Vec<PathBuf> = both
        .values("resume")
        .flatten()
        .filter_map(|device| Source::parse(device).resolve_below(files.root()).ok()?)
        .collect();
    if !named.is_empty() {
        return named
            .iter()
            .any(|device| is_hibernated(&files.path(&device.to_string_lossy()), offset));
    }
    fs::read_dir(files.path("/dev/mapper"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|mapping| is_hibernated(&mapping.path(), 0))
}

fn is_hibernated(device: &Path, offset: u64) -> bool {
    let mut found = [0; HIBERNATED.len()];
    let position = (offset + 1) * PAGE - SIGNATURE;
    File::open(device).is_ok_and(|device| device.read_exact_at(&mut found, position).is_ok())
        && found == HIBERNATED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(signature: &[u8], pages_before: usize) -> Vec<u8> {
        let mut space = vec![0; (pages_before + 2) * 4096];
        let at = (pages_before + 1) * 4096 - 10;
        space[at..at + signature.len()].copy_from_slice(signature);
        space
    }

    fn machine(command_line: &str, spaces: &[(&str, Vec<u8>)]) -> bool {
        let root = tempfile::tempdir().unwrap();
        let line = ("proc/cmdline", command_line.as_bytes().to_vec());
        for (path, content) in [line].iter().chain(spaces) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        is_waiting(&Files::under(root.path()))
    }

    #[test]
    fn a_hibernated_system_is_seen_where_resume_points() {
        let hibernated = || [("dev/vdb", space(HIBERNATED, 0))];
        assert!(machine("resume=/dev/vdb", &hibernated()));
        assert!(!machine("resume=/dev/vdb noresume", &hibernated()));
        assert!(!machine("resume=/dev/vdc", &hibernated()));
        assert!(!machine("quiet", &hibernated()));
        let swap = [("dev/vdb", space(b"SWAPSPACE2", 0))];
        assert!(!machine("resume=/dev/vdb", &swap));
        let by_image = [
            (
                "etc/cmdline.d/95resume.conf",
                b" resume=/dev/vdb\n".to_vec(),
            ),
            ("dev/vdb", space(HIBERNATED, 0)),
        ];
        assert!(machine("quiet", &by_image));
        let in_a_file = [("dev/vdb", space(HIBERNATED, 7))];
        assert!(machine("resume=/dev/vdb resume_offset=7", &in_a_file));
        assert!(!machine("resume=/dev/vdb", &in_a_file));
    }

    #[test]
    fn without_resume_all_mappings_are_looked_at() {
        let hibernated = [
            ("dev/mapper/control", Vec::new()),
            ("dev/mapper/vda2_crypt", space(b"", 0)),
            ("dev/mapper/vg-swap", space(HIBERNATED, 0)),
        ];
        assert!(machine("quiet", &hibernated));
        assert!(!machine("noresume", &hibernated));
        assert!(!machine("quiet", &[]));
    }
}
