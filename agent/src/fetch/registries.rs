//! Owns what is known on this device about reaching a registry: what its owner wrote, what its engine was told,
//! whose certificates count.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use holdfast_registry::{
    Client, DockerConfig, Keychain, Mirror, Proxies, Reach, RegistryError, RegistrySettings,
    Settings,
};

use super::transport::Registries;
use crate::config::{PullSettings, RegistryEntry};
use crate::engine::docker::DockerEngine;
use crate::engine::docker::survey::Ways;
use crate::fault::chain;

/// Where engines look for the certificates of private registries, a folder for each.
pub const CERTIFICATES: &str = "/etc/docker/certs.d";

/// The only registry that engines mirror.
const DOCKER_HUB: &str = "docker.io";

/// What requests of this agent say about themselves.
pub const USER_AGENT: &str = concat!("holdfast-agent/", env!("CARGO_PKG_VERSION"));

/// What the settings and the engine say. Both files and engine are asked each time: they may say otherwise
/// since.
pub struct Told<'a> {
    /// Is told of registries without TLS.
    pub engine: &'a DockerEngine,
    /// What the owner wrote.
    pub settings: &'a PullSettings,
}

impl Registries for Told<'_> {
    fn client<'a>(
        &'a self,
        registry: &'a str,
    ) -> LocalBoxFuture<'a, Result<Client, RegistryError>> {
        Box::pin(async move {
            let ways = self.engine.ways().await.unwrap_or_else(|error| {
                tracing::debug!(error = %chain(&error), "the engine tells nothing of registries");
                Ways::default()
            });
            let known = |name: &str| {
                let mut special = told(name, &ways, Path::new(CERTIFICATES));
                if let Some(entry) = self.settings.registries.get(name) {
                    add(&mut special, entry);
                }
                special
            };
            let special = known(registry);
            let mirrors = special.mirrors.iter().map(Mirror::authority);
            let mut registries: BTreeMap<_, _> =
                mirrors.map(|name| (name.to_owned(), known(name))).collect();
            registries.insert(registry.to_owned(), special);
            Client::new(Settings {
                registries,
                user_agent: USER_AGENT.to_owned(),
                // The engine here would pull from the very same places.
                reach: Reach::Anywhere,
                proxies: proxies(&ways, |name| std::env::var(name).ok()),
                keychain: self.keychain(),
                ..Settings::default()
            })
        })
    }
}

impl Told<'_> {
    /// The device's own logins; without them what is open can still be had.
    fn keychain(&self) -> Option<Arc<dyn Keychain>> {
        let file = self.settings.credentials_file.as_ref()?;
        let read = DockerConfig::load(file).inspect_err(|error| {
            tracing::warn!(error = %chain(error), "this device's own logins cannot be read");
        });
        Some(Arc::new(read.ok()?))
    }
}

/// Adds what the owner wrote.
fn add(special: &mut RegistrySettings, entry: &RegistryEntry) {
    special.plain_http |= entry.plain_http;
    if let Some(file) = &entry.ca_file {
        match std::fs::read(file) {
            Ok(text) => {
                let certificates = special.ca_pem.get_or_insert_default();
                certificates.push(b'\n');
                certificates.extend(text);
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), error = %error, "a certificate cannot be read");
            }
        }
    }
    if !entry.mirrors.is_empty() {
        // The settings were checked when they were read.
        let mirrors = entry.mirrors.iter();
        special.mirrors = mirrors.filter_map(|mirror| mirror.parse().ok()).collect();
    }
}

