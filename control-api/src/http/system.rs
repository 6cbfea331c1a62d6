//! Owns what machines ask about the server itself.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::app::Shared;
use crate::http::problem::Refusal;
use crate::store::devices;

/// The `OpenMetrics` text format's name.
const METRICS_MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// This document.
#[utoipa::path(
    get, path = "/api/v1/openapi.json", tag = "system",
    responses((status = 200, description = "The OpenAPI document", body = Object))
)]
pub async fn openapi(State(app): State<Shared>) -> Response {
    (
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        app.openapi.clone(),
    )
        .into_response()
}

/// The process lives.
#[utoipa::path(
    get, path = "/livez", tag = "system",
    responses((status = 200, description = "It lives", body = String, content_type = "text/plain"))
)]
pub async fn livez() -> &'static str {
    "ok\n"
}

/// The process can do its work: its store answers and it is not about to end.
#[utoipa::path(
    get, path = "/readyz", tag = "system",
    responses((status = 200, description = "It is ready", body = String, content_type = "text/plain"))
)]
pub async fn readyz(State(app): State<Shared>) -> Result<&'static str, Refusal> {
    if *app.stopping.borrow() {
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "the server is about to end",
        ));
    }
    app.store.is_sound()?;
    app.store
        .read(|tx| Ok::<_, Refusal>(devices::count(tx)?))
        .await?;
    Ok("ok\n")
}

/// Metrics for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "system",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain"))
)]
pub async fn metrics(State(app): State<Shared>) -> Response {
    app.metrics.set_devices(app.live.len());
    (
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static(METRICS_MEDIA_TYPE),
        )],
        app.metrics.text(),
    )
        .into_response()
}
