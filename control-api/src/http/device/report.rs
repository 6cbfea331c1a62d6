//! Owns the report: what a device says of itself, newest wins.
//!
//! Refuses a device's flood, and the word of two machines under one name.

use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use holdfast_domain::principal::Principal;
use holdfast_domain::rollout::judge::{Sight, Told, sight};
use holdfast_domain::voices::Verdict;
use holdfast_proto::current::{CurrentState, UpdateStatus};
use holdfast_proto::id::DeviceId;
use holdfast_proto::problem::parse_json;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use http::{HeaderValue, StatusCode, header};
use serde_json::json as document;

use crate::app::Shared;
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{DevicePath, JsonBytes, REPORT_LIMIT, read_document};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::db::{StoreError, Tx, json};
use crate::store::events::{self, NewEvent};
use crate::store::{devices, generations, reports};
use crate::targeting;

/// Reports of one device in a window: an agent gathers changes for a fifth of a second, and no update of hundreds of
/// services changes something each fifth of a second for a minute.
pub const MOST_REPORTS: u32 = 600;
/// The window.
pub const WINDOW: Duration = Duration::from_mins(1);
/// The largest generation or sequence taken: every JSON reader can hold it exactly.
const LARGEST_COUNTER: u64 = (1 << 53) - 1;
/// Longest name of a journal that is kept: agents use 32 hex digits.
const LONGEST_JOURNAL: usize = 64;
/// Longest name of a start of the machine that is kept: the kernel's have 36 characters.
const LONGEST_BOOT: usize = 64;
/// Longest version text that is kept.
const LONGEST_VERSION: usize = 64;

/// Takes the device's report.
///
/// A report with an older `sequence` than the last one is ignored: that is no error of the device. Where two machines
/// report under one name, both are refused from then on (409) until an operator decides.
#[utoipa::path(
    put, path = "/api/v1/devices/{uuid}/current-state", tag = "devices",
    params(("uuid" = String, Path, description = "The device")),
    request_body(content = CurrentState, description = "At most 256 KiB"),
    responses((status = 204, description = "Taken, or older than what is known"))
)]
pub async fn report(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
    JsonBytes(bytes): JsonBytes<REPORT_LIMIT>,
) -> Result<StatusCode, Refusal> {
    let now = clock::now();
    if let Err(wait) = app.report_limits.count(uuid, now) {
        return Err(too_many(wait));
    }
    let state: CurrentState = read_document(&bytes, |bytes| parse_json(bytes))?;
    for (pointer, counter) in [
        ("/sequence", state.sequence),
        ("/generation", state.generation),
    ] {
        if counter > LARGEST_COUNTER {
            return Err(Refusal::invalid_field(
                pointer,
                format!("must be at most {LARGEST_COUNTER}"),
            ));
        }
    }
    let slot = app.live.get(uuid).ok_or_else(Refusal::unauthenticated)?;
    slot.seen(now);
    let row = slot.row;
    let status = serde_json::to_value(state.status)
        .ok()
        .and_then(|word| word.as_str().map(str::to_owned))
        .unwrap_or_default();
    let is_converged = state.status == UpdateStatus::Converged;
    let version: String = state.agent_version.chars().take(LONGEST_VERSION).collect();
    let report = reports::Report {
        sequence: state.sequence,
        journal: state.journal.chars().take(LONGEST_JOURNAL).collect(),
        generation: state.generation,
        status,
        body: json("report", &state)?,
        received_at: now,
    };
    let boot = state
        .system
        .as_ref()
        .and_then(|system| system.boot_id.as_ref());
    let boot: String = boot.map_or_else(String::new, |boot| {
        boot.chars().take(LONGEST_BOOT).collect()
    });
    let by = actor(&principal, &request_id);
    let taken = app
        .store
        .transact(move |tx| {
            match reports::put(tx, row, &report, &boot)? {
                Verdict::Newer => {}
                Verdict::Older => return Ok::<_, Refusal>(Taken::Nothing),
                Verdict::Shared => {
                    quarantine(tx, (row, uuid), &by, now)?;
                    return Ok(Taken::Quarantined);
                }
            }
            devices::set_agent_version(tx, row, &version)?;
            if is_converged && runs_what_it_was_told(tx, row, &state)? {
                generations::verify(tx, row, report.generation, now)?;
            }
            let lifted = targeting::rise_above(tx, row, uuid, report.generation, now)?;
            Ok(if lifted {
                Taken::Lifted
            } else {
                Taken::Nothing
            })
        })
        .await?;
    app.rollouts_soon.notify_one();
    if taken != Taken::Nothing {
        app.live.refresh(&app.store, uuid).await?;
    }
    if taken == Taken::Quarantined {
        tracing::warn!(device.id = %uuid, "two machines report under one name; it is in quarantine");
        return Err(Refusal::quarantined());
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What a report changed beside itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Nothing.
    Nothing,
    /// The target rose above what the device had.
    Lifted,
    /// Nobody can tell any more who the device is.
    Quarantined,
}

fn too_many(wait: Duration) -> Refusal {
    let window = WINDOW.as_secs();
    let detail = format!("a device may report {MOST_REPORTS} times in {window} s");
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail)
        .with_header(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1))
}

/// Keeps a device apart whose name two machines have; says so to people.
fn quarantine(
    tx: &mut Tx<'_>,
    (row, uuid): (i64, DeviceId),
    by: &Actor,
    now: Timestamp,
) -> Result<(), StoreError> {
    if !devices::quarantine(tx, row, now)? {
        return Ok(());
    }
    let reason = "two machines report under its name: its card or its token was copied";
    let entry = NewEntry {
        action: "device.quarantine",
        subject_kind: "device",
        subject: uuid.to_string(),
        before: None,
        after: Some(document!({ "reason": reason })),
    };
    audit::append(tx, by, &entry, now)?;
    let event = NewEvent {
        kind: "device.quarantined",
        device: Some(uuid),
        subject: None,
        detail: document!({ "reason": reason, "severity": "error" }),
        delivery: None,
    };
    events::record(tx, &event, now)?;
    tx.announce(uuid)
}

/// Whether each service of the generation that the device reports runs with the content that it was told, behind its
/// gate. The word `converged` alone makes no place to go back to. False as well where that is known already.
fn runs_what_it_was_told(
    tx: &mut Tx<'_>,
    row: i64,
    state: &CurrentState,
) -> Result<bool, StoreError> {
    let told = generations::find(tx, row, state.generation)?;
    let Some(told) = told.filter(|told| told.verified_at.is_none()) else {
        return Ok(false);
    };
    let Ok(target) = serde_json::from_str::<TargetState>(&told.body) else {
        return Ok(false);
    };
    let services = target.services().filter_map(|(key, service)| {
        let expected = service.pin.as_ref()?.expected.as_ref()?;
        Some((key, expected.config_digest))
    });
    let told = Told {
        generation: state.generation,
        services: services.collect(),
    };
    Ok(sight(&told, Some(state)) == Sight::Healthy)
}
