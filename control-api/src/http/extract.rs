//! Owns reading requests: bodies with a named bound, strict JSON, ids in paths, query parameters.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use bytes::{Bytes, BytesMut};
use holdfast_proto::id::DeviceId;
use holdfast_proto::problem::parse_json;
use http::request::Parts;
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::problem::Refusal;

/// The largest target: 512 services with long environments fit many times.
pub const TARGET_LIMIT: usize = 1024 * 1024;
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
        if !is_json(&request) {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "send JSON with Content-Type: application/json",
            ));
        }
        match tokio::time::timeout(BODY_PATIENCE, collect(request, LIMIT)).await {
            Ok(body) => body.map(Self),
            Err(_) => Err(Refusal::from_status(StatusCode::REQUEST_TIMEOUT)),
        }
    }
}

fn is_json(request: &Request) -> bool {
    let Some(kind) = request.headers().get(header::CONTENT_TYPE) else {
        return false;
    };
    let Ok(kind) = kind.to_str() else {
        return false;
    };
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || essence
            .to_ascii_lowercase()
            .strip_prefix("application/")
            .is_some_and(|subtype| subtype.ends_with("+json"))
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
        text.parse()
            .ok()
            .filter(|number| *number > 0)
            .map(Self)
            .ok_or_else(|| {
                Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "malformed_id",
                    "the path's id must be a positive whole number",
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
