//! Owns the agent's settings: fragments (file, environment) → input → validated settings.
//!
//! Refuses unknown keys and wrong values, naming the key's path and what to write instead. The YAML
//! crate is named only here.

mod fragments;
mod input;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use holdfast_proto::window::{UpdateWindow, ZoneName};
use serde::Serialize;
use tracing::Level;

pub use fragments::Fragments;
use input::Input;

use crate::control::client::Origin;

/// Where the configuration is looked for when no other place is named.
pub const DEFAULT_PATH: &str = "/etc/holdfast/agent.yaml";

/// Where the agent keeps what must survive a restart when no other place is named.
const DEFAULT_STATE_DIR: &str = "/var/lib/holdfast";

/// Everything the agent can be told, checked.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// The control API.
    pub api: ApiSettings,
    /// Where the agent keeps what must survive a restart.
    pub state_dir: PathBuf,
    /// Where it keeps what must not survive one: a folder in memory.
    pub runtime_dir: PathBuf,
    /// Whether secrets may be written although the runtime folder is on a disk.
    pub secrets_on_disk: bool,
    /// The container engine.
    pub docker: DockerSettings,
    /// Asking for the target.
    pub poll: PollSettings,
    /// Telling the current state.
    pub report: ReportSettings,
    /// Judging new containers.
    pub gate: GateSettings,
    /// Fetching images.
    pub pull: PullSettings,
    /// Neighbours that have the same images.
    pub peers: PeerSettings,
    /// Room on the disk.
    pub disk: DiskSettings,
    /// When updates may begin.
    pub updates: UpdateSettings,
    /// Updates of the agent itself.
    pub update: AgentUpdateSettings,
    /// What programs on this device may ask of the agent.
    pub local_api: LocalApiSettings,
    /// The log.
    pub log: LogSettings,
    /// What this device allows.
    pub policy: PolicySettings,
    /// What an enrolment says of this device.
    pub device: DeviceSettings,
}

/// The control API.
#[derive(Clone, Debug, Serialize)]
pub struct ApiSettings {
    /// Its address; needed to enrol, afterwards the enrolment's own counts.
    pub url: Option<Origin>,
    /// A file of PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// The container engine.
#[derive(Clone, Debug, Serialize)]
pub struct DockerSettings {
    /// Its unix socket.
    pub socket: PathBuf,
}

/// Asking for the target.
#[derive(Clone, Debug, Serialize)]
pub struct PollSettings {
    /// Time between two questions; the server's wish when unset.
    pub interval_seconds: Option<u64>,
}

/// Telling the current state.
#[derive(Clone, Debug, Serialize)]
pub struct ReportSettings {
    /// Time between two reports when nothing changes.
    pub heartbeat_seconds: u64,
}

/// Judging new containers.
#[derive(Clone, Debug, Serialize)]
pub struct GateSettings {
    /// Without a health check: how long a container must run before it may stay.
    pub stable_seconds: u64,
    /// With one: how long it may take to become healthy.
    pub healthy_timeout_seconds: u64,
    /// With a health check: seconds it must then stay healthy.
    pub soak_seconds: u64,
}

/// Fetching images.
#[derive(Clone, Debug, Serialize)]
pub struct PullSettings {
    /// Who fetches images.
    pub fetch: FetchBy,
    /// A pull by the engine without any progress for this long is given up and tried again later.
    pub no_progress_seconds: u64,
    /// Megabytes that images on their way may take on the disk. The largest layer must fit.
    pub spool_mb: u64,
    /// Bytes in a second that the agent fetches at most; none is as fast as they come.
    pub most_bytes_per_second: Option<u64>,
    /// Megabytes in a day that the agent fetches at most; none is as many as it takes.
    pub most_mb_per_day: Option<u64>,
    /// Where a day begins; UTC without.
    pub timezone: Option<ZoneName>,
    /// When neither counts.
    pub free_windows: Vec<UpdateWindow>,
    /// A file in the form of docker's `config.json` with this device's own logins.
    pub credentials_file: Option<PathBuf>,
    /// What is special about registries, by the name that references use.
    pub registries: BTreeMap<String, RegistryEntry>,
}

/// What is special about a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RegistryEntry {
    /// HTTP instead of HTTPS.
    pub plain_http: bool,
    /// Certificates that may sign for it, beside those that this machine trusts.
    pub ca_file: Option<PathBuf>,
    /// Where its images may be read instead (`host[:port][/path]`), asked in this order.
    pub mirrors: Vec<String>,
}

