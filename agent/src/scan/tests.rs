//! Facts about what a scan may conclude; with a real engine and registry in `tests/`.

use holdfast_proto::updates::UpdateFinding;

use super::*;

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn here() -> Here {
    Here {
        store: ImageStore::Classic,
        platform: "linux/arm64".parse().unwrap(),
    }
}

fn local(ids: &[&str], repo_digests: &[&str]) -> LocalImage {
    LocalImage {
        ids: ids.iter().map(|name| digest(name)).collect(),
        repo_digests: repo_digests
            .iter()
            .map(|name| format!("{name}@{}", digest("index")))
            .collect(),
        version: None,
        platform: "linux/arm64".parse().unwrap(),
    }
}

#[test]
fn the_digest_shown_is_the_registrys_where_both_name_the_image() {
    let (old, new) = (digest("old"), digest("new"));
    let reference: Reference = "redis:7".parse().unwrap();
    let offered = ResolvedImage {
        repository: reference.repository().clone(),
        top: holdfast_proto::image::TopDigest::Index(holdfast_proto::image::IndexDigest(new)),
        media_type: String::new(),
        platforms: Vec::new(),
    };
    let pulled = Pulled::By(vec![new, old]);
    assert_eq!(by(&pulled, Some(&offered)), Some(new));
    assert_eq!(by(&Pulled::By(vec![old]), Some(&offered)), Some(old));
    assert_eq!(by(&Pulled::Elsewhere, Some(&offered)), None);
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
    let reports = scan(containers, &here(), &registries).await;
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
