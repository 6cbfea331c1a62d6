//! Owns reading what happened: events and the audit log, both newest first, and whether the log is unbroken.

use axum::Json;
use axum::extract::State;
use holdfast_domain::chain::{Break, Verdict};
use holdfast_proto::id::DeviceId;
use holdfast_proto::operator::Page;
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::app::Shared;
use crate::http::extract::{Params, cursor, next_cursor, page, page_size};
use crate::http::problem::Refusal;
use crate::store::{audit as log, events as stored};

/// Which events, and which page of them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventParams {
    /// At most so many items, 1 to 200; 50 by default.
    limit: Option<u32>,
    /// Where the last page ended.
    cursor: Option<String>,
    /// Only this kind, such as `device.enrolled`.
    kind: Option<String>,
    /// Only this device.
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
}

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventEntry {
    /// Number of the event; later ones are greater.
    id: i64,
    /// What happened.
    kind: String,
    /// The device concerned.
    device: Option<DeviceId>,
    /// What else is concerned.
    subject: Option<String>,
    /// The rest, by kind.
    #[schema(value_type = Object)]
    detail: serde_json::Value,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

impl From<stored::Event> for EventEntry {
    fn from(event: stored::Event) -> Self {
        Self {
            id: event.id,
            kind: event.kind,
            device: event.device,
            subject: event.subject,
            detail: event.detail,
            at: event.at,
        }
    }
}

/// Lists events, newest first.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "history", params(EventParams),
    responses((status = 200, description = "One page of events", body = Page<EventEntry>))
)]
pub async fn events(
    State(app): State<Shared>,
    Params(params): Params<EventParams>,
) -> Result<Json<Page<EventEntry>>, Refusal> {
    let size = page_size(params.limit)?;
    let before = cursor(params.cursor.as_deref(), i64::MAX)?;
    let found = app
        .store
        .read(move |tx| {
            let kind = params.kind.as_deref();
            Ok::<_, Refusal>(stored::list(tx, kind, params.device, before, size)?)
        })
        .await?;
    Ok(Json(page(found, size, |event| event.id)))
}

/// Which rows of the audit log, and which page of them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditParams {
    /// At most so many items, 1 to 200; 50 by default.
    limit: Option<u32>,
    /// Where the last page ended.
    cursor: Option<String>,
    /// Only this device, token or key, by its id.
    subject: Option<String>,
}

/// One change, by whom.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditEntry {
    /// Number of the row; later ones are greater.
    id: i64,
    /// `operator`, `device`, `enrolment_key`, `webhook` or `system`.
    actor_kind: String,
    /// Who.
    actor: String,
    /// What was done.
    action: String,
    /// The kind of thing it was done to.
    subject_kind: String,
    /// Which one.
    subject: String,
    /// How it was; null for something new.
    #[schema(value_type = Option<Object>)]
    before: Option<serde_json::Value>,
    /// How it is; null for something gone.
    #[schema(value_type = Option<Object>)]
    after: Option<serde_json::Value>,
    /// The request that carried it.
    request_id: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

/// Lists changes and who caused them, newest first.
#[utoipa::path(
    get, path = "/api/v1/audit", tag = "history", params(AuditParams),
    responses((status = 200, description = "One page of the audit log", body = Page<AuditEntry>))
)]
pub async fn audit(
    State(app): State<Shared>,
    Params(params): Params<AuditParams>,
) -> Result<Json<Page<AuditEntry>>, Refusal> {
    let size = page_size(params.limit)?;
    let before = cursor(params.cursor.as_deref(), i64::MAX)?;
    let found = app
        .store
        .read(move |tx| {
            let subject = params.subject.as_deref();
            Ok::<_, Refusal>(log::list(tx, subject, before, size)?)
        })
        .await?;
    let next_cursor = next_cursor(&found, size, |entry| entry.id);
    let items = found
        .into_iter()
        .map(|entry| AuditEntry {
            id: entry.id,
            actor_kind: entry.actor_kind,
            actor: entry.actor,
            action: entry.action,
            subject_kind: entry.subject_kind,
            subject: entry.subject,
            before: entry.before,
            after: entry.after,
            request_id: entry.request_id,
            at: entry.at,
        })
        .collect();
    Ok(Json(Page { items, next_cursor }))
}

/// How a row of the audit log is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakKind {
    /// It is not what was written, or not where it was written.
    Changed,
    /// It is not there.
    Missing,
    /// Rows up to it were removed, and not by the retention.
    Beginning,
}

impl From<Break> for BreakKind {
    fn from(how: Break) -> Self {
        match how {
            Break::Changed => Self::Changed,
            Break::Missing => Self::Missing,
            Break::Beginning => Self::Beginning,
        }
    }
}

/// The first row of the audit log that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BrokenRow {
    /// Number of the row.
    id: i64,
    /// How it is broken.
    how: BreakKind,
}

/// Whether the audit log is as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditVerdict {
    /// Whether each row follows from the one before it, and none is missing.
    unbroken: bool,
    /// How many rows were looked at.
    rows: u64,
    /// Number of the newest row; null when a row is broken.
    last_id: Option<i64>,
    /// Its hash, which stands for the whole log up to it: note it elsewhere, and a log that was written anew shows.
    last_hash: Option<String>,
    /// The first row that is broken.
    broken: Option<BrokenRow>,
}

/// Reads the whole audit log and says whether it is as it was written.
#[utoipa::path(
    get, path = "/api/v1/audit/verify", tag = "history",
    responses((status = 200, description = "Whether the log is unbroken", body = AuditVerdict))
)]
pub async fn verify(State(app): State<Shared>) -> Result<Json<AuditVerdict>, Refusal> {
    let Ok(_turn) = app.verifying.try_lock() else {
        return Err(Refusal::busy());
    };
    let (verdict, rows) = app
        .store
        .read(|tx| Ok::<_, Refusal>(log::verify(tx)?))
        .await?;
    Ok(Json(match verdict {
        Verdict::Whole(last) => AuditVerdict {
            unbroken: true,
            rows,
            last_id: Some(last.id),
            last_hash: Some(last.hash),
            broken: None,
        },
        Verdict::Broken(id, how) => {
            // Also for whoever reads logs elsewhere: the database is not to be trusted now.
            tracing::error!(audit.id = id, how = ?how, "the audit log is broken");
            AuditVerdict {
                unbroken: false,
                rows,
                last_id: None,
                last_hash: None,
                broken: Some(BrokenRow {
                    id,
                    how: how.into(),
                }),
            }
        }
    }))
}
