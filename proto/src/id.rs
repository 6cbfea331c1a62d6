//! Owns the identifiers of devices, apps and services; refuses forms that could not be a path segment or label.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not the identifier it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not the 36-character form of RFC 9562.
    #[error("`{0}` is not a UUID")]
    Uuid(String),
    /// Empty, too long, or with a character outside letters, digits, `_`, `.` and `-`.
    #[error("`{0}` must be 1 to 64 letters, digits, `_`, `.` or `-`, the first a letter or digit")]
    Name(String),
}

/// The longest identifier or name: it must fit a DNS label, a container name part and an index.
pub const MAX_ID_CHARS: usize = 64;

fn excerpt(text: &str) -> String {
    text.chars().take(MAX_ID_CHARS).collect()
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_ID_CHARS
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// One machine with one agent: a UUID (RFC 9562) in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(uuid::Uuid);

impl DeviceId {
    /// Takes 16 random bytes (the caller's randomness) and makes a version 4 UUID of them.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// The first eight hex digits: short enough for a name, long enough to tell devices apart.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl FromStr for DeviceId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `Uuid::parse_str` also takes braces, URNs and bare hex; one device must have one spelling.
        if text.len() != 36 {
            return Err(IdError::Uuid(excerpt(text)));
        }
        uuid::Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| IdError::Uuid(excerpt(text)))
    }
}

impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// An identifier that people write as a number or as a string; the written form is kept.
///
/// Equality and order go by the text, so `1` and `"1"` are the same identifier.
#[derive(Clone, Debug)]
struct LooseId {
    text: String,
    number: bool,
}

impl LooseId {
    fn parse(text: &str) -> Result<Self, IdError> {
        if is_name(text) {
            Ok(Self {
                text: text.to_owned(),
                number: false,
            })
        } else {
            Err(IdError::Name(excerpt(text)))
        }
    }
}

struct LooseVisitor;

impl de::Visitor<'_> for LooseVisitor {
    type Value = LooseId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number or a string")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<LooseId, E> {
        Ok(LooseId {
            text: value.to_string(),
            number: true,
        })
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<LooseId, E> {
        u64::try_from(value)
            .map_err(|_| E::custom("an id cannot be negative"))
            .and_then(|value| self.visit_u64(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<LooseId, E> {
        LooseId::parse(value).map_err(E::custom)
    }
}

macro_rules! loose_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(LooseId);

        impl $name {
            /// The identifier as text, whichever way it was written.
            pub fn as_str(&self) -> &str {
                &self.0.text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0.text)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                LooseId::parse(text).map(Self)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.text == other.0.text
            }
        }

        impl Eq for $name {}

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.0.text.cmp(&other.0.text)
            }
        }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.text.hash(state);
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self.0.text.parse::<u64>() {
                    Ok(number) if self.0.number => serializer.serialize_u64(number),
                    Ok(_) | Err(_) => serializer.serialize_str(&self.0.text),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(LooseVisitor).map(Self)
            }
        }
    };
}

loose_id! {
    /// An app of a device: a named set of services.
    AppId
}

loose_id! {
    /// A service's identifier as the operator numbers it; unique inside its app.
    ServiceId
}

/// The name of a service in its app, as Compose uses it: also the service's network alias.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ServiceName(String);

impl ServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Name(excerpt(text)))
        }
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// One service on one device: the app it belongs to and its name there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The app.
    pub app: AppId,
    /// The service's name inside the app.
    pub service: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.service)
    }
}

#[cfg(feature = "openapi")]
mod openapi {
    use utoipa::openapi::RefOr;
    use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, Type};
    use utoipa::{PartialSchema, ToSchema};

    use super::{AppId, DeviceId, ServiceId, ServiceName};

    fn text() -> ObjectBuilder {
        ObjectBuilder::new().schema_type(Type::String)
    }

    impl PartialSchema for DeviceId {
        fn schema() -> RefOr<Schema> {
            text()
                .format(Some(SchemaFormat::Custom("uuid".to_owned())))
                .into()
        }
    }
    impl ToSchema for DeviceId {}

    impl PartialSchema for ServiceName {
        fn schema() -> RefOr<Schema> {
            text()
                .min_length(Some(1))
                .max_length(Some(super::MAX_ID_CHARS))
                .into()
        }
    }
    impl ToSchema for ServiceName {}

    fn number_or_text() -> RefOr<Schema> {
        OneOfBuilder::new()
            .item(
                ObjectBuilder::new()
                    .schema_type(Type::Integer)
                    .minimum(Some(0)),
            )
            .item(
                text()
                    .min_length(Some(1))
                    .max_length(Some(super::MAX_ID_CHARS)),
            )
            .into()
    }

    impl PartialSchema for AppId {
        fn schema() -> RefOr<Schema> {
            number_or_text()
        }
    }
    impl ToSchema for AppId {}

    impl PartialSchema for ServiceId {
        fn schema() -> RefOr<Schema> {
            number_or_text()
        }
    }
    impl ToSchema for ServiceId {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_written_form_of_an_id_and_compares_by_text() {
        let number: AppId = serde_json::from_str("1001").unwrap();
        let text: AppId = serde_json::from_str("\"1001\"").unwrap();
        assert_eq!(number, text);
        assert_eq!(serde_json::to_string(&number).unwrap(), "1001");
        assert_eq!(serde_json::to_string(&text).unwrap(), "\"1001\"");
    }

    #[test]
    fn reads_ids_as_map_keys() {
        let map: std::collections::BTreeMap<AppId, u8> =
            serde_json::from_str(r#"{"1001":1,"web":2}"#).unwrap();
        assert_eq!(
            map.keys().map(AppId::as_str).collect::<Vec<_>>(),
            ["1001", "web"]
        );
        assert_eq!(
            serde_json::to_string(&map).unwrap(),
            r#"{"1001":1,"web":2}"#
        );
    }

    #[test]
    fn refuses_names_that_could_escape_a_path_or_a_label() {
        for bad in ["", "../x", "a b", "-a", "a/b", "ü", &"x".repeat(65)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
            assert!(bad.parse::<AppId>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<AppId>("-1").is_err());
        assert!(serde_json::from_str::<AppId>("1.5").is_err());
    }

    #[test]
    fn a_device_id_has_one_spelling() {
        let id: DeviceId = "67E55044-10B1-426F-9247-BB680E5FE0C8".parse().unwrap();
        assert_eq!(id.to_string(), "67e55044-10b1-426f-9247-bb680e5fe0c8");
        assert_eq!(id.short(), "67e55044");
        assert!(
            "67e5504410b1426f9247bb680e5fe0c8"
                .parse::<DeviceId>()
                .is_err()
        );
        assert!(
            "{67e55044-10b1-426f-9247-bb680e5fe0c8}"
                .parse::<DeviceId>()
                .is_err()
        );
    }
}
