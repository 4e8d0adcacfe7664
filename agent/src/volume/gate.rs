//! Whether a LUKS2 header is still the one that was bound: the check before anything opens without a person.
//!
//! A header is not authenticated, so whoever can write the disk can forge one: with a null cipher, a half-finished
//! reencryption, a key derivation that takes a week or all memory. Only what the binding authenticated counts, and
//! what it does not mention must be what every plain LUKS2 volume has. (CVE-2021-4122, CVE-2025-59054; LUKS2 on-disk
//! format, 3.) The result says nothing about the volume key: see `open`.

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::envelope::BoundLuks2;
use serde_json::{Map, Value};

/// A check of the header that failed. Each refuses automatic opening; the passphrase still works.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// The UUID is another one.
    #[error("the header's UUID is '{found}', bound was '{bound}'")]
    Uuid {
        /// In the header.
        found: String,
        /// In the token.
        bound: String,
    },
    /// Not the shape that LUKS2 prescribes.
    #[error("the header has no valid '{0}'")]
    Shape(&'static str),
    /// An object has fields that this version does not know.
    #[error("the header's {place} has the unknown field '{field}'")]
    UnknownField {
        /// Which object.
        place: &'static str,
        /// Its name.
        field: String,
    },
    /// A reencryption, or something else that needs another cryptsetup.
    #[error("the header has requirements, such as a reencryption in progress")]
    Requirements,
    /// A flag that no bound volume may have.
    #[error("the header has the flag '{0}'")]
    Flag(String),
    /// Not exactly one data segment.
    #[error("the header has {0} segments instead of one")]
    Segments(usize),
    /// The segment is not of type `crypt`.
    #[error("the data segment is of type '{0}' instead of 'crypt'")]
    SegmentType(String),
    /// The segment is marked, as by a reencryption.
    #[error("the data segment has flags")]
    SegmentFlags,
    /// The segment does not reach to the end of the device.
    #[error("the data segment has a fixed size")]
    SegmentSize,
    /// The initialization vectors do not count from zero.
    #[error("the data segment's IV offset is not zero")]
    IvTweak,
    /// Data integrity that was not bound.
    #[error("the data segment has integrity protection, which was not bound")]
    Integrity,
    /// The data would not be encrypted.
    #[error("the data segment's cipher is null")]
    NullCipher,
    /// Another data cipher.
    #[error("the data cipher is '{found}', bound was '{bound}'")]
    Cipher {
        /// In the header.
        found: String,
        /// In the token.
        bound: String,
    },
    /// Another sector size.
    #[error("the sector size is {found}, bound was {bound}")]
    SectorSize {
        /// In the header.
        found: u64,
        /// In the token.
        bound: u32,
    },
    /// The data begins elsewhere.
    #[error("the data begins at byte {found}, bound was {bound}")]
    Offset {
        /// In the header.
        found: u64,
        /// In the token.
        bound: u64,
    },
    /// The bound keyslot is gone.
    #[error("keyslot {0}, which was bound, does not exist")]
    NoKeyslot(u32),
    /// A keyslot of another type, such as `reencrypt`.
    #[error("keyslot {slot} is of type '{kind}' instead of 'luks2'")]
    KeyslotType {
        /// The keyslot.
        slot: String,
        /// Its type.
        kind: String,
    },
    /// The keyslot holds a key of another size.
    #[error("the keyslot holds {found} bytes of key, bound were {bound}")]
    KeySize {
        /// In the header.
        found: u64,
        /// In the token.
        bound: u32,
    },
    /// The keyslot's key derivation is another one.
    #[error("the keyslot's key derivation is '{0}' instead of 'pbkdf2'")]
    Kdf(String),
    /// A hash that has no place there.
    #[error("the {place} uses the hash '{hash}'")]
    Hash {
        /// Which object.
        place: &'static str,
        /// The hash.
        hash: String,
    },
    /// The keyslot costs more than at binding.
    #[error("the keyslot takes {found} iterations, bound were {bound}")]
    Iterations {
        /// In the header.
        found: u64,
        /// In the token.
        bound: u32,
    },
    /// The keyslot's area is encrypted otherwise, or not at all.
    #[error("the keyslot's area is encrypted by '{0}'")]
    AreaCipher(String),
    /// The keyslot's area is not within the region for keyslots, or not large enough.
    #[error("the keyslot's area lies where no keyslot's area may lie")]
    Area,
    /// The anti-forensic splitting is not the usual one.
    #[error("the keyslot's anti-forensic splitting is not the usual one")]
    AntiForensic,
    /// The keyslot and the segment do not have one common digest.
    #[error("the keyslot and the data segment do not share exactly one digest")]
    Digest,
    /// Checking the digest would cost too much.
    #[error("the digest takes {0} iterations")]
    DigestIterations(u64),
}

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

