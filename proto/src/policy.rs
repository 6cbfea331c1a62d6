//! Owns update policies as people write them: which images, which devices, how fast, and when to stop.
//!
//! Refuses unknown members. Whether what is written can be carried out is judged by the control API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::window::UpdateWindow;

/// How a new version of an image reaches devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum UpdateStrategy {
    /// All devices at once.
    Immediate,
    /// Batch after batch.
    #[default]
    Staged,
    /// A few chosen devices first, then batch after batch.
    Canary,
    /// Batch after batch, in windows only.
    Scheduled,
    /// Batch after batch, when somebody starts it.
    Manual,
}

/// What happens to devices that are offline when their batch opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OfflineDevices {
    /// The batch waits for them until `health_timeout_minutes`.
    #[default]
    Wait,
    /// They are left out, and get the version when they come back and the rollout succeeded.
    Skip,
}

/// Devices that go before the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StageInput {
    /// Labels that they have; any device without.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// How many of them; all without this and `percent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// How many of a hundred devices of the rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
}

/// At most so many devices of a group are unavailable at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BudgetInput {
    /// Devices with the same value of this label are a group.
    pub label: String,
    /// How many of a group, 1 or more.
    pub most: u32,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyInput {
    /// Its name, for people.
    pub name: String,
    /// Images that it is for, such as `redis:*`: `*` is any characters, `?` one.
    pub image_pattern: String,
    /// How the version travels.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
    /// Only devices with these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// Only devices of this fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<String>,
    /// Devices that go before the others, one batch each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageInput>,
    /// Devices in each batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// Of a hundred devices, how many are in each batch; 10 without this and `batch_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_percent: Option<u8>,
    /// For so many minutes a device stays healthy before it counts.
    #[serde(default = "defaults::soak")]
    pub batch_delay_minutes: u32,
    /// More failures than so many of a hundred devices of a batch stop the rollout.
    #[serde(default = "defaults::failure_rate")]
    pub max_failure_rate: u8,
    /// Fewer failures than this stop nothing, unless the batch is smaller.
    #[serde(default = "defaults::min_failures")]
    pub min_failures: u32,
    /// Of a hundred devices of a batch, how many must be verified before the next one.
    #[serde(default = "defaults::success")]
    pub min_success: u8,
    /// A device that is not healthy after so many minutes failed, or is lost.
    #[serde(default = "defaults::health_timeout")]
    pub health_timeout_minutes: u32,
    /// Whether devices go back when the rollout is stopped by failures; else people decide.
    #[serde(default = "defaults::yes")]
    pub auto_rollback: bool,
    /// Whether somebody has to approve each batch after the first.
    #[serde(default)]
    pub approve_batches: bool,
    /// Devices that are offline.
    #[serde(default)]
    pub offline_devices: OfflineDevices,
    /// How many devices may be unavailable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption_budget: Option<BudgetInput>,
    /// When devices may be touched; at any time without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<UpdateWindow>,
    /// Whether the policy counts at all.
    #[serde(default = "defaults::yes")]
    pub enabled: bool,
    /// Of policies that say equally much of an image, the greatest counts.
    #[serde(default)]
    pub priority: i32,
}

mod defaults {
    pub(super) fn yes() -> bool {
        true
    }

    pub(super) fn soak() -> u32 {
        5
    }

    pub(super) fn failure_rate() -> u8 {
        10
    }

    pub(super) fn min_failures() -> u32 {
        2
    }

    pub(super) fn success() -> u8 {
        90
    }

    pub(super) fn health_timeout() -> u32 {
        30
    }
}
