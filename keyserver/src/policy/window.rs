//! Time windows, in UTC: the days on which one begins, and from when to when it lasts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::UnixMillis;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const MINUTES: u64 = 24 * 60;

/// `mon-fri 08:00-18:00`, `sat,sun 10:00-12:00`, `daily 22:00-02:00`. One that ends before it begins goes on into the
/// next day. 24:00 is the end of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window {
    /// Monday first.
    days: [bool; 7],
    /// Minutes since midnight; within the window.
    from: u64,
    /// Minutes since midnight; not within.
    to: u64,
}

/// A text that is no [`Window`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no time window: expected such as 'mon-fri 08:00-18:00' or 'daily 22:00-02:00' (UTC)"
)]
pub struct WindowError(String);

impl Window {
    /// Whether `time` lies in it.
    pub fn contains(&self, time: UnixMillis) -> bool {
        let minutes = time.0 / 60_000;
        let (day, minute) = (minutes / MINUTES, minutes % MINUTES);
        // 1970-01-01 was a Thursday.
        let begins = |day: u64| self.days[usize::try_from((day + 3) % 7).unwrap_or(0)];
        if self.from < self.to {
            return begins(day) && (self.from..self.to).contains(&minute);
        }
        // Six days later is the same day of the week as yesterday, and there is one for the first day too.
        begins(day) && minute >= self.from || begins(day + 6) && minute < self.to
    }
}

#[cfg(test)]
impl Window {
    /// Two hours of every day, with `time` in the middle.
    pub fn around(time: UnixMillis) -> Self {
        let minute = time.0 / 60_000 % MINUTES;
        Self {
            days: [true; 7],
            from: (minute + MINUTES - 60) % MINUTES,
            to: (minute + 60) % MINUTES,
        }
    }
}

impl FromStr for Window {
    type Err = WindowError;
    fn from_str(text: &str) -> Result<Self, WindowError> {
        let parse = || {
            let (days, times) = text.split_once(' ')?;
            let (from, to) = times.split_once('-')?;
            let (from, to) = (minute(from)?, minute(to)?);
            let good = from != to && from < MINUTES;
            good.then_some(Self {
                days: days_of(days)?,
                from,
                to,
            })
        };
        parse().ok_or_else(|| {
            WindowError(
                text.chars()
                    .take(80)
                    .flat_map(char::escape_default)
                    .collect(),
            )
        })
    }
}

/// `daily`, `mon`, `mon-fri`, `mon,wed,sat-sun`.
fn days_of(text: &str) -> Option<[bool; 7]> {
    let mut days = [false; 7];
    if text == "daily" {
        return Some([true; 7]);
    }
    let number = |name: &str| DAYS.iter().position(|day| *day == name);
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return None;
        }
        for day in &mut days[first..=last] {
            // Twice is a slip.
            if std::mem::replace(day, true) {
                return None;
            }
        }
    }
    Some(days)
}

/// `HH:MM`, to 24:00.
fn minute(text: &str) -> Option<u64> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= MINUTES).then_some(total)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days == [true; 7] {
            f.write_str("daily")?;
        } else {
            let mut parts = Vec::new();
            let mut day = 0;
            while day < 7 {
                let run = self.days[day..].iter().take_while(|on| **on).count();
                match run {
                    0 => {}
                    1 => parts.push(DAYS[day].to_owned()),
                    _ => parts.push(format!("{}-{}", DAYS[day], DAYS[day + run - 1])),
                }
                day += run.max(1);
            }
            f.write_str(&parts.join(","))?;
        }
        let clock = |minute: u64| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, " {}-{}", clock(self.from), clock(self.to))
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `day` days and `minute` minutes after Monday, 2026-11-23 00:00 UTC.
    fn time(day: u64, minute: u64) -> UnixMillis {
        UnixMillis((1_795_392_000 + day * 86_400 + minute * 60) * 1000)
    }

    #[test]
    fn windows_hold_on_their_days_from_begin_to_end() {
        assert_eq!(time(0, 0).text(), "2026-11-23 00:00:00");
        for (text, day, minute, inside) in [
            ("mon 08:00-18:00", 0, 8 * 60, true),
            ("mon 08:00-18:00", 0, 8 * 60 - 1, false),
            ("mon 08:00-18:00", 0, 18 * 60 - 1, true),
            ("mon 08:00-18:00", 0, 18 * 60, false),
            ("mon 08:00-18:00", 1, 9 * 60, false),
            ("mon-fri 00:00-24:00", 4, 1439, true),
            ("mon-fri 00:00-24:00", 5, 0, false),
            ("sat,sun 10:00-12:00", 6, 11 * 60, true),
            ("daily 22:00-02:00", 3, 60, true),
            ("daily 22:00-02:00", 3, 120, false),
            ("sun 22:00-02:00", 6, 23 * 60, true),
            ("sun 22:00-02:00", 7, 60, true),
            ("sun 22:00-02:00", 6, 60, false),
            ("mon 22:00-02:00", 1, 60, true),
            ("mon 22:00-02:00", 0, 60, false),
        ] {
            let window: Window = text.parse().unwrap();
            assert_eq!(
                window.contains(time(day, minute)),
                inside,
                "{text} {day} {minute}"
            );
        }
        // The first day there is.
        let window: Window = "wed 22:00-02:00".parse().unwrap();
        assert!(window.contains(UnixMillis(60_000)));
    }

    #[test]
    fn windows_are_written_as_they_are_read() {
        for text in [
            "daily 00:00-24:00",
            "mon-fri 08:00-18:00",
            "mon,wed-thu,sun 22:00-02:00",
        ] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "mon",
            "08:00-18:00",
            "mon 8:00-18:00",
            "mon 08:00-08:00",
            "mon 08:00-24:01",
            "mon 24:00-08:00",
            "mon 08:60-09:00",
            "fri-mon 08:00-18:00",
            "mon,mon 08:00-18:00",
            "Mon 08:00-18:00",
            "mon  08:00-18:00",
            "mon 08:00-18:00 ",
        ] {
            assert!(bad.parse::<Window>().is_err(), "{bad:?}");
        }
    }
}
