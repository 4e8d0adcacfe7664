//! Where the data of a new volume begin, so that a device is written to in the pieces that suit it.
//!
//! As libcryptsetup aligns the data of an attached header (`device_topology_alignment`), from what the kernel says of the
//! device in sysfs-block(5).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::DATA;

const MIB: u64 = 1 << 20;
/// An optimal size that is no multiple of it is an invention of the device's.
const PAGE: u64 = 4096;

/// Bytes from the beginning of `device`, behind the keyslots.
pub fn data_offset(device: &Path) -> u64 {
    let Some(place) = sysfs(device) else {
        return DATA; // a file
    };
    // The queue of a partition is its disk's.
    let queue = |name: &str| {
        [place.join("queue"), place.join("../queue")]
            .iter()
            .find_map(|queue| number(&queue.join(name)))
    };
    offset(
        queue("minimum_io_size").unwrap_or(0),
        queue("optimal_io_size").unwrap_or(0),
        number(&place.join("alignment_offset")).unwrap_or(0),
    )
}

fn offset(minimum: u64, optimal: u64, shifted: u64) -> u64 {
    let suits = match optimal > minimum && optimal.is_multiple_of(PAGE) {
        true => optimal,
        false => minimum,
    };
    let aligned = match suits {
        0 => DATA,
        size if MIB.is_multiple_of(size) => DATA,
        size => DATA.next_multiple_of(size),
    };
    // Whole sectors of any size, whatever a device says.
    match shifted.is_multiple_of(512) && aligned.is_multiple_of(PAGE) {
        true => aligned + shifted,
        false => DATA,
    }
}

fn sysfs(device: &Path) -> Option<PathBuf> {
    let number = fs::metadata(device).ok()?.rdev();
    let place = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    // What stands beside a partition is found from where it really lies.
    fs::canonicalize(place).ok()
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_begin_at_a_multiple_of_what_suits_the_device() {
        let cases = [
            ((512, 0, 0), DATA),
            ((4096, 65536, 0), DATA),
            // Three disks with chunks of 512 KiB.
            ((512 << 10, 1536 << 10, 0), 33 * MIB / 2),
            ((512, 16_773_120, 0), 33_546_240),
            // 65535 sectors, which a bridge to USB invents.
            ((512, 33_553_920, 0), DATA),
            ((4096, 0, 3584), DATA + 3584),
        ];
        for ((minimum, optimal, shifted), expected) in cases {
            let found = offset(minimum, optimal, shifted);
            assert_eq!(found, expected, "{minimum} {optimal} {shifted}");
        }
    }
}
