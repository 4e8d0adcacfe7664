//! Volumes of the other kinds from binding to opening, on files: LUKS1, a detached header, plain dm-crypt.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use latchkey_protocol::envelope::{Bound, MachineSecret, PlainSecret, Token};
use libcryptsetup_rs::consts::vals::EncryptionFormat;

use super::backup;
use super::binding::{self, At};
use super::crypttab::{self, Entry, Options};
use super::envelopes;
use super::gate::{GateError, Position};
use super::identity::volume_key_id;
use super::keyslots;
use super::luks1::Luks1Copy;
use super::open::{OpenError, check_automatically};
use super::place::{Kind, Place};
use super::plain::Settings;
use super::testing::{PASSPHRASE, Volume, passphrase, sealed};
use super::typed::{Mismatch, PassphraseError, check_passphrase, check_typed};
use crate::files::Files;

fn entry(options: &str) -> Entry {
    crypttab::parse(&format!("data /dev/x none {options}"))
        .remove(0)
        .unwrap()
}

#[track_caller]
fn assert_gate(result: Result<(), OpenError>, expected: &GateError) {
    match result {
        Err(OpenError::Gate { source, .. }) => assert_eq!(&source, expected),
        other => panic!("expected '{expected}', got {other:?}"),
    }
}

// LUKS1

struct Luks1 {
    volume: Volume,
    secret: MachineSecret,
    token: Token,
}

impl Luks1 {
    fn bound() -> Self {
        let volume = Volume::luks1();
        let secret = MachineSecret::random().unwrap();
        let slot = keyslots::free_keyslot(volume.path()).unwrap();
        assert_eq!(slot, 1);
        keyslots::add_keyslot(volume.path(), slot, &passphrase(PASSPHRASE), &secret).unwrap();
        let facts = keyslots::bound_facts(volume.path(), Position::Attached, slot, &secret);
        let facts = facts.unwrap();
        let (token, _) = sealed(facts.uuid, facts.bound, &secret);
        Self {
            volume,
            secret,
            token,
        }
    }

    fn check(&self) -> Result<(), OpenError> {
        check_automatically(&self.volume.place(), &self.token, &self.secret)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.volume.path());
        file.unwrap().write_all_at(bytes, at).unwrap();
    }
}

#[test]
fn a_bound_luks1_volume_opens_with_the_secret_and_with_the_passphrase() {
    let mut bound = Luks1::bound();
    bound.check().unwrap();
    let typed = check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
    assert_eq!(typed.keyslot(), Some(0));
    typed.matches_bound(&bound.token).unwrap();
    assert_eq!(
        bound.volume.place().identify().unwrap(),
        (Kind::Luks1, Some(bound.token.uuid.clone()))
    );
    // K1.
    bound.secret = MachineSecret::random().unwrap();
    let error = bound.check().unwrap_err();
    assert!(
        matches!(error, OpenError::WrongSecret { slot: 1, .. }),
        "{error}"
    );
}

