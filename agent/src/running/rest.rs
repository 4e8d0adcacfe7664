//! Pauses after failures: doubling, with jitter, so that machines that lost a key server together do not come back
//! together.

use std::time::Duration;

/// The first pause; short, because a key server that was restarted waits for the machines to come back.
const FIRST: Duration = Duration::from_secs(2);
/// A key server waits 20 s for the stream of a machine that it wants to ask, then takes it for silent: whoever keeps the
/// stream broken for a while must not gain a longer time without one.
const LONGEST_OF_STREAM: Duration = Duration::from_secs(15);
/// A service waits for the volume, and the key server may be back any moment.
const LONGEST_OF_OPENINGS: Duration = Duration::from_secs(15);
/// Nobody waits for a heartbeat.
const LONGEST_OF_HEARTBEATS: Duration = Duration::from_secs(60);

/// A series of pauses.
#[derive(Debug)]
pub struct Rest {
    step: Duration,
    longest: Duration,
}

impl Rest {
    /// Until the stream is opened again.
    pub fn of_stream() -> Self {
        Self::to(LONGEST_OF_STREAM)
    }

    /// Until a heartbeat is sent again.
    pub fn of_heartbeats() -> Self {
        Self::to(LONGEST_OF_HEARTBEATS)
    }

    /// Until a data volume's key server is asked again.
    pub fn of_openings() -> Self {
        Self::to(LONGEST_OF_OPENINGS)
    }

    fn to(longest: Duration) -> Self {
        Self {
            step: FIRST,
            longest,
        }
    }

    /// The next pause: between half and all of a step that doubles; longer where the key server `asked` for it by
    /// `Retry-After`, up to the longest pause of this series.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let pause = spread(self.step);
        self.step = (self.step * 2).min(self.longest);
        asked.map_or(pause, |asked| pause.max(asked.min(self.longest)))
    }

    /// What failed works again.
    pub fn reset(&mut self) {
        self.step = FIRST;
    }
}

/// Between half and all of `pause`, anew each time.
pub fn spread(pause: Duration) -> Duration {
    let mut bytes = [0u8; 4];
    // Without randomness the pauses of this machine are merely the longest.
    if getrandom::fill(&mut bytes).is_err() {
        return pause;
    }
    let part = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
    pause.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_back_within_15_s_and_heartbeats_within_a_minute_never_all_at_once() {
        for (mut rest, longest) in [(Rest::of_stream(), 15), (Rest::of_heartbeats(), 60)] {
            let longest = Duration::from_secs(longest);
            let mut step = FIRST;
            for _ in 0..10 {
                let pause = rest.next(None);
                assert!(step / 2 <= pause && pause <= step, "{pause:?} of {step:?}");
                step = (step * 2).min(longest);
            }
            assert_eq!(step, longest);
            let pauses: std::collections::BTreeSet<Duration> =
                (0..10).map(|_| rest.next(None)).collect();
            assert!(pauses.len() > 1, "no jitter: {pauses:?}");
            rest.reset();
            assert!(rest.next(None) <= FIRST);
        }
    }

    #[test]
    fn a_busy_key_server_is_left_alone_for_as_long_as_it_asks_within_the_limit() {
        for (asked, least, most) in [(0, 1, 2), (9, 9, 9), (15, 15, 15), (300, 15, 15)] {
            let mut rest = Rest::of_stream();
            let pause = rest.next(Some(Duration::from_secs(asked)));
            assert!(
                (Duration::from_secs(least)..=Duration::from_secs(most)).contains(&pause),
                "{asked}: {pause:?}"
            );
        }
        let asked = Some(Duration::from_secs(300));
        assert_eq!(Rest::of_heartbeats().next(asked), LONGEST_OF_HEARTBEATS);
    }
}
