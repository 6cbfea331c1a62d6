//! Owns the update report of this device: running containers beside what their registries offer.
//!
//! Refuses to guess: what cannot be compared like with like is unknown, with the reason.

use futures_util::StreamExt as _;
use holdfast_proto::image::{Digest, Platform, Reference, ResolvedImage};
use holdfast_proto::updates::{UpdateFinding, UpdateReport};
use holdfast_registry::{Client, RegistryError};

use crate::engine::ImageStore;
use crate::engine::docker::survey::{LocalImage, RunningContainer};
use crate::fault::chain;

/// Containers asked about at a time; containers of one image share one question anyway.
const AT_ONCE: usize = 8;

/// Reports on each container; those that only hold a network have no image to update.
pub async fn scan(
    containers: Vec<RunningContainer>,
    store: ImageStore,
    registries: &Client,
) -> Vec<UpdateReport> {
    let reports = containers
        .into_iter()
        .filter(|container| !container.is_sandbox)
        .map(|container| one(container, store, registries));
    futures_util::stream::iter(reports)
        .buffered(AT_ONCE)
        .collect()
        .await
}

/// What one container can be told about its image.
enum Finding {
    Pinned,
    Known {
        registry: Digest,
        is_list: bool,
        has_update: bool,
    },
    Unknown {
        registry: Option<(Digest, bool)>,
        error: String,
    },
}

async fn one(container: RunningContainer, store: ImageStore, registries: &Client) -> UpdateReport {
    let reference = written(&container.reference);
    let finding = match &reference {
        Ok(reference) if reference.digest().is_some() => Finding::Pinned,
        Ok(reference) => compare(reference, container.image.as_ref(), store, registries).await,
        Err(error) => Finding::Unknown {
            registry: None,
            error: error.clone(),
        },
    };
    let reference = reference.ok();
    let running = reference.as_ref().and_then(|reference| {
        let pinned = reference.digest().copied();
        pinned.or_else(|| pulled_by(reference, container.image.as_ref()?))
    });
    let (registry, is_list, has_update, status, error) = match finding {
        Finding::Pinned => (running, None, Some(false), UpdateFinding::Pinned, None),
        Finding::Known {
            registry,
            is_list,
            has_update,
        } => {
            let status = if has_update {
                UpdateFinding::UpdateAvailable
            } else {
                UpdateFinding::UpToDate
            };
            (
                Some(registry),
                Some(is_list),
                Some(has_update),
                status,
                None,
            )
        }
        Finding::Unknown { registry, error } => {
            let (digest, is_list) = registry.unzip();
            (digest, is_list, None, UpdateFinding::Unknown, Some(error))
        }
    };
    UpdateReport {
        tag: reference
            .filter(|reference| reference.digest().is_none())
            .map(|reference| reference.tag_or_latest().to_owned()),
        container_name: container.name,
        container_id: container.id,
        image_reference: container.reference,
        platform: container.image.map(|image| image.platform),
        running_digest: running.map(|digest| digest.to_string()),
        registry_digest: registry.map(|digest| digest.to_string()),
        has_update,
        is_manifest_list: is_list,
        state: container.state,
        status,
        error,
    }
}

/// The reference that a container was made with, unless it names an image of the engine's own store.
fn written(text: &str) -> Result<Reference, String> {
    let bare = text.strip_prefix("sha256:").unwrap_or(text);
    let is_id = bare.len() == 64 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id {
        return Err("it was made from an image id, which names no registry".to_owned());
    }
    text.parse()
        .map_err(|error| format!("its image is not a reference: {error}"))
}

/// The digest that the image was pulled by from the reference's own repository.
fn pulled_by(reference: &Reference, image: &LocalImage) -> Option<Digest> {
    image.repo_digests.iter().find_map(|text| {
        let pulled: Reference = text.parse().ok()?;
        let same = pulled.repository() == reference.repository();
        pulled.digest().copied().filter(|_| same)
    })
}

async fn compare(
    reference: &Reference,
    image: Option<&LocalImage>,
    store: ImageStore,
    registries: &Client,
) -> Finding {
    let unknown = |error: String| Finding::Unknown {
        registry: None,
        error,
    };
    let Some(image) = image else {
        return unknown("the engine has lost its image".to_owned());
    };
    let pulled = pulled_by(reference, image);
    if pulled.is_none() && image.repo_digests.is_empty() {
        let error = "no registry digest: it was built here, or its image's name was removed";
        return unknown(error.to_owned());
    }
    let offered = match registries.resolve(reference).await {
        Ok(offered) => offered,
        Err(error) => return unknown(chain(&error)),
    };
    let registry = *offered.top.digest();
    let is_list = offered.top.index().is_some();
    match same(image, store, &offered) {
        Some(true) => Finding::Known {
            registry,
            is_list,
            has_update: false,
        },
        Some(false) if pulled.is_none() => Finding::Unknown {
            registry: Some((registry, is_list)),
            error: "it was pulled from another repository".to_owned(),
        },
        Some(false) => Finding::Known {
            registry,
            is_list,
            has_update: true,
        },
        None => match earlier(reference, image, pulled, &offered, registries).await {
            Ok(has_update) => Finding::Known {
                registry,
                is_list,
                has_update,
            },
            Err(error) => Finding::Unknown {
                registry: Some((registry, is_list)),
                error,
            },
        },
    }
}

/// Whether the image is the one offered for its platform; none where the store does not tell.
fn same(image: &LocalImage, store: ImageStore, offered: &ResolvedImage) -> Option<bool> {
    let own = offered.for_platform(&image.platform)?;
    match store {
        // An id is the digest of a configuration, and configurations are compared.
        ImageStore::Classic => Some(image.ids.first() == Some(&own.config_digest.0)),
        // An id is that of a manifest or an index: equal says the same, different says nothing yet.
        ImageStore::Containerd => image
            .ids
            .iter()
            .any(|id| *id == own.manifest_digest.0 || id == offered.top.digest())
            .then_some(true),
    }
}

/// Where ids differ but may be of an index that changed for other platforms only: asks what the
/// digest that it was pulled by means for its platform.
async fn earlier(
    reference: &Reference,
    image: &LocalImage,
    pulled: Option<Digest>,
    offered: &ResolvedImage,
    registries: &Client,
) -> Result<bool, String> {
    let Some(own) = offered.for_platform(&image.platform) else {
        return Err(format!(
            "the registry offers no image for {}",
            image.platform
        ));
    };
    let pulled = pulled.ok_or("it was pulled from another repository")?;
    let before = content(reference, &pulled, &image.platform, registries)
        .await
        .map_err(|error| format!("what runs cannot be looked up: {}", chain(&error)))?
        .ok_or("what runs has no image for its platform in the registry")?;
    Ok(before != own.config_digest.0)
}

/// The configuration that a digest of the reference's repository means for a platform.
async fn content(
    reference: &Reference,
    digest: &Digest,
    platform: &Platform,
    registries: &Client,
) -> Result<Option<Digest>, RegistryError> {
    let Ok(pinned) = reference.pinned(digest).parse::<Reference>() else {
        return Ok(None);
    };
    let found = registries.resolve(&pinned).await?;
    Ok(found
        .for_platform(platform)
        .map(|image| image.config_digest.0))
}

#[cfg(test)]
mod tests;
