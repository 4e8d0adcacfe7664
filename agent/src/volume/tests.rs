//! Volumes from binding to opening, on files. Mappings need device-mapper: the machines of `tests/` make them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use latchkey_protocol::envelope::{Bound, MachineSecret, Released};
use latchkey_protocol::ids::Generation;
use latchkey_secret::SecretBytes;
use serde_json::json;

use super::backup::{self, BackupError};
use super::gate::{GateError, Position};
use super::header::{HeaderCopy, HeaderError};
use super::identity;
use super::keyslots::{self, KeyslotError};
use super::open::{self, OpenError, check_automatically};
use super::testing::{BoundVolume, PASSPHRASE, Volume, passphrase};
use super::tokens::{self, TokenError};
use super::typed::{Attempt, Mismatch, PassphraseError, beyond_memory, check_passphrase};

fn check(bound: &BoundVolume) -> Result<(), OpenError> {
    check_automatically(&bound.volume.place(), &bound.token, &bound.secret)
}

#[track_caller]
fn assert_refused(bound: &BoundVolume, expected: &GateError) {
    match check(bound) {
        Err(OpenError::Gate { source, .. }) => assert_eq!(&source, expected),
        other => panic!("expected '{expected}', got {other:?}"),
    }
}

#[test]
fn a_bound_volume_opens_with_the_secret_and_with_the_passphrase() {
    let bound = Volume::luks2().bind();
    check(&bound).unwrap();
    let typed = check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
    assert_eq!(typed.keyslot(), Some(0));
    assert_eq!(typed.uuid(), bound.token.uuid);
    typed.matches_bound(&bound.token).unwrap();
}

#[test]
fn a_wrong_secret_and_a_wrong_passphrase_are_told_as_such() {
    let mut bound = Volume::luks2().bind();
    let error = check_passphrase(bound.volume.path(), &passphrase("wrong")).unwrap_err();
    assert!(
        matches!(error, PassphraseError::WrongPassphrase(_)),
        "{error}"
    );
    let right = bound.secret.0.expose_secret().to_vec();
    let followed_by = |more: &[u8]| [&right[..], more].concat();
    // K1, K2: 32 other bytes; K3: the right ones and a newline, a NUL, 480 more, one too few.
    for wrong in [
        vec![7; 32],
        followed_by(b"\n"),
        followed_by(b"\0"),
        followed_by(&[0; 480]),
        right[..31].to_vec(),
    ] {
        let mut secret = SecretBytes::zeroed(wrong.len()).unwrap();
        secret.expose_secret_mut().copy_from_slice(&wrong);
        bound.secret = MachineSecret(secret);
        let error = check(&bound).unwrap_err();
        assert!(matches!(error, OpenError::WrongSecret { .. }), "{error}");
    }
}

#[test]
fn the_machine_secret_is_not_tried_as_a_passphrase() {
    let bound = Volume::luks2().bind();
    let error = check_passphrase(bound.volume.path(), &bound.secret.0).unwrap_err();
    assert!(
        matches!(error, PassphraseError::WrongPassphrase(_)),
        "{error}"
    );
    let slots = keyslots::list(bound.volume.path()).unwrap();
    let seen: Vec<_> = slots.iter().map(|s| (s.slot, s.typed, s.ours)).collect();
    assert_eq!(seen, [(0, true, false), (1, false, true)]);
}

#[test]
fn what_was_copied_is_opened_whatever_the_device_says_later() {
    let bound = Volume::luks2().bind();
    let facts = bound.luks2_facts();
    let header = HeaderCopy::read(bound.volume.path()).unwrap();
    header.copy_keyslot(facts.keyslot).unwrap();
    header.seal().unwrap();
    let typed = check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
    bound.volume.wipe(0, 16 << 20);

    let mut context = header.context().unwrap();
    let secret = bound.secret.0.expose_secret();
    let key = open::volume_key(&mut context, facts.keyslot, secret).unwrap();
    assert_eq!(
        identity::volume_key_id(&key, &bound.token.uuid),
        facts.volume_key_id
    );
    typed.matches_bound(&bound.token).unwrap();
    let error = check(&bound).unwrap_err();
    assert!(
        matches!(error, OpenError::Header(HeaderError::NotLuks2(_))),
        "{error}"
    );
}

