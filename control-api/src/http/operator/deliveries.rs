//! Owns webhook deliveries, as operators see them: what arrived, why it was or was not acted on, and once more.
//!
//! Refuses to show bodies and secrets.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::approval::Verdict;
use holdfast_domain::policy::{self, Policy};
use holdfast_domain::principal::Principal;
use holdfast_domain::webhook::Vendor;
use holdfast_proto::image::Repository;
use holdfast_proto::operator::Page;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use crate::app::Shared;
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{NumberPath, Params, Strict, cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::http::webhooks::{Answer, DeliveryAnswer, as_it_is, deliver};
use crate::pushes::{self, APPROVAL, REFRESH};
use crate::store::audit::{self, NewEntry};
use crate::store::db::{StoreError, Tx};
use crate::store::deliveries::{self as stored, Delivery, New, state_named};
use crate::store::events::{self, NewEvent};
use crate::store::{policies, targets};

/// Policies looked at in one page.
const PAGE: i64 = 200;

/// Which deliveries a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveryParams {
    /// `open`, `done` or `failed`.
    state: Option<String>,
    /// At most so many items, 1 to 200; 50 by default.
    limit: Option<u32>,
    /// Where the last page ended.
    cursor: Option<String>,
}

/// A delivery, without its body.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliverySummary {
    #[serde(flatten)]
    answer: DeliveryAnswer,
    /// Who sent it: a vendor, or `approval` for a push that had waited for one.
    vendor: String,
    /// The name of the secret that it brought.
    secret: Option<String>,
    /// The request that carried it.
    request_id: String,
    /// The delivery that it repeats.
    again_of: Option<i64>,
    /// How often somebody began to work on it.
    attempts: i64,
    /// When it arrived.
    #[schema(value_type = String, format = DateTime)]
    received_at: Timestamp,
    /// When everything was done, or given up.
    #[schema(value_type = Option<String>, format = DateTime)]
    done_at: Option<Timestamp>,
}

impl From<Delivery> for DeliverySummary {
    fn from(delivery: Delivery) -> Self {
        Self {
            vendor: delivery.vendor.clone(),
            secret: delivery.secret.clone(),
            request_id: delivery.request_id.clone(),
            again_of: delivery.again_of,
            attempts: delivery.attempts,
            received_at: delivery.received_at,
            done_at: delivery.done_at,
            answer: delivery.into(),
        }
    }
}

/// Lists what arrived, the newest first: the last 10,000 deliveries.
#[utoipa::path(
    get, path = "/api/v1/webhooks/deliveries", tag = "webhooks", params(DeliveryParams),
    responses((status = 200, description = "One page of deliveries", body = Page<DeliverySummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<DeliveryParams>,
) -> Result<Json<Page<DeliverySummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let before = cursor(params.cursor.as_deref(), i64::MAX)?;
    let wrong = || Refusal::invalid_field("/state", "write `open`, `done` or `failed`");
    let state = params.state.as_deref();
    let state = state
        .map(|name| state_named(name).ok_or_else(wrong))
        .transpose()?;
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(stored::list(tx, state, before, size)?))
        .await?;
    Ok(Json(page(found, size, |delivery| delivery.id)))
}

/// Shows what arrived, and what became of it.
#[utoipa::path(
    get, path = "/api/v1/webhooks/deliveries/{id}", tag = "webhooks",
    params(("id" = i64, Path, description = "Number of the delivery")),
    responses((status = 200, description = "The delivery", body = DeliverySummary))
)]
pub async fn show(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
) -> Result<Json<DeliverySummary>, Refusal> {
    let found = app
        .store
        .read(move |tx| stored::find(tx, id)?.ok_or_else(Refusal::not_found))
        .await?;
    Ok(Json(found.into()))
}

/// Acts on a delivery once more, as if it had arrived now; the bodies of the last 1,000 are kept for it.
#[utoipa::path(
    post, path = "/api/v1/webhooks/deliveries/{id}/redeliver", tag = "webhooks",
    params(("id" = i64, Path, description = "Number of the delivery")),
    responses(
        (status = 200, description = "What became of it", body = DeliveryAnswer),
        (status = 202, description = "Stored; the work goes on", body = DeliveryAnswer),
    )
)]
pub async fn redeliver(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
) -> Result<Answer, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let unique = crate::secret::request_id()?;
    let new = app
        .store
        .transact(move |tx| -> Result<New, Refusal> {
            let first = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            let body = stored::body(tx, id)?.ok_or_else(|| {
                let detail = "its body is not kept any more";
                Refusal::new(StatusCode::CONFLICT, "body_gone", detail)
            })?;
            let vendor = source(&first.vendor).ok_or_else(|| {
                let detail = "this version does not know its sender";
                Refusal::new(StatusCode::CONFLICT, "unknown_sender", detail)
            })?;
            let entry = NewEntry {
                action: "webhook.redeliver",
                subject_kind: "webhook_delivery",
                subject: id.to_string(),
                before: None,
                after: None,
            };
            audit::append(tx, &by, &entry, now)?;
            let event = NewEvent {
                kind: "image.webhook_redelivered",
                device: None,
                subject: None,
                detail: json!({"delivery": id, "by": by.name}),
                delivery: None,
            };
            events::record(tx, &event, now)?;
            Ok(New {
                vendor,
                key: format!("again {id} {unique}"),
                same_since: None,
                body,
                secret: first.secret,
                request_id: by.request_id.clone(),
                again_of: Some(id),
                record: None,
            })
        })
        .await?;
    Ok(as_it_is(deliver(&app, new, now).await?))
}