/// Who fetches images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FetchBy {
    /// The agent, which gives them to the engine over loopback; the engine by itself where that cannot be.
    #[default]
    Agent,
    /// The engine.
    Engine,
}

/// Neighbours that have the same images.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PeerSettings {
    /// The file with the key that neighbours share.
    pub key_file: Option<PathBuf>,
    /// Where this agent gives them what it has.
    pub listen: Option<SocketAddr>,
    /// Whom it asks before a registry (`host:port`), in this order.
    pub ask: Vec<String>,
}

/// Room on the disk.
#[derive(Clone, Debug, Serialize)]
pub struct DiskSettings {
    /// Megabytes kept back in a file, given up when a commit or a way back needs them; 0 keeps none.
    pub reserve_mb: u64,
}

impl DiskSettings {
    /// The same in bytes.
    pub fn reserve_bytes(&self) -> u64 {
        self.reserve_mb.saturating_mul(1 << 20)
    }
}

/// When updates may begin.
#[derive(Clone, Debug, Serialize)]
pub struct UpdateSettings {
    /// Times of the week in which updates of this device may begin; always when there are none.
    pub windows: Vec<UpdateWindow>,
    /// The folder that services put their update locks in.
    pub lock_dir: PathBuf,
}

/// Updates of the agent itself.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AgentUpdateSettings {
    /// Minisign public keys, one of which must have signed a release.
    pub keys: Vec<String>,
}

/// What programs on this device may ask of the agent.
#[derive(Clone, Debug, Serialize)]
pub struct LocalApiSettings {
    /// The unix socket it listens on.
    pub socket: PathBuf,
}

/// The log.
#[derive(Clone, Debug, Serialize)]
pub struct LogSettings {
    /// Its form.
    pub format: LogFormat,
    /// The least important lines that are written.
    #[serde(serialize_with = "level_word")]
    pub level: Level,
}

/// The log's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What this device allows.
#[derive(Clone, Debug, Serialize)]
pub struct PolicySettings {
    /// The policy file; when unset, the default one, which may be missing.
    pub file: Option<PathBuf>,
}

/// What an enrolment says of this device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceSettings {
    /// Its name; the host's when unset.
    pub name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn level_word<S: serde::Serializer>(level: &Level, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&level.as_str().to_ascii_lowercase())
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no YAML.
    #[error("{} is not valid YAML: {detail}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        detail: String,
    },
    /// Keys are unknown or have values that cannot be used.
    #[error("{}", faults.join("\n"))]
    Keys {
        /// One line for each, beginning with the key's path.
        faults: Vec<String>,
    },
}

impl Settings {
    /// Reads the file and the environment's overrides, and checks them all.
    ///
    /// `named` says whether a person named this file: one that nobody named may be missing.
    pub fn load(
        path: &Path,
        named: bool,
        environment: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound && !named => String::new(),
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Self::parse(path, &text, environment)
    }

    /// The same, from the file's text.
    pub fn parse(
        path: &Path,
        text: &str,
        environment: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let merged = Fragments::file(path, text)?.with_environment(environment);
        let input: Input =
            serde_path_to_error::deserialize(merged.into_value()).map_err(|error| {
                let key = error.path().to_string();
                let fault = format!("{key}: {}", error.into_inner());
                ConfigError::Keys {
                    faults: vec![fault],
                }
            })?;
        input
            .validate()
            .map_err(|faults| ConfigError::Keys { faults })
    }

    /// The state folder alone, read as leniently as can be: the launcher may be older than the keys that a
    /// file has, and which program runs must not depend on them.
    pub fn state_dir(path: &Path, environment: &[(String, String)]) -> PathBuf {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let merged = Fragments::file(path, &text)
            .or_else(|_| Fragments::file(path, ""))
            .map(|fragments| fragments.with_environment(environment).into_value());
        let written = merged.ok().and_then(|value| {
            let folder = value.get("state_dir")?.as_str()?;
            Some(PathBuf::from(folder))
        });
        written.unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR))
    }

    /// The settings as a configuration file that gives the same settings.
    pub fn to_yaml(&self) -> String {
        // Settings are plain data with text keys, which YAML can always write.
        serde_yaml::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