#[test]
fn a_sealed_copy_takes_no_more_bytes() {
    let bound = Volume::luks2().bind();
    let header = HeaderCopy::read(bound.volume.path()).unwrap();
    header.seal().unwrap();
    assert!(matches!(
        header.copy_keyslot(0),
        Err(HeaderError::Memory(_))
    ));
}

#[test]
fn the_second_copy_of_a_header_is_enough() {
    // K4.
    let bound = Volume::luks2().bind();
    bound.volume.wipe(0, 4096);
    check(&bound).unwrap();
    check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
    bound.volume.wipe(0x4000, 4096);
    let error = check(&bound).unwrap_err();
    assert!(matches!(error, OpenError::Header(_)), "{error}");
}

#[test]
fn the_bound_volume_key_counts_and_not_the_digest_in_the_header() {
    let bound = Volume::luks2().bind();
    for (field, value) in [
        ("digest", "o9xRdd8WmjFUiZFRwtSyEVgsqrQKUbS9WtpdqGkIGXw="),
        ("salt", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    ] {
        let header = HeaderCopy::read(bound.volume.path()).unwrap();
        let before = header.json()["digests"]["0"][field].clone();
        bound
            .volume
            .forge(|json| json["digests"]["0"][field] = value.into());
        check(&bound).unwrap();
        let error = check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap_err();
        assert!(
            matches!(error, PassphraseError::WrongPassphrase(_)),
            "{error}"
        );
        bound
            .volume
            .forge(|json| json["digests"]["0"][field] = before.clone());
    }
    check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
}

#[test]
fn a_digest_is_replaced_in_both_copies_and_nothing_else_is() {
    let bound = Volume::luks2().bind();
    bound.volume.wipe(0, 4096);
    let mut header = HeaderCopy::read(bound.volume.path()).unwrap();
    let id = bound.luks2_facts().volume_key_id;
    let digest = identity::luks2_digest(&bound.token.uuid, &id);
    header.replace_digest(1, &digest).unwrap();
    header.seal().unwrap();
    let mut expected = header.json().clone();
    for (field, value) in digest.as_object().unwrap() {
        expected["digests"]["0"][field] = value.clone();
    }
    assert_ne!(expected, *header.json());
    let mut context = header.context().unwrap();
    let json = context.status_handle().dump_json().unwrap();
    assert_eq!(json, expected);
}

#[test]
fn the_volume_key_of_another_volume_is_refused() {
    // T9: the attacker knows the token and gives his own volume the same UUID, keyslot and machine secret.
    let bound = Volume::luks2().bind();
    let own = Volume::luks2();
    let uuid = bound.token.uuid.parse().unwrap();
    let mut context = super::context::luks2(own.path()).unwrap();
    context.context_handle().set_uuid(Some(uuid)).unwrap();
    drop(context);
    keyslots::add_keyslot(own.path(), 1, &passphrase(PASSPHRASE), &bound.secret).unwrap();
    let error = check_automatically(&own.place(), &bound.token, &bound.secret).unwrap_err();
    assert!(matches!(error, OpenError::WrongSecret { .. }), "{error}");
    let typed = check_passphrase(own.path(), &passphrase(PASSPHRASE)).unwrap();
    assert_eq!(typed.matches_bound(&bound.token), Err(Mismatch::VolumeKey));
}

#[test]
fn a_forged_header_on_the_device_is_refused_before_anything_costly() {
    let bound = Volume::luks2().bind();
    let raise = |iterations: u64| {
        bound.volume.forge(|json| {
            json["keyslots"]["1"]["kdf"]["iterations"] = json!(iterations);
        });
    };
    for iterations in [1001, u64::from(u32::MAX)] {
        raise(iterations);
        assert_refused(
            &bound,
            &GateError::Iterations {
                found: iterations,
                bound: 1000,
            },
        );
    }
    // T13: the passphrase's own keyslot is not concerned.
    check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
    raise(1000);
    check(&bound).unwrap();

    bound.volume.forge(|json| {
        json["segments"]["0"]["encryption"] = json!("cipher_null-ecb");
    });
    assert_refused(&bound, &GateError::NullCipher);
    let typed = check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
    assert_eq!(
        typed.matches_bound(&bound.token),
        Err(Mismatch::Header(GateError::NullCipher))
    );
}

/// What a forger writes below the JSON: binary headers, and JSON that two parsers read differently.
#[test]
fn a_forged_binary_header_opens_nothing() {
    let bound = Volume::luks2().bind();
    let metadata = bound.volume.metadata();
    let json = bound.volume.json();
    let deep = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
    type Edit = fn(usize, &mut [u8]);
    let cases: [(&str, String, Edit); 9] = [
        ("no JSON", String::new(), |_, _| {}),
        ("cut JSON", json[..json.len() - 1].to_owned(), |_, _| {}),
        (
            "deep JSON",
            json.replacen('{', &format!("{{\"a\":{deep},"), 1),
            |_, _| {},
        ),
        (
            "huge number",
            json.replace("\"sector_size\":", "\"sector_size\":1e999,\"x\":"),
            |_, _| {},
        ),
        ("LUKS1", json.clone(), |_, h| h[7] = 1),
        ("other magic", json.clone(), |_, h| {
            h[..8].copy_from_slice(b"-FVE-FS-")
        }),
        ("size", json.clone(), |_, h| {
            h[8..16].copy_from_slice(&0x40_0000_u64.to_be_bytes())
        }),
        ("no checksum", json.clone(), |_, h| {
            h[72..104].copy_from_slice(&[b'x'; 32])
        }),
        ("endless UUID", json.clone(), |_, h| h[168..208].fill(b'a')),
    ];
    for (name, json, edit) in cases {
        bound.volume.forge_copies(&json, edit);
        let result = check(&bound);
        let refused = matches!(result, Err(OpenError::Header(_) | OpenError::Gate { .. }));
        assert!(refused, "{name}: {result:?}");
        bound.volume.restore(&metadata);
        check(&bound).unwrap();
    }
}

#[test]
fn of_two_copies_the_one_that_is_used_is_checked() {
    let bound = Volume::luks2().bind();
    let good = bound.volume.json();
    let null = good.replace(
        "\"encryption\":\"aes-xts-plain64\",\"sector_size\"",
        "\"encryption\":\"cipher_null-ecb\",\"sector_size\"",
    );
    assert_ne!(good, null);
    // Sequence numbers decide; the second copy says that it is newer.
    bound.volume.forge_copies(&good, |copy, header| {
        if copy == 1 {
            header[16..24].copy_from_slice(&u64::MAX.to_be_bytes());
            let at = header
                .windows(15)
                .rposition(|w| w == b"aes-xts-plain64")
                .unwrap();
            header[at..at + 15].copy_from_slice(b"cipher_null-ecb");
        }
    });
    assert_refused(&bound, &GateError::NullCipher);

    // Which of two equal names counts is the parser's affair: what it took is what is checked and opened.
    let twice = good.replacen(
        "\"segments\":",
        "\"segments\":{\"0\":{\"type\":\"crypt\",\"offset\":\"16777216\",\"size\":\"dynamic\",\
         \"iv_tweak\":\"0\",\"encryption\":\"cipher_null-ecb\",\"sector_size\":512}},\"segments\":",
        1,
    );
    bound.volume.forge_copies(&twice, |_, _| {});
    let header = HeaderCopy::read(bound.volume.path()).unwrap();
    let cipher = header.json()["segments"]["0"]["encryption"].clone();
    match check(&bound) {
        Ok(()) => assert_eq!(cipher, "aes-xts-plain64"),
        Err(_) => assert_refused(&bound, &GateError::NullCipher),
    }
}

#[test]
fn a_reencryption_is_left_to_cryptsetup() {
    use libcryptsetup_rs::consts::flags::{CryptReencrypt, CryptVolumeKey};
    use libcryptsetup_rs::consts::vals::{CryptReencryptDirectionInfo, CryptReencryptModeInfo};
    use libcryptsetup_rs::{CryptParamsLuks2, CryptParamsReencrypt, Either};
    let bound = Volume::luks2().bind();
    let path = bound.volume.path();
    let mut context = super::context::luks2(path).unwrap();
    context
        .settings_handle()
        .set_pbkdf_type(&super::testing::cheap())
        .unwrap();
    let new = context
        .keyslot_handle()
        .add_by_key(
            None,
            Some(Either::Right(64)),
            PASSPHRASE.as_bytes(),
            CryptVolumeKey::NO_SEGMENT,
        )
        .unwrap();
    let luks2 = CryptParamsLuks2 {
        pbkdf: None,
        integrity: None,
        integrity_params: None,
        data_alignment: 0,
        data_device: None,
        sector_size: 512,
        label: None,
        subsystem: None,
    };
    let params = CryptParamsReencrypt {
        mode: CryptReencryptModeInfo::Reencrypt,
        direction: CryptReencryptDirectionInfo::Forward,
        resilience: "checksum".to_owned(),
        hash: "sha256".to_owned(),
        data_shift: 0,
        max_hotzone_size: 0,
        device_size: 0,
        luks2: Some(luks2),
        flags: CryptReencrypt::INITIALIZE_ONLY,
    };
    context
        .reencrypt_handle()
        .reencrypt_init_by_passphrase(
            None,
            PASSPHRASE.as_bytes(),
            Some(0),
            Some(new),
            Some(("aes", "xts-plain64")),
            params,
        )
        .unwrap();
    drop(context);
    assert_refused(&bound, &GateError::Requirements);
    let error = check_passphrase(path, &passphrase(PASSPHRASE)).unwrap_err();
    assert!(matches!(error, PassphraseError::Reencryption(_)), "{error}");
}

#[test]
fn a_requirement_that_is_not_known_is_left_to_cryptsetup() {
    let bound = Volume::luks2().bind();
    for requirement in ["offline-reencrypt", "from the future"] {
        bound.volume.forge(|json| {
            json["config"]["requirements"] = json!({"mandatory": [requirement]});
        });
        assert_refused(&bound, &GateError::Requirements);
        let error = check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap_err();
        assert!(matches!(error, PassphraseError::Reencryption(_)), "{error}");
        let unfit = keyslots::check_fit(bound.volume.path()).unwrap_err();
        assert!(matches!(unfit, KeyslotError::Unfit { .. }), "{unfit}");
    }
}

#[test]
fn a_killed_keyslot_is_told_and_the_passphrase_still_works() {
    // K4.
    let bound = Volume::luks2().bind();
    keyslots::destroy_keyslot(bound.volume.path(), 1, None).unwrap();
    assert_refused(&bound, &GateError::NoKeyslot(1));
    check_passphrase(bound.volume.path(), &passphrase(PASSPHRASE)).unwrap();
    // Done already is done.
    keyslots::destroy_keyslot(bound.volume.path(), 1, None).unwrap();
}

#[test]
fn a_keyslot_that_needs_too_much_memory_hinders_no_other() {
    // M1.
    let volume = Volume::luks2();
    let second = volume.add_passphrase("second");
    volume.forge(|json| {
        let salt = json["keyslots"]["0"]["kdf"]["salt"].clone();
        json["keyslots"]["0"]["kdf"] =
            json!({"type": "argon2id", "time": 4, "memory": 4_194_304, "cpus": 4, "salt": salt});
    });
    let attempt = |text: &str| {
        Attempt {
            passphrase: &passphrase(text),
            except: None,
            only: None,
            memory: Some(1 << 20),
        }
        .run(volume.path(), volume.path())
    };
    assert_eq!(attempt("second").unwrap().keyslot(), Some(second));
    let error = attempt(PASSPHRASE).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("needs 4096 MiB of memory, more than this machine has"),
        "{error}"
    );
    let warning = |total| beyond_memory(volume.path(), None, total);
    assert_eq!(
        warning(1 << 20).as_deref(),
        Some(
            "keyslot 0 needs 4096 MiB of memory, this machine has 1024: its passphrase cannot be tried, those of other \
             keyslots can"
        )
    );
    assert_eq!(warning(8 << 20), None);
    volume.forge(|json| json["keyslots"][second.to_string()]["priority"] = 0.into());
    let alone = warning(1 << 20).unwrap();
    assert!(alone.contains("no passphrase can be tried"), "{alone}");
}