/// Each field of `luks_phdr` that counts, as a forger would change it.
#[test]
fn a_forged_luks1_header_is_refused_by_what_was_changed() {
    let bound = Luks1::bound();
    let Bound::Luks1(facts) = bound.token.bound.clone() else {
        panic!("{:?}", bound.token.bound);
    };
    let second = 208 + 48;
    let original = {
        let mut bytes = vec![0; 592];
        let file = File::open(bound.volume.path()).unwrap();
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let null: &[u8] = b"cipher_null\0";
    let cases: &[(u64, &[u8], GateError)] = &[
        (8, null, GateError::NullCipher),
        (
            8,
            b"serpent\0",
            GateError::Cipher {
                found: "serpent-xts-plain64".into(),
                bound: "aes-xts-plain64".into(),
            },
        ),
        (
            40,
            b"ecb\0",
            GateError::Cipher {
                found: "aes-ecb".into(),
                bound: "aes-xts-plain64".into(),
            },
        ),
        (
            72,
            b"sha1\0",
            GateError::Hash {
                place: "header",
                hash: "sha1".into(),
            },
        ),
        (
            104,
            &8_u32.to_be_bytes(),
            GateError::Offset {
                found: 4096,
                bound: facts.offset,
            },
        ),
        (
            108,
            &32_u32.to_be_bytes(),
            GateError::KeySize {
                found: 32,
                bound: 64,
            },
        ),
        (
            164,
            &u32::MAX.to_be_bytes(),
            GateError::DigestIterations(u32::MAX.into()),
        ),
        (164, &1_u32.to_be_bytes(), GateError::DigestIterations(1)),
        (second, &0xdead_u32.to_be_bytes(), GateError::NoKeyslot(1)),
        (
            second + 4,
            &1001_u32.to_be_bytes(),
            GateError::Iterations {
                found: 1001,
                bound: 1000,
            },
        ),
        (second + 40, &0_u32.to_be_bytes(), GateError::Area),
        (second + 44, &1_u32.to_be_bytes(), GateError::AntiForensic),
    ];
    for (at, bytes, expected) in cases {
        bound.write(*at, bytes);
        assert_gate(bound.check(), expected);
        bound.write(0, &original);
    }
    bound.write(168, b"00000000");
    let error = bound.check().unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Gate {
                source: GateError::Uuid { .. },
                ..
            }
        ),
        "{error}"
    );
    bound.write(0, &original);
    bound.check().unwrap();
}

#[test]
fn numbers_of_a_luks1_header_that_cannot_be_are_no_header() {
    let bound = Luks1::bound();
    for (at, number) in [
        (6, 0x0003_0000),     // the version
        (108, 0),             // bytes of the key
        (108, u32::MAX),      // bytes of the key
        (208 + 40, u32::MAX), // where a keyslot's area begins
        (208 + 44, u32::MAX), // its stripes
    ] {
        let mut bytes = [0; 4];
        File::open(bound.volume.path())
            .unwrap()
            .read_exact_at(&mut bytes, at)
            .unwrap();
        bound.write(at, &number.to_be_bytes());
        let error = bound.check().unwrap_err();
        assert!(matches!(error, OpenError::Header(_)), "{at}: {error}");
        bound.write(at, &bytes);
    }
    bound.check().unwrap();
}

#[test]
fn the_luks1_volume_of_somebody_else_is_refused_and_warned_of() {
    // T9: the same UUID, keyslot and machine secret.
    let bound = Luks1::bound();
    let own = Volume::luks1();
    let mut context = super::context::attached(own.path()).unwrap();
    super::context::load(&mut context, EncryptionFormat::Luks1).unwrap();
    let uuid = bound.token.uuid.parse().unwrap();
    context.context_handle().set_uuid(Some(uuid)).unwrap();
    drop(context);
    keyslots::add_keyslot(own.path(), 1, &passphrase(PASSPHRASE), &bound.secret).unwrap();
    let error = check_automatically(&own.place(), &bound.token, &bound.secret).unwrap_err();
    // What the digest costs is measured anew for each volume, so that may be what is seen first.
    assert!(
        matches!(
            error,
            OpenError::WrongVolumeKey { .. }
                | OpenError::Gate {
                    source: GateError::DigestIterations(_),
                    ..
                }
        ),
        "{error}"
    );
    let typed = check_passphrase(own.path(), &passphrase(PASSPHRASE)).unwrap();
    typed.matches_bound(&bound.token).unwrap_err();
}

#[test]
fn a_luks1_keyslot_goes_again_and_the_others_stay() {
    let bound = Luks1::bound();
    let path = bound.volume.path();
    let slots = || {
        let copy = Luks1Copy::read(path, path).unwrap();
        copy.facts().active().collect::<Vec<_>>()
    };
    assert_eq!(slots(), [0, 1]);
    let traces = keyslots::traces(path, 1).unwrap().unwrap();
    assert!(traces.cheapest && !traces.named && traces.salt.is_some());
    let error = keyslots::destroy_keyslot(path, 1, None).unwrap_err();
    assert!(
        error.to_string().contains("is not one of latchkey"),
        "{error}"
    );
    keyslots::destroy_keyslot(path, 1, Some(1)).unwrap();
    assert_eq!(slots(), [0]);
    assert_gate(bound.check(), &GateError::NoKeyslot(1));
    keyslots::destroy_keyslot(path, 0, Some(0)).unwrap_err();
    check_passphrase(path, &passphrase(PASSPHRASE)).unwrap();
}

