//! Owns the update report: what a container runs beside what its registry offers now, for one device and,
//! each image told once, for a fleet.
//!
//! Refuses to contradict itself: a report is made from a [`Finding`], never member by member.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::DeviceId;
use crate::image::{Digest, Platform, Reference};

/// Containers that one entry of a fleet's report names: more are counted, and found by a device's own.
pub const MAX_LISTED: usize = 100;

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
    /// What the update would change, as far as the images say; absent without an update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Newer tags of the same kind, newest first. A tag is somebody's choice: they are no updates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<TagCandidate>,
}

/// What an update report found for one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

/// From which version of an image to which (`org.opencontainers.image.version`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Change {
    /// The version that runs, in the image's own words.
    pub from: Option<String>,
    /// The version that the registry has.
    pub to: Option<String>,
    /// Where the new version is described.
    pub release_url: Option<String>,
}

/// A newer tag of the same kind as the one that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TagCandidate {
    /// The tag.
    pub tag: String,
    /// Whether it is the newest of them.
    pub is_latest: bool,
    /// Where that version is described; null when the image does not say where it comes from.
    pub release_url: Option<String>,
    /// Whether it has an image for the platform; looked up for the first ten.
    pub platform_available: Availability,
}

/// Whether a tag has an image for a platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Availability {
    /// It has.
    Yes,
    /// It has not.
    No,
    /// Nobody asked, or there was no answer.
    #[default]
    Unknown,
}

/// A [`TagCandidate`] in the words of `GET /images/{id}/available-updates`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AvailableUpdate {
    /// The tag.
    pub tag: String,
    /// Whether it is the newest of them.
    pub is_latest: bool,
    /// Where that version is described; null when the image does not say where it comes from.
    pub release_url: Option<String>,
    /// Whether it has an image for the platform; looked up for the first ten.
    pub platform_available: Availability,
}

impl From<TagCandidate> for AvailableUpdate {
    fn from(candidate: TagCandidate) -> Self {
        Self {
            tag: candidate.tag,
            is_latest: candidate.is_latest,
            release_url: candidate.release_url,
            platform_available: candidate.platform_available,
        }
    }
}

/// The container that a report is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its name.
    pub container_name: String,
    /// The engine's id of it.
    pub container_id: String,
    /// The image as it was written.
    pub image_reference: String,
    /// What it does, in the engine's word.
    pub state: String,
    /// The platform of its image.
    pub platform: Option<Platform>,
    /// The digest that its image was pulled by.
    pub running: Option<Digest>,
}

/// What a reference names in the registry now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The digest of the index or the single manifest.
    pub digest: Digest,
    /// Whether it is an index.
    pub is_list: bool,
}

/// What was found out about one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The reference names a digest.
    Pinned,
    /// What runs was compared with this.
    Compared {
        /// What the registry has.
        offer: Offer,
        /// Whether it is another image for the platform.
        has_update: bool,
    },
    /// It cannot be known.
    Unknown {
        /// What the registry has, when it was asked.
        offer: Option<Offer>,
        /// Why, for people.
        error: String,
    },
}

impl UpdateReport {
    /// The report on one container, without candidates.
    pub fn new(subject: Subject, finding: Finding) -> Self {
        let reference: Option<Reference> = subject.image_reference.parse().ok();
        let (offer, has_update, error) = match finding {
            Finding::Pinned => (None, Some(false), None),
            Finding::Compared { offer, has_update } => (Some(offer), Some(has_update), None),
            Finding::Unknown { offer, error } => (offer, None, Some(error)),
        };
        let pinned = reference
            .as_ref()
            .and_then(|reference| reference.digest().copied());
        let status = match (has_update, pinned) {
            (None, _) => UpdateFinding::Unknown,
            (Some(true), _) => UpdateFinding::UpdateAvailable,
            (Some(false), Some(_)) => UpdateFinding::Pinned,
            (Some(false), None) => UpdateFinding::UpToDate,
        };
        let tag = reference.filter(|_| pinned.is_none());
        let registry = offer.map(|offer| offer.digest).or(pinned);
        Self {
            container_name: subject.container_name,
            container_id: subject.container_id,
            image_reference: subject.image_reference,
            platform: subject.platform,
            running_digest: pinned.or(subject.running).map(|digest| digest.to_string()),
            registry_digest: registry.map(|digest| digest.to_string()),
            has_update,
            tag: tag.map(|reference| reference.tag_or_latest().to_owned()),
            is_manifest_list: offer.map(|offer| offer.is_list),
            state: subject.state,
            status,
            error,
            change: None,
            candidates: Vec::new(),
        }
    }
}

