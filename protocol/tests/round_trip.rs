//! Whatever is sealed opens, whatever is written is read back, and no input makes a parser panic.
#![allow(clippy::unwrap_used)] // the helpers of tests as well

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::envelope::{
    Bound, BoundIntegrity, BoundLuks1, BoundLuks2, BoundPlain, ENVELOPES_LIMIT,
    MACHINE_SECRET_LIMIT, MachineSecret, PlainSecret, Released, TOKEN_LIMIT, Token, TokenKind,
};
use latchkey_protocol::release::Share;
use latchkey_protocol::token::{ADDRESSES_LIMIT, JoinToken};
use latchkey_protocol::wire::{ReleaseAnswer, ReleaseRequest, Version};
use latchkey_protocol::{ClientName, Generation, ServerId, VolumeId};
use latchkey_secret::{Secret, SecretBytes};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sealed_secret_opens_after_the_token_was_written_and_read(
        bound in bound(),
        uuid in "[ -~]{0,40}",
        secret in proptest::collection::vec(any::<u8>(), 1..=MACHINE_SECRET_LIMIT),
        generations in proptest::collection::vec(any::<u32>(), 1..=ENVELOPES_LIMIT),
    ) {
        let secret = &secret[..secret.len().min(longest_secret(&bound))];
        let mut token = Token {
            kind: TokenKind::Latchkey,
            keyslots: bound.keyslot().iter().map(u32::to_string).collect(),
            version: Version::default(),
            volume: VolumeId::random().unwrap(),
            uuid,
            bound,
            envelopes: Vec::new(),
        };
        let share = Share(Secret::random().unwrap());
        for (number, generation) in generations.iter().enumerate() {
            let server = ServerId::of_ca(&number.to_be_bytes());
            let sealed = token
                .seal(server, released(&token, &share, *generation), &machine_secret(secret))
                .unwrap();
            token.envelopes.push(sealed);
        }
        let json = token.to_json().unwrap();
        let read = Token::parse(json.as_bytes()).unwrap();
        prop_assert_eq!(&read, &token);
        for envelope in &read.envelopes {
            let opened = read.open(envelope, released(&read, &share, envelope.generation.0)).unwrap();
            prop_assert_eq!(opened.0.expose_secret(), secret);
        }
    }

    #[test]
    fn join_tokens_read_back(
        server in any::<[u8; 32]>(),
        secret in any::<[u8; 32]>(),
        client in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        addresses in proptest::collection::vec(
            "([a-z0-9]{1,8}(\\.[a-z0-9-]{0,8}[a-z0-9]){0,3}|\\[2001:db8::[0-9a-f]{1,4}\\]):[1-9][0-9]{0,3}",
            1..=ADDRESSES_LIMIT,
        ),
        noise in "[ \t\n]{0,3}",
    ) {
        let addresses: Result<Vec<_>, _> = addresses.iter().map(|text| text.parse()).collect();
        prop_assume!(addresses.is_ok());
        let token = JoinToken {
            server: ServerId::from_bytes(server),
            secret: Bytes(secret),
            client: client.parse::<ClientName>().unwrap(),
            addresses: addresses.unwrap(),
        };
        let line = format!("{noise}{}{noise}", token.to_line());
        prop_assert_eq!(line.parse::<JoinToken>(), Ok(token));
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Token::parse(&bytes);
        let _ = serde_json::from_slice::<ReleaseRequest>(&bytes);
        let _ = serde_json::from_slice::<ReleaseAnswer>(&bytes);
        let _ = String::from_utf8_lossy(&bytes).parse::<JoinToken>();
        let _ = format!("latchkey1.{}", String::from_utf8_lossy(&bytes)).parse::<JoinToken>();
    }

    #[test]
    fn no_text_like_json_makes_a_parser_panic(text in "[\\[\\]{}\",:0-9a-z \\\\]{0,200}") {
        let _ = Token::parse(text.as_bytes());
        let _ = serde_json::from_str::<ReleaseAnswer>(&text);
    }
}

