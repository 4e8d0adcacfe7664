//! The head of an LVM physical volume with linear logical volumes, as bytes: a volume group without device-mapper. The
//! logical volumes lie one after the other behind it.
//!
//! Format: lvm2, `lib/label/label.h` and `lib/format_text/layout.h`; pvck(8) `--dump` shows it. One metadata area, at
//! the front, with one version of the text in it; the volume is as large as its logical volumes.

use std::fmt::Write;

/// Goes into the key of cached disks; raise it with whatever changes what [`head`] writes.
pub const FORMAT: &str = "1: 1 MiB before the data, 4 MiB extents";

/// Bytes before the first logical volume.
pub const HEAD: u64 = 1 << 20;
/// Logical volumes are a multiple of so many bytes.
pub const EXTENT: u64 = 4 << 20;

/// One linear logical volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its size in bytes.
    pub size: u64,
}

/// Bytes of the whole physical volume.
pub fn size(volumes: &[Volume]) -> u64 {
    HEAD + volumes.iter().map(|volume| volume.size).sum::<u64>()
}

/// Where each volume begins, in bytes from the start of the physical volume.
pub fn starts(volumes: &[Volume]) -> Vec<u64> {
    (0..volumes.len())
        .map(|number| size(&volumes[..number]))
        .collect()
}

/// The first [`HEAD`] bytes of the physical volume of the group `group`.
///
/// # Panics
/// If a size is no multiple of [`EXTENT`], or there are too many volumes.
pub fn head(group: &str, volumes: &[Volume]) -> Vec<u8> {
    let mut head = vec![0; HEAD as usize];
    let text = text(group, volumes);
    head[TEXT..TEXT + text.len()].copy_from_slice(&text);
    head[AREA..AREA + SECTOR].copy_from_slice(&area_header(&text));
    head[SECTOR..2 * SECTOR].copy_from_slice(&label(size(volumes)));
    head
}

const SECTOR: usize = 512;
/// The metadata area begins at the second page.
const AREA: usize = 4096;
const AREA_SIZE: u64 = HEAD - AREA as u64;
/// The text goes behind the area's header.
const TEXT: usize = AREA + SECTOR;

/// The label and the physical volume's header, which share a sector.
fn label(size: u64) -> [u8; SECTOR] {
    /// The checksum is over all that follows it.
    const CHECKED: usize = 20;
    const HEADER: u32 = 32;
    const EXTENSION_VERSION: u32 = 2;
    const USED: u32 = 1;
    let mut sector = Fields::default();
    sector.bytes(b"LABELONE").u64(1).u32(0).u32(HEADER);
    sector.bytes(b"LVM2 001");
    sector.bytes(id("pv").as_bytes()).u64(size);
    // Two lists, each ended by zeros: data, to the end of the device, and metadata.
    sector.u64(HEAD).u64(0).u64(0).u64(0);
    sector.u64(AREA as u64).u64(AREA_SIZE).u64(0).u64(0);
    sector.u32(EXTENSION_VERSION).u32(USED);
    let mut sector = sector.sector();
    let checksum = checksum(&sector[CHECKED..]);
    sector[CHECKED - 4..CHECKED].copy_from_slice(&checksum.to_le_bytes());
    sector
}

fn area_header(text: &[u8]) -> [u8; SECTOR] {
    const VERSION: u32 = 1;
    let mut sector = Fields::default();
    sector.u32(0).bytes(b" LVM2 x[5A%r0N*>").u32(VERSION);
    sector.u64(AREA as u64).u64(AREA_SIZE);
    let place = (TEXT - AREA) as u64;
    sector.u64(place).u64(text.len() as u64).u32(checksum(text));
    let mut sector = sector.sector();
    let checksum = checksum(&sector[4..]);
    sector[..4].copy_from_slice(&checksum.to_le_bytes());
    sector
}

