//! Owns the local API: HTTP on a unix socket, for programs and people on this device.
//!
//! Who may open the socket may give orders: file permissions are the only login. Everything has a
//! bound: connections, bodies, headers and time. Without a folder for the socket the agent goes on
//! without the API.

pub mod client;
mod socket;

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use holdfast_proto::id::ServiceKey;
use holdfast_proto::problem::{FieldError, PROBLEM_MEDIA_TYPE, Problem, parse_json};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::clock::Clock;
use crate::enrolment::Enrolment;
use crate::fault::chain;
use crate::journal::Journal;
use crate::lease::Lease;
use crate::orders::OrderError;
use crate::permission::Permission;
use crate::selfupdate::SelfUpdate;
use crate::shared::Shared;
use crate::status::{Beside, Control, PlanStatus, Status};

/// Connections served at a time; more wait. Each answer takes milliseconds.
const MAX_CONNECTIONS: usize = 8;
/// A whole exchange: nothing here takes longer, so longer is a client that forgot.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(10);
/// A failed accept (no more file descriptors) is tried again after this time.
const ACCEPT_PAUSE_MS: u64 = 1_000;
/// Orders are a few short fields.
const MAX_BODY_BYTES: usize = 4 << 10;
/// Request line and headers of any honest client.
const MAX_HEADER_BYTES: usize = 8 << 10;

/// The API and what it shows and changes.
pub struct LocalApi<'a, C> {
    /// Where it listens.
    pub socket: &'a Path,
    /// Who this device is.
    pub enrolment: &'a Enrolment,
    /// When the target came.
    pub journal: &'a Journal,
    /// What the other loops see.
    pub shared: &'a Shared,
    /// The owner's orders.
    pub permission: &'a Permission,
    /// Time.
    pub clock: &'a C,
    /// The agent's own programs.
    pub selfupdate: Option<&'a SelfUpdate>,
}

/// An answer: a document, or a problem.
type Answer = Result<(StatusCode, Vec<u8>), Refusal>;

/// A request that is not done.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    allow: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            allow: None,
        }
    }
}

impl From<OrderError> for Refusal {
    fn from(error: OrderError) -> Self {
        let (status, code) = match &error {
            OrderError::Write { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "not_kept"),
            OrderError::Held { .. } => (StatusCode::CONFLICT, "locked"),
            OrderError::TooMany => (StatusCode::CONFLICT, "too_many_locks"),
            OrderError::Paused => (StatusCode::CONFLICT, "paused"),
        };
        Self::new(status, code, chain(&error))
    }
}

/// Body of `POST /v1/update-now`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UpdateNow {
    force: bool,
}

/// Body of `POST /v1/pause`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PauseOrder {
    reason: Option<String>,
}

/// What can be asked for.
#[derive(Debug, PartialEq, Eq)]
enum Resource {
    Livez,
    Status,
    Plan,
    UpdateNow,
    Lock(Option<ServiceKey>),
    Pause,
}

impl Resource {
    fn find(path: &str) -> Option<Self> {
        match path {
            "/livez" => Some(Self::Livez),
            "/v1/status" => Some(Self::Status),
            "/v1/plan" => Some(Self::Plan),
            "/v1/update-now" => Some(Self::UpdateNow),
            "/v1/lock" => Some(Self::Lock(None)),
            "/v1/pause" => Some(Self::Pause),
            other => service_key(other.strip_prefix("/v1/lock/")?).map(|key| Self::Lock(Some(key))),
        }
    }

    fn allowed(&self) -> &'static str {
        match self {
            Self::Livez | Self::Status | Self::Plan => "GET",
            Self::UpdateNow => "POST",
            Self::Lock(_) | Self::Pause => "POST, DELETE",
        }
    }
}

/// Reads `app/name`.
pub fn service_key(text: &str) -> Option<ServiceKey> {
    let (app, service) = text.split_once('/')?;
    Some(ServiceKey {
        app: app.parse().ok()?,
        service: service.parse().ok()?,
    })
}

