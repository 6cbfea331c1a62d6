//! Owns one request: its address, its redirects, its time-out.
//!
//! Refuses to take a login along to another host, and to follow redirects for ever.

use std::time::Duration;

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, IF_NONE_MATCH, LOCATION, RANGE};
use reqwest::{Response, StatusCode, Url};
use tokio::time::Instant;

use crate::answer::{broken, rate_limit};
use crate::auth::Login;
use crate::client::{Client, Question};
use crate::error::RegistryError;
use crate::guard::check_redirect;
use crate::place::Place;
use crate::settings::Exchange;

/// Redirects followed: a registry sends to its blob store, which may move once more.
const MAX_REDIRECTS: usize = 3;

/// Longest life of one request for a blob; silence and slowness end it long before.
const STREAM_LIMIT: Duration = Duration::from_hours(24);

/// An answer, and whose it is.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) response: Response,
    /// Not one of another host, to which the registry sent us.
    pub(crate) by_registry: bool,
}

impl Client {
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

    /// The client for an address to which a registry's business leads.
    pub(crate) fn http_for(&self, registry: &str, url: &Url) -> &reqwest::Client {
        self.ways.to(registry, self.filter.by_proxy(url))
    }

    /// Asks, and follows redirects.
    pub(crate) async fn send(
        &self,
        question: &Question<'_>,
        place: &Place,
        login: Option<&Login>,
    ) -> Result<Sent, RegistryError> {
        let registry = place.registry.as_str();
        let mut url = self.url(question, place)?;
        let mut by_registry = true;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .http_for(registry, &url)
                .request(question.method.clone(), url.clone())
                .header(ACCEPT, question.accept);
            if let Some(digest) = question.if_none_match {
                request = request.header(IF_NONE_MATCH, format!("\"{digest}\""));
            }
            if let Some(from) = question.streams_from {
                request = request
                    .timeout(STREAM_LIMIT)
                    .header(ACCEPT_ENCODING, "identity");
                if from > 0 {
                    request = request.header(RANGE, format!("bytes={from}-"));
                }
            }
            match login.filter(|_| by_registry) {
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
                    by_registry = by_registry && same_host;
                    url = next;
                }
                Some(_) | None => {
                    return Ok(Sent {
                        response,
                        by_registry,
                    });
                }
            }
        }
        Err(RegistryError::RedirectRefused {
            registry: registry.to_owned(),
            why: format!("more than {MAX_REDIRECTS} in a row"),
        })
    }

    /// Sends one request to an address that may be asked, and tells the observer.
    pub(crate) async fn timed(
        &self,
        registry: &str,
        url: &Url,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        self.filter.check(registry, url).await.map_err(|refused| {
            RegistryError::AddressRefused {
                registry: registry.to_owned(),
                why: refused.to_string(),
            }
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
}
