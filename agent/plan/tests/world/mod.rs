//! Builders that both planner tests share: specs named by a letter, targets made of them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use holdfast_proto::id::{AppId, DeviceId, ServiceKey};
use holdfast_proto::image::{
    ConfigDigest, Digest, Expected, ManifestDigest, Pin, Reference, Resolution, ResolutionStatus,
};
use holdfast_proto::spec::ServiceSpec;
use holdfast_proto::target::{App, ServiceTarget, TargetState};
use holdfast_proto::time::Timestamp;

/// The one device of these tests.
pub(crate) fn device() -> DeviceId {
    DeviceId::from_random([7; 16])
}

fn app() -> AppId {
    "app".parse().expect("an id")
}

/// The key of a service of the one app.
pub(crate) fn key(name: &str) -> ServiceKey {
    ServiceKey {
        app: app(),
        service: name.parse().expect("a name"),
    }
}

/// A service made from spec `A`, `B`, …: each letter is another image. `A+` is image A with another
/// container spec, `A'` is A behind another index; `?` was never resolved; `arm` is for arm64 only.
pub(crate) fn service(name: &str, spec: &str) -> ServiceTarget {
    let letter = spec.trim_end_matches(['+', '\'']);
    let reference: Reference = format!("reg.local/img:{}", letter.to_lowercase().replace('?', "q"))
        .parse()
        .expect("a reference");
    let manifest = ManifestDigest(Digest::of(
        format!("manifest {}", spec.trim_end_matches('+')).as_bytes(),
    ));
    let resolved = spec != "?";
    let pin = Pin {
        registry: reference.repository().registry().to_owned(),
        repository: reference.repository().path().to_owned(),
        index_digest: None,
        expected: resolved.then(|| Expected {
            manifest_digest: manifest,
            config_digest: ConfigDigest(Digest::of(format!("config {letter}").as_bytes())),
            size_bytes: 1,
        }),
        platform: resolved.then(|| {
            (if spec == "arm" {
                "linux/arm64"
            } else {
                "linux/amd64"
            })
            .parse()
            .expect("a platform")
        }),
        resolved_at: None,
        resolution: Resolution {
            status: if resolved {
                ResolutionStatus::Resolved
            } else {
                ResolutionStatus::Failed
            },
            at: Timestamp::from_millis(0),
            error: (!resolved).then(|| "registry away".to_owned()),
            stale_since: None,
        },
        reference,
    };
    let image_name = match pin.pull_digest() {
        Some(digest) => pin.reference.pinned(digest),
        None => pin.reference.to_string(),
    };
    ServiceTarget {
        service_id: "1".parse().expect("an id"),
        service_name: name.parse().expect("a name"),
        image_name,
        config: ServiceSpec {
            read_only: spec.ends_with('+'),
            ..ServiceSpec::default()
        },
        pin: Some(pin),
    }
}

/// A target of services by name and spec letter.
pub(crate) fn target(generation: u64, services: &BTreeMap<String, String>) -> TargetState {
    let services = services
        .iter()
        .map(|(name, spec)| service(name, spec))
        .collect();
    let app = App {
        app_id: self::app(),
        app_name: "App".to_owned(),
        services,
    };
    TargetState {
        uuid: device(),
        generation,
        apps: BTreeMap::from([(self::app(), app)]),
    }
}