/// Checks a header, given by its UUID and JSON, against what was bound.
///
/// # Errors
/// The first check that failed.
pub fn check(
    uuid: &str,
    json: &Value,
    bound_uuid: &str,
    bound: &BoundLuks2,
) -> Result<(), GateError> {
    if uuid != bound_uuid {
        return Err(GateError::Uuid {
            found: uuid.to_owned(),
            bound: bound_uuid.to_owned(),
        });
    }
    let header = fields(
        json,
        "header",
        &["keyslots", "tokens", "segments", "digests", "config"],
    )?;
    let config = fields(
        member(header, "config")?,
        "config",
        &["json_size", "keyslots_size", "flags", "requirements"],
    )?;
    check_config(config)?;
    check_segment(object(header, "segments")?, &Segment::from(bound))?;
    check_keyslot(object(header, "keyslots")?, config, bound)?;
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
    check_segment(segments, &Segment::read(&json["segments"]["0"])?)?;
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
    })
}

/// The part of the binding that concerns the data segment.
struct Segment<'a> {
    cipher: &'a str,
    sector_size: u32,
    offset: u64,
}

impl<'a> Segment<'a> {
    fn read(segment: &'a Value) -> Result<Self, GateError> {
        Ok(Self {
            cipher: text(segment, "encryption")?,
            sector_size: small(segment, "sector_size")?,
            offset: number_text(segment, "offset")?,
        })
    }
}

