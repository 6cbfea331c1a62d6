//! Owns what failed lately and when it may be tried again, measured on the monotonic clock.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_plan::{Plan, PullReason, Retry};
use holdfast_proto::id::ServiceKey;
use holdfast_proto::time::Timestamp;

use crate::retry::Backoff;

/// A failed step is tried again from a second up to a minute later.
const STEP_MIN_MS: u64 = 1_000;
const STEP_MAX_MS: u64 = 60_000;
/// A failed pull from two seconds up to five minutes later: registries are shared.
const PULL_MIN_MS: u64 = 2_000;
const PULL_MAX_MS: u64 = 300_000;

struct Failure {
    backoff: Backoff,
    due_ms: u64,
    error: String,
    /// Which step failed: only its own success ends the back-off.
    code: &'static str,
}

/// A way back that cannot be fetched, and an image that cannot be removed, hold nobody up: from twenty
/// seconds up to an hour later.
const QUIET_MIN_MS: u64 = 20_000;
const QUIET_MAX_MS: u64 = 3_600_000;

/// Failures by service and by image; bounded by what the target names.
pub(super) struct Failures {
    seed: u64,
    steps: BTreeMap<ServiceKey, Failure>,
    pulls: BTreeMap<String, Failure>,
    images: BTreeMap<String, Failure>,
    outgrown: BTreeMap<String, Outgrown>,
}

/// An image that was cut off because it would have filled the disk.
struct Outgrown {
    /// Bytes that were free when it began.
    free_before: u64,
    /// When it was cut off (monotonic).
    at_ms: u64,
}

/// For so long it is taken for too large: others may have taken the room and given it back.
const OUTGROWN_MS: u64 = 60 * 60 * 1_000;

impl Failures {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            steps: BTreeMap::new(),
            pulls: BTreeMap::new(),
            images: BTreeMap::new(),
            outgrown: BTreeMap::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.steps.clear();
        self.pulls.clear();
        self.images.clear();
    }

    /// Notes a failed step; gives how often it failed in a row.
    pub(super) fn step_failed(
        &mut self,
        key: &ServiceKey,
        code: &'static str,
        error: &str,
        now_ms: u64,
    ) -> u32 {
        let fresh = Failure::new(STEP_MIN_MS, STEP_MAX_MS, self.seed);
        let failure = self.steps.entry(key.clone()).or_insert(fresh);
        failure.note(code, error, now_ms)
    }

    pub(super) fn step_succeeded(&mut self, key: &ServiceKey, code: &'static str) {
        if self
            .steps
            .get(key)
            .is_some_and(|failed| failed.code == code)
        {
            self.steps.remove(key);
        }
    }

    /// Notes that an image could not be named or removed; gives how often that was so in a row. What somebody
    /// else uses is theirs for long.
    pub(super) fn image_failed(
        &mut self,
        name: &str,
        error: &str,
        is_used: bool,
        now_ms: u64,
    ) -> u32 {
        let least_ms = if is_used { QUIET_MAX_MS } else { QUIET_MIN_MS };
        let fresh = Failure::new(least_ms, QUIET_MAX_MS, self.seed);
        let failure = self.images.entry(name.to_owned()).or_insert(fresh);
        failure.note("image", error, now_ms)
    }

    pub(super) fn image_succeeded(&mut self, name: &str) {
        self.images.remove(name);
    }

    /// Notes that a pull was cut off because it would have filled the disk.
    pub(super) fn outgrew(&mut self, image: &str, free_before: u64, at_ms: u64) {
        let outgrown = Outgrown { free_before, at_ms };
        self.outgrown.insert(image.to_owned(), outgrown);
    }

    /// Somebody wants it tried all the same.
    pub(super) fn forget_outgrown(&mut self) {
        self.outgrown.clear();
    }

    /// Notes a failed pull that is of no use before `wait_ms` have passed; gives how often it failed in a row.
    pub(super) fn pull_failed(
        &mut self,
        image: &str,
        why: PullReason,
        (error, wait_ms): (&str, u64),
        now_ms: u64,
    ) -> u32 {
        let fresh = match why {
            PullReason::Update => Failure::new(PULL_MIN_MS, PULL_MAX_MS, self.seed),
            PullReason::WayBack => Failure::new(QUIET_MIN_MS, QUIET_MAX_MS, self.seed),
        };
        let failure = self.pulls.entry(image.to_owned()).or_insert(fresh);
        let attempt = failure.note("pull", error, now_ms);
        failure.due_ms = failure.due_ms.max(now_ms.saturating_add(wait_ms));
        attempt
    }

    pub(super) fn pull_succeeded(&mut self, image: &str) {
        self.pulls.remove(image);
        self.outgrown.remove(image);
    }

    /// Forgets the failures of services that are at peace.
    pub(super) fn keep_only_of(&mut self, plan: &Plan) {
        let steps = plan.steps.iter().map(holdfast_plan::Step::key);
        let busy: BTreeSet<&ServiceKey> = steps
            .chain(plan.holds.iter().map(holdfast_plan::Hold::key))
            .collect();
        self.steps.retain(|key, _| busy.contains(key));
        if busy.is_empty() {
            self.pulls.clear();
        }
    }

    pub(super) fn steps(&self, now: Timestamp, now_ms: u64) -> BTreeMap<ServiceKey, Retry> {
        let retry =
            |(key, failure): (&ServiceKey, &Failure)| (key.clone(), failure.retry(now, now_ms));
        self.steps.iter().map(retry).collect()
    }

    pub(super) fn images(&self, now: Timestamp, now_ms: u64) -> BTreeMap<String, Retry> {
        let retry =
            |(name, failure): (&String, &Failure)| (name.clone(), failure.retry(now, now_ms));
        self.images.iter().map(retry).collect()
    }

    /// Images that are taken for too large, and what was free when they began.
    pub(super) fn outgrown(&self, now_ms: u64) -> BTreeMap<String, u64> {
        let all = self.outgrown.iter();
        let fresh = all.filter(|(_, cut)| now_ms.saturating_sub(cut.at_ms) < OUTGROWN_MS);
        fresh
            .map(|(image, cut)| (image.clone(), cut.free_before))
            .collect()
    }

    pub(super) fn pulls(&self, now: Timestamp, now_ms: u64) -> BTreeMap<String, Retry> {
        let retry =
            |(image, failure): (&String, &Failure)| (image.clone(), failure.retry(now, now_ms));
        self.pulls.iter().map(retry).collect()
    }
}

