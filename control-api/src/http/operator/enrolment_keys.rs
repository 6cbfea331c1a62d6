//! Owns enrolment keys: made, listed, revoked; shown once.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::principal::Principal;
use holdfast_domain::scope::FLEET_LABEL;
use holdfast_proto::operator::Page;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::devices::{check_labels, check_name};
use super::tokens::{PageParams, check_expiry};
use crate::app::Shared;
use crate::clock;
use crate::fleets;
use crate::http::auth::actor;
use crate::http::extract::{NumberPath, Params, Strict, cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::secret::{self, Kind};
use crate::store::audit::{self, NewEntry};
use crate::store::devices::Labels;
use crate::store::enrolment_keys::{self as keys, EnrolmentKey};
use crate::store::events::{self, NewEvent};

/// An enrolment key without the key itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeySummary {
    /// Number by which it is revoked.
    id: i64,
    /// What it is for.
    name: String,
    /// Labels that every device enrolled with it gets.
    labels: Labels,
    /// How many enrolments it allows; null for no limit.
    max_uses: Option<u64>,
    /// How many it has seen.
    used: u64,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it stops working.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

impl From<EnrolmentKey> for KeySummary {
    fn from(key: EnrolmentKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            labels: key.labels,
            max_uses: key.max_uses,
            used: key.used,
            created_at: key.created_at,
            expires_at: key.expires_at,
        }
    }
}

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEnrolmentKey {
    /// What it is for.
    name: String,
    /// Labels that every device enrolled with it gets, whatever it asks for.
    #[serde(default)]
    labels: Labels,
    /// How many enrolments it allows; no limit when absent.
    #[schema(minimum = 1)]
    max_uses: Option<u32>,
    /// When it stops working; never when absent.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

/// A new key: the only answer that shows it.
#[derive(Serialize, ToSchema)]
pub struct CreatedKey {
    #[serde(flatten)]
    summary: KeySummary,
    /// The key itself.
    key: String,
}

/// Makes an enrolment key and shows it, once.
#[utoipa::path(
    post, path = "/api/v1/enrolment-keys", tag = "access", request_body = NewEnrolmentKey,
    responses((status = 201, description = "The key", body = CreatedKey))
)]
pub async fn create(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Strict(new): Strict<NewEnrolmentKey>,
) -> Result<(StatusCode, Json<CreatedKey>), Refusal> {
    let now = clock::now();
    let mut errors = check_labels(&new.labels);
    errors.extend(check_name("/name", &new.name));
    errors.extend(check_expiry(new.expires_at, now));
    if new.max_uses == Some(0) {
        errors.push(holdfast_proto::problem::FieldError {
            pointer: "/max_uses".to_owned(),
            detail: "must be at least 1; leave it out for no limit".to_owned(),
        });
    }
    if !errors.is_empty() {
        return Err(Refusal::invalid(errors));
    }
    let key = secret::token(Kind::EnrolmentKey)?;
    let stored = keys::NewKey {
        name: new.name,
        hash: key.hash(),
        labels: new.labels,
        max_uses: new.max_uses,
        expires_at: new.expires_at,
    };
    let by = actor(&principal, &request_id);
    let summary = app
        .store
        .transact(move |tx| -> Result<KeySummary, Refusal> {
            let id = keys::insert(tx, &stored, now)?;
            let about = json!({"name": stored.name, "labels": stored.labels,
                               "max_uses": stored.max_uses});
            let entry = NewEntry {
                action: "enrolment_key.create",
                subject_kind: "enrolment_key",
                subject: id.to_string(),
                before: None,
                after: Some(about.clone()),
            };
            audit::append(tx, &by, &entry, now)?;
            events::record(
                tx,
                &NewEvent::about("enrolment_key.created", &id.to_string(), about),
                now,
            )?;
            if let Some(name) = stored.labels.get(FLEET_LABEL) {
                fleets::ensure(tx, name, &by, now)?;
            }
            Ok(KeySummary {
                id,
                name: stored.name.clone(),
                labels: stored.labels.clone(),
                max_uses: stored.max_uses.map(u64::from),
                used: 0,
                created_at: now,
                expires_at: stored.expires_at,
            })
        })
        .await?;
    let created = CreatedKey {
        summary,
        key: key.expose().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Lists enrolment keys, without the keys themselves.
#[utoipa::path(
    get, path = "/api/v1/enrolment-keys", tag = "access", params(PageParams),
    responses((status = 200, description = "One page of keys", body = Page<KeySummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<KeySummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(keys::list(tx, after, size)?))
        .await?;
    Ok(Json(page(found, size, |key| key.id)))
}

/// Revokes an enrolment key at once; devices enrolled with it stay.
#[utoipa::path(
    delete, path = "/api/v1/enrolment-keys/{id}", tag = "access",
    params(("id" = i64, Path, description = "Number of the key")),
    responses((status = 204, description = "Revoked"))
)]
pub async fn revoke(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
) -> Result<StatusCode, Refusal> {
    let now = clock::now();
    let by = actor(&principal, &request_id);
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let key = keys::remove(tx, id)?.ok_or_else(Refusal::not_found)?;
            let about = json!({"name": key.name, "used": key.used});
            let entry = NewEntry {
                action: "enrolment_key.revoke",
                subject_kind: "enrolment_key",
                subject: id.to_string(),
                before: Some(about.clone()),
                after: None,
            };
            audit::append(tx, &by, &entry, now)?;
            events::record(
                tx,
                &NewEvent::about("enrolment_key.revoked", &id.to_string(), about),
                now,
            )?;
            Ok(())
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