fn source(vendor: &str) -> Option<&'static str> {
    for ours in [APPROVAL, REFRESH] {
        if vendor == ours {
            return Some(ours);
        }
    }
    Vendor::named(vendor).map(Vendor::name)
}

/// A push to be judged.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookTest {
    /// The image, with or without its tag.
    image: String,
    /// The tag; that of the image without, else `latest`.
    tag: Option<String>,
}

/// What would happen with a push.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookTestAnswer {
    /// The image, as people write it.
    image: String,
    /// The tag.
    tag: String,
    /// `internal`, `approved`, `unknown`, `pending`, `rejected` or `tag_deprecated`.
    verdict: String,
    /// The refusal's short name, when the image may not run.
    error: Option<String>,
    /// Why nothing would begin; null when a rollout would, unless the tag means what it meant.
    reason: Option<String>,
    /// What a person can do about it.
    action_required: Option<String>,
    /// Whether somebody would be asked whether the image may run.
    would_ask: bool,
    /// Whether the tag would be added to the image.
    would_add_tag: bool,
    /// The policy that counts.
    policy: Option<PolicyName>,
    /// Devices whose target names this tag.
    devices: u64,
}

/// A policy.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyName {
    /// Its number.
    id: i64,
    /// Its name.
    name: String,
}

/// Judges a push without telling anybody: nothing is stored, nobody is asked, nothing begins.
#[utoipa::path(
    post, path = "/api/v1/webhooks/test", tag = "webhooks", request_body = WebhookTest,
    responses((status = 200, description = "What would happen", body = WebhookTestAnswer))
)]
pub async fn test(
    State(app): State<Shared>,
    Strict(test): Strict<WebhookTest>,
) -> Result<Json<WebhookTestAnswer>, Refusal> {
    let body = json!({ "image": test.image, "tag": test.tag });
    let pushed = Vendor::Generic.pushes(&body);
    let pushed = pushed.map_err(|error| Refusal::invalid_field(&error.pointer, error.detail))?;
    let Some(push) = pushed.into_iter().next() else {
        return Err(Refusal::invalid_field("/image", "it names no image"));
    };
    let internal = app.pushes.internal.clone();
    let answer = app
        .store
        .read(move |tx| foretell(tx, &internal, &push.repository, &push.tag))
        .await?;
    Ok(Json(answer))
}

fn foretell(
    tx: &mut Tx<'_>,
    internal: &[holdfast_domain::approval::Internal],
    repository: &Repository,
    tag: &str,
) -> Result<WebhookTestAnswer, Refusal> {
    let judged = pushes::look(tx, internal, repository, tag)?;
    let verdict = judged.verdict;
    let policy = chosen(tx, repository, tag)?;
    let devices = targets::count_naming(tx, repository, tag)?;
    let reason = verdict.why(repository, tag).or_else(|| {
        if policy.is_none() {
            Some("no policy is for it".to_owned())
        } else if devices == 0 {
            Some("no device's target names it".to_owned())
        } else {
            None
        }
    });
    Ok(WebhookTestAnswer {
        image: repository.familiar(),
        tag: tag.to_owned(),
        verdict: verdict.word().to_owned(),
        error: verdict.error().map(str::to_owned),
        reason,
        action_required: match verdict {
            Verdict::Refused(refusal) => Some(pushes::action(refusal, &judged)),
            Verdict::Unknown => Some("approve it: POST /api/v1/images".to_owned()),
            Verdict::Internal | Verdict::Approved { .. } => None,
        },
        would_ask: verdict == Verdict::Unknown,
        would_add_tag: verdict == Verdict::Approved { adds_tag: true },
        policy,
        devices,
    })
}

/// The policy that counts for a tag.
fn chosen(
    tx: &mut Tx<'_>,
    repository: &Repository,
    tag: &str,
) -> Result<Option<PolicyName>, StoreError> {
    let mut fitting: Vec<(i64, Policy)> = Vec::new();
    let mut after = 0;
    loop {
        let page = policies::list(tx, after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        let page = page.into_iter().map(|stored| (stored.id, stored.policy));
        fitting.extend(page.filter(|(_, policy)| policy.is_for(repository, tag)));
    }
    let all = fitting.iter().map(|(id, policy)| (*id, policy));
    let chosen = policy::choose(all, repository, tag);
    Ok(chosen.map(|(id, policy)| PolicyName {
        id,
        name: policy.input.name.clone(),
    }))
}
