//! The identity of a volume key: what tells a volume from every other one, by a header or without.
//!
//! A header's own digest is no proof of it, since whoever can write the header can compute another one. And it is slow
//! on purpose, an eighth of a second where the volume was made, which for a key of full entropy protects nothing;
//! libcryptsetup computes it each time that it is given the key. So the identity is in the form of such a digest, and takes its
//! place in the copy that a volume is opened from: libcryptsetup itself then takes no other key than the bound one, at once.

use hmac::{Hmac, KeyInit, Mac};
use latchkey_protocol::encoding::{Bytes, length_prefixed};
use latchkey_secret::{SecretBytes, process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const DOMAIN: &[u8] = b"latchkey volume key v1";
const ITERATIONS: u32 = 1;

/// PBKDF2-HMAC-SHA-256 of a volume key with one iteration (RFC 8018, 5.2), which is one HMAC: tells volume keys apart and
/// gives nothing of them away.
///
/// # Panics
/// Never: HMAC takes keys of any length.
pub fn volume_key_id(key: &SecretBytes, uuid: &str) -> Bytes<32> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.expose_secret()).expect("HMAC takes keys of any length");
    mac.update(&salt(uuid));
    // The number of the block that is computed, the first and only one.
    mac.update(&1_u32.to_be_bytes());
    let id = Bytes(mac.finalize().into_bytes().into());
    process::wipe_stack();
    id
}

/// Whether `key` is the volume key that was bound, in constant time.
pub(crate) fn is_bound_key(key: &SecretBytes, uuid: &str, bound: &Bytes<32>) -> bool {
    volume_key_id(key, uuid).0.ct_eq(&bound.0).into()
}

/// The bound identity as the digest of a LUKS2 header (LUKS2 on-disk format, 3.4), without what it is a digest of.
pub(crate) fn luks2_digest(uuid: &str, bound: &Bytes<32>) -> Value {
    json!({
        "type": "pbkdf2",
        "hash": "sha256",
        "iterations": ITERATIONS,
        "salt": Bytes(salt(uuid)),
        "digest": bound,
    })
}

fn salt(uuid: &str) -> [u8; 32] {
    Sha256::digest(length_prefixed(&[DOMAIN, uuid.as_bytes()])).into()
}

#[cfg(test)]
mod tests {
    use latchkey_protocol::encoding::hex;

    use super::*;

    #[test]
    fn it_is_what_another_program_makes_of_the_text_in_docs() {
        // Python: hashlib.pbkdf2_hmac("sha256", key, salt, 1, 32)
        let uuid = "5e9f3c1e-7a44-4f0c-8d3e-52a1c0ffee00";
        for (length, expected) in [
            (
                64,
                "0f6b12c5aef6afba60f8023ce0a4823e533e400fb43c5a6dabe9c85b61fe543d",
            ),
            (
                96,
                "f316e650ae11c60595d1c0f6bda45c5f94bd04fa88f598184a0265636a25f610",
            ),
        ] {
            let mut key = SecretBytes::zeroed(length).unwrap();
            for (byte, value) in key.expose_secret_mut().iter_mut().zip(0..) {
                *byte = value;
            }
            assert_eq!(hex(&volume_key_id(&key, uuid).0), expected);
        }
    }
}