/// The volume group as lvm2 writes it, with the zero byte that ends it.
fn text(group: &str, volumes: &[Volume]) -> Vec<u8> {
    let size = size(volumes);
    let mut text = format!(
        r#"{group} {{
id = "{}"
seqno = 1
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = {}
max_lv = 0
max_pv = 0
metadata_copies = 0

physical_volumes {{

pv0 {{
id = "{}"
device = "/dev/unknown"
status = ["ALLOCATABLE"]
flags = []
dev_size = {}
pe_start = {}
pe_count = {}
}}
}}

logical_volumes {{
"#,
        dashed(&id(group)),
        sectors(EXTENT),
        dashed(&id("pv")),
        sectors(size),
        sectors(HEAD),
        (size - HEAD) / EXTENT,
    );
    let mut first = 0;
    for volume in volumes {
        assert_eq!(volume.size % EXTENT, 0, "the size of '{}'", volume.name);
        let extents = volume.size / EXTENT;
        write!(
            text,
            r#"
{} {{
id = "{}"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
segment_count = 1

segment1 {{
start_extent = 0
extent_count = {extents}

type = "striped"
stripe_count = 1

stripes = [
"pv0", {first}
]
}}
}}
"#,
            volume.name,
            dashed(&id(volume.name)),
        )
        .expect("a string takes everything");
        first += extents;
    }
    text += "}\n\n}\ncontents = \"Text Format Volume Group\"\nversion = 1\n\ndescription = \"\"\n\
             creation_host = \"debian-rig\"\ncreation_time = 1700000000\n\n";
    assert!(text.len() < HEAD as usize - TEXT, "the text fits");
    text.push('\0');
    text.into_bytes()
}

/// A name in the 32 letters and digits of lvm2's ids, the same each time.
fn id(name: &str) -> String {
    format!("{name:A<32}")
}

/// An id as the text has it.
fn dashed(id: &str) -> String {
    let mut dashed = id.to_owned();
    for at in [26, 22, 18, 14, 10, 6] {
        dashed.insert(at, '-');
    }
    dashed
}

fn sectors(bytes: u64) -> u64 {
    bytes / SECTOR as u64
}

/// CRC-32 without the last complement, from lvm2's own first value.
fn checksum(bytes: &[u8]) -> u32 {
    const FIRST: u32 = 0xf597_a6cf;
    const POLYNOMIAL: u32 = 0xedb8_8320;
    bytes.iter().fold(FIRST, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (POLYNOMIAL & (sum & 1).wrapping_neg())
        })
    })
}

/// Little-endian fields, one after the other.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn u32(&mut self, number: u32) -> &mut Self {
        self.bytes(&number.to_le_bytes())
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_le_bytes())
    }

    /// One sector of them, the rest zeros.
    fn sector(mut self) -> [u8; SECTOR] {
        self.0.resize(SECTOR, 0);
        self.0.try_into().expect("resized to it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUMES: &[Volume] = &[
        Volume {
            name: "root",
            size: 3 * EXTENT,
        },
        Volume {
            name: "swap",
            size: EXTENT,
        },
    ];

    fn number(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_label_leads_to_the_text_by_way_of_the_metadata_area() {
        let head = head("vg", VOLUMES);
        assert_eq!(head.len() as u64, HEAD);
        assert_eq!(head[512..520], *b"LABELONE");
        assert_eq!(head[536..544], *b"LVM2 001");
        let header = 512 + 32;
        assert_eq!(number(&head, header + 32), HEAD + 4 * EXTENT, "device size");
        assert_eq!(number(&head, header + 40), HEAD, "data");
        let area = number(&head, header + 72) as usize;
        assert_eq!(area as u64 + number(&head, header + 80), HEAD, "metadata");
        assert_eq!(head[area + 4..area + 20], *b" LVM2 x[5A%r0N*>");
        let text = area + number(&head, area + 40) as usize;
        let length = number(&head, area + 48) as usize;
        assert!(head[text..].starts_with(b"vg {\n"));
        assert_eq!(head[text + length - 2..text + length], *b"\n\0");
    }

    #[test]
    fn volumes_lie_one_after_the_other() {
        assert_eq!(starts(VOLUMES), [HEAD, HEAD + 3 * EXTENT]);
        let text = String::from_utf8(text("vg", VOLUMES)).unwrap();
        for line in ["pe_count = 4", "\"pv0\", 0\n", "\"pv0\", 3\n"] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn ids_are_lvm2s() {
        assert_eq!(
            dashed(&id("root")),
            "rootAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
        );
    }

    #[test]
    fn the_checksum_is_crc_32_from_another_first_value() {
        // By the CRC's linearity: over four bytes that cancel the first value it is that of zeros from zero.
        assert_eq!(checksum(&0xf597_a6cf_u32.to_le_bytes()), 0);
        assert_eq!(checksum(b""), 0xf597_a6cf);
        // The CRC-32 of one byte, whose first value and complement are all ones: the table's entry for it.
        assert_eq!(checksum(&[0xcf]), 0xf597_a6cf >> 8);
    }
}
