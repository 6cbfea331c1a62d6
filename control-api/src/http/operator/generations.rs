//! Owns what devices were told before, as operators see it: the list, what differs, the way back.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::difference::{self, Difference};
use holdfast_domain::principal::Principal;
use holdfast_proto::operator::Page;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::tokens::PageParams;
use crate::app::Shared;
use crate::http::auth::actor;
use crate::http::extract::{DevicePath, Params, Strict, cursor, next_cursor, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::store::db::{StoreError, Tx};
use crate::store::devices;
use crate::store::generations::{self as stored, Generation};
use crate::targeting;

/// What a device was told once.
#[derive(Debug, Serialize, ToSchema)]
pub struct GenerationSummary {
    /// The target's counter.
    generation: u64,
    /// Why: `set`, `resolved`, `lifted`, `rollout:N`, `back:N`, `release:N`, `cleared`.
    cause: String,
    /// Who.
    actor: String,
    /// The images of its services, pinned.
    images: Vec<String>,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// When the device reported that all of it runs and passed its gate.
    #[schema(value_type = Option<String>, format = DateTime)]
    verified_at: Option<Timestamp>,
}

fn state(told: &Generation) -> Result<TargetState, StoreError> {
    serde_json::from_str(&told.body).map_err(|source| StoreError::Document {
        what: "generation",
        source,
    })
}

fn summary(told: Generation) -> Result<GenerationSummary, Refusal> {
    let state = state(&told)?;
    let services = state.services();
    Ok(GenerationSummary {
        images: services
            .map(|(_, service)| service.image_name.clone())
            .collect(),
        generation: told.generation,
        cause: told.cause,
        actor: told.actor,
        at: told.at,
        verified_at: told.verified_at,
    })
}

/// Lists what a device was told, the newest first: the last 50, and the one it verified last.
#[utoipa::path(
    get, path = "/api/v1/devices/{uuid}/target-state/history", tag = "targets",
    params(("uuid" = String, Path, description = "The device"), PageParams),
    responses((status = 200, description = "One page of generations", body = Page<GenerationSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    DevicePath(uuid): DevicePath,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<GenerationSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let before = cursor(params.cursor.as_deref(), i64::MAX)?;
    let found = app
        .store
        .read(move |tx| {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            Ok::<_, Refusal>(stored::list(tx, device.id, before, size)?)
        })
        .await?;
    let row = |told: &Generation| i64::try_from(told.generation).unwrap_or(i64::MAX);
    let next_cursor = next_cursor(&found, size, row);
    let items = found.into_iter().map(summary).collect::<Result<_, _>>()?;
    Ok(Json(Page { items, next_cursor }))
}

/// Which generations are compared.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CompareParams {
    /// The earlier one.
    from: u64,
    /// The later one.
    to: u64,
}

/// What differs between two generations.
#[derive(Debug, Serialize, ToSchema)]
pub struct Comparison {
    /// The earlier one.
    from: u64,
    /// The later one.
    to: u64,
    /// Services that are not the same; names of members, never their values.
    #[schema(value_type = Vec<Object>)]
    differences: Vec<Difference>,
}

/// Compares two generations of a device's target.
#[utoipa::path(
    get, path = "/api/v1/devices/{uuid}/target-state/differences", tag = "targets",
    params(("uuid" = String, Path, description = "The device"), CompareParams),
    responses((status = 200, description = "What differs", body = Comparison))
)]
pub async fn compare(
    State(app): State<Shared>,
    DevicePath(uuid): DevicePath,
    Params(CompareParams { from, to }): Params<CompareParams>,
) -> Result<Json<Comparison>, Refusal> {
    let (before, after) = app
        .store
        .read(move |tx| -> Result<_, Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            Ok((told(tx, device.id, from)?, told(tx, device.id, to)?))
        })
        .await?;
    let differences = difference::between(&before.apps, &after.apps);
    Ok(Json(Comparison {
        from,
        to,
        differences,
    }))
}

fn told(tx: &mut Tx<'_>, device_id: i64, generation: u64) -> Result<TargetState, Refusal> {
    let found = stored::find(tx, device_id, generation)?.ok_or_else(Refusal::not_found)?;
    Ok(state(&found)?)
}

/// Where to go back to.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WayBack {
    /// The generation; the last one before the present that the device verified, without.
    generation: Option<u64>,
}

/// Where a device goes.
#[derive(Debug, Serialize, ToSchema)]
pub struct Returned {
    /// The new generation, with what it was told once.
    generation: u64,
}

/// Gives a device what it was told once, digests and all, as a new generation.
#[utoipa::path(
    post, path = "/api/v1/devices/{uuid}/target-state/rollback", tag = "targets",
    params(("uuid" = String, Path, description = "The device")), request_body = WayBack,
    responses((status = 200, description = "It goes back", body = Returned))
)]
pub async fn back(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
    Strict(way): Strict<WayBack>,
) -> Result<Json<Returned>, Refusal> {
    let by = actor(&principal, &request_id);
    let outcome = targeting::back(&app, uuid, way.generation, by).await?;
    Ok(Json(Returned {
        generation: outcome.state.generation,
    }))
}
