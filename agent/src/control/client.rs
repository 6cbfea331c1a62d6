//! Owns HTTP to the control API; reqwest is named only here.
//!
//! Refuses redirects, oversized bodies and every server but the one that enrolled this device.

use std::path::Path;
use std::time::Duration;

use holdfast_proto::current::CurrentState;
use holdfast_proto::id::DeviceId;
use holdfast_proto::operator::{EnrolRequest, EnrolResponse};
use holdfast_proto::problem::Problem;
use holdfast_proto::pull::{PullLogin, PullLoginRequest};
use holdfast_proto::time::retry_after_seconds;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, DATE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    RETRY_AFTER,
};
use reqwest::{Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::enrolment::Token;
use crate::fault::foreign;

/// A connection that takes longer than this to open will not open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole exchange; a target is small, so a slow line still fits.
const EXCHANGE_TIMEOUT: Duration = Duration::from_mins(1);
/// The largest target that is read: many times what 500 services need (4 MiB).
pub const MAX_TARGET_BYTES: usize = 4 << 20;
/// The largest error document or enrolment answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// A server that asks for more patience than this is asked again after an hour all the same.
const MAX_RETRY_AFTER_SECONDS: u64 = 3_600;

/// The server's address: scheme, host, port and perhaps a path prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(Url);

impl Origin {
    /// Reads an address, or says what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let example = "write an address such as https://holdfast.example";
        let url = Url::parse(text).map_err(|error| format!("{error}: {example}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(format!("not an http(s) address: {example}"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("an address holds no user or password: {example}"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("an address has no `?` or `#`: {example}"));
        }
        Ok(Self(url))
    }

    /// Its host and port, as they are looked up.
    pub fn host_and_port(&self) -> Option<(String, u16)> {
        let host = self.0.host_str()?.trim_matches(['[', ']']).to_owned();
        Some((host, self.0.port_or_known_default()?))
    }

    /// Whether what is sent there can be read on the way.
    pub fn is_readable_on_the_way(&self) -> bool {
        let local = self.0.host_str().is_some_and(|host| {
            host == "localhost"
                || host
                    .trim_matches(['[', ']'])
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        });
        self.0.scheme() == "http" && !local
    }

    fn path(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        let prefix = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{prefix}/api/v1/{path}"));
        url
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// When the same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Not before something else changes.
    Never,
    /// After a pause of the caller's choosing.
    Later,
    /// After the pause that the server asked for.
    AfterMs(u64),
}

/// The control API did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The client itself could not be made.
    #[error("cannot set up the connection to the control API")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There was no answer.
    #[error("cannot reach the control API to {what}")]
    Unreachable {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer was a refusal.
    #[error("the control API refused to {what}: {status}{}{detail}", if detail.is_empty() { "" } else { ": " })]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its status.
        status: u16,
        /// Its reason.
        detail: String,
        /// The pause it asked for.
        retry_after_ms: Option<u64>,
    },
    /// The answer is larger than anything sensible.
    #[error("the control API's answer to {what} is larger than {limit} bytes")]
    TooLarge {
        /// What was asked.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The answer is not what the contract says.
    #[error("the control API's answer to {what} cannot be understood: {detail}")]
    Nonsense {
        /// What was asked.
        what: &'static str,
        /// Why.
        detail: String,
    },
}

impl ClientError {
    /// When the request may be repeated.
    pub fn retry(&self) -> Again {
        match self {
            Self::Refused {
                retry_after_ms: Some(pause_ms),
                ..
            } => Again::AfterMs(*pause_ms),
            Self::Refused { status, .. } => match status {
                // Redirects are not followed; one may come from a captive portal, which passes.
                300..=399 | 408 | 425 | 429 | 500..=599 => Again::Later,
                _ => Again::Never,
            },
            Self::Unreachable { .. } | Self::TooLarge { .. } | Self::Nonsense { .. } => {
                Again::Later
            }
            Self::Setup(_) => Again::Never,
        }
    }

    /// Whether the server does not know this device's token.
    pub fn is_unauthorised(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                status: 401 | 403 | 404 | 410,
                ..
            }
        )
    }
}

const PREFER: HeaderName = HeaderName::from_static("prefer");
/// The header by which a server says how often it wants to be asked.
const POLL_INTERVAL: &str = "holdfast-poll-interval";
/// The longest time that a server is asked to hold an answer back: less than an exchange may take.
const MAX_WAIT_SECONDS: u64 = 45;

