//! Owns the poll: a device's target with a strong `ETag`, answered from memory.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use holdfast_proto::target::TargetState;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use crate::app::{App, Shared};
use crate::clock;
use crate::http::auth::bearer;
use crate::http::extract::DevicePath;
use crate::http::problem::Refusal;
use crate::live::{Served, Slot};
use crate::secret;
use crate::store::{devices, targets};

/// The longest a poll is held: proxies between often cut idle requests after a minute or more.
pub const LONGEST_WAIT_S: u64 = 60;
/// Tells a device how often to poll from now on.
const POLL_INTERVAL: HeaderName = HeaderName::from_static("holdfast-poll-interval");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The device's target.
///
/// A device that was never given one gets generation 0 without apps.
#[utoipa::path(
    get, path = "/api/v1/devices/{uuid}/state", tag = "devices",
    params(
        ("uuid" = String, Path, description = "The device"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` the device has; 304 if it still holds"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: hold the request up to N seconds (at most 60) until the target changes")
    ),
    responses(
        (status = 200, description = "The target", body = TargetState,
            headers(("ETag" = String, description = "Strong entity tag of the body"))),
        (status = 304, description = "The target is the one the device has")
    )
)]
pub async fn poll(
    State(app): State<Shared>,
    DevicePath(uuid): DevicePath,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let mut slot = app.live.get(uuid).ok_or_else(Refusal::unauthenticated)?;
    slot.seen(clock::now());
    let mut served = slot.served();
    if holds(&headers, &served)
        && let Some(wait) = wait(&headers)
    {
        slot = hold(&app, slot, &headers, wait).await?;
        served = slot.served();
    }
    if holds(&headers, &served) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        stamp(&app, &served, response.headers_mut());
        return Ok(response);
    }
    let (served, body) = match &served.body {
        Some(body) => (served.as_ref().clone(), body.clone()),
        None => fetch(&app, &slot).await?,
    };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    stamp(&app, &served, headers);
    Ok(response)
}

/// Waits until the target is another one than the device has, `wait` passes, or the server stops.
async fn hold(
    app: &App,
    mut slot: Arc<Slot>,
    headers: &HeaderMap,
    wait: Duration,
) -> Result<Arc<Slot>, Refusal> {
    let deadline = Instant::now() + wait;
    let hash = bearer(headers).map(secret::hash).unwrap_or_default();
    let mut stopping = app.stopping.clone();
    while let Woken::Changed = wake(&slot, headers, deadline, &mut stopping).await {
        // The token may have died while it waited.
        if app.live.by_token(&hash) != Some(slot.uuid) {
            return Err(Refusal::unauthenticated());
        }
        slot = app
            .live
            .get(slot.uuid)
            .ok_or_else(Refusal::unauthenticated)?;
        if slot.is_quarantined() {
            return Err(Refusal::quarantined());
        }
        slot.seen(clock::now());
    }
    Ok(slot)
}

/// Why a held poll goes on.
enum Woken {
    /// Something about the device changed; perhaps its target.
    Changed,
    /// There is an answer, or it is time to give one.
    Answer,
}

async fn wake(
    slot: &Slot,
    headers: &HeaderMap,
    deadline: Instant,
    stopping: &mut watch::Receiver<bool>,
) -> Woken {
    let changed = slot.changed();
    tokio::pin!(changed);
    // Listen first, look second: a change between the two is not lost.
    changed.as_mut().enable();
    if !holds(headers, &slot.served()) || *stopping.borrow() {
        return Woken::Answer;
    }
    tokio::select! {
        () = &mut changed => Woken::Changed,
        () = tokio::time::sleep_until(deadline) => Woken::Answer,
        _ = stopping.changed() => Woken::Answer,
    }
}

/// Reads a body that did not fit into memory.
async fn fetch(app: &App, slot: &Slot) -> Result<(Served, bytes::Bytes), Refusal> {
    let (uuid, row) = (slot.uuid, slot.row);
    let target = app
        .store
        .read(move |tx| {
            Ok::<_, Refusal>(match targets::find(tx, row)? {
                Some(target) => (target.etag, target.generation, target.body),
                None if devices::find(tx, uuid)?.is_some() => crate::live::empty(uuid),
                None => return Err(Refusal::unauthenticated()),
            })
        })
        .await?;
    let (etag, generation, body) = target;
    let served = Served {
        etag: HeaderValue::try_from(etag).map_err(|_| Refusal::internal())?,
        generation,
        body: None,
    };
    Ok((served, body.into()))
}

fn stamp(app: &App, served: &Served, headers: &mut HeaderMap) {
    headers.insert(header::ETAG, served.etag.clone());
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, no-cache"),
    );
    headers.insert(header::VARY, HeaderValue::from_static("Authorization"));
    headers.insert(POLL_INTERVAL, HeaderValue::from(app.poll_interval_s));
}

/// Whether `If-None-Match` names what is served (RFC 9110, section 13.1.2: weak comparison).
fn holds(headers: &HeaderMap, served: &Served) -> bool {
    let own = served.etag.as_bytes();
    headers.get_all(header::IF_NONE_MATCH).iter().any(|list| {
        list.as_bytes().split(|byte| *byte == b',').any(|tag| {
            let tag = tag.trim_ascii();
            tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == own
        })
    })
}

/// The wait the device prefers (RFC 7240, section 4.3), within the bound.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .find_map(|preference| {
            let (name, seconds) = preference.split_once('=')?;
            name.trim()
                .eq_ignore_ascii_case("wait")
                .then(|| seconds.trim().trim_matches('"').parse::<u64>().ok())?
        })
        .map(|seconds| Duration::from_secs(seconds.min(LONGEST_WAIT_S)))
}
