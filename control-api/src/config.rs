//! Owns the configuration: fragments become input, input becomes validated settings.
//!
//! The only file that names the YAML crate. A later fragment wins: first the file, then each
//! environment variable `HOLDFAST_API_…` (`__` goes one level down, as in
//! `HOLDFAST_API_LOG__LEVEL=debug`; lists and maps in YAML's flow style). Refuses unknown keys.

mod input;
mod install;
mod pushes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_domain::approval::{Internal, TargetRule};
use holdfast_domain::retention::Retention;
use holdfast_registry::Mirror;
use serde_yaml::{Mapping, Value};

use crate::secret::Secret;
use crate::store::Location;
use input::Input;
pub use install::is_url;

/// Prefix of environment variables that override the file.
pub const ENV_PREFIX: &str = "HOLDFAST_API_";
/// The variable that names the file itself, so not a key in it.
pub const ENV_CONFIG: &str = "HOLDFAST_API_CONFIG";

/// One thing wrong with the configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Dotted path of the key, such as `registries[0].host`; empty for the whole document.
    pub path: String,
    /// What is wrong and what to write instead.
    pub detail: String,
}

/// The configuration cannot be used; names every fault that was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(pub Vec<Fault>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used")?;
        for Fault { path, detail } in &self.0 {
            if path.is_empty() {
                write!(f, "\n  {detail}")?;
            } else {
                write!(f, "\n  {path}: {detail}")?;
            }
        }
        Ok(())
    }
}

impl ConfigError {
    fn one(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self(vec![Fault {
            path: path.into(),
            detail: detail.into(),
        }])
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// A level, or directives such as `info,holdfast_api=debug`.
    pub level: String,
}

/// How to talk to one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Host and port as in references.
    pub host: String,
    /// Plain HTTP instead of HTTPS.
    pub plain_http: bool,
    /// User name and password.
    pub credentials: Option<(String, Secret)>,
    /// Whether devices may be given them when the registry mints no tokens.
    pub hand_out: bool,
    /// Other hosts that may issue tokens for it.
    pub realm_hosts: Vec<String>,
    /// Hosts in private networks that it may redirect to.
    pub private_hosts: Vec<String>,
    /// Asked before it, in this order.
    pub mirrors: Vec<Mirror>,
    /// Certificates that may sign for it.
    pub ca_pem: Option<Vec<u8>>,
}

/// How notifications leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notifications {
    /// Hosts in private networks that channels may lead to, `host` or `host:port`; plain HTTP is for these alone.
    pub private_hosts: Vec<String>,
    /// Certificates that may sign for receivers.
    pub ca_pem: Option<Vec<u8>>,
    /// How long a receiver may take to answer.
    pub timeout: Duration,
}

impl Default for Notifications {
    /// Receivers that take longer do their work before they answer, which they should not.
    fn default() -> Self {
        Self {
            private_hosts: Vec::new(),
            ca_pem: None,
            timeout: Duration::from_secs(15),
        }
    }
}

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where files of our own live.
    pub data_dir: PathBuf,
    /// Where the store lives.
    pub location: Location,
    /// What is logged, and how.
    pub log: Log,
    /// Registries that need more than the defaults.
    pub registries: Vec<Registry>,
    /// Seconds between two polls of a device.
    pub poll_interval_s: u32,
    /// Seconds for which a registry's answer is used again.
    pub digest_cache_s: u32,
    /// How often references in targets are asked for again; none never does.
    pub refresh_interval: Option<Duration>,
    /// Where the key is that credentials in the store are encrypted with.
    pub credentials_key_file: PathBuf,
    /// What webhooks must bring; none refuses them all.
    pub webhook_secret: Option<Secret>,
    /// What pushes are judged by.
    pub pushes: PushRules,
    /// How long history is kept.
    pub retention: Retention,
    /// How notifications leave.
    pub notifications: Notifications,
    /// What machines install the agent from.
    pub install: Install,
}

/// What machines install the agent from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Install {
    /// How devices reach this server, without a slash at the end.
    pub public_url: Option<String>,
    /// The folder with a release's files; without one, machines ask the project's own page.
    pub releases: Option<PathBuf>,
    /// The public key that releases are signed with, as minisign writes it.
    pub key: Option<String>,
}

/// Who may tell of pushes, and what may run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushRules {
    /// How long the answer to a webhook waits for its outcome.
    pub answer_within: Duration,
    /// More secrets of webhooks by their names, so that one can be replaced while the other still works.
    pub secrets: BTreeMap<String, Secret>,
    /// Images that need nobody's approval.
    pub internal: Vec<Internal>,
    /// Whether two different people have to approve an image.
    pub two_person: bool,
    /// Whether targets that people set are judged, too.
    pub targets: TargetRule,
}

/// Reads the file, if there is one, and the environment, and checks the whole.
///
/// # Errors
/// Names every key that is wrong, by its path.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, ConfigError> {
    let mut document = match file {
        Some(path) => read(path)?,
        None => Value::Mapping(Mapping::new()),
    };
    for (name, text) in env {
        // `HOLDFAST_API__URL` is the agent's: both programs may run on one machine.
        if let Some(key) = name.strip_prefix(ENV_PREFIX)
            && name != ENV_CONFIG
            && !key.starts_with('_')
        {
            overlay(&mut document, &name, key, &text)?;
        }
    }
    let input: Input = serde_path_to_error::deserialize(document).map_err(|error| {
        let path = match error.path().to_string() {
            whole if whole == "." => String::new(),
            path => path,
        };
        ConfigError::one(path, error.into_inner().to_string())
    })?;
    input.validate()
}

fn read(path: &Path) -> Result<Value, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::one("", format!("cannot read {}: {error}", path.display()))
    })?;
    match serde_yaml::from_str(&text) {
        Ok(Value::Null) => Ok(Value::Mapping(Mapping::new())),
        Ok(value @ Value::Mapping(_)) => Ok(value),
        Ok(_) => Err(ConfigError::one(
            "",
            format!("{} must be a map of keys", path.display()),
        )),
        Err(error) => Err(ConfigError::one("", format!("{}: {error}", path.display()))),
    }
}

/// Sets one key from the environment, making the maps above it.
fn overlay(document: &mut Value, name: &str, key: &str, text: &str) -> Result<(), ConfigError> {
    let value = if text.starts_with(['[', '{']) {
        // The value may hold a password: the parser's message, which quotes it, stays out.
        serde_yaml::from_str(text)
            .map_err(|_| ConfigError::one(name, "must be a list or map in YAML's flow style"))?
    } else {
        Value::String(text.to_owned())
    };
    let segments: Vec<String> = key.split("__").map(str::to_lowercase).collect();
    let Some((last, above)) = segments.split_last() else {
        return Ok(());
    };
    let mut place = document;
    for segment in above {
        let Value::Mapping(map) = place else {
            return Err(ConfigError::one(
                name,
                "reaches into a key that is not a map",
            ));
        };
        place = map
            .entry(Value::String(segment.clone()))
            .or_insert_with(|| Value::Mapping(Mapping::new()));
    }
    match place {
        Value::Mapping(map) => {
            map.insert(Value::String(last.clone()), value);
            Ok(())
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Sequence(_)
        | Value::Tagged(_) => Err(ConfigError::one(
            name,
            "reaches into a key that is not a map",
        )),
    }
}

/// Hosts that occur twice.
fn repeated<'a>(hosts: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    hosts.filter(|host| !seen.insert(*host)).collect()
}

#[cfg(test)]
mod tests;
