//! Owns what a report adds for people: from which version to which, and newer tags of the same kind.
//!
//! Refuses to make an update of it: whatever cannot be learnt here is left out, and changes no finding.

use holdfast_proto::image::{Reference, ResolvedImage, wanted};
use holdfast_proto::updates::{Availability, TagCandidate, UpdateReport};
use holdfast_registry::{Client, candidates, may_have_candidates};

use super::Here;
use crate::engine::docker::survey::LocalImage;

/// Newer tags that are named; people look at the newest.
const MAX_NAMED: usize = 10;
/// Of these so many are looked up: each costs the registry several answers, and some count them.
const MAX_LOOKED_UP: usize = 1;

/// Adds what can be learnt.
pub(super) async fn add(
    report: &mut UpdateReport,
    reference: &Reference,
    _offered: &ResolvedImage,
    image: &LocalImage,
    here: &Here,
    registries: &Client,
) {
    let tag = reference.tag_or_latest();
    if !may_have_candidates(tag) {
        return;
    }
    let tags = match registries.tags(reference.repository(), None).await {
        Ok(tags) => tags,
        Err(error) => {
            tracing::debug!(error = %error, image.reference = %reference, "its tags cannot be listed");
            return;
        }
    };
    let platform = wanted(&here.platform, &image.platform);
    let newer = candidates(tag, tags.iter().map(String::as_str));
    for (position, tag) in newer.into_iter().take(MAX_NAMED).enumerate() {
        let other = format!("{}:{tag}", reference.familiar_name()).parse::<Reference>();
        let platform_available = match other {
            Ok(other) if position < MAX_LOOKED_UP => match registries.resolve(&other).await {
                Ok(image) if image.for_platform(platform).is_some() => Availability::Yes,
                Ok(_) => Availability::No,
                Err(_) => Availability::Unknown,
            },
            Ok(_) | Err(_) => Availability::Unknown,
        };
        report.candidates.push(TagCandidate {
            tag: tag.to_owned(),
            is_latest: position == 0,
            release_url: None,
            platform_available,
        });
    }
}
