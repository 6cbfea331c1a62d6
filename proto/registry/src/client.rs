//! Owns one request to a registry: login, redirects, limits, time-outs, and a whole verified answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_proto::image::{Digest, Repository};
use holdfast_proto::time::retry_after_seconds;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, ETAG, HeaderMap, IF_NONE_MATCH, LOCATION,
    RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::auth::{Login, Logins, TokenAnswer, TokenRequest, challenges};
use crate::cache::{Answers, Documents};
use crate::error::RegistryError;
use crate::guard::{check_realm, check_redirect};
use crate::settings::{Exchange, Settings};

/// Requests to one registry at a time: enough to hide latency, too few to be taken for a flood.
const REQUESTS_PER_REGISTRY: usize = 4;
/// Redirects followed: a registry sends to its blob store, which may move once more.
const MAX_REDIRECTS: usize = 3;
/// A token answer is a few kilobytes.
const MAX_TOKEN_BYTES: usize = 64 << 10;
/// Longest wait that a `Retry-After` can impose; more is taken for a mistake.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Asks registries what references point at.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    pub(crate) settings: Settings,
    logins: Logins,
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
    pub(crate) answers: Answers,
    pub(crate) documents: Documents,
}

/// What is kept for each registry: how many may ask at once, and until when it wants peace.
#[derive(Debug)]
struct Lane {
    permits: Semaphore,
    not_before: Mutex<Option<Instant>>,
}

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) method: &'a Method,
    /// `manifests` or `blobs`.
    pub(crate) kind: &'static str,
    /// A tag or a digest.
    pub(crate) name: &'a str,
    pub(crate) accept: &'static str,
    pub(crate) if_none_match: Option<&'a Digest>,
    pub(crate) limit: usize,
}

impl Question<'_> {
    /// What is asked for, in words.
    pub(crate) fn what(&self) -> String {
        format!(
            "{} {} of {}",
            self.kind.trim_end_matches('s'),
            self.name,
            self.repository
        )
    }
}

