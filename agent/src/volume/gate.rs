//! Whether a LUKS2 header is still the one that was bound: the check before anything opens without a person.
//!
//! A header is not authenticated, so whoever can write the disk can forge one: with a null cipher, a half-finished
//! reencryption, a key derivation that takes a week or all memory. Only what the binding authenticated counts, and
//! what it does not mention must be what every plain LUKS2 volume has. (CVE-2021-4122, CVE-2025-59054; LUKS2 on-disk
//! format, 3.) The result says nothing about the volume key: see `open`.

mod integrity;
mod refusal;
#[cfg(test)]
mod tests;

use latchkey_protocol::encoding::{Bytes, length_prefixed};
use latchkey_protocol::envelope::{Bound, BoundIntegrity, BoundLuks2};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use refusal::GateError;

/// Flags that only tune dm-crypt; LUKS2 keeps them for the administrator. `allow-discards` shows which sectors are
/// free, and nothing else.
const ALLOWED_FLAGS: [&str; 5] = [
    "allow-discards",
    "same-cpu-crypt",
    "submit-from-crypt-cpus",
    "no-read-workqueue",
    "no-write-workqueue",
];
/// What a keyslot of ours has.
const KEYSLOT_HASHES: [&str; 2] = ["sha256", "sha512"];
/// What `cryptsetup luksFormat --hash` was given; the volume key's identity is checked independently of it.
const DIGEST_HASHES: [&str; 11] = [
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "sha3-256",
    "sha3-512",
    "ripemd160",
    "whirlpool",
    "blake2b-512",
    "blake2s-256",
];
/// What libcryptsetup takes for keyslots when the data cipher cannot be used.
const DEFAULT_AREA_CIPHER: &str = "aes-xts-plain64";
/// libcryptsetup's digest takes an eighth of a second when the volume is made; this is seconds anywhere.
const DIGEST_ITERATIONS_LIMIT: u64 = 10_000_000;
const STRIPES: u64 = 4000;
const BINARY_HEADER: u64 = 4096;
const FINGERPRINT_DOMAIN: &[u8] = b"latchkey header v1";

/// Whether a header stands in front of its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// It does, so the data begins behind it.
    Attached,
    /// It lies elsewhere.
    Detached,
}

/// Checks a header, given by its UUID and JSON, against what was bound.
///
/// # Errors
/// The first check that failed.
pub fn check(
    uuid: &str,
    json: &Value,
    bound_uuid: &str,
    bound: &BoundLuks2,
    position: Position,
) -> Result<(), GateError> {
    if uuid != bound_uuid {
        return Err(GateError::Uuid {
            found: uuid.to_owned(),
            bound: bound_uuid.to_owned(),
        });
    }
    let header = fields(
        json,
        "JSON",
        &["keyslots", "tokens", "segments", "digests", "config"],
    )?;
    let config = fields(
        member(header, "config")?,
        "config",
        &["json_size", "keyslots_size", "flags", "requirements"],
    )?;
    check_config(config)?;
    check_segment(object(header, "segments")?, &Segment::from(bound), config)?;
    check_keyslot(object(header, "keyslots")?, config, bound, position)?;
    check_digest(object(header, "digests")?, bound)
}

/// Whether a volume with this header could be bound: the checks that concern no keyslot of ours.
///
/// # Errors
/// The first check that would refuse automatic opening.
pub fn check_fit(json: &Value) -> Result<(), GateError> {
    let header = json.as_object().ok_or(GateError::Shape("header"))?;
    let config = object(header, "config")?;
    check_config(config)?;
    let segments = object(header, "segments")?;
    if segments.len() != 1 {
        return Err(GateError::Segments(segments.len()));
    }
    let segment = Segment::read(&json["segments"]["0"])?;
    check_segment(segments, &segment, config)?;
    check_keyslot_types(object(header, "keyslots")?)
}

