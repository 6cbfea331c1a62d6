//! Owns the only places that ask what time it is; refuses to be called from decisions.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holdfast_proto::time::Timestamp;

/// The present, for stamps on rows and documents.
#[expect(clippy::disallowed_methods, reason = "this file is the clock")]
pub fn now() -> Timestamp {
    let millis = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        });
    Timestamp::from_millis(millis)
}

/// A point on the monotonic clock, for durations.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts measuring.
    #[expect(clippy::disallowed_methods, reason = "this file is the clock")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// How long ago it was started.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}