/// A whole answer; not verified against any digest yet.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) not_modified: bool,
    pub(crate) method_refused: bool,
    pub(crate) announced: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    /// A client; the process must have installed a TLS provider before.
    pub fn new(settings: Settings) -> Result<Self, RegistryError> {
        let http = reqwest::Client::builder()
            .user_agent(settings.user_agent.clone())
            .connect_timeout(settings.timeouts.connect)
            .timeout(settings.timeouts.request)
            // Followed by hand: the login must not go along to another host.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| RegistryError::Client {
                reason: error.to_string(),
            })?;
        Ok(Self {
            http,
            answers: Answers::new(settings.cache_ttl),
            settings,
            logins: Logins::default(),
            lanes: Mutex::default(),
            documents: Documents::default(),
        })
    }

    fn lane(&self, registry: &str) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry(registry.to_owned()).or_insert_with(|| {
            Arc::new(Lane {
                permits: Semaphore::new(REQUESTS_PER_REGISTRY),
                not_before: Mutex::default(),
            })
        });
        Arc::clone(lane)
    }

    /// Asks, logs in if the registry wants that, and reads the whole answer.
    pub(crate) async fn fetch(&self, question: &Question<'_>) -> Result<Fetched, RegistryError> {
        let registry = question.repository.registry();
        let lane = self.lane(registry);
        // The semaphore is never closed.
        let _permit = lane.permits.acquire().await;
        let not_before = *lane
            .not_before
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(wait) = not_before.and_then(|at| at.checked_duration_since(Instant::now())) {
            return Err(RegistryError::RateLimited {
                registry: registry.to_owned(),
                retry_after: Some(wait),
            });
        }
        let fetched = self.fetch_with_login(question).await;
        if let Err(RegistryError::RateLimited {
            retry_after: Some(wait),
            ..
        }) = &fetched
        {
            *lane
                .not_before
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + *wait);
        }
        fetched
    }

    async fn fetch_with_login(&self, question: &Question<'_>) -> Result<Fetched, RegistryError> {
        let repository = question.repository;
        let known = self.logins.get(repository, Instant::now());
        let response = self.send(question, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.read(question, response).await;
        }
        // A login that was good may have been revoked: one fresh challenge decides.
        self.logins.forget(repository);
        let login = self.log_in(repository, response.headers()).await?;
        let response = self.send(question, Some(&login)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            self.logins.put(repository, login, Instant::now());
        }
        self.read(question, response).await
    }

    fn url(&self, question: &Question<'_>) -> Result<Url, RegistryError> {
        let repository = question.repository;
        let scheme = if self.settings.is_plain(repository.registry()) {
            "http"
        } else {
            "https"
        };
        let host = repository.api_host();
        let text = format!(
            "{scheme}://{host}/v2/{}/{}/{}",
            repository.path(),
            question.kind,
            question.name
        );
        text.parse().map_err(|_| RegistryError::Unreachable {
            registry: repository.registry().to_owned(),
            reason: "its name makes no address".to_owned(),
        })
    }

    async fn send(
        &self,
        question: &Question<'_>,
        login: Option<&Login>,
    ) -> Result<Response, RegistryError> {
        let registry = question.repository.registry();
        let mut url = self.url(question)?;
        let mut with_login = true;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .http
                .request(question.method.clone(), url.clone())
                .header(ACCEPT, question.accept);
            if let Some(digest) = question.if_none_match {
                request = request.header(IF_NONE_MATCH, format!("\"{digest}\""));
            }
            if let Some(login) = login.filter(|_| with_login) {
                request = self.logged_in(request, registry, login);
            }
            let response = self.timed(registry, request).await?;
            let status = response.status();
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok());
            match location {
                Some(location) if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
                    let (next, same_host) = check_redirect(registry, &url, location)?;
                    with_login = with_login && same_host;
                    url = next;
                }
                Some(_) | None => return Ok(response),
            }
        }
        Err(RegistryError::RedirectRefused {
            registry: registry.to_owned(),
            why: format!("more than {MAX_REDIRECTS} in a row"),
        })
    }

    fn logged_in(
        &self,
        request: reqwest::RequestBuilder,
        registry: &str,
        login: &Login,
    ) -> reqwest::RequestBuilder {
        match login {
            Login::Bearer { token, .. } => {
                request.header(AUTHORIZATION, format!("Bearer {}", token.expose()))
            }
            Login::Basic => match self
                .settings
                .of(registry)
                .and_then(|s| s.credentials.as_ref())
            {
                Some(login) => request.basic_auth(&login.username, Some(login.password.expose())),
                None => request,
            },
        }
    }

    async fn timed(
        &self,
        registry: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let begun = Instant::now();
        let answer = request.send().await;
        if let Some(observer) = &self.settings.observer {
            let status = answer
                .as_ref()
                .ok()
                .map(|response| response.status().as_u16());
            observer(&Exchange {
                registry,
                status,
                took: begun.elapsed(),
            });
        }
        answer.map_err(|error| broken(registry, &error))
    }

    /// Follows the challenge that can be followed; Bearer before Basic.
    async fn log_in(
        &self,
        repository: &Repository,
        headers: &HeaderMap,
    ) -> Result<Login, RegistryError> {
        let registry = repository.registry();
        let offered = challenges(headers);
        if let Some(bearer) = offered
            .iter()
            .find(|challenge| challenge.scheme == "bearer")
        {
            return self
                .token(repository, TokenRequest::new(bearer, repository)?)
                .await;
        }
        let basic = offered.iter().any(|challenge| challenge.scheme == "basic");
        let known = self
            .settings
            .of(registry)
            .is_some_and(|s| s.credentials.is_some());
        if basic && known {
            return Ok(Login::Basic);
        }
        Err(RegistryError::Unauthorized {
            registry: registry.to_owned(),
        })
    }

    async fn token(
        &self,
        repository: &Repository,
        wanted: TokenRequest,
    ) -> Result<Login, RegistryError> {
        let registry = repository.registry();
        check_realm(&self.settings, registry, &wanted.realm)?;
        let mut request = self.http.get(wanted.realm).query(&wanted.query);
        if let Some(login) = self
            .settings
            .of(registry)
            .and_then(|s| s.credentials.as_ref())
        {
            request = request.basic_auth(&login.username, Some(login.password.expose()));
        }
        let response = self.timed(registry, request).await?;
        let what = format!("the token for {repository}");
        if let Some(error) = refusal(registry, &what, &response) {
            return Err(error);
        }
        let body = self
            .body(registry, &what, response, MAX_TOKEN_BYTES)
            .await?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
        answer
            .and_then(|answer| answer.login(Instant::now()))
            .ok_or_else(|| RegistryError::BadManifest {
                what,
                why: "the token server's answer holds no token".to_owned(),
            })
    }

    async fn read(
        &self,
        question: &Question<'_>,
        response: Response,
    ) -> Result<Fetched, RegistryError> {
        let registry = question.repository.registry();
        let status = response.status();
        let text = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let mut fetched = Fetched {
            not_modified: status == StatusCode::NOT_MODIFIED,
            method_refused: matches!(
                status,
                StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
            ),
            announced: text("docker-content-digest").or_else(|| quoted_digest(text(ETAG.as_str()))),
            content_type: text(CONTENT_TYPE.as_str()),
            body: Vec::new(),
        };
        if fetched.not_modified || (fetched.method_refused && *question.method == Method::HEAD) {
            return Ok(fetched);
        }
        if let Some(error) = refusal(registry, &question.what(), &response) {
            return Err(error);
        }
        if *question.method != Method::HEAD {
            fetched.body = self
                .body(registry, &question.what(), response, question.limit)
                .await?;
        }
        Ok(fetched)
    }

    /// Reads a body up to a bound, whatever length it claims to have.
    async fn body(
        &self,
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
}

/// An entity tag is a digest at some registries that leave the digest header out.
fn quoted_digest(etag: Option<String>) -> Option<String> {
    let etag = etag?;
    let inner = etag.strip_prefix('"')?.strip_suffix('"')?;
    inner.starts_with("sha256:").then(|| inner.to_owned())
}

/// What a status that is no success means.
fn refusal(registry: &str, what: &str, response: &Response) -> Option<RegistryError> {
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
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = retry_after_seconds(text(RETRY_AFTER)?, text(DATE))?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// A transport failure in words, without the address: it could hold a credential.
fn broken(registry: &str, error: &reqwest::Error) -> RegistryError {
    let registry = registry.to_owned();
    if error.is_timeout() {
        return RegistryError::TimedOut { registry };
    }
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    // The outermost text may name the address; a cause underneath does not.
    let reason = match std::error::Error::source(error) {
        Some(_) => deepest.to_string(),
        None => "the request failed".to_owned(),
    };
    RegistryError::Unreachable { registry, reason }
}
