//! LUKS2 with integrity protection from binding to opening, on files.
//!
//! cryptsetup cannot format one without device-mapper, so a header is made without and changed: a volume key of 64 bytes
//! is one of AES-XTS with 256 bits and one of HMAC-SHA-256, and the keyslots' areas are the same in both.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::crypttab;
use super::gate::GateError;
use super::header::HeaderCopy;
use super::keyslots::{self, KeyslotError};
use super::mapping::{close, close_left_over, mapping, mapping_on, name_is_taken};
use super::modules;
use super::open::{OpenError, check_automatically, open_automatically};
use super::stack::device_lies_on;
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

/// Overwrites the block device named by `LATCHKEY_TEST_DEVICE`.
#[test]
#[ignore = "needs root, device-mapper, dm-integrity and a device to overwrite"]
fn a_mapping_with_integrity_is_made_and_taken_down_whole() {
    let device = std::env::var_os("LATCHKEY_TEST_DEVICE").expect("LATCHKEY_TEST_DEVICE is set");
    let device = fs::canonicalize(device).unwrap();
    let format = ["--type", "luks2", "--integrity", "hmac-sha256"];
    let bound = Volume::by_cryptsetup_on(&device, &format).unwrap().bind();
    assert_eq!(bound.luks2_facts().key_size, 96);
    let line = format!("latchkey-test {} none luks", device.display());
    let entry = crypttab::parse(&line).remove(0).unwrap();
    let name = entry.name.as_str();
    let open = || open_automatically(&entry, &bound.volume.place(), &bound.token, &bound.secret);
    let upper = Path::new("/dev/mapper/latchkey-test");

    open().unwrap();
    let found = mapping(name).unwrap();
    assert_eq!((found.format.as_str(), &found.device), ("LUKS2", &device));
    assert_eq!(mapping_on(&device).as_ref(), Some(&found));
    assert_eq!(mapping("latchkey-test_dif"), None);
    let below = Path::new("/sys/class/block").join(&found.kernel_name);
    let mut below = fs::read_dir(below.join("slaves")).unwrap();
    let layer = Path::new("/dev").join(below.next().unwrap().unwrap().file_name());
    assert_ne!(layer, device);
    let node = Path::new("/dev").join(&found.kernel_name);
    let lies = |node: &Path, name| device_lies_on(Path::new("/"), node, &[name]);
    assert!(lies(&node, name));
    assert!(!lies(&layer, "latchkey-test_dif"), "it encrypts nothing");
    let error = open().unwrap_err();
    assert!(matches!(error, OpenError::AlreadyOpen(_)), "{error}");
    fs::write(upper, b"what is written").unwrap();
    close(name).unwrap();
    assert!(!name_is_taken(name) && !name_is_taken("latchkey-test_dif"));

    // What is left of an agent that was killed between the two hinders nobody.
    open().unwrap();
    let removed = Command::new("dmsetup").args(["remove", name]).status();
    assert!(removed.unwrap().success());
    assert!(name_is_taken("latchkey-test_dif"));
    close_left_over(name);
    assert!(!name_is_taken("latchkey-test_dif"));
    open().unwrap();
    let removed = Command::new("dmsetup").args(["remove", name]).status();
    assert!(removed.unwrap().success());
    let typed = check_passphrase(&device, &passphrase(PASSPHRASE)).unwrap();
    typed.activate(&entry).unwrap();
    let mut read = [0; 15];
    fs::File::open(upper)
        .unwrap()
        .read_exact_at(&mut read, 0)
        .unwrap();
    assert_eq!(&read, b"what is written");
    close(name).unwrap();
    assert!(!name_is_taken(name) && !name_is_taken("latchkey-test_dif"));

    // As cryptsetup does.
    let line = format!("latchkey-test {} none luks,discard", device.display());
    let discard = crypttab::parse(&line).remove(0).unwrap();
    let error = open_automatically(&discard, &bound.volume.place(), &bound.token, &bound.secret);
    assert!(matches!(error, Err(OpenError::Crypt { .. })), "{error:?}");
    assert!(!name_is_taken(name) && !name_is_taken("latchkey-test_dif"));
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
