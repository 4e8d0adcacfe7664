//! Dates of the Gregorian calendar, in UTC: just what certificates and file names need.

/// Days from 1970-01-01 to a date. Years begin in March here, so that a leap day is a year's last day.
pub fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

/// Unix seconds as `YYYY-MM-DD`.
pub fn date(seconds: u64) -> String {
    let wanted = i64::try_from(seconds / 86_400).unwrap_or(i64::MAX / 86_400);
    // 400 years have 146,097 days; the estimate is never too late and at most a year too early.
    let mut year = 1970 + wanted * 400 / 146_097 - 1;
    while days(year + 1, 1, 1) <= wanted {
        year += 1;
    }
    let month = (1..=12)
        .rev()
        .find(|month| days(year, *month, 1) <= wanted)
        .unwrap_or(1);
    let day = wanted - days(year, month, 1) + 1;
    format!("{year:04}-{month:02}-{day:02}")
}

/// Unix seconds as `YYYY-MM-DD HH:MM:SS UTC`, for people.
pub fn time(seconds: u64) -> String {
    let time = seconds % 86_400;
    format!(
        "{} {:02}:{:02}:{:02} UTC",
        date(seconds),
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

/// Unix seconds as `YYYYMMDDTHHMMSSZ`, for file names.
pub fn stamp(seconds: u64) -> String {
    let time = seconds % 86_400;
    format!(
        "{}T{:02}{:02}{:02}Z",
        date(seconds).replace('-', ""),
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

/// What the clock says, Unix seconds.
pub fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_follow_the_calendar() {
        for (date, expected) in [
            ((1970, 1, 1), 0),
            ((2000, 2, 29), 11_016),
            ((2000, 3, 1), 11_017),
            ((2026, 11, 20), 20_777),
        ] {
            assert_eq!(days(date.0, date.1, date.2), expected, "{date:?}");
        }
    }

    #[test]
    fn dates_read_as_written() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_795_132_800, "2026-11-20"),
            (4_291_747_199, "2105-12-31"),
            (4_291_747_200, "2106-01-01"),
        ] {
            assert_eq!(date(seconds), expected);
        }
        assert_eq!(stamp(1_795_132_800 + 3661), "20261120T010101Z");
        assert_eq!(time(1_795_132_800 + 3661), "2026-11-20 01:01:01 UTC");
        for day in 0..60_000 {
            let text = date(day * 86_400);
            let part = |range: std::ops::Range<usize>| text[range].parse::<i64>().unwrap();
            assert_eq!(
                days(part(0..4), part(5..7), part(8..10)),
                day as i64,
                "{text}"
            );
        }
    }
}
