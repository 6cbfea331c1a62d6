//! Owns error answers: every one leaves as problem details (RFC 9457), written in one place.
//!
//! Handlers return a [`Refusal`]; the outermost layer adds the path and the request id and writes
//! the body. Refuses to tell a client what went wrong inside.

use axum::response::{IntoResponse, Response};
use holdfast_proto::problem::{FieldError, Problem};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::secret::NoRandomness;
use crate::store::StoreError;
use crate::telemetry::chain;

/// Seconds after which a busy server is worth asking again.
const RETRY_AFTER_S: u16 = 2;

/// An answer that refuses, not yet written.
#[derive(Debug, Clone)]
pub struct Refusal {
    status: StatusCode,
    problem: Box<Problem>,
    headers: HeaderMap,
}

impl Refusal {
    /// A refusal with this status and stable code.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self {
            status,
            problem: Box::new(Problem {
                kind: "about:blank".to_owned(),
                title: title(status).to_owned(),
                status: status.as_u16(),
                detail: Some(detail.into()),
                code: Some(code.to_owned()),
                ..Problem::default()
            }),
            headers: HeaderMap::new(),
        }
    }

    /// The status it will leave with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong, in words.
    pub fn detail(&self) -> &str {
        self.problem.detail.as_deref().unwrap_or_default()
    }

    /// Adds a header, such as `Retry-After`.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds the faults of single fields.
    #[must_use]
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.problem.errors = errors;
        self
    }

    /// 403: an image that may not run; what to call it, why, and what a person can do.
    pub fn image(error: &str, message: &str, action_required: Option<&str>) -> Self {
        let code = error.to_lowercase().replace(' ', "_");
        let mut refusal = Self::new(StatusCode::FORBIDDEN, &code, message);
        refusal.problem.error = Some(error.to_owned());
        refusal.problem.message = Some(message.to_owned());
        refusal.problem.action_required = action_required.map(str::to_owned);
        refusal
    }

    /// 400: the text is not what it should be at all.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    /// 422: the text can be read, but fields are wrong.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] => one.to_string(),
            many => format!("{} fields are wrong", many.len()),
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail).with_errors(errors)
    }

    /// 422 for one field.
    pub fn invalid_field(pointer: &str, detail: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError {
            pointer: pointer.to_owned(),
            detail: detail.into(),
        }])
    }

    /// 401: say who you are.
    pub fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "a valid bearer token is needed",
        )
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// 403: known, but not allowed.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 409: the device is in quarantine.
    pub fn quarantined() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "quarantined",
            "this device is in quarantine: an operator has to release it or to let it enrol again",
        )
    }

    /// 404: not there, or not for this caller to know.
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is nothing here for this token",
        )
    }

    /// 413: the body is over the limit, which is named.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body may have at most {limit} bytes"),
        )
    }

    /// 500: something is wrong in here.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server could not do this; its log says why under the request id",
        )
    }

    /// 503: not now.
    pub fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "the server cannot do this now; ask again later",
        )
        .with_header(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S))
    }

    /// The refusal behind a bare status, as the framework answers unknown paths and methods.
    pub fn from_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => ("not_found", "there is no such path"),
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method_not_allowed", "this path does not take that method")
            }
            StatusCode::PAYLOAD_TOO_LARGE => ("too_large", "the body is too large"),
            StatusCode::REQUEST_TIMEOUT => ("timeout", "the request took too long"),
            status if status.is_server_error() => return Self::internal(),
            _ => ("refused", "the request was refused"),
        };
        Self::new(status, code, detail)
    }

    /// The whole problem, for the layer that writes it.
    pub(super) fn into_parts(self) -> (StatusCode, Problem, HeaderMap) {
        (self.status, *self.problem, self.headers)
    }
}

fn title(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Refused")
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        if let StoreError::Damaged(_) = error {
            tracing::error!(error = chain(&error), "the store is damaged");
            return Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "database_damaged",
                "the database is damaged, and nothing is written to it: an operator must restore a backup",
            );
        }
        if error.is_temporary() {
            tracing::warn!(error = chain(&error), "the store could not do it now");
            Self::busy()
        } else {
            tracing::error!(error = chain(&error), "the store failed");
            Self::internal()
        }
    }
}

impl From<NoRandomness> for Refusal {
    fn from(error: NoRandomness) -> Self {
        tracing::error!(error = chain(&error), "no token could be made");
        Self::internal()
    }
}