impl Failure {
    fn new(min_ms: u64, max_ms: u64, seed: u64) -> Self {
        Self {
            backoff: Backoff::new(min_ms, max_ms, seed),
            due_ms: 0,
            error: String::new(),
            code: "",
        }
    }

    fn note(&mut self, code: &'static str, error: &str, now_ms: u64) -> u32 {
        self.due_ms = now_ms.saturating_add(self.backoff.next_ms());
        error.clone_into(&mut self.error);
        self.code = code;
        self.backoff.failures()
    }

    fn retry(&self, now: Timestamp, now_ms: u64) -> Retry {
        let left_ms = self.due_ms.saturating_sub(now_ms);
        Retry {
            attempts: self.backoff.failures(),
            not_before: now.plus_ms(i64::try_from(left_ms).unwrap_or(i64::MAX)),
            error: self.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ServiceKey {
        ServiceKey {
            app: "1".parse().unwrap(),
            service: "web".parse().unwrap(),
        }
    }

    #[test]
    fn a54_a_wall_clock_that_jumps_moves_no_retry() {
        let mut failures = Failures::new(1);
        failures.step_failed(&key(), "start", "no", 10_000);
        let left = |wall, now_ms| {
            let now = Timestamp::from_millis(wall);
            failures.steps(now, now_ms)[&key()].not_before.since_ms(now)
        };
        let first = left(0, 10_000);
        assert!((1_000..=2_000).contains(&first), "{first}");
        assert_eq!(left(1_900_000_000_000, 10_000), first);
        assert_eq!(left(-5, 10_400), first - 400);
        assert_eq!(left(7, 99_000), 0);
    }

    #[test]
    fn an_image_is_too_large_for_an_hour_or_until_somebody_wants_it() {
        let mut failures = Failures::new(1);
        failures.outgrew("web", 5, 1_000);
        failures.outgrew("db", 7, 2_000);
        assert_eq!(failures.outgrown(OUTGROWN_MS).len(), 2);
        let late = failures.outgrown(OUTGROWN_MS + 1_000);
        assert_eq!(late, BTreeMap::from([("db".to_owned(), 7)]));
        failures.forget_outgrown();
        assert!(failures.outgrown(OUTGROWN_MS).is_empty());
    }

    #[test]
    fn a_registrys_wish_is_longer_than_our_own_patience() {
        let mut failures = Failures::new(1);
        failures.pull_failed("web", PullReason::Update, ("no", 3_600_000), 0);
        let now = Timestamp::from_millis(0);
        let due = failures.pulls(now, 0)["web"].not_before.since_ms(now);
        assert_eq!(due, 3_600_000);
    }

    #[test]
    fn only_the_success_of_the_failed_step_ends_its_back_off() {
        let mut failures = Failures::new(1);
        assert_eq!(failures.step_failed(&key(), "start", "no", 0), 1);
        failures.step_succeeded(&key(), "create");
        assert_eq!(failures.step_failed(&key(), "start", "no", 0), 2);
        failures.step_succeeded(&key(), "start");
        assert_eq!(failures.step_failed(&key(), "start", "no", 0), 1);
        failures.keep_only_of(&Plan::default());
        assert!(failures.steps(Timestamp::default(), 0).is_empty());
    }
}