#[test]
fn a_token_survives_what_libcryptsetup_writes_around_it() {
    let bound = Volume::luks2().bind();
    let path = bound.volume.path();
    let second = bound.volume.add_passphrase("second");
    let mut context = super::context::luks2(path).unwrap();
    context.keyslot_handle().destroy(second).unwrap();
    context
        .context_handle()
        .set_label(Some("a label"), None)
        .unwrap();
    drop(context);
    let found = tokens::find(path).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, bound.token_id);
    let token = found[0].token.as_ref().unwrap();
    assert_eq!(token, &bound.token);
    let released = Released {
        share: &bound.share,
        volume: token.volume,
        generation: Generation(1),
    };
    let secret = token.open(&token.envelopes[0], released).unwrap();
    check_automatically(&bound.volume.place(), token, &secret).unwrap();
}

#[test]
fn tokens_are_replaced_and_removed_and_others_are_left_alone() {
    let mut bound = Volume::luks2().bind();
    let path = bound.volume.path();
    bound.token.envelopes[0].generation = Generation(2);
    tokens::replace(path, bound.token_id, &bound.token).unwrap();
    let second = tokens::add(path, &bound.token).unwrap();
    assert_eq!(second, bound.token_id + 1);
    let foreign = json!({"type": "other", "keyslots": []});
    let broken = json!({"type": "latchkey", "keyslots": ["1"], "version": 7});
    let mut context = super::context::luks2(path).unwrap();
    for (id, json) in [(7, &foreign), (9, &broken)] {
        let input = libcryptsetup_rs::TokenInput::ReplaceToken(id, json);
        context.token_handle().json_set(input).unwrap();
    }
    drop(context);

    let found = tokens::find(path).unwrap();
    let seen: Vec<_> = found.iter().map(|f| (f.id, f.token.is_ok())).collect();
    assert_eq!(seen, [(0, true), (1, true), (9, false)]);
    assert_eq!(found[0].token.as_ref().unwrap(), &bound.token);
    for id in [7, 8] {
        let error = tokens::remove(path, id).unwrap_err();
        assert!(matches!(error, TokenError::NotOurs { .. }), "{error}");
        let error = tokens::replace(path, id, &bound.token).unwrap_err();
        assert!(matches!(error, TokenError::NotOurs { .. }), "{error}");
    }
    for id in [0, 1, 9] {
        tokens::remove(path, id).unwrap();
    }
    assert!(tokens::find(path).unwrap().is_empty());
    let header = HeaderCopy::read(path).unwrap();
    assert_eq!(header.json()["tokens"]["7"], foreign);
}

