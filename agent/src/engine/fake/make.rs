//! Owns the model's reading of a spec: what of it the model knows, and the labels that docker.rs writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_plan::Amounts;
use holdfast_proto::image::{Digest, Platform};
use holdfast_proto::spec::{HealthTest, NetworkMode, Port};

use super::world::{Attachment, BRIDGE, Behaviour, Container, Image, World};
use crate::engine::convert::Unsupported;
use crate::engine::{NewContainer, NewNetwork, NewSandbox, labels, sandbox};

/// As `convert.rs` limits a sandbox.
const SANDBOX_PIDS: u64 = 64;

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
            Some(NetworkMode::Host) => container.attachments = alone("host"),
            Some(NetworkMode::None) => container.attachments = alone("none"),
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
    let mut container = Container::new(new.name, labels::write_sandbox(new));
    container.ports = wanted(&new.spec.ports);
    container.attachments = first(new.networks);
    container.amounts.pids = SANDBOX_PIDS;
    container.grace_ms = 0;
    container
}

fn wanted(ports: &[Port]) -> Vec<(u16, holdfast_proto::spec::Protocol, Option<u16>)> {
    let port = |port: &Port| (port.target, port.protocol, port.published);
    ports.iter().map(port).collect()
}

/// The first network, or the engine's own.
fn first(networks: &[(String, Vec<String>)]) -> BTreeMap<String, Attachment> {
    let Some((name, names)) = networks.first() else {
        return alone(BRIDGE);
    };
    BTreeMap::from([(name.clone(), Attachment::new(names))])
}

/// One of the engine's own networks.
pub(super) fn alone(network: &str) -> BTreeMap<String, Attachment> {
    BTreeMap::from([(network.to_owned(), Attachment::default())])
}

impl World {
    pub(super) fn load_sandbox_image(&mut self) {
        let image = Image {
            platform: Platform::new("linux", "amd64", None),
            // Its signal to stop is SIGKILL.
            behaviour: Behaviour {
                ignores_sigterm: true,
                ..Behaviour::default()
            },
            tags: BTreeSet::from([sandbox::IMAGE.to_owned()]),
            digests: BTreeSet::new(),
        };
        let id = Digest::of(sandbox::IMAGE.as_bytes()).to_string();
        self.images.insert(id, image);
    }
}
