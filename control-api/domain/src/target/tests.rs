//! Facts about rendering.

use holdfast_proto::image::{
    ConfigDigest, Digest, IndexDigest, ManifestDigest, PlatformImage, ResolvedImage, TopDigest,
};

use super::*;
use crate::resolution::{Failure, learn};

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn platform_image(platform: &str, content: &str) -> PlatformImage {
    PlatformImage {
        platform: platform.parse().unwrap(),
        manifest_digest: ManifestDigest(digest(&format!("{content} {platform}"))),
        config_digest: ConfigDigest(digest(&format!("config of {content} {platform}"))),
        size_bytes: 1_000,
    }
}

fn index(content: &str, platforms: &[&str]) -> ResolvedImage {
    let reference: Reference = "nginx".parse().unwrap();
    ResolvedImage {
        repository: reference.repository().clone(),
        top: TopDigest::Index(IndexDigest(digest(content))),
        media_type: "application/vnd.oci.image.index.v1+json".into(),
        platforms: platforms
            .iter()
            .map(|platform| platform_image(platform, content))
            .collect(),
    }
}

fn known(reference: &str, knowledge: Known) -> KnownImages {
    [(Key::of(&reference.parse().unwrap()), knowledge)].into()
}

fn input(image: &str) -> TargetInput {
    let body = format!(
        r#"{{"apps":{{"1":{{"appId":1,"appName":"Web","services":[
            {{"serviceId":1,"serviceName":"web","imageName":"{image}","config":{{"ports":["80:80"]}}}}]}}}}}}"#
    );
    TargetInput::parse(body.as_bytes()).unwrap()
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn only(rendered: &Rendered) -> &ServiceTarget {
    &rendered.apps.values().next().unwrap().services[0]
}

#[test]
fn pins_the_index_and_expects_the_manifest_of_the_device() {
    let images = known(
        "nginx:1",
        learn(None, Ok(index("a", &["linux/arm64", "linux/amd64"])), at(1)),
    );
    let rendered = render(&input("nginx:1"), &amd64(), &images, at(2));
    let service = only(&rendered);
    assert_eq!(service.image_name, format!("nginx@{}", digest("a")));
    assert_eq!(service.config.image.as_ref(), Some(&service.image_name));
    let pin = service.pin.as_ref().unwrap();
    assert_eq!(pin.reference.to_string(), "nginx:1");
    assert_eq!(pin.repository, "library/nginx");
    let expected = pin.expected.as_ref().unwrap();
    assert_eq!(expected.manifest_digest.0, digest("a linux/amd64"));
    assert_eq!(pin.resolved_at, Some(at(1)));
    assert!(rendered.unsupported.is_empty() && rendered.unresolved.is_empty());
}

#[test]
fn a_rendered_document_is_one_that_devices_accept() {
    let images = known(
        "nginx:1",
        learn(None, Ok(index("a", &["linux/amd64"])), at(1)),
    );
    let rendered = render(&input("nginx:1"), &amd64(), &images, at(2));
    let state = document(DeviceId::from_random([1; 16]), 3, rendered.apps);
    let bytes = serde_json::to_vec(&state).unwrap();
    assert_eq!(TargetState::parse(&bytes), Ok(state));
}

#[test]
fn a_single_manifest_is_pinned_by_its_own_digest() {
    let mut image = index("a", &["linux/amd64"]);
    let manifest = image.platforms[0].manifest_digest;
    image.top = TopDigest::Manifest(manifest);
    let images = known("nginx:1", learn(None, Ok(image), at(1)));
    let rendered = render(&input("nginx:1"), &amd64(), &images, at(2));
    let pin = only(&rendered).pin.as_ref().unwrap();
    assert_eq!(pin.index_digest, None);
    assert_eq!(only(&rendered).image_name, format!("nginx@{}", manifest.0));
}

#[test]
fn an_image_without_the_platform_is_unsupported_and_names_the_field() {
    let images = known(
        "nginx:1",
        learn(None, Ok(index("a", &["linux/arm64"])), at(1)),
    );
    let rendered = render(&input("nginx:1"), &amd64(), &images, at(2));
    let [fault] = rendered.unsupported.as_slice() else {
        panic!("one fault expected")
    };
    assert_eq!(fault.pointer, "/apps/1/services/0/imageName");
    assert!(fault.detail.contains("linux/amd64, only for linux/arm64"));
    assert_eq!(only(&rendered).pin.as_ref().unwrap().expected, None);
}