impl<'a> From<&'a BoundLuks2> for Segment<'a> {
    fn from(bound: &'a BoundLuks2) -> Self {
        Self {
            cipher: &bound.cipher,
            sector_size: bound.sector_size,
            offset: bound.offset,
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

fn check_segment(segments: &Map<String, Value>, bound: &Segment<'_>) -> Result<(), GateError> {
    if segments.len() != 1 {
        return Err(GateError::Segments(segments.len()));
    }
    let segment = member(segments, "0").map_err(|_| GateError::Segments(0))?;
    let kind = text(segment, "type")?;
    if kind != "crypt" {
        return Err(GateError::SegmentType(kind.to_owned()));
    }
    if segment.get("integrity").is_some() {
        return Err(GateError::Integrity);
    }
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
    check_area(&keyslot["area"], config, bound)
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
                && end <= bound.offset
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
fn is_null(cipher: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UUID: &str = "8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de";

    fn bound() -> BoundLuks2 {
        BoundLuks2 {
            keyslot: 1,
            iterations: 1000,
            cipher: "aes-xts-plain64".into(),
            key_size: 64,
            sector_size: 512,
            offset: 16_777_216,
            volume_key_id: Bytes([0; 32]),
        }
    }

    /// A header as `cryptsetup luksFormat` and a binding leave it.
    fn good() -> Value {
        let area = |offset: &str| {
            json!({
                "type": "raw", "offset": offset, "size": "258048",
                "encryption": "aes-xts-plain64", "key_size": 64
            })
        };
        let af = json!({"type": "luks1", "stripes": 4000, "hash": "sha256"});
        json!({
            "keyslots": {
                "0": {
                    "type": "luks2", "key_size": 64, "af": af, "area": area("32768"),
                    "kdf": {
                        "type": "argon2id", "time": 7, "memory": 1_048_576, "cpus": 4,
                        "salt": "uWpeDY8Ek+4tSVDGtFxjfTZUkjsmrCJiMRrRrrX6kXY="
                    }
                },
                "1": {
                    "type": "luks2", "key_size": 64, "priority": 0, "af": af,
                    "area": area("290816"),
                    "kdf": {
                        "type": "pbkdf2", "hash": "sha256", "iterations": 1000,
                        "salt": "1CPmCAZq6D7lgSc2LRp7H6CrWUyXcrkSwTFRcxMGAYo="
                    }
                }
            },
            "tokens": {"0": {"type": "latchkey", "keyslots": ["1"]}},
            "segments": {
                "0": {
                    "type": "crypt", "offset": "16777216", "size": "dynamic", "iv_tweak": "0",
                    "encryption": "aes-xts-plain64", "sector_size": 512
                }
            },
            "digests": {
                "0": {
                    "type": "pbkdf2", "keyslots": ["0", "1"], "segments": ["0"],
                    "hash": "sha256", "iterations": 129_774,
                    "salt": "Jk3vbEL1AGKiDSeQzYQFVG0dEwp4cFcXCkcQsrAVmTY=",
                    "digest": "o9xRdd8WmjFUiZFRwtSyEVgsqrQKUbS9WtpdqGkIGXw="
                }
            },
            "config": {"json_size": "12288", "keyslots_size": "16744448"}
        })
    }

    fn verdict(json: &Value) -> Result<(), GateError> {
        check(UUID, json, UUID, &bound())
    }

    #[test]
    fn a_header_as_it_was_bound_passes() {
        verdict(&good()).unwrap();
        check_fit(&good()).unwrap();
        assert_eq!(facts(&good(), 1, Bytes([0; 32])), Ok(bound()));
    }

    #[test]
    fn what_an_administrator_may_change_passes() {
        let changes: [(&str, Value); 7] = [
            (
                "/config/flags",
                json!(["allow-discards", "no-read-workqueue"]),
            ),
            ("/keyslots/1/kdf/iterations", json!(999)),
            ("/keyslots/1/kdf/hash", json!("sha512")),
            ("/keyslots/1/priority", json!(1)),
            ("/keyslots/0/kdf/memory", json!(4_194_304)),
            ("/digests/0/hash", json!("whirlpool")),
            (
                "/tokens/7",
                json!({"type": "systemd-tpm2", "keyslots": ["0"]}),
            ),
        ];
        for (pointer, value) in changes {
            assert_eq!(verdict(&changed(pointer, Some(value))), Ok(()), "{pointer}");
        }
    }

    /// The good header with one value set, or taken away.
    fn changed(pointer: &str, value: Option<Value>) -> Value {
        let mut json = good();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => parent.insert(name.to_owned(), value),
            None => parent.remove(name),
        };
        json
    }

    /// FAULTS T10, T12, T13: what a forger can write, and by which check each is refused.
    #[test]
    fn every_forged_header_is_refused_by_the_check_for_it() {
        use GateError as E;
        let segment = |change: Value| {
            let mut segment = good()["segments"]["0"].clone();
            let object = segment.as_object_mut().unwrap();
            object.extend(change.as_object().unwrap().clone());
            segment
        };
        let digest = |segments: Value, keyslots: Value| {
            let mut digest = good()["digests"]["0"].clone();
            digest["segments"] = segments;
            digest["keyslots"] = keyslots;
            digest
        };
        let cipher = |found: &str| E::Cipher {
            found: found.into(),
            bound: "aes-xts-plain64".into(),
        };
        let unknown = |place, field: &str| E::UnknownField {
            place,
            field: field.into(),
        };
        let slot_hash = |hash: &str| E::Hash {
            place: "keyslot's kdf",
            hash: hash.into(),
        };
        let iterations = |found| E::Iterations { found, bound: 1000 };
        let reencrypt = json!({"type": "reencrypt", "mode": "decrypt", "key_size": 1});
        let corpus: Vec<(&str, Option<Value>, GateError)> = vec![
            // the data segment
            (
                "/segments/0/encryption",
                Some(json!("cipher_null-ecb")),
                E::NullCipher,
            ),
            (
                "/segments/0/encryption",
                Some(json!("cipher_null-xts-plain64")),
                E::NullCipher,
            ),
            (
                "/segments/0/encryption",
                Some(json!("capi:ecb(cipher_null)-plain64")),
                E::NullCipher,
            ),
            ("/segments/0/encryption", Some(json!("")), E::NullCipher),
            ("/segments/0/encryption", Some(json!("null")), E::NullCipher),
            (
                "/segments/0/encryption",
                Some(json!("aes-ecb")),
                cipher("aes-ecb"),
            ),
            (
                "/segments/0/encryption",
                Some(json!("aes-xts-plain")),
                cipher("aes-xts-plain"),
            ),
            (
                "/segments/0/encryption",
                Some(json!("AES-xts-plain64")),
                cipher("AES-xts-plain64"),
            ),
            (
                "/segments/0/encryption",
                Some(json!(7)),
                E::Shape("encryption"),
            ),
            ("/segments/0/encryption", None, E::Shape("encryption")),
            (
                "/segments/0/sector_size",
                Some(json!(4096)),
                E::SectorSize {
                    found: 4096,
                    bound: 512,
                },
            ),
            (
                "/segments/0/sector_size",
                Some(json!("512")),
                E::Shape("sector_size"),
            ),
            (
                "/segments/0/sector_size",
                Some(json!(-512)),
                E::Shape("sector_size"),
            ),
            (
                "/segments/0/offset",
                Some(json!("0")),
                E::Offset {
                    found: 0,
                    bound: 16_777_216,
                },
            ),
            (
                "/segments/0/offset",
                Some(json!("16777728")),
                E::Offset {
                    found: 16_777_728,
                    bound: 16_777_216,
                },
            ),
            (
                "/segments/0/offset",
                Some(json!("18446744073709551616")),
                E::Shape("offset"),
            ),
            (
                "/segments/0/offset",
                Some(json!("+16777216")),
                E::Shape("offset"),
            ),
            ("/segments/0/offset", Some(json!("")), E::Shape("offset")),
            ("/segments/0/size", Some(json!("1048576")), E::SegmentSize),
            ("/segments/0/size", None, E::Shape("size")),
            ("/segments/0/iv_tweak", Some(json!("8")), E::IvTweak),
            (
                "/segments/0/type",
                Some(json!("linear")),
                E::SegmentType("linear".into()),
            ),
            ("/segments/0/type", None, E::Shape("type")),
            (
                "/segments/0/flags",
                Some(json!(["in-reencryption"])),
                E::SegmentFlags,
            ),
            (
                "/segments/0/integrity",
                Some(json!({"type": "hmac(sha256)"})),
                E::Integrity,
            ),
            (
                "/segments/0/opal_segment_number",
                Some(json!(1)),
                unknown("segment", "opal_segment_number"),
            ),
            ("/segments/0", None, E::Segments(0)),
            (
                "/segments/1",
                Some(segment(json!({"offset": "33554432"}))),
                E::Segments(2),
            ),
            (
                "/segments/1",
                Some(segment(json!({"flags": ["backup-final"]}))),
                E::Segments(2),
            ),
            (
                "/segments",
                Some(json!({"1": segment(json!({}))})),
                E::Segments(0),
            ),
            ("/segments", None, E::Shape("segments")),
            (
                "/segments",
                Some(json!([segment(json!({}))])),
                E::Shape("segments"),
            ),
            // reencryption and flags
            (
                "/config/requirements",
                Some(json!({"mandatory": ["offline-reencrypt"]})),
                E::Requirements,
            ),
            (
                "/config/requirements",
                Some(json!({"mandatory": ["online-reencrypt-v2"]})),
                E::Requirements,
            ),
            (
                "/config/requirements",
                Some(json!({"mandatory": ["opal"]})),
                E::Requirements,
            ),
            ("/config/requirements", Some(json!({})), E::Requirements),
            (
                "/config/flags",
                Some(json!(["no-journal"])),
                E::Flag("no-journal".into()),
            ),
            (
                "/config/flags",
                Some(json!("allow-discards")),
                E::Shape("flags"),
            ),
            ("/config/flags", Some(json!([1])), E::Shape("flags")),
            ("/config/extra", Some(json!(1)), unknown("config", "extra")),
            ("/config", None, E::Shape("config")),
            ("/extra", Some(json!({})), unknown("header", "extra")),
            (
                "/keyslots/2",
                Some(reencrypt),
                E::KeyslotType {
                    slot: "2".into(),
                    kind: "reencrypt".into(),
                },
            ),
            // the bound keyslot
            ("/keyslots/1", None, E::NoKeyslot(1)),
            ("/keyslots", None, E::Shape("keyslots")),
            (
                "/keyslots/1/type",
                Some(json!("luks1")),
                E::KeyslotType {
                    slot: "1".into(),
                    kind: "luks1".into(),
                },
            ),
            (
                "/keyslots/1/key_size",
                Some(json!(32)),
                E::KeySize {
                    found: 32,
                    bound: 64,
                },
            ),
            (
                "/keyslots/1/extra",
                Some(json!(1)),
                unknown("keyslot", "extra"),
            ),
            (
                "/keyslots/1/kdf",
                Some(good()["keyslots"]["0"]["kdf"].clone()),
                E::Kdf("argon2id".into()),
            ),
            (
                "/keyslots/1/kdf/type",
                Some(json!("argon2i")),
                E::Kdf("argon2i".into()),
            ),
            (
                "/keyslots/1/kdf/memory",
                Some(json!(4_194_304)),
                unknown("keyslot's kdf", "memory"),
            ),
            (
                "/keyslots/1/kdf/iterations",
                Some(json!(1001)),
                iterations(1001),
            ),
            (
                "/keyslots/1/kdf/iterations",
                Some(json!(4_294_967_295_u32)),
                iterations(4_294_967_295),
            ),
            (
                "/keyslots/1/kdf/iterations",
                Some(json!(u64::MAX)),
                iterations(u64::MAX),
            ),
            (
                "/keyslots/1/kdf/iterations",
                Some(json!(1e30)),
                E::Shape("iterations"),
            ),
            ("/keyslots/1/kdf/iterations", None, E::Shape("iterations")),
            (
                "/keyslots/1/kdf/hash",
                Some(json!("crc32")),
                slot_hash("crc32"),
            ),
            ("/keyslots/1/kdf", None, E::Shape("type")),
            (
                "/keyslots/1/area/encryption",
                Some(json!("cipher_null-ecb")),
                E::AreaCipher("cipher_null-ecb".into()),
            ),
            (
                "/keyslots/1/area/encryption",
                Some(json!("aes-ecb")),
                E::AreaCipher("aes-ecb".into()),
            ),
            (
                "/keyslots/1/area/key_size",
                Some(json!(1)),
                E::AreaCipher("aes-xts-plain64".into()),
            ),
            ("/keyslots/1/area/type", Some(json!("journal")), E::Area),
            ("/keyslots/1/area/offset", Some(json!("0")), E::Area),
            ("/keyslots/1/area/offset", Some(json!("16777216")), E::Area),
            (
                "/keyslots/1/area/offset",
                Some(json!("18446744073709551615")),
                E::Area,
            ),
            (
                "/keyslots/1/area/size",
                Some(json!("1099511627776")),
                E::Area,
            ),
            ("/keyslots/1/area/size", Some(json!("4096")), E::Area),
            ("/config/keyslots_size", Some(json!("33554432")), E::Area),
            (
                "/config/json_size",
                Some(json!("18446744073709551615")),
                E::Area,
            ),
            ("/keyslots/1/af/stripes", Some(json!(1)), E::AntiForensic),
            ("/keyslots/1/af/type", Some(json!("none")), E::AntiForensic),
            ("/keyslots/1/af", None, E::Shape("type")),
            // digests
            ("/digests", Some(json!({})), E::Digest),
            (
                "/digests/0",
                Some(digest(json!([]), json!(["0", "1"]))),
                E::Digest,
            ),
            (
                "/digests/0",
                Some(digest(json!(["0"]), json!(["0"]))),
                E::Digest,
            ),
            (
                "/digests/1",
                Some(digest(json!(["0"]), json!(["1"]))),
                E::Digest,
            ),
            (
                "/digests/1",
                Some(digest(json!([]), json!(["1"]))),
                E::Digest,
            ),
            (
                "/digests/0/segments",
                Some(json!("0")),
                E::Shape("segments"),
            ),
            ("/digests/0/type", Some(json!("none")), E::Digest),
            (
                "/digests/0/iterations",
                Some(json!(4_294_967_295_u32)),
                E::DigestIterations(4_294_967_295),
            ),
            (
                "/digests/0/hash",
                Some(json!("md5")),
                E::Hash {
                    place: "digest",
                    hash: "md5".into(),
                },
            ),
        ];
        for (pointer, value, expected) in corpus {
            let forged = changed(pointer, value);
            assert_ne!(forged, good(), "{pointer}");
            let given = forged.pointer(pointer);
            assert_eq!(verdict(&forged), Err(expected), "{pointer} = {given:?}");
        }
    }

    #[test]
    fn another_uuid_is_refused() {
        for found in ["", "8A3D7D0E-0D5B-4F3C-9D52-1E1FA2A1C0DE", "other"] {
            let error = check(found, &good(), UUID, &bound()).unwrap_err();
            assert!(matches!(error, GateError::Uuid { .. }), "{found}");
        }
    }

    #[test]
    fn what_was_bound_with_a_null_cipher_does_not_open_either() {
        let mut bound = bound();
        bound.cipher = "cipher_null-ecb".into();
        let forged = changed("/segments/0/encryption", Some(json!("cipher_null-ecb")));
        assert_eq!(
            check(UUID, &forged, UUID, &bound),
            Err(GateError::NullCipher)
        );
        assert_eq!(check_fit(&forged), Err(GateError::NullCipher));
    }

    #[test]
    fn no_other_json_passes_or_panics() {
        for json in [json!(null), json!([]), json!("x"), json!({}), json!(1)] {
            verdict(&json).unwrap_err();
            check_fit(&json).unwrap_err();
            facts(&json, 1, Bytes([0; 32])).unwrap_err();
        }
    }
}
