//! Owns the target state: what people send, and the resolved document that a device gets.
//!
//! Refuses a document whole: one wrong field anywhere and nothing of it is used.

mod check;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::hash::SpecHash;
use crate::id::{AppId, DeviceId, ServiceId, ServiceKey, ServiceName};
use crate::image::{ConfigDigest, Pin, Reference};
use crate::problem::{FieldError, Pointer, parse_json};
use crate::spec::ServiceSpec;

/// What a person sends to set a device's target: tags allowed, unknown fields refused.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetInput {
    /// The apps by their id.
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::HashMap<String, AppInput>))]
    pub apps: BTreeMap<AppId, AppInput>,
}

/// One app as a person sends it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppInput {
    /// The same id as the key it stands under.
    pub app_id: AppId,
    /// What people call it.
    pub app_name: String,
    /// Its services.
    pub services: Vec<ServiceInput>,
}

/// One service as a person sends it; `imageName` or `config.image` names the image.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceInput {
    /// Its id, unique in the app.
    pub service_id: ServiceId,
    /// Its name, unique in the app; other services reach it by this name.
    pub service_name: ServiceName,
    /// The image's reference.
    #[serde(default)]
    pub image_name: Option<String>,
    /// How its container is made.
    #[serde(default)]
    pub config: ServiceSpec,
}

impl TargetInput {
    /// Reads and checks a whole document; errors name every wrong field that could be found.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<FieldError>> {
        let input: Self = parse_json(bytes)?;
        let errors = check::input(&input);
        if errors.is_empty() {
            Ok(input)
        } else {
            Err(errors)
        }
    }
}

impl ServiceInput {
    /// The image's reference. [`TargetInput::parse`] has checked that there is exactly one.
    pub fn reference(&self) -> Result<Reference, String> {
        match (self.image_name.as_deref(), self.config.image.as_deref()) {
            (Some(one), Some(two)) if one != two => Err(format!(
                "imageName is `{one}` but config.image is `{two}`: keep one"
            )),
            (Some(text), _) | (None, Some(text)) => text
                .parse()
                .map_err(|error: crate::image::ReferenceError| error.to_string()),
            (None, None) => Err("an image is missing: give imageName or config.image".to_owned()),
        }
    }
}

/// What should run on one device, resolved to digests: the document that a device polls.
///
/// Devices ignore fields they do not know around services, but a service's `config` must be
/// understood whole, so that an older agent never drops a part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetState {
    /// The device this is for.
    pub uuid: DeviceId,
    /// Counts the device's targets; only grows. 0 means that none was ever set.
    pub generation: u64,
    /// The apps by their id.
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::HashMap<String, App>))]
    pub apps: BTreeMap<AppId, App>,
}

/// A named set of services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct App {
    /// The same id as the key it stands under.
    pub app_id: AppId,
    /// What people call it.
    pub app_name: String,
    /// Its services.
    pub services: Vec<ServiceTarget>,
}

/// One service that should run: its image pinned, its container described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceTarget {
    /// Its id, unique in the app.
    pub service_id: ServiceId,
    /// Its name, unique in the app.
    pub service_name: ServiceName,
    /// The image pinned by digest, or the reference as written while it was never resolved.
    pub image_name: String,
    /// How its container is made; `config.image` repeats `imageName`.
    pub config: ServiceSpec,
    /// What the reference resolved to. Absent only in documents older than pins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
}

/// What "the same spec" means on a device: the same image content and the same container.
///
/// Both the index and the platform's manifest may change while this stays (another platform was
/// pushed, or the same image was packed again): nothing restarts then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The image's configuration.
    pub config_digest: ConfigDigest,
    /// The hash of the service spec.
    pub spec_hash: SpecHash,
}

impl Identity {
    /// Whether this is `service`, by whichever version of the hash it was computed.
    pub fn matches(&self, service: &ServiceTarget) -> bool {
        service
            .pin
            .as_ref()
            .and_then(|pin| pin.expected.as_ref())
            .is_some_and(|expected| {
                expected.config_digest == self.config_digest
                    && self.spec_hash.matches(&service.config)
            })
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let spec = self.spec_hash.to_string();
        write!(
            f,
            "image {} spec {}",
            self.config_digest.0.short(),
            &spec[..15.min(spec.len())]
        )
    }
}

impl ServiceTarget {
    /// The image as an engine pulls it, `name@sha256:…`; none while the reference is unresolved.
    pub fn pinned_image(&self) -> Option<String> {
        let pin = self.pin.as_ref()?;
        pin.pull_digest().map(|digest| pin.reference.pinned(digest))
    }

    /// What makes this service's container the same as another; none while unresolved.
    pub fn identity(&self) -> Option<Identity> {
        let expected = self.pin.as_ref()?.expected.as_ref()?;
        Some(Identity {
            config_digest: expected.config_digest,
            spec_hash: SpecHash::of(&self.config),
        })
    }
}

impl TargetState {
    /// The target of a device that was never given one.
    pub fn empty(uuid: DeviceId) -> Self {
        Self {
            uuid,
            generation: 0,
            apps: BTreeMap::new(),
        }
    }

    /// Reads and checks a whole document as a device must: accepted whole or refused whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<FieldError>> {
        let target: Self = parse_json(bytes)?;
        let mut errors = check::target(&target);
        for (app, position, service) in target.positions() {
            let at = Pointer::default()
                .member("apps")
                .member(app)
                .member("services")
                .member(position);
            if service
                .pinned_image()
                .is_some_and(|pinned| pinned != service.image_name)
            {
                errors.push(
                    at.member("imageName")
                        .error("does not name what its pin names"),
                );
            }
        }
        if errors.is_empty() {
            Ok(target)
        } else {
            Err(errors)
        }
    }

    fn positions(&self) -> impl Iterator<Item = (&AppId, usize, &ServiceTarget)> {
        self.apps.iter().flat_map(|(app, body)| {
            body.services
                .iter()
                .enumerate()
                .map(move |(position, service)| (app, position, service))
        })
    }

    /// Every service with its key, apps in the order of their ids, services as written.
    pub fn services(&self) -> impl Iterator<Item = (ServiceKey, &ServiceTarget)> {
        self.positions().map(|(app, _, service)| {
            (
                ServiceKey {
                    app: app.clone(),
                    service: service.service_name.clone(),
                },
                service,
            )
        })
    }
}

#[cfg(test)]
#[path = "target/tests.rs"]
mod tests;
