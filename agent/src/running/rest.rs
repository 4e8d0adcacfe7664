//! Pauses after failures: doubling, with jitter, so that machines that lost a key server together do not come back
//! together.

use std::time::Duration;

/// The first pause; short, because a key server that was restarted waits for the machines to come back.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);

/// A series of pauses.
#[derive(Debug)]
pub struct Rest {
    step: Duration,
}

impl Rest {
    /// From the shortest.
    pub fn new() -> Self {
        Self { step: FIRST }
    }

    /// The next pause: between half and all of a step that doubles.
    pub fn next(&mut self) -> Duration {
        let pause = spread(self.step);
        self.step = (self.step * 2).min(LONGEST);
        pause
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
    fn pauses_double_to_a_minute_and_begin_anew_after_success() {
        let mut rest = Rest::new();
        let mut step = FIRST;
        for _ in 0..10 {
            let pause = rest.next();
            assert!(step / 2 <= pause && pause <= step, "{pause:?} of {step:?}");
            step = (step * 2).min(LONGEST);
        }
        assert_eq!(step, LONGEST);
        rest.reset();
        assert!(rest.next() <= FIRST);
    }
}
