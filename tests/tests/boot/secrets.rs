//! What must not be in a machine's RAM: the secrets of the bound machine, learned as nobody else could, from its disk,
//! its key server and its boot key together.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use hkdf::Hkdf;
use hpke::Serializable;
use hpke::kem::{Kem, X25519HkdfSha256};
use latchkey_protocol::RequestId;
use latchkey_protocol::encoding::{Bytes, length_prefixed};
use latchkey_protocol::envelope::{Released, Token};
use latchkey_protocol::release::{BootKeyPair, Purpose, ReleaseContext, Share};
use latchkey_protocol::wire::{BootFacts, ReleaseRequest, Text, Verdict, Version, WantedVolume};
use latchkey_secret::Secret;
use latchkeyd::clock::SystemClock;
use latchkeyd::master_key::MasterKey;
use latchkeyd::sealed::SealedStore;
use latchkeyd::service::Service;
use latchkeyd::store::SqliteStore;
use rcgen::{KeyPair, PublicKeyData};
use sha2::{Digest, Sha256, Sha512};

use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::Disk;
use latchkey_tests::memory;
use latchkey_tests::stage::{Failure, Stage};
use latchkey_tests::tool;

/// Name and bytes of each; several bear one name.
pub type Secrets = Vec<(String, Vec<u8>)>;

/// The one that is in the kernel's memory for as long as the volume is open.
pub const VOLUME_KEY: &str = "volume key";
/// The one that is in an agent's memory for as long as it may ask a key server.
pub const BOOT_KEY: &str = "boot key";
/// The one that a person types, whose way leads through programs that are not ours.
pub const TYPED: &str = "passphrase";

/// All that is the same in every boot, in the forms in which programs and libraries hold it.
pub fn of_bound_machine(stage: &Stage) -> Result<Secrets, Failure> {
    let folder = tempfile::tempdir_in(stage.folder())?;
    let header = folder.path().join("header");
    Disk::existing(&stage.bound()?.disk).luks_header(&header)?;
    let token = token(&header)?;
    let share = share(stage, folder.path(), &token)?;
    let envelope = token.envelopes.first().ok_or("the token has no envelope")?;
    let released = Released {
        share: &share,
        volume: token.volume,
        generation: envelope.generation,
    };
    let machine_secret = token.open(envelope, released)?;
    let mut secrets = vec![
        named("machine secret", machine_secret.0.expose_secret()),
        named("share", share.0.expose_secret()),
        named(TYPED, PASSPHRASE.as_bytes()),
        named(VOLUME_KEY, &volume_key(&header, folder.path())?),
    ];
    secrets.extend(kek(&token, &share)?);
    secrets.extend(of_boot_key(&stage.bound()?.boot_key)?);
    Ok(secrets)
}

/// The boot session's key pair of a machine whose agent runs, as `ram` holds it; the page of a seed is recognised by
/// its public key, which lies there as well.
pub fn of_boot_session(ram: &[u8]) -> Result<Secrets, Failure> {
    for seed in memory::lone_secrets(ram) {
        let mut secret = Secret::<32>::zeroed()?;
        secret.expose_secret_mut().copy_from_slice(&seed);
        let public = BootKeyPair::from_seed(secret).public();
        if memchr::memmem::find(ram, &public.0).is_some() {
            let (private, _) = X25519HkdfSha256::derive_keypair(&seed);
            return Ok(vec![
                named("ephemeral key", &seed),
                named("ephemeral key", &private.to_bytes()),
                named("ephemeral key", &clamped(private.to_bytes().into())),
                named("ephemeral key", &without_top(private.to_bytes().into())),
            ]);
        }
    }
    Err("the running agent's ephemeral key is not in its RAM: the search is no good".into())
}

fn named(name: &str, bytes: &[u8]) -> (String, Vec<u8>) {
    (name.to_owned(), bytes.to_vec())
}

fn token(header: &Path) -> Result<Token, Failure> {
    let mut dump = Command::new("cryptsetup");
    let json = tool::run(dump.args(["luksDump", "--dump-json-metadata"]).arg(header))?;
    let json: serde_json::Value = serde_json::from_slice(&json)?;
    let token = json["tokens"]
        .as_object()
        .and_then(|tokens| tokens.values().find(|token| token["type"] == "latchkey"))
        .ok_or("the volume is not bound")?;
    Ok(Token::parse(token.to_string().as_bytes())?)
}