/// One image of a fleet that runs somewhere, told once however many containers run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetUpdate {
    /// The image as the first of its containers names it.
    pub image_reference: String,
    /// The platform of the image that runs.
    pub platform: Option<Platform>,
    /// The digest that it was pulled by.
    pub running_digest: Option<String>,
    /// The digest that the reference names in the registry now.
    pub registry_digest: Option<String>,
    /// Whether the registry has another image for this platform; null when it cannot be known.
    pub has_update: Option<bool>,
    /// The tag that was asked for.
    pub tag: Option<String>,
    /// Whether the reference names an index of several platforms.
    pub is_manifest_list: Option<bool>,
    /// The finding in a word.
    pub status: UpdateFinding,
    /// Why it cannot be known.
    pub error: Option<String>,
    /// What the update would change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Newer tags of the same kind, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<TagCandidate>,
    /// Devices that run it.
    pub device_count: usize,
    /// Containers that run it.
    pub container_count: usize,
    /// The first hundred of them.
    pub containers: Vec<FleetContainer>,
}

/// One container of a [`FleetUpdate`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetContainer {
    /// The device.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
    pub device_uuid: DeviceId,
    /// The container's name.
    pub container_name: String,
    /// The engine's id of it.
    pub container_id: String,
    /// What it does, in the engine's word.
    pub state: String,
}

/// What makes two reports one: the same image, in the same place, with the same answer.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Sameness {
    image: String,
    platform: Option<Platform>,
    running: Option<String>,
    registry: Option<String>,
    status: UpdateFinding,
    error: Option<String>,
}

impl Sameness {
    fn of(report: &UpdateReport) -> Self {
        // `redis:7` and `docker.io/library/redis:7` are one image.
        let image = match report.image_reference.parse::<Reference>() {
            Ok(reference) => match reference.digest() {
                Some(digest) => reference.pinned(digest),
                None => format!("{}:{}", reference.repository(), reference.tag_or_latest()),
            },
            Err(_) => report.image_reference.clone(),
        };
        Self {
            image,
            platform: report.platform.clone(),
            running: report.running_digest.clone(),
            registry: report.registry_digest.clone(),
            status: report.status,
            error: report.error.clone(),
        }
    }
}

/// Joins the reports of many devices, each image told once; in the order of image names.
pub fn fleet(reports: impl IntoIterator<Item = (DeviceId, UpdateReport)>) -> Vec<FleetUpdate> {
    let mut found: BTreeMap<Sameness, (FleetUpdate, BTreeSet<DeviceId>)> = BTreeMap::new();
    for (device, report) in reports {
        let entry = found.entry(Sameness::of(&report));
        let container = FleetContainer {
            device_uuid: device,
            container_name: report.container_name,
            container_id: report.container_id,
            state: report.state,
        };
        let (update, devices) = entry.or_insert_with(|| {
            let update = FleetUpdate {
                image_reference: report.image_reference,
                platform: report.platform,
                running_digest: report.running_digest,
                registry_digest: report.registry_digest,
                has_update: report.has_update,
                tag: report.tag,
                is_manifest_list: report.is_manifest_list,
                status: report.status,
                error: report.error,
                change: report.change,
                candidates: report.candidates,
                device_count: 0,
                container_count: 0,
                containers: Vec::new(),
            };
            (update, BTreeSet::new())
        });
        update.container_count += 1;
        devices.insert(device);
        update.device_count = devices.len();
        if update.containers.len() < MAX_LISTED {
            update.containers.push(container);
        }
    }
    found.into_values().map(|(update, _)| update).collect()
}

#[cfg(test)]
#[path = "updates/tests.rs"]
mod tests;
