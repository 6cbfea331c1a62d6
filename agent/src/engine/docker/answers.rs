//! Owns the shape of what an engine answers to a read, as far as it is used.
//!
//! Refuses words that it does not know, by name. What an engine leaves out or writes as null is none.

use std::collections::HashMap;

use serde::Deserialize;

/// One entry of the list of containers: who it is, the rest is looked at one by one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) id: Option<String>,
}

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) image: Option<String>,
    pub(super) image_manifest_descriptor: Option<Descriptor>,
    pub(super) restart_count: Option<i64>,
    pub(super) state: Option<State>,
    pub(super) host_config: Option<HostConfig>,
    pub(super) config: Option<ContainerConfig>,
    pub(super) network_settings: Option<NetworkSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    pub(super) status: Option<Status>,
    #[serde(rename = "OOMKilled")]
    pub(super) oom_killed: Option<bool>,
    pub(super) exit_code: Option<i64>,
    pub(super) error: Option<String>,
    pub(super) started_at: Option<String>,
    pub(super) health: Option<Health>,
}

/// What a container does.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    #[serde(rename = "")]
    Unsaid,
    Created,
    Running,
    Paused,
    Restarting,
    Removing,
    Exited,
    Dead,
    /// Podman's.
    Stopping,
}

impl Status {
    /// The engine's own word.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Unsaid => "",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
            Self::Stopping => "stopping",
        }
    }
}

/// What the engine's own health check says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Health {
    pub(super) status: Option<Verdict>,
    pub(super) log: Option<Vec<Checked>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    #[serde(rename = "")]
    Unsaid,
    None,
    Starting,
    Healthy,
    Unhealthy,
}

/// One run of a health check.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Checked {
    pub(super) exit_code: Option<i64>,
    pub(super) output: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostConfig {
    pub(super) memory: Option<i64>,
    pub(super) memory_reservation: Option<i64>,
    pub(super) nano_cpus: Option<i64>,
    pub(super) pids_limit: Option<i64>,
    pub(super) network_mode: Option<String>,
    pub(super) restart_policy: Option<Restart>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Restart {
    pub(super) name: Option<RestartName>,
    pub(super) maximum_retry_count: Option<i64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RestartName {
    #[serde(rename = "")]
    Unsaid,
    No,
    Always,
    UnlessStopped,
    OnFailure,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ContainerConfig {
    pub(super) image: Option<String>,
    pub(super) labels: Option<HashMap<String, String>>,
    pub(super) stop_timeout: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NetworkSettings {
    pub(super) ports: Option<Ports>,
    pub(super) networks: Option<HashMap<String, Endpoint>>,
}

/// By port and protocol; a port that is only exposed has no bindings.
pub(super) type Ports = HashMap<String, Option<Vec<Binding>>>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Binding {
    pub(super) host_port: Option<String>,
}

/// A container's place in a network.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Endpoint {
    pub(super) aliases: Option<Vec<String>>,
    #[serde(rename = "NetworkID")]
    pub(super) network_id: Option<String>,
    #[serde(rename = "IPAddress")]
    pub(super) ip_address: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    pub(super) global_ipv6_address: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Network {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) labels: Option<HashMap<String, String>>,
}

/// An image that was asked for by name.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Image {
    pub(super) id: Option<String>,
    pub(super) descriptor: Option<Descriptor>,
    pub(super) repo_digests: Option<Vec<String>>,
    pub(super) os: Option<String>,
    pub(super) architecture: Option<String>,
    pub(super) variant: Option<String>,
    pub(super) config: Option<ImageConfig>,
}

/// As the OCI image specification writes it: in small letters.
#[derive(Debug, Deserialize)]
pub(super) struct Descriptor {
    pub(super) digest: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ImageConfig {
    pub(super) labels: Option<HashMap<String, String>>,
}

/// One entry of the list of images.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StoredImage {
    pub(super) id: String,
    pub(super) repo_tags: Option<Vec<String>>,
    pub(super) repo_digests: Option<Vec<String>>,
    pub(super) size: i64,
}

/// What an engine says when it refuses.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    pub(super) message: String,
}
