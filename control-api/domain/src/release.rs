//! Owns what a release is: a target whose references were resolved once, for every device of its fleet.
//!
//! Refuses a release that some device of the fleet could not run. What a tag means later is not asked: a device
//! that joins in a year gets the very same digests.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::id::AppId;
use holdfast_proto::image::{
    Digest, IndexDigest, ManifestDigest, Platform, PlatformImage, Reference, ResolvedImage,
    TopDigest,
};
use holdfast_proto::problem::FieldError;
use holdfast_proto::target::{App, TargetInput};
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::resolution::{Key, Known};
use crate::target::{self, KnownImages, Rendered};

/// What one reference meant when the release was made: every platform behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Canonical registry.
    pub registry: String,
    /// Canonical path.
    pub repository: String,
    /// The tag or digest that was written.
    pub selector: String,
    /// What it named: an index's digest, or a single manifest's.
    pub digest: Digest,
    /// Which of the two.
    pub is_index: bool,
    /// Media type of the document with that digest.
    pub media_type: String,
    /// The image of each platform.
    pub platforms: Vec<PlatformImage>,
    /// When a registry said so.
    pub resolved_at: Option<Timestamp>,
}

/// What all references of a release meant, each once, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pins(pub Vec<Frozen>);

/// Why there is no such release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// These services have nothing for a platform of the fleet.
    Unsupported(Vec<FieldError>),
    /// What these services name was never resolved.
    Unresolved(Vec<FieldError>),
}

impl Frozen {
    fn of(key: Key, known: &Known) -> Option<Self> {
        let image = known.image.as_ref()?;
        Some(Self {
            registry: key.registry,
            repository: key.repository,
            selector: key.selector,
            digest: *image.top.digest(),
            is_index: image.top.index().is_some(),
            media_type: image.media_type.clone(),
            platforms: image.platforms.clone(),
            resolved_at: known.resolved_at,
        })
    }

    /// Which image it is.
    pub fn key(&self) -> Key {
        Key {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            selector: self.selector.clone(),
        }
    }

    fn thaw(&self, at: Timestamp) -> Option<Known> {
        let reference: Reference = format!("{}/{}", self.registry, self.repository)
            .parse()
            .ok()?;
        let top = if self.is_index {
            TopDigest::Index(IndexDigest(self.digest))
        } else {
            TopDigest::Manifest(ManifestDigest(self.digest))
        };
        Some(Known {
            image: Some(ResolvedImage {
                repository: reference.repository().clone(),
                top,
                media_type: self.media_type.clone(),
                platforms: self.platforms.clone(),
            }),
            resolved_at: self.resolved_at,
            asked_at: at,
            error: None,
            error_code: None,
            stale_since: None,
        })
    }
}

impl Pins {
    /// Whether the same references mean the same, whenever that was found out.
    pub fn same(&self, other: &Self) -> bool {
        let what = |pins: &Self| -> Vec<(Key, Digest)> {
            pins.0.iter().map(|one| (one.key(), one.digest)).collect()
        };
        what(self) == what(other)
    }

    /// What is known of the images by this release alone, as of `at`.
    fn known(&self, at: Timestamp) -> KnownImages {
        let pins = self.0.iter();
        pins.filter_map(|one| Some((one.key(), one.thaw(at)?)))
            .collect()
    }

    /// The release for a device of this platform; the same bytes whenever it is asked for.
    ///
    /// `made_at` is when the release was made.
    pub fn render(&self, input: &TargetInput, platform: &Platform, made_at: Timestamp) -> Rendered {
        target::render(input, platform, &self.known(made_at), made_at)
    }

    /// The release for no device in particular: images by what their references named. For comparing.
    pub fn outline(&self, input: &TargetInput, made_at: Timestamp) -> BTreeMap<AppId, App> {
        let mut apps = self.render(input, &anybody(), made_at).apps;
        let digests: BTreeMap<Key, Digest> =
            self.0.iter().map(|one| (one.key(), one.digest)).collect();
        for service in apps.values_mut().flat_map(|app| &mut app.services) {
            let Some(pin) = service.pin.take() else {
                continue;
            };
            if let Some(digest) = digests.get(&Key::of(&pin.reference)) {
                service.image_name = pin.reference.pinned(digest);
                service.config.image = Some(service.image_name.clone());
            }
        }
        apps
    }

    /// Whether every platform of a fleet finds its images in this release.
    ///
    /// # Errors
    /// Which services do not fit, and why.
    pub fn fits(
        &self,
        input: &TargetInput,
        platforms: &BTreeSet<Platform>,
        made_at: Timestamp,
    ) -> Result<(), Unfit> {
        check(input, platforms, &self.known(made_at), made_at)
    }
}

/// Freezes what is known of the images of a target for the platforms of a fleet; with no device yet, for any.
///
/// # Errors
/// Which services have nothing for one of the platforms, or else, which were never resolved.
pub fn freeze(
    input: &TargetInput,
    platforms: &BTreeSet<Platform>,
    known: &KnownImages,
    now: Timestamp,
) -> Result<Pins, Unfit> {
    check(input, platforms, known, now)?;
    let keys: BTreeSet<Key> = target::references(input).iter().map(Key::of).collect();
    let frozen = keys.into_iter().filter_map(|key| {
        let known = known.get(&key)?;
        Frozen::of(key, known)
    });
    Ok(Pins(frozen.collect()))
}

/// A platform for when there is none: whether a reference is resolved does not depend on it.
fn anybody() -> Platform {
    Platform::new("linux", "amd64", None)
}

fn check(
    input: &TargetInput,
    platforms: &BTreeSet<Platform>,
    known: &KnownImages,
    now: Timestamp,
) -> Result<(), Unfit> {
    let render = |platform: &Platform| target::render(input, platform, known, now);
    let unsupported: Vec<FieldError> = platforms
        .iter()
        .flat_map(|platform| render(platform).unsupported)
        .collect();
    if !unsupported.is_empty() {
        return Err(Unfit::Unsupported(unsupported));
    }
    let unresolved = render(&anybody()).unresolved;
    if unresolved.is_empty() {
        Ok(())
    } else {
        Err(Unfit::Unresolved(unresolved))
    }
}

#[cfg(test)]
mod tests;
