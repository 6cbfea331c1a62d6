//! Owns how long to wait before another attempt; refuses to decide whether one is worth it.
//!
//! The only file that names the back-off crate.

use std::time::Duration;

use backoff::{BackoffBuilder, ExponentialBuilder};

/// Waits of a database transaction that met a concurrent one.
///
/// Seven waits of 5 to 320 ms: together under a second and a half, far below any client's patience.
pub fn transaction_conflict() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_millis(320))
        .with_factor(2.0)
        .with_max_times(7)
        .with_jitter()
        .build()
}

/// Waits of the database listener between two attempts to connect again; never gives up.
pub fn reconnect() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(10))
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_tried_a_bounded_number_of_times() {
        let waits: Vec<Duration> = transaction_conflict().collect();
        assert_eq!(waits.len(), 7);
        assert!(waits.iter().sum::<Duration>() < Duration::from_secs(2));
    }
}
