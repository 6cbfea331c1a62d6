//! Owns `Timestamp`, the one form of an instant in documents; refuses to know what time it is now.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An instant in UTC with millisecond precision.
///
/// On the wire RFC 3339 with `Z`; in databases the number of milliseconds since 1970-01-01.
/// There is no `now()`: whoever needs the present takes it as an argument from its clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The instant `millis` milliseconds after 1970-01-01T00:00:00Z.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This instant moved by `millis`, staying at the ends of the range instead of overflowing.
    #[must_use]
    pub const fn plus_ms(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// This instant as mail writes it (RFC 5322, section 3.3), to the second; nothing outside the years it knows.
    pub fn rfc_5322(self) -> Option<String> {
        let instant = jiff::Timestamp::from_millisecond(self.0).ok()?;
        let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
        printer.timestamp_to_string(&instant).ok()
    }

    /// Milliseconds from `earlier` to this instant; negative when `earlier` is later.
    pub const fn since_ms(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(instant) => write!(f, "{instant:.3}"),
            // Outside the years -9999..9999: only corrupted data reaches this.
            Err(_) => write!(f, "@{}ms", self.0),
        }
    }
}

/// The text is not an RFC 3339 date and time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 time such as 2026-01-31T12:00:00Z")]
pub struct TimestampError(String);

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>()
            .map(|instant| Self(instant.as_millisecond()))
            .map_err(|_| TimestampError(text.chars().take(64).collect()))
    }
}

/// Seconds to wait by a `Retry-After` field in either of its forms (RFC 9110, section 10.2.3).
///
/// A date is compared with the answer's own `Date` field and not with a clock: devices boot in 1970.
pub fn retry_after_seconds(retry_after: &str, date: Option<&str>) -> Option<u64> {
    let second = |text: &str| {
        let parser = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true);
        parser
            .parse_timestamp(text.trim())
            .ok()
            .map(jiff::Timestamp::as_second)
    };
    if let Ok(seconds) = retry_after.trim().parse() {
        return Some(seconds);
    }
    let (until, now) = second(retry_after).zip(date.and_then(second))?;
    Some(u64::try_from(until.saturating_sub(now)).unwrap_or(0))
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_reads_rfc_3339_with_milliseconds() {
        let instant = Timestamp::from_millis(1_795_239_600_123);
        assert_eq!(instant.to_string(), "2026-11-21T05:40:00.123Z");
        assert_eq!("2026-11-21T05:40:00.123Z".parse(), Ok(instant));
        assert_eq!("2026-11-21T06:40:00.123+01:00".parse(), Ok(instant));
    }

    #[test]
    fn writes_what_mail_reads() {
        let instant = Timestamp::from_millis(1_795_239_600_123);
        let written = instant.rfc_5322().unwrap();
        assert_eq!(written, "Sat, 21 Nov 2026 05:40:00 -0000");
        assert_eq!(Timestamp::from_millis(i64::MAX).rfc_5322(), None);
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(retry_after_seconds("7", None), Some(7));
        assert_eq!(
            retry_after_seconds("Sun, 06 Nov 1994 08:50:07 GMT", date),
            Some(30)
        );
        assert_eq!(
            retry_after_seconds("Sun, 06 Nov 1994 08:00:00 GMT", date),
            Some(0)
        );
        assert_eq!(
            retry_after_seconds("Sun, 06 Nov 1994 08:50:07 GMT", None),
            None
        );
        assert_eq!(retry_after_seconds("soon", date), None);
    }

    #[test]
    fn refuses_what_is_not_a_time() {
        assert!("yesterday".parse::<Timestamp>().is_err());
    }
}
