//! Owns receiving webhooks: proven first, stored once, answered with what became of them.
//!
//! Refuses to act in the request: a task does, and the answer waits for it for a moment only. A sender that repeats
//! itself gets the first answer again.

mod proof;

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::webhook::{Vendor, identity};
use holdfast_proto::image::Digest;
use holdfast_proto::problem::FieldError;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use utoipa::ToSchema;

use crate::app::{App, Shared};
use crate::clock;
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::store::deliveries::{
    self, Delivery, New, Outcome, Record, State as Progress, state_name,
};
use proof::Proven;

/// A delivery without a name of its own is the same as one with the same body within this time: a sender that repeats
/// itself does it at once. A pipeline that pushes the same tag again later means it.
const SAME_BODY_MS: i64 = 60_000;

/// What became of a delivery.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryAnswer {
    /// Its number.
    delivery: i64,
    /// `open`, `done` or `failed`.
    state: String,
    /// What became of each push in it, as far as that is known.
    outcomes: Vec<Outcome>,
    /// Why nothing follows from it.
    reason: Option<String>,
    /// Where and why it could not be read.
    fault: Option<FieldError>,
}

impl From<Delivery> for DeliveryAnswer {
    fn from(delivery: Delivery) -> Self {
        let record = delivery.record.unwrap_or_default();
        Self {
            delivery: delivery.id,
            state: state_name(delivery.state).to_owned(),
            outcomes: record.outcomes,
            reason: record.reason,
            fault: record.fault,
        }
    }
}

/// An answer whose status says how far the delivery is.
pub type Answer = (StatusCode, Json<DeliveryAnswer>);

/// Takes what any registry or pipeline sends about pushes, and finds out by its form who sent it.
///
/// Send the secret as bearer token, in `X-Holdfast-Secret` or as the last part of the path, or sign the body
/// (`X-Hub-Signature-256`). Docker Hub's form and `{image, tag, digest?}` are answered with 403 when the image may not
/// run; all other senders would repeat that, and read the same in the body of a 200. 202 says that the work goes on.
#[utoipa::path(
    post, path = "/api/v1/webhooks/docker-registry", tag = "webhooks",
    request_body(content = Value, description = "As the sender writes it, at most 256 KiB"),
    responses(
        (status = 200, description = "What became of it", body = DeliveryAnswer),
        (status = 202, description = "Stored; the work goes on", body = DeliveryAnswer),
    )
)]
pub async fn detected(
    State(app): State<Shared>,
    Extension(request_id): Extension<RequestId>,
    sent: Proven,
) -> Result<Answer, Refusal> {
    receive(&app, &request_id, sent, None).await
}

/// Takes what this vendor sends: `docker_hub`, `github`, `distribution`, `gitlab`, `harbor`, `quay`, `acr`, `ecr`,
/// `gar`, `jfrog` or `generic`.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{vendor}", tag = "webhooks",
    params(("vendor" = String, Path, description = "Who sends")),
    request_body(content = Value, description = "As the vendor writes it, at most 256 KiB"),
    responses(
        (status = 200, description = "What became of it", body = DeliveryAnswer),
        (status = 202, description = "Stored; the work goes on", body = DeliveryAnswer),
    )
)]
pub async fn named(
    State(app): State<Shared>,
    Extension(request_id): Extension<RequestId>,
    sent: Proven,
) -> Result<Answer, Refusal> {
    let vendor = vendor(&sent)?;
    receive(&app, &request_id, sent, vendor).await
}

/// Takes what this vendor sends, for senders that can set no header: the secret is the last part of the path, which is
/// never logged. `docker-registry` as the vendor finds out who sent it.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{vendor}/{secret}", tag = "webhooks",
    params(
        ("vendor" = String, Path, description = "Who sends"),
        ("secret" = String, Path, description = "The secret"),
    ),
    request_body(content = Value, description = "As the vendor writes it, at most 256 KiB"),
    responses(
        (status = 200, description = "What became of it", body = DeliveryAnswer),
        (status = 202, description = "Stored; the work goes on", body = DeliveryAnswer),
    )
)]
pub async fn by_path(
    State(app): State<Shared>,
    Extension(request_id): Extension<RequestId>,
    sent: Proven,
) -> Result<Answer, Refusal> {
    let vendor = vendor(&sent)?;
    receive(&app, &request_id, sent, vendor).await
}

/// The vendor in the path; none is to be found out.
fn vendor(sent: &Proven) -> Result<Option<Vendor>, Refusal> {
    match sent.vendor.as_deref() {
        None | Some("docker-registry") => Ok(None),
        Some(name) => {
            let known = Vendor::named(name).ok_or_else(Refusal::not_found)?;
            Ok(Some(known))
        }
    }
}

