//! Authenticated encryption in a header: the `integrity` of a data segment (LUKS2 on-disk format, 3.3).
//!
//! dm-crypt then lies on dm-integrity, which keeps a tag for each sector. Only what libcryptsetup opens is let through:
//! it takes no journal with an algorithm of its own, and splits the volume key by the type alone.

use latchkey_protocol::envelope::BoundIntegrity;
use serde_json::{Map, Value};

use super::{GateError, fields, small, text};

/// What authenticates, in libcryptsetup's words, and how many bytes of the volume key are its own.
const KINDS: [(&str, u32); 5] = [
    ("aead", 0),
    ("hmac(sha1)", 20),
    ("hmac(sha256)", 32),
    ("hmac(sha512)", 64),
    ("poly1305", 0),
];
/// The only journal that libcryptsetup opens: neither encrypted nor authenticated.
const JOURNAL: &str = "none";

/// What a segment says of integrity, if anything.
pub(super) fn read(segment: &Value) -> Result<Option<BoundIntegrity>, GateError> {
    let Some(integrity) = segment.get("integrity") else {
        return Ok(None);
    };
    let known = [
        "type",
        "journal_encryption",
        "journal_integrity",
        "key_size",
    ];
    let object = fields(integrity, "segment's integrity", &known)?;
    let key_size = match object.get("key_size") {
        Some(_) => Some(small(integrity, "key_size")?),
        None => None,
    };
    Ok(Some(BoundIntegrity {
        kind: text(integrity, "type")?.to_owned(),
        journal_encryption: text(integrity, "journal_encryption")?.to_owned(),
        journal_integrity: text(integrity, "journal_integrity")?.to_owned(),
        key_size,
    }))
}

/// Whether a segment has the integrity that was bound, and such as may be opened.
pub(super) fn check(
    segment: &Value,
    bound: Option<&BoundIntegrity>,
    config: &Map<String, Value>,
) -> Result<(), GateError> {
    let (found, bound) = match (read(segment)?, bound) {
        (None, None) => return Ok(()),
        (Some(_), None) => return Err(GateError::Integrity),
        (None, Some(bound)) => return Err(GateError::NoIntegrity(description(bound))),
        (Some(found), Some(bound)) => (found, bound),
    };
    for integrity in [&found, bound] {
        check_kind(integrity)?;
    }
    if found != *bound {
        return Err(GateError::OtherIntegrity {
            found: description(&found),
            bound: description(bound),
        });
    }
    let flags = config.get("flags").and_then(Value::as_array);
    if flags.is_some_and(|flags| flags.iter().any(|flag| flag == "allow-discards")) {
        return Err(GateError::Discards);
    }
    Ok(())
}

fn check_kind(integrity: &BoundIntegrity) -> Result<(), GateError> {
    let kind = integrity.kind.as_str();
    let Some((_, usual)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        return Err(GateError::IntegrityType(kind.to_owned()));
    };
    if integrity.journal_encryption != JOURNAL || integrity.journal_integrity != JOURNAL {
        return Err(GateError::Journal);
    }
    match integrity.key_size {
        Some(found) if found != *usual => Err(GateError::IntegrityKeySize {
            found,
            usual: *usual,
        }),
        _ => Ok(()),
    }
}

fn description(integrity: &BoundIntegrity) -> String {
    match integrity.key_size {
        Some(size) => format!("{} with {size} bytes of key", integrity.kind),
        None => integrity.kind.clone(),
    }
}
