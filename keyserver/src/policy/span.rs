//! Lengths of time as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time as people write it: `90s`, `15m`, `1h`, `2d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "expected a number with s, m, h or d, such as 15m or 2d".to_owned();
        let (number, unit) = text
            .char_indices()
            .next_back()
            .map(|(at, unit)| (&text[..at], unit))
            .ok_or_else(error)?;
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 60 * 60,
            'd' => 24 * 60 * 60,
            _ => return Err(error()),
        };
        if !number.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(error());
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .filter(|seconds| *seconds > 0)
            .map(|seconds| Self(Duration::from_secs(seconds)))
            .ok_or_else(error)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let units = [(86_400, 'd'), (3600, 'h'), (60, 'm')];
        match units.iter().find(|(unit, _)| seconds.is_multiple_of(*unit)) {
            Some((unit, letter)) if seconds > 0 => write!(f, "{}{letter}", seconds / unit),
            _ => write!(f, "{seconds}s"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit_and_read_back() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800)] {
            let span = Span(Duration::from_secs(seconds));
            assert_eq!(text.parse(), Ok(span), "{text}");
            assert_eq!(span.to_string(), text);
        }
        for bad in [
            "",
            "1",
            "h",
            "0h",
            "-1h",
            "+1h",
            "1.5h",
            "1w",
            "1 h",
            "99999999999999999d",
            "1é",
        ] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }
}