#[test]
fn a_backup_of_a_luks1_header_is_one() {
    let bound = Luks1::bound();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("header.img");
    backup::backup_header(bound.volume.path(), &file).unwrap();
    let copy = Luks1Copy::read(&file, &file).unwrap();
    let original = Luks1Copy::read(bound.volume.path(), bound.volume.path()).unwrap();
    assert_eq!(copy.facts(), original.facts());
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

// Detached headers

/// A header in one file, an empty data device in another, and what crypttab says.
struct Detached {
    header: Volume,
    data: tempfile::NamedTempFile,
    secret: MachineSecret,
    token: Token,
}

impl Detached {
    fn bound() -> Self {
        let data = tempfile::NamedTempFile::new().unwrap();
        data.as_file().set_len(4 << 20).unwrap();
        let header = Volume::detached_luks2(data.path());
        let secret = MachineSecret::random().unwrap();
        keyslots::add_keyslot(header.path(), 1, &passphrase(PASSPHRASE), &secret).unwrap();
        let facts = keyslots::bound_facts(header.path(), Position::Detached, 1, &secret).unwrap();
        assert!(matches!(&facts.bound, Bound::DetachedLuks2(bound) if bound.offset == 0));
        let (token, _) = sealed(facts.uuid, facts.bound, &secret);
        Self {
            header,
            data,
            secret,
            token,
        }
    }

    fn entry(&self) -> Entry {
        entry(&format!("luks,header={}", self.header.path().display()))
    }

    fn place(&self) -> Place {
        Place::of(&self.entry().options, self.data.path(), Path::new("/"))
    }

    fn check(&self) -> Result<(), OpenError> {
        check_automatically(&self.place(), &self.token, &self.secret)
    }
}

#[test]
fn a_detached_header_opens_its_data_and_carries_the_token() {
    let bound = Detached::bound();
    bound.check().unwrap();
    let files = Files::under("/absent");
    binding::add(&files, "data", &bound.place(), &bound.token).unwrap();
    let found = binding::find(&files, "data", &bound.place()).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].token.as_ref(), Ok(&bound.token));
    let typed = check_typed(
        &bound.entry(),
        &bound.place(),
        Some(&bound.token),
        &passphrase(PASSPHRASE),
    );
    let typed = typed.unwrap();
    typed.matches_bound(&bound.token).unwrap();
    assert_eq!(bound.place().identify().unwrap().0, Kind::DetachedLuks2);
    // What is on the data device is nobody's business.
    assert!(fs::read(bound.data.path()).unwrap().iter().all(|b| *b == 0));
    let found = found.into_iter().next().unwrap();
    binding::remove(&files, "data", &bound.place(), &found.at).unwrap();
    assert!(
        binding::find(&files, "data", &bound.place())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_detached_header_is_not_taken_for_an_attached_one_nor_the_other_way_round() {
    let bound = Detached::bound();
    let attached = Place::attached(bound.header.path());
    let error = check_automatically(&attached, &bound.token, &bound.secret).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Gate {
                source: GateError::Kind { .. },
                ..
            }
        ),
        "{error}"
    );
    let typed = check_passphrase(bound.header.path(), &passphrase(PASSPHRASE)).unwrap();
    let mut other = bound.token.clone();
    let Bound::DetachedLuks2(facts) = &bound.token.bound else {
        panic!("{:?}", bound.token.bound);
    };
    other.bound = Bound::Luks2(facts.clone());
    assert_eq!(
        typed.matches_bound(&other),
        Err(Mismatch::Header(GateError::Area))
    );
    let error = check_automatically(&bound.place(), &other, &bound.secret).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Gate {
                source: GateError::Kind { .. },
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn only_the_keyslot_that_crypttab_names_is_tried() {
    let bound = Detached::bound();
    let only = |slot: u32| {
        let mut entry = bound.entry();
        entry.options.keyslot = Some(slot);
        check_typed(&entry, &bound.place(), None, &passphrase(PASSPHRASE))
    };
    assert_eq!(only(0).unwrap().keyslot(), Some(0));
    let error = only(2).unwrap_err();
    assert!(
        matches!(error, PassphraseError::WrongPassphrase(_)),
        "{error}"
    );
}

#[test]
fn the_keyslot_that_crypttab_names_is_tried_whatever_its_priority_but_never_latchkey_s() {
    let bound = Volume::luks2().bind();
    let path = bound.volume.path();
    let own = bound.token.bound.keyslot().unwrap();
    let slot = bound.volume.add_passphrase("another");
    bound
        .volume
        .forge(|json| json["keyslots"][slot.to_string()]["priority"] = 0.into());
    let typed = |options: &str, secret: &latchkey_secret::SecretBytes| {
        check_typed(&entry(options), &Place::attached(path), None, secret)
    };
    let wrong = |result| matches!(result, Err(PassphraseError::WrongPassphrase(_)));
    let chosen = format!("luks,keyslot={slot}");
    let key = typed(&chosen, &passphrase("another")).unwrap();
    assert_eq!(key.keyslot(), Some(slot));
    assert!(wrong(typed("luks", &passphrase("another"))));
    let secret = bound.secret.0.expose_secret();
    let mut machine = latchkey_secret::SecretBytes::with_capacity(secret.len()).unwrap();
    machine.push(secret).unwrap();
    assert!(wrong(typed(&format!("luks,keyslot={own}"), &machine)));
}

// Plain dm-crypt

const TWOFISH: &str = "plain,cipher=twofish-xts-plain64,hash=sha512,size=512,offset=8,skip=16";

fn settings(options: &str) -> Settings {
    Settings::of(&Options::parse(options).plain).unwrap()
}

/// Noise on a device, the key that a passphrase makes, and a token of it.
struct Plain {
    device: tempfile::NamedTempFile,
    entry: Entry,
    secret: MachineSecret,
    token: Token,
}

impl Plain {
    fn bound(options: &str, kind: PlainSecret, secret: &[u8]) -> Self {
        let device = tempfile::NamedTempFile::new().unwrap();
        fs::write(device.path(), vec![0xa5; 1 << 20]).unwrap();
        let settings = settings(options);
        let secret = machine_secret(secret);
        let mut context = settings.context(device.path()).unwrap();
        let key = settings.key_of_secret(&mut context, &secret, kind);
        let key = key.unwrap().unwrap();
        let uuid = "7d1f0e5c-2b7e-4a55-9a3c-1b2c3d4e5f60".to_owned();
        let bound = settings.bound(kind, volume_key_id(&key, &uuid));
        let (token, _) = sealed(uuid, Bound::Plain(bound), &secret);
        Self {
            device,
            entry: entry(options),
            secret,
            token,
        }
    }

    fn place(&self) -> Place {
        Place::of(&self.entry.options, self.device.path(), Path::new("/"))
    }

    fn check(&self) -> Result<(), OpenError> {
        check_automatically(&self.place(), &self.token, &self.secret)
    }
}

fn machine_secret(bytes: &[u8]) -> MachineSecret {
    let mut secret = latchkey_secret::SecretBytes::with_capacity(bytes.len()).unwrap();
    secret.push(bytes).unwrap();
    MachineSecret(secret)
}

/// Made with Python's hashlib as cryptsetup(8) describes it: the passphrase is hashed; for a longer key again with one
/// more `A` in front each time; for a shorter one the beginning counts.
#[test]
fn a_passphrase_makes_the_key_that_cryptsetup_makes() {
    let device = tempfile::NamedTempFile::new().unwrap();
    device.as_file().set_len(1 << 20).unwrap();
    for (hash, bits, expected) in VECTORS {
        let settings = settings(&format!(
            "plain,cipher=aes-xts-plain64,hash={hash},size={bits}"
        ));
        let mut context = settings.context(device.path()).unwrap();
        let key = settings
            .key_of_passphrase(&mut context, PASSPHRASE.as_bytes())
            .unwrap();
        let key = latchkey_protocol::encoding::hex(key.expose_secret());
        assert_eq!(key, *expected, "{hash} {bits}");
    }
}

const VECTORS: &[(&str, u32, &str)] = &[
    (
        "sha512",
        512,
        "56b698defedb5a435b634afe3320bbaf3fdcd920b6c503a446fc7b7a776b298d479d1ba6a8b617808eb0bf579ce9a95d668347bcab7149085ac93cb27995197b",
    ),
    (
        "sha256",
        256,
        "4104d36f8da2c254349f85836793ebe029e0c957063a34c91c2e9203187b5631",
    ),
    (
        "sha256",
        512,
        "4104d36f8da2c254349f85836793ebe029e0c957063a34c91c2e9203187b5631c51aefc7f409f4df0888cd78c638b969db451fa1e040e06e2a9ed77f2ae083d5",
    ),
    (
        "sha1",
        256,
        "2f9e53523b62abc141a2b4d6019d23cba835dbd0d9a5deb78a31c8ae1ef31f3f",
    ),
    (
        "plain",
        256,
        "636f727265637420686f72736500000000000000000000000000000000000000",
    ),
    ("sha512", 128, "56b698defedb5a435b634afe3320bbaf"),
    (
        "ripemd160",
        256,
        "424573ebba1ce1abc618a416178f79ad83442dfccd852f665c5536c935adea5c",
    ),
];

#[test]
fn a_plain_volume_is_told_by_its_check_value_alone() {
    let mut bound = Plain::bound(TWOFISH, PlainSecret::Passphrase, PASSPHRASE.as_bytes());
    bound.check().unwrap();
    let before = fs::read(bound.device.path()).unwrap();
    // K6, K3: another passphrase, a line end, nothing but a byte.
    for wrong in ["wrong", "correct horse\n", "correct hors", "c"] {
        bound.secret = machine_secret(wrong.as_bytes());
        let error = bound.check().unwrap_err();
        assert!(
            matches!(error, OpenError::WrongVolumeKey { .. }),
            "{wrong}: {error}"
        );
    }
    assert_eq!(fs::read(bound.device.path()).unwrap(), before);
}

#[test]
fn a_raw_volume_key_has_its_exact_length() {
    let options = "plain,cipher=serpent-cbc-essiv:sha256,hash=ripemd160,size=256";
    let mut bound = Plain::bound(options, PlainSecret::VolumeKey, &[7; 32]);
    bound.check().unwrap();
    for wrong in [&[7; 31][..], &[7; 33], &[8; 32], &[7; 64], &[0]] {
        bound.secret = machine_secret(wrong);
        let error = bound.check().unwrap_err();
        assert!(matches!(error, OpenError::WrongVolumeKey { .. }), "{error}");
    }
    let error = check_typed(
        &bound.entry,
        &bound.place(),
        Some(&bound.token),
        &passphrase(PASSPHRASE),
    );
    assert!(matches!(error, Err(PassphraseError::NoPassphrase(_))));
}

#[test]
fn a_typed_passphrase_opens_a_plain_volume_only_if_it_is_the_bound_one() {
    let bound = Plain::bound(TWOFISH, PlainSecret::Passphrase, PASSPHRASE.as_bytes());
    let typed =
        |text: &str, token| check_typed(&bound.entry, &bound.place(), token, &passphrase(text));
    let right = typed(PASSPHRASE, Some(&bound.token)).unwrap();
    assert_eq!((right.keyslot(), right.uuid()), (None, &*bound.token.uuid));
    right.matches_bound(&bound.token).unwrap();
    for (text, token) in [("wrong", Some(&bound.token)), (PASSPHRASE, None)] {
        let error = typed(text, token).unwrap_err();
        assert!(
            matches!(error, PassphraseError::WrongPassphrase(_)),
            "{error}"
        );
    }
}

#[test]
fn a_plain_volume_that_crypttab_would_open_otherwise_is_refused() {
    let mut bound = Plain::bound(TWOFISH, PlainSecret::Passphrase, PASSPHRASE.as_bytes());
    for (from, to, option, found, was) in [
        (
            "twofish-xts",
            "aes-xts",
            "cipher=",
            "aes-xts-plain64",
            "twofish-xts-plain64",
        ),
        ("sha512", "sha256", "hash=", "sha256", "sha512"),
        ("size=512", "size=256", "size=", "256", "512"),
        ("offset=8", "offset=0", "offset=", "0", "8"),
        ("skip=16", "skip=17", "skip=", "17", "16"),
        (
            "skip=16",
            "skip=16,sector-size=4096",
            "sector-size=",
            "4096",
            "512",
        ),
    ] {
        bound.entry = entry(&TWOFISH.replace(from, to));
        let expected = GateError::Setting {
            option,
            found: found.to_owned(),
            bound: was.to_owned(),
        };
        assert_gate(bound.check(), &expected);
    }
    bound.entry = entry("luks");
    let error = bound.check().unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Gate {
                source: GateError::Kind { .. },
                ..
            }
        ),
        "{error}"
    );
    for incomplete in ["plain", "plain,cipher=aes-xts-plain64,size=512"] {
        bound.entry = entry(incomplete);
        let error = bound.check().unwrap_err();
        assert!(error.to_string().contains("hash="), "{error}");
    }
}

