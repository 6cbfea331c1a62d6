//! Owns what operators see and decide about devices.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::presence::{online_since, presence};
use holdfast_domain::principal::Principal;
use holdfast_domain::scope::Scope;
use holdfast_proto::current::CurrentState;
use holdfast_proto::image::Platform;
use holdfast_proto::operator::{DeviceSummary, Page, Presence};
use holdfast_proto::problem::{FieldError, Pointer};
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::image_updates::{Change, ImageUpdatePolicies, ImageUpdatePolicyChange, Owner, Wanted};
use crate::app::{App, Shared};
use crate::clock;
use crate::fleets;
use crate::http::auth::actor;
use crate::http::extract::{DevicePath, Params, Strict, cursor, next_cursor, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::logins;
use crate::store::audit::{self, NewEntry};
use crate::store::devices::{self, Device, Filter, Labels};
use crate::store::events::{self, NewEvent};
use crate::store::reports;

/// Longest name of a device, token or key, in characters.
pub const LONGEST_NAME: usize = 128;
/// Most labels of one device: labels choose devices, they do not describe them.
const MOST_LABELS: usize = 64;
const LONGEST_LABEL: usize = 64;
const LONGEST_LABEL_VALUE: usize = 256;

/// Which devices, and which page of them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// At most so many items, 1 to 200; 50 by default.
    limit: Option<u32>,
    /// Where the last page ended.
    cursor: Option<String>,
    /// Part of the name or id.
    search: Option<String>,
    /// The exact name.
    name: Option<String>,
    /// A label that is there, `key` or `key=value`.
    label: Option<String>,
    /// The exact platform, such as `linux/arm64`.
    platform: Option<String>,
    /// `online`, `offline` or `never_seen`.
    presence: Option<Presence>,
}

/// Lists devices in the order they enrolled.
#[utoipa::path(
    get, path = "/api/v1/devices", tag = "devices", params(ListParams),
    responses((status = 200, description = "One page of devices", body = Page<DeviceSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<ListParams>,
) -> Result<Json<Page<DeviceSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let now = clock::now();
    let since = online_since(now, app.poll_interval_s);
    let platform = params
        .platform
        .as_deref()
        .map(str::parse::<Platform>)
        .transpose()
        .map_err(|error| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "malformed_query",
                format!("platform: {error}"),
            )
        })?;
    let filter = Filter {
        search: params.search,
        name: params.name,
        label: params.label.map(|label| match label.split_once('=') {
            Some((label, value)) => (label.to_owned(), Some(value.to_owned())),
            None => (label, None),
        }),
        platform,
        seen_since: (params.presence == Some(Presence::Online)).then_some(since),
        not_seen_since: (params.presence == Some(Presence::Offline)).then_some(since),
        never_seen: params.presence == Some(Presence::NeverSeen),
    };
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(devices::list(tx, &filter, after, size)?))
        .await?;
    let next_cursor = next_cursor(&found, size, |device| device.id);
    let items = found
        .into_iter()
        .map(|device| summary(&app, device, now))
        .collect();
    Ok(Json(Page { items, next_cursor }))
}

fn summary(app: &App, device: Device, now: Timestamp) -> DeviceSummary {
    DeviceSummary {
        uuid: device.uuid,
        name: device.name,
        labels: device.labels,
        platform: device.platform,
        agent_version: device.agent_version,
        presence: presence(device.last_seen_at, now, app.poll_interval_s),
        last_seen_at: device.last_seen_at,
        enrolled_at: device.enrolled_at,
        target_generation: device.target_generation,
        reported_generation: device.reported_generation,
        update_status: device
            .reported_status
            .and_then(|word| serde_json::from_value(word.into()).ok()),
        quarantined_at: device.quarantined_at,
    }
}

/// A device, and what counts for its image updates.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceDetail {
    #[serde(flatten)]
    summary: DeviceSummary,
    #[serde(flatten)]
    policies: ImageUpdatePolicies,
}

/// Shows one device.
#[utoipa::path(
    get, path = "/api/v1/devices/{uuid}", tag = "devices",
    params(("uuid" = String, Path, description = "The device")),
    responses((status = 200, description = "The device", body = DeviceDetail))
)]
pub async fn show(
    State(app): State<Shared>,
    DevicePath(uuid): DevicePath,
) -> Result<Json<DeviceDetail>, Refusal> {
    let ttl_s = app.resolver.ttl_s();
    let (device, policies) = app
        .store
        .read(move |tx| -> Result<_, Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            let policies = ImageUpdatePolicies::of_device(tx, &device, ttl_s)?;
            Ok((device, policies))
        })
        .await?;
    let summary = summary(&app, device, clock::now());
    Ok(Json(DeviceDetail { summary, policies }))
}

