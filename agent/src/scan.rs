//! Owns the update report of this device: running containers beside what their registries offer.
//!
//! Refuses to guess: what cannot be compared like with like (`holdfast_proto::image::compare`) is unknown,
//! with the reason. Containers of one image share one question.

mod newer;

use futures_util::StreamExt as _;
use holdfast_proto::image::{
    Content, Digest, Doubt, ImageStore, Platform, Pulled, Reference, ResolvedImage, Running, Same,
    compare, compare_earlier,
};
use holdfast_proto::updates::{Finding, Offer, Subject, UpdateReport};
use holdfast_registry::{Client, RegistryError};

use crate::engine::docker::survey::{LocalImage, RunningContainer};
use crate::fault::chain;

/// Containers asked about at a time.
const AT_ONCE: usize = 8;

/// The machine that is scanned.
#[derive(Clone, Debug)]
pub struct Here {
    /// How its engine keeps images.
    pub store: ImageStore,
    /// What images it runs.
    pub platform: Platform,
}

/// Reports on each container; those that only hold a network have no image to update.
pub async fn scan(
    containers: Vec<RunningContainer>,
    here: &Here,
    registries: &Client,
) -> Vec<UpdateReport> {
    let reports = containers
        .into_iter()
        .filter(|container| !container.is_sandbox)
        .map(|container| one(container, here, registries));
    futures_util::stream::iter(reports)
        .buffered(AT_ONCE)
        .collect()
        .await
}

async fn one(container: RunningContainer, here: &Here, registries: &Client) -> UpdateReport {
    let reference = written(&container.reference);
    let image = container.image.as_ref();
    let running = match (&reference, image) {
        (Ok(reference), Some(image)) => Some(running(reference, image, here.store)),
        (Ok(_) | Err(_), _) => None,
    };
    let (finding, offered) = match (&reference, &running) {
        (Ok(reference), _) if reference.digest().is_some() => (Finding::Pinned, None),
        (Ok(reference), Some(running)) => found(reference, running, here, registries).await,
        (Ok(_), None) => (unknown("the engine has lost its image"), None),
        (Err(error), _) => (unknown(error), None),
    };
    let subject = Subject {
        platform: image.map(|image| image.platform.clone()),
        running: running.and_then(|running| by(&running.pulled, offered.as_ref())),
        container_name: container.name,
        container_id: container.id,
        image_reference: container.reference,
        state: container.state,
    };
    let mut report = UpdateReport::new(subject, finding);
    if let (Ok(reference), Some(_), Some(image)) = (&reference, &offered, &container.image) {
        newer::add(&mut report, reference, image, here, registries).await;
    }
    report
}

fn unknown(error: impl Into<String>) -> Finding {
    Finding::Unknown {
        offer: None,
        error: error.into(),
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

fn running(reference: &Reference, image: &LocalImage, store: ImageStore) -> Running {
    Running {
        content: Content::of_ids(store, &image.ids),
        platform: image.platform.clone(),
        pulled: Pulled::read(reference.repository(), &image.repo_digests),
    }
}

/// The digest to show beside the registry's: of several that name the image, that one.
fn by(pulled: &Pulled, offered: Option<&ResolvedImage>) -> Option<Digest> {
    let top = offered.map(|offered| offered.top.digest());
    let digests = pulled.digests();
    let same = digests.iter().find(|digest| Some(*digest) == top);
    same.or(digests.first()).copied()
}

/// Asks the registry, unless no answer could be compared with what runs.
async fn found(
    reference: &Reference,
    running: &Running,
    here: &Here,
    registries: &Client,
) -> (Finding, Option<ResolvedImage>) {
    if running.pulled == Pulled::Never {
        return (unknown(Doubt::NeverPulled.to_string()), None);
    }
    let offered = match registries.resolve(reference).await {
        Ok(offered) => offered,
        Err(error) => return (unknown(chain(&error)), None),
    };
    let offer = Offer {
        digest: *offered.top.digest(),
        is_list: offered.top.index().is_some(),
    };
    let mut same = compare(running, &offered, &here.platform);
    let mut broke = None;
    if same == Same::Unknown(Doubt::OtherTarget) {
        match earlier(reference, running, registries).await {
            Ok(earlier) => same = compare_earlier(running, &earlier, &offered, &here.platform),
            Err(error) => broke = Some(chain(&error)),
        }
    }
    let finding = match (same, broke) {
        (Same::Yes, _) => Finding::Compared {
            offer,
            has_update: false,
        },
        (Same::No, _) => Finding::Compared {
            offer,
            has_update: true,
        },
        (Same::Unknown(_), Some(error)) => Finding::Unknown {
            offer: Some(offer),
            error: format!("what runs cannot be looked up: {error}"),
        },
        (Same::Unknown(doubt), None) => Finding::Unknown {
            offer: Some(offer),
            error: doubt.to_string(),
        },
    };
    (finding, Some(offered))
}

/// What the target that runs leads to: a containerd store tells only its name.
async fn earlier(
    reference: &Reference,
    running: &Running,
    registries: &Client,
) -> Result<ResolvedImage, RegistryError> {
    let targets = match &running.content {
        Some(Content::Targets(targets)) => targets.as_slice(),
        Some(Content::Config(_)) | None => &[],
    };
    let mut outcome = Err(RegistryError::NotFound {
        what: reference.to_string(),
    });
    // The last is the most exact: a manifest after its index.
    for target in targets.iter().rev() {
        let Ok(pinned) = reference.pinned(target).parse::<Reference>() else {
            continue;
        };
        outcome = registries.resolve(&pinned).await;
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

#[cfg(test)]
mod tests;
