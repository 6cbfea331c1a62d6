//! Owns the registry client's place in this program: its settings, its metrics, its words.

mod newer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use holdfast_domain::resolution::Failure;
use holdfast_proto::image::{Platform, Reference};
use holdfast_proto::updates::TagCandidate;
use holdfast_registry as registry;
use holdfast_registry::{
    Client, Identity, Keychain as _, Keychains, Now, PullAccess, RegistryError, Resolved,
    RetryAdvice,
};

use crate::clock;
use crate::config::{self, Settings};
use crate::resolver::{Answer, Ask, Inquiry};
use crate::secret::Secret;
use crate::telemetry::Metrics;

#[derive(Debug)]
struct Registries {
    client: Client,
    /// What the environment knows.
    environment: Keychains,
    /// Those of the configuration that have credentials, by canonical name.
    configured: BTreeMap<String, Configured>,
}

#[derive(Debug)]
struct Configured {
    username: String,
    password: Secret,
    hand_out: bool,
}

/// A client for the registries of the configuration.
///
/// # Errors
/// When no TLS provider is installed or its roots cannot be read, or the environment names logins that
/// cannot be used.
pub fn client(settings: &Settings, metrics: Arc<Metrics>) -> Result<Arc<dyn Ask>, RegistryError> {
    let now: Now = Arc::new(clock::now);
    let (environment, faults) = Keychains::of_environment(|name| std::env::var(name).ok(), &now);
    // A server says at its start what it would lack later.
    if let Some(error) = faults.first() {
        return Err(RegistryError::Client {
            reason: error.to_string(),
        });
    }
    let client = Client::new(registry::Settings {
        registries: settings.registries.iter().map(entry).collect(),
        // For lists of tags; the resolver keeps answers itself, with the store behind it.
        cache_ttl: Duration::from_secs(settings.digest_cache_s.into()),
        keychain: Some(Arc::new(environment.clone())),
        observer: Some(Arc::new(move |exchange| {
            let code = exchange
                .status
                .map_or("none".to_owned(), |status| status.to_string());
            metrics.registry_request(exchange.registry, &code, exchange.took);
            if let Some(limit) = exchange.limit {
                metrics.registry_limit(exchange.registry, limit.limit, limit.remaining);
            }
        })),
        ..registry::Settings::default()
    })?;
    let configured = settings.registries.iter().filter_map(|registry| {
        let (username, password) = registry.credentials.clone()?;
        let configured = Configured {
            username,
            password,
            hand_out: registry.hand_out,
        };
        Some((canonical(&registry.host), configured))
    });
    Ok(Arc::new(Registries {
        client,
        environment,
        configured: configured.collect(),
    }))
}

fn entry(settings: &config::Registry) -> (String, registry::RegistrySettings) {
    let credentials =
        settings
            .credentials
            .as_ref()
            .map(|(username, password)| registry::Credentials::Password {
                username: username.clone(),
                password: registry::Secret::new(password.expose().to_owned()),
            });
    let special = registry::RegistrySettings {
        plain_http: settings.plain_http,
        credentials,
        realm_hosts: settings.realm_hosts.clone(),
        private_hosts: settings.private_hosts.clone(),
        mirrors: settings.mirrors.clone(),
        ca_pem: settings.ca_pem.clone(),
    };
    (canonical(&settings.host), special)
}

/// The name that references are known by: `index.docker.io` is `docker.io`.
pub fn canonical(host: &str) -> String {
    format!("{host}/any/image")
        .parse::<Reference>()
        .map_or_else(
            |_| host.to_owned(),
            |reference| reference.repository().registry().to_owned(),
        )
}

/// A registry's refusal in the words of the resolver.
fn failure(error: &RegistryError) -> Failure {
    Failure {
        code: error.code().to_owned(),
        why: error.to_string(),
        retry_after: match error.retry() {
            RetryAdvice::After(wait) => Some(wait),
            RetryAdvice::Never | RetryAdvice::Later => None,
        },
    }
}

impl Ask for Registries {
    fn ask<'a>(&'a self, inquiry: Inquiry<'a>) -> BoxFuture<'a, Answer> {
        let Inquiry {
            reference,
            known,
            who,
        } = inquiry;
        Box::pin(async move {
            let digest = known.map(|image| image.top.digest());
            match (self.client.ask_for(reference, digest, who).await, known) {
                (Ok(Resolved::Image(image)), _) => Ok(image),
                (Ok(Resolved::Unchanged), Some(known)) => Ok(known.clone()),
                (Ok(Resolved::Unchanged), None) => Err(Failure::new(
                    "unreachable",
                    format!("{reference}: the registry says `not modified` to a first question"),
                )),
                (Err(error), _) => {
                    tracing::warn!(
                        image.reference = %reference, registry.error = error.code(), error = %error,
                        "a registry did not say what a reference points at"
                    );
                    Err(failure(&error))
                }
            }
        })
    }

    fn pull_access<'a>(
        &'a self,
        reference: &'a Reference,
        who: Option<&'a Identity>,
    ) -> BoxFuture<'a, Result<PullAccess, Failure>> {
        Box::pin(async move {
            let access = self.client.pull_token(reference, who).await;
            access.map_err(|error| failure(&error))
        })
    }

    fn newer_tags<'a>(
        &'a self,
        reference: &'a Reference,
        platform: &'a Platform,
        who: Option<&'a Identity>,
    ) -> BoxFuture<'a, Result<Vec<TagCandidate>, Failure>> {
        Box::pin(async move {
            let found = newer::find(&self.client, reference, platform, who).await;
            found.map_err(|error| failure(&error))
        })
    }

    fn has_login(&self, registry: &str) -> bool {
        self.configured.contains_key(registry) || self.environment.may_know(registry)
    }

    fn hand_out(&self, registry: &str) -> Option<(String, Secret)> {
        let configured = self.configured.get(registry)?;
        configured
            .hand_out
            .then(|| (configured.username.clone(), configured.password.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_registry_hold_for_each_of_its_names() {
        assert_eq!(canonical("registry-1.docker.io"), "docker.io");
        assert_eq!(canonical("docker.io"), "docker.io");
        assert_eq!(canonical("localhost:5000"), "localhost:5000");
    }
}
