//! Owns the report: what a device says of itself, newest wins.

use axum::extract::State;
use holdfast_proto::current::CurrentState;
use holdfast_proto::problem::parse_json;
use http::StatusCode;

use crate::app::Shared;
use crate::clock;
use crate::http::extract::{DevicePath, JsonBytes, REPORT_LIMIT, read_document};
use crate::http::problem::Refusal;
use crate::store::db::json;
use crate::store::{devices, reports};
use crate::targeting;

/// The largest generation or sequence taken: every JSON reader can hold it exactly.
const LARGEST_COUNTER: u64 = (1 << 53) - 1;
/// Longest name of a journal that is kept: agents use 32 hex digits.
const LONGEST_JOURNAL: usize = 64;
/// Longest version text that is kept.
const LONGEST_VERSION: usize = 64;

/// Takes the device's report.
///
/// A report with an older `sequence` than the last one is ignored: that is no error of the device.
#[utoipa::path(
    put, path = "/api/v1/devices/{uuid}/current-state", tag = "devices",
    params(("uuid" = String, Path, description = "The device")),
    request_body(content = CurrentState, description = "At most 256 KiB"),
    responses((status = 204, description = "Taken, or older than what is known"))
)]
pub async fn report(
    State(app): State<Shared>,
    DevicePath(uuid): DevicePath,
    JsonBytes(bytes): JsonBytes<REPORT_LIMIT>,
) -> Result<StatusCode, Refusal> {
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
    let now = clock::now();
    slot.seen(now);
    let row = slot.row;
    let status = serde_json::to_value(state.status)
        .ok()
        .and_then(|word| word.as_str().map(str::to_owned))
        .unwrap_or_default();
    let version: String = state.agent_version.chars().take(LONGEST_VERSION).collect();
    let report = reports::Report {
        sequence: state.sequence,
        journal: state.journal.chars().take(LONGEST_JOURNAL).collect(),
        generation: state.generation,
        status,
        body: json("report", &state)?,
        received_at: now,
    };
    let lifted = app
        .store
        .transact(move |tx| {
            if !reports::put(tx, row, &report)? {
                return Ok::<_, Refusal>(false);
            }
            devices::set_agent_version(tx, row, &version)?;
            Ok(targeting::rise_above(
                tx,
                row,
                uuid,
                report.generation,
                now,
            )?)
        })
        .await?;
    if lifted {
        app.live.refresh(&app.store, uuid).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}