#[test]
fn thirty_two_tokens_are_the_end() {
    let bound = Volume::luks2().bind();
    let path = bound.volume.path();
    let mut context = super::context::luks2(path).unwrap();
    for id in 1..32 {
        let json = json!({"type": "other", "keyslots": []});
        let input = libcryptsetup_rs::TokenInput::ReplaceToken(id, &json);
        context.token_handle().json_set(input).unwrap();
    }
    drop(context);
    let error = tokens::add(path, &bound.token).unwrap_err();
    assert!(matches!(error, TokenError::NoFreeToken(_)), "{error}");
}

#[test]
fn a_token_without_room_leaves_the_header_as_it_was() {
    let bound = Volume::luks2().bind();
    let path = bound.volume.path();
    let before = HeaderCopy::read(path).unwrap();
    let error = loop {
        match tokens::add(path, &bound.token) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, TokenError::NoRoom(_)), "{error}");
    let after = HeaderCopy::read(path).unwrap();
    assert_eq!(after.json()["keyslots"], before.json()["keyslots"]);
    check(&bound).unwrap();
}

#[test]
fn thirty_two_keyslots_are_the_end() {
    let volume = Volume::luks2();
    for number in 1..32 {
        volume.add_passphrase(&format!("passphrase {number}"));
    }
    let error = keyslots::free_keyslot(volume.path()).unwrap_err();
    assert!(matches!(error, KeyslotError::NoFreeKeyslot(_)), "{error}");
    let secret = MachineSecret::random().unwrap();
    let error =
        keyslots::add_keyslot(volume.path(), 5, &passphrase(PASSPHRASE), &secret).unwrap_err();
    assert!(matches!(error, KeyslotError::NoFreeKeyslot(_)), "{error}");
    check_passphrase(volume.path(), &passphrase("passphrase 31")).unwrap();
}

