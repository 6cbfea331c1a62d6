//! Owns the small values that Compose writes in several ways: durations, sizes, command lines, maps.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

/// A Compose duration with millisecond precision, such as `1m30s` (Compose spec, "duration").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period {
    millis: u64,
}

impl Period {
    /// A period of `millis` milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self { millis }
    }

    /// Its length in milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.millis
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("`{}` is not a duration such as 10s or 1m30s", excerpt(text));
        let mut rest = text;
        let mut micros: f64 = 0.0;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .ok_or_else(refuse)?;
            let amount: f64 = rest[..digits].parse().map_err(|_| refuse())?;
            let unit = &rest[digits..];
            let (factor, used) = [
                ("us", 1.0),
                ("ms", 1_000.0),
                ("s", 1_000_000.0),
                ("m", 60_000_000.0),
                ("h", 3_600_000_000.0),
            ]
            .into_iter()
            .find_map(|(name, factor)| unit.starts_with(name).then_some((factor, name.len())))
            .ok_or_else(refuse)?;
            micros += amount * factor;
            rest = &unit[used..];
        }
        let millis = (micros / 1_000.0).ceil();
        // A year bounds what any period here can mean, and keeps the conversion exact.
        if text.is_empty() || !(0.0..=31_536_000_000.0).contains(&millis) {
            return Err(refuse());
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded above"
        )]
        Ok(Self {
            millis: millis as u64,
        })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.millis;
        for (name, factor) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if rest / factor > 0 {
                write!(f, "{}{name}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

/// A number of bytes; people write `512m`, documents carry the number (Compose spec, "byte values").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("`{}` is not a size such as 64m or 1gb", excerpt(text));
        let lower = text.to_ascii_lowercase();
        let digits = lower
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(lower.len());
        let factor: u64 = match &lower[digits..] {
            "" | "b" => 1,
            "k" | "kb" => 1 << 10,
            "m" | "mb" => 1 << 20,
            "g" | "gb" => 1 << 30,
            _ => return Err(refuse()),
        };
        let amount: u64 = lower[..digits].parse().map_err(|_| refuse())?;
        amount
            .checked_mul(factor)
            .filter(|bytes| i64::try_from(*bytes).is_ok())
            .map(Self)
            .ok_or_else(refuse)
    }
}

/// A share of processors in billionths; written `0.5` as a number or a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpus {
    nanos: u64,
}

impl Cpus {
    /// Billionths of a processor, as the engine counts them.
    pub const fn as_nanos(self) -> u64 {
        self.nanos
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "`{}` is not a number of processors such as 0.5",
                excerpt(text)
            )
        };
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let fits = |digits: &str, most: usize| {
            digits.len() <= most && digits.bytes().all(|b| b.is_ascii_digit())
        };
        if !fits(whole, 5) || !fits(part, 9) || (whole.is_empty() && part.is_empty()) {
            return Err(refuse());
        }
        // Both bounded above: at most 99999 * 10^9 + 10^9, far below u64::MAX.
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| refuse())?
        };
        let part: u64 = format!("{part:0<9}").parse().map_err(|_| refuse())?;
        Ok(Self {
            nanos: whole * 1_000_000_000 + part,
        })
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!(
            "{}.{:09}",
            self.nanos / 1_000_000_000,
            self.nanos % 1_000_000_000
        );
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// The arguments of a process. People may write one string; it is split as a shell splits words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CommandLine(pub Vec<String>);

pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Text of a scalar: Compose lets numbers and booleans stand where text is meant.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

macro_rules! from_scalar {
    ($($name:ident)*) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = serde_json::Value::deserialize(deserializer)?;
                let text = $crate::spec::values::scalar(&value)
                    .ok_or_else(|| serde::de::Error::custom("expected text or a number"))?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

macro_rules! to_text {
    ($($name:ident)*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

pub(super) use {from_scalar, to_text};
from_scalar!(Period ByteSize Cpus);
to_text!(Period Cpus);

impl<'de> Deserialize<'de> for CommandLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => shlex::split(&text)
                .map(Self)
                .ok_or_else(|| de::Error::custom("a quote in this command is never closed")),
            Value::Array(items) => items
                .iter()
                .map(|item| {
                    scalar(item).ok_or_else(|| de::Error::custom("expected a list of text"))
                })
                .collect::<Result<_, _>>()
                .map(Self),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(
                de::Error::custom("expected a command as text or a list of text"),
            ),
        }
    }
}

