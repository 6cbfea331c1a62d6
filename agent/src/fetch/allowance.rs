//! Owns how much of the line images may use: how fast bytes come, how many a day, and when neither counts.
//!
//! Refuses to forget a day's bytes over a restart, and to begin a new day because a clock went back.

use std::path::{Path, PathBuf};

use holdfast_plan::{Opening, ZonedWindow, opening};
use holdfast_proto::time::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::pace::Cap;
use crate::clock;
use crate::durable;
use crate::fault::chain;

/// What may be forgotten of a day's bytes when the agent dies: little against any budget, and few writes.
const WRITTEN_EVERY: u64 = 1_000_000;

/// What the owner allows.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Bytes in a second.
    pub per_second: Option<u64>,
    /// Bytes in a day.
    pub per_day: Option<u64>,
    /// Where a day begins.
    pub zone: Option<TimeZone>,
    /// When neither counts.
    pub free: Vec<ZonedWindow>,
}

/// How much was used of it.
#[derive(Debug)]
pub struct Allowance {
    allowed: Allowed,
    cap: Option<Cap>,
    file: PathBuf,
    used: Used,
    /// Of these bytes the file knows.
    written: u64,
}

/// The bytes of one day, as they lie on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Used {
    /// Days since the beginning of time, in the owner's zone.
    day: i64,
    bytes: u64,
}