#[test]
fn only_keyslots_of_latchkey_are_destroyed_and_never_the_last() {
    let bound = Volume::luks2().bind();
    let path = bound.volume.path();
    let second = bound.volume.add_passphrase("second");
    for slot in [0, second] {
        let error = keyslots::destroy_keyslot(path, slot, None).unwrap_err();
        assert!(matches!(error, KeyslotError::NotOurs { .. }), "{error}");
    }
    // A binding that was interrupted before it wrote its token: the journal alone names the keyslot.
    let secret = MachineSecret::random().unwrap();
    let slot = keyslots::free_keyslot(path).unwrap();
    keyslots::add_keyslot(path, slot, &passphrase("second"), &secret).unwrap();
    assert!(keyslots::destroy_keyslot(path, slot, None).is_err());
    keyslots::destroy_keyslot(path, slot, Some(slot)).unwrap();

    let mut context = super::context::luks2(path).unwrap();
    for slot in [0, second] {
        context.keyslot_handle().destroy(slot).unwrap();
    }
    drop(context);
    let error = keyslots::destroy_keyslot(path, 1, None).unwrap_err();
    assert!(matches!(error, KeyslotError::LastKeyslot { .. }), "{error}");
    check(&bound).unwrap();
}

#[test]
fn a_forged_token_costs_nobody_a_passphrase() {
    let bound = Volume::luks2().bind();
    bound
        .volume
        .forge(|json| json["tokens"]["0"]["keyslots"] = json!(["0", "1"]));
    let path = bound.volume.path();
    let error = keyslots::destroy_keyslot(path, 0, None).unwrap_err();
    assert!(matches!(error, KeyslotError::NotOurs { .. }), "{error}");
    keyslots::destroy_keyslot(path, 1, None).unwrap();
    check_passphrase(path, &passphrase(PASSPHRASE)).unwrap();
}

