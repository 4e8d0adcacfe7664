//! A LUKS2 header as it lies on the disk (LUKS2 on-disk format, 2.1), read without libcryptsetup: that would repair
//! what it finds.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Where the data begin, as cryptsetup formats.
pub const DATA: usize = 16 << 20;
const BINARY: usize = 4096;
/// The size of one copy, as cryptsetup formats.
pub const COPY: usize = 0x4000;

/// The JSON of the newer one of the copies that are whole; `None` if neither is.
pub fn newest(bytes: &[u8]) -> Option<Value> {
    let copies = [&bytes[..COPY], &bytes[COPY..2 * COPY]];
    let whole = copies.into_iter().filter(|copy| is_whole(copy));
    json(whole.max_by_key(|copy| u64::from_be_bytes(copy[16..24].try_into().unwrap()))?)
}

/// The JSON of both copies; `None` for one that is not whole.
pub fn copies(bytes: &[u8]) -> [Option<Value>; 2] {
    [&bytes[..COPY], &bytes[COPY..2 * COPY]]
        .map(|copy| is_whole(copy).then(|| json(copy)).flatten())
}

fn json(copy: &[u8]) -> Option<Value> {
    let json = &copy[BINARY..];
    let end = json.iter().position(|byte| *byte == 0)?;
    serde_json::from_slice(&json[..end]).ok()
}

fn is_whole(copy: &[u8]) -> bool {
    const SUM: std::ops::Range<usize> = 0x1c0..0x200;
    let mut without = copy.to_vec();
    without[SUM].fill(0);
    copy[SUM][..32] == Sha256::digest(without)[..]
}

/// The bytes of a keyslot's area.
pub fn area<'a>(bytes: &'a [u8], json: &Value, slot: &str) -> &'a [u8] {
    let area = &json["keyslots"][slot]["area"];
    let number = |value: &Value| value.as_str().unwrap().parse::<usize>().unwrap();
    let (offset, size) = (number(&area["offset"]), number(&area["size"]));
    &bytes[offset..offset + size]
}
