//! XTS mode (IEEE 1619) with a cipher of 256 bits, as dm-crypt's `aes-xts-plain64` and `twofish-xts-plain64` write it: the
//! tweak is the sector's number. Makes the data of an encrypted volume without device-mapper.

use aes::Aes256Enc;
use aes::cipher::consts::{U16, U32};
use aes::cipher::{Array, Block, BlockCipherEncrypt, BlockSizeUser, Key, KeyInit, KeySizeUser};
use twofish::Twofish;

/// Bytes of one sector.
pub const SECTOR: usize = 512;
/// Bytes of the volume key: one half encrypts the data, the other the tweak.
pub const KEY: usize = 64;

const BLOCKS: usize = SECTOR / 16;

/// Encrypts the sectors of one volume.
pub struct Xts<C> {
    data: C,
    tweak: C,
}

/// `aes-xts-plain64`.
pub type Aes = Xts<Aes256Enc>;
/// `twofish-xts-plain64`.
pub type Twofish256 = Xts<Twofish>;

impl<C> Xts<C>
where
    C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + KeyInit + KeySizeUser<KeySize = U32>,
{
    /// `key` is the volume key.
    pub fn new(key: &[u8; KEY]) -> Self {
        let mut half: [Key<C>; 2] = [Array::default(), Array::default()];
        half[0].copy_from_slice(&key[..32]);
        half[1].copy_from_slice(&key[32..]);
        Self {
            data: C::new(&half[0]),
            tweak: C::new(&half[1]),
        }
    }

    /// Encrypts `data`, whole sectors of which the first has the number `first`, in place.
    ///
    /// # Panics
    /// If `data` is not a whole number of sectors.
    pub fn encrypt(&self, first: u64, data: &mut [u8]) {
        let (sectors, rest) = data.as_chunks_mut::<SECTOR>();
        assert!(rest.is_empty(), "only whole sectors are encrypted");
        for (number, sector) in (first..).zip(sectors) {
            self.encrypt_sector(number, sector);
        }
    }

    fn encrypt_sector(&self, number: u64, sector: &mut [u8; SECTOR]) {
        let mut tweaks = [0_u128; BLOCKS];
        let mut first: Block<C> = Array::from(u128::from(number).to_le_bytes());
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        for slot in &mut tweaks {
            *slot = tweak;
            tweak = (tweak << 1) ^ if tweak >> 127 == 1 { 0x87 } else { 0 };
        }
        let mut blocks: [Block<C>; BLOCKS] = [Array::default(); BLOCKS];
        let (plain, _) = sector.as_chunks_mut::<16>();
        for ((block, plain), tweak) in blocks.iter_mut().zip(&*plain).zip(tweaks) {
            *block = Array::from((u128::from_le_bytes(*plain) ^ tweak).to_le_bytes());
        }
        self.data.encrypt_blocks(&mut blocks);
        for ((block, out), tweak) in blocks.iter().zip(plain).zip(tweaks) {
            *out = (u128::from_le_bytes((*block).into()) ^ tweak).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IEEE 1619-2007, annex B, vector 10 (XTS-AES-256, data unit 0xff): first and last 16 bytes.
    #[test]
    fn the_standards_vector_is_met() {
        let digits = "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592";
        let mut key = [0_u8; KEY];
        for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        }
        let mut sector: Vec<u8> = (0..SECTOR).map(|at| (at % 256) as u8).collect();
        Aes::new(&key).encrypt(0xff, &mut sector);
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        assert_eq!(hex(&sector[..16]), "1c3b3a102f770386e4836c99e370cf9b");
        assert_eq!(hex(&sector[496..]), "c4f36ffda9fcea70b9c6e693e148c151");
    }
}
