//! Headers that a forger could write, and by which check each is refused.

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
        integrity: None,
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
    check(UUID, json, UUID, &bound(), Position::Attached)
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
    with(good(), pointer, value)
}

fn with(mut json: Value, pointer: &str, value: Option<Value>) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => parent.insert(name.to_owned(), value),
        None => parent.remove(name),
    };
    json
}

/// FAULTS K5, T10, T12, T13: one change to the good header per line, and the refusal that it must meet.
const FORGED: &str = r#"
# the data segment
/segments/0/encryption = "cipher_null-ecb" -> the data segment's cipher is null
/segments/0/encryption = "cipher_null-xts-plain64" -> the data segment's cipher is null
/segments/0/encryption = "capi:ecb(cipher_null)-plain64" -> the data segment's cipher is null
/segments/0/encryption = "" -> the data segment's cipher is null
/segments/0/encryption = "null" -> the data segment's cipher is null
/segments/0/encryption = "aes-ecb" -> the data cipher is 'aes-ecb', bound was 'aes-xts-plain64'
/segments/0/encryption = "aes-xts-plain" -> the data cipher is 'aes-xts-plain', bound was 'aes-xts-plain64'
/segments/0/encryption = "AES-xts-plain64" -> the data cipher is 'AES-xts-plain64', bound was 'aes-xts-plain64'
/segments/0/encryption = 7 -> the header has no valid 'encryption'
/segments/0/encryption = absent -> the header has no valid 'encryption'
/segments/0/sector_size = 4096 -> the sector size is 4096, bound was 512
/segments/0/sector_size = "512" -> the header has no valid 'sector_size'
/segments/0/sector_size = -512 -> the header has no valid 'sector_size'
/segments/0/offset = "0" -> the data begins at byte 0, bound was 16777216
/segments/0/offset = "16777728" -> the data begins at byte 16777728, bound was 16777216
/segments/0/offset = "18446744073709551616" -> the header has no valid 'offset'
/segments/0/offset = "+16777216" -> the header has no valid 'offset'
/segments/0/offset = "" -> the header has no valid 'offset'
/segments/0/size = "1048576" -> the data segment has a fixed size
/segments/0/size = absent -> the header has no valid 'size'
/segments/0/iv_tweak = "8" -> the data segment's IV offset is not zero
/segments/0/type = "linear" -> the data segment is of type 'linear' instead of 'crypt'
/segments/0/type = absent -> the header has no valid 'type'
/segments/0/flags = ["in-reencryption"] -> the data segment has flags
/segments/0/integrity = {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"} -> the data segment has integrity protection, which was not bound
/segments/0/integrity = {"type": "none", "journal_encryption": "none", "journal_integrity": "none"} -> the data segment has integrity protection, which was not bound
/segments/0/integrity = {"type": "hmac(sha256)"} -> the header has no valid 'journal_encryption'
/segments/0/integrity = {} -> the header has no valid 'type'
/segments/0/integrity = null -> the header has no valid 'segment's integrity'
/segments/0/opal_segment_number = 1 -> the header's segment has the unknown field 'opal_segment_number'
/segments/0 = absent -> the header has 0 segments instead of one
/segments/1 = {"type": "crypt", "offset": "33554432", "size": "dynamic"} -> the header has 2 segments instead of one
/segments/1 = {"type": "linear", "flags": ["backup-final"]} -> the header has 2 segments instead of one
/segments = {"1": {"type": "crypt"}} -> the header has no valid '0'
/segments = [{"type": "crypt"}] -> the header has no valid 'segments'
/segments = absent -> the header has no valid 'segments'
# reencryption and flags
/config/requirements = {"mandatory": ["offline-reencrypt"]} -> the header has requirements, such as a reencryption in progress
/config/requirements = {"mandatory": ["online-reencrypt-v2"]} -> the header has requirements, such as a reencryption in progress
/config/requirements = {"mandatory": ["opal"]} -> the header has requirements, such as a reencryption in progress
/config/requirements = {} -> the header has requirements, such as a reencryption in progress
/config/flags = ["no-journal"] -> the header has the flag 'no-journal'
/config/flags = ["allow-discards", "future"] -> the header has the flag 'future'
/config/flags = "allow-discards" -> the header has no valid 'flags'
/config/flags = [1] -> the header has no valid 'flags'
/config/extra = 1 -> the header's config has the unknown field 'extra'
/config = absent -> the header has no valid 'config'
/extra = {} -> the header's JSON has the unknown field 'extra'
/keyslots/2 = {"type": "reencrypt", "mode": "decrypt"} -> keyslot 2 is of type 'reencrypt' instead of 'luks2'
# the bound keyslot
/keyslots/1 = absent -> keyslot 1, which was bound, does not exist
/keyslots = absent -> the header has no valid 'keyslots'
/keyslots/1/type = "luks1" -> keyslot 1 is of type 'luks1' instead of 'luks2'
/keyslots/1/key_size = 32 -> the keyslot holds 32 bytes of key, bound were 64
/keyslots/1/extra = 1 -> the header's keyslot has the unknown field 'extra'
/keyslots/1/kdf = {"type": "argon2id", "time": 4, "memory": 4194304, "cpus": 4} -> the keyslot's key derivation is 'argon2id' instead of 'pbkdf2'
/keyslots/1/kdf/type = "argon2i" -> the keyslot's key derivation is 'argon2i' instead of 'pbkdf2'
/keyslots/1/kdf/memory = 4194304 -> the header's keyslot's kdf has the unknown field 'memory'
/keyslots/1/kdf/iterations = 1001 -> the keyslot takes 1001 iterations, bound were 1000
/keyslots/1/kdf/iterations = 4294967295 -> the keyslot takes 4294967295 iterations, bound were 1000
/keyslots/1/kdf/iterations = 18446744073709551615 -> the keyslot takes 18446744073709551615 iterations, bound were 1000
/keyslots/1/kdf/iterations = 1e30 -> the header has no valid 'iterations'
/keyslots/1/kdf/iterations = absent -> the header has no valid 'iterations'
/keyslots/1/kdf/hash = "crc32" -> the keyslot's kdf uses the hash 'crc32'
/keyslots/1/kdf = absent -> the header has no valid 'type'
/keyslots/1/area/encryption = "cipher_null-ecb" -> the keyslot's area is encrypted by 'cipher_null-ecb'
/keyslots/1/area/encryption = "aes-ecb" -> the keyslot's area is encrypted by 'aes-ecb'
/keyslots/1/area/key_size = 1 -> the keyslot's area is encrypted by 'aes-xts-plain64'
/keyslots/1/area/type = "journal" -> the keyslot's area lies where no keyslot's area may lie
/keyslots/1/area/offset = "0" -> the keyslot's area lies where no keyslot's area may lie
/keyslots/1/area/offset = "16777216" -> the keyslot's area lies where no keyslot's area may lie
/keyslots/1/area/offset = "18446744073709551615" -> the keyslot's area lies where no keyslot's area may lie
/keyslots/1/area/size = "1099511627776" -> the keyslot's area lies where no keyslot's area may lie
/keyslots/1/area/size = "4096" -> the keyslot's area lies where no keyslot's area may lie
/config/keyslots_size = "33554432" -> the keyslot's area lies where no keyslot's area may lie
/config/json_size = "18446744073709551615" -> the keyslot's area lies where no keyslot's area may lie
/keyslots/1/af/stripes = 1 -> the keyslot's anti-forensic splitting is not the usual one
/keyslots/1/af/type = "none" -> the keyslot's anti-forensic splitting is not the usual one
/keyslots/1/af/hash = "md5" -> the keyslot's anti-forensic splitting uses the hash 'md5'
/keyslots/1/af = absent -> the header has no valid 'type'
# digests
/digests = {} -> the keyslot and the data segment do not share exactly one digest
/digests/0/segments = [] -> the keyslot and the data segment do not share exactly one digest
/digests/0/keyslots = ["0"] -> the keyslot and the data segment do not share exactly one digest
/digests/1 = {"type": "pbkdf2", "segments": ["0"], "keyslots": ["1"]} -> the keyslot and the data segment do not share exactly one digest
/digests/1 = {"type": "pbkdf2", "segments": [], "keyslots": ["1"]} -> the keyslot and the data segment do not share exactly one digest
/digests/0/segments = "0" -> the header has no valid 'segments'
/digests/0/type = "none" -> the keyslot and the data segment do not share exactly one digest
/digests/0/iterations = 4294967295 -> the digest takes 4294967295 iterations
/digests/0/hash = "md5" -> the digest uses the hash 'md5'
"#;

#[test]
fn every_forged_header_is_refused_by_the_check_for_it() {
    assert_refused(FORGED, &good(), &bound());
}

#[track_caller]
fn assert_refused(table: &str, good: &Value, bound: &BoundLuks2) {
    let rows = table.lines().filter(|row| row.starts_with('/'));
    for row in rows {
        let (change, refusal) = row.split_once(" -> ").unwrap();
        let (pointer, value) = change.split_once(" = ").unwrap();
        let value = (value != "absent").then(|| serde_json::from_str(value).unwrap());
        let forged = with(good.clone(), pointer, value);
        assert_ne!(&forged, good, "{change}");
        let error = check(UUID, &forged, UUID, bound, Position::Attached).unwrap_err();
        assert_eq!(error.to_string(), refusal, "{change}");
    }
}

/// As `cryptsetup luksFormat --integrity hmac-sha256` makes it: the keyslots' areas are encrypted without.
fn authenticated() -> (Value, BoundLuks2) {
    let mut json = good();
    json["segments"]["0"]["integrity"] = json!({
        "type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"
    });
    for slot in ["0", "1"] {
        json["keyslots"][slot]["key_size"] = json!(96);
        json["keyslots"][slot]["area"]["size"] = json!("385024");
    }
    json["keyslots"]["1"]["area"]["offset"] = json!("417792");
    let bound = BoundLuks2 {
        key_size: 96,
        integrity: Some(BoundIntegrity {
            kind: "hmac(sha256)".into(),
            journal_encryption: "none".into(),
            journal_integrity: "none".into(),
            key_size: None,
        }),
        ..bound()
    };
    (json, bound)
}

/// One change to a header with integrity protection per line, and the refusal that it must meet.
const FORGED_INTEGRITY: &str = r#"
/segments/0/integrity = absent -> the data segment has no integrity protection, bound was 'hmac(sha256)'
/segments/0/integrity = null -> the header has no valid 'segment's integrity'
/segments/0/integrity = "hmac(sha256)" -> the header has no valid 'segment's integrity'
/segments/0/integrity = ["hmac(sha256)", "none", "none"] -> the header has no valid 'segment's integrity'
/segments/0/integrity/type = "hmac(sha512)" -> the integrity protection is 'hmac(sha512)', bound was 'hmac(sha256)'
/segments/0/integrity/type = "hmac(sha1)" -> the integrity protection is 'hmac(sha1)', bound was 'hmac(sha256)'
/segments/0/integrity/type = "aead" -> the integrity protection is 'aead', bound was 'hmac(sha256)'
/segments/0/integrity/type = "none" -> the data segment's integrity protection is 'none', of which latchkey knows nothing
/segments/0/integrity/type = "" -> the data segment's integrity protection is '', of which latchkey knows nothing
/segments/0/integrity/type = "crc32c" -> the data segment's integrity protection is 'crc32c', of which latchkey knows nothing
/segments/0/integrity/type = "hmac(md5)" -> the data segment's integrity protection is 'hmac(md5)', of which latchkey knows nothing
/segments/0/integrity/type = "HMAC(sha256)" -> the data segment's integrity protection is 'HMAC(sha256)', of which latchkey knows nothing
/segments/0/integrity/type = "digest_null" -> the data segment's integrity protection is 'digest_null', of which latchkey knows nothing
/segments/0/integrity/type = 7 -> the header has no valid 'type'
/segments/0/integrity/type = absent -> the header has no valid 'type'
/segments/0/integrity/journal_encryption = "ctr(aes)" -> the data segment's integrity journal has algorithms of its own
/segments/0/integrity/journal_encryption = absent -> the header has no valid 'journal_encryption'
/segments/0/integrity/journal_integrity = "hmac(sha256)" -> the data segment's integrity journal has algorithms of its own
/segments/0/integrity/journal_integrity = absent -> the header has no valid 'journal_integrity'
/segments/0/integrity/key_size = 32 -> the integrity protection is 'hmac(sha256) with 32 bytes of key', bound was 'hmac(sha256)'
/segments/0/integrity/key_size = 64 -> the integrity protection has a key of 64 bytes instead of 32
/segments/0/integrity/key_size = 0 -> the integrity protection has a key of 0 bytes instead of 32
/segments/0/integrity/key_size = "32" -> the header has no valid 'key_size'
/segments/0/integrity/key_size = 4294967328 -> the header has no valid 'key_size'
/segments/0/integrity/tag_size = 32 -> the header's segment's integrity has the unknown field 'tag_size'
/segments/0/encryption = "cipher_null-ecb" -> the data segment's cipher is null
/config/flags = ["allow-discards"] -> the header has the flag 'allow-discards', with which no volume with integrity protection opens
/keyslots/1/key_size = 64 -> the keyslot holds 64 bytes of key, bound were 96
/keyslots/1/area/size = "258048" -> the keyslot's area lies where no keyslot's area may lie
"#;

#[test]
fn integrity_is_let_through_as_it_was_bound_and_not_otherwise() {
    let (json, bound) = authenticated();
    check(UUID, &json, UUID, &bound, Position::Attached).unwrap();
    check_fit(&json).unwrap();
    assert_eq!(facts(&json, 1, Bytes([0; 32])).as_ref(), Ok(&bound));
    assert_refused(FORGED_INTEGRITY, &json, &bound);
}

#[test]
fn integrity_that_was_bound_with_the_size_of_its_key_keeps_it() {
    let (json, mut bound) = authenticated();
    let json = with(json, "/segments/0/integrity/key_size", Some(json!(32)));
    bound.integrity.as_mut().unwrap().key_size = Some(32);
    check(UUID, &json, UUID, &bound, Position::Attached).unwrap();
    assert_eq!(facts(&json, 1, Bytes([0; 32])).as_ref(), Ok(&bound));
    let table = "/segments/0/integrity/key_size = absent -> the integrity protection is \
                 'hmac(sha256)', bound was 'hmac(sha256) with 32 bytes of key'";
    assert_refused(table, &json, &bound);
}

/// Whatever the token says: these are refused when a volume is to be bound, and again at boot.
#[test]
fn no_unknown_integrity_is_bound_or_opened() {
    for (field, value) in [
        ("type", json!("none")),
        ("type", json!("crc32c")),
        ("type", json!("cmac(aes)")),
        ("journal_encryption", json!("ctr(aes)")),
        ("journal_integrity", json!("hmac(sha256)")),
        ("key_size", json!(64)),
    ] {
        let pointer = format!("/segments/0/integrity/{field}");
        let json = with(authenticated().0, &pointer, Some(value));
        check_fit(&json).expect_err(&pointer);
        let bound = facts(&json, 1, Bytes([0; 32])).unwrap();
        check(UUID, &json, UUID, &bound, Position::Attached).expect_err(&pointer);
    }
    for known in [
        "aead",
        "hmac(sha1)",
        "hmac(sha256)",
        "hmac(sha512)",
        "poly1305",
    ] {
        let pointer = "/segments/0/integrity/type";
        check_fit(&with(authenticated().0, pointer, Some(json!(known)))).expect(known);
    }
}

#[test]
fn a_key_server_sees_that_integrity_changed() {
    let (json, bound) = authenticated();
    let print = |json: &Value| fingerprint(UUID, json, &bound);
    let other = |value| with(json.clone(), "/segments/0/integrity", value);
    assert_eq!(
        print(&json),
        fingerprint_as_bound(UUID, &Bound::Luks2(bound.clone()))
    );
    assert_ne!(print(&json), print(&other(None)));
    let sha1 =
        json!({"type": "hmac(sha1)", "journal_encryption": "none", "journal_integrity": "none"});
    assert_ne!(print(&json), print(&other(Some(sha1))));
}

#[test]
fn another_uuid_is_refused() {
    for found in ["", "8A3D7D0E-0D5B-4F3C-9D52-1E1FA2A1C0DE", "other"] {
        let error = check(found, &good(), UUID, &bound(), Position::Attached).unwrap_err();
        assert!(matches!(error, GateError::Uuid { .. }), "{found}");
    }
}

#[test]
fn what_was_bound_with_a_null_cipher_does_not_open_either() {
    let mut bound = bound();
    bound.cipher = "cipher_null-ecb".into();
    let forged = changed("/segments/0/encryption", Some(json!("cipher_null-ecb")));
    assert_eq!(
        check(UUID, &forged, UUID, &bound, Position::Attached),
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

#[test]
fn only_a_detached_header_may_reach_beyond_where_the_data_begins() {
    let mut json = good();
    json["segments"]["0"]["offset"] = json!("0");
    let bound = BoundLuks2 {
        offset: 0,
        ..bound()
    };
    assert_eq!(
        check(UUID, &json, UUID, &bound, Position::Attached),
        Err(GateError::Area)
    );
    assert_eq!(check(UUID, &json, UUID, &bound, Position::Detached), Ok(()));
}
