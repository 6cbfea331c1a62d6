//! Owns a fleet's releases, as operators see them: made, listed, shown, compared, rolled out again.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::difference::{self, Difference};
use holdfast_domain::principal::Principal;
use holdfast_proto::operator::Page;
use holdfast_proto::target::TargetInput;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::tokens::PageParams;
use crate::app::Shared;
use crate::fleets::release::{self, Made, NewRelease};
use crate::http::auth::actor;
use crate::http::extract::{
    ComposeBytes, FleetPath, JsonBytes, Params, ReleasePath, Strict, TARGET_LIMIT, cursor, page,
    page_size, read_compose, read_document,
};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::rollouts::begin::Begun;
use crate::store::releases::{self as stored, Listed, Release};
use crate::store::{StoreError, Tx, fleets};

/// What a reference meant when the release was made.
#[derive(Debug, Serialize, ToSchema)]
pub struct FrozenImage {
    /// The reference in its canonical spelling.
    reference: String,
    /// What it named: an index's digest where there is one.
    digest: String,
    /// Platforms with an image of their own behind it.
    platforms: Vec<String>,
}

/// A release.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReleaseSummary {
    /// Its number in its fleet, from 1.
    number: i64,
    /// Whether it was rolled out completely last: devices that join get it.
    is_current: bool,
    /// Its images, frozen.
    images: Vec<FrozenImage>,
    /// Who made it.
    created_by: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<Listed> for ReleaseSummary {
    fn from(listed: Listed) -> Self {
        let images = listed.pins.0.iter().map(|one| FrozenImage {
            reference: one.key().to_string(),
            digest: one.digest.to_string(),
            platforms: one
                .platforms
                .iter()
                .map(|image| image.platform.to_string())
                .collect(),
        });
        Self {
            number: listed.number,
            is_current: listed.is_current,
            images: images.collect(),
            created_by: listed.created_by,
            created_at: listed.created_at,
        }
    }
}

/// A release with what people asked for.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReleaseDetail {
    #[serde(flatten)]
    summary: ReleaseSummary,
    /// The target as it was sent.
    #[schema(value_type = Object)]
    target: serde_json::Value,
}

/// A release and what came of its rollout.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReleaseOutcome {
    #[serde(flatten)]
    summary: ReleaseSummary,
    /// The number of the rollout; null when none began.
    rollout: Option<i64>,
    /// Why none began.
    reason: Option<String>,
}

fn outcome(release: Release, begun: Begun) -> ReleaseOutcome {
    let (rollout, reason) = match begun {
        Begun::Rollout(id) => (Some(id), None),
        Begun::Nothing(why) | Begun::Later(why) => (None, Some(why)),
    };
    ReleaseOutcome {
        summary: release.listed.into(),
        rollout,
        reason,
    }
}

type Answer = (StatusCode, Json<ReleaseOutcome>);

fn answer(made: Made) -> Answer {
    let status = if made.is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    (status, Json(outcome(made.release, made.begun)))
}

/// How a release travels.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReleaseParams {
    /// The policy that it travels by; the fleet's without.
    policy: Option<i64>,
    /// Make it although an image in it may not run, where the configuration lets people do that; it is written down.
    #[serde(default)]
    overrule_approval: bool,
}

/// Makes a release of a fleet and begins its rollout. Every reference is resolved once and frozen.
///
/// Refused whole when an image has nothing for a platform in the fleet (422), or a reference has no digest (424).
/// The content of the newest release makes no new one.
#[utoipa::path(
    put, path = "/api/v1/fleets/{name}/target-state", tag = "fleets",
    params(("name" = String, Path, description = "The fleet"), ReleaseParams),
    request_body(content = TargetInput, description = "At most 1 MiB"),
    responses((status = 201, description = "The new release", body = ReleaseOutcome),
              (status = 200, description = "The newest release, which has this content", body = ReleaseOutcome))
)]
pub async fn set(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    FleetPath(fleet): FleetPath,
    Params(params): Params<ReleaseParams>,
    JsonBytes(bytes): JsonBytes<TARGET_LIMIT>,
) -> Result<Answer, Refusal> {
    let input = read_document(&bytes, TargetInput::parse)?;
    let text = String::from_utf8(bytes.to_vec())
        .map_err(|_| Refusal::malformed("the body is not UTF-8"))?;
    let new = NewRelease {
        fleet,
        text,
        input,
        policy: params.policy,
        overrules: params.overrule_approval,
        actor: actor(&principal, &request_id),
    };
    Ok(answer(release::make(&app, new).await?))
}

