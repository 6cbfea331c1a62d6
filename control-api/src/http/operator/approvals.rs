//! Owns the questions whether images may run, as operators see them: listed, asked, decided one by one or many.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::approval::Approval;
use holdfast_domain::principal::Principal;
use holdfast_domain::webhook::{Push, Vendor};
use holdfast_proto::image::Digest;
use holdfast_proto::operator::Page;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use crate::app::{App, Shared};
use crate::approvals::{self as decisions, Decided, Word};
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{NumberPath, Params, Strict, cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::pushes;
use crate::store::approvals::{self as stored, Request, state_name, state_named};
use crate::store::images;

/// Questions in one call: each is a transaction of its own.
const MOST_AT_ONCE: usize = 100;
const MAX_NOTE: usize = 1_000;

/// Which questions a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ApprovalParams {
    /// `open`, `approved` or `rejected`.
    state: Option<String>,
    /// At most so many items, 1 to 200; 50 by default.
    limit: Option<u32>,
    /// Where the last page ended.
    cursor: Option<String>,
}

/// A question whether an image may run.
#[derive(Debug, Serialize, ToSchema)]
pub struct ApprovalSummary {
    /// Its number.
    id: i64,
    /// The image, as people write it.
    image: String,
    /// The tag that was pushed last.
    tag: String,
    /// What it was said to mean: a claim, unless the question was asked by a person.
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
    /// Who asked first: a vendor, `operator`, `refresh` or `target`.
    source: String,
    /// `open`, `approved` or `rejected`.
    state: String,
    /// How often it was asked.
    times: u64,
    /// Who approved so far, or who decided.
    approvals: Vec<String>,
    /// Why it was decided so.
    note: Option<String>,
    /// Who decided.
    decided_by: Option<String>,
    /// When.
    #[schema(value_type = Option<String>, format = DateTime)]
    decided_at: Option<Timestamp>,
    /// When it was asked first.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it was asked last.
    #[schema(value_type = String, format = DateTime)]
    last_at: Timestamp,
}

impl From<Request> for ApprovalSummary {
    fn from(request: Request) -> Self {
        Self {
            id: request.id,
            image: request.repository.familiar(),
            tag: request.tag,
            digest: request.digest,
            source: request.source,
            state: state_name(request.state).to_owned(),
            times: request.times,
            approvals: request.approvals,
            note: request.note,
            decided_by: request.decided_by,
            decided_at: request.decided_at,
            created_at: request.created_at,
            last_at: request.last_at,
        }
    }
}

/// Lists questions, the newest first.
#[utoipa::path(
    get, path = "/api/v1/approval-requests", tag = "images", params(ApprovalParams),
    responses((status = 200, description = "One page of questions", body = Page<ApprovalSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<ApprovalParams>,
) -> Result<Json<Page<ApprovalSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let before = cursor(params.cursor.as_deref(), i64::MAX)?;
    let wrong = || Refusal::invalid_field("/state", "write `open`, `approved` or `rejected`");
    let state = params.state.as_deref();
    let state = state
        .map(|name| state_named(name).ok_or_else(wrong))
        .transpose()?;
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(stored::list(tx, state, before, size)?))
        .await?;
    Ok(Json(page(found, size, |request| request.id)))
}

/// Shows a question.
#[utoipa::path(
    get, path = "/api/v1/approval-requests/{id}", tag = "images",
    params(("id" = i64, Path, description = "Number of the question")),
    responses((status = 200, description = "The question", body = ApprovalSummary))
)]
pub async fn show(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
) -> Result<Json<ApprovalSummary>, Refusal> {
    let found = app
        .store
        .read(move |tx| stored::find(tx, id)?.ok_or_else(Refusal::not_found))
        .await?;
    Ok(Json(found.into()))
}

/// An image that somebody wants to run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApproval {
    /// The image, with or without its tag.
    image: String,
    /// The tag; that of the image without, else `latest`.
    tag: Option<String>,
    /// The content, if it is to be approved no other.
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
}

/// Asks whether an image may run, before anybody pushes it. One that was asked for already is asked for once more.
#[utoipa::path(
    post, path = "/api/v1/approval-requests", tag = "images", request_body = NewApproval,
    responses((status = 201, description = "Asked", body = ApprovalSummary))
)]
pub async fn ask(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Strict(new): Strict<NewApproval>,
) -> Result<(StatusCode, Json<ApprovalSummary>), Refusal> {
    let body = json!({ "image": new.image, "tag": new.tag, "digest": new.digest });
    let pushed = Vendor::Generic.pushes(&body);
    let pushed = pushed.map_err(|error| Refusal::invalid_field(&error.pointer, error.detail))?;
    let Some(push) = pushed.into_iter().next() else {
        return Err(Refusal::invalid_field("/image", "it names no image"));
    };
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let asked = app
        .store
        .transact(move |tx| -> Result<Request, Refusal> {
            let Push { repository, .. } = &push;
            let known = images::named(tx, repository)?;
            if known.is_some_and(|image| image.approval == Approval::Approved) {
                return Err(Refusal::new(
                    StatusCode::CONFLICT,
                    "approved_already",
                    format!("{} may run already", repository.familiar()),
                ));
            }
            let id = pushes::ask(tx, &push, ("operator", &by), now)?;
            stored::find(tx, id)?.ok_or_else(Refusal::internal)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(asked.into())))
}