impl Allowance {
    /// Goes on where the file says; without one a day is new.
    pub fn open(allowed: Allowed, file: &Path) -> Self {
        let used = match std::fs::read(file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), error = %error, "a day's bytes are counted anew");
                Used::default()
            }),
            Err(_) => Used::default(),
        };
        Self {
            cap: allowed.per_second.map(Cap::new),
            allowed,
            file: file.to_owned(),
            used,
            written: used.bytes,
        }
    }

    /// Bytes came; answers how long to wait before more are taken, in microseconds.
    pub fn take(&mut self, now: Timestamp, now_us: u64, bytes: u64) -> u64 {
        if self.is_free(now) {
            return 0;
        }
        if self.allowed.per_day.is_some() {
            self.turn(now);
            self.used.bytes = self.used.bytes.saturating_add(bytes);
            if self.used.bytes >= self.written.saturating_add(WRITTEN_EVERY) {
                self.write();
            }
        }
        self.cap.as_mut().map_or(0, |cap| cap.take(now_us, bytes))
    }

    /// When bytes may come again, if the day's are used up.
    pub fn used_up_until(&mut self, now: Timestamp) -> Option<Timestamp> {
        let per_day = self.allowed.per_day?;
        if self.is_free(now) {
            return None;
        }
        self.turn(now);
        if self.used.bytes < per_day {
            return None;
        }
        let midnight = self.midnight(now);
        match opening(&self.allowed.free, now, clock::is_plausible(now)) {
            Opening::Closed { until: Some(free) } => Some(midnight.min(free)),
            Opening::Closed { until: None } | Opening::Open | Opening::WaitingForClock => {
                Some(midnight)
            }
        }
    }

    /// Writes what was used since the last time.
    pub fn write(&mut self) {
        if self.used.bytes == self.written {
            return;
        }
        self.written = self.used.bytes;
        let text = serde_json::to_vec(&self.used).unwrap_or_default();
        if let Err(error) = durable::replace(&self.file, &text) {
            tracing::warn!(file = %self.file.display(), error = %chain(&error), "a day's bytes cannot be kept");
        }
    }

    fn is_free(&self, now: Timestamp) -> bool {
        !self.allowed.free.is_empty()
            && opening(&self.allowed.free, now, clock::is_plausible(now)) == Opening::Open
    }

    /// A new day begins; a clock that went back begins none.
    fn turn(&mut self, now: Timestamp) {
        let (day, _) = self.day(now);
        if day > self.used.day {
            self.used = Used { day, bytes: 0 };
            self.written = 0;
        }
    }

    fn midnight(&self, now: Timestamp) -> Timestamp {
        self.day(now).1
    }

    /// The day of a moment, and the moment at which the next one begins.
    fn day(&self, now: Timestamp) -> (i64, Timestamp) {
        let zone = self.allowed.zone.clone().unwrap_or(TimeZone::UTC);
        let instant = jiff::Timestamp::from_millisecond(now.as_millis()).unwrap_or_default();
        let zoned = instant.to_zoned(zone);
        let date = zoned.date();
        let day = date
            .since(jiff::civil::date(1970, 1, 1))
            .map_or(0, |span| i64::from(span.get_days()));
        let next = zoned.tomorrow().and_then(|next| next.start_of_day());
        let next = next.map_or(now, |next| {
            Timestamp::from_millis(next.timestamp().as_millisecond())
        });
        (day, next)
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn allowance(folder: &Path, allowed: Allowed) -> Allowance {
        Allowance::open(allowed, &folder.join("used.json"))
    }

    fn a_day() -> Allowed {
        Allowed {
            per_day: Some(100),
            ..Allowed::default()
        }
    }

    #[test]
    fn a_day_has_so_many_bytes_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let noon = at("2026-11-21T12:00:00Z");
        let mut one = allowance(folder.path(), a_day());
        one.take(noon, 0, 60);
        assert_eq!(one.used_up_until(noon), None);
        drop(one);
        let mut two = allowance(folder.path(), a_day());
        two.take(noon, 0, 40);
        let midnight = at("2026-11-22T00:00:00Z");
        assert_eq!(two.used_up_until(noon), Some(midnight));
        assert_eq!(two.used_up_until(midnight), None);
        two.take(midnight, 0, 99);
        assert_eq!(two.used_up_until(midnight), None);
    }

    #[test]
    fn a_day_is_that_of_its_zone() {
        let folder = tempfile::tempdir().unwrap();
        let zone = crate::zones::zone(&"Europe/Berlin".parse().unwrap());
        let mut berlin = allowance(folder.path(), Allowed { zone, ..a_day() });
        let evening = at("2026-11-21T22:30:00Z");
        berlin.take(evening, 0, 100);
        let midnight = at("2026-11-21T23:00:00Z");
        assert_eq!(berlin.used_up_until(evening), Some(midnight));
        assert_eq!(berlin.used_up_until(midnight), None);
    }

    #[test]
    fn a_clock_that_went_back_gives_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut one = allowance(folder.path(), a_day());
        one.take(at("2026-11-21T12:00:00Z"), 0, 100);
        assert!(one.used_up_until(at("1970-01-01T00:01:00Z")).is_some());
        assert!(one.used_up_until(at("2026-11-20T12:00:00Z")).is_some());
    }

    #[test]
    fn in_a_free_window_nothing_counts() {
        let folder = tempfile::tempdir().unwrap();
        let window = serde_json::json!({ "start": "02:00", "end": "04:00", "timezone": "UTC" });
        let allowed = Allowed {
            per_second: Some(1_000),
            free: vec![ZonedWindow {
                window: serde_json::from_value(window).unwrap(),
                zone: TimeZone::UTC,
            }],
            ..a_day()
        };
        let mut night = allowance(folder.path(), allowed);
        let three = at("2026-11-21T03:00:00Z");
        assert_eq!(night.take(three, 1_000_000, 5_000), 0);
        assert_eq!(night.used_up_until(three), None);
        let noon = at("2026-11-21T12:00:00Z");
        assert!(night.take(noon, 2_000_000, 5_000) > 0);
        // The window begins after midnight.
        assert_eq!(night.used_up_until(noon), Some(at("2026-11-22T00:00:00Z")));
        assert_eq!(
            night.used_up_until(at("2026-11-21T01:00:00Z")),
            Some(at("2026-11-21T02:00:00Z"))
        );
    }
}
