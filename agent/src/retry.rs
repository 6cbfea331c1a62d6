//! Owns waiting after failures: growing, jittered, capped delays. The back-off crate is named only here.

use std::time::Duration;

use backoff::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays after failures in a row: each about twice the last, spread at random, never above a cap.
pub struct Backoff {
    min_ms: u64,
    max_ms: u64,
    seed: u64,
    failures: u32,
    delays: ExponentialBackoff,
}

impl Backoff {
    /// Delays from about `min_ms` to at most `max_ms`; `seed` is the caller's randomness.
    pub fn new(min_ms: u64, max_ms: u64, seed: u64) -> Self {
        Self {
            min_ms,
            max_ms,
            seed,
            failures: 0,
            delays: delays(min_ms, max_ms, seed),
        }
    }

    /// The time to wait after one more failure.
    pub fn next_ms(&mut self) -> u64 {
        self.failures = self.failures.saturating_add(1);
        let delay = self
            .delays
            .next()
            .unwrap_or(Duration::from_millis(self.max_ms));
        u64::try_from(delay.as_millis())
            .unwrap_or(self.max_ms)
            .min(self.max_ms)
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        if self.failures > 0 {
            self.failures = 0;
            self.delays = delays(self.min_ms, self.max_ms, self.seed);
        }
    }
}

fn delays(min_ms: u64, max_ms: u64, seed: u64) -> ExponentialBackoff {
    // The crate adds up to once the delay as jitter: half the cap keeps the spread at the cap too.
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(min_ms))
        .with_max_delay(Duration::from_millis((max_ms / 2).max(min_ms)))
        .with_factor(2.0)
        .with_jitter()
        .with_jitter_seed(seed)
        .without_max_times()
        .build()
}

/// `interval_ms` moved by at most a tenth either way, so that a fleet does not ask in step.
pub fn jittered_ms(interval_ms: u64, random: u64) -> u64 {
    let spread = interval_ms / 5;
    if spread == 0 {
        return interval_ms;
    }
    interval_ms - spread / 2 + random % spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_stay_under_the_cap_and_start_over() {
        let mut backoff = Backoff::new(1_000, 60_000, 7);
        let delays: Vec<u64> = (0..12).map(|_| backoff.next_ms()).collect();
        assert!((1_000..=2_000).contains(&delays[0]), "{delays:?}");
        assert!(delays.iter().all(|delay| *delay <= 60_000), "{delays:?}");
        assert!(delays[11] >= 30_000, "{delays:?}");
        assert_eq!(backoff.failures(), 12);
        backoff.reset();
        assert!(backoff.next_ms() <= 2_000);
    }

    #[test]
    fn two_devices_do_not_wait_alike() {
        let delays = |seed| {
            let mut backoff = Backoff::new(1_000, 60_000, seed);
            (0..4).map(move |_| backoff.next_ms()).collect::<Vec<_>>()
        };
        assert_ne!(delays(1), delays(2));
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for random in [0, 1, 5_999, 6_000, u64::MAX] {
            assert!((27_000..=33_000).contains(&jittered_ms(30_000, random)));
        }
        assert_eq!(jittered_ms(3, 9), 3);
    }
}
