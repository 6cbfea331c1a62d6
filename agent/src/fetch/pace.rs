//! Owns how fast bytes come: whether a source is too slow to wait for, and how long to wait before taking
//! more than was allowed. Pure: the time is an argument.

use std::collections::VecDeque;

/// The slowest source that is waited for, in bytes in a second: below it a layer of 30 MB takes half a day.
pub const SLOWEST: u64 = 1_000;
/// Over this time the rate is judged: a stall of a mobile network is shorter.
pub const JUDGED_MS: u64 = 30_000;
/// Marks kept of the time that is judged.
const MARKS: u64 = 30;

/// Whether a source keeps up.
#[derive(Clone, Debug)]
pub struct Pace {
    begun_ms: u64,
    bytes: u64,
    /// When, and how many bytes had come by then; the oldest first, within what is judged.
    marks: VecDeque<(u64, u64)>,
}

impl Pace {
    /// A source begins now (monotonic).
    pub fn new(now_ms: u64) -> Self {
        Self {
            begun_ms: now_ms,
            bytes: 0,
            marks: VecDeque::from([(now_ms, 0)]),
        }
    }

    /// Bytes came.
    pub fn came(&mut self, now_ms: u64, bytes: u64) {
        self.bytes += bytes;
        let newest = self.marks.back().map_or(0, |(at, _)| *at);
        if now_ms.saturating_sub(newest) >= JUDGED_MS / MARKS {
            self.marks.push_back((now_ms, self.bytes));
        }
        while let Some((second, _)) = self.marks.get(1)
            && now_ms.saturating_sub(*second) >= JUDGED_MS
        {
            self.marks.pop_front();
        }
    }

    /// Bytes in a second over the time that is judged; none before that much has passed.
    pub fn rate(&self, now_ms: u64) -> Option<u64> {
        if now_ms.saturating_sub(self.begun_ms) < JUDGED_MS {
            return None;
        }
        let (at, before) = self.marks.front().copied()?;
        let took = now_ms.saturating_sub(at).max(1);
        Some((self.bytes - before).saturating_mul(1_000) / took)
    }

    /// Whether it is too slow to wait for.
    pub fn is_too_slow(&self, now_ms: u64) -> bool {
        self.rate(now_ms).is_some_and(|rate| rate < SLOWEST)
    }
}

/// At most so many bytes in a second, over any stretch of time but a short burst.
#[derive(Clone, Copy, Debug)]
pub struct Cap {
    rate: u64,
    /// When the next byte may be taken (monotonic).
    free_at_us: u64,
}

/// What may be taken at once after a pause: large enough for whole reads, small against a second.
const BURST_US: u64 = 50_000;

impl Cap {
    /// A cap of `rate` bytes in a second; 0 counts as 1.
    pub fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(1),
            free_at_us: 0,
        }
    }

    /// Takes bytes that came; answers how long to wait before more are taken, in microseconds.
    pub fn take(&mut self, now_us: u64, bytes: u64) -> u64 {
        let cost_us = bytes.saturating_mul(1_000_000) / self.rate;
        let from = self.free_at_us.max(now_us.saturating_sub(BURST_US));
        self.free_at_us = from.saturating_add(cost_us);
        self.free_at_us.saturating_sub(now_us)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_drip_is_too_slow_and_a_stall_in_a_good_stream_is_not() {
        let mut drip = Pace::new(0);
        let mut good = Pace::new(0);
        for second in 1..=60 {
            drip.came(second * 1_000, 64);
            let is_stalled = (20..40).contains(&second);
            good.came(second * 1_000, if is_stalled { 0 } else { 32_000 });
            assert!(!good.is_too_slow(second * 1_000), "{second}");
            assert_eq!(drip.is_too_slow(second * 1_000), second >= 30, "{second}");
        }
        assert_eq!(drip.rate(60_000), Some(64));
    }

    #[test]
    fn one_that_came_fast_and_then_stopped_is_found_out() {
        let mut pace = Pace::new(0);
        pace.came(1_000, 50_000_000);
        pace.came(32_500, 0);
        assert!(pace.is_too_slow(62_500));
        assert!(pace.marks.len() <= 32);
    }

    proptest! {
        #[test]
        fn a_cap_holds_over_any_stretch(
            rate in 1_000_u64..10_000_000,
            reads in prop::collection::vec((1_u64..65_536, 0_u64..20_000), 50..200),
        ) {
            let mut cap = Cap::new(rate);
            let (mut now_us, mut taken) = (1_000_000_u64, 0);
            let begun_us = now_us;
            for (bytes, idle_us) in reads {
                now_us += cap.take(now_us, bytes) + idle_us;
                taken += bytes;
                let allowed = rate * (now_us - begun_us + BURST_US) / 1_000_000;
                prop_assert!(taken <= allowed + 200, "{taken} of {allowed}");
            }
        }
    }
}
