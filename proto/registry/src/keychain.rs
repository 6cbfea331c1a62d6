//! Owns where credentials come from when a registry wants some and the settings name none: docker's own
//! configuration, the environment, the clouds. They are asked for when a registry asks, not before.

mod clouds;
mod docker_config;
mod sigv4;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use clouds::{Cloud, CloudKeychain, Now};
pub use docker_config::{DockerConfig, DockerConfigError};
pub use sigv4::Keys;

use crate::settings::{Credentials, Secret};

/// Environment variables with a login.
const ENV_USERNAME: &str = "DOCKER_REGISTRY_USERNAME";
const ENV_PASSWORD: &str = "DOCKER_REGISTRY_PASSWORD";
/// The registry that they are for.
const ENV_REGISTRY: &str = "DOCKER_REGISTRY";
/// Without one they are for Docker Hub: a login is never shown to whoever asks first.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Why credentials that should be there could not be had; it holds none of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{keychain}: {why}")]
pub struct KeychainError {
    /// Which keychain.
    pub keychain: String,
    /// Why.
    pub why: String,
}

/// Knows credentials for registries.
pub trait Keychain: Send + Sync + fmt::Debug {
    /// The credentials for a registry, by its canonical name; `None` when it knows none.
    fn find<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, KeychainError>>;
}

/// Several keychains; the first that knows a registry counts.
#[derive(Clone, Debug, Default)]
pub struct Keychains(pub Vec<Arc<dyn Keychain>>);

impl Keychain for Keychains {
    fn find<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, KeychainError>> {
        Box::pin(async move {
            for keychain in &self.0 {
                if let Some(found) = keychain.find(registry).await? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }
}

/// One login from the environment, for one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    registry: String,
    credentials: Credentials,
}

impl Environment {
    /// Reads `DOCKER_REGISTRY_USERNAME` and `DOCKER_REGISTRY_PASSWORD`, for `DOCKER_REGISTRY` or Docker Hub.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| variable(name).filter(|text| !text.is_empty());
        Some(Self {
            registry: canonical(&set(ENV_REGISTRY).unwrap_or_else(|| DEFAULT_REGISTRY.to_owned())),
            credentials: Credentials::Password {
                username: set(ENV_USERNAME)?,
                password: Secret::new(set(ENV_PASSWORD)?),
            },
        })
    }
}

impl Keychain for Environment {
    fn find<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, KeychainError>> {
        let known = (registry == self.registry).then(|| self.credentials.clone());
        Box::pin(std::future::ready(Ok(known)))
    }
}

/// A registry's canonical name, from the ways in which docker and people write it:
/// `https://index.docker.io/v1/` is `docker.io`.
pub(crate) fn canonical(written: &str) -> String {
    let bare = written
        .strip_prefix("https://")
        .or_else(|| written.strip_prefix("http://"))
        .unwrap_or(written);
    let host = bare.split('/').next().unwrap_or_default();
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" | "docker.io" => DEFAULT_REGISTRY.to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Option<Environment> {
        Environment::read(|wanted| {
            let mut variables = variables.iter();
            let found = variables.find(|(name, _)| *name == wanted)?;
            Some(found.1.to_owned())
        })
    }

    #[tokio::test]
    async fn a_login_of_the_environment_is_for_one_registry() {
        let hub = [(ENV_USERNAME, "reader"), (ENV_PASSWORD, "hunter2")];
        let found = environment(&hub).unwrap();
        assert!(found.find("docker.io").await.unwrap().is_some());
        assert!(found.find("evil.example").await.unwrap().is_none());
        assert!(!format!("{found:?}").contains("hunter2"));
        let own = [&hub[..], &[(ENV_REGISTRY, "https://reg.example:5000/v2/")]].concat();
        let own = Keychains(vec![Arc::new(environment(&own).unwrap())]);
        assert!(own.find("reg.example:5000").await.unwrap().is_some());
        assert!(own.find("docker.io").await.unwrap().is_none());
        assert_eq!(environment(&hub[..1]), None);
        assert_eq!(environment(&[hub[0], (ENV_PASSWORD, "")]), None);
    }

    #[test]
    fn a_registry_has_one_name() {
        for written in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "registry-1.docker.io/",
        ] {
            assert_eq!(canonical(written), "docker.io", "{written}");
        }
        assert_eq!(canonical("http://Reg.Example:5000"), "reg.example:5000");
    }
}
