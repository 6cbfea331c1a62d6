//! Owns posting to addresses that operators chose, through the same filter as questions to registries.
//!
//! Refuses to follow redirects, to send unencrypted to any host that was not configured, and to read an answer
//! without a bound. No error names more of an address than its host.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, Url};

use crate::answer::{deepest, retry_after};
use crate::error::RegistryError;
use crate::filter::{self, Filter};
use crate::proxies::Proxies;
use crate::settings::{RegistrySettings, Settings, Timeouts};
use crate::ways::Ways;

/// The name under which the filter knows the configured hosts: no host has it (RFC 6761).
const NOBODY: &str = "outward.invalid";
/// As much of an answer as can help a person.
const MAX_ANSWER: usize = 4 * 1024;

/// What there is to know before anything is posted.
#[derive(Clone, Debug)]
pub struct OutwardSettings {
    /// Hosts in private networks that may be reached, `host` or `host:port`.
    pub private_hosts: Vec<String>,
    /// Certificates (PEM) that may sign for hosts, beside those that the machine trusts.
    pub ca_pem: Option<Vec<u8>>,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// By way of whom.
    pub proxies: Proxies,
}

impl Default for OutwardSettings {
    /// Receivers that take longer than 15 seconds do their work before they answer, which they should not.
    fn default() -> Self {
        Self {
            private_hosts: Vec::new(),
            ca_pem: None,
            timeouts: Timeouts {
                connect: Duration::from_secs(5),
                request: Duration::from_secs(15),
            },
            proxies: Proxies::environment(),
        }
    }
}

/// Something to post.
#[derive(Clone)]
pub struct Post {
    /// Where; often a secret as a whole.
    pub url: String,
    /// Headers beside those of the connection.
    pub headers: Vec<(&'static str, String)>,
    /// What.
    pub body: String,
}

impl std::fmt::Debug for Post {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Post(…)")
    }
}

/// What the other side answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The HTTP status.
    pub status: u16,
    /// For how long it wants to be left alone.
    pub retry_after: Option<Duration>,
    /// The beginning of what it said.
    pub text: String,
}

/// Why nothing was posted, or nobody answered. No text here holds more of an address than its host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutwardError {
    /// It is no address, or holds what no header can.
    #[error("the address or a header cannot be sent")]
    Unusable,
    /// It would be readable on the way.
    #[error("{host} is not asked without encryption: it is not configured as a private host")]
    Plain {
        /// The host.
        host: String,
    },
    /// The host is where nothing may be sent.
    #[error("{why}")]
    Refused {
        /// Why, with the host and without its address.
        why: String,
    },
    /// No answer in time.
    #[error("{host} did not answer in time")]
    TimedOut {
        /// The host.
        host: String,
    },
    /// No connection, or it broke.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable {
        /// The host.
        host: String,
        /// The cause in words.
        reason: String,
    },
    /// No client could be made of the settings.
    #[error("no connection can be made: {reason}")]
    Client {
        /// Why not.
        reason: String,
    },
}

/// Posts to addresses that operators chose.
#[derive(Debug)]
pub struct Outward {
    ways: Ways,
    filter: Filter,
}

impl Outward {
    /// Makes the clients; the process must have installed a TLS provider before.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub fn new(settings: OutwardSettings) -> Result<Self, OutwardError> {
        let entry = RegistrySettings {
            private_hosts: settings.private_hosts,
            ca_pem: settings.ca_pem,
            ..RegistrySettings::default()
        };
        let settings = Settings {
            registries: [(NOBODY.to_owned(), entry)].into(),
            timeouts: settings.timeouts,
            proxies: settings.proxies,
            ..Settings::default()
        };
        let filter = Filter::new(&settings);
        let ways = Ways::new(&settings, &filter).map_err(|error| OutwardError::Client {
            reason: match error {
                RegistryError::Client { reason } => reason,
                other => other.to_string(),
            },
        })?;
        Ok(Self { ways, filter })
    }

    /// Posts, and reads the beginning of the answer.
    ///
    /// # Errors
    /// As [`OutwardError`] says; an answer of any status is none.
    pub async fn post(&self, post: Post) -> Result<Said, OutwardError> {
        let url: Url = post.url.parse().map_err(|_| OutwardError::Unusable)?;
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        match url.scheme() {
            "https" => {}
            "http" if self.may_be_plain(&host, url.port_or_known_default()) => {}
            "http" => return Err(OutwardError::Plain { host }),
            _ => return Err(OutwardError::Unusable),
        }
        let refused = |why: String| OutwardError::Refused { why };
        let checked = self.filter.check(NOBODY, &url).await;
        checked.map_err(|error| refused(error.to_string()))?;
        let client = self.ways.to(NOBODY, self.filter.by_proxy(&url));
        let request = client
            .post(url)
            .headers(headers(post.headers)?)
            .body(post.body);
        let broken = |error: reqwest::Error| failure(&host, &error);
        let response = request.send().await.map_err(broken)?;
        Ok(Said {
            status: response.status().as_u16(),
            retry_after: retry_after(response.headers()),
            text: beginning(response).await,
        })
    }

    /// Whether a host was configured, so that it may be asked without encryption.
    pub fn may_be_plain(&self, host: &str, port: Option<u16>) -> bool {
        self.filter.is_known(NOBODY, host, port)
    }

    /// The addresses of a host, each judged: for what is not HTTP and connects by itself.
    ///
    /// # Errors
    /// When there are none, or one of them may not be connected to.
    pub async fn addresses(&self, host: &str, port: u16) -> Result<Vec<IpAddr>, OutwardError> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let found = self.filter.reachable(NOBODY, &host, port).await;
        match found {
            Ok(Ok(found)) if found.is_empty() => Err(OutwardError::Unreachable {
                host,
                reason: "it has no address".to_owned(),
            }),
            Ok(Ok(found)) => Ok(found),
            Ok(Err(refused)) => Err(OutwardError::Refused {
                why: refused.to_string(),
            }),
            Err(error) => Err(OutwardError::Unreachable {
                host,
                reason: error.to_string(),
            }),
        }
    }
}

fn headers(pairs: Vec<(&'static str, String)>) -> Result<HeaderMap, OutwardError> {
    let pairs = pairs.into_iter().map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = HeaderValue::try_from(value).ok()?;
        // Some are tokens: not for the logs of what is underneath.
        value.set_sensitive(true);
        Some((name, value))
    });
    pairs
        .collect::<Option<HeaderMap>>()
        .ok_or(OutwardError::Unusable)
}

/// What arrives of an answer within its bound; that the rest is missing or broke off does not matter.
async fn beginning(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_ANSWER
        && let Ok(Some(chunk)) = response.chunk().await
    {
        bytes.extend_from_slice(&chunk);
    }
    bytes.truncate(MAX_ANSWER);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A transport failure in words, without the address.
fn failure(host: &str, error: &reqwest::Error) -> OutwardError {
    if let Some(refused) = filter::refusal(error) {
        let why = refused.to_string();
        return OutwardError::Refused { why };
    }
    let host = host.to_owned();
    if error.is_timeout() {
        return OutwardError::TimedOut { host };
    }
    OutwardError::Unreachable {
        host,
        reason: deepest(error),
    }
}
