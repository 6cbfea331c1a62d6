//! Owns the service spec: Compose's service fields, parsed into types and checked.
//!
//! Refuses every field it does not know, by name: nothing a person wrote is silently dropped.

mod check;
mod mount;
mod options;
mod parts;
mod port;
mod probe;
mod values;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use check::FIELDS;
pub use mount::{BindOptions, FileGrant, Mount, MountKind, TmpfsOptions, VolumeOptions};
pub use options::{Strategy, UpdateOptions};
pub use parts::{
    Condition, Dependency, Deploy, DeviceMapping, HealthTest, Healthcheck, Logging,
    NetworkAttachment, NetworkMode, ResourceAmounts, Resources, RestartPolicy, Ulimit,
};
pub use port::{Port, Protocol};
pub use probe::{HttpProbe, Probe, ProbeAction, TcpProbe};
pub use values::{ByteSize, CommandLine, Cpus, Period};

use crate::id::ServiceName;
use crate::window::UpdateWindow;

/// Prefix of the labels that Holdfast itself puts on containers; services cannot set these.
pub const LABEL_PREFIX: &str = "io.holdfast.";

/// How a service's container is made: the fields of the Compose specification, in its names.
///
/// Every field may be absent. Fields read short and long forms and are written back in one canonical
/// form, so that equal meaning gives equal text and an equal [`crate::hash::SpecHash`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceSpec {
    /// The image's reference; the same as the service's `imageName` where both are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Arguments that replace the image's command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandLine>,
    /// Program that replaces the image's entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<CommandLine>,
    /// Environment variables.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "values::map_or_list"
    )]
    pub environment: BTreeMap<String, String>,
    /// Ports the device publishes.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "port::ports"
    )]
    pub ports: Vec<Port>,
    /// Volumes and device paths mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Mount>,
    /// Paths on memory file systems, `path[:options]`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "values::one_or_many"
    )]
    pub tmpfs: Vec<String>,
    /// Networks of the app the service joins.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "parts::networks"
    )]
    pub networks: BTreeMap<ServiceName, NetworkAttachment>,
    /// Whose network the container uses instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<NetworkMode>,
    /// When the engine starts the container again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// How the engine watches its health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Services that come first.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "parts::depends_on"
    )]
    pub depends_on: BTreeMap<ServiceName, Dependency>,
    /// Device files given to the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceMapping>,
    /// Whether the container has all rights on the device.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// Capabilities added.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// User (and group) of the process.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "values::text"
    )]
    pub user: Option<String>,
    /// Folder the process starts in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Host name inside the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// More lines of /etc/hosts, `host:address`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "values::extra_hosts"
    )]
    pub extra_hosts: Vec<String>,
    /// DNS servers.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "addresses")]
    pub dns: Vec<IpAddr>,
    /// Labels on the container.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "values::map_or_list"
    )]
    pub labels: BTreeMap<String, String>,
    /// Where output goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// Kernel limits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Kernel parameters of the container.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "values::map_or_list"
    )]
    pub sysctls: BTreeMap<String, String>,
    /// Security options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// Whether the root file system is read only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether an init process runs as process 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Signal that asks the process to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Time between that signal and SIGKILL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_grace_period: Option<Period>,
    /// Most memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_limit: Option<ByteSize>,
    /// Most processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Most processes; -1 means unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<i64>,
    /// Resources in Compose's `deploy` form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deploy: Option<Deploy>,
    /// Size of /dev/shm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// More groups of the process.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "values::one_or_many"
    )]
    pub group_add: Vec<String>,
    /// User namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userns_mode: Option<String>,
    /// Process namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<String>,
    /// IPC namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipc: Option<String>,
    /// The engine's runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Secrets given as files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<FileGrant>,
    /// Configuration given as files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub configs: Vec<FileGrant>,
    /// How the service is updated on a device.
    #[serde(rename = "x-holdfast", skip_serializing_if = "Option::is_none")]
    pub holdfast: Option<UpdateOptions>,
    /// Other extensions (`x-…`), carried along and not interpreted; any other name here is an unknown field.
    #[serde(flatten)]
    pub extensions: BTreeMap<String, serde_json::Value>,
}

impl ServiceSpec {
    /// The restart policy that is meant: without one, `always`.
    ///
    /// Compose's own default is `no`; a fleet's device must come back after a power cut, and
    /// `unless-stopped` does not after the engine was killed (measured: an engine killed with SIGKILL leaves it down).
    pub fn restart_policy(&self) -> RestartPolicy {
        self.restart.unwrap_or(RestartPolicy::Always)
    }

    /// Whether the image is a release of the agent itself, and no container is made of it.
    pub fn is_agent(&self) -> bool {
        self.holdfast.as_ref().is_some_and(|options| options.agent)
    }

    /// In which order old and new stop and start.
    pub fn strategy(&self) -> Strategy {
        let options = self.holdfast.as_ref();
        options
            .and_then(|options| options.strategy)
            .unwrap_or_default()
    }

    /// When updates may begin, beside the device's own windows.
    pub fn windows(&self) -> &[UpdateWindow] {
        let options = self.holdfast.as_ref();
        options.map_or(&[], |options| options.windows.as_slice())
    }

    /// Services with a higher number are updated first.
    pub fn priority(&self) -> i32 {
        let options = self.holdfast.as_ref();
        options.and_then(|options| options.priority).unwrap_or(0)
    }
}

fn addresses<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    values::one_or_many(deserializer)?
        .iter()
        .map(|text| {
            text.parse().map_err(|_| {
                serde::de::Error::custom(format!(
                    "`{}` is not an IP address",
                    values::excerpt(text)
                ))
            })
        })
        .collect()
}

#[cfg(test)]
#[path = "spec/tests.rs"]
mod tests;