/// What is to be bound of a header whose keyslot `slot` holds the machine secret.
///
/// # Errors
/// `Shape`; whether the facts pass, [`check`] says.
pub fn facts(json: &Value, slot: u32, volume_key_id: Bytes<32>) -> Result<BoundLuks2, GateError> {
    let segment = Segment::read(&json["segments"]["0"])?;
    let keyslot = &json["keyslots"][slot.to_string()];
    let kind = text(&keyslot["kdf"], "type")?;
    if kind != "pbkdf2" {
        return Err(GateError::Kdf(kind.to_owned()));
    }
    Ok(BoundLuks2 {
        keyslot: slot,
        iterations: small(&keyslot["kdf"], "iterations")?,
        cipher: segment.cipher.to_owned(),
        key_size: small(keyslot, "key_size")?,
        sector_size: segment.sector_size,
        offset: segment.offset,
        volume_key_id,
        integrity: segment.integrity,
    })
}

/// SHA-256 over what a header says of the facts that were bound; a key server compares it with the last boot's.
///
/// A tripwire and no evidence: whether the header may be opened, [`check`] says.
pub fn fingerprint(uuid: &str, json: &Value, bound: &BoundLuks2) -> Bytes<32> {
    let found = match facts(json, bound.keyslot, bound.volume_key_id) {
        Ok(found) => Bound::Luks2(found).encode(),
        Err(_) => Vec::new(),
    };
    let encoded = length_prefixed(&[FINGERPRINT_DOMAIN, uuid.as_bytes(), &found]);
    Bytes(Sha256::digest(encoded).into())
}

/// As [`fingerprint`], of a volume whose header shows key servers nothing of its own.
pub fn fingerprint_as_bound(uuid: &str, bound: &Bound) -> Bytes<32> {
    let encoded = length_prefixed(&[FINGERPRINT_DOMAIN, uuid.as_bytes(), &bound.encode()]);
    Bytes(Sha256::digest(encoded).into())
}

/// The part of the binding that concerns the data segment.
struct Segment<'a> {
    cipher: &'a str,
    sector_size: u32,
    offset: u64,
    integrity: Option<BoundIntegrity>,
}

impl<'a> Segment<'a> {
    fn read(segment: &'a Value) -> Result<Self, GateError> {
        Ok(Self {
            cipher: text(segment, "encryption")?,
            sector_size: small(segment, "sector_size")?,
            offset: number_text(segment, "offset")?,
            integrity: integrity::read(segment)?,
        })
    }
}

impl<'a> From<&'a BoundLuks2> for Segment<'a> {
    fn from(bound: &'a BoundLuks2) -> Self {
        Self {
            cipher: &bound.cipher,
            sector_size: bound.sector_size,
            offset: bound.offset,
            integrity: bound.integrity.clone(),
        }
    }
}

fn check_config(config: &Map<String, Value>) -> Result<(), GateError> {
    // An empty object would be harmless, but libcryptsetup does not write one.
    if config.contains_key("requirements") {
        return Err(GateError::Requirements);
    }
    let Some(flags) = config.get("flags") else {
        return Ok(());
    };
    for flag in flags.as_array().ok_or(GateError::Shape("flags"))? {
        let flag = flag.as_str().ok_or(GateError::Shape("flags"))?;
        if !ALLOWED_FLAGS.contains(&flag) {
            return Err(GateError::Flag(flag.to_owned()));
        }
    }
    Ok(())
}

