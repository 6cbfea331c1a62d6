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

/// The longest wait between two attempts to resolve one reference.
const RESOLUTION_CEILING_S: u64 = 15 * 60;

/// How long to wait before a reference is asked for again after `attempts` failures in a row.
///
/// Doubles from 10 s to 15 min: a registry that is away for a week costs four requests an hour for
/// each reference.
pub fn unresolved_reference(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(7);
    Duration::from_secs((10_u64 << doublings).min(RESOLUTION_CEILING_S))
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

    #[test]
    fn waits_for_a_registry_grow_to_a_ceiling() {
        assert_eq!(unresolved_reference(0), Duration::from_secs(10));
        assert_eq!(unresolved_reference(1), Duration::from_secs(10));
        assert_eq!(unresolved_reference(3), Duration::from_secs(40));
        assert_eq!(
            unresolved_reference(1_000),
            Duration::from_secs(RESOLUTION_CEILING_S)
        );
    }
}
