//! Owns logging in: reading a challenge (RFC 9110, section 11.6.1) and asking for a token.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use tokio::time::Instant;

use crate::error::RegistryError;
use crate::place::Place;
use crate::settings::{Identity, Secret};

/// Lifetime of a token whose server does not say (distribution token specification).
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);
/// Longest lifetime that is believed; a revoked token is found out anyway.
const MAX_LIFETIME: Duration = Duration::from_hours(24);
/// A token is not used in its last seconds: it must still be good when the request arrives.
const MARGIN: Duration = Duration::from_secs(10);
/// Nobody says how long a token that was given to us works; when it does not, the registry will.
const GIVEN_LIFETIME: Duration = Duration::from_mins(10);
/// Tokens kept at most; beyond it those that have expired make room, then any.
const MAX_TOKENS: usize = 1_024;

/// One way to log in that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: String,
    pub(crate) parameters: HashMap<String, String>,
}

/// Reads every challenge of an answer; what cannot be read is left out.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers
        .get_all(reqwest::header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse)
        .collect()
}

/// The Bearer challenge among those that are offered.
pub(crate) fn bearer(offered: &[Challenge]) -> Option<&Challenge> {
    offered
        .iter()
        .find(|challenge| challenge.scheme == "bearer")
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c| !is_token_char(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let after = after.trim_start_matches([' ', '\t']);
        let Some(value) = after.strip_prefix('=') else {
            found.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: HashMap::new(),
            });
            rest = after;
            continue;
        };
        let (value, after) = parse_value(value.trim_start_matches([' ', '\t']));
        if let Some(challenge) = found.last_mut() {
            // The first of two equal names counts: a second one cannot replace what was read.
            challenge
                .parameters
                .entry(word.to_ascii_lowercase())
                .or_insert(value);
        }
        rest = after.trim_start_matches('=');
    }
}

/// A quoted string with its escapes, or a token.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c| !is_token_char(c)).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((position, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[position + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// Where and for what a token is to be had.
#[derive(Debug)]
pub(crate) struct TokenRequest {
    pub(crate) realm: Url,
    pub(crate) query: Vec<(&'static str, String)>,
}

impl TokenRequest {
    /// What a Bearer challenge asks for. The scope is always ours: pull from this one repository.
    pub(crate) fn new(challenge: &Challenge, place: &Place) -> Result<Self, RegistryError> {
        let refuse = |why: &str| RegistryError::RealmRefused {
            registry: place.registry.clone(),
            why: why.to_owned(),
        };
        let realm = challenge
            .parameters
            .get("realm")
            .ok_or_else(|| refuse("there is no realm"))?;
        let realm = realm
            .parse()
            .map_err(|_| refuse("its realm is not an address"))?;
        let service = challenge.parameters.get("service").cloned();
        let mut query = vec![("scope", format!("repository:{}:pull", place.path))];
        query.extend(service.map(|service| ("service", service)));
        Ok(Self { realm, query })
    }
}

/// What a token server answers.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds; not every server writes a whole number.
    expires_in: Option<serde_json::Number>,
}

/// A way to log in that worked, and until when.
#[derive(Clone, Debug)]
pub(crate) enum Login {
    /// User name and password with each request.
    Basic { username: String, password: Secret },
    /// A token.
    Bearer {
        token: Secret,
        good_until: Instant,
        /// How long it was good when it was new.
        lifetime: Duration,
    },
}

impl Login {
    /// A token that was given to us, for as long as it works.
    pub(crate) fn given(token: Secret, now: Instant) -> Self {
        Self::Bearer {
            token,
            good_until: now + GIVEN_LIFETIME,
            lifetime: GIVEN_LIFETIME,
        }
    }
}

impl TokenAnswer {
    /// The token, unless the answer has none.
    pub(crate) fn login(self, now: Instant) -> Option<Login> {
        let seconds = self.expires_in.and_then(|seconds| seconds.as_f64());
        let lifetime = seconds.map_or(DEFAULT_LIFETIME, |seconds| {
            Duration::from_secs_f64(seconds.clamp(0.0, MAX_LIFETIME.as_secs_f64()))
        });
        let lifetime = lifetime.saturating_sub(MARGIN);
        let token = self
            .token
            .or(self.access_token)
            .filter(|token| !token.is_empty())?;
        Some(Login::Bearer {
            token: Secret::new(token),
            good_until: now + lifetime,
            lifetime,
        })
    }
}

