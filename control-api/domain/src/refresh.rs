//! Owns when a reference is asked for again: in the rhythm of the configuration, or after a failure.

use std::time::Duration;

use holdfast_proto::time::Timestamp;

use crate::resolution::Failure;

/// The first wait after a failure.
const FIRST_WAIT_MS: i64 = 10_000;
/// The longest wait after failures, unless the registry asks for more: a registry that is away for a
/// week costs four requests an hour for each reference.
const LONGEST_WAIT_MS: i64 = 15 * 60 * 1_000;
/// Share of the interval by which refreshes are spread to both sides, in percent: references that were
/// resolved together are not asked for together for ever.
const SPREAD_PERCENT: i64 = 10;

/// How often references are asked for that have an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// The interval; none asks only for what has no answer.
    pub interval: Option<Duration>,
}

impl Rhythm {
    /// When to ask again after a good answer; `random` is any number.
    pub fn after_answer(self, now: Timestamp, random: u64) -> Option<Timestamp> {
        let interval_ms = i64::try_from(self.interval?.as_millis()).unwrap_or(i64::MAX);
        let spread_ms = interval_ms / 100 * SPREAD_PERCENT;
        let width = u64::try_from(2 * spread_ms + 1).unwrap_or(1);
        let offset = i64::try_from(random % width).unwrap_or(0);
        Some(now.plus_ms(interval_ms - spread_ms + offset))
    }
}

/// When to ask again after `attempts` failures in a row: the waits double, and a registry's own wish
/// for peace counts when it is longer.
pub fn after_failure(now: Timestamp, attempts: u32, failure: &Failure) -> Timestamp {
    let doublings = attempts.saturating_sub(1).min(7);
    let wait_ms = (FIRST_WAIT_MS << doublings).min(LONGEST_WAIT_MS);
    let wished_ms = failure.retry_after.map_or(0, |wait| {
        i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)
    });
    now.plus_ms(wait_ms.max(wished_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn failure(retry_after_s: Option<u64>) -> Failure {
        Failure {
            retry_after: retry_after_s.map(Duration::from_secs),
            ..Failure::new("unreachable", "away")
        }
    }

    #[test]
    fn refreshes_are_spread_around_the_interval() {
        let rhythm = Rhythm {
            interval: Some(Duration::from_secs(100)),
        };
        for random in [0, 1, 9_999, 20_000, u64::MAX] {
            let wait = rhythm.after_answer(NOW, random).unwrap().since_ms(NOW);
            assert!((90_000..=110_000).contains(&wait), "{wait}");
        }
        assert_ne!(rhythm.after_answer(NOW, 1), rhythm.after_answer(NOW, 2));
        assert_eq!(Rhythm { interval: None }.after_answer(NOW, 1), None);
    }

    #[test]
    fn waits_after_failures_grow_to_a_ceiling_and_obey_the_registry() {
        let wait = |attempts, wished| after_failure(NOW, attempts, &failure(wished)).since_ms(NOW);
        assert_eq!(wait(0, None), 10_000);
        assert_eq!(wait(1, None), 10_000);
        assert_eq!(wait(3, None), 40_000);
        assert_eq!(wait(1_000, None), LONGEST_WAIT_MS);
        assert_eq!(wait(1, Some(3_600)), 3_600_000);
        assert_eq!(wait(3, Some(1)), 40_000);
    }
}