/// Asks a service over a copy of the key server's store, in this process.
fn share(stage: &Stage, folder: &Path, token: &Token) -> Result<Share, Failure> {
    let copy = folder.join("server");
    let mut cp = Command::new("cp");
    tool::run(cp.arg("--archive").arg(&stage.bound()?.server).arg(&copy))?;
    let store = SqliteStore::open(&copy.join("data"))?;
    let master = MasterKey::load(&copy.join("data.master-key"), None)?;
    let records = SealedStore::open(Box::new(store), master)?;
    let envelope = token.envelopes.first().ok_or("the token has no envelope")?;
    let service = Service::new(records, envelope.server, Arc::new(SystemClock::default()));

    let key = KeyPair::from_pem(&stage.bound()?.boot_key)?;
    let spki = Bytes(Sha256::digest(key.subject_public_key_info()).into());
    let identity = service
        .identify(&spki)?
        .ok_or("the key server does not know the boot key")?;
    let pair = BootKeyPair::generate()?;
    let request = ReleaseRequest {
        version: Version::default(),
        request: RequestId::random()?,
        ephemeral_key: pair.public(),
        volumes: vec![WantedVolume {
            volume: token.volume,
            generation: envelope.generation,
        }],
        facts: BootFacts {
            kernel: Text::cut("test"),
            command_line: Bytes([0; 32]),
            image_built: 0,
            image: None,
            header: None,
        },
        tickets: Vec::new(),
    };
    let answer = service.release(&identity, [127, 0, 0, 1].into(), &request)?;
    let verdict = answer
        .verdicts
        .into_iter()
        .next()
        .map(|verdict| verdict.verdict);
    let Some(Verdict::Released { sealed, .. }) = verdict else {
        return Err(format!("the key server does not release: {verdict:?}").into());
    };
    let context = ReleaseContext {
        purpose: Purpose::Release,
        server: &envelope.server,
        client: identity.client(),
        request: &request.request,
        volume: &token.volume,
        generation: envelope.generation,
    };
    Ok(pair.open(&sealed, context)?)
}

/// `docs/envelope.md`, written down a second time: HKDF's pseudorandom key, and the 64 bytes that it gives.
fn kek(token: &Token, share: &Share) -> Result<Secrets, Failure> {
    let envelope = token.envelopes.first().ok_or("the token has no envelope")?;
    let info = length_prefixed(&[
        b"latchkey envelope v1",
        token.uuid.as_bytes(),
        token.volume.as_bytes(),
        &envelope.generation.0.to_be_bytes(),
    ]);
    let (extracted, hkdf) =
        Hkdf::<Sha256>::extract(Some(&envelope.salt.0), share.0.expose_secret());
    let mut both = [0; 64];
    hkdf.expand(&info, &mut both)
        .map_err(|_| "HKDF gives no 64 bytes")?;
    if both[32..] != envelope.commitment.0 {
        return Err("the KEK is not what the envelope was sealed with".into());
    }
    Ok(vec![named("KEK", &both[..32]), named("KEK", &extracted)])
}

/// The seed, and what Ed25519 computes with (RFC 8032, 5.1.5): its SHA-512, the first half clamped.
pub fn of_boot_key(pem: &str) -> Result<Secrets, Failure> {
    let der = KeyPair::from_pem(pem)?.serialize_der();
    // RFC 8410, 7: version, algorithm, then the seed as an OCTET STRING in an OCTET STRING at byte 16.
    let seed = der
        .get(16..48)
        .ok_or("the boot key is no PKCS#8 Ed25519 key")?;
    let expanded: [u8; 64] = Sha512::digest(seed).into();
    let (scalar, prefix) = expanded.split_at(32);
    let scalar: [u8; 32] = scalar.try_into()?;
    Ok(vec![
        named(BOOT_KEY, seed),
        named(BOOT_KEY, &scalar),
        named(BOOT_KEY, &clamped(scalar)),
        named(BOOT_KEY, prefix),
    ])
}

fn clamped(mut scalar: [u8; 32]) -> [u8; 32] {
    scalar[0] &= 248;
    scalar[31] = scalar[31] & 127 | 64;
    scalar
}

/// As aws-lc's assembler keeps it while it computes the public key.
fn without_top(scalar: [u8; 32]) -> [u8; 32] {
    let mut scalar = clamped(scalar);
    scalar[31] &= 63;
    scalar
}

fn volume_key(header: &Path, folder: &Path) -> Result<Vec<u8>, Failure> {
    let key = folder.join("volume.key");
    let mut dump = Command::new("cryptsetup");
    dump.args([
        "luksDump",
        "--batch-mode",
        "--dump-volume-key",
        "--key-file",
        "-",
    ]);
    dump.arg("--volume-key-file").arg(&key).arg(header);
    tool::run_with_input(&mut dump, PASSPHRASE.as_bytes())?;
    Ok(std::fs::read(key)?)
}
