//! A recovery key: a passphrase that nobody has to think of, to be kept on paper.
//!
//! 256 random bits as systemd-cryptenroll(1) writes them: in modhex, whose 16 letters lie in the same place on nearly every
//! keyboard, in eight groups. The text with its hyphens is the passphrase.

use latchkey_secret::{Secret, SecretBytes, SecretError};

/// Letters for the values of four bits.
const MODHEX: &[u8; 16] = b"cbdefghijklnrtuv";
const BYTES: usize = 32;
/// Bytes in a group.
const GROUP: usize = 4;
/// Two letters a byte, and hyphens between the groups.
pub const LENGTH: usize = 2 * BYTES + BYTES / GROUP - 1;

/// A new one.
///
/// # Errors
/// No memory for it, or no random numbers.
pub fn generate() -> Result<SecretBytes, SecretError> {
    encode(&Secret::random()?)
}

fn encode(bits: &Secret<BYTES>) -> Result<SecretBytes, SecretError> {
    let mut text = SecretBytes::with_capacity(LENGTH)?;
    for (group, bytes) in bits.expose_secret().chunks(GROUP).enumerate() {
        if group > 0 {
            text.push(b"-")?;
        }
        for byte in bytes {
            text.push(&[
                MODHEX[usize::from(byte >> 4)],
                MODHEX[usize::from(byte & 0xf)],
            ])?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_modhex_in_eight_groups() {
        let mut bits = Secret::zeroed().unwrap();
        for (number, byte) in bits.expose_secret_mut().iter_mut().enumerate() {
            *byte = u8::try_from(number * 7).unwrap();
        }
        let text = encode(&bits).unwrap();
        let text = str::from_utf8(text.expose_secret()).unwrap();
        assert_eq!(text.len(), LENGTH);
        assert!(text.starts_with("cccicubg-"), "{text}");
        let groups: Vec<_> = text.split('-').map(str::len).collect();
        assert_eq!(groups, [8; 8]);
    }

    #[test]
    fn no_two_are_the_same() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one.expose_secret(), other.expose_secret());
    }
}
