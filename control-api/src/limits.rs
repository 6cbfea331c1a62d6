//! Owns how often somebody may ask for something: so many times in a window, counted in memory.
//!
//! Refuses nobody for what others did. Several replicas count for themselves: the bound is against loops
//! and misuse, not a contract.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use holdfast_proto::time::Timestamp;

/// Windows kept before those that are over make room.
const MOST_WINDOWS: usize = 100_000;

/// Counts requests by who makes them.
#[derive(Debug)]
pub struct Limits<K> {
    most: u32,
    window_ms: i64,
    windows: Mutex<HashMap<K, (Timestamp, u32)>>,
}

impl<K: Eq + Hash> Limits<K> {
    /// At most `most` requests in each window of this length.
    pub fn new(most: u32, window: Duration) -> Self {
        Self {
            most,
            window_ms: i64::try_from(window.as_millis()).unwrap_or(i64::MAX),
            windows: Mutex::default(),
        }
    }

    /// Counts a request; the time until the next one is allowed, when this one is not.
    pub fn count(&self, who: K, now: Timestamp) -> Result<(), Duration> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |begun: Timestamp| !(0..self.window_ms).contains(&now.since_ms(begun));
        if windows.len() >= MOST_WINDOWS {
            windows.retain(|_, (begun, _)| !is_over(*begun));
        }
        let (begun, count) = windows.entry(who).or_insert((now, 0));
        if is_over(*begun) {
            (*begun, *count) = (now, 0);
        }
        if *count >= self.most {
            let left_ms = self.window_ms - now.since_ms(*begun);
            return Err(Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)));
        }
        *count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_window_which_ends() {
        let limits = Limits::new(2, Duration::from_secs(10));
        let at = Timestamp::from_millis;
        assert_eq!(limits.count("a", at(0)), Ok(()));
        assert_eq!(limits.count("a", at(4_000)), Ok(()));
        assert_eq!(limits.count("a", at(4_000)), Err(Duration::from_secs(6)));
        assert_eq!(limits.count("b", at(4_000)), Ok(()));
        assert_eq!(limits.count("a", at(10_000)), Ok(()));
        // A clock that was set back starts a new window.
        assert_eq!(limits.count("a", at(9_000)), Ok(()));
    }
}