/// The server's answer to a poll.
#[derive(Debug)]
pub struct Answer {
    /// What it says of the target.
    pub state: StateAnswer,
    /// How often it wants to be asked from now on.
    pub interval_seconds: Option<u64>,
}

/// What the server says of the target.
#[derive(Debug)]
pub enum StateAnswer {
    /// It is the one with the entity tag that was sent.
    NotModified,
    /// It is this one.
    Target {
        /// The exact bytes.
        body: Vec<u8>,
        /// Its entity tag.
        etag: Option<String>,
    },
}

/// One device's connection to its control API.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    origin: Origin,
}

impl Client {
    /// A connection to `origin`, trusting the certificates of `ca_file` if there is one.
    pub fn new(origin: Origin, ca_file: Option<&Path>) -> Result<Self, ClientError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("holdfast-agent/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(EXCHANGE_TIMEOUT)
            .pool_max_idle_per_host(1);
        if let Some(file) = ca_file {
            let pem = std::fs::read(file).map_err(|error| ClientError::Setup(error.into()))?;
            let trusted = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| ClientError::Setup(error.into()))?;
            builder = builder.tls_certs_only(trusted);
        } else if origin.0.scheme() == "http" {
            // Nothing to verify: the system's certificates would only cost memory.
            builder = builder.tls_certs_only([]);
        }
        let http = builder
            .build()
            .map_err(|error| ClientError::Setup(error.into()))?;
        Ok(Self { http, origin })
    }

    /// Where it goes.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Makes this device known. `key` is an enrolment key, or the token it has from before.
    pub async fn enrol(
        &self,
        key: &Token,
        request: &EnrolRequest,
    ) -> Result<EnrolResponse, ClientError> {
        self.ask("enrol", "enroll", key, request).await
    }

    /// What the server's clock shows, by the `Date` of any answer at all.
    pub async fn date(&self) -> Option<String> {
        let mut url = self.origin.0.clone();
        url.set_path(&format!("{}/livez", url.path().trim_end_matches('/')));
        let answer = self.http.head(url).send().await.ok()?;
        let date = answer.headers().get(DATE)?.to_str().ok()?;
        Some(date.to_owned())
    }

    /// Sends a question and reads the short answer.
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        what: &'static str,
        path: &str,
        token: &Token,
        question: &Q,
    ) -> Result<A, ClientError> {
        let sent = self
            .http
            .post(self.origin.path(path))
            .headers(authorised(what, token)?)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(encode(what, question)?)
            .send()
            .await;
        let answer = accepted(what, sent).await?;
        let body = read(what, answer, MAX_ANSWER_BYTES).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Nonsense {
            what,
            // The text of a JSON error may quote a secret of the answer.
            detail: format!("line {}, column {}", error.line(), error.column()),
        })
    }

    /// Asks for the target, unless it is still the one with this entity tag.
    ///
    /// The server may hold its answer back for `wait_ms` until the target changes (RFC 7240).
    pub async fn state(
        &self,
        device: &DeviceId,
        token: &Token,
        etag: Option<&str>,
        wait_ms: u64,
    ) -> Result<Answer, ClientError> {
        let what = "give the target";
        let mut headers = authorised(what, token)?;
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(etag) = etag.and_then(|etag| HeaderValue::from_str(etag).ok()) {
            headers.insert(IF_NONE_MATCH, etag);
            let wait = format!("wait={}", (wait_ms / 1_000).min(MAX_WAIT_SECONDS));
            headers.extend(HeaderValue::from_str(&wait).map(|wait| (PREFER, wait)));
        }
        let url = self.origin.path(&format!("devices/{device}/state"));
        let sent = self.http.get(url).headers(headers).send().await;
        let answer = accepted(what, sent).await?;
        let interval = answer.headers().get(POLL_INTERVAL);
        let interval_seconds = interval
            .and_then(|seconds| seconds.to_str().ok()?.parse().ok())
            .filter(|seconds| *seconds > 0);
        if answer.status() == StatusCode::NOT_MODIFIED {
            return Ok(Answer {
                state: StateAnswer::NotModified,
                interval_seconds,
            });
        }
        let etag = answer.headers().get(ETAG);
        let etag = etag.and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        let body = read(what, answer, MAX_TARGET_BYTES).await?;
        Ok(Answer {
            state: StateAnswer::Target { body, etag },
            interval_seconds,
        })
    }

    /// Asks for a login to pull an image of the target.
    pub async fn pull_login(
        &self,
        device: &DeviceId,
        token: &Token,
        image: &str,
    ) -> Result<PullLogin, ClientError> {
        let request = PullLoginRequest {
            image: image.to_owned(),
        };
        let path = format!("devices/{device}/pull-tokens");
        self.ask("give a login for a pull", &path, token, &request)
            .await
    }

    /// Tells the current state.
    pub async fn report(
        &self,
        device: &DeviceId,
        token: &Token,
        state: &CurrentState,
    ) -> Result<(), ClientError> {
        let what = "take the report";
        let sent = self
            .http
            .put(self.origin.path(&format!("devices/{device}/current-state")))
            .headers(authorised(what, token)?)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(encode(what, state)?)
            .send()
            .await;
        accepted(what, sent).await.map(drop)
    }
}

fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(value).map_err(|error| ClientError::Nonsense {
        what,
        detail: error.to_string(),
    })
}

fn authorised(what: &'static str, token: &Token) -> Result<HeaderMap, ClientError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| {
        ClientError::Nonsense {
            what,
            detail: "the token has characters that no token has".to_owned(),
        }
    })?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

/// The answer if it is a success or 304; a redirect is a refusal too.
async fn accepted(
    what: &'static str,
    sent: Result<Response, reqwest::Error>,
) -> Result<Response, ClientError> {
    let answer = sent.map_err(|source| ClientError::Unreachable {
        what,
        source: source.without_url(),
    })?;
    let status = answer.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(answer);
    }
    let retry_after_ms = retry_after_ms(answer.headers());
    let body = read(what, answer, MAX_ANSWER_BYTES)
        .await
        .unwrap_or_default();
    Err(ClientError::Refused {
        what,
        status: status.as_u16(),
        detail: reason(&body),
        retry_after_ms,
    })
}

/// How long the server wants peace, if it says.
fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = retry_after_seconds(text(RETRY_AFTER)?, text(DATE))?;
    Some(seconds.min(MAX_RETRY_AFTER_SECONDS) * 1_000)
}

fn reason(body: &[u8]) -> String {
    let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
        return String::new();
    };
    let mut text = problem.detail.unwrap_or(problem.title);
    for error in &problem.errors {
        text = format!("{text}; {error}");
    }
    foreign(&text)
}

async fn read(
    what: &'static str,
    mut answer: Response,
    limit: usize,
) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    loop {
        let chunk = answer
            .chunk()
            .await
            .map_err(|source| ClientError::Unreachable {
                what,
                source: source.without_url(),
            })?;
        match chunk {
            None => return Ok(body),
            // Counted after decompression: a small answer may unfold into a large one.
            Some(chunk) if body.len() + chunk.len() > limit => {
                return Err(ClientError::TooLarge { what, limit });
            }
            Some(chunk) => body.extend_from_slice(&chunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_prefix_and_holds_no_secret() {
        let origin = Origin::parse("https://h.example/holdfast/").unwrap();
        assert_eq!(
            origin.path("enroll").as_str(),
            "https://h.example/holdfast/api/v1/enroll"
        );
        assert_eq!(origin.to_string(), "https://h.example/holdfast");
        for bad in [
            "h.example",
            "ftp://h",
            "https://u:p@h",
            "https://h/?a=1",
            "",
        ] {
            assert!(Origin::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn plain_http_is_readable_on_the_way_except_on_this_machine() {
        let readable = |text| Origin::parse(text).unwrap().is_readable_on_the_way();
        assert!(readable("http://holdfast.example"));
        assert!(!readable("https://holdfast.example"));
        assert!(!readable("http://127.0.0.1:8080"));
        assert!(!readable("http://[::1]:8080"));
        assert!(!readable("http://localhost"));
    }

    #[test]
    fn retry_after_is_obeyed_within_an_hour() {
        let ms = |text| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            retry_after_ms(&headers)
        };
        assert_eq!(ms("7"), Some(7_000));
        assert_eq!(ms("999999"), Some(3_600_000));
        assert_eq!(ms("soon"), None);
    }
}
