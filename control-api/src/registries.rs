//! Owns the registry client's place in this program: its settings, its metrics, its words.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::image::Reference;
use holdfast_registry as registry;
use holdfast_registry::{Client, RegistryError};

use crate::config::{self, Settings};
use crate::resolver::{Answer, Ask};
use crate::telemetry::Metrics;

#[derive(Debug)]
struct Registries(Client);

/// A client for the registries of the configuration.
///
/// # Errors
/// When no TLS provider is installed or its roots cannot be read.
pub fn client(settings: &Settings, metrics: Arc<Metrics>) -> Result<Arc<dyn Ask>, RegistryError> {
    let client = Client::new(registry::Settings {
        registries: settings.registries.iter().map(entry).collect(),
        cache_ttl: Duration::from_secs(settings.digest_cache_s.into()),
        observer: Some(Arc::new(move |exchange| {
            let code = exchange
                .status
                .map_or("none".to_owned(), |status| status.to_string());
            metrics.registry_request(exchange.registry, &code, exchange.took);
        })),
        ..registry::Settings::default()
    })?;
    Ok(Arc::new(Registries(client)))
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
fn canonical(host: &str) -> String {
    format!("{host}/any/image")
        .parse::<Reference>()
        .map_or_else(
            |_| host.to_owned(),
            |reference| reference.repository().registry().to_owned(),
        )
}

impl Ask for Registries {
    fn ask<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>> {
        Box::pin(async move {
            match self.0.resolve(reference).await {
                Ok(image) => Ok(image),
                Err(error) => {
                    tracing::warn!(
                        image.reference = %reference,
                        error = %error,
                        "a registry did not say what a reference points at"
                    );
                    Err(error.to_string())
                }
            }
        })
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
