//! Owns setting and reading a device's target.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use holdfast_domain::principal::Principal;
use holdfast_domain::resolution::Known;
use holdfast_proto::image::{PlatformImage, Reference, ResolutionStatus};
use holdfast_proto::target::{TargetInput, TargetState};
use holdfast_proto::time::Timestamp;
use http::{HeaderValue, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::app::Shared;
use crate::http::auth::actor;
use crate::http::extract::{
    ComposeBytes, DevicePath, JsonBytes, Params, TARGET_LIMIT, read_compose, read_document,
};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::targeting::{self, NewTarget, Outcome};

/// How to set a target.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SetParams {
    /// Refuse (424, nothing stored) instead of storing a reference that has no digest yet.
    #[serde(default)]
    require_digest: bool,
    /// Set it although an image in it may not run, where the configuration lets people do that; it is written down.
    #[serde(default)]
    overrule_approval: bool,
    /// Resolve its tags anew, also where the device's `imageUpdatePolicy` leaves them as they were pinned.
    #[serde(default)]
    resolve_digests: bool,
}

/// What is known of one reference in a target.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageResolution {
    /// What was written.
    #[schema(value_type = String)]
    reference: Reference,
    /// Canonical registry.
    registry: String,
    /// Canonical path.
    repository: String,
    /// The index, or null for a single manifest or an unresolved reference.
    #[schema(value_type = Option<String>)]
    index_digest: Option<String>,
    /// Media type of what the reference names.
    media_type: Option<String>,
    /// How the resolution stands.
    status: ResolutionStatus,
    /// Why the registry did not answer when last asked.
    error: Option<String>,
    /// When the digests were learnt.
    #[schema(value_type = Option<String>, format = DateTime)]
    resolved_at: Option<Timestamp>,
    /// Since when they could not be confirmed.
    #[schema(value_type = Option<String>, format = DateTime)]
    stale_since: Option<Timestamp>,
    /// The image of each platform.
    platforms: Vec<PlatformImage>,
}

/// A device's target as the device gets it, and what is known of its images.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedTarget {
    #[serde(flatten)]
    state: TargetState,
    /// One entry per reference.
    resolutions: Vec<ImageResolution>,
}

fn resolution((reference, known): (Reference, Option<Known>)) -> ImageResolution {
    let repository = reference.repository();
    let (registry, path) = (
        repository.registry().to_owned(),
        repository.path().to_owned(),
    );
    let status = known
        .as_ref()
        .map_or(ResolutionStatus::Failed, Known::status);
    let (image, error, resolved_at, stale_since) = known
        .map(|known| {
            (
                known.image,
                known.error,
                known.resolved_at,
                known.stale_since,
            )
        })
        .unwrap_or_default();
    ImageResolution {
        reference,
        registry,
        repository: path,
        index_digest: image
            .as_ref()
            .and_then(|image| image.top.index())
            .map(|index| index.0.to_string()),
        media_type: image.as_ref().map(|image| image.media_type.clone()),
        status,
        error,
        resolved_at,
        stale_since,
        platforms: image.map(|image| image.platforms).unwrap_or_default(),
    }
}

fn answer(outcome: Outcome) -> Result<Response, Refusal> {
    let etag = HeaderValue::try_from(outcome.etag).map_err(|_| Refusal::internal())?;
    let document = ResolvedTarget {
        state: outcome.state,
        resolutions: outcome.images.into_iter().map(resolution).collect(),
    };
    Ok(([(header::ETAG, etag)], Json(document)).into_response())
}

/// Sets a device's target: tags become digests, and the device finds it at its next poll.
///
/// The same target again changes nothing. `ETag` is that of the document the device polls.
#[utoipa::path(
    post, path = "/api/v1/devices/{uuid}/target-state", tag = "targets",
    params(("uuid" = String, Path, description = "The device"), SetParams),
    request_body(content = TargetInput, description = "At most 1 MiB"),
    responses((status = 200, description = "The target as resolved", body = ResolvedTarget))
)]
pub async fn set(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
    Params(params): Params<SetParams>,
    JsonBytes(bytes): JsonBytes<TARGET_LIMIT>,
) -> Result<Response, Refusal> {
    let input = read_document(&bytes, TargetInput::parse)?;
    let text = String::from_utf8(bytes.to_vec())
        .map_err(|_| Refusal::malformed("the body is not UTF-8"))?;
    let new = NewTarget {
        uuid,
        text,
        input,
        require_digest: params.require_digest,
        overrules: params.overrule_approval,
        resolves: params.resolve_digests,
        actor: actor(&principal, &request_id),
    };
    answer(targeting::set(&app, new).await?)
}

/// Sets a device's target from a Compose file. What a device would not do as Compose does is refused by its place.
#[utoipa::path(
    put, path = "/api/v1/devices/{uuid}/compose", tag = "targets",
    params(("uuid" = String, Path, description = "The device"), SetParams),
    request_body(content = String, content_type = "application/yaml",
                 description = "A Compose file, at most 256 KiB"),
    responses((status = 200, description = "The target as resolved", body = ResolvedTarget))
)]
pub async fn compose(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
    Params(params): Params<SetParams>,
    ComposeBytes(bytes): ComposeBytes,
) -> Result<Response, Refusal> {
    let converted = read_compose(bytes).await?;
    let new = NewTarget {
        uuid,
        text: converted.text,
        input: converted.input,
        require_digest: params.require_digest,
        overrules: params.overrule_approval,
        resolves: params.resolve_digests,
        actor: actor(&principal, &request_id),
    };
    answer(targeting::set(&app, new).await?)
}

/// Shows a device's target as the device gets it.
#[utoipa::path(
    get, path = "/api/v1/devices/{uuid}/target-state", tag = "targets",
    params(("uuid" = String, Path, description = "The device")),
    responses((status = 200, description = "The target as resolved", body = ResolvedTarget))
)]
pub async fn show(
    State(app): State<Shared>,
    DevicePath(uuid): DevicePath,
) -> Result<Response, Refusal> {
    let logins = app.logins.clone();
    let outcome = app
        .store
        .read(move |tx| targeting::show(tx, &logins, uuid)?.ok_or_else(Refusal::not_found))
        .await?;
    answer(outcome)
}
