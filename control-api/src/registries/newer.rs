//! Owns looking for newer tags of the same kind, and where their releases are described.
//!
//! Refuses to let what cannot be learnt hide what can: a link or a platform that is unknown stays so.

use futures_util::StreamExt as _;
use holdfast_proto::image::{Platform, Reference};
use holdfast_proto::updates::{Availability, TagCandidate};
use holdfast_registry::{
    About, Client, Identity, RegistryError, candidates, may_have_candidates, release_link,
};

/// Candidates whose platform is looked up: people look at the newest.
const MAX_LOOKED_UP: usize = 10;
/// Of these so many at a time.
const LOOKED_UP_AT_ONCE: usize = 4;
/// What images say under these names (OCI image specification, annotations).
const VERSION: &str = "org.opencontainers.image.version";
const SOURCE: &str = "org.opencontainers.image.source";

/// The newer tags of a reference's kind, the newest first.
pub(super) async fn find(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    who: Option<&Identity>,
) -> Result<Vec<TagCandidate>, RegistryError> {
    let tag = reference.tag_or_latest();
    if reference.digest().is_some() || !may_have_candidates(tag) {
        return Ok(Vec::new());
    }
    let tags = client.tags(reference.repository(), who).await?;
    let newer = candidates(tag, tags.iter().map(String::as_str));
    let Some(newest) = newer.first() else {
        return Ok(Vec::new());
    };
    let about = about(client, named(reference, newest).as_ref(), platform, who).await;
    let link = |version: &str| {
        let spellings = tags.iter().map(String::as_str).chain(about.get(VERSION));
        release_link(about.get(SOURCE)?, version, spellings)
    };
    let looked_up = newer.iter().take(MAX_LOOKED_UP);
    let others: Vec<Option<Reference>> = looked_up.map(|tag| named(reference, tag)).collect();
    let offered: Vec<Availability> = futures_util::stream::iter(others)
        .map(|other| async move { offers(client, other.as_ref(), platform, who).await })
        .buffered(LOOKED_UP_AT_ONCE)
        .collect()
        .await;
    let offered = offered
        .into_iter()
        .chain(std::iter::repeat(Availability::Unknown));
    let found = newer.iter().zip(offered).enumerate();
    Ok(found
        .map(|(position, (tag, platform_available))| TagCandidate {
            tag: (*tag).to_owned(),
            is_latest: position == 0,
            release_url: link(tag),
            platform_available,
        })
        .collect())
}

fn named(reference: &Reference, tag: &str) -> Option<Reference> {
    format!("{}:{tag}", reference.repository()).parse().ok()
}

async fn about(
    client: &Client,
    reference: Option<&Reference>,
    platform: &Platform,
    who: Option<&Identity>,
) -> About {
    let Some(reference) = reference else {
        return About::default();
    };
    match client.about(reference, platform, who).await {
        Ok(about) => about.unwrap_or_default(),
        Err(error) => {
            tracing::debug!(
                image.reference = %reference, error = %error,
                "it cannot be read what an image says of itself"
            );
            About::default()
        }
    }
}

async fn offers(
    client: &Client,
    reference: Option<&Reference>,
    platform: &Platform,
    who: Option<&Identity>,
) -> Availability {
    let Some(reference) = reference else {
        return Availability::Unknown;
    };
    match client.resolve_for(reference, who).await {
        Ok(image) if image.for_platform(platform).is_some() => Availability::Yes,
        Ok(_) => Availability::No,
        Err(_) => Availability::Unknown,
    }
}
