//! Owns the structured parts of a service: health checks, dependencies, networks, limits, logging.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use super::values::{ByteSize, Cpus, Period, excerpt, map_or_list};
use crate::id::ServiceName;

/// When an engine starts a container again by itself (Compose spec, "restart").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Whenever it ends, and with the engine.
    Always,
    /// When it ends with an error, at most so many times if a number is given.
    OnFailure(Option<u32>),
    /// Whenever it ends, unless a person stopped it.
    UnlessStopped,
}

impl FromStr for RestartPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "`{}` is not no, always, on-failure[:N] or unless-stopped",
                excerpt(text)
            )
        };
        match text {
            "no" | "false" => Ok(Self::No),
            "always" => Ok(Self::Always),
            "unless-stopped" => Ok(Self::UnlessStopped),
            "on-failure" => Ok(Self::OnFailure(None)),
            other => match other.strip_prefix("on-failure:").map(str::parse) {
                Some(Ok(most)) => Ok(Self::OnFailure(Some(most))),
                Some(Err(_)) | None => Err(refuse()),
            },
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::Always => f.write_str("always"),
            Self::OnFailure(None) => f.write_str("on-failure"),
            Self::OnFailure(Some(most)) => write!(f, "on-failure:{most}"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

/// Whose network a container uses (Compose spec, "`network_mode`").
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// The engine's default bridge.
    Bridge,
    /// The device's own.
    Host,
    /// None but loopback.
    None,
    /// The one of another service of the same app.
    Service(ServiceName),
}

impl FromStr for NetworkMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bridge" => Ok(Self::Bridge),
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            other => match other.strip_prefix("service:") {
                Some(name) => name
                    .parse()
                    .map(Self::Service)
                    .map_err(|error| format!("{error}")),
                None => Err(format!(
                    "`{}` is not bridge, host, none or service:NAME",
                    excerpt(text)
                )),
            },
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge => f.write_str("bridge"),
            Self::Host => f.write_str("host"),
            Self::None => f.write_str("none"),
            Self::Service(name) => write!(f, "service:{name}"),
        }
    }
}

/// A device file given to a container, written `host[:container[:permissions]]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceMapping {
    /// The file on the device.
    pub host: String,
    /// The file in the container.
    pub container: String,
    /// Any of `r`, `w` and `m`.
    pub permissions: String,
}

impl FromStr for DeviceMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "`{}` is not host[:container[:rwm]] with absolute paths",
                excerpt(text)
            )
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (host, container, permissions) = match parts.as_slice() {
            [host] => (*host, *host, "rwm"),
            [host, container] => (*host, *container, "rwm"),
            [host, container, permissions] => (*host, *container, *permissions),
            _ => return Err(refuse()),
        };
        let paths = [host, container].iter().all(|path| path.starts_with('/'));
        let letters = !permissions.is_empty() && permissions.chars().all(|c| "rwm".contains(c));
        if !paths || !letters {
            return Err(refuse());
        }
        Ok(Self {
            host: host.to_owned(),
            container: container.to_owned(),
            permissions: permissions.to_owned(),
        })
    }
}

impl fmt::Display for DeviceMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.host, self.container, self.permissions)
    }
}

super::values::from_scalar!(RestartPolicy NetworkMode DeviceMapping);
super::values::to_text!(RestartPolicy NetworkMode DeviceMapping);

/// What a health check runs (Compose spec, "healthcheck").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthTest {
    /// Nothing: the image's own check is switched off.
    None,
    /// A program and its arguments.
    Exec(Vec<String>),
    /// A line for the container's shell.
    Shell(String),
}

impl HealthTest {
    /// The list form that Compose and the engine share: `NONE`, `CMD …` or `CMD-SHELL …`.
    pub fn to_list(&self) -> Vec<String> {
        match self {
            Self::None => vec!["NONE".to_owned()],
            Self::Exec(args) => std::iter::once("CMD".to_owned())
                .chain(args.iter().cloned())
                .collect(),
            Self::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
        }
    }
}

impl Serialize for HealthTest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_list().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for HealthTest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let refuse = || {
            de::Error::custom("expected text, or a list that begins with CMD, CMD-SHELL or NONE")
        };
        match Value::deserialize(deserializer)? {
            Value::String(line) => Ok(Self::Shell(line)),
            Value::Array(items) => {
                let words: Vec<&str> = items
                    .iter()
                    .map(Value::as_str)
                    .collect::<Option<_>>()
                    .ok_or_else(refuse)?;
                match words.as_slice() {
                    ["NONE"] => Ok(Self::None),
                    ["CMD-SHELL", line] => Ok(Self::Shell((*line).to_owned())),
                    ["CMD", args @ ..] if !args.is_empty() => {
                        Ok(Self::Exec(args.iter().map(ToString::to_string).collect()))
                    }
                    _ => Err(refuse()),
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(refuse()),
        }
    }
}

