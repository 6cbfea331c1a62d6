//! Owns update windows as people write them: days, start, end and time zone.
//!
//! Refuses what could mean two things. Whether a zone exists is for whoever has the zone data to say: this crate has
//! none.

pub mod opening;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::problem::{FieldError, Pointer};

/// The most windows of one service or device; a week has 21 shifts.
pub const MAX_WINDOWS: usize = 32;

/// A time of the week in which updates may begin.
///
/// It begins on each of `days` at `start` and lasts until the next `end`, which is on the following day
/// when `end` is not later than `start`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateWindow {
    /// Days it begins on, `mon` to `sun`; every day when absent.
    #[serde(default, skip_serializing_if = "Days::are_all")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub days: Days,
    /// When it begins, `22:00`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub start: TimeOfDay,
    /// When it ends, `04:00`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub end: TimeOfDay,
    /// The zone of both, by its IANA name such as `Europe/Berlin`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub timezone: ZoneName,
}

impl fmt::Display for UpdateWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            days,
            start,
            end,
            timezone,
        } = self;
        write!(f, "{days} {start}-{end} {timezone}")
    }
}

/// Finds what is wrong with a list of windows that each window by itself cannot know.
pub fn check(windows: &[UpdateWindow], at: &Pointer, errors: &mut Vec<FieldError>) {
    if windows.len() > MAX_WINDOWS {
        errors.push(at.error(format!("more than {MAX_WINDOWS} windows")));
    }
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const LONG_DAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];

/// Days of the week, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Days([bool; 7]);

impl Days {
    /// Whether the day that is so many days after Monday is among them.
    pub fn contains(self, days_after_monday: usize) -> bool {
        self.0.get(days_after_monday).copied().unwrap_or(false)
    }

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde calls it with a reference"
    )]
    fn are_all(&self) -> bool {
        self.0 == [true; 7]
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        let named = DAYS.into_iter().zip(self.0);
        named.filter_map(|(name, named)| named.then_some(name))
    }
}

impl Default for Days {
    /// Every day.
    fn default() -> Self {
        Self([true; 7])
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.are_all() {
            return f.write_str("daily");
        }
        f.write_str(&self.names().collect::<Vec<_>>().join(","))
    }
}

impl Serialize for Days {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

impl<'de> Deserialize<'de> for Days {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut days = [false; 7];
        for text in Vec::<String>::deserialize(deserializer)? {
            let lower = text.to_ascii_lowercase();
            let position = DAYS
                .iter()
                .position(|day| *day == lower)
                .or_else(|| LONG_DAYS.iter().position(|day| *day == lower))
                .ok_or_else(|| {
                    let text = excerpt(&text);
                    de::Error::custom(format!("`{text}` is no day, write {}", DAYS.join(", ")))
                })?;
            days[position] = true;
        }
        if days == [false; 7] {
            return Err(de::Error::custom(
                "names no day; leave `days` out for every day",
            ));
        }
        Ok(Self(days))
    }
}

/// A time on the wall clock, `HH:MM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeOfDay {
    hour: u8,
    minute: u8,
}

impl TimeOfDay {
    /// The hour, 0 to 23.
    pub const fn hour(self) -> u8 {
        self.hour
    }

    /// The minute, 0 to 59.
    pub const fn minute(self) -> u8 {
        self.minute
    }
}

impl FromStr for TimeOfDay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let part = |text: &str, limit: u8| -> Option<u8> {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            let number: u8 = digits.then(|| text.parse().ok()).flatten()?;
            (number < limit).then_some(number)
        };
        text.split_once(':')
            .and_then(|(hour, minute)| part(hour, 24).zip(part(minute, 60)))
            .map(|(hour, minute)| Self { hour, minute })
            .ok_or_else(|| {
                format!(
                    "`{}` is no time of day, write one from 00:00 to 23:59",
                    excerpt(text)
                )
            })
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

/// The longest zone name that is read; the longest of the database has 32 characters.
const MAX_ZONE_CHARS: usize = 64;

/// A name of the form that the IANA time zone database uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneName(String);

impl ZoneName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ZoneName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Only such names: the name becomes part of a path when the system's zone data is read.
        let plausible = |part: &str| {
            part.starts_with(|first: char| first.is_ascii_alphabetic())
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_+-".contains(c))
        };
        if text.len() <= MAX_ZONE_CHARS && text.split('/').all(plausible) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "`{}` is no time zone, write an IANA name such as UTC or Europe/Berlin",
            excerpt(text)
        ))
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(MAX_ZONE_CHARS).collect()
}

macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(TimeOfDay ZoneName);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<UpdateWindow, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_what_people_write_and_writes_one_form() {
        let window = read(
            r#"{"days":["Saturday","mon","MON"],"start":"22:00","end":"04:30","timezone":"Europe/Berlin"}"#,
        )
        .unwrap();
        assert_eq!(window.to_string(), "mon,sat 22:00-04:30 Europe/Berlin");
        assert_eq!(
            serde_json::to_string(&window).unwrap(),
            r#"{"days":["mon","sat"],"start":"22:00","end":"04:30","timezone":"Europe/Berlin"}"#
        );
        assert!(window.days.contains(0) && window.days.contains(5) && !window.days.contains(6));
        let daily = read(r#"{"start":"00:00","end":"00:00","timezone":"UTC"}"#).unwrap();
        assert_eq!(daily.to_string(), "daily 00:00-00:00 UTC");
        assert!(!serde_json::to_string(&daily).unwrap().contains("days"));
    }

    #[test]
    fn says_what_to_write_instead() {
        for (json, expected) in [
            (
                r#"{"start":"9:00","end":"10:00","timezone":"UTC"}"#,
                "`9:00` is no time of day",
            ),
            (
                r#"{"start":"09:00","end":"24:00","timezone":"UTC"}"#,
                "write one from 00:00 to 23:59",
            ),
            (
                r#"{"start":"09:00","end":"+9:00","timezone":"UTC"}"#,
                "`+9:00` is no time of day",
            ),
            (
                r#"{"start":"09:00","end":"10:00"}"#,
                "missing field `timezone`",
            ),
            (
                r#"{"start":"09:00","end":"10:00","timezone":"UTC","day":1}"#,
                "unknown field `day`",
            ),
            (
                r#"{"days":[],"start":"09:00","end":"10:00","timezone":"UTC"}"#,
                "leave `days` out for every day",
            ),
            (
                r#"{"days":["so"],"start":"09:00","end":"10:00","timezone":"UTC"}"#,
                "`so` is no day, write mon,",
            ),
        ] {
            let refused = read(json).unwrap_err();
            assert!(refused.contains(expected), "{json}: {refused}");
        }
    }

    #[test]
    fn zone_names_have_the_databases_form_and_are_no_paths() {
        for good in [
            "UTC",
            "Etc/GMT+5",
            "America/Argentina/Buenos_Aires",
            "America/Port-au-Prince",
            "EST5EDT",
        ] {
            assert!(good.parse::<ZoneName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "/UTC",
            "../etc/passwd",
            "Europe/",
            "Europe//Berlin",
            "+02:00",
            "Europe/Ber lin",
            &"A".repeat(65),
        ] {
            assert!(bad.parse::<ZoneName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_is_bounded() {
        let window = read(r#"{"start":"00:00","end":"00:00","timezone":"UTC"}"#).unwrap();
        let found = |count: usize| {
            let mut errors = Vec::new();
            check(
                &vec![window.clone(); count],
                &Pointer::default(),
                &mut errors,
            );
            errors.len()
        };
        assert_eq!((found(MAX_WINDOWS), found(MAX_WINDOWS + 1)), (0, 1));
    }
}
