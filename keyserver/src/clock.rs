//! The wall clock, so that tests can set it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01 UTC.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

/// How far a stored time may lie in the future before it counts as the product of a wrong clock.
const SKEW: Duration = Duration::from_secs(300);

impl UnixMillis {
    /// This time and `duration` more.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// The time from `earlier` to this one; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Whether something made at `made` that ends at `expires` is in force. What a clock that ran ahead made
    /// is not: it would live for as long as the clock was wrong.
    pub fn is_within(self, made: Self, expires: Self) -> bool {
        made <= self.plus(SKEW) && self < expires
    }

    /// This stamp as it counts from `now` on: one that a clock which ran ahead made is of now, so that it counts for its time
    /// and no longer.
    #[must_use]
    pub fn settled(self, now: Self) -> Self {
        match self > now.plus(SKEW) {
            true => now,
            false => self,
        }
    }

    /// `2026-11-20 23:59:59`, UTC.
    pub fn text(self) -> String {
        let seconds = self.0 / 1000;
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        format!(
            "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
            rest / 3600,
            rest / 60 % 60,
            rest % 60
        )
    }
}

impl UnixMillis {
    /// The time that `YYYY-MM-DD HH:MM` or `YYYY-MM-DD HH:MM:SS` stands for, UTC.
    pub fn parse(text: &str) -> Option<Self> {
        let seconds_given = text.len() == 19;
        let full = match text.len() {
            16 => format!("{text}:00"),
            19 => text.to_owned(),
            _ => return None,
        };
        let number = |from: usize, to: usize| -> Option<u64> {
            let digits = full.get(from..to)?;
            let good = digits.bytes().all(|digit| digit.is_ascii_digit());
            good.then(|| digits.parse().ok()).flatten()
        };
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        let time =
            Self((days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second) * 1000);
        // Whatever is no time is written otherwise.
        (time.text() == full && (seconds_given || second == 0)).then_some(time)
    }
}

/// Days from 1970-01-01 to a date; the inverse of [`civil`].
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, from_march) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let (cycle, year_of_cycle) = (year / 400, year % 400);
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    let day_of_cycle = year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year;
    cycle * 146_097 + day_of_cycle - 719_468
}

/// How long the key server has run in its life, in milliseconds: the time while it was stopped does not count, and no
/// clock that is set moves it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uptime(pub u64);

impl Uptime {
    /// This and `duration` more.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(UnixMillis(self.0).plus(duration).0)
    }

    /// The time from `earlier` to this one; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> UnixMillis;

    /// Time that has passed since some moment, by a clock that nobody sets.
    fn passed(&self) -> Duration;
}

/// The kernel's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    began: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            began: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> UnixMillis {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        UnixMillis::default().plus(since)
    }

    fn passed(&self) -> Duration {
        self.began.elapsed()
    }
}

/// The Gregorian date that is `days` after 1970-01-01 (years counted from March, in cycles of 400).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_763_683_199, "2025-11-20 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(UnixMillis(seconds * 1000).text(), text);
        }
    }

    #[test]
    fn times_that_are_written_are_read() {
        for text in [
            "1970-01-01 00:00:00",
            "2000-02-29 12:30:59",
            "2026-11-23 00:00:00",
            "2100-03-01 23:59:59",
        ] {
            let time = UnixMillis::parse(text).unwrap();
            assert_eq!(time.text(), text);
            assert_eq!(
                UnixMillis::parse(&text[..16]).unwrap().0 / 60_000,
                time.0 / 60_000
            );
        }
        for bad in [
            "",
            "2026-02-29 00:00",
            "2026-13-01 00:00",
            "2026-11-23 24:00",
            "2026-11-23T00:00",
            "1969-12-31 23:59",
            "2026-11-23 00:0",
            "2026-00-10 00:00",
        ] {
            assert_eq!(UnixMillis::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_a_fast_clock_made_is_not_in_force() {
        let now = UnixMillis(1_000_000_000);
        let hour = Duration::from_secs(3600);
        assert!(now.is_within(now, now.plus(hour)));
        assert!(!now.plus(hour).is_within(now, now.plus(hour)));
        let future = now.plus(hour);
        assert!(!now.is_within(future, future.plus(hour)));
    }
}
