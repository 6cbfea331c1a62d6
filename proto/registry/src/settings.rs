//! Owns what a client is told: which registries are special, and how patient to be.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A text that never shows in logs or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text that must not be seen.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A user name and a password (or access token) at one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// What is special about one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// HTTP instead of HTTPS. Loopback registries need no setting: engines treat them so, too.
    pub plain_http: bool,
    /// Who we are there.
    pub credentials: Option<Credentials>,
    /// Hosts that may issue tokens for it although their name is not related to its own.
    pub realm_hosts: Vec<String>,
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
    /// From the request to the end of the answer.
    pub took: Duration,
}

/// Is told of every request that was sent.
pub type Observer = Arc<dyn Fn(&Exchange<'_>) + Send + Sync>;

/// What a client is told.
#[derive(Clone)]
pub struct Settings {
    /// Special registries, by the name (with port) that references use.
    pub registries: BTreeMap<String, RegistrySettings>,
    /// For how long an answer for a tag is good without asking again; zero asks every time.
    pub cache_ttl: Duration,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// What to call ourselves.
    pub user_agent: String,
    /// Who is told of every request.
    pub observer: Option<Observer>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("registries", &self.registries)
            .field("cache_ttl", &self.cache_ttl)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            cache_ttl: Duration::from_mins(5),
            timeouts: Timeouts::default(),
            user_agent: concat!("holdfast/", env!("CARGO_PKG_VERSION")).to_owned(),
            observer: None,
        }
    }
}

impl Settings {
    pub(crate) fn of(&self, registry: &str) -> Option<&RegistrySettings> {
        self.registries.get(registry)
    }

    /// Whether the registry is spoken to in plain HTTP.
    pub(crate) fn is_plain(&self, registry: &str) -> bool {
        self.of(registry)
            .is_some_and(|settings| settings.plain_http)
            || is_loopback(host_of(registry))
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

/// Whether a host can only be this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
