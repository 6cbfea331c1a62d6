//! Owns how a target is rendered for one device, and when two targets are the same.
//!
//! Refuses an image without the device's platform: it would die there with an exec format error.

use std::collections::BTreeMap;

use holdfast_proto::id::{AppId, DeviceId, ServiceKey};
use holdfast_proto::image::{
    ConfigDigest, Expected, Pin, Platform, Reference, Resolution, ResolutionStatus,
};
use holdfast_proto::problem::{FieldError, Pointer};
use holdfast_proto::target::{App, ServiceInput, ServiceTarget, TargetInput, TargetState};
use holdfast_proto::time::Timestamp;

use crate::resolution::{Key, Known};

/// Stable name of the refusal of an image without the device's platform.
pub const UNSUPPORTED: &str = "unsupported_platform";

/// What is known of the images that a target names.
pub type KnownImages = BTreeMap<Key, Known>;

/// A target rendered for one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// The apps with every service pinned, as far as its image is known.
    pub apps: BTreeMap<AppId, App>,
    /// Services whose image has nothing for the device's platform.
    pub unsupported: Vec<FieldError>,
    /// Services whose image was never resolved.
    pub unresolved: Vec<FieldError>,
}

/// The references in a target, each once, in the order of their text.
pub fn references(input: &TargetInput) -> Vec<Reference> {
    let mut found: Vec<Reference> = input
        .apps
        .values()
        .flat_map(|app| &app.services)
        .filter_map(|service| service.reference().ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Pins every service of `input` for a device of this platform, as far as images are known.
pub fn render(
    input: &TargetInput,
    platform: &Platform,
    known: &KnownImages,
    now: Timestamp,
) -> Rendered {
    render_keeping(input, &BTreeMap::new(), platform, known, now)
}

/// As [`render`], but a service that is pinned in `before` by the same reference keeps its digests, whatever its tag
/// means by now.
pub fn render_keeping(
    input: &TargetInput,
    before: &BTreeMap<AppId, App>,
    platform: &Platform,
    known: &KnownImages,
    now: Timestamp,
) -> Rendered {
    let mut unsupported = Vec::new();
    let mut unresolved = Vec::new();
    let mut apps = BTreeMap::new();
    for (id, app) in &input.apps {
        let at = Pointer::default()
            .member("apps")
            .member(id)
            .member("services");
        let mut services = Vec::with_capacity(app.services.len());
        for (position, service) in app.services.iter().enumerate() {
            // `TargetInput::parse` has checked every reference; a service without one cannot come.
            let Ok(reference) = service.reference() else {
                continue;
            };
            let old = before.get(id).and_then(|old| {
                let old = old.services.iter();
                let mut named = old.filter(|old| old.service_name == service.service_name);
                named.find_map(|old| kept(old, &reference, platform))
            });
            if let Some(old) = old {
                services.push(target(service, old.clone()));
                continue;
            }
            let field = if service.image_name.is_some() {
                at.member(position).member("imageName")
            } else {
                at.member(position).member("config").member("image")
            };
            let pin = match pin(&reference, platform, known, now) {
                Pinned::Done(pin) => pin,
                Pinned::Unresolved(pin) => {
                    let why = pin.resolution.error.clone().unwrap_or_default();
                    unresolved.push(field.error(format!("{reference} has no digest yet: {why}")));
                    pin
                }
                Pinned::Unsupported(pin) => {
                    unsupported.push(field.error(pin.resolution.error.clone().unwrap_or_default()));
                    pin
                }
            };
            services.push(target(service, pin));
        }
        let app = App {
            app_id: app.app_id.clone(),
            app_name: app.app_name.clone(),
            services,
        };
        apps.insert(id.clone(), app);
    }
    Rendered {
        apps,
        unsupported,
        unresolved,
    }
}

fn target(service: &ServiceInput, pin: Pin) -> ServiceTarget {
    let image = match pin.pull_digest() {
        Some(digest) => pin.reference.pinned(digest),
        None => pin.reference.to_string(),
    };
    let mut config = service.config.clone();
    config.image = Some(image.clone());
    ServiceTarget {
        service_id: service.service_id.clone(),
        service_name: service.service_name.clone(),
        image_name: image,
        config,
        pin: Some(pin),
    }
}

enum Pinned {
    Done(Pin),
    Unresolved(Pin),
    Unsupported(Pin),
}

fn pin(reference: &Reference, platform: &Platform, known: &KnownImages, now: Timestamp) -> Pinned {
    let repository = reference.repository();
    let mut pin = Pin {
        reference: reference.clone(),
        registry: repository.registry().to_owned(),
        repository: repository.path().to_owned(),
        index_digest: None,
        expected: None,
        platform: None,
        resolved_at: None,
        resolution: Resolution {
            status: ResolutionStatus::Failed,
            at: now,
            error: Some("the registry was not asked yet".to_owned()),
            stale_since: None,
        },
        pull_login: false,
    };
    let Some(known) = known.get(&Key::of(reference)) else {
        return Pinned::Unresolved(pin);
    };
    pin.resolution = known.resolution();
    let Some(image) = &known.image else {
        return Pinned::Unresolved(pin);
    };
    let Some(chosen) = image.for_platform(platform) else {
        let offered: Vec<String> = image
            .platforms
            .iter()
            .map(|image| image.platform.to_string())
            .collect();
        pin.resolution.status = ResolutionStatus::Failed;
        pin.resolution.stale_since = None;
        pin.resolution.error = Some(format!(
            "{UNSUPPORTED}: {reference} has no image for {platform}, only for {}",
            if offered.is_empty() {
                "none".to_owned()
            } else {
                offered.join(", ")
            }
        ));
        return Pinned::Unsupported(pin);
    };
    pin.index_digest = image.top.index();
    pin.expected = Some(Expected {
        manifest_digest: chosen.manifest_digest,
        config_digest: chosen.config_digest,
        size_bytes: chosen.size_bytes,
    });
    pin.platform = Some(chosen.platform.clone());
    pin.resolved_at = known.resolved_at;
    Pinned::Done(pin)
}

/// Whether two targets ask for the same, whenever and however well they were resolved.
///
/// Setting the same target again must neither grow the generation nor wake the device.
pub fn same(left: &BTreeMap<AppId, App>, right: &BTreeMap<AppId, App>) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .all(|((left_id, left), (right_id, right))| {
                left_id == right_id
                    && left.app_name == right.app_name
                    && left.services.len() == right.services.len()
                    && left
                        .services
                        .iter()
                        .zip(&right.services)
                        .all(|(left, right)| same_service(left, right))
            })
}

fn same_service(left: &ServiceTarget, right: &ServiceTarget) -> bool {
    left.service_id == right.service_id
        && left.service_name == right.service_name
        && left.image_name == right.image_name
        && left.config == right.config
        && match (&left.pin, &right.pin) {
            (Some(left), Some(right)) => {
                left.same_content(right) && is_unsupported(left) == is_unsupported(right)
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
}

/// The pin of a service that has a digest of this reference for this platform.
fn kept<'a>(old: &'a ServiceTarget, reference: &Reference, platform: &Platform) -> Option<&'a Pin> {
    let pin = old.pin.as_ref()?;
    let is_for_it = pin.platform.as_ref().is_some_and(|old| platform.runs(old));
    (is_for_it && pin.pull_digest().is_some() && pin.reference == *reference).then_some(pin)
}

/// Takes over from `before` what was pinned there already: the same service with the same reference keeps
/// its digests, if they are for this platform.
pub fn keep_pins(
    apps: &mut BTreeMap<AppId, App>,
    before: &BTreeMap<AppId, App>,
    platform: &Platform,
) {
    for (id, app) in apps {
        let Some(old) = before.get(id) else {
            continue;
        };
        for service in &mut app.services {
            let kept = old.services.iter().find(|old| {
                old.service_name == service.service_name
                    && service
                        .pin
                        .as_ref()
                        .is_some_and(|pin| kept(old, &pin.reference, platform).is_some())
            });
            if let Some(kept) = kept {
                service.image_name.clone_from(&kept.image_name);
                service.config.image = Some(kept.image_name.clone());
                service.pin.clone_from(&kept.pin);
            }
        }
    }
}

/// What a version makes of a device's target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repinned {
    /// The content of each service that names it, for this device.
    pub services: BTreeMap<ServiceKey, ConfigDigest>,
    /// Whether any of them runs other content then.
    pub is_changed: bool,
    /// Whether the version has nothing for this device's platform.
    pub is_unsupported: bool,
}

