//! Whatever is changed in a token, an envelope or a sealed share, it does not open.
#![allow(clippy::unwrap_used)] // the helpers of tests as well

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::envelope::{
    Bound, BoundIntegrity, BoundLuks2, EnvelopeError, MachineSecret, Released, Token, TokenKind,
};
use latchkey_protocol::release::{BootKeyPair, Purpose, ReleaseContext, ReleaseError, Share};
use latchkey_protocol::wire::Version;
use latchkey_protocol::{ClientName, Generation, RequestId, ServerId, VolumeId};
use latchkey_secret::Secret;

/// One field of a token: its name, its bits, and how one of them is flipped. `None` where the result is not UTF-8,
/// which no JSON text can hold.
type Field = (&'static str, usize, fn(&mut Token, usize) -> Option<()>);

const FIELDS: &[Field] = &[
    ("volume", 128, |token, bit| {
        let mut bytes = *token.volume.as_bytes();
        flip(&mut bytes, bit);
        token.volume = volume_of(bytes);
        Some(())
    }),
    ("uuid", 36 * 8, |token, bit| flip_text(&mut token.uuid, bit)),
    ("bound.keyslot", 32, |token, bit| {
        luks2(token).keyslot ^= 1 << bit;
        Some(())
    }),
    ("bound.iterations", 32, |token, bit| {
        luks2(token).iterations ^= 1 << bit;
        Some(())
    }),
    ("bound.cipher", 15 * 8, |token, bit| {
        flip_text(&mut luks2(token).cipher, bit)
    }),
    ("bound.key-size", 32, |token, bit| {
        luks2(token).key_size ^= 1 << bit;
        Some(())
    }),
    ("bound.sector-size", 32, |token, bit| {
        luks2(token).sector_size ^= 1 << bit;
        Some(())
    }),
    ("bound.offset", 64, |token, bit| {
        luks2(token).offset ^= 1 << bit;
        Some(())
    }),
    ("bound.volume-key-id", 256, |token, bit| {
        flip(&mut luks2(token).volume_key_id.0, bit);
        Some(())
    }),
    ("bound.integrity.type", 12 * 8, |token, bit| {
        flip_text(&mut integrity(token).kind, bit)
    }),
    ("bound.integrity.journal-encryption", 4 * 8, |token, bit| {
        flip_text(&mut integrity(token).journal_encryption, bit)
    }),
    ("bound.integrity.journal-integrity", 4 * 8, |token, bit| {
        flip_text(&mut integrity(token).journal_integrity, bit)
    }),
    ("bound.integrity.key-size", 32, |token, bit| {
        *integrity(token).key_size.as_mut()? ^= 1 << bit;
        Some(())
    }),
    ("server", 256, |token, bit| {
        let mut bytes = *token.envelopes[0].server.as_bytes();
        flip(&mut bytes, bit);
        token.envelopes[0].server = ServerId::from_bytes(bytes);
        Some(())
    }),
    ("generation", 32, |token, bit| {
        token.envelopes[0].generation.0 ^= 1 << bit;
        Some(())
    }),
    ("salt", 256, |token, bit| {
        flip(&mut token.envelopes[0].salt.0, bit);
        Some(())
    }),
    ("nonce", 192, |token, bit| {
        flip(&mut token.envelopes[0].nonce.0, bit);
        Some(())
    }),
    ("commitment", 256, |token, bit| {
        flip(&mut token.envelopes[0].commitment.0, bit);
        Some(())
    }),
    ("sealed", 48 * 8, |token, bit| {
        flip(&mut token.envelopes[0].sealed.0, bit);
        Some(())
    }),
];

#[test]
fn no_bit_of_a_token_can_be_flipped() {
    let (token, share) = sealed_token();
    let released = released(&token, &share);
    for (name, bits, change) in FIELDS {
        let mut refused = 0;
        for bit in 0..*bits {
            let mut changed = token.clone();
            if change(&mut changed, bit).is_some() {
                assert_ne!(changed, token, "bit {bit} of '{name}'");
                let opened = changed.open(&changed.envelopes[0], released);
                assert!(opened.is_err(), "bit {bit} of '{name}' was flipped");
            }
            refused += 1;
        }
        assert_eq!(refused, *bits, "'{name}'");
    }
    token
        .open(&token.envelopes[0], released)
        .expect("the unchanged token opens");
}

/// `FIELDS` names every field that the JSON has, but for those that cannot be otherwise and `keyslots`, which
/// libcryptsetup may rewrite.
#[test]
fn every_field_is_among_those_that_are_flipped() {
    let (token, _) = sealed_token();
    let json = serde_json::to_value(&token).unwrap();
    let keys = |value: &serde_json::Value, prefix: &str| -> Vec<String> {
        value
            .as_object()
            .unwrap()
            .keys()
            .map(|key| format!("{prefix}{key}"))
            .collect()
    };
    let mut named = keys(&json, "");
    named.extend(keys(&json["bound"]["luks2"], "bound."));
    named.extend(keys(
        &json["bound"]["luks2"]["integrity"],
        "bound.integrity.",
    ));
    named.extend(keys(&json["envelopes"][0], ""));
    let not_flipped = [
        "type",
        "version",
        "keyslots",
        "bound",
        "bound.integrity",
        "envelopes",
    ];
    named.retain(|name| !not_flipped.contains(&&name[..]));
    let mut flipped: Vec<&str> = FIELDS.iter().map(|(name, ..)| *name).collect();
    named.sort();
    flipped.sort();
    assert_eq!(named, flipped);
}

#[test]
fn integrity_cannot_be_taken_away_or_added() {
    let (token, share) = sealed_token();
    let mut without = token.clone();
    luks2(&mut without).integrity = None;
    let mut without_size = token.clone();
    integrity(&mut without_size).key_size = None;
    for changed in [&without, &without_size] {
        let opened = changed.open(&changed.envelopes[0], released(changed, &share));
        assert_eq!(opened.unwrap_err(), EnvelopeError::Changed);
    }
    let sealed = without.seal(
        ServerId::of_ca(b"ca"),
        released(&without, &share),
        &MachineSecret::random().unwrap(),
    );
    let opened = token.open(&sealed.unwrap(), released(&token, &share));
    assert_eq!(opened.unwrap_err(), EnvelopeError::Changed);
}

#[test]
fn wrong_share_volume_and_generation_have_errors_of_their_own() {
    let (token, share) = sealed_token();
    let right = released(&token, &share);
    let other = Share(Secret::random().unwrap());
    let volume = VolumeId::random().unwrap();
    let open = |released| token.open(&token.envelopes[0], released).unwrap_err();
    assert_eq!(
        open(Released {
            share: &other,
            ..right
        }),
        EnvelopeError::WrongShare
    );
    assert_eq!(
        open(Released { volume, ..right }),
        EnvelopeError::WrongVolume {
            envelope: token.volume,
            share: volume
        }
    );
    assert_eq!(
        open(Released {
            generation: Generation(2),
            ..right
        }),
        EnvelopeError::WrongGeneration {
            envelope: Generation(1),
            share: Generation(2)
        }
    );
}

#[test]
fn an_envelope_of_another_volume_does_not_open_here() {
    let (mut here, share) = sealed_token();
    let (there, _) = sealed_token_with(&share);
    here.envelopes = there.envelopes;
    let error = here
        .open(&here.envelopes[0], released(&here, &share))
        .unwrap_err();
    assert_eq!(error, EnvelopeError::WrongShare);
}

#[test]
fn libcryptsetup_may_write_the_keyslots_anew() {
    let (mut token, share) = sealed_token();
    token.keyslots = vec!["7".to_owned()];
    token
        .open(&token.envelopes[0], released(&token, &share))
        .expect("keyslots are not authenticated");
}

#[test]
fn secrets_of_no_byte_or_too_many_are_not_sealed() {
    let (token, share) = sealed_token();
    for length in [0, 513] {
        let secret = MachineSecret(latchkey_secret::SecretBytes::zeroed(length).unwrap());
        let sealed = token.seal(token.envelopes[0].server, released(&token, &share), &secret);
        assert_eq!(sealed, Err(EnvelopeError::SecretLength), "{length}");
    }
}

#[test]
fn no_bit_of_a_sealed_share_can_be_flipped() {
    let asked = Asked::new();
    let pair = BootKeyPair::generate().unwrap();
    let share = Share(Secret::random().unwrap());
    let sealed = share.seal(&pair.public(), asked.context()).unwrap();
    for bit in 0..80 * 8 {
        let mut changed = sealed;
        flip(&mut changed.0, bit);
        let opened = pair.open(&changed, asked.context());
        if bit == 255 {
            // X25519 ignores the highest bit of a public key (RFC 7748 §5), but HPKE hashes all of it.
            assert!(
                matches!(opened, Err(ReleaseError::NotForUs)),
                "the unused bit"
            );
        }
        assert!(opened.is_err(), "bit {bit}");
    }
    let opened = pair.open(&sealed, asked.context()).unwrap();
    assert_eq!(opened.0.expose_secret(), share.0.expose_secret());
}

#[test]
fn a_release_opens_only_for_what_was_asked() {
    let asked = Asked::new();
    let other = Asked::new();
    let pair = BootKeyPair::generate().unwrap();
    let sealed = Share(Secret::random().unwrap())
        .seal(&pair.public(), asked.context())
        .unwrap();
    let right = asked.context();
    let longer: ClientName = "web-12".parse().unwrap();
    for (what, context) in [
        (
            "purpose proof",
            ReleaseContext {
                purpose: Purpose::Proof,
                ..right
            },
        ),
        (
            "purpose registration",
            ReleaseContext {
                purpose: Purpose::Registration,
                ..right
            },
        ),
        (
            "server",
            ReleaseContext {
                server: &other.server,
                ..right
            },
        ),
        (
            "client",
            ReleaseContext {
                client: &longer,
                ..right
            },
        ),
        (
            "request",
            ReleaseContext {
                request: &other.request,
                ..right
            },
        ),
        (
            "volume",
            ReleaseContext {
                volume: &other.volume,
                ..right
            },
        ),
        (
            "generation",
            ReleaseContext {
                generation: Generation(2),
                ..right
            },
        ),
    ] {
        let opened = pair.open(&sealed, context);
        assert!(
            matches!(opened, Err(ReleaseError::NotForUs)),
            "another {what}: {opened:?}"
        );
    }
    let stranger = BootKeyPair::generate().unwrap();
    assert!(matches!(
        stranger.open(&sealed, right),
        Err(ReleaseError::NotForUs)
    ));
    pair.open(&sealed, right).expect("what was asked");
}

struct Asked {
    server: ServerId,
    client: ClientName,
    request: RequestId,
    volume: VolumeId,
}

impl Asked {
    fn new() -> Self {
        let volume = VolumeId::random().unwrap();
        Self {
            server: ServerId::of_ca(volume.as_bytes()),
            client: "web-1".parse().unwrap(),
            request: RequestId::random().unwrap(),
            volume,
        }
    }

    fn context(&self) -> ReleaseContext<'_> {
        ReleaseContext {
            purpose: Purpose::Release,
            server: &self.server,
            client: &self.client,
            request: &self.request,
            volume: &self.volume,
            generation: Generation(1),
        }
    }
}

