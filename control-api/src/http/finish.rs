//! Owns what happens around every request: its id, its time limit, panics, the form of errors, logs.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use holdfast_proto::problem::PROBLEM_MEDIA_TYPE;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::POLL_ROUTE;
use super::problem::Refusal;
use crate::app::Shared;
use crate::clock::Stopwatch;
use crate::secret;

/// The longest a request may take: the longest long poll and a slow registry fit.
const REQUEST_LIMIT: Duration = Duration::from_mins(2);
/// Longest request id taken over from a caller.
const LONGEST_REQUEST_ID: usize = 64;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of the request at hand.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

fn request_id(request: &Request) -> RequestId {
    let brought = request
        .headers()
        .get(&REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(|id| {
            !id.is_empty()
                && id.len() <= LONGEST_REQUEST_ID
                && id
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        });
    RequestId(match brought {
        Some(id) => id.into(),
        None => secret::request_id().unwrap_or_default().into(),
    })
}

/// Wraps every request, known path or not.
pub async fn finish(app: Shared, mut request: Request, next: Next) -> Response {
    let started = Stopwatch::start();
    let id = request_id(&request);
    let method = request.method().clone();
    let path = shown(request.uri().path()).into_owned();
    request.extensions_mut().insert(id.clone());
    request.extensions_mut().insert(Arc::clone(&app));

    let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = match tokio::time::timeout(REQUEST_LIMIT, handled).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            app.metrics.panicked();
            tracing::error!(request.id = %id.0, url.path = path, "a handler panicked");
            Refusal::internal().into_response()
        }
        Err(_) => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "timeout",
            "the server did not manage this in time",
        )
        .into_response(),
    };
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        response = write_problem(response, &path, &id);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(id.0.as_ref()) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    let route = response
        .extensions()
        .get::<Route>()
        .map_or("unknown", |route| route.as_str());
    let code = status.as_u16();
    if route == POLL_ROUTE {
        app.metrics.poll(code);
    } else {
        app.metrics.request(route, code);
    }
    let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if changes(&method) && !status.is_server_error() {
        tracing::info!(request.id = %id.0, http.method = %method, http.route = route, url.path = path, http.status = code, duration_ms, "answered a request");
    } else if status.is_server_error() {
        tracing::error!(request.id = %id.0, http.method = %method, http.route = route, url.path = path, http.status = code, duration_ms, "could not answer a request");
    } else {
        tracing::debug!(request.id = %id.0, http.method = %method, http.route = route, url.path = path, http.status = code, duration_ms, "answered a request");
    }
    response
}

/// A path as logs and answers may show it: what follows a webhook's vendor is a secret.
///
/// Also in paths that lead nowhere: somebody misspelt the way to a right secret.
fn shown(path: &str) -> Cow<'_, str> {
    const WEBHOOKS: &str = "/webhooks/";
    const OURS: &str = "/api/v1/webhooks/deliveries/";
    let Some(start) = path.to_ascii_lowercase().find(WEBHOOKS) else {
        return Cow::Borrowed(path);
    };
    if path.starts_with(OURS) {
        return Cow::Borrowed(path);
    }
    let (above, below) = path.split_at(start + WEBHOOKS.len());
    match below.split_once('/') {
        None | Some((_, "")) => Cow::Borrowed(path),
        Some((vendor, _)) => Cow::Owned(format!("{above}{vendor}/…")),
    }
}

fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The pattern that matched, carried from the routes to the metrics.
#[derive(Debug, Clone)]
pub struct Route(MatchedPath);

impl Route {
    fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// Notes on the response which route it came from.
pub async fn note_route(request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(matched) = matched {
        response.extensions_mut().insert(Route(matched));
    }
    response
}

fn write_problem(mut response: Response, path: &str, id: &RequestId) -> Response {
    let status = response.status();
    let refusal = response
        .extensions_mut()
        .remove::<Refusal>()
        .unwrap_or_else(|| Refusal::from_status(status));
    let (status, mut problem, extra) = refusal.into_parts();
    problem.instance = Some(path.to_owned());
    problem.request_id = Some(id.0.to_string());
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(PROBLEM_MEDIA_TYPE),
    );
    headers.extend(extra);
    *response.body_mut() = Body::from(body);
    response
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn a_secret_in_a_path_is_not_shown() {
        for (path, expected) in [
            ("/api/v1/devices/1", "/api/v1/devices/1"),
            ("/api/v1/webhooks/quay", "/api/v1/webhooks/quay"),
            ("/api/v1/webhooks/quay/", "/api/v1/webhooks/quay/"),
            ("/api/v1/webhooks/quay/canary", "/api/v1/webhooks/quay/…"),
            ("/api/v1/webhooks/quay/canary/", "/api/v1/webhooks/quay/…"),
            ("/api/v1/webhooks//quay/canary", "/api/v1/webhooks//…"),
            ("/v1/Webhooks/quay/canary", "/v1/Webhooks/quay/…"),
            (
                "/api/v1/webhooks/deliveries/7/redeliver",
                "/api/v1/webhooks/deliveries/7/redeliver",
            ),
        ] {
            assert_eq!(shown(path), expected);
        }
    }
}