fn check_segment(
    segments: &Map<String, Value>,
    bound: &Segment<'_>,
    config: &Map<String, Value>,
) -> Result<(), GateError> {
    if segments.len() != 1 {
        return Err(GateError::Segments(segments.len()));
    }
    let segment = member(segments, "0")?;
    let kind = text(segment, "type")?;
    if kind != "crypt" {
        return Err(GateError::SegmentType(kind.to_owned()));
    }
    integrity::check(segment, bound.integrity.as_ref(), config)?;
    if segment.get("flags").is_some() {
        return Err(GateError::SegmentFlags);
    }
    let known = [
        "type",
        "offset",
        "size",
        "iv_tweak",
        "encryption",
        "sector_size",
        "integrity",
    ];
    fields(segment, "segment", &known)?;
    let cipher = text(segment, "encryption")?;
    if is_null(cipher) || is_null(bound.cipher) {
        return Err(GateError::NullCipher);
    }
    if cipher != bound.cipher {
        return Err(GateError::Cipher {
            found: cipher.to_owned(),
            bound: bound.cipher.to_owned(),
        });
    }
    let sector_size = number(segment, "sector_size")?;
    if sector_size != u64::from(bound.sector_size) {
        return Err(GateError::SectorSize {
            found: sector_size,
            bound: bound.sector_size,
        });
    }
    let offset = number_text(segment, "offset")?;
    if offset != bound.offset {
        return Err(GateError::Offset {
            found: offset,
            bound: bound.offset,
        });
    }
    if text(segment, "size")? != "dynamic" {
        return Err(GateError::SegmentSize);
    }
    if number_text(segment, "iv_tweak")? != 0 {
        return Err(GateError::IvTweak);
    }
    Ok(())
}

fn check_keyslot(
    keyslots: &Map<String, Value>,
    config: &Map<String, Value>,
    bound: &BoundLuks2,
    position: Position,
) -> Result<(), GateError> {
    check_keyslot_types(keyslots)?;
    let keyslot = keyslots
        .get(&bound.keyslot.to_string())
        .ok_or(GateError::NoKeyslot(bound.keyslot))?;
    fields(
        keyslot,
        "keyslot",
        &["type", "key_size", "priority", "af", "area", "kdf"],
    )?;
    let key_size = number(keyslot, "key_size")?;
    if key_size != u64::from(bound.key_size) {
        return Err(GateError::KeySize {
            found: key_size,
            bound: bound.key_size,
        });
    }
    check_kdf(&keyslot["kdf"], bound)?;
    check_anti_forensic(&keyslot["af"])?;
    check_area(&keyslot["area"], config, bound, position)
}

fn check_keyslot_types(keyslots: &Map<String, Value>) -> Result<(), GateError> {
    for (slot, keyslot) in keyslots {
        let kind = text(keyslot, "type")?;
        if kind != "luks2" {
            return Err(GateError::KeyslotType {
                slot: slot.clone(),
                kind: kind.to_owned(),
            });
        }
    }
    Ok(())
}

fn check_kdf(kdf: &Value, bound: &BoundLuks2) -> Result<(), GateError> {
    let kind = text(kdf, "type")?;
    if kind != "pbkdf2" {
        return Err(GateError::Kdf(kind.to_owned()));
    }
    fields(
        kdf,
        "keyslot's kdf",
        &["type", "hash", "iterations", "salt"],
    )?;
    hash(kdf, "keyslot's kdf", &KEYSLOT_HASHES)?;
    let iterations = number(kdf, "iterations")?;
    if iterations > u64::from(bound.iterations) {
        return Err(GateError::Iterations {
            found: iterations,
            bound: bound.iterations,
        });
    }
    Ok(())
}

fn check_anti_forensic(af: &Value) -> Result<(), GateError> {
    let usual = text(af, "type")? == "luks1" && number(af, "stripes")? == STRIPES;
    if !usual {
        return Err(GateError::AntiForensic);
    }
    hash(af, "keyslot's anti-forensic splitting", &KEYSLOT_HASHES)
}

