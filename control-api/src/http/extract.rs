//! Owns reading requests: bodies with a named bound, strict JSON, ids in paths, query parameters.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use bytes::{Bytes, BytesMut};
use holdfast_proto::compose::{self, ComposeError, Converted};
use holdfast_proto::id::DeviceId;
use holdfast_proto::operator::Page;
use holdfast_proto::problem::parse_json;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::problem::Refusal;
use crate::fleets;
use crate::store::StoreError;

/// The largest target: 512 services with long environments fit many times.
pub const TARGET_LIMIT: usize = 1024 * 1024;
/// The largest Compose file: some hundred services as people write them.
pub const COMPOSE_LIMIT: usize = 256 * 1024;
/// The largest report: 512 services with a line each about themselves.
pub const REPORT_LIMIT: usize = 256 * 1024;
/// The largest webhook: a registry's envelope of some hundred events.
pub const WEBHOOK_LIMIT: usize = 256 * 1024;
/// The largest of all other bodies.
pub const SMALL_LIMIT: usize = 64 * 1024;
/// How long a client may take to send a body: 1 MiB over a slow mobile link.
const BODY_PATIENCE: Duration = Duration::from_mins(1);
/// The most items in one page of a list.
pub const PAGE_LIMIT: u32 = 200;
/// Items in a page when the caller does not say.
const PAGE_DEFAULT: u32 = 50;

/// The bytes of a JSON body of at most `LIMIT` bytes.
#[derive(Debug)]
pub struct JsonBytes<const LIMIT: usize>(pub Bytes);

impl<S: Send + Sync, const LIMIT: usize> FromRequest<S> for JsonBytes<LIMIT> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        expect_json(request.headers())?;
        bytes(request, LIMIT, BODY_PATIENCE).await.map(Self)
    }
}

/// Refuses what does not say that it is JSON.
pub fn expect_json(headers: &HeaderMap) -> Result<(), Refusal> {
    if essence(headers).is_some_and(is_json) {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "send JSON with Content-Type: application/json",
    ))
}

/// The bytes of a body of at most `limit` bytes that arrives within `patience`.
pub async fn bytes(request: Request, limit: usize, patience: Duration) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(patience, collect(request, limit)).await {
        Ok(body) => body,
        Err(_) => Err(Refusal::from_status(StatusCode::REQUEST_TIMEOUT)),
    }
}

/// The media type of a body, without its parameters.
fn essence(headers: &HeaderMap) -> Option<&str> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    kind.split(';').next().map(str::trim)
}

fn is_json(essence: &str) -> bool {
    essence.eq_ignore_ascii_case("application/json")
        || essence
            .to_ascii_lowercase()
            .strip_prefix("application/")
            .is_some_and(|subtype| subtype.ends_with("+json"))
}

/// YAML has one registered name (RFC 9512) and those from before it.
fn is_yaml(essence: &str) -> bool {
    [
        "application/yaml",
        "application/x-yaml",
        "text/yaml",
        "text/x-yaml",
    ]
    .iter()
    .any(|name| essence.eq_ignore_ascii_case(name))
}

/// The bytes of a Compose file of at most [`COMPOSE_LIMIT`] bytes.
#[derive(Debug)]
pub struct ComposeBytes(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for ComposeBytes {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        if !essence(request.headers()).is_some_and(is_yaml) {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "send a Compose file with Content-Type: application/yaml",
            ));
        }
        bytes(request, COMPOSE_LIMIT, BODY_PATIENCE).await.map(Self)
    }
}

/// Reads a Compose file, telling what is no YAML (400) from what is not taken (422).
pub async fn read_compose(bytes: Bytes) -> Result<Converted, Refusal> {
    // The worst file within the bounds keeps a processor for longer than other requests should wait.
    let read = tokio::task::spawn_blocking(move || compose::read(&bytes)).await;
    read.map_err(|_| StoreError::Interrupted)?
        .map_err(|error| match error {
            ComposeError::Malformed(_) => Refusal::malformed(error.to_string()),
            ComposeError::Invalid(errors) => Refusal::invalid(errors),
        })
}

async fn collect(request: Request, limit: usize) -> Result<Bytes, Refusal> {
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<usize>().ok());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(Refusal::too_large(limit));
    }
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::malformed("the body broke off"))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > limit {
                return Err(Refusal::too_large(limit));
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes.freeze())
}

/// Whether a text is JSON at all: decides between "malformed" and "wrong fields".
pub fn is_well_formed(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(bytes).is_ok()
}

