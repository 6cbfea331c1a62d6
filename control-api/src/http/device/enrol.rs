//! Owns enrolment: an enrolment key, or a device's old token, becomes a device's new token.

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use holdfast_proto::operator::{EnrolRequest, EnrolResponse};
use holdfast_proto::problem::parse_json;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::app::Shared;
use crate::clock;
use crate::fleets::{self, Followed};
use crate::http::auth::bearer;
use crate::http::extract::{JsonBytes, SMALL_LIMIT, read_document};
use crate::http::finish::RequestId;
use crate::http::operator::devices::{check_labels, check_name};
use crate::http::problem::Refusal;
use crate::logins;
use crate::secret::{self, Kind};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::devices::{self, Enrolment};
use crate::store::events::{self, NewEvent};
use crate::store::{enrolment_keys, reports};
use crate::targeting;

const LONGEST_VERSION: usize = 64;

/// Makes a device known and gives it its token, shown only in this answer.
///
/// The bearer token is an enrolment key. A device that is known already brings its own token
/// instead, or an operator has allowed it to enrol again (`PATCH /devices/{uuid}`).
#[utoipa::path(
    post, path = "/api/v1/enroll", tag = "devices",
    request_body(content = EnrolRequest, description = "At most 64 KiB"),
    responses((status = 201, description = "The device is known", body = EnrolResponse))
)]
pub async fn enrol(
    State(app): State<Shared>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    JsonBytes(bytes): JsonBytes<SMALL_LIMIT>,
) -> Result<Response, Refusal> {
    let refuse = || {
        app.metrics.auth_failure();
        Refusal::unauthenticated()
    };
    let presented = bearer(&headers).ok_or_else(refuse)?;
    let with_key = presented.starts_with(Kind::EnrolmentKey.prefix());
    if !with_key && !presented.starts_with(Kind::Device.prefix()) {
        return Err(refuse());
    }
    let hash = secret::hash(presented);
    let now = clock::now();
    // Judged before the body is read closely, and again in the transaction that uses it.
    let known = {
        let hash = hash.clone();
        app.store
            .read(move |tx| {
                Ok::<_, Refusal>(if with_key {
                    enrolment_keys::is_valid(tx, &hash, now)?
                } else {
                    devices::by_token_hash(tx, &hash)?.is_some()
                })
            })
            .await?
    };
    if !known {
        return Err(refuse());
    }
    let request: EnrolRequest = read_document(&bytes, |bytes| parse_json(bytes))?;
    check(&request)?;
    let uuid = match request.uuid {
        Some(uuid) => uuid,
        None => secret::device_id()?,
    };
    let token = secret::token(Kind::Device)?;
    let token_hash = token.hash();
    let logins = app.logins.clone();
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let existing = devices::find(tx, uuid)?;
            let (fixed_labels, actor_kind, actor_name) = if with_key {
                let key =
                    enrolment_keys::take(tx, &hash, now)?.ok_or_else(Refusal::unauthenticated)?;
                if existing.as_ref().is_some_and(|device| !device.may_re_enrol) {
                    return Err(Refusal::new(
                        StatusCode::CONFLICT,
                        "already_enrolled",
                        "this device is known: it needs its old token, or an operator's leave",
                    ));
                }
                (key.labels, "enrolment_key", key.name)
            } else {
                if devices::by_token_hash(tx, &hash)? != Some(uuid) {
                    return Err(Refusal::unauthenticated());
                }
                // Either of two machines could come with it.
                if existing
                    .as_ref()
                    .is_some_and(|device| device.quarantined_at.is_some())
                {
                    return Err(Refusal::quarantined());
                }
                (devices::Labels::new(), "device", uuid.to_string())
            };
            let again = existing.is_some();
            let from = existing.as_ref().and_then(logins::fleet).map(str::to_owned);
            // What operators decided about a known device outlives its enrolment.
            let (name, mut labels) = match existing {
                Some(device) => (device.name, device.labels),
                None => (
                    request
                        .name
                        .clone()
                        .unwrap_or_else(|| format!("device-{}", uuid.short())),
                    request.labels.clone(),
                ),
            };
            labels.extend(fixed_labels);
            let enrolment = Enrolment {
                uuid,
                name,
                labels,
                platform: request.platform.clone(),
                agent_version: request.agent_version.clone(),
                token_hash: token_hash.clone(),
            };
            let row = devices::enrol(tx, &enrolment, now)?;
            if again {
                // A device that starts over counts its reports from the start.
                reports::clear(tx, row)?;
            }
            let actor = Actor {
                kind: actor_kind,
                name: actor_name,
                request_id: request_id.0.to_string(),
            };
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::internal)?;
            let mut followed = fleets::moved(tx, &logins, &device, from.as_deref(), &actor, now)?;
            if again {
                // It may have come back on other hardware.
                if followed == Followed::Nothing {
                    followed = fleets::follow(tx, &logins, &device, &actor, now)?;
                }
                if !matches!(followed, Followed::Told(_)) {
                    targeting::render_again(tx, &logins, uuid, &actor, now)?;
                }
            }
            let about = json!({
                "name": enrolment.name,
                "labels": enrolment.labels,
                "platform": enrolment.platform.to_string(),
                "again": again,
            });
            audit::append(
                tx,
                &actor,
                &NewEntry {
                    action: "device.enrol",
                    subject_kind: "device",
                    subject: uuid.to_string(),
                    before: None,
                    after: Some(about.clone()),
                },
                now,
            )?;
            events::record(
                tx,
                &NewEvent {
                    kind: "device.enrolled",
                    device: Some(uuid),
                    subject: None,
                    detail: about,
                    delivery: None,
                },
                now,
            )?;
            tx.announce(uuid)?;
            Ok(())
        })
        .await?;
    app.live.refresh(&app.store, uuid).await?;
    app.metrics.set_devices(app.live.len());
    let answer = EnrolResponse {
        uuid,
        token: token.expose().to_owned(),
        poll_interval_seconds: app.poll_interval_s.into(),
    };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

fn check(request: &EnrolRequest) -> Result<(), Refusal> {
    let mut errors = Vec::new();
    if let Some(name) = &request.name {
        errors.extend(check_name("/name", name));
    }
    errors.extend(check_labels(&request.labels));
    if request.agent_version.chars().count() > LONGEST_VERSION {
        errors.push(holdfast_proto::problem::FieldError {
            pointer: "/agentVersion".to_owned(),
            detail: format!("may have at most {LONGEST_VERSION} characters"),
        });
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Refusal::invalid(errors))
    }
}
