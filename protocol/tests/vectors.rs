//! The vectors of `tests/vectors`, which another program made from `docs/envelope.md`: our code writes the same
//! bytes, reads them, and refuses what they say must be refused.
#![allow(clippy::unwrap_used)] // the helpers of tests as well

use latchkey_protocol::encoding::{Bytes, unhex};
use latchkey_protocol::envelope::{Envelope, EnvelopeError, MachineSecret, Released, Token};
use latchkey_protocol::release::{BootKeyPair, Purpose, ReleaseContext, ReleaseError, Share};
use latchkey_protocol::token::JoinToken;
use latchkey_protocol::{ClientName, Generation, RequestId, ServerId, VolumeId};
use latchkey_secret::{Secret, SecretBytes};
use serde::Deserialize;

#[test]
fn envelopes_are_sealed_to_the_same_bytes_and_open() {
    for case in vectors::<EnvelopeVectors>("envelope").good {
        let token = Token::parse(case.token.to_string().as_bytes()).expect(&case.name);
        let secret = machine_secret(&case.secret);
        for (envelope, share) in token.envelopes.iter().zip(&case.shares) {
            let share = Share(secret_of(share));
            let released = released(&share, &token, envelope);
            let sealed = token
                .seal_with(
                    envelope.server,
                    released,
                    &secret,
                    envelope.salt,
                    envelope.nonce,
                )
                .expect(&case.name);
            assert_eq!(&sealed, envelope, "{}", case.name);
            let opened = token.open(envelope, released).expect(&case.name);
            assert_eq!(
                opened.0.expose_secret(),
                secret.0.expose_secret(),
                "{}",
                case.name
            );
        }
        assert_eq!(token.envelopes.len(), case.shares.len(), "{}", case.name);
    }
}

#[test]
fn json_that_is_no_token_is_refused() {
    let bad = vectors::<EnvelopeVectors>("envelope").bad_json;
    assert!(bad.len() > 80, "the file is whole");
    for case in bad {
        let parsed = Token::parse(case.json.as_bytes());
        let why = &case.why;
        match parsed {
            Err(EnvelopeError::Format(_)) => {}
            Err(EnvelopeError::TooLarge(_)) if why.starts_with("larger") => {}
            other => panic!("{why}: {other:?}"),
        }
    }
}

#[test]
fn changed_envelopes_are_refused_each_with_its_own_error() {
    let vectors: EnvelopeVectors = vectors("envelope");
    let good = Token::parse(vectors.good[0].token.to_string().as_bytes()).unwrap();
    let share = Share(secret_of(&vectors.good[0].shares[0]));
    for case in vectors.refused {
        let token = Token::parse(case.token.to_string().as_bytes()).expect(&case.why);
        let own = case.share.map(|share| Share(secret_of(&share)));
        let released = match &own {
            Some(share) => released(share, &token, &token.envelopes[0]),
            None => released(&share, &good, &good.envelopes[0]),
        };
        let error = token.open(&token.envelopes[0], released).unwrap_err();
        let expected = match error {
            EnvelopeError::Changed => "changed",
            EnvelopeError::SecretLength => "length",
            EnvelopeError::WrongShare => "wrong share",
            EnvelopeError::WrongVolume { .. } => "wrong volume",
            EnvelopeError::WrongGeneration { .. } => "wrong generation",
            _ => "another error",
        };
        assert_eq!(expected, case.error, "{}: {error}", case.why);
    }
}

#[test]
fn releases_are_sealed_to_the_same_bytes_and_open() {
    for case in vectors::<ReleaseVectors>("release").good {
        let pair = BootKeyPair::from_seed(secret_of(&case.seed));
        assert_eq!(pair.public(), case.ephemeral_key);
        let share = Share(secret_of(&case.share));
        let server = case.server;
        let context = ReleaseContext {
            purpose: match case.purpose.as_str() {
                "release" => Purpose::Release,
                "proof" => Purpose::Proof,
                "registration" => Purpose::Registration,
                other => panic!("{other}"),
            },
            server: &server,
            client: &case.client,
            request: &case.request,
            volume: &case.volume,
            generation: case.generation,
        };
        let seed = secret_of(&case.encapsulation_seed);
        let sealed = share.seal_with(&case.ephemeral_key, context, seed).unwrap();
        assert_eq!(sealed, case.sealed, "{}", case.purpose);
        let opened = pair.open(&case.sealed, context).unwrap();
        assert_eq!(opened.0.expose_secret(), share.0.expose_secret());
    }
}

