//! Owns update policies, as operators see them: made, changed, and shown before they count.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::policy::Policy;
use holdfast_domain::principal::Principal;
use holdfast_proto::operator::Page;
use holdfast_proto::policy::PolicyInput;
use holdfast_proto::problem::Pointer;
use holdfast_proto::time::Timestamp;
use holdfast_proto::window::ZoneName;
use http::StatusCode;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::tokens::PageParams;
use crate::app::Shared;
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{NumberPath, Params, Strict, cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::rollouts;
use crate::store::Tx;
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::events::{self, NewEvent};
use crate::store::policies::{self as stored, Stored};

/// A policy.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicySummary {
    /// Its number.
    id: i64,
    /// What it says, as it may be sent back.
    policy: PolicyInput,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it changed last.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<Stored> for PolicySummary {
    fn from(stored: Stored) -> Self {
        Self {
            id: stored.id,
            policy: stored.policy.input,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
        }
    }
}

fn read(input: PolicyInput) -> Result<Policy, Refusal> {
    let windows = Pointer::default().member("windows");
    let unknown = input.windows.iter().enumerate().filter_map(|(n, window)| {
        let zone = &window.timezone;
        let at = windows.member(n).member("timezone");
        zone_is_unknown(zone).then(|| at.error(format!("there is no time zone {zone}")))
    });
    let mut errors: Vec<_> = unknown.collect();
    match Policy::read(input) {
        Ok(policy) if errors.is_empty() => Ok(policy),
        Ok(_) => Err(Refusal::invalid(errors)),
        Err(others) => {
            errors.extend(others);
            Err(Refusal::invalid(errors))
        }
    }
}

fn zone_is_unknown(name: &ZoneName) -> bool {
    rollouts::zone(name).is_none()
}

fn taken(policy: &Policy) -> Refusal {
    Refusal::new(
        StatusCode::CONFLICT,
        "known_policy",
        format!("there is a policy called {} already", policy.input.name),
    )
}

fn note(
    tx: &mut Tx<'_>,
    by: &Actor,
    action: &str,
    (before, after): (Option<&Policy>, Option<&Policy>),
    now: Timestamp,
) -> Result<(), Refusal> {
    let name = after.or(before).map_or("", |policy| &policy.input.name);
    let about = |policy: &Policy| json!(policy.input);
    let entry = NewEntry {
        action,
        subject_kind: "policy",
        subject: name.to_owned(),
        before: before.map(about),
        after: after.map(about),
    };
    audit::append(tx, by, &entry, now)?;
    events::record(
        tx,
        &NewEvent::about("policy.changed", name, json!({ "action": action })),
        now,
    )?;
    Ok(())
}

/// Lists policies.
#[utoipa::path(
    get, path = "/api/v1/policies", tag = "rollouts", params(PageParams),
    responses((status = 200, description = "One page of policies", body = Page<PolicySummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<PolicySummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(stored::list(tx, after, size)?))
        .await?;
    Ok(Json(page(found, size, |policy| policy.id)))
}

/// Makes a policy. What cannot be carried out is refused by member.
#[utoipa::path(
    post, path = "/api/v1/policies", tag = "rollouts", request_body = PolicyInput,
    responses((status = 201, description = "Made", body = PolicySummary))
)]
pub async fn create(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Strict(input): Strict<PolicyInput>,
) -> Result<(StatusCode, Json<PolicySummary>), Refusal> {
    let policy = read(input)?;
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let made = app
        .store
        .transact(move |tx| -> Result<Stored, Refusal> {
            let id = stored::insert(tx, &policy, now)?.ok_or_else(|| taken(&policy))?;
            note(tx, &by, "policy.create", (None, Some(&policy)), now)?;
            stored::find(tx, id)?.ok_or_else(Refusal::internal)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(made.into())))
}

/// Shows a policy.
#[utoipa::path(
    get, path = "/api/v1/policies/{id}", tag = "rollouts",
    params(("id" = i64, Path, description = "Number of the policy")),
    responses((status = 200, description = "The policy", body = PolicySummary))
)]
pub async fn show(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
) -> Result<Json<PolicySummary>, Refusal> {
    let found = app
        .store
        .read(move |tx| stored::find(tx, id)?.ok_or_else(Refusal::not_found))
        .await?;
    Ok(Json(found.into()))
}

/// Replaces a policy. Rollouts on their way keep what it said when they were made.
#[utoipa::path(
    put, path = "/api/v1/policies/{id}", tag = "rollouts", request_body = PolicyInput,
    params(("id" = i64, Path, description = "Number of the policy")),
    responses((status = 200, description = "As it is now", body = PolicySummary))
)]
pub async fn replace(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
    Strict(input): Strict<PolicyInput>,
) -> Result<Json<PolicySummary>, Refusal> {
    let policy = read(input)?;
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let found = app
        .store
        .transact(move |tx| -> Result<Stored, Refusal> {
            let before = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            if !stored::update(tx, id, &policy, now)? {
                return Err(taken(&policy));
            }
            let both = (Some(&before.policy), Some(&policy));
            note(tx, &by, "policy.change", both, now)?;
            stored::find(tx, id)?.ok_or_else(Refusal::internal)
        })
        .await?;
    Ok(Json(found.into()))
}

/// Forgets a policy.
#[utoipa::path(
    delete, path = "/api/v1/policies/{id}", tag = "rollouts",
    params(("id" = i64, Path, description = "Number of the policy")),
    responses((status = 204, description = "Forgotten"))
)]
pub async fn remove(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
) -> Result<StatusCode, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let before = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            stored::remove(tx, id)?;
            note(tx, &by, "policy.remove", (Some(&before.policy), None), now)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
