//! Owns when a message is tried, tried again and given up, and how many go to one channel in a minute.
//!
//! Refuses to hammer: waits after failures double, are spread by chance, and a receiver that asks for peace gets it.

use holdfast_proto::time::Timestamp;

/// The most that the first wait after a failure can be.
const FIRST_WAIT_MS: i64 = 10_000;
/// The most that any wait can be: a receiver that was away is tried within the hour.
const LONGEST_WAIT_MS: i64 = 3_600_000;
/// Less is no wait.
const SHORTEST_WAIT_MS: i64 = 1_000;
/// After so long a message is old news.
pub const GIVE_UP_MS: i64 = 24 * 3_600_000;
/// In which so many messages may go to a channel.
pub const MINUTE_MS: i64 = 60_000;
/// More messages than this do not wait for one channel; they are summed up.
pub const MOST_WAITING: u64 = 1_000;

/// What became of a message that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The other side took it.
    Taken,
    /// The other side will never take this message.
    Refused,
    /// It may be taken later, not before the other side's wish in milliseconds.
    Failed {
        /// For how long it wants to be left alone.
        peace_ms: Option<i64>,
    },
}

/// What an HTTP status says of a message.
pub fn outcome(status: u16, peace_ms: Option<i64>) -> Outcome {
    match status {
        200..=299 => Outcome::Taken,
        // What is wrong is the message, or there is nobody any more (RFC 9110, RFC 6585); 401, 403 and 404 are
        // mistakes of a configuration, which a person mends within the day.
        400 | 410 | 413 | 414 | 415 | 422 | 431 => Outcome::Refused,
        _ => Outcome::Failed { peace_ms },
    }
}

/// What comes after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It was taken.
    Delivered,
    /// It is tried again at this moment.
    Again(Timestamp),
    /// Nobody will take it.
    GivenUp,
}

/// What comes after the last of `attempts` tries of a message from `created_at`; `random` is any number.
pub fn next(
    outcome: &Outcome,
    attempts: u32,
    created_at: Timestamp,
    now: Timestamp,
    random: u64,
) -> Next {
    match outcome {
        Outcome::Taken => Next::Delivered,
        Outcome::Refused => Next::GivenUp,
        Outcome::Failed { peace_ms } => {
            let again = now.plus_ms(wait_ms(attempts, *peace_ms, random));
            if is_old(created_at, again) {
                Next::GivenUp
            } else {
                Next::Again(again)
            }
        }
    }
}

/// Whether a message from `created_at` is old news.
pub fn is_old(created_at: Timestamp, now: Timestamp) -> bool {
    now.since_ms(created_at) >= GIVE_UP_MS
}

/// The wait after so many failures in a row: any time up to a bound that doubles (full jitter), and never less than
/// the other side asks for.
pub fn wait_ms(failures: u32, peace_ms: Option<i64>, random: u64) -> i64 {
    let doublings = failures.saturating_sub(1).min(9);
    let most = (FIRST_WAIT_MS << doublings).min(LONGEST_WAIT_MS);
    let width = u64::try_from(most - SHORTEST_WAIT_MS + 1).unwrap_or(1);
    let spread = SHORTEST_WAIT_MS + i64::try_from(random % width).unwrap_or(0);
    spread.max(peace_ms.unwrap_or(0))
}

/// What to do with messages that wait for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Nothing: the channel had as many as it takes in a minute.
    Rest,
    /// Send the one that is due first.
    One,
    /// Sum up all that were never tried, and send that.
    SumUp,
}

