//! Owns logins for pulls: asked of the control API, kept in memory for their time, one for each repository.
//!
//! Refuses to write them down anywhere, and to hold up a pull when the API is away: the engine then tries
//! without.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use holdfast_proto::image::{Reference, Repository};
use holdfast_proto::pull::{PullLogin, PullLoginKind};

use super::client::Client;
use crate::clock::Clock;
use crate::engine::PullAuth;
use crate::enrolment::Enrolment;
use crate::execute::pull::PullLogins;
use crate::fault::chain;

/// The API asks a registry in between; a pull waits no longer for it than this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// Share of a login's life after which it is asked for anew, in percent: a pull that begins late in it
/// still has time.
const USED_FOR_PERCENT: u64 = 50;
/// The longest time for which a login is used again, whatever the server says.
const LONGEST_USE_MS: u64 = 15 * 60 * 1_000;

/// Logins from the control API.
pub struct ApiLogins<'a, C> {
    client: &'a Client,
    enrolment: &'a Enrolment,
    clock: &'a C,
    kept: RefCell<BTreeMap<Repository, Kept>>,
}

struct Kept {
    auth: Option<PullAuth>,
    until_ms: u64,
}

impl<'a, C: Clock> ApiLogins<'a, C> {
    /// Asks as this device.
    pub fn new(client: &'a Client, enrolment: &'a Enrolment, clock: &'a C) -> Self {
        Self {
            client,
            enrolment,
            clock,
            kept: RefCell::default(),
        }
    }

    async fn ask(&self, image: &str) -> Option<PullAuth> {
        let Enrolment { uuid, token, .. } = self.enrolment;
        let asked = self.client.pull_login(uuid, token, image);
        match tokio::time::timeout(ANSWERS_WITHIN, asked).await {
            Ok(Ok(login)) => {
                tracing::info!(
                    image.digest = %image, registry = %login.registry,
                    image.repository = %login.repository, login.kind = ?login.kind,
                    "got a login for a pull"
                );
                self.keep(image, login)
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    image.digest = %image, error = %chain(&error),
                    "no login for a pull: the engine tries without"
                );
                None
            }
            Err(_) => {
                tracing::warn!(
                    image.digest = %image,
                    "no login for a pull in time: the engine tries without"
                );
                None
            }
        }
    }

    fn keep(&self, image: &str, login: PullLogin) -> Option<PullAuth> {
        let now_ms = self.clock.monotonic_ms();
        let life_ms = login.expires_in_seconds.saturating_mul(1_000);
        let use_ms = (life_ms / 100 * USED_FOR_PERCENT).min(LONGEST_USE_MS);
        let auth = auth(login);
        let mut kept = self.kept.borrow_mut();
        kept.retain(|_, kept| kept.until_ms > now_ms);
        if let Some(repository) = repository(image) {
            let kept_one = Kept {
                auth: auth.clone(),
                until_ms: now_ms.saturating_add(use_ms),
            };
            kept.insert(repository, kept_one);
        }
        auth
    }
}

impl<C: Clock> PullLogins for ApiLogins<'_, C> {
    fn find<'a>(&'a self, image: &'a str) -> LocalBoxFuture<'a, Option<PullAuth>> {
        let now_ms = self.clock.monotonic_ms();
        let kept = self.kept.borrow();
        let known = repository(image).and_then(|repository| kept.get(&repository));
        if let Some(kept) = known.filter(|kept| kept.until_ms > now_ms) {
            return Box::pin(std::future::ready(kept.auth.clone()));
        }
        drop(kept);
        Box::pin(self.ask(image))
    }

    fn renew<'a>(&'a self, image: &'a str) -> LocalBoxFuture<'a, Option<PullAuth>> {
        if let Some(repository) = repository(image) {
            self.kept.borrow_mut().remove(&repository);
        }
        Box::pin(self.ask(image))
    }
}

fn repository(image: &str) -> Option<Repository> {
    let reference: Reference = image.parse().ok()?;
    Some(reference.repository().clone())
}

/// A login in the words of an engine; none when the registry wants none, or it is incomplete.
fn auth(login: PullLogin) -> Option<PullAuth> {
    match login.kind {
        PullLoginKind::Token => login.token.map(PullAuth::Token),
        PullLoginKind::Password => Some(PullAuth::Password {
            username: login.username?,
            password: login.password?,
        }),
        PullLoginKind::Open => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(kind: PullLoginKind) -> PullLogin {
        PullLogin {
            registry: "reg.example".to_owned(),
            repository: "demo/web".to_owned(),
            kind,
            token: Some("canary".to_owned()),
            username: Some("reader".to_owned()),
            password: None,
            expires_in_seconds: 60,
        }
    }

    #[test]
    fn a_login_is_what_its_kind_says_and_never_shows() {
        let token = auth(login(PullLoginKind::Token)).unwrap();
        assert_eq!(token, PullAuth::Token("canary".to_owned()));
        assert!(!format!("{token:?}").contains("canary"));
        assert_eq!(auth(login(PullLoginKind::Password)), None);
        assert_eq!(auth(login(PullLoginKind::Open)), None);
    }
}
