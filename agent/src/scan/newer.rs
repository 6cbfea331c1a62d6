//! Owns what a report adds for people: from which version to which, and newer tags of the same kind.
//!
//! Refuses to make an update of it: whatever cannot be learnt here is left out, and changes no finding.

use holdfast_proto::image::{Platform, Reference, wanted};
use holdfast_proto::updates::{Availability, Change, TagCandidate, UpdateReport};
use holdfast_registry::{About, Client, candidates, may_have_candidates, release_link};

use super::Here;
use crate::engine::docker::survey::LocalImage;

/// Newer tags that are named; people look at the newest.
const MAX_NAMED: usize = 10;
/// Of these so many are looked up: each costs the registry several answers, and some count them.
const MAX_LOOKED_UP: usize = 1;
/// Longest version that is shown: a tag's.
const MAX_VERSION_CHARS: usize = 128;
/// What images say under these names (OCI image specification, annotations).
const VERSION: &str = "org.opencontainers.image.version";
const SOURCE: &str = "org.opencontainers.image.source";

/// Adds what can be learnt.
pub(super) async fn add(
    report: &mut UpdateReport,
    reference: &Reference,
    image: &LocalImage,
    here: &Here,
    registries: &Client,
) {
    let platform = wanted(&here.platform, &image.platform);
    let tag = reference.tag_or_latest();
    let tags = if may_have_candidates(tag) {
        tags(reference, registries).await
    } else {
        Vec::new()
    };
    let newer = candidates(tag, tags.iter().map(String::as_str));
    let has_update = report.has_update == Some(true);
    if !has_update && newer.is_empty() {
        return;
    }
    let about = about(reference, platform, registries).await;
    let link = |version: &str| {
        let spellings = tags.iter().map(String::as_str).chain(about.get(VERSION));
        release_link(about.get(SOURCE)?, version, spellings)
    };
    if has_update {
        let to = about.get(VERSION).filter(|text| is_plain(text));
        let from = image.version.as_deref().filter(|text| is_plain(text));
        report.change = Some(Change {
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
            release_url: link(to.unwrap_or(tag)),
        });
    }
    for (position, newer) in newer.into_iter().take(MAX_NAMED).enumerate() {
        let other = format!("{}:{newer}", reference.familiar_name());
        let platform_available = match other.parse() {
            Ok(other) if position < MAX_LOOKED_UP => offers(&other, platform, registries).await,
            Ok(_) | Err(_) => Availability::Unknown,
        };
        report.candidates.push(TagCandidate {
            tag: newer.to_owned(),
            is_latest: position == 0,
            release_url: link(newer),
            platform_available,
        });
    }
}

/// Whether a text of an image may be shown: whoever made it may have meant the terminal.
fn is_plain(text: &str) -> bool {
    (1..=MAX_VERSION_CHARS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

async fn tags(reference: &Reference, registries: &Client) -> Vec<String> {
    let listed = registries.tags(reference.repository(), None).await;
    listed.unwrap_or_else(|error| {
        tracing::debug!(error = %error, image.reference = %reference, "its tags cannot be listed");
        Vec::new()
    })
}

async fn about(reference: &Reference, platform: &Platform, registries: &Client) -> About {
    match registries.about(reference, platform, None).await {
        Ok(about) => about.unwrap_or_default(),
        Err(error) => {
            tracing::debug!(error = %error, image.reference = %reference, "it cannot be read what it says of itself");
            About::default()
        }
    }
}

async fn offers(reference: &Reference, platform: &Platform, registries: &Client) -> Availability {
    match registries.resolve(reference).await {
        Ok(image) if image.for_platform(platform).is_some() => Availability::Yes,
        Ok(_) => Availability::No,
        Err(_) => Availability::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_shown_only_if_it_is_one_word() {
        assert!(is_plain("1.26.3-r1+build.5"));
        for bad in ["", "1.2 \u{1b}[31m", "1.2\n", "1 2", &"9".repeat(129), "ä"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }
}
