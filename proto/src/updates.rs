//! Owns the update report: what a container runs beside what its registry offers now.

use serde::{Deserialize, Serialize};

use crate::image::Platform;

/// One container in an update report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateReport {
    /// The container's name.
    pub container_name: String,
    /// The engine's id of it.
    pub container_id: String,
    /// The image as the container names it.
    pub image_reference: String,
    /// The platform of the image that runs; null when the engine does not tell.
    pub platform: Option<Platform>,
    /// The digest that the running image was pulled by: an index's or a manifest's.
    pub running_digest: Option<String>,
    /// The digest that the reference names in the registry now.
    pub registry_digest: Option<String>,
    /// Whether the registry has another image for this platform; null when it cannot be known, and
    /// `error` says why then.
    pub has_update: Option<bool>,
    /// The tag that was asked for.
    pub tag: Option<String>,
    /// Whether the reference names an index of several platforms.
    pub is_manifest_list: Option<bool>,
    /// What the container does, in the engine's word.
    pub state: String,
    /// The finding in a word.
    pub status: UpdateFinding,
    /// Why it cannot be known.
    pub error: Option<String>,
}

/// What an update report found for one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum UpdateFinding {
    /// The registry's image for this platform is the one that runs.
    UpToDate,
    /// The registry has another one.
    UpdateAvailable,
    /// The reference names a digest: it can never mean anything else.
    Pinned,
    /// It cannot be known.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_camel_case_and_says_null_for_what_is_not_known() {
        let report = UpdateReport {
            container_name: "web".to_owned(),
            container_id: "c".to_owned(),
            image_reference: "web:1".to_owned(),
            platform: Some("linux/arm/v7".parse().unwrap()),
            running_digest: None,
            registry_digest: None,
            has_update: None,
            tag: Some("1".to_owned()),
            is_manifest_list: None,
            state: "running".to_owned(),
            status: UpdateFinding::Unknown,
            error: Some("built here".to_owned()),
        };
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({
                "containerName": "web", "containerId": "c", "imageReference": "web:1",
                "platform": { "os": "linux", "architecture": "arm", "variant": "v7" },
                "runningDigest": null, "registryDigest": null, "hasUpdate": null, "tag": "1",
                "isManifestList": null, "state": "running", "status": "unknown", "error": "built here"
            })
        );
    }
}
