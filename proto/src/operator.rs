//! Owns the documents of enrolment and of operators' calls. All but state documents are `snake_case`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::DeviceId;
use crate::image::Platform;
use crate::time::Timestamp;

/// What a device sends to become known (camelCase, like everything a device sends).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolRequest {
    /// Its id, if it has one from before; else the server makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<DeviceId>,
    /// What people call it; host name by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels by which operators choose devices.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What images it runs.
    pub platform: Platform,
    /// Version of its agent.
    pub agent_version: String,
}

/// The answer to an enrolment: the only time the token is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolResponse {
    /// The device's id.
    pub uuid: DeviceId,
    /// The device's bearer token.
    pub token: String,
    /// How often to poll.
    pub poll_interval_seconds: u64,
}

impl std::fmt::Debug for EnrolResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolResponse")
            .field("uuid", &self.uuid)
            .finish_non_exhaustive()
    }
}

/// Whether a device is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Presence {
    /// It polled or reported within its interval and some patience.
    Online,
    /// It did not.
    Offline,
    /// It enrolled and was never heard of again.
    NeverSeen,
}

/// One device in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceSummary {
    /// Its id.
    pub uuid: DeviceId,
    /// What people call it.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What images it runs.
    pub platform: Platform,
    /// Version of its agent.
    pub agent_version: String,
    /// Whether it is heard of.
    pub presence: Presence,
    /// When it last polled or reported.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub last_seen_at: Option<Timestamp>,
    /// When it enrolled.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub enrolled_at: Timestamp,
    /// Generation of its target.
    pub target_generation: u64,
    /// Generation it last reported, if it ever did.
    pub reported_generation: Option<u64>,
    /// The status it last reported, if it ever did.
    pub update_status: Option<crate::current::UpdateStatus>,
    /// Since when it is in quarantine: two machines report under its name, or an operator said so. It gets
    /// nothing, and nothing of it is taken, until it is enrolled again or released.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub quarantined_at: Option<Timestamp>,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// The items of this page.
    pub items: Vec<T>,
    /// What to send as `cursor` for the next page; null on the last.
    pub next_cursor: Option<String>,
}

/// What an operator's token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Role {
    /// Read.
    Viewer,
    /// Read, set targets, drive rollouts.
    Operator,
    /// Everything.
    Admin,
}
