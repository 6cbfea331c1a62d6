//! Owns the labels that tell which container belongs to what; everything else is observed.

use std::collections::HashMap;

use holdfast_plan::NetworkKey;
use holdfast_proto::hash::SpecHash;
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::image::{ConfigDigest, Digest};
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::Identity;

use super::{NewContainer, NewSandbox};

/// `true` on every container of Holdfast.
pub const MANAGED: &str = "io.holdfast.managed";
/// The device's id.
pub const DEVICE: &str = "io.holdfast.device";
/// The app's id.
pub const APP: &str = "io.holdfast.app";
/// The service's name.
pub const SERVICE: &str = "io.holdfast.service";
/// The target generation that made the container.
pub const GENERATION: &str = "io.holdfast.generation";
/// The hash of the spec it was made from.
pub const SPEC_HASH: &str = "io.holdfast.spec-hash";
/// The configuration digest of its image.
pub const CONFIG_DIGEST: &str = "io.holdfast.config-digest";
/// Its image, pinned by digest.
pub const IMAGE: &str = "io.holdfast.image";
/// The restart policy it gets once it has proved itself.
pub const RESTART: &str = "io.holdfast.restart";
/// What a container is for: absent on services' containers, [`SANDBOX_ROLE`] on sandboxes.
pub const ROLE: &str = "io.holdfast.role";
/// The role of a container that holds a service's network.
pub const SANDBOX_ROLE: &str = "sandbox";
/// On a sandbox: the hash of what it was made from.
pub const SANDBOX_HASH: &str = "io.holdfast.sandbox-hash";
/// On a network: its name in its app.
pub const NETWORK: &str = "io.holdfast.network";

/// What a container of ours says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnLabels {
    /// The service.
    pub key: ServiceKey,
    /// The generation that made it.
    pub generation: u64,
    /// What it was made from.
    pub identity: Identity,
    /// The pinned image it was made from.
    pub image: String,
    /// The restart policy it gets.
    pub wanted_restart: RestartPolicy,
    /// On a sandbox: the hash of what it was made from.
    pub sandbox_hash: Option<String>,
}

/// The labels of a container to make.
pub fn write(new: &NewContainer<'_>, identity: &Identity) -> HashMap<String, String> {
    let restart = new.service.config.restart_policy();
    [
        (MANAGED, "true".to_owned()),
        (DEVICE, new.device.to_string()),
        (APP, new.key.app.to_string()),
        (SERVICE, new.key.service.to_string()),
        (GENERATION, new.generation.to_string()),
        (SPEC_HASH, identity.spec_hash.to_string()),
        (CONFIG_DIGEST, identity.config_digest.to_string()),
        (IMAGE, new.service.image_name.clone()),
        (RESTART, restart.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The labels of a sandbox to make.
pub(crate) fn write_sandbox(new: &NewSandbox<'_>) -> HashMap<String, String> {
    [
        (MANAGED, "true".to_owned()),
        (DEVICE, new.device.to_string()),
        (APP, new.key.app.to_string()),
        (SERVICE, new.key.service.to_string()),
        (GENERATION, new.generation.to_string()),
        (ROLE, SANDBOX_ROLE.to_owned()),
        (SANDBOX_HASH, new.spec.hash()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The labels of an app's network to make.
pub(crate) fn write_network(device: &DeviceId, key: &NetworkKey) -> HashMap<String, String> {
    [
        (MANAGED, "true".to_owned()),
        (DEVICE, device.to_string()),
        (APP, key.app.to_string()),
        (NETWORK, key.network.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Reads the labels of a container with our device label; none if its service cannot be told.
///
/// A spec hash or digest that this agent cannot read (a newer agent wrote it) matches no target, so
/// that the container is replaced in the ordinary way and never runs twice.
pub(crate) fn read(labels: &HashMap<String, String>) -> Option<OwnLabels> {
    let get = |name: &str| labels.get(name).map(String::as_str);
    let unknown = Digest::of(b"a label that cannot be read");
    Some(OwnLabels {
        key: ServiceKey {
            app: get(APP)?.parse().ok()?,
            service: get(SERVICE)?.parse().ok()?,
        },
        generation: get(GENERATION)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        identity: Identity {
            config_digest: ConfigDigest(
                get(CONFIG_DIGEST)
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(unknown),
            ),
            spec_hash: get(SPEC_HASH)
                .and_then(|text| text.parse().ok())
                .or_else(|| format!("v1:{}", unknown.hex()).parse::<SpecHash>().ok())?,
        },
        image: get(IMAGE).unwrap_or_default().to_owned(),
        wanted_restart: get(RESTART)
            .and_then(|text| text.parse().ok())
            .unwrap_or_default(),
        sandbox_hash: (get(ROLE) == Some(SANDBOX_ROLE))
            .then(|| get(SANDBOX_HASH).unwrap_or_default().to_owned()),
    })
}

/// Whether a container carries this device's label.
pub(crate) fn belongs_to(labels: &HashMap<String, String>, device: &DeviceId) -> bool {
    labels.get(DEVICE) == Some(&device.to_string())
}