/// Where, and for whom; the configured credentials without.
type Key = (Place, Option<String>);

/// Logins that worked.
#[derive(Debug, Default)]
pub(crate) struct Logins(Mutex<HashMap<Key, Login>>);

impl Logins {
    fn key(place: &Place, who: Option<&Identity>) -> Key {
        (place.clone(), who.map(|who| who.id.clone()))
    }

    pub(crate) fn get(&self, place: &Place, who: Option<&Identity>, now: Instant) -> Option<Login> {
        let logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let login = logins.get(&Self::key(place, who));
        login.filter(|login| is_good(login, now)).cloned()
    }

    pub(crate) fn put(&self, place: &Place, who: Option<&Identity>, login: Login, now: Instant) {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logins.len() >= MAX_TOKENS {
            logins.retain(|_, login| is_good(login, now));
            if logins.len() >= MAX_TOKENS {
                logins.clear();
            }
        }
        logins.insert(Self::key(place, who), login);
    }

    pub(crate) fn forget(&self, place: &Place, who: Option<&Identity>) {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logins.remove(&Self::key(place, who));
    }
}

fn is_good(login: &Login, now: Instant) -> bool {
    match login {
        Login::Basic { .. } => true,
        Login::Bearer { good_until, .. } => *good_until > now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter<'a>(challenge: &'a Challenge, name: &str) -> &'a str {
        challenge.parameters.get(name).map_or("", String::as_str)
    }

    #[test]
    fn reads_challenges_as_the_rfc_writes_them() {
        let read = parse(
            r#"Bearer realm="https://a.example/t?x=1,2",service="a \"b\"",scope="repository:x:pull,push", Basic realm=simple"#,
        );
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].scheme, "bearer");
        assert_eq!(parameter(&read[0], "realm"), "https://a.example/t?x=1,2");
        assert_eq!(parameter(&read[0], "service"), r#"a "b""#);
        assert_eq!(parameter(&read[0], "scope"), "repository:x:pull,push");
        assert_eq!(
            (read[1].scheme.as_str(), parameter(&read[1], "realm")),
            ("basic", "simple")
        );
    }

    #[test]
    fn survives_what_nobody_should_write() {
        for text in [
            "",
            ",,,",
            "=",
            "Bearer",
            "Bearer realm=",
            "Bearer realm=\"open",
            "Negotiate abc==",
            "a=b",
            "\u{7f}",
            "Bearer realm=\"a\\",
        ] {
            let _ = parse(text);
        }
        assert_eq!(parse("Negotiate abc==, Basic")[0].scheme, "negotiate");
        let twice = parse(r#"Bearer realm="one", realm="two""#);
        assert_eq!(parameter(&twice[0], "realm"), "one");
    }

    #[test]
    fn a_token_without_a_lifetime_is_good_for_less_than_a_minute() {
        let now = Instant::now();
        let answer: TokenAnswer = serde_json::from_str(r#"{"access_token":"x"}"#).unwrap();
        let Some(Login::Bearer {
            good_until, token, ..
        }) = answer.login(now)
        else {
            panic!("a token")
        };
        assert_eq!(good_until - now, Duration::from_secs(50));
        assert_eq!(format!("{token:?}"), "Secret(…)");
        for (text, seconds) in [
            ("-5", 0),
            ("0", 0),
            ("90.5", 80),
            ("1e300", 86_390),
            ("18446744073709551615", 86_390),
        ] {
            let text = format!(r#"{{"token":"x","expires_in":{text}}}"#);
            let answer: TokenAnswer = serde_json::from_str(&text).unwrap();
            let Some(Login::Bearer { lifetime, .. }) = answer.login(now) else {
                panic!("a token")
            };
            assert_eq!(lifetime.as_secs(), seconds, "{text}");
        }
        let none: TokenAnswer = serde_json::from_str(r#"{"token":""}"#).unwrap();
        assert!(none.login(now).is_none());
    }
}
