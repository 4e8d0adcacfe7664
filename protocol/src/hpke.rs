//! HPKE (RFC 9180) as far as a release needs it: base mode, single shot, no associated data, 32 bytes of plaintext, and
//! one suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305.
//!
//! Private keys and what is computed with them lie on the stack, below the frames of the functions here, and never on
//! the heap. Who calls them wipes the stack afterwards.

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use hkdf::{Hkdf, HkdfExtract};
use latchkey_secret::x25519;
use sha2::Sha256;

/// An encapsulated key (32 bytes), the ciphertext (32) and its tag (16).
pub type Sealed = [u8; 80];

/// DHKEM(X25519, HKDF-SHA256).
const KEM: Suite = Suite(b"KEM\x00\x20");
/// That, HKDF-SHA256 and ChaCha20-Poly1305.
const HPKE: Suite = Suite(b"HPKE\x00\x20\x00\x01\x00\x03");
const MODE_BASE: u8 = 0;

/// The public key of the key pair that DeriveKeyPair makes of `seed`.
#[inline(never)]
pub fn public_key(seed: &[u8; 32]) -> [u8; 32] {
    x25519::public_key(&private_key(seed))
}

/// Seals `plain` to `recipient`, with the encapsulated key pair that DeriveKeyPair makes of `seed`; `None` if
/// `recipient` is a point of low order.
#[inline(never)]
pub fn seal(
    plain: &[u8; 32],
    recipient: &[u8; 32],
    info: &[u8],
    seed: &[u8; 32],
) -> Option<Sealed> {
    let private = private_key(seed);
    let encapsulated = x25519::public_key(&private);
    let shared = x25519::agree(&private, recipient)?;
    let (cipher, nonce) = schedule(&shared, &encapsulated, recipient, info);
    let mut sealed = [0; 80];
    let (key, rest) = sealed.split_at_mut(32);
    let (ciphertext, tag) = rest.split_at_mut(32);
    key.copy_from_slice(&encapsulated);
    let buffer = InOutBuf::new(plain, ciphertext).expect("both have 32 bytes");
    let computed = cipher
        .encrypt_inout_detached(&nonce.into(), b"", buffer)
        .expect("32 bytes are within the cipher's limit");
    tag.copy_from_slice(&computed);
    Some(sealed)
}

/// Opens what was sealed to the key pair (`seed`, `public`); `None` if it was not, or was changed.
#[inline(never)]
pub fn open(
    sealed: &Sealed,
    seed: &[u8; 32],
    public: &[u8; 32],
    info: &[u8],
    out: &mut [u8; 32],
) -> Option<()> {
    let (encapsulated, rest) = sealed.split_first_chunk()?;
    let (ciphertext, tag) = rest.split_at(32);
    let tag: [u8; 16] = tag.try_into().ok()?;
    let shared = x25519::agree(&private_key(seed), encapsulated)?;
    let (cipher, nonce) = schedule(&shared, encapsulated, public, info);
    let buffer = InOutBuf::new(ciphertext, out).ok()?;
    cipher
        .decrypt_inout_detached(&nonce.into(), b"", buffer, &tag.into())
        .ok()
}

/// DeriveKeyPair's private key (7.1.3).
fn private_key(seed: &[u8; 32]) -> [u8; 32] {
    let (_, prk) = KEM.extract(b"", b"dkp_prk", seed);
    KEM.expand(&prk, b"sk", &[])
}

/// The KEM's ExtractAndExpand (4.1) and KeySchedule (5.1): the cipher and the nonce of the first and only message.
fn schedule(
    shared: &[u8; 32],
    encapsulated: &[u8; 32],
    recipient: &[u8; 32],
    info: &[u8],
) -> (ChaCha20Poly1305, [u8; 12]) {
    let (_, prk) = KEM.extract(b"", b"eae_prk", shared);
    let shared_secret: [u8; 32] = KEM.expand(&prk, b"shared_secret", &[encapsulated, recipient]);
    let (psk_id_hash, _) = HPKE.extract(b"", b"psk_id_hash", b"");
    let (info_hash, _) = HPKE.extract(b"", b"info_hash", info);
    let context: [&[u8]; 3] = [&[MODE_BASE], &psk_id_hash, &info_hash];
    let (_, secret) = HPKE.extract(&shared_secret, b"secret", b"");
    let key: [u8; 32] = HPKE.expand(&secret, b"key", &context);
    let nonce = HPKE.expand(&secret, b"base_nonce", &context);
    (ChaCha20Poly1305::new(&key.into()), nonce)
}

/// What every label is prefixed with (4).
struct Suite(&'static [u8]);

impl Suite {
    /// LabeledExtract, its result also as what `expand` takes.
    fn extract(&self, salt: &[u8], label: &[u8], input: &[u8]) -> ([u8; 32], Hkdf<Sha256>) {
        let mut extract = HkdfExtract::<Sha256>::new(Some(salt));
        for part in [b"HPKE-v1", self.0, label, input] {
            extract.input_ikm(part);
        }
        let (bytes, prk) = extract.finalize();
        (bytes.into(), prk)
    }

    /// LabeledExpand.
    fn expand<const N: usize>(&self, prk: &Hkdf<Sha256>, label: &[u8], info: &[&[u8]]) -> [u8; N] {
        let length = u16::try_from(N).expect("at most 32 bytes").to_be_bytes();
        let prefix: [&[u8]; 4] = [&length, b"HPKE-v1", self.0, label];
        let mut out = [0; N];
        prk.expand_multi_info(&[&prefix, info].concat(), &mut out)
            .expect("32 bytes are within HKDF's limit");
        out
    }
}
