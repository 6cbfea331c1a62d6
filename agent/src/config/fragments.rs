//! Owns where settings come from: the file's tree, with the environment's values laid over it.

use std::path::Path;

use serde_yaml::{Mapping, Value};

use super::ConfigError;
use super::input::SECTIONS;

/// Variables with this prefix override keys: `HOLDFAST_API__URL` is `api.url`.
pub(super) const PREFIX: &str = "HOLDFAST_";
/// What stands between two parts of a key in a variable's name.
const NESTING: &str = "__";

/// A tree of keys that was not checked yet.
pub struct Fragments(Value);

impl Fragments {
    /// The file's keys; an empty file has none.
    pub fn file(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let value = serde_yaml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            detail: error.to_string(),
        })?;
        Ok(Self(match value {
            Value::Null => Value::Mapping(Mapping::new()),
            other => other,
        }))
    }

    /// Lays `HOLDFAST_…` variables over the keys, and `DOCKER_HOST` under them.
    ///
    /// A variable whose first part is no section is another program's and is left alone.
    #[must_use]
    pub fn with_environment(mut self, environment: &[(String, String)]) -> Self {
        if let Some((_, host)) = environment.iter().find(|(name, _)| name == "DOCKER_HOST") {
            let has_socket = self
                .0
                .get("docker")
                .and_then(|docker| docker.get("socket"))
                .is_some();
            if !has_socket && !host.is_empty() {
                put(
                    &mut self.0,
                    &["docker", "socket"],
                    Value::String(host.clone()),
                );
            }
        }
        for (name, text) in environment {
            let Some(rest) = name.strip_prefix(PREFIX) else {
                continue;
            };
            let key = rest.to_ascii_lowercase();
            let parts: Vec<&str> = key.split(NESTING).collect();
            if SECTIONS.contains(&parts[0]) {
                // A value is read as YAML so that numbers are numbers; what is no YAML is text.
                let value = serde_yaml::from_str(text).unwrap_or_else(|_| text.clone().into());
                put(&mut self.0, &parts, value);
            }
        }
        self
    }

    /// The tree.
    pub fn into_value(self) -> Value {
        self.0
    }
}

fn put(tree: &mut Value, path: &[&str], value: Value) {
    let Some((first, rest)) = path.split_first() else {
        *tree = value;
        return;
    };
    if !tree.is_mapping() {
        *tree = Value::Mapping(Mapping::new());
    }
    if let Value::Mapping(members) = tree {
        let entry = members
            .entry(Value::String((*first).to_owned()))
            .or_insert(Value::Null);
        put(entry, rest, value);
    }
}