/// What somebody says to a question.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Say {
    /// Why.
    note: Option<String>,
    /// What the question showed: with this it is decided only if it is still about this content.
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
}

/// A question after somebody had their say.
#[derive(Debug, Serialize, ToSchema)]
pub struct DecidedApproval {
    #[serde(flatten)]
    request: ApprovalSummary,
    /// The webhook delivery in which the push goes on that had waited.
    delivery: Option<i64>,
}

impl From<Decided> for DecidedApproval {
    fn from(decided: Decided) -> Self {
        Self {
            request: decided.request.into(),
            delivery: decided.delivery,
        }
    }
}

fn check(note: Option<&str>) -> Result<(), Refusal> {
    if note.is_some_and(|note| note.len() > MAX_NOTE) {
        let detail = format!("write at most {MAX_NOTE} bytes");
        return Err(Refusal::invalid_field("/note", detail));
    }
    Ok(())
}

/// What is done with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalAction {
    /// The image may run.
    Approve,
    /// It may not.
    Reject,
}

async fn decide(
    app: &App,
    id: i64,
    action: ApprovalAction,
    word: Word,
) -> Result<DecidedApproval, Refusal> {
    let (now, two_person) = (clock::now(), app.pushes.two_person);
    let decided = app
        .store
        .transact(move |tx| match action {
            ApprovalAction::Approve => decisions::approve(tx, two_person, id, &word, now),
            ApprovalAction::Reject => decisions::reject(tx, id, &word, now),
        })
        .await?;
    if decided.delivery.is_some() {
        app.pushes.deliver_soon.notify_one();
    }
    Ok(decided.into())
}

/// Approves: the image may run, its tag is added, and the push that waited goes on.
///
/// Where the configuration wants two people, the first approval leaves the question open.
#[utoipa::path(
    post, path = "/api/v1/approval-requests/{id}/approve", tag = "images", request_body = Say,
    params(("id" = i64, Path, description = "Number of the question")),
    responses((status = 200, description = "As it is now", body = DecidedApproval))
)]
pub async fn approve(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
    Strict(say): Strict<Say>,
) -> Result<Json<DecidedApproval>, Refusal> {
    check(say.note.as_deref())?;
    let word = Word {
        by: actor(&principal, &request_id),
        note: say.note,
        digest: say.digest,
    };
    Ok(Json(decide(&app, id, ApprovalAction::Approve, word).await?))
}

/// Rejects: the image may not run, and nobody is asked about it again.
#[utoipa::path(
    post, path = "/api/v1/approval-requests/{id}/reject", tag = "images", request_body = Say,
    params(("id" = i64, Path, description = "Number of the question")),
    responses((status = 200, description = "As it is now", body = DecidedApproval))
)]
pub async fn reject(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
    Strict(say): Strict<Say>,
) -> Result<Json<DecidedApproval>, Refusal> {
    check(say.note.as_deref())?;
    let word = Word {
        by: actor(&principal, &request_id),
        note: say.note,
        digest: say.digest,
    };
    Ok(Json(decide(&app, id, ApprovalAction::Reject, word).await?))
}

/// Many questions that are decided alike.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BulkDecision {
    /// Their numbers, 1 to 100.
    ids: Vec<i64>,
    /// What is done with each.
    action: ApprovalAction,
    /// Why.
    note: Option<String>,
}

/// What became of one of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkOutcome {
    /// The question.
    id: i64,
    /// The status that it alone would have been answered with.
    status: u16,
    /// How it is now; null when nothing changed.
    request: Option<DecidedApproval>,
    /// Why nothing changed.
    detail: Option<String>,
}

/// What became of each.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkAnswer {
    /// In the order of the ids.
    items: Vec<BulkOutcome>,
}

/// Decides many questions, each by itself: one that cannot be decided holds no other up.
#[utoipa::path(
    post, path = "/api/v1/approval-requests/bulk", tag = "images", request_body = BulkDecision,
    responses((status = 200, description = "What became of each", body = BulkAnswer))
)]
pub async fn bulk(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Strict(many): Strict<BulkDecision>,
) -> Result<Json<BulkAnswer>, Refusal> {
    check(many.note.as_deref())?;
    if !(1..=MOST_AT_ONCE).contains(&many.ids.len()) {
        let detail = format!("write 1 to {MOST_AT_ONCE} numbers");
        return Err(Refusal::invalid_field("/ids", detail));
    }
    let by = actor(&principal, &request_id);
    let mut items = Vec::with_capacity(many.ids.len());
    for id in many.ids {
        let word = Word {
            by: by.clone(),
            note: many.note.clone(),
            digest: None,
        };
        items.push(match decide(&app, id, many.action, word).await {
            Ok(decided) => BulkOutcome {
                id,
                status: StatusCode::OK.as_u16(),
                request: Some(decided),
                detail: None,
            },
            Err(refusal) => BulkOutcome {
                id,
                status: refusal.status().as_u16(),
                request: None,
                detail: Some(refusal.detail().to_owned()),
            },
        });
    }
    Ok(Json(BulkAnswer { items }))
}