fn sealed_token() -> (Token, Share) {
    let share = Share(Secret::random().unwrap());
    let (token, _) = sealed_token_with(&share);
    (token, share)
}

fn sealed_token_with(share: &Share) -> (Token, MachineSecret) {
    let mut token = Token {
        kind: TokenKind::Latchkey,
        keyslots: vec!["1".to_owned()],
        version: Version::default(),
        volume: VolumeId::random().unwrap(),
        uuid: "5e9f3c1e-7a44-4f0c-8d3e-52a1c0ffee00".to_owned(),
        bound: Bound::Luks2(BoundLuks2 {
            keyslot: 1,
            iterations: 1000,
            cipher: "aes-xts-plain64".to_owned(),
            key_size: 64,
            sector_size: 512,
            offset: 16 << 20,
            volume_key_id: Bytes([7; 32]),
            integrity: Some(BoundIntegrity {
                kind: "hmac(sha256)".to_owned(),
                journal_encryption: "none".to_owned(),
                journal_integrity: "none".to_owned(),
                key_size: Some(32),
            }),
        }),
        envelopes: Vec::new(),
    };
    let secret = MachineSecret::random().unwrap();
    let released = Released {
        share,
        volume: token.volume,
        generation: Generation::FIRST,
    };
    let envelope = token
        .seal(ServerId::of_ca(b"ca"), released, &secret)
        .unwrap();
    token.envelopes.push(envelope);
    (token, secret)
}

fn released<'a>(token: &Token, share: &'a Share) -> Released<'a> {
    Released {
        share,
        volume: token.volume,
        generation: Generation::FIRST,
    }
}

fn luks2(token: &mut Token) -> &mut BoundLuks2 {
    match &mut token.bound {
        Bound::Luks2(bound) => bound,
        other => panic!("{other:?}"),
    }
}

fn integrity(token: &mut Token) -> &mut BoundIntegrity {
    luks2(token).integrity.as_mut().expect("it was bound")
}

fn volume_of(bytes: [u8; 16]) -> VolumeId {
    let digits = latchkey_protocol::encoding::hex(&bytes);
    let parts = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    parts.join("-").parse().expect("a UUID")
}

fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

fn flip_text(text: &mut String, bit: usize) -> Option<()> {
    let mut bytes = text.clone().into_bytes();
    flip(&mut bytes, bit);
    *text = String::from_utf8(bytes).ok()?;
    Some(())
}