/// By way of whom registries are asked: as this program's environment says, else as the engine was told.
pub fn proxies(ways: &Ways, variable: impl Fn(&str) -> Option<String>) -> Proxies {
    let own = Proxies::read(&variable);
    if own.is_any() {
        return own;
    }
    let told = |proxy: &String| {
        // What an engine shows in place of a name and a password.
        let is_whole = !proxy.contains("xxxxx:xxxxx@");
        if !is_whole {
            tracing::warn!(
                "the engine's proxy wants a password, which it does not tell: set HTTPS_PROXY for the agent, too"
            );
        }
        Some(proxy.clone()).filter(|proxy| is_whole && !proxy.is_empty())
    };
    Proxies::read(|name| match name {
        "HTTP_PROXY" => told(&ways.http_proxy),
        "HTTPS_PROXY" => told(&ways.https_proxy),
        "NO_PROXY" => Some(ways.no_proxy.clone()),
        _ => None,
    })
}

/// What an engine was told about a registry: whether it is spoken to in plain HTTP, whose certificates count
/// (`HOST[:PORT]/NAME.crt`), and where Docker Hub is mirrored.
pub fn told(registry: &str, ways: &Ways, folder: &Path) -> RegistrySettings {
    let files = std::fs::read_dir(folder.join(registry));
    let files = files.into_iter().flatten().flatten();
    let files = files.map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "crt"));
    let texts: Vec<Vec<u8>> = files.filter_map(|path| std::fs::read(path).ok()).collect();
    let plain = format!("http://{registry}");
    let is_plain = |mirror: &String| mirror.trim_end_matches('/') == plain;
    let mirrors = ways.mirrors.iter().filter(|_| registry == DOCKER_HUB);
    RegistrySettings {
        plain_http: ways.insecure.iter().any(|name| name == registry)
            || ways.mirrors.iter().any(is_plain),
        ca_pem: (!texts.is_empty()).then(|| texts.join(&b'\n')),
        mirrors: mirrors.filter_map(|url| mirror(url)).collect(),
        ..RegistrySettings::default()
    }
}

/// A mirror as engines write it: a URL.
fn mirror(url: &str) -> Option<Mirror> {
    let (_, rest) = url.split_once("://")?;
    rest.trim_end_matches('/').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways() -> Ways {
        Ways {
            insecure: vec!["plain.lan:5000".to_owned()],
            mirrors: vec![
                "https://mirror.example/".to_owned(),
                "http://near.lan:5000".to_owned(),
            ],
            https_proxy: "http://proxy.lan:3128".to_owned(),
            no_proxy: "near.lan".to_owned(),
            ..Ways::default()
        }
    }

    #[test]
    fn an_engines_mirrors_are_those_of_docker_hub() {
        let nowhere = Path::new("/no/such/folder");
        let names = |registry| {
            let told = told(registry, &ways(), nowhere);
            let mirrors = told.mirrors.iter().map(Mirror::authority);
            (
                told.plain_http,
                mirrors.map(str::to_owned).collect::<Vec<_>>(),
            )
        };
        let mirrors = vec!["mirror.example".to_owned(), "near.lan:5000".to_owned()];
        assert_eq!(names("docker.io"), (false, mirrors));
        assert_eq!(names("near.lan:5000"), (true, Vec::new()));
        assert_eq!(names("plain.lan:5000"), (true, Vec::new()));
        assert_eq!(names("quay.io"), (false, Vec::new()));
    }

    #[test]
    fn an_engines_proxy_counts_where_the_agent_has_none() {
        let hosts = |ways: &Ways, own: Option<&str>| {
            let proxies = proxies(ways, |name| {
                own.filter(|_| name == "HTTPS_PROXY").map(str::to_owned)
            });
            proxies.hosts().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(hosts(&ways(), None), ["proxy.lan"]);
        assert_eq!(hosts(&ways(), Some("http://own.lan")), ["own.lan"]);
        assert_eq!(hosts(&Ways::default(), None), Vec::<String>::new());
        // Without its password it is of no use.
        let masked = Ways {
            https_proxy: "http://xxxxx:xxxxx@proxy.lan:3128".to_owned(),
            ..Ways::default()
        };
        assert_eq!(hosts(&masked, None), Vec::<String>::new());
    }
}