async fn receive(
    app: &App,
    request_id: &RequestId,
    sent: Proven,
    vendor: Option<Vendor>,
) -> Result<Answer, Refusal> {
    let body: Value = serde_json::from_slice(&sent.bytes)
        .map_err(|error| Refusal::malformed(format!("the body is not JSON: {error}")))?;
    // JSON is UTF-8.
    let text = String::from_utf8(sent.bytes.to_vec())
        .map_err(|_| Refusal::malformed("the body is not UTF-8"))?;
    let header = |name: &str| sent.headers.get(name).and_then(|value| value.to_str().ok());
    let is_github = header("x-github-event").is_some();
    let vendor = vendor
        .or(is_github.then_some(Vendor::Github))
        .or_else(|| Vendor::detect(&body));
    let Some(vendor) = vendor else {
        return Err(Refusal::invalid_field(
            "/image",
            "no registry writes like this: send {image, tag}, or name the vendor in the path",
        ));
    };
    let now = clock::now();
    let (key, same_since) = key(vendor, identity(vendor, header, &body), &sent.bytes, now);
    let new = New {
        vendor: vendor.name(),
        key,
        same_since,
        body: text,
        secret: Some(sent.secret),
        request_id: request_id.0.to_string(),
        again_of: None,
        record: at_once(vendor, &body),
    };
    let delivery = deliver(app, new, now).await?;
    answer(vendor, delivery)
}

/// By what a delivery is known again, and since when.
fn key(
    vendor: Vendor,
    identity: Option<String>,
    body: &[u8],
    now: Timestamp,
) -> (String, Option<Timestamp>) {
    let name = vendor.name();
    match identity {
        // Hashed: a sender's words may be long, and strange.
        Some(id) => (
            format!("{name} id {}", Digest::of(id.as_bytes()).hex()),
            None,
        ),
        None => (
            format!("{name} body {}", Digest::of(body).hex()),
            Some(now.plus_ms(-SAME_BODY_MS)),
        ),
    }
}

/// What becomes of a delivery from which nothing follows.
fn at_once(vendor: Vendor, body: &Value) -> Option<Record> {
    match vendor.pushes(body) {
        Ok(pushes) if pushes.is_empty() => Some(Record {
            reason: Some("it tells of no push of a tag".to_owned()),
            ..Record::default()
        }),
        Ok(_) => None,
        Err(error) => Some(Record {
            fault: Some(FieldError {
                pointer: error.pointer,
                detail: error.detail,
            }),
            ..Record::default()
        }),
    }
}

/// Stores a delivery, once, and waits a moment for what becomes of it.
pub async fn deliver(app: &App, new: New, now: Timestamp) -> Result<Delivery, Refusal> {
    let ended = app.pushes.ended.subscribe();
    let (id, is_new) = app
        .store
        .transact(move |tx| deliveries::insert(tx, &new, now))
        .await?;
    if is_new {
        app.pushes.deliver_soon.notify_one();
    }
    outcome(app, id, ended).await
}

/// The delivery, as soon as it is done; as it is, when that takes too long.
async fn outcome(
    app: &App,
    id: i64,
    mut ended: broadcast::Receiver<i64>,
) -> Result<Delivery, Refusal> {
    let waiting = async {
        loop {
            let found = find(app, id).await?;
            if found.state != Progress::Open {
                return Ok(found);
            }
            loop {
                match ended.recv().await {
                    Ok(other) if other != id => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return Ok(found),
                }
            }
        }
    };
    match tokio::time::timeout(app.pushes.answer_within, waiting).await {
        Ok(found) => found,
        Err(_) => find(app, id).await,
    }
}

async fn find(app: &App, id: i64) -> Result<Delivery, Refusal> {
    app.store
        .read(move |tx| deliveries::find(tx, id)?.ok_or_else(Refusal::not_found))
        .await
}

/// The answer in the sender's own terms.
fn answer(vendor: Vendor, delivery: Delivery) -> Result<Answer, Refusal> {
    if let Some(record) = delivery
        .record
        .as_ref()
        .filter(|_| vendor.reads_the_status())
    {
        if let Some(fault) = &record.fault {
            return Err(Refusal::invalid(vec![fault.clone()]));
        }
        if let Some((error, outcome)) = record
            .outcomes
            .iter()
            .find_map(|outcome| Some((outcome.error.as_deref()?, outcome)))
        {
            let message = outcome.reason.as_deref().unwrap_or(error);
            let action = outcome.action_required.as_deref();
            return Err(Refusal::image(error, message, action));
        }
    }
    Ok(as_it_is(delivery))
}

/// The answer that says how far a delivery is, whatever was decided.
pub fn as_it_is(delivery: Delivery) -> Answer {
    let is_read = |record: &Record| record.fault.is_none();
    let status = match delivery.state {
        Progress::Done if delivery.record.as_ref().is_some_and(is_read) => StatusCode::OK,
        Progress::Done | Progress::Open | Progress::Failed => StatusCode::ACCEPTED,
    };
    (status, Json(delivery.into()))
}
