//! What many runs of one measurement come to.

use std::fmt;
use std::time::Duration;

/// A distribution in five figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread {
    pub(crate) least: Duration,
    pub(crate) median: Duration,
    pub(crate) p95: Duration,
    pub(crate) most: Duration,
    pub(crate) runs: usize,
}

impl Spread {
    /// Of these runs; all zero when there were none.
    pub(crate) fn of(mut figures: Vec<Duration>) -> Self {
        figures.sort();
        let runs = figures.len();
        // The nearest rank: no figure that was not measured.
        let rank = |percent: usize| {
            let rank = (runs * percent).div_ceil(100).max(1);
            figures.get(rank - 1).copied().unwrap_or_default()
        };
        Self {
            least: rank(0),
            median: rank(50),
            p95: rank(95),
            most: rank(100),
            runs,
        }
    }
}

/// `least | median | p95 | most | runs`, in milliseconds.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} | {} | {} | {} | {}",
            self.least.as_millis(),
            self.median.as_millis(),
            self.p95.as_millis(),
            self.most.as_millis(),
            self.runs
        )
    }
}

#[test]
fn a_spread_names_only_what_was_measured() {
    let ms = Duration::from_millis;
    let spread = Spread::of((1..=20).rev().map(ms).collect());
    assert_eq!(spread.to_string(), "1 | 10 | 19 | 20 | 20");
    assert_eq!(Spread::of(vec![ms(7)]).to_string(), "7 | 7 | 7 | 7 | 1");
    assert_eq!(Spread::of(Vec::new()).to_string(), "0 | 0 | 0 | 0 | 0");
}
