//! Owns asking what tags mean: now, by a refresh, and before, by their history.

use axum::Json;
use axum::extract::State;
use holdfast_domain::resolution::Key;
use holdfast_proto::image::{Digest, Reference};
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::app::Shared;
use crate::clock;
use crate::http::extract::{Params, Strict};
use crate::http::problem::Refusal;
use crate::store::{resolutions, tag_history};

/// What to ask registries for.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    /// The reference, in any spelling; all that targets name when absent.
    #[schema(value_type = Option<String>)]
    reference: Option<Reference>,
}

/// What registries will be asked for.
#[derive(Debug, Serialize, ToSchema)]
pub struct Refreshing {
    /// How many questions that is: one for each image and login.
    questions: u64,
}

/// Asks registries, as soon as they allow it, what references in targets mean now.
///
/// The answers show in update reports and in the history; no device's target changes.
#[utoipa::path(
    post, path = "/api/v1/images/refresh", tag = "images", request_body = Refresh,
    responses((status = 202, description = "Will be asked for", body = Refreshing))
)]
pub async fn refresh(
    State(app): State<Shared>,
    Strict(wanted): Strict<Refresh>,
) -> Result<(StatusCode, Json<Refreshing>), Refusal> {
    let now = clock::now();
    let key = wanted.reference.as_ref().map(Key::of);
    if key.as_ref().is_some_and(Key::is_pinned) {
        return Err(Refusal::invalid_field(
            "/reference",
            "names a digest, which never means anything else",
        ));
    }
    let one = key.is_some();
    let questions = app
        .store
        .transact(move |tx| Ok::<_, Refusal>(resolutions::hurry(tx, key.as_ref(), now)?))
        .await?;
    if one && questions == 0 {
        return Err(Refusal::invalid_field(
            "/reference",
            "is in no device's target",
        ));
    }
    app.resolve_soon.notify_one();
    Ok((StatusCode::ACCEPTED, Json(Refreshing { questions })))
}

/// Whose history.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryParams {
    /// The reference, in any spelling.
    #[param(value_type = String)]
    reference: Reference,
}

/// A time in which a reference meant one digest.
#[derive(Debug, Serialize, ToSchema)]
pub struct HistoryEntry {
    /// What it meant: an index's digest where there is one.
    digest: Digest,
    /// When that was seen first.
    #[schema(value_type = String, format = DateTime)]
    first_seen: Timestamp,
    /// When it was seen last.
    #[schema(value_type = String, format = DateTime)]
    last_seen: Timestamp,
}

/// What a reference meant.
#[derive(Debug, Serialize, ToSchema)]
pub struct History {
    /// The reference in its canonical spelling.
    reference: String,
    /// The newest first; a digest that came back is there again. At most 100.
    items: Vec<HistoryEntry>,
}

/// Shows what a reference meant, and from when to when.
#[utoipa::path(
    get, path = "/api/v1/images/history", tag = "images", params(HistoryParams),
    responses((status = 200, description = "The newest first", body = History))
)]
pub async fn history(
    State(app): State<Shared>,
    Params(params): Params<HistoryParams>,
) -> Result<Json<History>, Refusal> {
    let key = Key::of(&params.reference);
    let reference = key.to_string();
    let periods = app
        .store
        .read(move |tx| Ok::<_, Refusal>(tag_history::of(tx, &key)?))
        .await?;
    let items = periods
        .into_iter()
        .map(|period| HistoryEntry {
            digest: period.digest,
            first_seen: period.first_seen,
            last_seen: period.last_seen,
        })
        .collect();
    Ok(Json(History { reference, items }))
}
