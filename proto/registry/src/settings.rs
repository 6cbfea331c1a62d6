//! Owns what a client is told: which registries are special, and how patient to be.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::filter::look_up;
use crate::keychain::{Keychain, canonical};
use crate::proxies::Proxies;

/// A text that never shows in logs or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text that must not be seen.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for whoever it is meant for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How to prove who we are at one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and a password, or an access token in its place.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token, for which the registry's token server gives short-lived ones (distribution
    /// specification, "oauth2"; `identitytoken` in docker's `config.json`).
    Identity {
        /// The token.
        token: Secret,
    },
    /// A token that the registry itself takes (`registrytoken` in docker's `config.json`).
    Bearer {
        /// The token.
        token: Secret,
    },
}

/// Somebody whose credentials count instead of the registry's configured ones: a fleet or a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Tells one from another: answers for one are never given to another. Not a secret, and different
    /// for different credentials.
    pub id: String,
    /// What they have.
    pub credentials: Credentials,
}

/// Where a registry's images may be read instead: `host[:port][/path]`.
///
/// The path comes before the repository's own, as a pull-through cache for several registries wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    authority: String,
    prefix: String,
}

/// The text is no mirror.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no mirror: write host[:port], and a path if it wants one, without https://")]
pub struct MirrorError(String);

impl Mirror {
    /// Host and port.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What comes before a repository's path, with its slash; often nothing.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl FromStr for Mirror {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Self, MirrorError> {
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let path = path.trim_end_matches('/');
        let plain = |text: &str, more: &str| {
            text.chars()
                .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let is_host = !authority.is_empty() && !authority.ends_with(':');
        let is_path = !path.starts_with('/') && !path.contains("//");
        if !is_host || !is_path || !plain(authority, ".-:[]") || !plain(path, "._-/") {
            return Err(MirrorError(text.chars().take(80).collect()));
        }
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        Ok(Self {
            authority: authority.to_owned(),
            prefix,
        })
    }
}

/// Which addresses may be asked although nobody configured them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Public ones: for a server that others tell what to ask.
    #[default]
    Configured,
    /// Those of this network, too: for a device whose owner asks.
    Anywhere,
}

/// What is special about one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// HTTP instead of HTTPS. Loopback registries without certificates of their own need no setting:
    /// engines treat them so, too.
    pub plain_http: bool,
    /// Who we are there.
    pub credentials: Option<Credentials>,
    /// Hosts that may issue tokens for it although their name is not related to its own.
    pub realm_hosts: Vec<String>,
    /// Hosts in private networks that it may redirect to, such as its blob store.
    pub private_hosts: Vec<String>,
    /// Asked before the registry itself, in this order.
    pub mirrors: Vec<Mirror>,
    /// Certificates (PEM) that may sign for it, beside those that the machine trusts.
    pub ca_pem: Option<Vec<u8>>,
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For one request with its whole answer.
    pub request: Duration,
}

impl Default for Timeouts {
    /// Registries answer manifests in well under a second; these leave room for slow links.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(20),
        }
    }
}

/// One request and its answer, for metrics.
#[derive(Clone, Debug)]
pub struct Exchange<'a> {
    /// The registry's canonical name.
    pub registry: &'a str,
    /// The HTTP status, or none when no answer came.
    pub status: Option<u16>,
    /// From the request to the head of the answer.
    pub took: Duration,
    /// What the registry says about its limit.
    pub limit: Option<RateLimit>,
}

/// What a registry says about how much may be asked (`RateLimit-Limit`, `RateLimit-Remaining`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests in a window.
    pub limit: u64,
    /// How many of them are left.
    pub remaining: u64,
}

/// Is told of every request that was sent.
pub type Observer = Arc<dyn Fn(&Exchange<'_>) + Send + Sync>;

/// Finds the addresses of a name.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// What a client is told.
#[derive(Clone)]
pub struct Settings {
    /// Special registries, by the name (with port) that references use.
    pub registries: BTreeMap<String, RegistrySettings>,
    /// For how long an answer for a tag is good without asking again; zero asks every time.
    pub cache_ttl: Duration,
    /// For how long a failure is the answer without asking again; never longer than `cache_ttl`.
    pub failure_ttl: Duration,
    /// Which addresses may be asked.
    pub reach: Reach,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// What to call ourselves.
    pub user_agent: String,
    /// By way of whom; the environment's proxies unless told.
    pub proxies: Proxies,
    /// How names are looked up; as this machine does unless told.
    pub lookup: Lookup,
    /// Who is told of every request.
    pub observer: Option<Observer>,
    /// Asked for the credentials of registries that are configured without any.
    pub keychain: Option<Arc<dyn Keychain>>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("registries", &self.registries)
            .field("cache_ttl", &self.cache_ttl)
            .field("reach", &self.reach)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            cache_ttl: Duration::from_mins(5),
            failure_ttl: Duration::from_secs(15),
            reach: Reach::default(),
            timeouts: Timeouts::default(),
            user_agent: concat!("holdfast/", env!("CARGO_PKG_VERSION")).to_owned(),
            proxies: Proxies::environment(),
            lookup: Arc::new(|host| Box::pin(look_up(host))),
            observer: None,
            keychain: None,
        }
    }
}

impl Settings {
    /// With registries by the names that references have in their canonical form.
    pub(crate) fn in_order(mut self) -> Self {
        let registries = self.registries.into_iter();
        self.registries = registries
            .map(|(name, entry)| (canonical(&name), entry))
            .collect();
        self
    }

    pub(crate) fn of(&self, registry: &str) -> Option<&RegistrySettings> {
        self.registries.get(registry)
    }

    /// Whether the registry is spoken to in plain HTTP.
    pub(crate) fn is_plain(&self, registry: &str) -> bool {
        let special = self.of(registry);
        let has_own_ca = special.is_some_and(|special| special.ca_pem.is_some());
        special.is_some_and(|special| special.plain_http)
            || (is_loopback(host_of(registry)) && !has_own_ca)
    }
}

/// The host of `host[:port]`, without the brackets of an IPv6 address.
pub(crate) fn host_of(authority: &str) -> &str {
    match authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => address,
        None => authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host),
    }
}

/// The port of `host[:port]`.
pub(crate) fn port_of(authority: &str) -> Option<u16> {
    let after_address = authority.rsplit(']').next().unwrap_or(authority);
    after_address.rsplit_once(':')?.1.parse().ok()
}

/// Whether a host can only be this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
