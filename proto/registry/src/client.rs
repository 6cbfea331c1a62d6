//! Owns one request to a registry: login, redirects, limits, time-outs, and a whole verified answer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_proto::image::{Digest, Repository};
use holdfast_proto::time::retry_after_seconds;
use reqwest::header::{
    ACCEPT, CONTENT_TYPE, DATE, ETAG, HeaderMap, IF_NONE_MATCH, LINK, LOCATION, RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::addresses::{self, Filter};
use crate::auth::{Login, Logins, TokenAnswer, TokenRequest, challenges};
use crate::cache::{Answers, Documents};
use crate::error::RegistryError;
use crate::guard::{check_realm, check_redirect};
use crate::place::Place;
use crate::settings::{Credentials, Exchange, Identity, RateLimit, Settings};

/// Requests to one registry at a time: enough to hide latency, too few to be taken for a flood.
const REQUESTS_PER_REGISTRY: usize = 4;
/// Redirects followed: a registry sends to its blob store, which may move once more.
const MAX_REDIRECTS: usize = 3;
/// A token answer is a few kilobytes.
const MAX_TOKEN_BYTES: usize = 64 << 10;
/// What we call ourselves at token servers.
const CLIENT_ID: &str = "holdfast";
/// Longest wait that a `Retry-After` can impose; more is taken for a mistake.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Asks registries what references point at.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    /// For hosts with certificates of their own.
    http_of: HashMap<String, reqwest::Client>,
    filter: Filter,
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
    /// Whose credentials count; the configured ones without.
    pub(crate) who: Option<&'a Identity>,
    pub(crate) method: &'a Method,
    /// `manifests`, `blobs` or `tags`.
    pub(crate) kind: &'static str,
    /// A tag or a digest, or `list` of tags, with its query.
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
    /// Where the rest of a list is.
    pub(crate) link: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// One way to each kind of host, all through the filter of addresses.
fn http(
    settings: &Settings,
    filter: &Filter,
    ca_pem: Option<&[u8]>,
) -> Result<reqwest::Client, RegistryError> {
    let failed = |error: reqwest::Error| RegistryError::Client {
        reason: error.to_string(),
    };
    let mut builder = reqwest::Client::builder()
        .user_agent(settings.user_agent.clone())
        .connect_timeout(settings.timeouts.connect)
        .timeout(settings.timeouts.request)
        .dns_resolver(filter.clone())
        // Followed by hand: the login must not go along to another host.
        .redirect(reqwest::redirect::Policy::none());
    if let Some(pem) = ca_pem {
        let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(failed)?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(failed)
}

impl Client {
    /// A client; the process must have installed a TLS provider before.
    pub fn new(settings: Settings) -> Result<Self, RegistryError> {
        let filter = Filter::new(&settings);
        let mut http_of = HashMap::new();
        for (registry, special) in &settings.registries {
            if let Some(pem) = &special.ca_pem {
                let client = http(&settings, &filter, Some(pem))?;
                http_of.insert(registry.to_ascii_lowercase(), client);
            }
        }
        Ok(Self {
            http: http(&settings, &filter, None)?,
            http_of,
            filter,
            answers: Answers::new(settings.cache_ttl, settings.failure_ttl),
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

    /// Asks the mirrors, then the registry itself; the first good answer counts.
    pub(crate) async fn fetch(&self, question: &Question<'_>) -> Result<Fetched, RegistryError> {
        let repository = question.repository;
        // Whoever has credentials of their own has them for the registry itself.
        let mirrors = match question.who {
            None => Place::mirrors(&self.settings, repository),
            Some(_) => Vec::new(),
        };
        for mirror in mirrors {
            match self.fetch_at(question, &mirror).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => tracing::debug!(
                    mirror = %mirror.host, registry = repository.registry(), error = %error,
                    "a mirror did not answer; the next one is asked"
                ),
            }
        }
        self.fetch_at(question, &Place::origin(repository)).await
    }

    /// Asks one server, logs in if it wants that, and reads the whole answer.
    async fn fetch_at(
        &self,
        question: &Question<'_>,
        place: &Place,
    ) -> Result<Fetched, RegistryError> {
        let lane = self.lane(&place.registry);
        // The semaphore is never closed.
        let _permit = lane.permits.acquire().await;
        let not_before = *lane
            .not_before
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(wait) = not_before.and_then(|at| at.checked_duration_since(Instant::now())) {
            return Err(RegistryError::RateLimited {
                registry: place.registry.clone(),
                retry_after: Some(wait),
            });
        }
        let fetched = self.fetch_with_login(question, place).await;
        // Said with 503 it means the same as with 429.
        if let Err(
            RegistryError::RateLimited { retry_after, .. }
            | RegistryError::Server { retry_after, .. },
        ) = &fetched
            && let Some(wait) = *retry_after
        {
            *lane
                .not_before
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + wait);
        }
        fetched
    }

    async fn fetch_with_login(
        &self,
        question: &Question<'_>,
        place: &Place,
    ) -> Result<Fetched, RegistryError> {
        let who = question.who.map_or("", |who| who.id.as_str());
        let known = self.logins.get(place, who, Instant::now());
        let response = self.send(question, place, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.read(question, place, response).await;
        }
        // A login that was good may have been revoked: one fresh challenge decides.
        self.logins.forget(place, who);
        let credentials = self.credentials(question, place).await?;
        let login = self
            .log_in(place, credentials.as_deref(), response.headers())
            .await?;
        let response = self.send(question, place, Some(&login)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            self.logins.put(place, who, login, Instant::now());
        }
        self.read(question, place, response).await
    }

    /// Whoever asks has credentials for the registry itself; a mirror knows the configured ones alone.
    async fn credentials<'a>(
        &'a self,
        question: &Question<'a>,
        place: &Place,
    ) -> Result<Option<Cow<'a, Credentials>>, RegistryError> {
        let registry = place.registry.as_str();
        let configured = match question.who {
            Some(who) => Some(&who.credentials),
            None => self
                .settings
                .of(registry)
                .and_then(|special| special.credentials.as_ref()),
        };
        match (configured, &self.settings.keychain) {
            (Some(credentials), _) => Ok(Some(Cow::Borrowed(credentials))),
            (None, Some(keychain)) => match keychain.find(registry).await {
                Ok(found) => Ok(found.map(Cow::Owned)),
                Err(error) => Err(RegistryError::Keychain {
                    registry: registry.to_owned(),
                    why: error.to_string(),
                }),
            },
            (None, None) => Ok(None),
        }
    }

    fn url(&self, question: &Question<'_>, place: &Place) -> Result<Url, RegistryError> {
        let scheme = if self.settings.is_plain(&place.registry) {
            "http"
        } else {
            "https"
        };
        let Place { host, path, .. } = place;
        let text = format!(
            "{scheme}://{host}/v2/{path}/{}/{}",
            question.kind, question.name
        );
        text.parse().map_err(|_| RegistryError::Unreachable {
            registry: place.registry.clone(),
            reason: "its name makes no address".to_owned(),
        })
    }

    fn http_for(&self, url: &Url) -> &reqwest::Client {
        let host = url.host_str().unwrap_or_default();
        let with_port = url.port().map(|port| format!("{host}:{port}"));
        let special = with_port.and_then(|host| self.http_of.get(&host));
        special
            .or_else(|| self.http_of.get(host))
            .unwrap_or(&self.http)
    }

    async fn send(
        &self,
        question: &Question<'_>,
        place: &Place,
        login: Option<&Login>,
    ) -> Result<Response, RegistryError> {
        let registry = place.registry.as_str();
        let mut url = self.url(question, place)?;
        let mut with_login = true;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .http_for(&url)
                .request(question.method.clone(), url.clone())
                .header(ACCEPT, question.accept);
            if let Some(digest) = question.if_none_match {
                request = request.header(IF_NONE_MATCH, format!("\"{digest}\""));
            }
            match login.filter(|_| with_login) {
                Some(Login::Bearer { token, .. }) => request = request.bearer_auth(token.expose()),
                Some(Login::Basic { username, password }) => {
                    request = request.basic_auth(username, Some(password.expose()));
                }
                None => {}
            }
            let response = self.timed(registry, &url, request).await?;
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

    async fn timed(
        &self,
        registry: &str,
        url: &Url,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        self.filter
            .check(url)
            .map_err(|refused| RegistryError::AddressRefused {
                registry: registry.to_owned(),
                why: refused.to_string(),
            })?;
        let begun = Instant::now();
        let answer = request.send().await;
        if let Some(observer) = &self.settings.observer {
            let known = answer.as_ref().ok();
            observer(&Exchange {
                registry,
                status: known.map(|response| response.status().as_u16()),
                took: begun.elapsed(),
                limit: known.and_then(|response| rate_limit(response.headers())),
            });
        }
        answer.map_err(|error| broken(registry, &error))
    }

    /// Follows the challenge that can be followed; Bearer before Basic.
    async fn log_in(
        &self,
        place: &Place,
        credentials: Option<&Credentials>,
        headers: &HeaderMap,
    ) -> Result<Login, RegistryError> {
        if let Some(Credentials::Bearer { token }) = credentials {
            return Ok(Login::given(token.clone(), Instant::now()));
        }
        let offered = challenges(headers);
        if let Some(bearer) = offered
            .iter()
            .find(|challenge| challenge.scheme == "bearer")
        {
            let wanted = TokenRequest::new(bearer, place)?;
            return self.token(place, credentials, wanted).await;
        }
        let basic = offered.iter().any(|challenge| challenge.scheme == "basic");
        match credentials {
            Some(Credentials::Password { username, password }) if basic => Ok(Login::Basic {
                username: username.clone(),
                password: password.clone(),
            }),
            _ => Err(RegistryError::Unauthorized {
                registry: place.registry.clone(),
            }),
        }
    }

    async fn token(
        &self,
        place: &Place,
        credentials: Option<&Credentials>,
        wanted: TokenRequest,
    ) -> Result<Login, RegistryError> {
        let registry = place.registry.as_str();
        let TokenRequest { realm, mut query } = wanted;
        check_realm(&self.settings, registry, &realm)?;
        let http = self.http_for(&realm);
        let request = match credentials {
            Some(Credentials::Identity { token }) => {
                query.push(("grant_type", "refresh_token".to_owned()));
                query.push(("client_id", CLIENT_ID.to_owned()));
                query.push(("refresh_token", token.expose().to_owned()));
                http.post(realm.clone()).form(&query)
            }
            Some(Credentials::Password { username, password }) => http
                .get(realm.clone())
                .query(&query)
                .basic_auth(username, Some(password.expose())),
            Some(Credentials::Bearer { .. }) | None => http.get(realm.clone()).query(&query),
        };
        let response = self.timed(registry, &realm, request).await?;
        let what = format!("the token for {registry}/{}", place.path);
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
        place: &Place,
        response: Response,
    ) -> Result<Fetched, RegistryError> {
        let registry = place.registry.as_str();
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
            link: text(LINK.as_str()),
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

/// What a registry says about its limit, with or without the window (`100;w=21600`).
fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
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
fn broken(registry: &str, error: &reqwest::Error) -> RegistryError {
    let registry = registry.to_owned();
    if let Some(refused) = addresses::refusal(error) {
        let why = refused.to_string();
        return RegistryError::AddressRefused { registry, why };
    }
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