/// What an operator may change about a device; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceChange {
    /// What people call it.
    name: Option<String>,
    /// All its labels; those not named here go.
    labels: Option<Labels>,
    /// Lets the next enrolment with a valid key replace the device's token; true lasts until then.
    allow_re_enrolment: Option<bool>,
    /// How its images are updated; counts before what its fleet says, member by member.
    #[serde(default, rename = "imageUpdatePolicy")]
    #[schema(value_type = Option<ImageUpdatePolicyChange>)]
    image_update_policy: Change<ImageUpdatePolicyChange>,
    /// Whether it is in quarantine; false releases it.
    quarantined: Option<bool>,
}

/// Renames or labels a device, says how its images are updated, allows it to enrol again, or releases it from quarantine.
///
/// The label `fleet` puts it into that fleet, whose release it gets at once unless it has a target of its own.
#[utoipa::path(
    patch, path = "/api/v1/devices/{uuid}", tag = "devices",
    params(("uuid" = String, Path, description = "The device")),
    request_body = DeviceChange,
    responses((status = 200, description = "The device as it is now", body = DeviceDetail))
)]
pub async fn change(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
    Strict(change): Strict<DeviceChange>,
) -> Result<Json<DeviceDetail>, Refusal> {
    let mut errors = Vec::new();
    if let Some(name) = &change.name {
        errors.extend(check_name("/name", name));
    }
    if let Some(labels) = &change.labels {
        errors.extend(check_labels(labels));
    }
    let updates = Wanted::read(change.image_update_policy.clone()).unwrap_or_else(|faults| {
        errors.extend(faults);
        Wanted::default()
    });
    if !errors.is_empty() {
        return Err(Refusal::invalid(errors));
    }
    let now = clock::now();
    let by = actor(&principal, &request_id);
    let logins = app.logins.clone();
    let about = |device: &Device| {
        json!({"name": device.name, "labels": device.labels,
               "allow_re_enrolment": device.may_re_enrol,
               "image_update_policy": device.image_updates,
               "quarantined": device.quarantined_at.is_some()})
    };
    let ttl_s = app.resolver.ttl_s();
    let (device, policies) = app
        .store
        .transact(move |tx| -> Result<_, Refusal> {
            let before = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            let owner = Owner {
                scope: Scope::Device(uuid),
                row: Some(before.id),
                principal: &principal,
                actor: &by,
            };
            updates.store_logins(tx, &logins, &owner, now)?;
            let after = Device {
                name: change.name.clone().unwrap_or_else(|| before.name.clone()),
                labels: change
                    .labels
                    .clone()
                    .unwrap_or_else(|| before.labels.clone()),
                may_re_enrol: change.allow_re_enrolment.unwrap_or(before.may_re_enrol),
                image_updates: updates.settings(&before.image_updates),
                quarantined_at: match change.quarantined {
                    None => before.quarantined_at,
                    Some(true) => before.quarantined_at.or(Some(now)),
                    Some(false) => None,
                },
                ..before.clone()
            };
            if after == before {
                let policies = ImageUpdatePolicies::of_device(tx, &after, ttl_s)?;
                return Ok((after, policies));
            }
            devices::update(tx, &after)?;
            if change.quarantined == Some(false) {
                // Whoever speaks next may be the one that was meant.
                reports::forget_voices(tx, before.id)?;
            }
            tx.announce(uuid)?;
            let entry = NewEntry {
                action: "device.change",
                subject_kind: "device",
                subject: uuid.to_string(),
                before: Some(about(&before)),
                after: Some(about(&after)),
            };
            audit::append(tx, &by, &entry, now)?;
            let event = NewEvent {
                kind: "device.changed",
                device: Some(uuid),
                subject: None,
                detail: about(&after),
                delivery: None,
            };
            events::record(tx, &event, now)?;
            let from = logins::fleet(&before);
            fleets::moved(tx, &logins, &after, from, &by, now)?;
            let after = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            let policies = ImageUpdatePolicies::of_device(tx, &after, ttl_s)?;
            Ok((after, policies))
        })
        .await?;
    // It may have another login, or another window.
    app.resolve_soon.notify_one();
    app.rollouts_soon.notify_one();
    // It may have got the release of another fleet.
    app.live.refresh(&app.store, uuid).await?;
    let summary = summary(&app, device, now);
    Ok(Json(DeviceDetail { summary, policies }))
}