/// Makes a release of a Compose file. What a device would not do as Compose does is refused by its place.
#[utoipa::path(
    put, path = "/api/v1/fleets/{name}/compose", tag = "fleets",
    params(("name" = String, Path, description = "The fleet"), ReleaseParams),
    request_body(content = String, content_type = "application/yaml",
                 description = "A Compose file, at most 256 KiB"),
    responses((status = 201, description = "The new release", body = ReleaseOutcome),
              (status = 200, description = "The newest release, which has this content", body = ReleaseOutcome))
)]
pub async fn compose(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    FleetPath(fleet): FleetPath,
    Params(params): Params<ReleaseParams>,
    ComposeBytes(bytes): ComposeBytes,
) -> Result<Answer, Refusal> {
    let converted = read_compose(bytes).await?;
    let new = NewRelease {
        fleet,
        text: converted.text,
        input: converted.input,
        policy: params.policy,
        overrules: params.overrule_approval,
        actor: actor(&principal, &request_id),
    };
    Ok(answer(release::make(&app, new).await?))
}

/// Lists a fleet's releases, the newest first: the last 500, and those that something stands on.
#[utoipa::path(
    get, path = "/api/v1/fleets/{name}/releases", tag = "fleets",
    params(("name" = String, Path, description = "The fleet"), PageParams),
    responses((status = 200, description = "One page of releases", body = Page<ReleaseSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    FleetPath(name): FleetPath,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<ReleaseSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let before = cursor(params.cursor.as_deref(), i64::MAX)?;
    let found = app
        .store
        .read(move |tx| {
            let fleet = fleets::find(tx, &name)?.ok_or_else(Refusal::not_found)?;
            Ok::<_, Refusal>(stored::list(tx, fleet.id, before, size)?)
        })
        .await?;
    Ok(Json(page(found, size, |listed| listed.number)))
}

fn numbered(tx: &mut Tx<'_>, fleet: &str, number: i64) -> Result<Release, Refusal> {
    stored::numbered(tx, fleet, number)?.ok_or_else(Refusal::not_found)
}

/// Shows a release.
#[utoipa::path(
    get, path = "/api/v1/fleets/{name}/releases/{number}", tag = "fleets",
    params(("name" = String, Path, description = "The fleet"),
           ("number" = i64, Path, description = "Number of the release")),
    responses((status = 200, description = "The release", body = ReleaseDetail))
)]
pub async fn show(
    State(app): State<Shared>,
    ReleasePath(fleet, number): ReleasePath,
) -> Result<Json<ReleaseDetail>, Refusal> {
    let release = app
        .store
        .read(move |tx| numbered(tx, &fleet, number))
        .await?;
    let target = serde_json::from_str(&release.input).map_err(|source| StoreError::Document {
        what: "release",
        source,
    })?;
    Ok(Json(ReleaseDetail {
        summary: release.listed.into(),
        target,
    }))
}

/// Which releases are compared.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CompareReleases {
    /// The earlier one.
    from: i64,
    /// The later one.
    to: i64,
}

/// What differs between two releases.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReleaseComparison {
    /// The earlier one.
    from: i64,
    /// The later one.
    to: i64,
    /// Services that are not the same; names of members, never their values.
    #[schema(value_type = Vec<Object>)]
    differences: Vec<Difference>,
}

/// Compares two releases of a fleet.
#[utoipa::path(
    get, path = "/api/v1/fleets/{name}/releases/compare", tag = "fleets",
    params(("name" = String, Path, description = "The fleet"), CompareReleases),
    responses((status = 200, description = "What differs", body = ReleaseComparison))
)]
pub async fn compare(
    State(app): State<Shared>,
    FleetPath(fleet): FleetPath,
    Params(CompareReleases { from, to }): Params<CompareReleases>,
) -> Result<Json<ReleaseComparison>, Refusal> {
    let (before, after) = app
        .store
        .read(move |tx| Ok::<_, Refusal>((numbered(tx, &fleet, from)?, numbered(tx, &fleet, to)?)))
        .await?;
    let apps = |release: &Release| -> Result<_, StoreError> {
        let input = release::input(release)?;
        let listed = &release.listed;
        Ok(listed.pins.outline(&input, listed.created_at))
    };
    let differences = difference::between(&apps(&before)?, &apps(&after)?);
    Ok(Json(ReleaseComparison {
        from,
        to,
        differences,
    }))
}

/// How a release of before travels.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollOut {
    /// The policy that it travels by; the fleet's without.
    policy: Option<i64>,
}

/// Rolls a release out again, digests and all: the way back for a fleet.
#[utoipa::path(
    post, path = "/api/v1/fleets/{name}/releases/{number}/rollout", tag = "fleets",
    params(("name" = String, Path, description = "The fleet"),
           ("number" = i64, Path, description = "Number of the release")),
    request_body = RollOut,
    responses((status = 200, description = "What came of it", body = ReleaseOutcome))
)]
pub async fn roll_out(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    ReleasePath(fleet, number): ReleasePath,
    Strict(RollOut { policy }): Strict<RollOut>,
) -> Result<Json<ReleaseOutcome>, Refusal> {
    let by = actor(&principal, &request_id);
    let (release, begun) = release::roll_out(&app, fleet, number, policy, by).await?;
    Ok(Json(outcome(release, begun)))
}
