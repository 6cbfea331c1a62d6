//! Owns showing whom a policy would be for, before there is one; refuses to change anything.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use holdfast_domain::pattern::{ImagePattern, PatternError};
use holdfast_domain::resolution::Key;
use holdfast_domain::scope::FLEET_LABEL;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Repository;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::Shared;
use crate::http::extract::Strict;
use crate::http::problem::Refusal;
use crate::store::db::{StoreError, Tx};
use crate::store::{images, targets};

/// Images and devices that an answer names; it counts them all.
const NAMED: usize = 100;
/// Rows read at a time.
const PAGE: i64 = 500;

/// Whom a policy is to be for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyScope {
    /// Images, such as `redis:*`.
    image_pattern: String,
    /// Only devices with these labels.
    #[serde(default)]
    selector: BTreeMap<String, String>,
    /// Only devices of this fleet.
    fleet: Option<String>,
}

/// Images that a policy would be for.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ImagesMatched {
    /// How many, each with its tag.
    count: u64,
    /// The first hundred.
    first: Vec<String>,
}

/// Devices that a policy would be for.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct DevicesMatched {
    /// How many.
    count: u64,
    /// The first hundred.
    first: Vec<DeviceMatched>,
}

/// A device that a policy would be for.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceMatched {
    /// Its identifier.
    uuid: DeviceId,
    /// What people call it.
    name: String,
    /// The images in its target that the pattern matches.
    images: Vec<String>,
}

/// Whom a policy would be for.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyPreview {
    /// Of the images that people know, and of those in targets.
    images: ImagesMatched,
    /// Devices whose targets name one of them.
    devices: DevicesMatched,
}

/// Shows which images and devices a policy would be for. Nothing is stored.
#[utoipa::path(
    post, path = "/api/v1/policies/preview", tag = "rollouts", request_body = PolicyScope,
    responses((status = 200, description = "Whom it would be for", body = PolicyPreview))
)]
pub async fn preview(
    State(app): State<Shared>,
    Strict(scope): Strict<PolicyScope>,
) -> Result<Json<PolicyPreview>, Refusal> {
    let pattern = scope.image_pattern.parse();
    let pattern: ImagePattern = pattern.map_err(|error: PatternError| {
        Refusal::invalid_field("/image_pattern", error.to_string())
    })?;
    let preview = app
        .store
        .read(move |tx| Ok::<_, Refusal>(look(tx, &pattern, &scope)?))
        .await?;
    Ok(Json(preview))
}

/// The name that people write for a tag that the pattern matches.
fn matched(pattern: &ImagePattern, key: &Key) -> Option<String> {
    // What names a digest never means anything else: no policy is for it.
    if key.is_pinned() {
        return None;
    }
    let repository = Repository::of(&key.registry, &key.repository).ok()?;
    pattern
        .matches(&repository, &key.selector)
        .then(|| format!("{}:{}", repository.familiar(), key.selector))
}

fn look(
    tx: &mut Tx<'_>,
    pattern: &ImagePattern,
    scope: &PolicyScope,
) -> Result<PolicyPreview, StoreError> {
    let mut names = BTreeSet::new();
    let mut after = 0;
    loop {
        let page = images::all_tags(tx, after, PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = *last;
        names.extend(page.iter().filter_map(|(_, key)| matched(pattern, key)));
    }
    let mut devices = DevicesMatched::default();
    let mut after = 0;
    loop {
        let page = targets::named_by(tx, after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.device_id;
        // The rows of one device follow each other.
        for rows in page.chunk_by(|one, next| one.device_id == next.device_id) {
            let keys = rows.iter().filter_map(|row| row.key.as_ref());
            let found: Vec<String> = keys.filter_map(|key| matched(pattern, key)).collect();
            names.extend(found.iter().cloned());
            let Some(device) = rows.first().filter(|row| is_in(&row.labels, scope)) else {
                continue;
            };
            if found.is_empty() {
                continue;
            }
            devices.count += 1;
            if devices.first.len() < NAMED {
                devices.first.push(DeviceMatched {
                    uuid: device.uuid,
                    name: device.name.clone(),
                    images: found,
                });
            }
        }
    }
    Ok(PolicyPreview {
        images: ImagesMatched {
            count: u64::try_from(names.len()).unwrap_or(u64::MAX),
            first: names.into_iter().take(NAMED).collect(),
        },
        devices,
    })
}

fn is_in(labels: &BTreeMap<String, String>, scope: &PolicyScope) -> bool {
    let fleet = scope.fleet.as_ref().map(|fleet| (FLEET_LABEL, fleet));
    let selected = scope.selector.iter();
    let mut wanted = selected
        .map(|(label, value)| (label.as_str(), value))
        .chain(fleet);
    wanted.all(|(label, value)| labels.get(label) == Some(value))
}
