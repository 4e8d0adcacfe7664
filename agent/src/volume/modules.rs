//! Which modules of the kernel a bound volume with integrity protection needs beyond dm-crypt.
//!
//! The builders of images find a volume's cipher by dm-crypt's table, and fail where it is one for authenticated
//! encryption; of dm-integrity they know nothing. Algorithms are named by the aliases that the kernel itself asks for
//! (`crypto-NAME`, request_module(9)), so that each implementation comes along, and one that is built in is none.

use latchkey_protocol::envelope::{Bound, BoundLuks2};

/// Names for modprobe(8); none for a volume without integrity protection, which is the native builder's business.
pub fn needed_by(bound: &Bound) -> Vec<String> {
    let (Bound::Luks2(bound) | Bound::DetachedLuks2(bound)) = bound else {
        return Vec::new();
    };
    let Some(integrity) = &bound.integrity else {
        return Vec::new();
    };
    let mut names: Vec<String> = vec!["dm_integrity".to_owned(), "dm_crypt".to_owned()];
    let composed: Vec<&str> = match integrity.kind.as_str() {
        "aead" => vec!["ctr", "ghash", "cbcmac", "rfc4309"],
        "poly1305" => vec!["rfc7539", "chacha20"],
        _ => vec!["authenc"],
    };
    let algorithms = composed
        .into_iter()
        .chain(words(&integrity.kind))
        .chain(words(&bound.cipher))
        .chain(inner(bound));
    for algorithm in algorithms.filter(|name| !is_no_algorithm(name)) {
        let alias = format!("crypto-{algorithm}");
        if !names.contains(&alias) {
            names.push(alias);
        }
    }
    names
}

/// `aes`, `xts` and `plain64` of `aes-xts-plain64` or `capi:xts(aes)-plain64`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
}

/// What a mode is made of and does not name.
fn inner(bound: &BoundLuks2) -> impl Iterator<Item = &str> {
    words(&bound.cipher)
        .any(|word| word == "xts")
        .then_some("ecb")
        .into_iter()
}

/// Initialization vectors that dm-crypt makes by itself, and words that name nothing.
fn is_no_algorithm(word: &str) -> bool {
    const NONE: [&str; 9] = [
        "aead",
        "capi",
        "plain",
        "plain64",
        "plain64be",
        "random",
        "benbi",
        "null",
        "eboiv",
    ];
    NONE.contains(&word)
}

#[cfg(test)]
mod tests {
    use latchkey_protocol::encoding::Bytes;
    use latchkey_protocol::envelope::BoundIntegrity;

    use super::*;

    fn bound(cipher: &str, integrity: Option<&str>) -> BoundLuks2 {
        BoundLuks2 {
            keyslot: 1,
            iterations: 1000,
            cipher: cipher.to_owned(),
            key_size: 96,
            sector_size: 512,
            offset: 16 << 20,
            volume_key_id: Bytes([0; 32]),
            integrity: integrity.map(|kind| BoundIntegrity {
                kind: kind.to_owned(),
                journal_encryption: "none".to_owned(),
                journal_integrity: "none".to_owned(),
                key_size: None,
            }),
        }
    }

    #[test]
    fn each_part_of_an_authenticated_cipher_is_named_as_the_kernel_asks_for_it() {
        for (cipher, kind, algorithms) in [
            (
                "aes-xts-plain64",
                "hmac(sha256)",
                "authenc hmac sha256 aes xts ecb",
            ),
            (
                "capi:xts(aes)-random",
                "hmac(sha512)",
                "authenc hmac sha512 xts aes ecb",
            ),
            (
                "aes-cbc-essiv:sha256",
                "hmac(sha1)",
                "authenc hmac sha1 aes cbc essiv sha256",
            ),
            ("aes-gcm-random", "aead", "ctr ghash cbcmac rfc4309 aes gcm"),
            (
                "aegis128-random",
                "aead",
                "ctr ghash cbcmac rfc4309 aegis128",
            ),
            ("chacha20-random", "poly1305", "rfc7539 chacha20 poly1305"),
        ] {
            let mut expected = vec!["dm_integrity".to_owned(), "dm_crypt".to_owned()];
            expected.extend(algorithms.split(' ').map(|name| format!("crypto-{name}")));
            for bound in [
                Bound::Luks2(bound(cipher, Some(kind))),
                Bound::DetachedLuks2(bound(cipher, Some(kind))),
            ] {
                assert_eq!(needed_by(&bound), expected, "{cipher}, {kind}");
            }
        }
    }

    #[test]
    fn a_volume_without_integrity_needs_nothing_of_ours() {
        let bound = Bound::Luks2(bound("aes-xts-plain64", None));
        assert_eq!(needed_by(&bound), Vec::<String>::new());
    }
}
