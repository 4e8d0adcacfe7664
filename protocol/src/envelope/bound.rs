//! What the binding of a volume says of it, by kind, and how that is encoded to be authenticated.

use serde::{Deserialize, Serialize};

use crate::encoding::{Bytes, length_prefixed};

/// What a volume was when it was bound; automatic opening insists on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Bound {
    /// A LUKS2 volume.
    Luks2(BoundLuks2),
    /// A LUKS2 volume whose header lies elsewhere than its data.
    DetachedLuks2(BoundLuks2),
    /// A LUKS1 volume.
    Luks1(BoundLuks1),
    /// Plain dm-crypt, which has no header: all that makes the mapping.
    Plain(BoundPlain),
}

/// Facts of a LUKS2 header that stay the same for as long as the volume does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BoundLuks2 {
    /// The keyslot that holds the machine secret.
    pub keyslot: u32,
    /// Its PBKDF2 iterations.
    pub iterations: u32,
    /// The data segment's cipher in dm-crypt's spelling, such as `aes-xts-plain64`.
    pub cipher: String,
    /// Bytes of the volume key.
    pub key_size: u32,
    /// Bytes of the data segment's encryption sector.
    pub sector_size: u32,
    /// Byte at which the data segment begins.
    pub offset: u64,
    /// PBKDF2-HMAC-SHA-256 of the volume key with one iteration; the salt is SHA-256 of `latchkey volume key v1` and the UUID,
    /// each length-prefixed.
    pub volume_key_id: Bytes<32>,
    /// How the data is authenticated, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub integrity: Option<BoundIntegrity>,
}

/// What a LUKS2 header says of authenticated encryption (dm-crypt on dm-integrity), in the header's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BoundIntegrity {
    /// The algorithm, such as `hmac(sha256)`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How dm-integrity's journal is encrypted.
    pub journal_encryption: String,
    /// How dm-integrity's journal is authenticated.
    pub journal_integrity: String,
    /// Bytes of the volume key that are the algorithm's, where the header says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_size: Option<u32>,
}

/// Facts of a LUKS1 header that stay the same for as long as the volume does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BoundLuks1 {
    /// The keyslot that holds the machine secret.
    pub keyslot: u32,
    /// Its PBKDF2 iterations.
    pub iterations: u32,
    /// The cipher in dm-crypt's spelling, such as `aes-xts-plain64`.
    pub cipher: String,
    /// The hash of every key derivation and splitting in the header.
    pub hash: String,
    /// Bytes of the volume key.
    pub key_size: u32,
    /// Byte at which the data begins.
    pub offset: u64,
    /// PBKDF2 iterations of the volume key's digest in the header.
    pub digest_iterations: u32,
    /// As in [`BoundLuks2`].
    pub volume_key_id: Bytes<32>,
}

/// Everything that a plain mapping is made of but its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BoundPlain {
    /// What the machine secret is.
    pub secret: PlainSecret,
    /// The cipher in dm-crypt's spelling, such as `twofish-xts-plain64`.
    pub cipher: String,
    /// The hash that makes the volume key of a passphrase; `plain` is none.
    pub hash: String,
    /// Bytes of the volume key.
    pub key_size: u32,
    /// Bytes of an encryption sector.
    pub sector_size: u32,
    /// Byte of the device at which the data begins.
    pub offset: u64,
    /// What is added to the number of a 512-byte sector for its initialization vector.
    pub skip: u64,
    /// As in [`BoundLuks2`]: what tells a wrong key before anything is mapped, for there is no header to do so.
    pub volume_key_id: Bytes<32>,
}

/// What the machine secret of a plain volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlainSecret {
    /// What a person would type.
    Passphrase,
    /// The volume key itself.
    VolumeKey,
}

impl Bound {
    /// The keyslot that holds the machine secret; a plain volume has none.
    pub fn keyslot(&self) -> Option<u32> {
        match self {
            Self::Luks2(bound) | Self::DetachedLuks2(bound) => Some(bound.keyslot),
            Self::Luks1(bound) => Some(bound.keyslot),
            Self::Plain(_) => None,
        }
    }

    /// The facts in one unambiguous encoding.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Luks2(bound) => bound.encode(b"luks2"),
            Self::DetachedLuks2(bound) => bound.encode(b"detached-luks2"),
            Self::Luks1(bound) => length_prefixed(&[
                b"luks1",
                &bound.keyslot.to_be_bytes(),
                &bound.iterations.to_be_bytes(),
                bound.cipher.as_bytes(),
                bound.hash.as_bytes(),
                &bound.key_size.to_be_bytes(),
                &bound.offset.to_be_bytes(),
                &bound.digest_iterations.to_be_bytes(),
                &bound.volume_key_id.0,
            ]),
            Self::Plain(bound) => length_prefixed(&[
                b"plain",
                match bound.secret {
                    PlainSecret::Passphrase => b"passphrase",
                    PlainSecret::VolumeKey => b"volume-key",
                },
                bound.cipher.as_bytes(),
                bound.hash.as_bytes(),
                &bound.key_size.to_be_bytes(),
                &bound.sector_size.to_be_bytes(),
                &bound.offset.to_be_bytes(),
                &bound.skip.to_be_bytes(),
                &bound.volume_key_id.0,
            ]),
        }
    }
}

impl BoundLuks2 {
    /// One field more where there is integrity: without it the bytes are those from before there was any.
    fn encode(&self, kind: &[u8]) -> Vec<u8> {
        let integrity = self.integrity.as_ref().map(BoundIntegrity::encode);
        let mut encoded = length_prefixed(&[
            kind,
            &self.keyslot.to_be_bytes(),
            &self.iterations.to_be_bytes(),
            self.cipher.as_bytes(),
            &self.key_size.to_be_bytes(),
            &self.sector_size.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.volume_key_id.0,
        ]);
        if let Some(integrity) = integrity {
            encoded.extend(length_prefixed(&[&integrity]));
        }
        encoded
    }
}

impl BoundIntegrity {
    /// A size that the header does not give is an empty field.
    fn encode(&self) -> Vec<u8> {
        let key_size = self.key_size.map(u32::to_be_bytes);
        length_prefixed(&[
            self.kind.as_bytes(),
            self.journal_encryption.as_bytes(),
            self.journal_integrity.as_bytes(),
            key_size.as_ref().map_or(&[], |bytes| bytes.as_slice()),
        ])
    }
}