/// Pins every service that names `key` to this version, and leaves all else as it is.
pub fn repin(
    apps: &mut BTreeMap<AppId, App>,
    key: &Key,
    version: &Known,
    platform: &Platform,
    now: Timestamp,
) -> Repinned {
    let mut found = Repinned::default();
    let known = KnownImages::from([(key.clone(), version.clone())]);
    for (id, app) in apps {
        for service in &mut app.services {
            let Some(old) = service
                .pin
                .as_ref()
                .filter(|old| Key::of(&old.reference) == *key)
            else {
                continue;
            };
            let mut new = match pin(&old.reference, platform, &known, now) {
                Pinned::Done(new) => new,
                Pinned::Unresolved(_) | Pinned::Unsupported(_) => {
                    found.is_unsupported = true;
                    continue;
                }
            };
            new.pull_login = old.pull_login;
            let content = |pin: &Pin| pin.expected.as_ref().map(|expected| expected.config_digest);
            found.is_changed |= content(old) != content(&new);
            if let (Some(digest), Some(expected)) = (new.pull_digest(), &new.expected) {
                let image = new.reference.pinned(digest);
                let service_key = ServiceKey {
                    app: id.clone(),
                    service: service.service_name.clone(),
                };
                found.services.insert(service_key, expected.config_digest);
                service.image_name.clone_from(&image);
                service.config.image = Some(image);
            }
            service.pin = Some(new);
        }
    }
    found
}