#[test]
fn adding_a_keyslot_needs_a_right_passphrase_and_changes_nothing_without() {
    let volume = Volume::luks2();
    let before = keyslots::list(volume.path()).unwrap();
    let secret = MachineSecret::random().unwrap();
    let error = keyslots::add_keyslot(volume.path(), 1, &passphrase("wrong"), &secret).unwrap_err();
    assert!(
        matches!(
            error,
            KeyslotError::Passphrase(PassphraseError::WrongPassphrase(_))
        ),
        "{error}"
    );
    assert_eq!(keyslots::list(volume.path()).unwrap(), before);
    assert!(matches!(
        keyslots::bound_facts(volume.path(), Position::Attached, 0, &secret),
        Err(KeyslotError::WrongSecret { slot: 0, .. })
    ));
}

#[test]
fn a_passphrase_is_proved_on_another_keyslot() {
    let volume = Volume::luks2();
    let second = volume.add_passphrase("second");
    let prove = |text: &str, not| {
        keyslots::prove_other_keyslot(volume.path(), &passphrase(text), not)
            .ok()
            .flatten()
    };
    assert_eq!(prove(PASSPHRASE, None), Some(0));
    assert_eq!(prove(PASSPHRASE, Some(second)), Some(0));
    assert_eq!(prove(PASSPHRASE, Some(0)), None);
    assert_eq!(prove("second", Some(0)), Some(second));
}

