//! Why a header is refused.

/// A check of the header that failed. Each refuses automatic opening; the passphrase still works.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// The UUID is another one.
    #[error("the header's UUID is '{found}', bound was '{bound}'")]
    Uuid {
        /// In the header.
        found: String,
        /// In the token.
        bound: String,
    },
    /// Another kind of volume.
    #[error("the volume is {found}, bound was {bound}")]
    Kind {
        /// As crypttab and the device have it now.
        found: &'static str,
        /// As it was bound.
        bound: &'static str,
    },
    /// crypttab would make another mapping of a plain volume.
    #[error("crypttab has {option} '{found}', bound was '{bound}'")]
    Setting {
        /// The option.
        option: &'static str,
        /// In crypttab.
        found: String,
        /// As it was bound.
        bound: String,
    },
    /// Not the shape that LUKS2 prescribes.
    #[error("the header has no valid '{0}'")]
    Shape(&'static str),
    /// An object has fields that this version does not know.
    #[error("the header's {place} has the unknown field '{field}'")]
    UnknownField {
        /// Which object.
        place: &'static str,
        /// Its name.
        field: String,
    },
    /// A reencryption, or something else that needs another cryptsetup.
    #[error("the header has requirements, such as a reencryption in progress")]
    Requirements,
    /// A flag that no bound volume may have.
    #[error("the header has the flag '{0}'")]
    Flag(String),
    /// Not exactly one data segment.
    #[error("the header has {0} segments instead of one")]
    Segments(usize),
    /// The segment is not of type `crypt`.
    #[error("the data segment is of type '{0}' instead of 'crypt'")]
    SegmentType(String),
    /// The segment is marked, as by a reencryption.
    #[error("the data segment has flags")]
    SegmentFlags,
    /// The segment does not reach to the end of the device.
    #[error("the data segment has a fixed size")]
    SegmentSize,
    /// The initialization vectors do not count from zero.
    #[error("the data segment's IV offset is not zero")]
    IvTweak,
    /// Data integrity that was not bound.
    #[error("the data segment has integrity protection, which was not bound")]
    Integrity,
    /// Data integrity that was bound.
    #[error("the data segment has no integrity protection, bound was '{0}'")]
    NoIntegrity(String),
    /// Another data integrity.
    #[error("the integrity protection is '{found}', bound was '{bound}'")]
    OtherIntegrity {
        /// In the header.
        found: String,
        /// In the token.
        bound: String,
    },
    /// A data integrity that is not known, or `none`.
    #[error("the data segment's integrity protection is '{0}', of which latchkey knows nothing")]
    IntegrityType(String),
    /// dm-integrity's journal would need a key of its own.
    #[error("the data segment's integrity journal has algorithms of its own")]
    Journal,
    /// The volume key would have to be split otherwise than libcryptsetup does.
    #[error("the integrity protection has a key of {found} bytes instead of {usual}")]
    IntegrityKeySize {
        /// In the header.
        found: u32,
        /// What the type has.
        usual: u32,
    },
    /// dm-integrity has no discards, and libcryptsetup then opens nothing.
    #[error(
        "the header has the flag 'allow-discards', with which no volume with integrity protection opens"
    )]
    Discards,
    /// The data would not be encrypted.
    #[error("the data segment's cipher is null")]
    NullCipher,
    /// Another data cipher.
    #[error("the data cipher is '{found}', bound was '{bound}'")]
    Cipher {
        /// In the header.
        found: String,
        /// In the token.
        bound: String,
    },
    /// Another sector size.
    #[error("the sector size is {found}, bound was {bound}")]
    SectorSize {
        /// In the header.
        found: u64,
        /// In the token.
        bound: u32,
    },
    /// The data begins elsewhere.
    #[error("the data begins at byte {found}, bound was {bound}")]
    Offset {
        /// In the header.
        found: u64,
        /// In the token.
        bound: u64,
    },
    /// The bound keyslot is gone.
    #[error("keyslot {0}, which was bound, does not exist")]
    NoKeyslot(u32),
    /// A keyslot of another type, such as `reencrypt`.
    #[error("keyslot {slot} is of type '{kind}' instead of 'luks2'")]
    KeyslotType {
        /// The keyslot.
        slot: String,
        /// Its type.
        kind: String,
    },
    /// The keyslot holds a key of another size.
    #[error("the keyslot holds {found} bytes of key, bound were {bound}")]
    KeySize {
        /// In the header.
        found: u64,
        /// In the token.
        bound: u32,
    },
    /// The keyslot's key derivation is another one.
    #[error("the keyslot's key derivation is '{0}' instead of 'pbkdf2'")]
    Kdf(String),
    /// A hash that has no place there.
    #[error("the {place} uses the hash '{hash}'")]
    Hash {
        /// Which object.
        place: &'static str,
        /// The hash.
        hash: String,
    },
    /// The keyslot costs more than at binding.
    #[error("the keyslot takes {found} iterations, bound were {bound}")]
    Iterations {
        /// In the header.
        found: u64,
        /// In the token.
        bound: u32,
    },
    /// The keyslot's area is encrypted otherwise, or not at all.
    #[error("the keyslot's area is encrypted by '{0}'")]
    AreaCipher(String),
    /// The keyslot's area is not within the region for keyslots, or not large enough.
    #[error("the keyslot's area lies where no keyslot's area may lie")]
    Area,
    /// The anti-forensic splitting is not the usual one.
    #[error("the keyslot's anti-forensic splitting is not the usual one")]
    AntiForensic,
    /// The keyslot and the segment do not have one common digest.
    #[error("the keyslot and the data segment do not share exactly one digest")]
    Digest,
    /// Checking the digest would cost too much.
    #[error("the digest takes {0} iterations")]
    DigestIterations(u64),
}
