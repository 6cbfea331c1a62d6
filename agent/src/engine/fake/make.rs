//! Owns the model's reading of a spec: what of it the model knows, and the labels that docker.rs writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_plan::{Amounts, NetworkKey};
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::image::{Digest, Platform};
use holdfast_proto::spec::{HealthTest, NetworkMode, Port};

use super::world::{Attachment, BRIDGE, Behaviour, Container, Image, World};
use crate::engine::convert::Unsupported;
use crate::engine::{NewContainer, NewNetwork, NewSandbox, labels};

/// The image of sandboxes.
pub(super) const SANDBOX_IMAGE: &str = "holdfast/sandbox:1";

/// A service's container as it is made.
pub(super) fn service(new: &NewContainer<'_>) -> Result<Container, Unsupported> {
    let spec = &new.service.config;
    let identity = new.service.identity().ok_or_else(|| Unsupported {
        field: "image".to_owned(),
        why: "it was never resolved to a digest".to_owned(),
    })?;
    let mut all = HashMap::new();
    all.extend(spec.labels.clone());
    all.extend(labels::write(new, &identity));
    let mut container = Container::new(new.name, all);
    container.amounts = Amounts::of(spec);
    if let Some(grace) = spec.stop_grace_period {
        container.grace_ms = grace.as_millis().div_ceil(1_000) * 1_000;
    }
    container.check_is_off = spec
        .healthcheck
        .as_ref()
        .is_some_and(|check| check.disable || check.test == Some(HealthTest::None));
    match new.network {
        NewNetwork::Shared(sandbox) => container.shares = Some(sandbox.to_owned()),
        NewNetwork::Own(networks) => match spec.network_mode {
            Some(NetworkMode::Host | NetworkMode::None) => {}
            Some(NetworkMode::Bridge | NetworkMode::Service(_)) | None => {
                container.ports = wanted(&spec.ports);
                container.attachments = first(networks);
            }
        },
    }
    Ok(container)
}

/// A sandbox as it is made.
pub(super) fn sandbox(new: &NewSandbox<'_>) -> Container {
    let mut all = owned(new.device);
    let own = service_labels(new.key);
    all.extend(own);
    all.extend([
        (labels::GENERATION.to_owned(), new.generation.to_string()),
        (labels::ROLE.to_owned(), labels::SANDBOX_ROLE.to_owned()),
        (labels::SANDBOX_HASH.to_owned(), new.spec.hash()),
    ]);
    let mut container = Container::new(new.name, all);
    container.ports = wanted(&new.spec.ports);
    container.attachments = first(new.networks);
    container
}

/// The labels of an app's network.
pub(super) fn network_labels(device: &DeviceId, key: &NetworkKey) -> HashMap<String, String> {
    let mut all = owned(device);
    all.insert(labels::APP.to_owned(), key.app.to_string());
    all.insert(labels::NETWORK.to_owned(), key.network.to_string());
    all
}

fn owned(device: &DeviceId) -> HashMap<String, String> {
    [
        (labels::MANAGED.to_owned(), "true".to_owned()),
        (labels::DEVICE.to_owned(), device.to_string()),
    ]
    .into()
}

fn service_labels(key: &ServiceKey) -> [(String, String); 2] {
    [
        (labels::APP.to_owned(), key.app.to_string()),
        (labels::SERVICE.to_owned(), key.service.to_string()),
    ]
}

fn wanted(ports: &[Port]) -> Vec<(u16, holdfast_proto::spec::Protocol, Option<u16>)> {
    let port = |port: &Port| (port.target, port.protocol, port.published);
    ports.iter().map(port).collect()
}

/// The first network, or the engine's own.
fn first(networks: &[(String, Vec<String>)]) -> BTreeMap<String, Attachment> {
    let (name, aliases) = networks
        .first()
        .map_or((BRIDGE.to_owned(), BTreeSet::new()), |(name, aliases)| {
            (name.clone(), aliases.iter().cloned().collect())
        });
    let attachment = Attachment {
        network_id: String::new(),
        aliases,
    };
    BTreeMap::from([(name, attachment)])
}

impl World {
    pub(super) fn load_sandbox_image(&mut self) {
        let image = Image {
            platform: Platform::new("linux", "amd64", None),
            behaviour: Behaviour::default(),
            tags: BTreeSet::from([SANDBOX_IMAGE.to_owned()]),
            digests: BTreeSet::new(),
        };
        let id = Digest::of(SANDBOX_IMAGE.as_bytes()).to_string();
        self.images.insert(id, image);
    }
}