#[test]
fn a_keyslot_without_the_volume_key_opens_nothing() {
    use libcryptsetup_rs::Either;
    use libcryptsetup_rs::consts::flags::CryptVolumeKey;
    let volume = Volume::luks2();
    let mut context = super::context::luks2(volume.path()).unwrap();
    context
        .keyslot_handle()
        .add_by_key(
            None,
            Some(Either::Left(&[7; 64])),
            b"unbound",
            CryptVolumeKey::NO_SEGMENT,
        )
        .unwrap();
    drop(context);
    let error = check_passphrase(volume.path(), &passphrase("unbound")).unwrap_err();
    assert!(
        matches!(error, PassphraseError::WrongPassphrase(_)),
        "{error}"
    );
}

#[test]
fn luks1_opens_by_passphrase_and_has_no_tokens() {
    let volume = Volume::luks1();
    let typed = check_passphrase(volume.path(), &passphrase(PASSPHRASE)).unwrap();
    assert_eq!(typed.keyslot(), Some(0));
    let error = check_passphrase(volume.path(), &passphrase("wrong")).unwrap_err();
    assert!(
        matches!(error, PassphraseError::WrongPassphrase(_)),
        "{error}"
    );
    assert!(matches!(
        tokens::find(volume.path()),
        Err(TokenError::Header(HeaderError::NotLuks2(_)))
    ));
    let bound = Volume::luks2().bind();
    assert_eq!(typed.matches_bound(&bound.token), Err(Mismatch::Kind));
    let empty = tempfile::NamedTempFile::new().unwrap();
    empty.as_file().set_len(1 << 20).unwrap();
    let error = check_passphrase(empty.path(), &passphrase(PASSPHRASE)).unwrap_err();
    assert!(matches!(error, PassphraseError::NotLuks(_)), "{error}");
}