/// Reads a document with `parse`, telling malformed text (400) from wrong fields (422).
pub fn read_document<T>(
    bytes: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<T, Vec<holdfast_proto::problem::FieldError>>,
) -> Result<T, Refusal> {
    parse(bytes).map_err(|errors| {
        if is_well_formed(bytes) {
            Refusal::invalid(errors)
        } else {
            let detail = errors
                .first()
                .map_or("the body is not JSON".to_owned(), |error| {
                    format!("the body is not JSON: {}", error.detail)
                });
            Refusal::malformed(detail).with_errors(errors)
        }
    })
}

/// A strict JSON body of at most [`SMALL_LIMIT`] bytes.
#[derive(Debug)]
pub struct Strict<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Strict<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let JsonBytes(bytes) = JsonBytes::<SMALL_LIMIT>::from_request(request, state).await?;
        read_document(&bytes, |bytes| parse_json(bytes)).map(Self)
    }
}

/// The device that the path names.
#[derive(Debug, Clone, Copy)]
pub struct DevicePath(pub DeviceId);

impl<S: Send + Sync> FromRequestParts<S> for DevicePath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Refusal::not_found())?;
        text.parse().map(Self).map_err(|error| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "malformed_id",
                format!("the path's device id: {error}"),
            )
        })
    }
}

/// The number that the path names.
#[derive(Debug, Clone, Copy)]
pub struct NumberPath(pub i64);

impl<S: Send + Sync> FromRequestParts<S> for NumberPath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Refusal::not_found())?;
        number(&text).map(Self)
    }
}

fn number(text: &str) -> Result<i64, Refusal> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "malformed_id",
                "the path's id must be a positive whole number",
            )
        })
}

/// The two numbers that the path names: of a thing, and of a part of it.
#[derive(Debug, Clone, Copy)]
pub struct NumberPaths(pub i64, pub i64);

impl<S: Send + Sync> FromRequestParts<S> for NumberPaths {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path((whole, part)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|_| Refusal::not_found())?;
        Ok(Self(number(&whole)?, number(&part)?))
    }
}

fn unnamed() -> Refusal {
    Refusal::new(
        StatusCode::BAD_REQUEST,
        "malformed_id",
        "the path's fleet: not the name of one",
    )
}

/// The fleet that the path names.
#[derive(Debug, Clone)]
pub struct FleetPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for FleetPath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| unnamed())?;
        fleets::is_name(&name)
            .then_some(Self(name))
            .ok_or_else(unnamed)
    }
}

/// The fleet and the number of its release that the path names.
#[derive(Debug, Clone)]
pub struct ReleasePath(pub String, pub i64);

impl<S: Send + Sync> FromRequestParts<S> for ReleasePath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path((name, number)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|_| unnamed())?;
        if !fleets::is_name(&name) {
            return Err(unnamed());
        }
        let number = number.parse().ok().filter(|number| *number > 0);
        number.map(|number| Self(name, number)).ok_or_else(|| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "malformed_id",
                "the path's release must be a positive whole number",
            )
        })
    }
}

/// Query parameters; unknown ones are refused.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let refuse =
            |detail: String| Refusal::new(StatusCode::BAD_REQUEST, "malformed_query", detail);
        if parts.uri.query().is_some_and(|query| query.contains("%00")) {
            return Err(refuse("a parameter contains the NUL character".to_owned()));
        }
        Query::try_from_uri(&parts.uri)
            .map(|Query(params)| Self(params))
            .map_err(|error| refuse(crate::telemetry::chain(&error)))
    }
}

/// How many items a page has, judged.
pub fn page_size(limit: Option<u32>) -> Result<i64, Refusal> {
    match limit.unwrap_or(PAGE_DEFAULT) {
        size @ 1..=PAGE_LIMIT => Ok(i64::from(size)),
        _ => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "malformed_query",
            format!("limit must be 1 to {PAGE_LIMIT}"),
        )),
    }
}

/// The row a cursor points at; `start` without a cursor. Callers must not look inside cursors.
pub fn cursor(text: Option<&str>, start: i64) -> Result<i64, Refusal> {
    text.map_or(Ok(start), |text| {
        i64::from_str_radix(text, 16)
            .ok()
            .filter(|row| *row >= 0)
            .ok_or_else(|| {
                Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "malformed_query",
                    "cursor is not one that this server gave out",
                )
            })
    })
}

/// The cursor to the next page: none when this page was not full.
pub fn next_cursor<T>(items: &[T], size: i64, row: impl Fn(&T) -> i64) -> Option<String> {
    let full = i64::try_from(items.len()).is_ok_and(|count| count >= size);
    items
        .last()
        .filter(|_| full)
        .map(|last| format!("{:x}", row(last)))
}

/// A page of what was found, with the cursor to the next.
pub fn page<S, T: From<S>>(found: Vec<S>, size: i64, row: impl Fn(&S) -> i64) -> Page<T> {
    let next_cursor = next_cursor(&found, size, row);
    let items = found.into_iter().map(T::from).collect();
    Page { items, next_cursor }
}
