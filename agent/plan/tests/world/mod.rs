//! Builders that both planner tests share: specs named by a letter, targets made of them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use holdfast_plan::{
    Joined, Network, NetworkKey, Published, StoredImage, attachments, canonical, keep_tag,
};
use holdfast_proto::id::{AppId, DeviceId, ServiceKey, ServiceName};
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
///
/// Words after the letter: `port=80`, `sandbox=off`, `restart=no`, `net=service:db`, `join=back`,
/// `needs=db:healthy`, `strategy=hand-over`, `agent=yes`, `soak=5s`, `probe=80`, `memory=64m`. Each image takes 10 MB
/// to fetch.
pub(crate) fn service(name: &str, spec: &str) -> ServiceTarget {
    let whole = spec;
    let spec = whole.split(' ').next().expect("a letter");
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
            size_bytes: 10_000_000,
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
        pull_login: false,
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
        config: config(whole, spec.ends_with('+')),
        pin: Some(pin),
    }
}

fn config(spec: &str, read_only: bool) -> ServiceSpec {
    let mut json = serde_json::json!({ "read_only": read_only });
    let mut options = serde_json::Map::new();
    for word in spec.split(' ').skip(1) {
        let (name, value) = word.split_once('=').expect("name=value");
        let text = serde_json::Value::from(value);
        match name {
            "port" => json["ports"] = serde_json::json!([format!("{value}:8080")]),
            "restart" => json["restart"] = text,
            "net" => json["network_mode"] = text,
            "join" => json["networks"] = serde_json::json!([value]),
            "memory" => json["mem_limit"] = text,
            "needs" => {
                let (on, condition) = value.split_once(':').unwrap_or((value, "started"));
                let condition = format!("service_{condition}");
                json["depends_on"] = serde_json::json!({ on: { "condition": condition } });
            }
            "probe" => {
                let port: u16 = value.parse().expect("a port");
                let probe = serde_json::json!({ "tcp": { "port": port } });
                options.insert("probe".to_owned(), probe);
            }
            "agent" => {
                options.insert("agent".to_owned(), true.into());
            }
            "sandbox" => {
                options.insert("sandbox".to_owned(), (value != "off").into());
            }
            other => {
                options.insert(other.to_owned(), text);
            }
        }
    }
    if !options.is_empty() {
        json["x-holdfast"] = options.into();
    }
    serde_json::from_value(json).expect("a spec")
}

/// The tag that keeps the image of `spec` for a service.
pub(crate) fn keep(name: &str, spec: &str) -> String {
    let identity = service(name, spec).identity().expect("resolved");
    keep_tag(&device(), &key(name), &identity.config_digest)
}

/// The image of `spec` in the engine's store, with these tags.
pub(crate) fn stored(spec: &str, tags: impl IntoIterator<Item = String>) -> StoredImage {
    StoredImage {
        tags: tags.into_iter().collect(),
        digests: [canonical(&service("any", spec).image_name)].into(),
        size_bytes: 20_000_000,
    }
}

/// A network of the one app.
pub(crate) fn network(name: &str) -> Network {
    Network {
        id: format!("id-{name}"),
        name: format!("app_{name}-07070707"),
        key: NetworkKey {
            app: app(),
            network: name.parse().expect("a name"),
        },
    }
}

/// The connections of a container that was made from `service` and uses its own network.
pub(crate) fn joined(service: &ServiceTarget) -> BTreeMap<ServiceName, Joined> {
    attachments(&service.service_name, &service.config)
        .into_iter()
        .map(|(network, aliases)| {
            let joined = Joined {
                aliases: aliases.into_iter().collect(),
                stale: false,
            };
            (network, joined)
        })
        .collect()
}

/// The ports of `service` as an engine that forwards them shows them.
pub(crate) fn published(service: &ServiceTarget) -> BTreeSet<Published> {
    let ports = service.config.ports.iter();
    ports
        .map(|port| Published {
            target: port.target,
            protocol: port.protocol,
            host: port.published.unwrap_or(1),
        })
        .collect()
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