#[test]
fn keys_of_low_order_are_refused() {
    let vectors: ReleaseVectors = vectors("release");
    let case = &vectors.good[0];
    for key in vectors.refused_ephemeral_keys {
        let context = ReleaseContext {
            purpose: Purpose::Release,
            server: &case.server,
            client: &case.client,
            request: &case.request,
            volume: &case.volume,
            generation: case.generation,
        };
        let sealed = Share(Secret::random().unwrap()).seal(&key, context);
        assert!(
            matches!(sealed, Err(ReleaseError::EphemeralKey)),
            "{key:?}: {sealed:?}"
        );
    }
}

#[test]
fn join_tokens_are_written_and_read() {
    let vectors: JoinTokenVectors = vectors("join-token");
    for case in vectors.good {
        let token = JoinToken {
            server: case.server,
            secret: Bytes(unhex(&case.secret).unwrap()),
            client: case.client,
            addresses: case
                .addresses
                .iter()
                .map(|text| text.parse().unwrap())
                .collect(),
        };
        assert_eq!(token.to_line(), case.line);
        assert_eq!(case.line.parse(), Ok(token));
    }
    for case in vectors.bad {
        assert!(case.line.parse::<JoinToken>().is_err(), "{}", case.why);
    }
}

#[derive(Deserialize)]
struct EnvelopeVectors {
    good: Vec<GoodEnvelope>,
    bad_json: Vec<BadJson>,
    refused: Vec<RefusedEnvelope>,
}

#[derive(Deserialize)]
struct GoodEnvelope {
    name: String,
    secret: String,
    shares: Vec<String>,
    token: serde_json::Value,
}

#[derive(Deserialize)]
struct BadJson {
    why: String,
    json: String,
}

#[derive(Deserialize)]
struct RefusedEnvelope {
    why: String,
    error: String,
    token: serde_json::Value,
    /// Where it is not the first good one's.
    share: Option<String>,
}

#[derive(Deserialize)]
struct ReleaseVectors {
    good: Vec<GoodRelease>,
    refused_ephemeral_keys: Vec<Bytes<32>>,
}

#[derive(Deserialize)]
struct GoodRelease {
    purpose: String,
    server: ServerId,
    client: ClientName,
    request: RequestId,
    volume: VolumeId,
    generation: Generation,
    share: String,
    seed: String,
    ephemeral_key: Bytes<32>,
    encapsulation_seed: String,
    sealed: Bytes<80>,
}

#[derive(Deserialize)]
struct JoinTokenVectors {
    good: Vec<GoodJoinToken>,
    bad: Vec<BadJoinToken>,
}

#[derive(Deserialize)]
struct GoodJoinToken {
    server: ServerId,
    secret: String,
    client: ClientName,
    addresses: Vec<String>,
    line: String,
}

#[derive(Deserialize)]
struct BadJoinToken {
    why: String,
    line: String,
}

fn vectors<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect(&path);
    serde_json::from_str(&text).expect(&path)
}

fn released<'a>(share: &'a Share, token: &Token, envelope: &Envelope) -> Released<'a> {
    Released {
        share,
        volume: token.volume,
        generation: envelope.generation,
    }
}

fn secret_of(digits: &str) -> Secret<32> {
    let bytes = unhex::<32>(digits).expect("64 digits");
    let mut secret = Secret::zeroed().unwrap();
    secret.expose_secret_mut().copy_from_slice(&bytes);
    secret
}

fn machine_secret(digits: &str) -> MachineSecret {
    let mut secret = SecretBytes::with_capacity(digits.len() / 2).unwrap();
    for pair in digits.as_bytes().chunks_exact(2) {
        let byte = unhex::<1>(std::str::from_utf8(pair).unwrap()).unwrap();
        secret.push(&byte).unwrap();
    }
    MachineSecret(secret)
}
