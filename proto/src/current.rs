//! Owns the current state: what a device reports of itself. Readers ignore fields they do not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{AppId, ServiceName};
use crate::image::{ConfigDigest, Platform};
use crate::time::Timestamp;

/// How far a device is with its target, as it sees it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum UpdateStatus {
    /// Everything of the target runs and passed its gate.
    Converged,
    /// Steps are being run.
    Applying,
    /// Something of the target is held; the holds say why.
    Holding,
    /// The container engine does not answer.
    EngineUnreachable,
    /// No target was ever received.
    NoTarget,
}

/// A device's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CurrentState {
    /// Counts the device's reports; a smaller number than the last one seen is an old report.
    pub sequence: u64,
    /// Names the journal that the number was counted in: an agent that lost its journal starts
    /// another one, and numbers of two journals are not compared.
    #[serde(default)]
    pub journal: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Generation of the target that this report is about; 0 before the first.
    pub generation: u64,
    /// Entity tag of that target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_etag: Option<String>,
    /// How far the device is.
    pub status: UpdateStatus,
    /// Services by app and name, as the engine runs them.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::HashMap<String, AppReport>))]
    pub apps: BTreeMap<AppId, AppReport>,
    /// The next steps, each as one sentence.
    #[serde(default)]
    pub steps: Vec<String>,
    /// What is not done and why.
    #[serde(default)]
    pub holds: Vec<HoldReport>,
    /// Images on their way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pulls: Vec<PullReport>,
    /// The machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemReport>,
    /// The container engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineReport>,
}

/// One app in a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppReport {
    /// Its services, by name.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::HashMap<String, ServiceReport>))]
    pub services: BTreeMap<ServiceName, ServiceReport>,
}

/// One service in a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceReport {
    /// The container that serves, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    /// The image it was made from, pinned by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The configuration digest of that image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<ConfigDigest>,
    /// Generation that made the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The engine's word: `running`, `exited`, `created`, `restarting`, `paused`, `missing` …
    pub state: String,
    /// `starting`, `healthy` or `unhealthy`; absent without a health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// How often the engine restarted it.
    #[serde(default)]
    pub restart_count: u64,
    /// Whether it passed its health gate.
    #[serde(default)]
    pub verified: bool,
    /// Whether the images of every way back are on the device; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_ready: Option<bool>,
    /// The spec that failed here and is not tried again until the target changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<RejectedReport>,
}

/// A spec that failed its gate on this device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RejectedReport {
    /// The rejected image, pinned by digest.
    pub image: String,
    /// Why, in words.
    pub reason: String,
    /// When.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub at: Timestamp,
}

/// One thing that a device does not do, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HoldReport {
    /// Stable name of the reason, such as `rejected` or `unsupported_platform`.
    pub code: String,
    /// The service, `app/name`, when one is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The reason in words.
    pub detail: String,
}

/// How far an image on its way is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PullReport {
    /// The repository.
    pub image: String,
    /// Bytes of it that are on the device already, compressed.
    pub fetched_bytes: u64,
    /// Bytes in all, if the engine has none of its layers yet.
    pub most_bytes: u64,
    /// How fast they come, over the whole pull; none in its first seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// When all of them would be there at this speed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

/// The machine's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SystemReport {
    /// Its platform, as images name it.
    pub platform: Platform,
    /// Share of all processors in use, 0 to 100.
    pub cpu_percent: f32,
    /// Memory in use.
    pub memory_used_bytes: u64,
    /// Memory in all.
    pub memory_total_bytes: u64,
    /// Free space where the engine keeps images.
    pub disk_free_bytes: u64,
    /// Size of that file system.
    pub disk_total_bytes: u64,
    /// Seconds since the machine started.
    pub uptime_seconds: u64,
    /// Names this start of the machine: two machines under one name are told apart by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
}

/// The container engine's own account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EngineReport {
    /// Its version.
    pub version: String,
    /// The API version agreed on.
    pub api_version: String,
    /// `classic` or `containerd`: how it keeps images, and so what an image ID means.
    pub image_store: String,
}
