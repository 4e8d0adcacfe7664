//! Keyslots of the kinds that cryptsetup makes, opened by the libcryptsetup and libgcrypt that the agent is linked with.
//!
//! Where the host's cryptsetup has no user-space cipher and would need device-mapper (Twofish, Serpent), the volume is
//! made by our own libcryptsetup.

use std::path::Path;

use super::testing::{PASSPHRASE, Volume, passphrase};
use super::typed::{PassphraseError, check_passphrase};

const PBKDF2: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

#[track_caller]
fn assert_opens(volume: &Volume, kind: &str) {
    match check_passphrase(volume.path(), &passphrase(PASSPHRASE)) {
        Ok(typed) => assert_eq!(typed.keyslot(), Some(0), "{kind}"),
        Err(error) => panic!("{kind}: {error:?}"),
    }
    let wrong = check_passphrase(volume.path(), &passphrase("wrong"));
    assert!(
        matches!(wrong, Err(PassphraseError::WrongPassphrase(_))),
        "{kind}: {wrong:?}"
    );
}

/// The hash is that of the key derivation, of the anti-forensic splitter and, for LUKS1, of the volume key's digest.
#[test]
fn keyslots_open_with_every_hash() {
    for hash in [
        "sha1",
        "sha224",
        "sha256",
        "sha384",
        "sha512",
        "sha3-224",
        "sha3-256",
        "sha3-384",
        "sha3-512",
        "ripemd160",
        "whirlpool",
        "blake2b-160",
        "blake2b-256",
        "blake2b-384",
        "blake2b-512",
        "blake2s-160",
        "blake2s-224",
        "blake2s-256",
        "sm3",
    ] {
        for format in ["luks2", "luks1"] {
            let kind = format!("{format}, {hash}");
            let arguments = [&["--type", format, "--hash", hash], &PBKDF2[..]].concat();
            match Volume::by_cryptsetup(&arguments) {
                Ok(volume) => assert_opens(&volume, &kind),
                Err(said) => eprintln!("skipped {kind}: {said}"),
            }
        }
    }
}

#[test]
fn keyslots_open_with_every_way_of_aes() {
    for (cipher, bits) in [
        ("aes-xts-plain64", "256"),
        ("aes-xts-plain64", "512"),
        ("aes-cbc-essiv:sha256", "128"),
        ("aes-cbc-essiv:sha256", "192"),
        ("aes-cbc-essiv:sha256", "256"),
        ("aes-cbc-plain64", "256"),
    ] {
        for format in ["luks2", "luks1"] {
            let kind = ["--type", format, "--cipher", cipher, "--key-size", bits];
            let volume = Volume::by_cryptsetup(&[&kind[..], &PBKDF2].concat()).unwrap();
            assert_opens(&volume, &kind.join(" "));
        }
    }
}

#[test]
fn keyslots_open_with_twofish_and_serpent() {
    for cipher in ["twofish", "serpent"] {
        for (mode, bytes) in [
            ("xts-plain64", 32),
            ("xts-plain64", 64),
            ("cbc-essiv:sha256", 32),
        ] {
            let volume = Volume::luks2_encrypted_by((cipher, mode), bytes);
            assert_opens(&volume, &format!("{cipher}-{mode}, {bytes} bytes"));
        }
    }
}

/// Argon2's threads end by pthread_exit(3), which unwinds their stacks: without unwind tables the program aborts.
#[test]
fn keyslots_open_with_argon2_in_several_threads() {
    for pbkdf in ["argon2id", "argon2i"] {
        for threads in ["1", "2", "4"] {
            let kind = [
                &["--type", "luks2", "--pbkdf", pbkdf],
                &["--pbkdf-force-iterations", "4"][..],
                &["--pbkdf-memory", "1024", "--pbkdf-parallel", threads],
            ]
            .concat();
            let volume = Volume::by_cryptsetup(&kind).unwrap();
            // cryptsetup takes no more threads than there are processors
            let processors = std::thread::available_parallelism().unwrap().get();
            if processors > 1 && threads != "1" {
                assert!(!volume.json().contains("\"cpus\":1"), "{}", volume.json());
            }
            assert_opens(&volume, &kind.join(" "));
        }
    }
}

/// All of the above speaks of the archives in native/out only if no library of the host is in this process.
#[test]
fn the_tests_are_linked_as_the_agent_is() {
    let maps = std::fs::read_to_string(Path::new("/proc/self/maps")).unwrap();
    assert!(!maps.contains(".so"), "{maps}");
}