#[test]
fn an_outage_keeps_the_pin_and_marks_it_stale() {
    let fresh = learn(None, Ok(index("a", &["linux/amd64"])), at(1));
    let stale = learn(
        Some(&fresh),
        Err(Failure::new("unreachable", "away")),
        at(2),
    );
    let before = render(&input("nginx:1"), &amd64(), &known("nginx:1", fresh), at(1));
    let after = render(&input("nginx:1"), &amd64(), &known("nginx:1", stale), at(2));
    let pin = only(&after).pin.as_ref().unwrap();
    assert_eq!(pin.resolution.status, ResolutionStatus::Stale);
    assert_eq!(pin.resolution.stale_since, Some(at(2)));
    assert!(same(&before.apps, &after.apps));
}

#[test]
fn only_what_was_never_resolved_stays_as_written() {
    let failed = learn(None, Err(Failure::new("not_found", "not found")), at(1));
    let rendered = render(
        &input("nginx:1"),
        &amd64(),
        &known("nginx:1", failed),
        at(1),
    );
    let service = only(&rendered);
    assert_eq!(service.image_name, "nginx:1");
    let pin = service.pin.as_ref().unwrap();
    assert_eq!(pin.resolution.status, ResolutionStatus::Failed);
    assert_eq!(pin.resolution.error.as_deref(), Some("not found"));
    assert_eq!(rendered.unresolved.len(), 1);
}

#[test]
fn the_time_of_resolution_is_no_difference_but_a_digest_is() {
    let at_time = |content: &str, ms| {
        let images = known(
            "nginx:1",
            learn(None, Ok(index(content, &["linux/amd64"])), at(ms)),
        );
        render(&input("nginx:1"), &amd64(), &images, at(ms)).apps
    };
    assert!(same(&at_time("a", 1), &at_time("a", 2)));
    assert!(!same(&at_time("a", 1), &at_time("b", 1)));
}

#[test]
fn what_is_pinned_stays_pinned_where_nobody_asks_for_more() {
    let of = |content: &str, platforms: &[&str]| {
        known("nginx:1", learn(None, Ok(index(content, platforms)), at(1)))
    };
    let old = render(
        &input("nginx:1"),
        &amd64(),
        &of("a", &["linux/amd64"]),
        at(1),
    )
    .apps;
    let again = |image: &str, images: &KnownImages| {
        render_keeping(&input(image), &old, &amd64(), images, at(2))
    };
    let moved = of("b", &["linux/amd64"]);
    assert!(same(&again("nginx:1", &moved).apps, &old));
    // What the tag means by now may be of no use here, or not be known: that is no fault.
    for images in [of("b", &["linux/arm64"]), KnownImages::new()] {
        let kept = again("nginx:1", &images);
        assert!(same(&kept.apps, &old));
        assert!(kept.unsupported.is_empty() && kept.unresolved.is_empty());
    }
    // Another reference was never pinned here, nor was this one for another platform.
    assert_eq!(again("nginx:2", &moved).unresolved.len(), 1);
    let arm: Platform = "linux/arm64".parse().unwrap();
    let images = of("b", &["linux/arm64"]);
    let elsewhere = render_keeping(&input("nginx:1"), &old, &arm, &images, at(2));
    assert!(elsewhere.unsupported.is_empty() && !same(&elsewhere.apps, &old));
}

#[test]
fn each_reference_is_asked_for_once() {
    let body = r#"{"apps":{"1":{"appId":1,"appName":"a","services":[
        {"serviceId":1,"serviceName":"a","imageName":"redis"},
        {"serviceId":2,"serviceName":"b","imageName":"nginx"},
        {"serviceId":3,"serviceName":"c","config":{"image":"redis"}}]}}}"#;
    let input = TargetInput::parse(body.as_bytes()).unwrap();
    let found: Vec<String> = references(&input).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 2);
}

#[test]
fn a_generation_rises_above_the_store_and_the_device() {
    assert_eq!(next_generation(0, 0), 1);
    assert_eq!(next_generation(4, 2), 5);
    assert_eq!(next_generation(4, 9), 10);
}
