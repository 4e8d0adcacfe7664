//! What people read and type: the code of a boot session, and its short name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 32 characters that nobody confuses (Crockford's base 32: no I, L, O, U).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Six characters, 30 random bits, that the machine's console shows as `ABC-DEF`. `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(String);

/// Five characters that name an open session for the administrator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShortId(String);

impl Code {
    /// A fresh code.
    ///
    /// # Errors
    /// getrandom(2)'s.
    pub fn random() -> Result<Self, getrandom::Error> {
        random_text(6).map(Self)
    }

    /// Whether `typed` is this code; case, hyphens and spaces do not count, and look-alikes are taken for what
    /// they look like. Constant time over codes of the right length.
    pub fn matches(&self, typed: &str) -> bool {
        use subtle::ConstantTimeEq;
        normal_text(typed)
            .as_bytes()
            .ct_eq(self.0.as_bytes())
            .into()
    }

    /// `ABC-DEF`, for the machine's console.
    pub fn shown(&self) -> String {
        let (first, last) = self.0.split_at(self.0.len() / 2);
        format!("{first}-{last}")
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(..)")
    }
}

impl ShortId {
    /// A fresh id.
    ///
    /// # Errors
    /// getrandom(2)'s.
    pub fn random() -> Result<Self, getrandom::Error> {
        random_text(5).map(Self)
    }

    /// The id that a person typed.
    pub fn typed(text: &str) -> Self {
        Self(normal_text(text))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn random_text(length: usize) -> Result<String, getrandom::Error> {
    let mut bytes = vec![0u8; length];
    getrandom::fill(&mut bytes)?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect())
}

/// What a person typed, in the spelling of the alphabet; cut to 16 characters.
fn normal_text(typed: &str) -> String {
    typed
        .chars()
        .filter(|c| !matches!(c, '-' | ' ' | '\t' | '\r' | '\n'))
        .take(16)
        .map(|c| match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        })
        .filter(|c| c.is_ascii_alphanumeric())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_as_people_type_them() {
        let code = Code("01ABZX".to_owned());
        for good in ["01ABZX", "01a-bzx", " oI A-bzx\n", "Ol-AB-ZX"] {
            assert!(code.matches(good), "{good:?}");
        }
        for bad in ["", "01ABZ", "01ABZXX", "01ABZY", "É1ABZX"] {
            assert!(!code.matches(bad), "{bad:?}");
        }
        assert_eq!(code.shown(), "01A-BZX");
        assert_eq!(format!("{code:?}"), "Code(..)");
    }

    #[test]
    fn random_codes_use_the_whole_alphabet() {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..400 {
            seen.extend(Code::random().unwrap().0.into_bytes());
        }
        assert_eq!(seen.len(), ALPHABET.len());
    }
}
