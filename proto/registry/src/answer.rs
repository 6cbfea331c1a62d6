//! Owns an answer of a registry: read whole within its bound, and what its status and headers mean.
//!
//! Refuses to read more than a bound, whatever length is announced.

use std::time::Duration;

use holdfast_proto::time::retry_after_seconds;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, LINK, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};

use crate::client::Question;
use crate::error::RegistryError;
use crate::filter;
use crate::settings::RateLimit;

/// Longest wait that a `Retry-After` can impose; more is taken for a mistake.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// A whole answer; not verified against any digest yet.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) not_modified: bool,
    pub(crate) method_refused: bool,
    /// What the registry says the digest is.
    pub(crate) announced: Option<String>,
    pub(crate) content_type: Option<String>,
    /// Where the rest of a list is.
    pub(crate) link: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// Reads the answer to a question.
pub(crate) async fn read(
    question: &Question<'_>,
    registry: &str,
    response: Response,
) -> Result<Fetched, RegistryError> {
    let status = response.status();
    let text = |name: &str| {
        let value = response.headers().get(name);
        let text = value.and_then(|value| value.to_str().ok());
        text.map(str::to_owned)
    };
    let mut fetched = Fetched {
        not_modified: status == StatusCode::NOT_MODIFIED,
        method_refused: matches!(
            status,
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
        ),
        announced: text("docker-content-digest"),
        content_type: text(CONTENT_TYPE.as_str()),
        link: text(LINK.as_str()),
        body: Vec::new(),
    };
    let is_head = *question.method == Method::HEAD;
    if fetched.not_modified || (fetched.method_refused && is_head) {
        return Ok(fetched);
    }
    let what = question.what();
    if let Some(error) = refusal(registry, &what, &response) {
        return Err(error);
    }
    let is_page = |content_type: &String| content_type.starts_with("text/html");
    if fetched.content_type.as_ref().is_some_and(is_page) {
        return Err(RegistryError::WebPage {
            registry: registry.to_owned(),
        });
    }
    if !is_head {
        fetched.body = body(registry, &what, response, question.limit).await?;
    }
    Ok(fetched)
}

/// Reads a body up to a bound.
pub(crate) async fn body(
    registry: &str,
    what: &str,
    mut response: Response,
    limit: usize,
) -> Result<Vec<u8>, RegistryError> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| broken(registry, &error))?
    {
        if body.len() + chunk.len() > limit {
            return Err(RegistryError::TooLarge {
                what: what.to_owned(),
                limit,
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What a status that is no success means.
pub(crate) fn refusal(registry: &str, what: &str, response: &Response) -> Option<RegistryError> {
    let registry = registry.to_owned();
    let status = response.status();
    match status {
        status if status.is_success() => None,
        StatusCode::UNAUTHORIZED => Some(RegistryError::Unauthorized { registry }),
        StatusCode::FORBIDDEN => Some(RegistryError::Forbidden { registry }),
        StatusCode::NOT_FOUND => Some(RegistryError::NotFound {
            what: what.to_owned(),
        }),
        StatusCode::TOO_MANY_REQUESTS => Some(RegistryError::RateLimited {
            registry,
            retry_after: retry_after(response.headers()),
        }),
        other => Some(RegistryError::Server {
            registry,
            status: other.as_u16(),
            retry_after: retry_after(response.headers()),
        }),
    }
}

/// How long the registry wants peace, if it says.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = retry_after_seconds(text(RETRY_AFTER)?, text(DATE))?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// What a registry says about its limit, with or without the window (`100;w=21600`).
pub(crate) fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    let number = |name: &str| {
        let text = headers.get(name)?.to_str().ok()?;
        text.split(';').next()?.trim().parse().ok()
    };
    Some(RateLimit {
        limit: number("ratelimit-limit")?,
        remaining: number("ratelimit-remaining")?,
    })
}

/// A transport failure in words, without the address: it could hold a credential.
pub(crate) fn broken(registry: &str, error: &reqwest::Error) -> RegistryError {
    let registry = registry.to_owned();
    if let Some(refused) = filter::refusal(error) {
        let why = refused.to_string();
        return RegistryError::AddressRefused { registry, why };
    }
    if error.is_timeout() {
        return RegistryError::TimedOut { registry };
    }
    RegistryError::Unreachable {
        registry,
        reason: deepest(error),
    }
}

/// The deepest cause of a transport failure.
pub(crate) fn deepest(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    // The outermost text may name the address; a cause underneath does not.
    match std::error::Error::source(error) {
        Some(_) => deepest.to_string(),
        None => "the request failed".to_owned(),
    }
}