#[test]
fn the_largest_token_fits_and_a_larger_one_is_refused() {
    let share = Share(Secret::random().unwrap());
    let mut token = Token {
        kind: TokenKind::Latchkey,
        keyslots: vec!["31".to_owned()],
        version: Version::default(),
        volume: VolumeId::random().unwrap(),
        uuid: "5e9f3c1e-7a44-4f0c-8d3e-52a1c0ffee00".to_owned(),
        bound: Bound::Luks2(BoundLuks2 {
            keyslot: 31,
            iterations: u32::MAX,
            cipher: "capi:xts(aes)-plain64".to_owned(),
            key_size: 64,
            sector_size: 4096,
            offset: u64::MAX,
            volume_key_id: Bytes([0; 32]),
            integrity: None,
        }),
        envelopes: Vec::new(),
    };
    let integrity = BoundIntegrity {
        kind: "hmac(sha512)".to_owned(),
        journal_encryption: "none".to_owned(),
        journal_integrity: "none".to_owned(),
        key_size: Some(u32::MAX),
    };
    // Only LUKS2 has integrity, and what opens its keyslot has 32 bytes.
    for (length, integrity) in [(32, Some(integrity)), (MACHINE_SECRET_LIMIT, None)] {
        if let Bound::Luks2(bound) = &mut token.bound {
            bound.integrity = integrity;
        }
        let secret = machine_secret(&vec![7; length]);
        token.envelopes.clear();
        for number in 0..ENVELOPES_LIMIT {
            let server = ServerId::of_ca(&number.to_be_bytes());
            let sealed = token.seal(server, released(&token, &share, u32::MAX), &secret);
            token.envelopes.push(sealed.unwrap());
        }
        let json = token.to_json().expect("every token that is allowed fits");
        assert!(Token::parse(json.as_bytes()).is_ok());
    }
    let json = token.to_json().unwrap();

    let padded = json.clone() + &" ".repeat(TOKEN_LIMIT + 1 - json.len());
    assert!(Token::parse(padded.as_bytes()).is_err());
    let one_more = token.envelopes[0].clone();
    token.envelopes.push(one_more);
    assert!(token.to_json().is_err(), "nine envelopes");
    token.envelopes.clear();
    assert!(token.to_json().is_err(), "no envelope");
}

fn bound() -> impl Strategy<Value = Bound> {
    (
        0..8,
        any::<[u32; 4]>(),
        any::<[u64; 2]>(),
        ["[ -~]{0,40}", "[a-z0-9:-]{0,20}"],
        any::<[u8; 32]>(),
    )
        .prop_map(|(kind, numbers, [offset, skip], [cipher, hash], id)| {
            let [keyslot, iterations, key_size, other] = numbers;
            let volume_key_id = Bytes(id);
            let luks2 = BoundLuks2 {
                keyslot,
                iterations,
                cipher: cipher.clone(),
                key_size,
                sector_size: other,
                offset,
                volume_key_id,
                integrity: None,
            };
            let integrity = |key_size| {
                Some(BoundIntegrity {
                    kind: hash.clone(),
                    journal_encryption: cipher.clone(),
                    journal_integrity: hash.clone(),
                    key_size,
                })
            };
            let plain = |secret| BoundPlain {
                secret,
                cipher: cipher.clone(),
                hash: hash.clone(),
                key_size,
                sector_size: other,
                offset,
                skip,
                volume_key_id,
            };
            match kind {
                0 => Bound::Luks2(luks2),
                1 => Bound::DetachedLuks2(luks2),
                2 => Bound::Luks1(BoundLuks1 {
                    keyslot,
                    iterations,
                    cipher: cipher.clone(),
                    hash: hash.clone(),
                    key_size,
                    offset,
                    digest_iterations: other,
                    volume_key_id,
                }),
                3 => Bound::Plain(plain(PlainSecret::Passphrase)),
                4 => Bound::Plain(plain(PlainSecret::VolumeKey)),
                5 => Bound::Luks2(BoundLuks2 {
                    integrity: integrity(None),
                    ..luks2
                }),
                6 => Bound::Luks2(BoundLuks2 {
                    integrity: integrity(Some(other)),
                    ..luks2
                }),
                _ => Bound::DetachedLuks2(BoundLuks2 {
                    integrity: integrity(Some(0)),
                    ..luks2
                }),
            }
        })
}

/// Only plain volumes have secrets of any length; what opens a keyslot has 32 bytes.
fn longest_secret(bound: &Bound) -> usize {
    match bound {
        Bound::Plain(_) => MACHINE_SECRET_LIMIT,
        _ => 32,
    }
}

fn released<'a>(token: &Token, share: &'a Share, generation: u32) -> Released<'a> {
    Released {
        share,
        volume: token.volume,
        generation: Generation(generation),
    }
}

fn machine_secret(bytes: &[u8]) -> MachineSecret {
    let mut secret = SecretBytes::with_capacity(bytes.len()).unwrap();
    secret.push(bytes).unwrap();
    MachineSecret(secret)
}
