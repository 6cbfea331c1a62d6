//! Facts about what a scan may conclude; with a real engine and registry in `tests/`.

use holdfast_proto::image::{ConfigDigest, IndexDigest, ManifestDigest, PlatformImage, TopDigest};

use super::*;

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn local(ids: &[&str], repo_digests: &[&str]) -> LocalImage {
    LocalImage {
        ids: ids.iter().map(|name| digest(name)).collect(),
        repo_digests: repo_digests
            .iter()
            .map(|name| format!("{name}@{}", digest("index")))
            .collect(),
        platform: "linux/arm64".parse().unwrap(),
    }
}

/// An index `index` with `manifest` and `config` for arm64, and others for amd64.
fn offered() -> ResolvedImage {
    let image = |platform: &str, manifest: &str, config: &str| PlatformImage {
        platform: platform.parse().unwrap(),
        manifest_digest: ManifestDigest(digest(manifest)),
        config_digest: ConfigDigest(digest(config)),
        size_bytes: 1,
    };
    let reference: Reference = "redis:7".parse().unwrap();
    ResolvedImage {
        repository: reference.repository().clone(),
        top: TopDigest::Index(IndexDigest(digest("index"))),
        media_type: String::new(),
        platforms: vec![
            image("linux/amd64", "other manifest", "other config"),
            image("linux/arm64", "manifest", "config"),
        ],
    }
}

#[test]
fn a_classic_store_compares_configurations() {
    let same = |id: &str| same(&local(&[id], &[]), ImageStore::Classic, &offered());
    assert_eq!(same("config"), Some(true));
    assert_eq!(same("older config"), Some(false));
    // Another platform's image under the same name is another image.
    assert_eq!(same("other config"), Some(false));
}

#[test]
fn a_containerd_store_knows_the_same_but_not_the_different() {
    let same = |id: &str| same(&local(&[id], &[]), ImageStore::Containerd, &offered());
    assert_eq!(same("index"), Some(true));
    assert_eq!(same("manifest"), Some(true));
    assert_eq!(same("older index"), None);
}

#[test]
fn a_platform_that_is_not_offered_is_not_compared() {
    let mut image = local(&["config"], &[]);
    image.platform = "linux/riscv64".parse().unwrap();
    assert_eq!(same(&image, ImageStore::Classic, &offered()), None);
}

#[test]
fn pulled_means_from_the_references_own_repository() {
    let redis: Reference = "redis:7".parse().unwrap();
    let found = |names: &[&str]| pulled_by(&redis, &local(&["x"], names));
    assert_eq!(found(&["ghcr.io/o/redis"]), None);
    assert_eq!(
        found(&["ghcr.io/o/redis", "docker.io/library/redis"]),
        Some(digest("index"))
    );
}

#[test]
fn an_image_id_is_no_reference() {
    let hex = "a".repeat(64);
    assert!(written(&hex).is_err());
    assert!(written(&format!("sha256:{hex}")).is_err());
    assert!(written("").is_err());
    assert!(written("nginx").is_ok());
}

#[tokio::test]
async fn what_needs_no_registry_asks_none() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registries = Client::new(holdfast_registry::Settings::default()).unwrap();
    let container = |name: &str, reference: &str, image, is_sandbox| RunningContainer {
        id: name.to_owned(),
        name: name.to_owned(),
        reference: reference.to_owned(),
        state: "running".to_owned(),
        is_sandbox,
        image,
    };
    // A registry that nobody listens on: asking it would be an error of another kind.
    let pinned = format!("127.0.0.1:1/web@{}", digest("pinned"));
    let containers = vec![
        container(
            "built",
            "127.0.0.1:1/web:1",
            Some(local(&["x"], &[])),
            false,
        ),
        container("lost", "127.0.0.1:1/web:1", None, false),
        container("pinned", &pinned, Some(local(&["x"], &[])), false),
        container("unnamed", &"b".repeat(64), Some(local(&["x"], &[])), false),
        container("network", "127.0.0.1:1/pause:1", None, true),
    ];
    let reports = scan(containers, ImageStore::Classic, &registries).await;
    let found: Vec<_> = reports
        .iter()
        .map(|report| {
            let error = report.error.as_deref().unwrap_or_default();
            (report.container_name.as_str(), report.has_update, error)
        })
        .collect();
    assert_eq!(
        found,
        [
            (
                "built",
                None,
                "no registry digest: it was built here, or its image's name was removed"
            ),
            ("lost", None, "the engine has lost its image"),
            ("pinned", Some(false), ""),
            (
                "unnamed",
                None,
                "it was made from an image id, which names no registry"
            ),
        ]
    );
    assert_eq!(reports[2].status, UpdateFinding::Pinned);
    assert_eq!(
        reports[2].running_digest,
        Some(digest("pinned").to_string())
    );
    assert_eq!(reports[0].tag.as_deref(), Some("1"));
}
