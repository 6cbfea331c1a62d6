//! Owns when update windows are open on the wall clock of their zones.
//!
//! Refuses to trust a clock that cannot be right, and to know zone data: zones come parsed.

use jiff::ToSpan as _;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};

use super::{TimeOfDay, UpdateWindow};
use crate::time::Timestamp;

/// A window whose zone is known here.
#[derive(Clone, Debug, PartialEq)]
pub struct ZonedWindow {
    /// The window.
    pub window: UpdateWindow,
    /// What its `timezone` means.
    pub zone: TimeZone,
}

/// What windows say of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Updates may begin.
    Open,
    /// They may not.
    Closed {
        /// When the next window begins.
        until: Option<Timestamp>,
    },
    /// The time is not known, so neither is whether a window is open.
    WaitingForClock,
}

/// Whether updates may begin now. Without any window they always may, whatever the clock says.
pub fn opening(windows: &[ZonedWindow], now: Timestamp, clock_is_plausible: bool) -> Opening {
    if windows.is_empty() {
        return Opening::Open;
    }
    let instant = jiff::Timestamp::from_millisecond(now.as_millis()).ok();
    let Some(instant) = instant.filter(|_| clock_is_plausible) else {
        return Opening::WaitingForClock;
    };
    let mut until: Option<jiff::Timestamp> = None;
    for (start, end) in windows.iter().flat_map(|window| window.around(instant)) {
        if start <= instant && instant < end {
            return Opening::Open;
        }
        if start > instant {
            until = Some(until.map_or(start, |earlier| earlier.min(start)));
        }
    }
    Opening::Closed {
        until: until.map(|until| Timestamp::from_millis(until.as_millisecond())),
    }
}

/// A window that began two days ago may be open still: it lasts up to a day, and a zone may have
/// skipped another.
const DAYS_BACK: i64 = 2;
/// Any window begins within a week; one more day for a day that a zone skipped.
const DAYS_AHEAD: i64 = 8;

impl ZonedWindow {
    /// Every time it is open around `now`: from, and until before.
    fn around(
        &self,
        now: jiff::Timestamp,
    ) -> impl Iterator<Item = (jiff::Timestamp, jiff::Timestamp)> {
        let today = self.zone.to_datetime(now).date();
        (-DAYS_BACK..=DAYS_AHEAD)
            .filter_map(move |days| today.checked_add(days.days()).ok())
            .filter(|date| {
                let after_monday = date.weekday().to_monday_zero_offset();
                usize::try_from(after_monday).is_ok_and(|day| self.window.days.contains(day))
            })
            .filter_map(|date| self.on(date))
    }

    /// The one time it is open for `date`, on every date: also when clocks change.
    ///
    /// Times that happen twice mean their first pass. A start that is skipped begins when the clock has
    /// jumped. An end that is skipped, or that the start was moved past, keeps the window's length.
    fn on(&self, date: Date) -> Option<(jiff::Timestamp, jiff::Timestamp)> {
        let UpdateWindow { start, end, .. } = self.window;
        let end_date = if end > start {
            date
        } else {
            date.tomorrow().ok()?
        };
        let (starts, ends) = (at(date, start)?, at(end_date, end)?);
        let length = ends.duration_since(starts);
        let from = match self.zone.to_ambiguous_timestamp(starts).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(starts).ok()?,
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(starts).ok()?,
            AmbiguousOffset::Gap { after, .. } => {
                let ahead_of_the_jump = after.to_timestamp(starts).ok()?;
                self.zone.following(ahead_of_the_jump).next()?.timestamp()
            }
        };
        let until = match self.zone.to_ambiguous_timestamp(ends).offset() {
            AmbiguousOffset::Unambiguous { offset } => Some(offset.to_timestamp(ends).ok()?),
            AmbiguousOffset::Fold { before, .. } => Some(before.to_timestamp(ends).ok()?),
            AmbiguousOffset::Gap { .. } => None,
        };
        let until = match until {
            Some(until) if until > from => until,
            Some(_) | None => from.checked_add(length).ok()?,
        };
        Some((from, until))
    }
}

fn at(date: Date, time: TimeOfDay) -> Option<DateTime> {
    let (hour, minute) = (
        i8::try_from(time.hour()).ok()?,
        i8::try_from(time.minute()).ok()?,
    );
    Some(DateTime::from_parts(
        date,
        Time::new(hour, minute, 0, 0).ok()?,
    ))
}

#[cfg(test)]
mod tests;
