//! Owns the hash that decides whether a container must be made anew, and entity tags.
//!
//! The hash is versioned and covers a fixed meaning: an upgraded agent that knows more fields computes
//! the same hash for a spec that does not use them, so an upgrade never restarts a container.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use crate::image::Digest;
use crate::spec::ServiceSpec;

/// Which rules a [`SpecHash`] was computed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashVersion {
    /// Canonical JSON of every field that makes the container; see [`NOT_IN_THE_CONTAINER`].
    V1,
}

/// Fields that do not change the container that is made: the image is compared by its digest, and
/// dependencies and extensions only order or annotate.
pub const NOT_IN_THE_CONTAINER: [&str; 2] = ["depends_on", "image"];

/// The hash of a service spec, written `v1:<64 hex digits>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecHash {
    version: HashVersion,
    digest: Digest,
}

impl SpecHash {
    /// The hash by the newest rules.
    pub fn of(spec: &ServiceSpec) -> Self {
        Self::by(HashVersion::V1, spec)
    }

    /// The hash by the rules of `version`: what to compare an existing container's label with.
    pub fn by(version: HashVersion, spec: &ServiceSpec) -> Self {
        match version {
            HashVersion::V1 => Self {
                version,
                digest: Digest::of(canonical(spec).as_bytes()),
            },
        }
    }

    /// The rules it was computed by.
    pub fn version(&self) -> HashVersion {
        self.version
    }

    /// Whether it is the hash of `spec`, by whichever rules it was computed.
    pub fn matches(&self, spec: &ServiceSpec) -> bool {
        *self == Self::by(self.version, spec)
    }
}

fn canonical(spec: &ServiceSpec) -> String {
    // Every field of a spec is plain data with text keys; serde_json can write all of these.
    let value = serde_json::to_value(spec).expect("a spec is plain data");
    let mut text = String::new();
    if let Value::Object(mut members) = value {
        members.retain(|name, _| {
            !NOT_IN_THE_CONTAINER.contains(&name.as_str()) && !name.starts_with("x-")
        });
        write_sorted(&Value::Object(members), &mut text);
    }
    text
}

/// Writes JSON without spaces and with sorted members, whatever order the map type keeps.
fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut names: Vec<_> = members.iter().collect();
            names.sort_unstable_by_key(|(name, _)| *name);
            out.push('{');
            for (position, (name, member)) in names.into_iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                // Writing to a String cannot fail.
                let _ = write!(out, "{}:", Value::String(name.clone()));
                write_sorted(member, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                write_sorted(item, out);
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = write!(out, "{value}");
        }
    }
}

impl fmt::Display for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            HashVersion::V1 => write!(f, "v1:{}", self.digest.hex()),
        }
    }
}

/// The text is not a spec hash of a version this program knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a spec hash of a known version")]
pub struct SpecHashError(String);

impl FromStr for SpecHash {
    type Err = SpecHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || SpecHashError(text.chars().take(80).collect());
        let hex = text.strip_prefix("v1:").ok_or_else(refuse)?;
        let digest = format!("sha256:{hex}").parse().map_err(|_| refuse())?;
        Ok(Self {
            version: HashVersion::V1,
            digest,
        })
    }
}

impl Serialize for SpecHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpecHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A strong entity tag of these exact bytes, with its quotes (RFC 9110, section 8.8.3).
pub fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", Digest::of(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(yaml: &str) -> String {
        SpecHash::of(&serde_yaml::from_str(yaml).unwrap()).to_string()
    }

    /// These never change: a changed line here restarts every container of every fleet.
    #[test]
    fn golden_hashes_of_version_1() {
        for (yaml, golden) in [
            (
                "{}",
                "v1:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            ),
            (
                "{ports: ['80:80'], restart: always}",
                "v1:20b791d08551acfaf01aab79bc0c39426c798bd47c9d5e144878684fb3d397b4",
            ),
            (
                "{command: 'a b', environment: {B: '2', A: 1}, mem_limit: 64m, cpus: 0.5, stop_grace_period: 90s, volumes: ['data:/d']}",
                "v1:8f94431687cc4334896159e8f23b662cd5aa443b1712061bf86ac5e365a0cb8a",
            ),
        ] {
            assert_eq!(hash(yaml), golden, "{yaml}");
        }
    }

    #[test]
    fn other_spellings_have_the_same_hash() {
        assert_eq!(
            hash("{environment: [A=1], ports: [{target: 80, published: 80}], command: [a, b]}"),
            hash("{command: a b, ports: ['80:80'], environment: {A: '1'}}"),
        );
        assert_eq!(
            hash("{stop_grace_period: 90s}"),
            hash("{stop_grace_period: 1m30s}")
        );
    }

    #[test]
    fn image_dependencies_and_extensions_do_not_count() {
        assert_eq!(
            hash("{image: 'a:1', depends_on: [db], x-note: 1}"),
            hash("{}")
        );
        assert_ne!(hash("{init: true}"), hash("{}"));
    }

    #[test]
    fn reads_what_it_writes_and_knows_its_spec() {
        let spec = ServiceSpec {
            read_only: true,
            ..ServiceSpec::default()
        };
        let hash: SpecHash = SpecHash::of(&spec).to_string().parse().unwrap();
        assert!(hash.matches(&spec));
        assert!(!hash.matches(&ServiceSpec::default()));
        assert!("v9:00".parse::<SpecHash>().is_err());
    }
}
