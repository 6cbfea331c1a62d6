//! Owns how long history is kept, and which of it may go.
//!
//! Refuses to let a clock that was wrong for a while decide: what may go is the oldest rows in the order they were
//! written, and rows from the future go only with older ones around them.

use holdfast_proto::time::Timestamp;

/// Milliseconds of a day.
const DAY_MS: i64 = 24 * 3_600 * 1_000;

/// For how many days history is kept; none is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Events.
    pub events_days: Option<u32>,
    /// Rows of the audit log.
    pub audit_days: Option<u32>,
    /// The log of rollouts after their end, and webhook deliveries that were dealt with.
    pub rollouts_days: Option<u32>,
}

/// Before when something is old that is kept for so many days.
pub fn cutoff(days: Option<u32>, now: Timestamp) -> Option<Timestamp> {
    days.map(|days| now.plus_ms(-(i64::from(days) * DAY_MS)))
}

/// The last of the oldest rows that may go; `rows` are their numbers and times, in the order of the numbers.
pub fn may_go(
    rows: impl IntoIterator<Item = (i64, Timestamp)>,
    cutoff: Timestamp,
    now: Timestamp,
) -> Option<i64> {
    rows.into_iter()
        .take_while(|(_, at)| *at < cutoff || *at > now)
        .filter(|(_, at)| *at < cutoff)
        .map(|(id, _)| id)
        .last()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(times: &[i64]) -> Vec<(i64, Timestamp)> {
        (1..)
            .zip(times.iter().map(|at| Timestamp::from_millis(*at)))
            .collect()
    }

    fn gone(times: &[i64]) -> Option<i64> {
        let at = Timestamp::from_millis;
        may_go(rows(times), at(100), at(200))
    }

    #[test]
    fn old_rows_go_up_to_the_first_that_is_kept() {
        assert_eq!(gone(&[1, 2, 99, 100, 5]), Some(3));
        assert_eq!(gone(&[100, 1]), None);
        assert_eq!(gone(&[]), None);
    }

    #[test]
    fn a_clock_that_was_wrong_neither_stops_it_nor_empties_the_log() {
        // Ahead for a while: these rows go with the old ones after them, not alone.
        assert_eq!(gone(&[1, 9_999, 2, 150]), Some(3));
        assert_eq!(gone(&[1, 9_999, 150]), Some(1));
        assert_eq!(gone(&[9_999, 9_999]), None);
        // In 1970 for a while: rows before these are young, and stay.
        assert_eq!(gone(&[150, 0, 0, 150]), None);
        // In 1970 now: nothing is old.
        let now = Timestamp::from_millis(5);
        let cutoff = cutoff(Some(90), now).unwrap();
        assert_eq!(may_go(rows(&[150, 160]), cutoff, now), None);
    }

    #[test]
    fn for_ever_has_no_end() {
        let now = Timestamp::from_millis(DAY_MS);
        assert_eq!(cutoff(None, now), None);
        assert_eq!(cutoff(Some(1), now), Some(Timestamp::from_millis(0)));
    }

    proptest! {
        #[test]
        fn a_row_that_is_young_and_everything_after_it_stays(
            times in proptest::collection::vec(0_i64..300, 0..20),
        ) {
            if let Some(last) = gone(&times) {
                let index = usize::try_from(last - 1).unwrap();
                prop_assert!(times[index] < 100);
                prop_assert!(times[..index].iter().all(|at| *at < 100 || *at > 200));
            }
        }
    }
}