#[test]
fn a_volume_that_could_never_open_automatically_cannot_be_bound() {
    let volume = Volume::luks2();
    keyslots::check_fit(volume.path()).unwrap();
    volume.forge(|json| json["segments"]["0"]["encryption"] = json!("cipher_null-ecb"));
    let error = keyslots::check_fit(volume.path()).unwrap_err();
    assert!(
        matches!(
            error,
            KeyslotError::Unfit {
                source: GateError::NullCipher,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_backup_is_private_complete_and_overwrites_nothing() {
    let bound = Volume::luks2().bind();
    let path = bound.volume.path();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("header.img");
    let unfinished = directory.path().join("header.img.new");
    fs::write(&unfinished, "left by a crash").unwrap();
    backup::backup_header(path, &file).unwrap();
    assert!(!unfinished.exists());
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = backup::backup_header(path, &file).unwrap_err();
    assert!(matches!(error, BackupError::Exists(_)), "{error}");

    bound.volume.wipe(0, 16 << 20);
    let mut context = super::context::attached(path).unwrap();
    context.backup_handle().header_restore(None, &file).unwrap();
    drop(context);
    check(&bound).unwrap();
    check_passphrase(path, &passphrase(PASSPHRASE)).unwrap();

    let absent = directory.path().join("absent/header.img");
    let error = backup::backup_header(path, &absent).unwrap_err();
    assert!(matches!(error, BackupError::Crypt { .. }), "{error}");
    let none = tempfile::NamedTempFile::new().unwrap();
    let other = directory.path().join("other.img");
    assert!(backup::backup_header(none.path(), &other).is_err());
    assert!(!other.exists());
}

#[test]
fn a_device_that_is_too_short_or_missing_is_an_error_and_no_panic() {
    for length in [0, 16, 4095, 4096, 5000, 0x7fff] {
        let bound = Volume::luks2();
        let header = fs::read(bound.path()).unwrap();
        fs::write(bound.path(), &header[..length]).unwrap();
        assert!(HeaderCopy::read(bound.path()).is_err(), "{length} bytes");
    }
    // The metadata is there, the keyslots are not.
    let volume = Volume::luks2();
    let header = fs::read(volume.path()).unwrap();
    fs::write(volume.path(), &header[..0x8000]).unwrap();
    let error = check_passphrase(volume.path(), &passphrase(PASSPHRASE)).unwrap_err();
    assert!(
        matches!(error, PassphraseError::Header(HeaderError::Read { .. })),
        "{error}"
    );
    let error = HeaderCopy::read("/absent".as_ref()).unwrap_err();
    assert_eq!(error.to_string(), "failed to read the header of '/absent'");
}

#[test]
fn a_luks1_header_with_the_rest_of_a_luks2_one_is_luks1() {
    let old = Volume::luks2();
    let new = Volume::luks1();
    let mut metadata = new.metadata();
    metadata[0x4000..].copy_from_slice(&old.metadata()[0x4000..]);
    new.restore(&metadata);
    let error = HeaderCopy::read(new.path()).unwrap_err();
    assert!(matches!(error, HeaderError::NotLuks2(_)), "{error}");
}

/// Overwrites the block device named by `LATCHKEY_TEST_DEVICE`.
#[test]
#[ignore = "needs root, device-mapper and a device to overwrite"]
fn mappings_are_made_from_the_checked_copy_and_taken_down() {
    use super::crypttab;
    use super::mapping::{close, mapping, mapping_on, name_is_taken};
    let device = std::env::var_os("LATCHKEY_TEST_DEVICE").expect("LATCHKEY_TEST_DEVICE is set");
    let device = fs::canonicalize(device).unwrap();
    let mut bound = Volume::luks2_on(&device).bind();
    let line = format!("latchkey-test {} none luks,discard", device.display());
    let entry = crypttab::parse(&line).remove(0).unwrap();
    let name = entry.name.as_str();
    let open = |bound: &BoundVolume| {
        open::open_automatically(&entry, &bound.volume.place(), &bound.token, &bound.secret)
    };

    let opened = open(&bound).unwrap();
    let found = mapping(name).unwrap();
    assert_eq!(found.uuid.as_ref(), Some(&opened.uuid));
    assert_eq!((found.format.as_str(), &found.device), ("LUKS2", &device));
    assert_eq!(mapping_on(&device), Some(found));
    assert!(fs::metadata("/dev/mapper/latchkey-test").is_ok());
    let error = open(&bound).unwrap_err();
    assert!(matches!(error, OpenError::AlreadyOpen(_)), "{error}");
    fs::write("/dev/mapper/latchkey-test", b"what is written").unwrap();
    close(name).unwrap();
    assert_eq!(mapping(name), None);

    let Bound::Luks2(facts) = &mut bound.token.bound else {
        panic!("{:?}", bound.token.bound);
    };
    facts.volume_key_id.0[0] ^= 1;
    let error = open(&bound).unwrap_err();
    assert!(matches!(error, OpenError::WrongSecret { .. }), "{error}");
    assert!(!name_is_taken(name));

    // Between check and mapping the header goes away: the copy is what is opened.
    let typed = check_passphrase(&device, &passphrase(PASSPHRASE)).unwrap();
    bound.volume.wipe(0, 16 << 20);
    typed.activate(&entry).unwrap();
    let start = fs::File::open("/dev/mapper/latchkey-test").unwrap();
    let mut read = [0; 15];
    std::os::unix::fs::FileExt::read_exact_at(&start, &mut read, 0).unwrap();
    assert_eq!(&read, b"what is written");
    drop(start);
    close(name).unwrap();
    assert!(close(name).is_err());
}