/// How a channel's minute is used: one by one while there is room, and whatever is left when the last place has come
/// goes into it together.
pub fn share(
    most_per_minute: u32,
    tried_in_minute: u64,
    never_tried: u64,
    first_is_retry: bool,
) -> Share {
    let room = u64::from(most_per_minute).saturating_sub(tried_in_minute);
    if room == 0 {
        Share::Rest
    } else if first_is_retry || never_tried <= 1 || (room > 1 && never_tried <= MOST_WAITING) {
        Share::One
    } else {
        Share::SumUp
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);
    const FAILED: Outcome = Outcome::Failed { peace_ms: None };

    #[test]
    fn a_status_says_whether_to_come_back() {
        for status in [200, 202, 204] {
            assert_eq!(outcome(status, None), Outcome::Taken, "{status}");
        }
        for status in [400, 410, 413, 422] {
            assert_eq!(outcome(status, None), Outcome::Refused, "{status}");
        }
        for status in [301, 401, 403, 404, 408, 429, 500, 502, 503] {
            let expected = Outcome::Failed { peace_ms: Some(5) };
            assert_eq!(outcome(status, Some(5)), expected, "{status}");
        }
    }

    #[test]
    fn waits_double_up_to_an_hour() {
        let most = |failures| wait_ms(failures, None, u64::try_from(FIRST_WAIT_MS << 9).unwrap());
        assert!((1_000..=10_000).contains(&most(1)));
        assert_eq!(wait_ms(1, None, 9_000), 10_000);
        assert_eq!(wait_ms(3, None, 39_000), 40_000);
        assert_eq!(wait_ms(50, None, 3_599_000), LONGEST_WAIT_MS);
        assert_eq!(wait_ms(1, Some(120_000), 0), 120_000);
        assert_eq!(wait_ms(3, Some(2_000), 39_000), 40_000);
    }

    #[test]
    fn what_is_a_day_old_is_given_up() {
        let next =
            |created: i64, outcome: &Outcome| next(outcome, 20, NOW.plus_ms(-created), NOW, 0);
        assert_eq!(next(0, &FAILED), Next::Again(NOW.plus_ms(1_000)));
        assert_eq!(
            next(GIVE_UP_MS - 1_001, &FAILED),
            Next::Again(NOW.plus_ms(1_000))
        );
        assert_eq!(next(GIVE_UP_MS - 1_000, &FAILED), Next::GivenUp);
        let never = Outcome::Failed {
            peace_ms: Some(2 * GIVE_UP_MS),
        };
        assert_eq!(next(0, &never), Next::GivenUp);
        assert_eq!(next(0, &Outcome::Refused), Next::GivenUp);
        assert_eq!(next(2 * GIVE_UP_MS, &Outcome::Taken), Next::Delivered);
    }

    #[test]
    fn the_last_place_of_a_minute_takes_all_the_rest() {
        assert_eq!(share(20, 0, 1, false), Share::One);
        assert_eq!(share(20, 18, 500, false), Share::One);
        assert_eq!(share(20, 19, 500, false), Share::SumUp);
        assert_eq!(share(20, 19, 1, false), Share::One);
        assert_eq!(share(20, 19, 500, true), Share::One);
        assert_eq!(share(20, 20, 500, false), Share::Rest);
        assert_eq!(share(20, 25, 500, true), Share::Rest);
        assert_eq!(share(1, 0, 2, false), Share::SumUp);
        assert_eq!(share(20, 0, MOST_WAITING + 1, false), Share::SumUp);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_longer_than_an_hour_or_the_wish(failures in 0_u32..2_000, random in any::<u64>(), wish in proptest::option::of(0_i64..100_000_000)) {
            let wait = wait_ms(failures, wish, random);
            prop_assert!(wait >= SHORTEST_WAIT_MS);
            prop_assert!(wait <= LONGEST_WAIT_MS.max(wish.unwrap_or(0)));
        }

        #[test]
        fn no_minute_takes_more_than_its_share(most in 1_u32..=60, mut waiting in 0_u64..3_000) {
            // Everything arrives at once and goes in one minute.
            let mut tried = 0;
            while waiting > 0 {
                match share(most, tried, waiting, false) {
                    Share::Rest => break,
                    Share::One => waiting -= 1,
                    Share::SumUp => waiting = 0,
                }
                tried += 1;
            }
            prop_assert!(tried <= u64::from(most));
            prop_assert_eq!(waiting, 0, "nothing is left over");
        }
    }
}
