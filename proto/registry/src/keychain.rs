//! Owns where credentials come from when a registry wants some and the settings name none: docker's own
//! configuration, the environment, the clouds. They are asked for when a registry asks, not before.

mod clouds;
mod docker_config;
mod environment;
mod sigv4;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use clouds::{Cloud, CloudKeychain, Now};
pub use docker_config::{DockerConfig, DockerConfigError};
pub use environment::{Environment, EnvironmentError};
pub use sigv4::Keys;

use crate::settings::Credentials;

/// The registry that a login without a name is for: it is never shown to whoever asks first.
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
    /// Whether it may know some for a registry, as far as can be told without asking anybody.
    fn may_know(&self, registry: &str) -> bool;

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
    fn may_know(&self, registry: &str) -> bool {
        self.0.iter().any(|keychain| keychain.may_know(registry))
    }

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
