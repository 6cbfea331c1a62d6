//! Owns logins that clouds mint for their own registries: Amazon ECR, Google Artifact Registry, Azure
//! Container Registry. A service account's key or a user's password needs none of this: it is a login
//! like any other.
//!
//! What was minted is used for some minutes, for the registry's hosts only.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use holdfast_proto::time::Timestamp;
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::sigv4::{self, Keys};
use super::{Keychain, KeychainError};
use crate::settings::{Credentials, Secret, host_of};

/// What was minted is asked for again after this long: clouds' logins live for an hour at least.
const KEPT_FOR: Duration = Duration::from_mins(10);
/// A metadata service answers at once, or is not there.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;
const GOOGLE_METADATA: &str = "http://metadata.google.internal";
const AZURE_METADATA: &str = "http://169.254.169.254";

/// Tells the time, for signatures.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Which cloud, and what it takes there.
#[derive(Clone)]
pub enum Cloud {
    /// Elastic Container Registry: a signed question to its API (AWS, "`GetAuthorizationToken`").
    Amazon {
        /// An access key that may ask.
        keys: Keys,
        /// The API's address instead of `https://api.ecr.REGION.amazonaws.com`.
        endpoint: Option<String>,
        /// The time, for signatures.
        now: Now,
    },
    /// Artifact Registry and Container Registry: an access token of this machine's service account.
    Google {
        /// The metadata service's address instead of Google's own.
        metadata: Option<String>,
    },
    /// Container Registry: this machine's managed identity, exchanged at the registry for a refresh token.
    Azure {
        /// The metadata service's address instead of Azure's own.
        metadata: Option<String>,
        /// The registry's address instead of `https://REGISTRY`.
        exchange: Option<String>,
    },
}

impl Cloud {
    fn word(&self) -> &'static str {
        match self {
            Self::Amazon { .. } => "Amazon ECR",
            Self::Google { .. } => "Google Artifact Registry",
            Self::Azure { .. } => "Azure Container Registry",
        }
    }

    /// Whether a registry is this cloud's.
    fn has(&self, registry: &str) -> bool {
        let registry = host_of(registry);
        match self {
            Self::Amazon { .. } => region(registry).is_some(),
            Self::Google { .. } => {
                registry == "gcr.io"
                    || registry.ends_with(".gcr.io")
                    || registry.ends_with("-docker.pkg.dev")
            }
            Self::Azure { .. } => [".azurecr.io", ".azurecr.cn", ".azurecr.us"]
                .iter()
                .any(|end| registry.ends_with(end)),
        }
    }
}

/// Where Amazon's API for a registry is.
fn amazon_api(registry: &str, region: &str) -> String {
    // Amazon in China has names of its own.
    let end = if host_of(registry).ends_with(".com.cn") {
        ".cn"
    } else {
        ""
    };
    format!("https://api.ecr.{region}.amazonaws.com{end}")
}

/// The region of `ACCOUNT.dkr.ecr.REGION.amazonaws.com`.
fn region(registry: &str) -> Option<&str> {
    let (account, rest) = host_of(registry).split_once(".dkr.ecr.")?;
    let region = rest
        .strip_suffix(".amazonaws.com")
        .or_else(|| rest.strip_suffix(".amazonaws.com.cn"))?;
    let digits = !account.is_empty() && account.chars().all(|c| c.is_ascii_digit());
    let plain = region
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    (digits && plain && !region.is_empty()).then_some(region)
}

/// The keychain of one cloud.
pub struct CloudKeychain {
    cloud: Cloud,
    http: reqwest::Client,
    /// A metadata service is never behind a proxy.
    near: reqwest::Client,
    minted: Mutex<HashMap<String, (Instant, Credentials)>>,
}

impl fmt::Debug for CloudKeychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloudKeychain({})", self.cloud.word())
    }
}

#[derive(Deserialize)]
struct Minted {
    access_token: String,
}

#[derive(Deserialize)]
struct Exchanged {
    refresh_token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_data: Vec<AuthorizationData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthorizationData {
    authorization_token: String,
}

impl CloudKeychain {
    /// A keychain for one cloud; the process must have installed a TLS provider before.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(cloud: Cloud) -> Result<Self, KeychainError> {
        let builder = || {
            reqwest::Client::builder()
                .timeout(LIMIT)
                .redirect(reqwest::redirect::Policy::none())
        };
        let failed = |error: reqwest::Error| KeychainError {
            keychain: cloud.word().to_owned(),
            why: error.to_string(),
        };
        let http = builder().build().map_err(failed)?;
        let near = builder().no_proxy().build().map_err(failed)?;
        Ok(Self {
            cloud,
            http,
            near,
            minted: Mutex::default(),
        })
    }

    fn failed(&self, why: impl Into<String>) -> KeychainError {
        KeychainError {
            keychain: self.cloud.word().to_owned(),
            why: why.into(),
        }
    }

    async fn look_up(&self, registry: &str) -> Result<Option<Credentials>, KeychainError> {
        if !self.cloud.has(registry) {
            return Ok(None);
        }
        let kept = {
            let minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
            minted.get(registry).cloned()
        };
        if let Some((at, credentials)) = kept
            && at.elapsed() < KEPT_FOR
        {
            return Ok(Some(credentials));
        }
        let credentials = self.mint(registry).await?;
        let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
        minted.insert(registry.to_owned(), (Instant::now(), credentials.clone()));
        Ok(Some(credentials))
    }

