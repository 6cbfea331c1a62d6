//! Owns whether what runs is what a registry has: the one comparison, by kinds of digest that never mix.
//!
//! Refuses to guess. A configuration is compared with a configuration, a manifest or an index with a
//! manifest or an index; what an image was pulled by (`RepoDigests`) tells only where it came from.

use super::digest::{ConfigDigest, Digest, ManifestDigest};
use super::pin::ResolvedImage;
use super::platform::Platform;
use super::reference::{Reference, Repository};

/// How an engine keeps images, and so what its image ids mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageStore {
    /// An image id is the digest of the image's configuration.
    Classic,
    /// An image id is the digest of a manifest or an index (Docker 25 and later, if so configured).
    Containerd,
}

impl ImageStore {
    /// Its name in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Containerd => "containerd",
        }
    }
}

/// What is known of an image's content, as the engine's store tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Its configuration: equal means the same image, different means another one.
    Config(ConfigDigest),
    /// Manifests or indexes that name it, never empty; nobody says which of the two one is. Equal means
    /// the same image; different means nothing yet: two indexes may hold one image.
    Targets(Vec<Digest>),
}

impl Content {
    /// Reads an engine's ids for an image (`Id`, then `Descriptor` and others); `None` without any.
    pub fn of_ids(store: ImageStore, ids: &[Digest]) -> Option<Self> {
        let first = *ids.first()?;
        Some(match store {
            ImageStore::Classic => Self::Config(ConfigDigest(first)),
            ImageStore::Containerd => Self::Targets(ids.to_vec()),
        })
    }

    /// The configuration, where the store tells it.
    pub fn config(&self) -> Option<ConfigDigest> {
        match self {
            Self::Config(config) => Some(*config),
            Self::Targets(_) => None,
        }
    }

    /// Whether it is this image, which the digest `top` leads to; `None` when the kinds do not tell.
    pub fn is(
        &self,
        top: &Digest,
        manifest: &ManifestDigest,
        config: &ConfigDigest,
    ) -> Option<bool> {
        match self {
            Self::Config(own) => Some(own == config),
            Self::Targets(own) => {
                let named = own.iter().any(|own| own == top || *own == manifest.0);
                named.then_some(true)
            }
        }
    }
}

/// What an image was pulled from, by its engine's `RepoDigests`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// From the repository in question, by these digests of indexes or manifests; never empty.
    By(Vec<Digest>),
    /// From other repositories only.
    Elsewhere,
    /// From nowhere: it was built here, or its names were removed.
    Never,
}

impl Pulled {
    /// Reads `RepoDigests` (`name@sha256:…`), of which there may be several for several repositories.
    pub fn read(repository: &Repository, repo_digests: &[impl AsRef<str>]) -> Self {
        let names = repo_digests.iter().filter_map(|text| {
            let name: Reference = text.as_ref().parse().ok()?;
            Some((name.repository().clone(), *name.digest()?))
        });
        let names: Vec<_> = names.collect();
        let by: Vec<Digest> = names
            .iter()
            .filter(|(from, _)| from == repository)
            .map(|(_, digest)| *digest)
            .collect();
        match (by.is_empty(), names.is_empty()) {
            (false, _) => Self::By(by),
            (true, false) => Self::Elsewhere,
            (true, true) => Self::Never,
        }
    }

    /// The digests it was pulled by from the repository in question.
    pub fn digests(&self) -> &[Digest] {
        match self {
            Self::By(digests) => digests,
            Self::Elsewhere | Self::Never => &[],
        }
    }
}

/// An image that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// What it is; none when the engine gives it no digest.
    pub content: Option<Content>,
    /// The platform it was made for.
    pub platform: Platform,
    /// Where it came from.
    pub pulled: Pulled,
}

/// Whether what runs is what the registry has for the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Same {
    /// It is: there is no update.
    Yes,
    /// The registry has another image for it: an update.
    No,
    /// Nobody can say, and nothing may be done about it.
    Unknown(Doubt),
}

/// Why nobody can say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The engine says nothing that could be compared.
    #[error("the engine gives its image no digest")]
    NoDigest,
    /// There is nothing to compare with.
    #[error("the registry offers no image for {0}")]
    NotOffered(Platform),
    /// Another image would not be a newer one.
    #[error("it was pulled from another repository")]
    Elsewhere,
    /// Nothing links it to the registry's image of that name.
    #[error("no registry digest: it was built here, or its image's name was removed")]
    NeverPulled,
    /// It has another manifest or index than the registry now; its content may be the same. Whoever
    /// learns the content of one of [`Pulled::digests`] can ask again, with [`Content::Config`].
    #[error("what runs has another manifest, and nobody says whether its content differs")]
    OtherTarget,
}

/// The platform whose image a device should run in place of one for `image`.
///
/// Its own, of which older variants are fallbacks that a better offer replaces. A device that runs what
/// it could not run by itself was told so (`--platform`, an emulator), and stays with that.
pub fn wanted<'a>(device: &'a Platform, image: &'a Platform) -> &'a Platform {
    if device.runs(image) { device } else { image }
}

/// Compares what runs on a device with what the registry has.
pub fn compare(running: &Running, offered: &ResolvedImage, device: &Platform) -> Same {
    let Some(content) = &running.content else {
        return Same::Unknown(Doubt::NoDigest);
    };
    let platform = wanted(device, &running.platform);
    let Some(own) = offered.for_platform(platform) else {
        return Same::Unknown(Doubt::NotOffered(platform.clone()));
    };
    let top = offered.top.digest();
    let is = content.is(top, &own.manifest_digest, &own.config_digest);
    match (is, &running.pulled) {
        (Some(true), _) => Same::Yes,
        (_, Pulled::Elsewhere) => Same::Unknown(Doubt::Elsewhere),
        (_, Pulled::Never) => Same::Unknown(Doubt::NeverPulled),
        (None, Pulled::By(_)) => Same::Unknown(Doubt::OtherTarget),
        (Some(false), Pulled::By(digests)) => {
            // The tag still names the very index it was pulled by: somebody chose another child.
            let children = &mut offered.platforms.iter();
            let is_child = children.any(|child| content.config() == Some(child.config_digest));
            if is_child && digests.contains(top) {
                Same::Yes
            } else {
                Same::No
            }
        }
    }
}

/// As [`compare`], for what runs and has another target: `earlier` is what that target leads to.
pub fn compare_earlier(
    running: &Running,
    earlier: &ResolvedImage,
    offered: &ResolvedImage,
    device: &Platform,
) -> Same {
    let Some(was) = earlier.for_platform(&running.platform) else {
        return Same::Unknown(Doubt::OtherTarget);
    };
    let running = Running {
        content: Some(Content::Config(was.config_digest)),
        ..running.clone()
    };
    compare(&running, offered, device)
}

#[cfg(test)]
#[path = "same/tests.rs"]
mod tests;
