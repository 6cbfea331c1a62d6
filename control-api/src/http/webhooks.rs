//! Owns receiving webhooks: authenticated first, recorded once. Refuses to act on what they claim.

use axum::extract::State;
use bytes::Bytes;
use holdfast_proto::image::Digest;
use holdfast_proto::problem::{Pointer, parse_json};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::app::Shared;
use crate::clock;
use crate::http::auth::bearer;
use crate::http::extract::{JsonBytes, WEBHOOK_LIMIT, read_document};
use crate::http::problem::Refusal;
use crate::secret::same;
use crate::store::events::{self, NewEvent};

/// Most events of one envelope; a registry sends a handful.
const MOST_EVENTS: usize = 1_000;

/// What a distribution registry sends about pushes and pulls.
#[derive(Debug, Deserialize, ToSchema)]
pub struct DistributionEnvelope {
    /// What happened in the registry.
    events: Vec<DistributionEvent>,
}

/// One thing that happened in a registry.
#[derive(Debug, Deserialize, ToSchema)]
struct DistributionEvent {
    /// The registry's id of the event.
    id: String,
    /// `push`, `pull`, `mount`, `delete`.
    action: String,
    /// What it happened to.
    #[serde(default)]
    target: DistributionTarget,
    /// The request that caused it.
    #[serde(default)]
    request: DistributionRequest,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
struct DistributionTarget {
    /// Media type of what was pushed.
    media_type: String,
    /// Its path in the registry.
    repository: String,
    /// Its tag; absent for a push by digest.
    tag: Option<String>,
    /// Its digest: a hint, the registry is asked.
    digest: Option<String>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
struct DistributionRequest {
    /// The host that the push named.
    host: String,
}

impl DistributionEvent {
    fn is_tagged_manifest(&self) -> bool {
        let kind = &self.target.media_type;
        self.action == "push"
            && self.target.tag.is_some()
            && (kind.contains("manifest") || kind.contains("index"))
    }
}

/// Takes the notifications of a distribution registry (Docker Registry, Zot and relatives).
///
/// The bearer token is the configured webhook secret. Pushes of tagged images are recorded as
/// events, each once; a second delivery changes nothing.
#[utoipa::path(
    post, path = "/api/v1/webhooks/distribution", tag = "webhooks",
    request_body(content = DistributionEnvelope, description = "At most 256 KiB"),
    responses((status = 202, description = "Recorded"))
)]
pub async fn distribution(
    State(app): State<Shared>,
    Envelope(bytes): Envelope,
) -> Result<StatusCode, Refusal> {
    let envelope: DistributionEnvelope = read_document(&bytes, |bytes| parse_json(bytes))?;
    if envelope.events.len() > MOST_EVENTS {
        let at = Pointer::default().member("events");
        return Err(Refusal::invalid(vec![
            at.error(format!("may have at most {MOST_EVENTS} items")),
        ]));
    }
    let now = clock::now();
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            for event in envelope.events.iter().filter(|it| it.is_tagged_manifest()) {
                let target = &event.target;
                let tag = target.tag.as_deref().unwrap_or_default();
                let subject = format!("{}/{}:{tag}", event.request.host, target.repository);
                // Ids are the registry's own: two registries may use the same one.
                let delivery =
                    Digest::of(format!("distribution {} {subject}", event.id).as_bytes());
                let new = NewEvent {
                    kind: "image.webhook_received",
                    device: None,
                    subject: Some(&subject),
                    detail: json!({"vendor": "distribution", "delivery": event.id,
                                   "digest": target.digest, "media_type": target.media_type}),
                    delivery: Some(&delivery.hex()),
                };
                events::record(tx, &new, now)?;
            }
            Ok(())
        })
        .await?;
    Ok(StatusCode::ACCEPTED)
}

/// The body of a webhook whose secret was right: judged before a byte of it is read.
#[derive(Debug)]
pub struct Envelope(Bytes);

impl axum::extract::FromRequest<Shared> for Envelope {
    type Rejection = Refusal;

    async fn from_request(request: axum::extract::Request, app: &Shared) -> Result<Self, Refusal> {
        let presented = bearer(request.headers());
        let right = match (&app.webhook_secret, presented) {
            (Some(secret), Some(presented)) => same(secret.expose(), presented),
            (None, _) | (_, None) => false,
        };
        if !right {
            app.metrics.auth_failure();
            return Err(Refusal::unauthenticated());
        }
        let JsonBytes(bytes) = JsonBytes::<WEBHOOK_LIMIT>::from_request(request, app).await?;
        Ok(Self(bytes))
    }
}
