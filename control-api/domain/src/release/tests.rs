//! Facts about releases.

use holdfast_proto::image::ConfigDigest;
use proptest::prelude::*;

use super::*;
use crate::resolution::{Failure, learn};

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn image(content: &str, platforms: &[&str]) -> ResolvedImage {
    let reference: Reference = "nginx".parse().unwrap();
    let platforms = platforms.iter().map(|platform| PlatformImage {
        platform: platform.parse().unwrap(),
        manifest_digest: ManifestDigest(digest(&format!("{content} {platform}"))),
        config_digest: ConfigDigest(digest(&format!("config {content} {platform}"))),
        size_bytes: 1,
    });
    ResolvedImage {
        repository: reference.repository().clone(),
        top: TopDigest::Index(IndexDigest(digest(content))),
        media_type: "application/vnd.oci.image.index.v1+json".into(),
        platforms: platforms.collect(),
    }
}

fn input(references: &[&str]) -> TargetInput {
    let services: Vec<String> = references
        .iter()
        .enumerate()
        .map(|(n, reference)| {
            format!(r#"{{"serviceId":{n},"serviceName":"s{n}","imageName":"{reference}"}}"#)
        })
        .collect();
    let body = format!(
        r#"{{"apps":{{"1":{{"appId":1,"appName":"a","services":[{}]}}}}}}"#,
        services.join(",")
    );
    TargetInput::parse(body.as_bytes()).unwrap()
}

fn known(reference: &str, image: ResolvedImage, ms: i64) -> KnownImages {
    let key = Key::of(&reference.parse().unwrap());
    [(key, learn(None, Ok(image), at(ms)))].into()
}

fn fleet(platforms: &[&str]) -> BTreeSet<Platform> {
    platforms.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn spellings_of_one_image_are_frozen_once_and_read_back() {
    let input = input(&["nginx:1", "docker.io/library/nginx:1"]);
    let known = known("nginx:1", image("a", &["linux/amd64"]), 1);
    let pins = freeze(&input, &fleet(&["linux/amd64"]), &known, at(2)).unwrap();
    assert_eq!(pins.0.len(), 1);
    let text = serde_json::to_string(&pins).unwrap();
    assert_eq!(serde_json::from_str::<Pins>(&text).unwrap(), pins);
}

#[test]
fn a_platform_without_its_image_is_named_with_the_image() {
    let input = input(&["nginx:1"]);
    let known = known("nginx:1", image("a", &["linux/amd64"]), 1);
    let fleet = fleet(&["linux/amd64", "linux/arm64"]);
    let Err(Unfit::Unsupported(errors)) = freeze(&input, &fleet, &known, at(2)) else {
        panic!("it was taken");
    };
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].pointer, "/apps/1/services/0/imageName");
    let detail = &errors[0].detail;
    assert!(
        detail.contains("nginx:1") && detail.contains("linux/arm64"),
        "{detail}"
    );
}

#[test]
fn what_was_never_resolved_is_refused_even_for_nobody() {
    let input = input(&["nginx:1"]);
    let Err(Unfit::Unresolved(errors)) =
        freeze(&input, &BTreeSet::new(), &KnownImages::new(), at(1))
    else {
        panic!("it was taken");
    };
    assert_eq!(errors[0].pointer, "/apps/1/services/0/imageName");
    let image = image("a", &["linux/riscv64"]);
    let known = known("nginx:1", image, 1);
    assert!(freeze(&input, &BTreeSet::new(), &known, at(1)).is_ok());
}

#[test]
fn an_outage_does_not_stop_a_release_of_what_is_known() {
    let input = input(&["nginx:1"]);
    let mut known = known("nginx:1", image("a", &["linux/amd64"]), 1);
    for before in known.values_mut() {
        *before = learn(
            Some(before),
            Err(Failure::new("unreachable", "away")),
            at(5),
        );
    }
    let pins = freeze(&input, &fleet(&["linux/amd64"]), &known, at(6)).unwrap();
    assert_eq!(pins.0[0].resolved_at, Some(at(1)));
}

#[test]
fn the_same_content_is_the_same_whenever_it_was_found_out() {
    let input = input(&["nginx:1"]);
    let freeze = |content: &str, ms: i64| {
        let known = known("nginx:1", image(content, &["linux/amd64"]), ms);
        freeze(&input, &BTreeSet::new(), &known, at(ms)).unwrap()
    };
    assert!(freeze("a", 1).same(&freeze("a", 2)));
    assert!(!freeze("a", 1).same(&freeze("b", 1)));
}

#[test]
fn an_outline_shows_images_by_what_was_named() {
    let input = input(&["nginx:1"]);
    let known = known("nginx:1", image("a", &["linux/riscv64"]), 1);
    let pins = freeze(&input, &BTreeSet::new(), &known, at(1)).unwrap();
    let apps = pins.outline(&input, at(1));
    let service = &apps.values().next().unwrap().services[0];
    assert_eq!(service.image_name, format!("nginx@{}", digest("a")));
    assert_eq!(service.config.image.as_ref(), Some(&service.image_name));
}

proptest! {
    /// Whoever fits gets all of the release, pinned to the frozen digests, the same whenever it is rendered.
    #[test]
    fn every_platform_of_the_fleet_gets_all_of_it(
        offered in proptest::collection::btree_set("(linux/amd64|linux/arm64|linux/arm/v7|linux/riscv64)", 0..4),
        present in proptest::collection::btree_set("(linux/amd64|linux/arm64|linux/arm/v7|linux/riscv64)", 0..4),
        later in 0_i64..1_000_000,
    ) {
        let input = input(&["nginx:1"]);
        let offered: Vec<&str> = offered.iter().map(String::as_str).collect();
        let present: Vec<&str> = present.iter().map(String::as_str).collect();
        let fleet = fleet(&present);
        let known = known("nginx:1", image("a", &offered), 1);
        match freeze(&input, &fleet, &known, at(2)) {
            Ok(pins) => {
                prop_assert!(pins.fits(&input, &fleet, at(later)).is_ok());
                for platform in &fleet {
                    let rendered = pins.render(&input, platform, at(2));
                    prop_assert!(rendered.unsupported.is_empty() && rendered.unresolved.is_empty());
                    let service = &rendered.apps.values().next().unwrap().services[0];
                    prop_assert_eq!(&service.image_name, &format!("nginx@{}", digest("a")));
                    let again = pins.render(&input, platform, at(2));
                    prop_assert_eq!(&again, &rendered);
                    prop_assert!(crate::target::same(&again.apps, &rendered.apps));
                }
            }
            Err(Unfit::Unsupported(errors)) => {
                prop_assert!(!errors.is_empty());
                let lacking = fleet.iter().filter(|platform| {
                    image("a", &offered).for_platform(platform).is_none()
                });
                prop_assert_eq!(lacking.count(), errors.len());
            }
            Err(Unfit::Unresolved(_)) => prop_assert!(false, "it is resolved"),
        }
    }
}
