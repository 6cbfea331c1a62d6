//! Owns when a device counts as present; refuses to read a device's silence as health.

pub use holdfast_proto::operator::Presence;
use holdfast_proto::time::Timestamp;

/// Polls a device may miss before it counts as offline: one may be lost, one may be late.
const MISSED_POLLS: i64 = 3;
/// Slack for a long poll and for the record of the last contact, which is written in batches.
const SLACK_MS: i64 = 90_000;

/// The instant since which a device must have been heard of to count as online.
pub fn online_since(now: Timestamp, poll_interval_s: u32) -> Timestamp {
    now.plus_ms(-(i64::from(poll_interval_s) * 1_000 * MISSED_POLLS + SLACK_MS))
}

/// Judges one device.
pub fn presence(last_seen: Option<Timestamp>, now: Timestamp, poll_interval_s: u32) -> Presence {
    match last_seen {
        Some(seen) if seen >= online_since(now, poll_interval_s) => Presence::Online,
        Some(_) => Presence::Offline,
        None => Presence::NeverSeen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_online_until_it_missed_several_polls() {
        let seen = Timestamp::from_millis(1_000_000);
        assert_eq!(
            presence(Some(seen), seen.plus_ms(180_000), 30),
            Presence::Online
        );
        assert_eq!(
            presence(Some(seen), seen.plus_ms(180_001), 30),
            Presence::Offline
        );
    }

    #[test]
    fn a_device_that_only_enrolled_was_never_seen() {
        assert_eq!(
            presence(None, Timestamp::from_millis(0), 30),
            Presence::NeverSeen
        );
    }

    #[test]
    fn a_device_seen_in_the_future_is_online() {
        let seen = Timestamp::from_millis(1_000_000);
        assert_eq!(
            presence(Some(seen), seen.plus_ms(-5_000), 30),
            Presence::Online
        );
    }
}
