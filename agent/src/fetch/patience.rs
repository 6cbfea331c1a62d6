//! Owns which registries are left alone: one that could not be used is not asked again at once, whatever is wanted
//! of it. Time is an argument.

use std::collections::BTreeMap;

use crate::retry::Backoff;

/// From two seconds up to five minutes: a registry is shared with others.
const FIRST_MS: u64 = 2_000;
const MOST_MS: u64 = 300_000;
/// No longer than this if a registry says itself how long: an hour is more than any limit asks for, and less than a
/// device may stay behind because of one wrong answer.
pub(super) const MAX_WAIT_MS: u64 = 60 * 60 * 1_000;

/// Registries that are not asked now; bounded by what the target names.
#[derive(Default)]
pub(super) struct Patience(BTreeMap<String, LeftAlone>);

struct LeftAlone {
    backoff: Backoff,
    /// Until when, and until when it asked for that itself.
    until_ms: u64,
    asked_until_ms: u64,
    why: String,
}

/// What a registry did.
pub(super) struct Failure {
    /// For how long it wants to be left alone; 0 if it did not say.
    pub(super) asked_for_ms: u64,
    /// In words.
    pub(super) why: String,
    /// Randomness, so that devices do not come back together.
    pub(super) seed: u64,
}

impl Patience {
    /// For how long a registry is left alone, and why.
    pub(super) fn left_alone(&self, registry: &str, now_ms: u64) -> Option<(u64, &str)> {
        let found = self.0.get(registry)?;
        let left_ms = found
            .until_ms
            .checked_sub(now_ms)
            .filter(|left| *left > 0)?;
        Some((left_ms, &found.why))
    }

    /// It gave what was wanted.
    pub(super) fn works(&mut self, registry: &str) {
        self.0.remove(registry);
    }

    /// It could not be used; longer each time.
    pub(super) fn failed(&mut self, registry: &str, failure: Failure, now_ms: u64) {
        let fresh = || LeftAlone {
            backoff: Backoff::new(FIRST_MS, MOST_MS, failure.seed),
            until_ms: 0,
            asked_until_ms: 0,
            why: String::new(),
        };
        let found = self.0.entry(registry.to_owned()).or_insert_with(fresh);
        found.asked_until_ms = now_ms.saturating_add(failure.asked_for_ms.min(MAX_WAIT_MS));
        let tried_ms = now_ms.saturating_add(found.backoff.next_ms());
        found.until_ms = found.asked_until_ms.max(tried_ms);
        found.why = failure.why;
    }

    /// Somebody wants it now: only what registries asked for themselves still counts.
    pub(super) fn give_new_chance(&mut self, now_ms: u64) {
        self.0.retain(|_, found| found.asked_until_ms > now_ms);
        for found in self.0.values_mut() {
            found.until_ms = found.asked_until_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTRY: &str = "registry.example";

    fn failure(asked_for_ms: u64) -> Failure {
        Failure {
            asked_for_ms,
            why: "it does not answer".to_owned(),
            seed: 7,
        }
    }

    fn left_ms(patience: &Patience, now_ms: u64) -> Option<u64> {
        patience.left_alone(REGISTRY, now_ms).map(|(left, _)| left)
    }

    #[test]
    fn it_is_left_alone_no_longer_than_five_minutes_and_only_itself() {
        let mut patience = Patience::default();
        let mut now_ms = 0;
        for _ in 0..20 {
            patience.failed(REGISTRY, failure(0), now_ms);
            let left_ms = left_ms(&patience, now_ms).unwrap_or(0);
            assert!((FIRST_MS / 2..=MOST_MS).contains(&left_ms), "{left_ms}");
            assert_eq!(patience.left_alone("other.example", now_ms), None);
            now_ms += left_ms;
            assert_eq!(self::left_ms(&patience, now_ms), None);
        }
        assert!(now_ms > MOST_MS, "it takes longer each time: {now_ms}");
        patience.works(REGISTRY);
        assert_eq!(left_ms(&patience, 0), None);
    }

    #[test]
    fn what_it_asked_for_itself_outlives_a_new_chance() {
        let mut patience = Patience::default();
        patience.failed(REGISTRY, failure(60_000), 0);
        patience.give_new_chance(1_000);
        assert_eq!(left_ms(&patience, 1_000), Some(59_000));
        assert_eq!(left_ms(&patience, 60_000), None);

        patience.failed(REGISTRY, failure(0), 100_000);
        patience.give_new_chance(100_000);
        assert_eq!(left_ms(&patience, 100_000), None);
    }

    #[test]
    fn nobody_is_believed_for_more_than_an_hour() {
        let mut patience = Patience::default();
        patience.failed(REGISTRY, failure(u64::MAX), 5);
        assert_eq!(left_ms(&patience, 5), Some(MAX_WAIT_MS));
    }
}