    async fn mint(&self, registry: &str) -> Result<Credentials, KeychainError> {
        match &self.cloud {
            Cloud::Amazon {
                keys,
                endpoint,
                now,
            } => {
                let region = region(registry).unwrap_or_default();
                let own = || amazon_api(registry, region);
                let endpoint = endpoint.clone().unwrap_or_else(own);
                self.amazon(keys, &endpoint, region, now()).await
            }
            Cloud::Google { metadata } => {
                let metadata = metadata.as_deref().unwrap_or(GOOGLE_METADATA);
                let path = "computeMetadata/v1/instance/service-accounts/default/token";
                let request = self
                    .near
                    .get(format!("{metadata}/{path}"))
                    .header("metadata-flavor", "Google");
                let answer: Minted = self.ask("the metadata service", request).await?;
                Ok(Credentials::Password {
                    username: "oauth2accesstoken".to_owned(),
                    password: Secret::new(answer.access_token),
                })
            }
            Cloud::Azure { metadata, exchange } => {
                let metadata = metadata.as_deref().unwrap_or(AZURE_METADATA);
                let own = format!("https://{registry}");
                let exchange = exchange.as_deref().unwrap_or(&own);
                self.azure(metadata, exchange, registry).await
            }
        }
    }

    async fn amazon(
        &self,
        keys: &Keys,
        endpoint: &str,
        region: &str,
        now: Timestamp,
    ) -> Result<Credentials, KeychainError> {
        let host = endpoint
            .split_once("://")
            .map_or(endpoint, |(_, host)| host)
            .trim_end_matches('/');
        let mut request = self
            .http
            .post(format!("{}/", endpoint.trim_end_matches('/')));
        for (name, value) in sigv4::token_request(keys, host, region, now) {
            request = request.header(name, value);
        }
        let request = request.body(sigv4::TOKEN_REQUEST_BODY);
        let answer: Authorization = self.ask("its API", request).await?;
        let data = answer.authorization_data.into_iter().next();
        let token = data
            .map(|data| data.authorization_token)
            .unwrap_or_default();
        let text = BASE64_STANDARD
            .decode(token)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let login = text.as_deref().and_then(|text| text.split_once(':'));
        let (username, password) =
            login.ok_or_else(|| self.failed("its API's answer holds no login"))?;
        Ok(Credentials::Password {
            username: username.to_owned(),
            password: Secret::new(password.to_owned()),
        })
    }

    async fn azure(
        &self,
        metadata: &str,
        exchange: &str,
        registry: &str,
    ) -> Result<Credentials, KeychainError> {
        let request = self
            .near
            .get(format!("{metadata}/metadata/identity/oauth2/token"))
            .query(&[
                ("api-version", "2018-02-01"),
                ("resource", "https://management.azure.com/"),
            ])
            .header("metadata", "true");
        let minted: Minted = self.ask("the metadata service", request).await?;
        let request = self
            .http
            .post(format!("{exchange}/oauth2/exchange"))
            .form(&[
                ("grant_type", "access_token"),
                ("service", registry),
                ("access_token", &minted.access_token),
            ]);
        let answer: Exchanged = self.ask("the registry's exchange", request).await?;
        Ok(Credentials::Identity {
            token: Secret::new(answer.refresh_token),
        })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        whom: &str,
        request: RequestBuilder,
    ) -> Result<T, KeychainError> {
        let unanswered = |error: reqwest::Error| {
            let why = if error.is_timeout() {
                "did not answer in time"
            } else {
                "cannot be reached"
            };
            self.failed(format!("{whom} {why}"))
        };
        let mut response: Response = request.send().await.map_err(unanswered)?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            return Err(self.failed(format!("{whom} answered {status}")));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unanswered)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(self.failed(format!("{whom} answered too much")));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body)
            .map_err(|_| self.failed(format!("{whom}'s answer is not understood")))
    }
}

impl Keychain for CloudKeychain {
    fn may_know(&self, registry: &str) -> bool {
        self.cloud.has(registry)
    }

    fn find<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, KeychainError>> {
        Box::pin(self.look_up(registry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clouds_login_is_for_its_own_registries() {
        let google = Cloud::Google { metadata: None };
        let azure = Cloud::Azure {
            metadata: None,
            exchange: None,
        };
        for (cloud, registry, expected) in [
            (&google, "europe-west3-docker.pkg.dev", true),
            (&google, "eu.gcr.io", true),
            (&google, "gcr.io", true),
            (&google, "gcr.io.evil.example", false),
            (&google, "evilgcr.io", false),
            (&google, "docker.pkg.dev.evil.example", false),
            (&azure, "mine.azurecr.io", true),
            (&azure, "mine.azurecr.io.evil.example", false),
            (&azure, "azurecr.io", false),
        ] {
            assert_eq!(cloud.has(registry), expected, "{registry}");
        }
        let in_china = "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn";
        assert_eq!(
            amazon_api(in_china, "cn-north-1"),
            "https://api.ecr.cn-north-1.amazonaws.com.cn"
        );
        for (registry, expected) in [
            (
                "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
                Some("eu-central-1"),
            ),
            (
                "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
                Some("cn-north-1"),
            ),
            (
                "123456789012.dkr.ecr.eu-central-1.amazonaws.com.evil.example",
                None,
            ),
            ("evil.dkr.ecr.eu-central-1.amazonaws.com", None),
            ("1.dkr.ecr.evil.example/.amazonaws.com", None),
            ("1.dkr.ecr..amazonaws.com", None),
        ] {
            assert_eq!(region(registry), expected, "{registry}");
        }
    }
}
