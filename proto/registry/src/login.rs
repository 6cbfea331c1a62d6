//! Owns logging in while a question is asked: challenge, credentials, token.
//!
//! Refuses to log in because another host than the registry asks for it.

use std::borrow::Cow;

use reqwest::header::HeaderMap;
use reqwest::{Response, StatusCode};
use tokio::time::Instant;

use crate::answer::{Fetched, body, read, refusal};
use crate::auth::{Login, TokenAnswer, TokenRequest, bearer, challenges};
use crate::client::{Client, Question};
use crate::error::RegistryError;
use crate::guard::check_realm;
use crate::place::Place;
use crate::settings::{Credentials, Identity};

/// A token answer is a few kilobytes.
const MAX_TOKEN_BYTES: usize = 64 << 10;
/// What we call ourselves at token servers.
const CLIENT_ID: &str = "holdfast";

impl Client {
    /// Asks, and reads the whole answer.
    pub(crate) async fn fetch_with_login(
        &self,
        question: &Question<'_>,
        place: &Place,
    ) -> Result<Fetched, RegistryError> {
        let response = self.ask_with_login(question, place).await?;
        read(question, &place.registry, response).await
    }

    /// Asks with the login that worked last; follows one challenge, not two.
    pub(crate) async fn ask_with_login(
        &self,
        question: &Question<'_>,
        place: &Place,
    ) -> Result<Response, RegistryError> {
        let known = self.logins.get(place, question.who, Instant::now());
        let sent = self.send(question, place, known.as_ref()).await?;
        if sent.response.status() != StatusCode::UNAUTHORIZED || !sent.by_registry {
            return Ok(sent.response);
        }
        // A login that was good may have been revoked: one fresh challenge decides.
        self.logins.forget(place, question.who);
        let credentials = self.credentials(place, question.who).await?;
        let login = self
            .log_in(place, credentials.as_deref(), sent.response.headers())
            .await?;
        let sent = self.send(question, place, Some(&login)).await?;
        if sent.response.status() != StatusCode::UNAUTHORIZED {
            self.logins.put(place, question.who, login, Instant::now());
        }
        Ok(sent.response)
    }

    /// Whoever asks has credentials for the registry itself; a mirror knows the configured ones alone.
    pub(crate) async fn credentials<'a>(
        &'a self,
        place: &Place,
        who: Option<&'a Identity>,
    ) -> Result<Option<Cow<'a, Credentials>>, RegistryError> {
        let registry = place.registry.as_str();
        let configured = match who {
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
        if let Some(challenge) = bearer(&offered) {
            let wanted = TokenRequest::new(challenge, place)?;
            return self.token(place, credentials, wanted).await;
        }
        let basic = offered.iter().any(|challenge| challenge.scheme == "basic");
        match credentials {
            Some(Credentials::Password { username, password }) if basic => Ok(Login::Basic {
                username: username.clone(),
                password: password.clone(),
            }),
            Some(_) | None => Err(RegistryError::Unauthorized {
                registry: place.registry.clone(),
            }),
        }
    }

    /// Asks the registry's token server for a token.
    pub(crate) async fn token(
        &self,
        place: &Place,
        credentials: Option<&Credentials>,
        wanted: TokenRequest,
    ) -> Result<Login, RegistryError> {
        let registry = place.registry.as_str();
        let TokenRequest { realm, mut query } = wanted;
        check_realm(&self.settings, registry, &realm)?;
        let http = self.http_for(registry, &realm);
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
        let body = body(registry, &what, response, MAX_TOKEN_BYTES).await?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
        answer
            .and_then(|answer| answer.login(Instant::now()))
            .ok_or_else(|| RegistryError::BadToken {
                registry: registry.to_owned(),
            })
    }
}