/// How the engine watches whether a container is healthy; unset parts come from the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Healthcheck {
    /// What is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<HealthTest>,
    /// Time between checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Period>,
    /// Time after which one check has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Period>,
    /// Failures in a row that make a container unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Time after the start in which failures do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period: Option<Period>,
    /// Time between checks during the start period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_interval: Option<Period>,
    /// Whether the image's own check is switched off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disable: bool,
}

/// What must be true of a service before one that depends on it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It was started.
    #[default]
    ServiceStarted,
    /// It is healthy.
    ServiceHealthy,
    /// It ended without an error.
    ServiceCompletedSuccessfully,
}

fn yes() -> bool {
    true
}

/// One dependency on another service of the app (Compose spec, "`depends_on`").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dependency {
    /// What must be true of it.
    #[serde(default)]
    pub condition: Condition,
    /// Whether this service restarts when it is replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart: bool,
    /// Whether this service may start without it.
    #[serde(default = "yes")]
    pub required: bool,
}

/// Reads a list of names or a map of name to dependency.
pub(super) fn depends_on<'de, D>(
    deserializer: D,
) -> Result<BTreeMap<ServiceName, Dependency>, D::Error>
where
    D: Deserializer<'de>,
{
    match Value::deserialize(deserializer)? {
        Value::Array(names) => names
            .into_iter()
            .map(|name| {
                let name = serde_json::from_value(name).map_err(de::Error::custom)?;
                let dependency = Dependency {
                    condition: Condition::ServiceStarted,
                    restart: false,
                    required: true,
                };
                Ok((name, dependency))
            })
            .collect(),
        other => serde_json::from_value(other).map_err(de::Error::custom),
    }
}

/// How a service is attached to one network of its app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkAttachment {
    /// More names that resolve to the service there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// A fixed IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<std::net::Ipv4Addr>,
    /// A fixed IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_address: Option<std::net::Ipv6Addr>,
}

/// Reads a list of names or a map of name to attachment; null means no options.
pub(super) fn networks<'de, D>(
    deserializer: D,
) -> Result<BTreeMap<ServiceName, NetworkAttachment>, D::Error>
where
    D: Deserializer<'de>,
{
    match Value::deserialize(deserializer)? {
        Value::Array(names) => names
            .into_iter()
            .map(|name| {
                let name = serde_json::from_value(name).map_err(de::Error::custom)?;
                Ok((name, NetworkAttachment::default()))
            })
            .collect(),
        other => {
            let map: BTreeMap<ServiceName, Option<NetworkAttachment>> =
                serde_json::from_value(other).map_err(de::Error::custom)?;
            Ok(map
                .into_iter()
                .map(|(name, attachment)| (name, attachment.unwrap_or_default()))
                .collect())
        }
    }
}

/// Where a container's output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    /// The engine's logging driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The driver's options.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "map_or_list"
    )]
    pub options: BTreeMap<String, String>,
}

/// One kernel limit; a single number sets both values. -1 means unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ulimit {
    /// The value in force.
    pub soft: i64,
    /// The most the container may raise it to.
    pub hard: i64,
}

impl<'de> Deserialize<'de> for Ulimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Both {
            soft: i64,
            hard: i64,
        }
        let limit = match Value::deserialize(deserializer)? {
            value @ Value::Object(_) => {
                let both: Both = serde_json::from_value(value).map_err(de::Error::custom)?;
                Self {
                    soft: both.soft,
                    hard: both.hard,
                }
            }
            other => {
                let both: i64 = serde_json::from_value(other).map_err(de::Error::custom)?;
                Self {
                    soft: both,
                    hard: both,
                }
            }
        };
        let in_order = limit.hard == -1 || (limit.soft <= limit.hard && limit.soft != -1);
        if limit.soft < -1 || limit.hard < -1 || !in_order {
            return Err(de::Error::custom(
                "soft must be at most hard, and neither below -1",
            ));
        }
        Ok(limit)
    }
}

/// Compose's second way to write resources; only limits and reservations of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// What the container may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// What a container may use and what is kept for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// The most it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
    /// What is kept for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservations: Option<ResourceAmounts>,
}

/// Amounts of processors, memory and processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceAmounts {
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
}
