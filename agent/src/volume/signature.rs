//! Whether the beginning of a device is that of a file system or of something else that is known.
//!
//! A plain mapping of the right key on the wrong device, or bound with a wrong cipher, holds noise. Debian's scripts ask
//! blkid; this is a table of the few signatures that servers have (libblkid, file(1)).

/// How many bytes of a device are looked at.
pub const LENGTH: usize = 256 << 10;

/// What is found, where, by which bytes.
const TABLE: &[(&str, usize, &[u8])] = &[
    ("ext2, ext3 or ext4", 0x438, b"\x53\xef"),
    ("XFS", 0, b"XFSB"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("F2FS", 0x400, b"\x10\x20\xf5\xf2"),
    ("bcachefs", 0x1018, BCACHEFS),
    ("bcache", 0x1018, BCACHE),
    ("JFS", 0x8000, b"JFS1"),
    ("ReiserFS", 0x10034, b"ReIsEr"),
    ("NILFS2", 0x406, b"\x34\x34"),
    ("EROFS", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("squashfs", 0, b"hsqs"),
    ("swap", 0xff6, b"SWAPSPACE2"),
    ("swap", 0xfff6, b"SWAPSPACE2"),
    ("a hibernated system", 0xff6, b"S1SUSPEND"),
    ("LVM", 0x218, b"LVM2 001"),
    ("LVM", 0x18, b"LVM2 001"),
    ("LVM", 0x418, b"LVM2 001"),
    ("LVM", 0x618, b"LVM2 001"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("a member of an md array", 0x1000, b"\xfc\x4e\x2b\xa9"),
    ("a member of an md array", 0, b"\xfc\x4e\x2b\xa9"),
    ("ZFS", 0x20000, b"\x0c\xb1\xba\x00"),
    ("ZFS", 0x21000, b"\x0c\xb1\xba\x00"),
    ("GPT", 0x200, b"EFI PART"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("FAT", 0x52, b"FAT32   "),
    ("FAT", 0x36, b"FAT1"),
    ("an MBR or a boot sector", 0x1fe, b"\x55\xaa"),
    ("GFS2 or OCFS2", 0x10000, b"\x01\x16\x19\x70"),
];
/// Where something lies on a device of so many bytes.
type Place = fn(u64) -> Option<u64>;

/// What is found towards the end of a device, where, by which bytes.
pub const AT_END: &[(&str, Place, &[u8])] = &[
    ("GPT", |size| size.checked_sub(512), b"EFI PART"),
    (
        "a member of an md array",
        |size| (size & !0xffff).checked_sub(0x10000), // version 0.90
        b"\xfc\x4e\x2b\xa9",
    ),
    (
        "a member of an md array",
        |size| Some(size.checked_sub(0x2000)? & !0xfff), // version 1.0
        b"\xfc\x4e\x2b\xa9",
    ),
];
const BCACHEFS: &[u8] = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";

/// What a device holds that begins with `bytes`, if that is known.
pub fn of(bytes: &[u8]) -> Option<&'static str> {
    let is_there = |at: usize, magic: &[u8]| bytes.get(at..at + magic.len()) == Some(magic);
    TABLE
        .iter()
        .find(|(_, at, magic)| is_there(*at, magic))
        .map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_found_and_noise_is_none() {
        let zeros = vec![0; LENGTH];
        assert_eq!(of(&zeros), None);
        assert_eq!(of(&[]), None);
        for (name, at, magic) in TABLE {
            let mut bytes = zeros.clone();
            bytes[*at..*at + magic.len()].copy_from_slice(magic);
            assert_eq!(of(&bytes), Some(*name));
            assert_eq!(of(&bytes[..*at + magic.len() - 1]), None, "{name}");
        }
    }
}
