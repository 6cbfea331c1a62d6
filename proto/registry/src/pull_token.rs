//! Owns what a device is given to pull with: a token for one repository that is soon worth nothing.
//!
//! Refuses to hand out a login as if it were a token, and tokens that are about to expire.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use holdfast_proto::image::Reference;
use reqwest::{Method, StatusCode};
use tokio::time::Instant;

use crate::answer::refusal;
use crate::auth::{Login, TokenRequest, bearer, challenges};
use crate::client::{Client, Question};
use crate::error::RegistryError;
use crate::place::Place;
use crate::settings::{Credentials, Identity, Secret};

/// A registry's own token that may pull from one repository and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullToken {
    /// The token; an engine takes it as `registrytoken`.
    pub token: Secret,
    /// How long it is good from now on, less a margin for the way of a request.
    pub expires_in: Duration,
    /// The registry's canonical name.
    pub registry: String,
    /// The repository's path there.
    pub repository: String,
}

/// How an image can be pulled by somebody who is told no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullAccess {
    /// With this token.
    Token(PullToken),
    /// Without a login: nobody has one for this registry, or the registry wants none for this image.
    Open,
    /// With the login itself alone: the registry takes Basic logins, or gives tokens that are the
    /// password in other words.
    LoginOnly,
}

impl Client {
    /// A short-lived token that may pull this image's repository, if its registry has such tokens.
    ///
    /// Whose login it is minted with: `who`, or the configured one. Callers within the first half of a
    /// token's life share it.
    pub async fn pull_token(
        &self,
        reference: &Reference,
        who: Option<&Identity>,
    ) -> Result<PullAccess, RegistryError> {
        let place = Place::origin(reference.repository());
        let mint = self.mint(reference, &place, who);
        self.lanes.ask(&place.registry, mint).await
    }

    async fn mint(
        &self,
        reference: &Reference,
        place: &Place,
        who: Option<&Identity>,
    ) -> Result<PullAccess, RegistryError> {
        let Some(credentials) = self.credentials(place, who).await? else {
            return Ok(PullAccess::Open);
        };
        if matches!(*credentials, Credentials::Bearer { .. }) {
            return Ok(PullAccess::LoginOnly);
        }
        let known = self.logins.get(place, who, Instant::now());
        if let Some(access) = known.and_then(|login| handed(login, place, &credentials)) {
            return Ok(access);
        }
        let name = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => reference.tag_or_latest().to_owned(),
        };
        let question = Question {
            method: &Method::HEAD,
            ..Question::manifest(reference.repository(), who, &name)
        };
        let sent = self.send(&question, place, None).await?;
        if sent.response.status() != StatusCode::UNAUTHORIZED {
            let refused = refusal(&place.registry, &question.what(), &sent.response);
            return refused.map_or(Ok(PullAccess::Open), Err);
        }
        let offered = challenges(sent.response.headers());
        let Some(challenge) = bearer(&offered).filter(|_| sent.by_registry) else {
            return Ok(PullAccess::LoginOnly);
        };
        let wanted = TokenRequest::new(challenge, place)?;
        let login = self.token(place, Some(&credentials), wanted).await?;
        self.logins.put(place, who, login.clone(), Instant::now());
        Ok(handed(login, place, &credentials).unwrap_or(PullAccess::LoginOnly))
    }
}

/// What of a login may be handed on; nothing when it will not live long enough to be of use.
fn handed(login: Login, place: &Place, credentials: &Credentials) -> Option<PullAccess> {
    let Login::Bearer {
        token,
        good_until,
        lifetime,
    } = login
    else {
        return Some(PullAccess::LoginOnly);
    };
    if is_login(token.expose(), credentials) {
        return Some(PullAccess::LoginOnly);
    }
    let expires_in = good_until.checked_duration_since(Instant::now())?;
    (expires_in >= lifetime / 2).then(|| {
        PullAccess::Token(PullToken {
            token,
            expires_in,
            registry: place.registry.clone(),
            repository: place.path.clone(),
        })
    })
}

/// Whether a token is the login in other words: GitHub's registry answers the password in base64.
fn is_login(token: &str, credentials: &Credentials) -> bool {
    let (username, secret) = match credentials {
        Credentials::Password { username, password } => (username.as_str(), password.expose()),
        Credentials::Identity { token } | Credentials::Bearer { token } => ("", token.expose()),
    };
    let pair = format!("{username}:{secret}");
    [secret, pair.as_str()].iter().any(|text| {
        token == *text
            || token == BASE64_STANDARD.encode(text)
            || token == BASE64_STANDARD_NO_PAD.encode(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_other_words_is_no_token() {
        let login = Credentials::Password {
            username: "reader".to_owned(),
            password: Secret::new("hunter2".to_owned()),
        };
        for token in [
            "hunter2",
            "aHVudGVyMg==",
            "aHVudGVyMg",
            "cmVhZGVyOmh1bnRlcjI=",
        ] {
            assert!(is_login(token, &login), "{token}");
        }
        assert!(!is_login("eyJhbGciOi", &login));
    }
}