/// Decommissions a device: its token stops working at once.
#[utoipa::path(
    delete, path = "/api/v1/devices/{uuid}", tag = "devices",
    params(("uuid" = String, Path, description = "The device")),
    responses((status = 204, description = "Gone"))
)]
pub async fn remove(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
) -> Result<StatusCode, Refusal> {
    let now = clock::now();
    let by = actor(&principal, &request_id);
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            devices::remove(tx, uuid)?;
            let entry = NewEntry {
                action: "device.remove",
                subject_kind: "device",
                subject: uuid.to_string(),
                before: Some(json!({"name": device.name, "labels": device.labels})),
                after: None,
            };
            audit::append(tx, &by, &entry, now)?;
            let event = NewEvent {
                kind: "device.removed",
                device: Some(uuid),
                subject: None,
                detail: json!({"name": device.name}),
                delivery: None,
            };
            events::record(tx, &event, now)?;
            tx.announce(uuid)?;
            Ok(())
        })
        .await?;
    app.live.refresh(&app.store, uuid).await?;
    app.metrics.set_devices(app.live.len());
    Ok(StatusCode::NO_CONTENT)
}

/// A device's last report, with its age by this server's clock.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportedState {
    #[serde(flatten)]
    state: CurrentState,
    /// When the report arrived.
    #[schema(value_type = String, format = DateTime)]
    received_at: Timestamp,
    /// How long ago that was.
    age_seconds: i64,
    /// Whether the device is heard of.
    presence: Presence,
}

/// Shows what a device last reported.
#[utoipa::path(
    get, path = "/api/v1/devices/{uuid}/current-state", tag = "devices",
    params(("uuid" = String, Path, description = "The device")),
    responses((status = 200, description = "The last report", body = ReportedState))
)]
pub async fn current_state(
    State(app): State<Shared>,
    DevicePath(uuid): DevicePath,
) -> Result<Json<ReportedState>, Refusal> {
    let (device, report) = app
        .store
        .read(move |tx| -> Result<_, Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            let report = reports::find(tx, device.id)?.ok_or_else(|| {
                Refusal::new(
                    StatusCode::NOT_FOUND,
                    "no_report",
                    "the device has not reported yet",
                )
            })?;
            Ok((device, report))
        })
        .await?;
    let now = clock::now();
    let state = serde_json::from_str(&report.body).map_err(|source| {
        crate::store::StoreError::Document {
            what: "report",
            source,
        }
    })?;
    Ok(Json(ReportedState {
        state,
        received_at: report.received_at,
        age_seconds: now.since_ms(report.received_at).max(0) / 1_000,
        presence: presence(device.last_seen_at, now, app.poll_interval_s),
    }))
}

/// What is wrong with a name, if anything.
pub fn check_name(pointer: &str, name: &str) -> Option<FieldError> {
    let fault = if name.trim().is_empty() {
        "must not be empty".to_owned()
    } else if name.chars().count() > LONGEST_NAME {
        format!("may have at most {LONGEST_NAME} characters")
    } else if name.chars().any(char::is_control) {
        "must not contain control characters".to_owned()
    } else {
        return None;
    };
    Some(FieldError {
        pointer: pointer.to_owned(),
        detail: fault,
    })
}

/// Everything wrong with a set of labels.
pub fn check_labels(labels: &Labels) -> Vec<FieldError> {
    let at = Pointer::default().member("labels");
    let mut errors = Vec::new();
    if labels.len() > MOST_LABELS {
        errors.push(at.error(format!("may have at most {MOST_LABELS} labels")));
    }
    for (label, value) in labels {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if label.is_empty() || label.len() > LONGEST_LABEL || !label.chars().all(legal) {
            errors.push(at.member(label).error(format!(
                "a label's name has 1 to {LONGEST_LABEL} letters, digits, `-`, `_`, `.` or `/`"
            )));
        }
        if value.chars().count() > LONGEST_LABEL_VALUE || value.chars().any(char::is_control) {
            errors.push(at.member(label).error(format!(
                "a label's value has at most {LONGEST_LABEL_VALUE} characters, no control characters"
            )));
        }
    }
    errors
}