/// Reads a map, or a list of `NAME=value` (Compose spec: environment, labels, sysctls).
pub(super) fn map_or_list<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    let unset = |name: &str| {
        de::Error::custom(format!(
            "`{}` has no value: a device has no shell to take it from; write one",
            excerpt(name)
        ))
    };
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| match value {
                Value::Null => Err(unset(name)),
                value => scalar(value)
                    .map(|text| (name.clone(), text))
                    .ok_or_else(|| de::Error::custom(format!("`{}` must be text", excerpt(name)))),
            })
            .collect(),
        Value::Array(items) => {
            let mut map = BTreeMap::new();
            for item in &items {
                let text = item
                    .as_str()
                    .ok_or_else(|| de::Error::custom("expected a list of NAME=value"))?;
                let (name, value) = text.split_once('=').ok_or_else(|| unset(text))?;
                if map.insert(name.to_owned(), value.to_owned()).is_some() {
                    return Err(de::Error::custom(format!(
                        "`{}` is set twice",
                        excerpt(name)
                    )));
                }
            }
            Ok(map)
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err(de::Error::custom("expected a map or a list of NAME=value"))
        }
    }
}

/// Reads one text or a list of text.
pub(super) fn one_or_many<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    match Value::deserialize(deserializer)? {
        Value::Array(items) => items
            .iter()
            .map(|item| scalar(item).ok_or_else(|| de::Error::custom("expected a list of text")))
            .collect(),
        Value::Null => Ok(Vec::new()),
        value => scalar(&value)
            .map(|text| vec![text])
            .ok_or_else(|| de::Error::custom("expected text or a list of text")),
    }
}

/// Reads text that people often write as a number, such as a user id.
pub(super) fn text<'de, D>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    let value = Value::deserialize(deserializer)?;
    if value.is_null() {
        return Ok(None);
    }
    scalar(&value)
        .map(Some)
        .ok_or_else(|| de::Error::custom("expected text"))
}

/// Reads `host:address` or `host=address` lists, or a map of host to address.
pub(super) fn extra_hosts<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    let refuse = || de::Error::custom("expected host:address");
    let entry = |host: &str, address: &str| {
        let known = address == "host-gateway"
            || address
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok();
        if host.is_empty() || !known {
            return Err(refuse());
        }
        Ok(format!("{host}:{}", address.trim_matches(['[', ']'])))
    };
    match Value::deserialize(deserializer)? {
        Value::Array(items) => items
            .iter()
            .map(|item| {
                let (host, address) = item
                    .as_str()
                    .and_then(|text| text.split_once([':', '=']))
                    .ok_or_else(refuse)?;
                entry(host, address)
            })
            .collect(),
        Value::Object(members) => members
            .iter()
            .map(|(host, address)| entry(host, address.as_str().ok_or_else(refuse)?))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up_and_have_one_form() {
        for (written, canonical) in [
            ("10s", "10s"),
            ("1m30s", "1m30s"),
            ("90s", "1m30s"),
            ("1.5s", "1s500ms"),
            ("2h", "2h"),
            ("500us", "1ms"),
            ("0s", "0s"),
        ] {
            assert_eq!(written.parse::<Period>().unwrap().to_string(), canonical);
        }
        for bad in ["", "10", "s", "-1s", "1d", "1.2.3s", "99999999h"] {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_processors_are_exact() {
        assert_eq!("512m".parse::<ByteSize>().unwrap().0, 512 << 20);
        assert_eq!("1GB".parse::<ByteSize>().unwrap().0, 1 << 30);
        assert!("1.5g".parse::<ByteSize>().is_err());
        assert!("99999999999g".parse::<ByteSize>().is_err());
        assert_eq!("0.5".parse::<Cpus>().unwrap().as_nanos(), 500_000_000);
        assert_eq!("1.250".parse::<Cpus>().unwrap().to_string(), "1.25");
        assert_eq!(serde_json::from_str::<Cpus>("2").unwrap().to_string(), "2");
        assert!("-1".parse::<Cpus>().is_err());
    }

    #[test]
    fn commands_split_as_a_shell_splits() {
        let split: CommandLine = serde_json::from_str(r#""sh -c 'echo hi'""#).unwrap();
        assert_eq!(split.0, ["sh", "-c", "echo hi"]);
        assert!(serde_json::from_str::<CommandLine>(r#""sh 'open""#).is_err());
    }
}
