//! Owns what a reference resolved to, and the pin that a target carries for one device.

use serde::{Deserialize, Serialize};

use super::digest::{ConfigDigest, Digest, IndexDigest, ManifestDigest, TopDigest};
use super::platform::Platform;
use super::reference::{Reference, Repository};
use crate::time::Timestamp;

/// One platform's image behind a reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlatformImage {
    /// The platform, in normal form.
    pub platform: Platform,
    /// The platform's manifest.
    pub manifest_digest: ManifestDigest,
    /// The image configuration: the image ID on a classic Docker store.
    pub config_digest: ConfigDigest,
    /// Bytes to fetch: the configuration and all layers, compressed as the registry stores them.
    pub size_bytes: u64,
}

/// What a registry answered for one reference: the digest it names and the image of each platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Where it was found.
    pub repository: Repository,
    /// What the reference points at.
    pub top: TopDigest,
    /// Media type of the document with the top digest.
    pub media_type: String,
    /// The images, attestations left out, in the index's order.
    pub platforms: Vec<PlatformImage>,
}

impl ResolvedImage {
    /// The image that a device of this platform should run, if there is one.
    pub fn for_platform(&self, platform: &Platform) -> Option<&PlatformImage> {
        let offered: Vec<&Platform> = self.platforms.iter().map(|image| &image.platform).collect();
        platform
            .choose(&offered)
            .map(|position| &self.platforms[position])
    }
}

/// How the resolution of a reference stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ResolutionStatus {
    /// The registry named this digest when last asked.
    Resolved,
    /// The registry could not be asked; the digest known from before is kept.
    Stale,
    /// Never resolved: there is no digest, and a device will not run it.
    Failed,
}

/// When and how well a reference was resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resolution {
    /// How it stands.
    pub status: ResolutionStatus,
    /// When the registry was last asked.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub at: Timestamp,
    /// Why the last question had no answer, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Since when the digest could not be confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub stale_since: Option<Timestamp>,
}

/// What a device must find after the pull, for its own platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Expected {
    /// The platform's manifest.
    pub manifest_digest: ManifestDigest,
    /// The image configuration: decides whether two images are the same.
    pub config_digest: ConfigDigest,
    /// Bytes to fetch at most.
    pub size_bytes: u64,
}

/// A reference resolved to digests for one device's platform; the reference itself is never lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pin {
    /// What was written: rollouts and refreshes find services by it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub reference: Reference,
    /// Canonical registry of the reference.
    pub registry: String,
    /// Canonical path of the reference.
    pub repository: String,
    /// The index, or null when the reference names a single manifest or is unresolved.
    pub index_digest: Option<IndexDigest>,
    /// What the device's platform gets; null while unresolved.
    pub expected: Option<Expected>,
    /// The platform whose image was chosen; null while unresolved.
    pub platform: Option<Platform>,
    /// When the digests were learnt.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub resolved_at: Option<Timestamp>,
    /// How the resolution stands now.
    pub resolution: Resolution,
    /// Whether the device should ask for a login before it pulls: somebody has one for this registry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pull_login: bool,
}

impl Pin {
    /// The digest to pull by: the index where there is one, else the single manifest.
    pub fn pull_digest(&self) -> Option<&Digest> {
        match (&self.index_digest, &self.expected) {
            (Some(IndexDigest(digest)), _) => Some(digest),
            (None, Some(expected)) => Some(&expected.manifest_digest.0),
            (None, None) => None,
        }
    }

    /// Whether both pins name the same content, whenever and however well they were resolved.
    pub fn same_content(&self, other: &Self) -> bool {
        self.reference == other.reference
            && self.index_digest == other.index_digest
            && self.expected == other.expected
            && self.platform == other.platform
            && self.pull_login == other.pull_login
            && (self.resolution.status == ResolutionStatus::Failed)
                == (other.resolution.status == ResolutionStatus::Failed)
    }
}
