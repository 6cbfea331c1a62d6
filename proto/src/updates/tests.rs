//! Facts about the update report on the wire.

use serde_json::json;

use super::*;

fn subject(reference: &str) -> Subject {
    Subject {
        container_name: "web".to_owned(),
        container_id: "c".to_owned(),
        image_reference: reference.to_owned(),
        state: "running".to_owned(),
        platform: Some("linux/arm/v7".parse().unwrap()),
        running: Some(Digest::of(b"runs")),
    }
}

fn compared(has_update: bool) -> Finding {
    Finding::Compared {
        offer: Offer {
            digest: Digest::of(b"offered"),
            is_list: true,
        },
        has_update,
    }
}

#[test]
fn is_camel_case_and_says_null_for_what_is_not_known() {
    let finding = Finding::Unknown {
        offer: None,
        error: "built here".to_owned(),
    };
    let subject = Subject {
        running: None,
        ..subject("web:1")
    };
    assert_eq!(
        serde_json::to_value(UpdateReport::new(subject, finding)).unwrap(),
        json!({
            "containerName": "web", "containerId": "c", "imageReference": "web:1",
            "platform": { "os": "linux", "architecture": "arm", "variant": "v7" },
            "runningDigest": null, "registryDigest": null, "hasUpdate": null, "tag": "1",
            "isManifestList": null, "state": "running", "status": "unknown", "error": "built here"
        })
    );
}

#[test]
fn a_comparison_is_told_with_both_digests() {
    let report = UpdateReport::new(subject("web"), compared(true));
    assert_eq!(report.running_digest, Some(Digest::of(b"runs").to_string()));
    assert_eq!(
        report.registry_digest,
        Some(Digest::of(b"offered").to_string())
    );
    assert_eq!(report.tag.as_deref(), Some("latest"));
    assert_eq!(
        (report.has_update, report.status, report.is_manifest_list),
        (Some(true), UpdateFinding::UpdateAvailable, Some(true))
    );
    let report = UpdateReport::new(subject("web"), compared(false));
    assert_eq!(report.status, UpdateFinding::UpToDate);
}

#[test]
fn a_pinned_image_has_no_tag_and_no_update() {
    let pinned = Digest::of(b"pinned");
    let report = UpdateReport::new(subject(&format!("web:1@{pinned}")), Finding::Pinned);
    assert_eq!(
        (report.has_update, report.status, report.tag),
        (Some(false), UpdateFinding::Pinned, None)
    );
    assert_eq!(report.running_digest, Some(pinned.to_string()));
    assert_eq!(report.registry_digest, Some(pinned.to_string()));
}

#[test]
fn candidates_have_two_casings() {
    let candidate = TagCandidate {
        tag: "1.2".to_owned(),
        is_latest: true,
        release_url: None,
        platform_available: Availability::Yes,
    };
    assert_eq!(
        serde_json::to_value(&candidate).unwrap(),
        json!({ "tag": "1.2", "isLatest": true, "releaseUrl": null, "platformAvailable": "yes" })
    );
    assert_eq!(
        serde_json::to_value(AvailableUpdate::from(candidate)).unwrap(),
        json!({ "tag": "1.2", "is_latest": true, "release_url": null, "platform_available": "yes" })
    );
}

#[test]
fn a_fleet_is_told_of_each_image_once() {
    let device = |number: u128| DeviceId::from_random(number.to_be_bytes());
    let report =
        |reference: &str, has_update| UpdateReport::new(subject(reference), compared(has_update));
    let mut reports = vec![
        (device(1), report("redis:7", true)),
        (device(1), report("docker.io/library/redis:7", true)),
        (device(2), report("redis:7", true)),
        (device(2), report("redis:7", false)),
        (device(2), report("redis:7.2", true)),
    ];
    let found = fleet(reports.clone());
    let counted: Vec<_> = found
        .iter()
        .map(|update| {
            let tag = update.tag.as_deref().unwrap_or_default();
            (
                tag,
                update.has_update,
                update.device_count,
                update.container_count,
            )
        })
        .collect();
    assert_eq!(
        counted,
        [
            ("7", Some(false), 1, 1),
            ("7", Some(true), 2, 3),
            ("7.2", Some(true), 1, 1),
        ]
    );
    reports.extend((0..500).map(|number| (device(number), report("redis:7", true))));
    let most = fleet(reports).swap_remove(1);
    assert_eq!((most.containers.len(), most.container_count), (100, 503));
    assert_eq!(most.device_count, 500);
}