/// Pins the services that name an image as they were pinned in `old`; answers how many of them were.
pub fn repin_as(apps: &mut BTreeMap<AppId, App>, key: &Key, old: &BTreeMap<AppId, App>) -> usize {
    let mut many = 0;
    for (id, app) in apps {
        let before = old.get(id).map_or(&[][..], |app| &app.services);
        for service in &mut app.services {
            let is_meant = |pin: &Pin| Key::of(&pin.reference) == *key;
            let then = before
                .iter()
                .find(|then| then.service_name == service.service_name)
                .filter(|then| then.pin.as_ref().is_some_and(is_meant));
            if let Some(then) = then
                && service.pin.as_ref().is_some_and(is_meant)
            {
                service.image_name.clone_from(&then.image_name);
                service.config.image.clone_from(&then.config.image);
                service.pin.clone_from(&then.pin);
                many += 1;
            }
        }
    }
    many
}

/// Notes at each pin whether a login for its registry is known, which the device should then ask for.
pub fn note_logins(apps: &mut BTreeMap<AppId, App>, is_known: impl Fn(&str) -> bool) {
    let services = apps.values_mut().flat_map(|app| &mut app.services);
    for pin in services.filter_map(|service| service.pin.as_mut()) {
        pin.pull_login = is_known(&pin.registry);
    }
}

/// Whether the image is known, but has nothing for the device's platform.
pub fn is_unsupported(pin: &Pin) -> bool {
    pin.resolution
        .error
        .as_ref()
        .is_some_and(|error| error.starts_with(UNSUPPORTED))
}

/// The generation of a changed target: above what is stored and what the device reported.
///
/// After a restore of the store the device may be ahead of it; it never goes back.
pub const fn next_generation(stored: u64, reported: u64) -> u64 {
    let newest = if stored > reported { stored } else { reported };
    newest.saturating_add(1)
}

/// Puts a rendered target into the document of its device.
pub const fn document(uuid: DeviceId, generation: u64, apps: BTreeMap<AppId, App>) -> TargetState {
    TargetState {
        uuid,
        generation,
        apps,
    }
}

#[cfg(test)]
mod tests;
