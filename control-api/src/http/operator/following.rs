//! Owns what a device follows, as operators see and decide it: its fleet's release, one release, or its own target.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::principal::Principal;
use holdfast_proto::id::DeviceId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::Shared;
use crate::clock;
use crate::fleets::{self, Following};
use crate::http::auth::actor;
use crate::http::extract::{DevicePath, Strict};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::logins::Logins;
use crate::store::Tx;
use crate::store::audit::Actor;
use crate::store::devices::{self, Device};

/// What a device follows.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceRelease {
    /// Its fleet; null when it is in none.
    fleet: Option<String>,
    /// Whether it has a target of its own, which counts before all releases.
    own_target: bool,
    /// The release that it is kept at; null when it goes with its fleet.
    pinned: Option<i64>,
    /// The release that its fleet runs.
    fleet_release: Option<i64>,
    /// The generation of its target.
    generation: u64,
}

impl From<Following> for DeviceRelease {
    fn from(following: Following) -> Self {
        Self {
            fleet: following.fleet,
            own_target: following.own_target,
            pinned: following.pinned,
            fleet_release: following.fleet_release,
            generation: following.generation,
        }
    }
}

/// Shows what a device follows.
#[utoipa::path(
    get, path = "/api/v1/devices/{uuid}/release", tag = "targets",
    params(("uuid" = String, Path, description = "The device")),
    responses((status = 200, description = "What it follows", body = DeviceRelease))
)]
pub async fn show(
    State(app): State<Shared>,
    DevicePath(uuid): DevicePath,
) -> Result<Json<DeviceRelease>, Refusal> {
    let found = app
        .store
        .read(move |tx| -> Result<_, Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            Ok(fleets::following(tx, &device)?)
        })
        .await?;
    Ok(Json(found.into()))
}

/// Changes what a device follows, and serves it at once.
async fn decide(
    app: &Shared,
    uuid: DeviceId,
    actor: Actor,
    change: impl Fn(&mut Tx<'_>, &Logins, &Device, &Actor) -> Result<(), Refusal>
    + Send
    + Sync
    + 'static,
) -> Result<Json<DeviceRelease>, Refusal> {
    let logins = app.logins.clone();
    let found = app
        .store
        .transact(move |tx| -> Result<_, Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            change(tx, &logins, &device, &actor)?;
            Ok(fleets::following(tx, &device)?)
        })
        .await?;
    app.live.refresh(&app.store, uuid).await?;
    Ok(Json(found.into()))
}

/// Which release a device is kept at.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// Number of a release of the device's fleet.
    release: i64,
}

/// Keeps a device at a release of its fleet: it gets it at once, and rollouts of releases leave the device out.
#[utoipa::path(
    put, path = "/api/v1/devices/{uuid}/release", tag = "targets",
    params(("uuid" = String, Path, description = "The device")), request_body = Keep,
    responses((status = 200, description = "What it follows now", body = DeviceRelease))
)]
pub async fn pin(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
    Strict(Keep { release }): Strict<Keep>,
) -> Result<Json<DeviceRelease>, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    decide(&app, uuid, by, move |tx, logins, device, actor| {
        fleets::pin(tx, logins, device, release, actor, now)
    })
    .await
}

/// Lets a device go with its fleet again: it gets the release that the fleet runs.
#[utoipa::path(
    delete, path = "/api/v1/devices/{uuid}/release", tag = "targets",
    params(("uuid" = String, Path, description = "The device")),
    responses((status = 200, description = "What it follows now", body = DeviceRelease))
)]
pub async fn unpin(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
) -> Result<Json<DeviceRelease>, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    decide(&app, uuid, by, move |tx, logins, device, actor| {
        fleets::unpin(tx, logins, device, actor, now)
    })
    .await
}

/// Ends a device's own target: it gets the release that its fleet runs, or nothing runs on it.
#[utoipa::path(
    delete, path = "/api/v1/devices/{uuid}/target-state", tag = "targets",
    params(("uuid" = String, Path, description = "The device")),
    responses((status = 200, description = "What it follows now", body = DeviceRelease))
)]
pub async fn clear(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
) -> Result<Json<DeviceRelease>, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    decide(&app, uuid, by, move |tx, logins, device, actor| {
        fleets::clear(tx, logins, device, actor, now)
    })
    .await
}