fn check_area(
    area: &Value,
    config: &Map<String, Value>,
    bound: &BoundLuks2,
    position: Position,
) -> Result<(), GateError> {
    if text(area, "type")? != "raw" {
        return Err(GateError::Area);
    }
    let cipher = text(area, "encryption")?;
    if is_null(cipher) || (cipher != bound.cipher && cipher != DEFAULT_AREA_CIPHER) {
        return Err(GateError::AreaCipher(cipher.to_owned()));
    }
    if !matches!(number(area, "key_size")?, 16..=64) {
        return Err(GateError::AreaCipher(cipher.to_owned()));
    }
    let config = Value::Object(config.clone());
    let json_size = number_text(&config, "json_size")?;
    let keyslots_size = number_text(&config, "keyslots_size")?;
    let (offset, size) = (number_text(area, "offset")?, number_text(area, "size")?);
    let inside = || {
        let start = json_size.checked_add(BINARY_HEADER)?.checked_mul(2)?;
        let end = start.checked_add(keyslots_size)?;
        Some(
            start <= offset
                && offset.checked_add(size)? <= end
                && (position == Position::Detached || end <= bound.offset)
                && u64::from(bound.key_size).checked_mul(STRIPES)? <= size,
        )
    };
    if inside() == Some(true) {
        Ok(())
    } else {
        Err(GateError::Area)
    }
}

fn check_digest(digests: &Map<String, Value>, bound: &BoundLuks2) -> Result<(), GateError> {
    let slot = bound.keyslot.to_string();
    let names = |digest: &Value, list: &'static str, wanted: &str| {
        let list = digest[list].as_array().ok_or(GateError::Shape(list))?;
        Ok(list.iter().any(|item| item.as_str() == Some(wanted)))
    };
    let mut common = None;
    for digest in digests.values() {
        match (
            names(digest, "segments", "0")?,
            names(digest, "keyslots", &slot)?,
        ) {
            (false, false) => {}
            (true, true) if common.is_none() => common = Some(digest),
            _ => return Err(GateError::Digest),
        }
    }
    let digest = common.ok_or(GateError::Digest)?;
    if text(digest, "type")? != "pbkdf2" {
        return Err(GateError::Digest);
    }
    hash(digest, "digest", &DIGEST_HASHES)?;
    let iterations = number(digest, "iterations")?;
    if iterations > DIGEST_ITERATIONS_LIMIT {
        return Err(GateError::DigestIterations(iterations));
    }
    Ok(())
}

/// dm-crypt's null cipher, with whatever mode.
pub(super) fn is_null(cipher: &str) -> bool {
    cipher.is_empty() || cipher == "null" || cipher.contains("cipher_null")
}

fn hash(value: &Value, place: &'static str, known: &[&str]) -> Result<(), GateError> {
    let hash = text(value, "hash")?;
    if known.contains(&hash) {
        Ok(())
    } else {
        Err(GateError::Hash {
            place,
            hash: hash.to_owned(),
        })
    }
}

/// An object that has no fields but the known ones.
fn fields<'a>(
    value: &'a Value,
    place: &'static str,
    known: &[&str],
) -> Result<&'a Map<String, Value>, GateError> {
    let object = value.as_object().ok_or(GateError::Shape(place))?;
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(object),
        Some(field) => Err(GateError::UnknownField {
            place,
            field: field.clone(),
        }),
    }
}

fn member<'a>(object: &'a Map<String, Value>, name: &'static str) -> Result<&'a Value, GateError> {
    object.get(name).ok_or(GateError::Shape(name))
}

fn object<'a>(
    parent: &'a Map<String, Value>,
    name: &'static str,
) -> Result<&'a Map<String, Value>, GateError> {
    member(parent, name)?
        .as_object()
        .ok_or(GateError::Shape(name))
}

fn text<'a>(value: &'a Value, name: &'static str) -> Result<&'a str, GateError> {
    value[name].as_str().ok_or(GateError::Shape(name))
}

fn number(value: &Value, name: &'static str) -> Result<u64, GateError> {
    value[name].as_u64().ok_or(GateError::Shape(name))
}

fn small(value: &Value, name: &'static str) -> Result<u32, GateError> {
    u32::try_from(number(value, name)?).map_err(|_| GateError::Shape(name))
}

/// LUKS2 writes 64-bit numbers as decimal strings.
fn number_text(value: &Value, name: &'static str) -> Result<u64, GateError> {
    let text = text(value, name)?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_err(|_| GateError::Shape(name))
    } else {
        Err(GateError::Shape(name))
    }
}
