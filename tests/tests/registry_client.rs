//! The registry client against real registries, and against servers that misbehave.

#[path = "registry_client/cache.rs"]
mod cache;
#[path = "registry_client/clouds.rs"]
mod clouds;
#[path = "registry_client/faults.rs"]
mod faults;
#[path = "registry_client/logins.rs"]
mod logins;
#[path = "registry_client/proxies.rs"]
mod proxies;
#[path = "registry_client/ssrf.rs"]
mod ssrf;
#[path = "registry_client/strangers.rs"]
mod strangers;
#[path = "registry_client/tags.rs"]
mod tags;

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::image::{Digest, Platform, Reference};
use holdfast_registry::{
    Client, Credentials, Lookup, Proxies, Reach, RegistrySettings, Secret, Settings,
};
use holdfast_tests::api;
use holdfast_tests::images::{Image, Kind};
use holdfast_tests::registry::Registry;

/// A client that keeps nothing, asks whomever it is told to, and knows no proxy.
fn client_with(adjust: impl FnOnce(&mut Settings)) -> Client {
    // The lab's own client installs the TLS provider.
    let _ = api::client();
    let mut settings = Settings {
        cache_ttl: Duration::ZERO,
        // The lab's registries are on this machine.
        reach: Reach::Anywhere,
        proxies: Proxies::read(|_| None),
        ..Settings::default()
    };
    adjust(&mut settings);
    Client::new(settings).expect("a client")
}

/// A client with a login for one registry.
fn client_of(host: &str, credentials: Option<Credentials>) -> Client {
    let entry = RegistrySettings {
        credentials,
        ..RegistrySettings::default()
    };
    client_with(|settings| settings.registries = BTreeMap::from([(host.to_owned(), entry)]))
}

fn password(username: &str, password: &str) -> Credentials {
    Credentials::Password {
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
    }
}

fn token(token: &str) -> Credentials {
    let token = Secret::new(token.to_owned());
    Credentials::Bearer { token }
}

/// Every name is this machine.
fn all_here() -> Lookup {
    let here = std::net::IpAddr::from([127, 0, 0, 1]);
    std::sync::Arc::new(move |_| Box::pin(std::future::ready(Ok(vec![here]))))
}

fn reference(text: &str) -> Reference {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn platform(text: &str) -> Platform {
    text.parse().expect("a platform")
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest with nothing in it, its digest, and its configuration.
fn manifest() -> (String, String, String) {
    let config = r#"{"os":"linux","architecture":"amd64"}"#.to_owned();
    let digest = Digest::of(config.as_bytes());
    let size = config.len();
    let body = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"digest":"{digest}","size":{size}}},"layers":[]}}"#
    );
    let digest = Digest::of(body.as_bytes()).to_string();
    (body, digest, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_indexes_resolve_to_every_platforms_image() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let client = client_with(|_| {});
    for kind in [Kind::Oci, Kind::Docker] {
        let image = Image::web("multi", "1").kind(kind).attested();
        let image =
            image.platforms(&["linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7"]);
        let pushed = image
            .push(&registry, &format!("{kind:?}").to_lowercase())
            .await?;
        let resolved = client.resolve(&reference(&pushed.reference())).await?;
        assert_eq!(resolved.top.digest().to_string(), pushed.top_digest);
        assert_eq!(resolved.platforms.len(), 4, "the attestation is no image");
        for (device, gets) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm/v8", "linux/arm/v7"),
            ("linux/armv6l", "linux/arm/v6"),
        ] {
            let found = resolved.for_platform(&platform(device)).expect("an image");
            let child = pushed.child(gets);
            assert_eq!(
                found.manifest_digest.to_string(),
                child.manifest_digest,
                "{kind:?} {device}"
            );
            assert_eq!(
                found.config_digest.to_string(),
                child.config_digest,
                "{kind:?} {device}"
            );
            assert!(
                found.size_bytes > child.layers_size_bytes,
                "the configuration counts too"
            );
        }
        assert!(resolved.for_platform(&platform("linux/riscv64")).is_none());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_manifest_has_the_platform_of_its_configuration() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let client = client_with(|_| {});
    let pushed = Image::web("single", "1")
        .platforms(&["linux/arm/v7"])
        .single()
        .push(&registry, "1")
        .await?;
    for text in [pushed.reference(), pushed.pinned()] {
        let resolved = client.resolve(&reference(&text)).await?;
        assert_eq!(resolved.top.index(), None);
        assert_eq!(resolved.top.digest().to_string(), pushed.top_digest);
        assert_eq!(resolved.platforms[0].platform, platform("linux/arm/v7"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_says_what_its_labels_and_annotations_say() -> anyhow::Result<()> {
    const SOURCE: &str = "org.opencontainers.image.source";
    const REVISION: &str = "org.opencontainers.image.revision";
    let registry = Registry::open().await?;
    let pushed = Image::web("about", "1")
        .label(SOURCE, "https://git.example/about")
        .label("secret-of-the-house", "x")
        .annotation(REVISION, "f00")
        .annotation("other", "x")
        .platforms(&["linux/arm64", "linux/amd64"])
        .push(&registry, "1")
        .await?;
    let client = client_with(|_| {});
    let wanted = reference(&pushed.pinned());
    let about = client
        .about(&wanted, &platform("linux/arm64"), None)
        .await?;
    let about = about.expect("an image for the platform");
    assert_eq!(about.get(SOURCE), Some("https://git.example/about"));
    assert_eq!(about.get(REVISION), Some("f00"));
    let foreign = |key: &String| !key.starts_with("org.opencontainers.image.");
    let keys = about.labels.keys().chain(about.annotations.keys());
    assert_eq!(keys.filter(|key| foreign(key)).count(), 0);
    let asked = registry.requests().len();
    client
        .about(&wanted, &platform("linux/arm64"), None)
        .await?;
    assert_eq!(registry.requests().len(), asked, "asked once");
    let none = client
        .about(&wanted, &platform("linux/s390x"), None)
        .await?;
    assert_eq!(none, None);
    Ok(())
}
