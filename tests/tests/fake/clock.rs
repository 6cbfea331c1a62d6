//! Tokio's paused time as the agent's clock: a test of an hour takes milliseconds.

use holdfast_agent::clock::Clock;
use holdfast_proto::time::Timestamp;
use tokio::time::Instant;

/// The wall clock begins in 2026.
pub(crate) const BEGINS_MS: i64 = 1_790_000_000_000;

/// Tokio's paused time as the agent's clock.
#[derive(Clone, Copy)]
pub(crate) struct VirtualClock(Instant);

impl VirtualClock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        let since = i64::try_from(self.monotonic_ms()).expect("a test is short");
        Timestamp::from_millis(BEGINS_MS + since)
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).expect("a test is short")
    }

    async fn sleep_ms(&self, duration_ms: u64) {
        tokio::time::sleep(std::time::Duration::from_millis(duration_ms)).await;
    }
}