#[test]
fn a_typed_passphrase_does_not_open_a_plain_volume_otherwise_than_crypttab_says() {
    let mut bound = Plain::bound(TWOFISH, PlainSecret::Passphrase, PASSPHRASE.as_bytes());
    for (from, to) in [
        ("offset=8", "offset=0"),
        ("skip=16", "skip=17"),
        (",size=512", ""),
    ] {
        bound.entry = entry(&TWOFISH.replace(from, to));
        let error = check_typed(
            &bound.entry,
            &bound.place(),
            Some(&bound.token),
            &passphrase(PASSPHRASE),
        )
        .unwrap_err();
        assert!(matches!(error, PassphraseError::Settings { .. }), "{error}");
    }
}

#[test]
fn ciphers_that_do_not_encrypt_or_are_not_whole_make_no_plain_volume() {
    for cipher in [
        "cipher_null-ecb",
        "null",
        "aes",
        "aes-",
        "aes-plain",
        "capi:xts(aes)",
    ] {
        let options = Options::parse(&format!("plain,cipher={cipher},hash=sha256,size=256"));
        assert!(Settings::of(&options.plain).is_err(), "{cipher}");
    }
    settings("plain,cipher=capi:xts(aes)-plain64,hash=sha256,size=512");
}

// Envelope files

#[test]
fn an_envelope_file_is_readable_by_root_alone_and_reads_back() {
    let root = tempfile::tempdir().unwrap();
    let files = Files::under(root.path());
    let bound = Plain::bound(TWOFISH, PlainSecret::Passphrase, PASSPHRASE.as_bytes());
    let place = bound.place();
    assert!(binding::find(&files, "data", &place).unwrap().is_empty());
    fs::create_dir_all(root.path().join("etc/latchkey")).unwrap();
    binding::add(&files, "data", &place, &bound.token).unwrap();
    let path = envelopes::path(&files, "data");
    assert_eq!(path, root.path().join("etc/latchkey/envelopes/data.json"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let found = binding::find(&files, "data", &place).unwrap().remove(0);
    assert_eq!(found.at, At::File(path.clone()));
    assert_eq!(found.token, Ok(bound.token));
    assert_eq!(envelopes::names(&files), ["data"]);

    fs::write(&path, "{").unwrap();
    let found = binding::find(&files, "data", &place).unwrap().remove(0);
    assert!(found.token.is_err());
    binding::remove(&files, "data", &place, &found.at).unwrap();
    assert!(binding::find(&files, "data", &place).unwrap().is_empty());
}
