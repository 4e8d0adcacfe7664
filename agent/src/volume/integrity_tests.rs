//! LUKS2 with integrity protection from binding to opening, on files.
//!
//! cryptsetup cannot format one without device-mapper, so a header is made without and changed: a volume key of 64 bytes
//! is one of AES-XTS with 256 bits and one of HMAC-SHA-256, and the keyslots' areas are the same in both.

use serde_json::{Value, json};

use super::gate::GateError;
use super::header::HeaderCopy;
use super::keyslots::{self, KeyslotError};
use super::modules;
use super::open::{OpenError, check_automatically};
use super::testing::{BoundVolume, PASSPHRASE, Volume, passphrase};
use super::typed::{Mismatch, check_passphrase};

fn volume(kind: &str) -> Volume {
    let volume = Volume::luks2();
    set_integrity(
        &volume,
        Some(json!({"type": kind, "journal_encryption": "none", "journal_integrity": "none"})),
    );
    volume
}

fn set_integrity(volume: &Volume, integrity: Option<Value>) {
    volume.forge(|json| {
        let segment = json["segments"]["0"].as_object_mut().unwrap();
        match integrity {
            Some(integrity) => segment.insert("integrity".to_owned(), integrity),
            None => segment.remove("integrity"),
        };
    });
}

fn opens(bound: &BoundVolume) -> Result<(), OpenError> {
    check_automatically(&bound.volume.place(), &bound.token, &bound.secret)
}

#[test]
fn a_volume_with_integrity_is_bound_and_its_machine_secret_opens_it() {
    let bound = volume("hmac(sha256)").bind();
    let integrity = bound.luks2_facts().integrity.as_ref().unwrap();
    assert_eq!(integrity.kind, "hmac(sha256)");
    opens(&bound).unwrap();
    let typed = check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
    assert_eq!(typed.matches_bound(&bound.token), Ok(()));
    let modules = modules::needed_by(&bound.token.bound);
    assert!(modules.contains(&"dm_integrity".to_owned()), "{modules:?}");
    keyslots::destroy_keyslot(bound.volume.path(), bound.luks2_facts().keyslot, None).unwrap();
    let header = HeaderCopy::read(bound.volume.path()).unwrap();
    assert_eq!(
        header.json()["segments"]["0"]["integrity"]["type"],
        "hmac(sha256)"
    );
}

/// What opens by itself is the binding's; a person opens whatever the passphrase opens, and is warned.
#[test]
fn integrity_that_was_taken_away_added_or_changed_leaves_the_volume_to_the_passphrase() {
    let other = |kind| {
        Some(json!({"type": kind, "journal_encryption": "none", "journal_integrity": "none"}))
    };
    let bound_was = || "hmac(sha256)".to_owned();
    let cases = [
        (
            volume("hmac(sha256)"),
            None,
            GateError::NoIntegrity(bound_was()),
        ),
        (
            volume("hmac(sha256)"),
            other("hmac(sha1)"),
            GateError::OtherIntegrity {
                found: "hmac(sha1)".to_owned(),
                bound: bound_was(),
            },
        ),
        (
            volume("hmac(sha256)"),
            other("crc32"),
            GateError::IntegrityType("crc32".to_owned()),
        ),
        (Volume::luks2(), other("hmac(sha256)"), GateError::Integrity),
    ];
    for (volume, change, expected) in cases {
        let bound = volume.bind();
        opens(&bound).unwrap();
        set_integrity(&bound.volume, change);
        match opens(&bound) {
            Err(OpenError::Gate { source, .. }) => assert_eq!(source, expected),
            other => panic!("expected '{expected}', got {other:?}"),
        }
        let typed = check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
        assert_eq!(
            typed.matches_bound(&bound.token),
            Err(Mismatch::Header(expected))
        );
    }
}

#[test]
fn integrity_that_protects_nothing_is_not_bound() {
    for kind in ["none", "crc32c", "hmac(md5)"] {
        let volume = volume(kind);
        match keyslots::check_fit(volume.path()) {
            Err(KeyslotError::Unfit { source, .. }) => {
                assert_eq!(source, GateError::IntegrityType(kind.to_owned()));
            }
            other => panic!("{kind}: {other:?}"),
        }
        check_passphrase(volume.path(), &passphrase(PASSPHRASE)).unwrap();
    }
}