impl<C: Clock> LocalApi<'_, C> {
    /// Serves; ends only by being dropped.
    pub async fn run(&self) {
        let listener = match socket::listen(self.socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(
                    socket = %self.socket.display(), error = %chain(&error),
                    "no local API: status, lock and pause are not reachable on this device"
                );
                return std::future::pending().await;
            }
        };
        tracing::info!(socket = %self.socket.display(), "the local API listens");
        let mut connections = FuturesUnordered::new();
        loop {
            let busy = connections.len();
            tokio::select! {
                accepted = listener.accept(), if busy < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => connections.push(self.serve(stream)),
                    Err(error) => {
                        tracing::warn!(error = %error, "the local API could not take a connection");
                        self.clock.sleep_ms(ACCEPT_PAUSE_MS).await;
                    }
                },
                Some(()) = connections.next(), if busy > 0 => {}
            }
        }
    }

    async fn serve(&self, stream: UnixStream) {
        let service = service_fn(async |request| Ok::<_, Infallible>(self.respond(request).await));
        let connection = hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        // A client that goes away or dawdles is nobody's fault here.
        drop(tokio::time::timeout(EXCHANGE_LIMIT, connection).await);
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        match self.answer(request, &path).await {
            Ok((status, body)) => response(status, "application/json", None, body),
            Err(refusal) => {
                let problem = Problem {
                    kind: "about:blank".to_owned(),
                    title: refusal
                        .status
                        .canonical_reason()
                        .unwrap_or_default()
                        .to_owned(),
                    status: refusal.status.as_u16(),
                    detail: Some(refusal.detail),
                    instance: Some(path),
                    code: Some(refusal.code.to_owned()),
                    errors: refusal.errors,
                    ..Problem::default()
                };
                let body = serde_json::to_vec(&problem).unwrap_or_default();
                response(refusal.status, PROBLEM_MEDIA_TYPE, refusal.allow, body)
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>, path: &str) -> Answer {
        let resource = Resource::find(path).ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here")
        })?;
        let (method, now_ms) = (request.method().clone(), self.clock.monotonic_ms());
        let orders = self.permission.orders();
        match (&resource, method) {
            (Resource::Livez, Method::GET) => document(StatusCode::OK, &"alive"),
            (Resource::Status, Method::GET) => document(StatusCode::OK, &self.status()),
            (Resource::Plan, Method::GET) => {
                document(StatusCode::OK, &PlanStatus::of(&self.shared.view()))
            }
            (Resource::UpdateNow, Method::POST) => {
                let order: UpdateNow = body(request).await?;
                if order.force {
                    orders.force(now_ms)?;
                }
                tracing::info!(force = order.force, "an update now was ordered");
                self.shared.hurry();
                self.control(StatusCode::ACCEPTED)
            }
            (Resource::Lock(service), Method::POST) => {
                let lease: Lease = body(request).await?;
                self.must_exist(service.as_ref())?;
                orders.lock(service.as_ref(), lease, now_ms)?;
                self.ordered("a lock was taken", service.as_ref())
            }
            (Resource::Lock(service), Method::DELETE) => {
                orders.unlock(service.as_ref())?;
                self.ordered("a lock was ended", service.as_ref())
            }
            (Resource::Pause, Method::POST) => {
                let order: PauseOrder = body(request).await?;
                orders.pause(order.reason.as_deref(), self.clock.now())?;
                self.ordered("updates were paused", None)
            }
            (Resource::Pause, Method::DELETE) => {
                orders.resume()?;
                self.ordered("updates were resumed", None)
            }
            (resource, method) => Err(Refusal {
                allow: Some(resource.allowed()),
                ..Refusal::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method_not_allowed",
                    format!("{method} does not work here, {} does", resource.allowed()),
                )
            }),
        }
    }

    /// A lock on a service that the target does not name would be a typing error that locks nothing.
    fn must_exist(&self, service: Option<&ServiceKey>) -> Result<(), Refusal> {
        let Some(key) = service else { return Ok(()) };
        let target = self.shared.target();
        let known = target.is_some_and(|accepted| {
            let mut services = accepted.target.services();
            services.any(|(known, _)| known == *key)
        });
        if known {
            return Ok(());
        }
        let detail = format!("the target names no service {key}");
        Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no_such_service",
            detail,
        ))
    }

    fn ordered(&self, what: &str, service: Option<&ServiceKey>) -> Answer {
        let name = service.map(ToString::to_string);
        tracing::info!(
            service.name = name.as_deref(),
            "{what} through the local API"
        );
        self.shared.reconcile.notify_one();
        self.control(StatusCode::OK)
    }

    fn control(&self, status: StatusCode) -> Answer {
        let orders = self.permission.orders();
        document(status, &Control::of(orders, self.clock.monotonic_ms()))
    }

    fn status(&self) -> Status {
        let target = self.journal.target().ok().flatten();
        let beside = Beside {
            agent_pid: Some(std::process::id()),
            target_received_at: target.map(|stored| stored.received_at),
            notices: self.shared.notices(),
            pulls: self.shared.pulls(),
            control: Control::of(self.permission.orders(), self.clock.monotonic_ms()),
            agent: self.selfupdate.map(SelfUpdate::status).unwrap_or_default(),
        };
        Status::of(self.enrolment, &self.shared.view(), beside)
    }
}

fn document<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let body = serde_json::to_vec(value).map_err(|error| {
        let detail = error.to_string();
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "not_written", detail)
    })?;
    Ok((status, body))
}

fn response(
    status: StatusCode,
    content_type: &str,
    allow: Option<&str>,
    body: Vec<u8>,
) -> Response<Full<Bytes>> {
    let mut builder = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type);
    if let Some(allow) = allow {
        builder = builder.header(ALLOW, allow);
    }
    builder
        .body(Full::new(Bytes::from(body)))
        .expect("status and headers are constants of this file")
}

/// The body as `T`; an absent one is an order without particulars.
async fn body<T: for<'de> Deserialize<'de> + Default>(
    request: Request<Incoming>,
) -> Result<T, Refusal> {
    let limited = Limited::new(request.into_body(), MAX_BODY_BYTES);
    let bytes = limited.collect().await.map_err(|_| {
        let detail = format!("the body did not arrive whole, or has over {MAX_BODY_BYTES} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    })?;
    let bytes = bytes.to_bytes();
    if bytes.is_empty() {
        return Ok(T::default());
    }
    parse_json(&bytes).map_err(|errors| Refusal {
        errors,
        ..Refusal::new(
            StatusCode::BAD_REQUEST,
            "invalid_body",
            "the body cannot be used",
        )
    })
}

#[cfg(test)]
mod tests;
