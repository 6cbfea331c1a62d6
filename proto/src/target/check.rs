//! Owns the rules between the services of one target: names, ports, dependencies, sizes.

use std::collections::{BTreeMap, BTreeSet};

use super::{TargetInput, TargetState};
use crate::id::{AppId, ServiceId, ServiceName};
use crate::problem::{FieldError, Pointer};
use crate::spec::{NetworkMode, Port, ServiceSpec, Strategy};

/// The most services one device may be given: an engine with more spends minutes on a look.
const MAX_SERVICES: usize = 512;
const MAX_APP_NAME_CHARS: usize = 128;

/// One service seen the same way in both documents.
struct Seen<'a> {
    at: Pointer,
    id: &'a ServiceId,
    name: &'a ServiceName,
    spec: &'a ServiceSpec,
}

/// One app seen the same way in both documents.
struct SeenApp<'a> {
    at: Pointer,
    key: &'a AppId,
    id: &'a AppId,
    name: &'a str,
    services: Vec<Seen<'a>>,
}

impl<'a> SeenApp<'a> {
    fn new(
        key: &'a AppId,
        id: &'a AppId,
        name: &'a str,
        services: impl Iterator<Item = (&'a ServiceId, &'a ServiceName, &'a ServiceSpec)>,
    ) -> Self {
        let at = Pointer::default().member("apps").member(key);
        let list = at.member("services");
        let services = services
            .enumerate()
            .map(|(position, (id, name, spec))| Seen {
                at: list.member(position),
                id,
                name,
                spec,
            })
            .collect();
        Self {
            at,
            key,
            id,
            name,
            services,
        }
    }
}

/// Everything wrong with what a person sent.
pub(super) fn input(input: &TargetInput) -> Vec<FieldError> {
    let apps = input.apps.iter().map(|(key, app)| {
        let services = app.services.iter();
        let services = services.map(|one| (&one.service_id, &one.service_name, &one.config));
        SeenApp::new(key, &app.app_id, &app.app_name, services)
    });
    let mut errors = check(&apps.collect::<Vec<_>>());
    for (key, app) in &input.apps {
        let list = Pointer::default()
            .member("apps")
            .member(key)
            .member("services");
        for (position, service) in app.services.iter().enumerate() {
            if let Err(detail) = service.reference() {
                let at = list.member(position);
                let only_in_config = service.image_name.is_none() && service.config.image.is_some();
                let field = if only_in_config {
                    at.member("config").member("image")
                } else {
                    at.member("imageName")
                };
                errors.push(field.error(detail));
            }
        }
    }
    errors
}

/// Everything wrong with what a server sent.
pub(super) fn target(target: &TargetState) -> Vec<FieldError> {
    let apps = target.apps.iter().map(|(key, app)| {
        let services = app.services.iter();
        let services = services.map(|one| (&one.service_id, &one.service_name, &one.config));
        SeenApp::new(key, &app.app_id, &app.app_name, services)
    });
    check(&apps.collect::<Vec<_>>())
}

fn check(apps: &[SeenApp<'_>]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let count: usize = apps.iter().map(|app| app.services.len()).sum();
    if count > MAX_SERVICES {
        let detail = format!("{count} services: a device takes at most {MAX_SERVICES}");
        errors.push(Pointer::default().member("apps").error(detail));
        // Pairwise rules on a document this size are not worth their time.
        return errors;
    }
    for app in apps {
        check_app(app, &mut errors);
    }
    check_ports(apps, &mut errors);
    check_agents(apps, &mut errors);
    errors
}

/// One agent runs on a device, and no service can wait for it or use its network.
fn check_agents(apps: &[SeenApp<'_>], errors: &mut Vec<FieldError>) {
    let mut first: Option<String> = None;
    for app in apps {
        let agents = app.services.iter().filter(|one| one.spec.is_agent());
        for service in agents {
            let name = format!("{}/{}", app.key, service.name);
            if let Some(first) = &first {
                let detail = format!("`{first}` is this device's agent already: name one release");
                let options = service.at.member("config").member("x-holdfast");
                errors.push(options.member("agent").error(detail));
            }
            first.get_or_insert(name);
            let mut others = app.services.iter();
            if let Some(other) = others.find(|other| needs(other.spec).any(|n| n == service.name)) {
                let detail = format!(
                    "`{}` is the agent's own release, which no service can wait for",
                    service.name
                );
                let field = if other.spec.depends_on.contains_key(service.name) {
                    "depends_on"
                } else {
                    "network_mode"
                };
                errors.push(other.at.member("config").member(field).error(detail));
            }
        }
    }
}

fn check_app(app: &SeenApp<'_>, errors: &mut Vec<FieldError>) {
    if app.key != app.id {
        let detail = format!("`{}` stands under the key `{}`", app.id, app.key);
        errors.push(app.at.member("appId").error(detail));
    }
    if app.name.is_empty() || app.name.chars().count() > MAX_APP_NAME_CHARS {
        let detail = format!("must have 1 to {MAX_APP_NAME_CHARS} characters");
        errors.push(app.at.member("appName").error(detail));
    }
    let mut names = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for service in &app.services {
        if !names.insert(service.name) {
            let detail = format!("`{}` names two services of this app", service.name);
            errors.push(service.at.member("serviceName").error(detail));
        }
        if !ids.insert(service.id) {
            let detail = format!("`{}` is the id of two services of this app", service.id);
            errors.push(service.at.member("serviceId").error(detail));
        }
        service.spec.check(&service.at.member("config"), errors);
    }
    check_links(app, &names, errors);
    check_lenders(app, errors);
}

/// A network can be lent only by a service that has one of its own, for as long as it runs.
fn check_lenders(app: &SeenApp<'_>, errors: &mut Vec<FieldError>) {
    for service in &app.services {
        let Some(NetworkMode::Service(name)) = &service.spec.network_mode else {
            continue;
        };
        let Some(lender) = app.services.iter().find(|lender| lender.name == name) else {
            continue;
        };
        let at = service.at.member("config");
        let own_network = matches!(lender.spec.network_mode, None | Some(NetworkMode::Bridge));
        if !own_network {
            let detail = format!("`{name}` has no network of its own to lend");
            errors.push(at.member("network_mode").error(detail));
        }
        if lender.spec.strategy() == Strategy::HandOver {
            let detail = format!(
                "`{name}` hands over from one container to another, each with its own network"
            );
            errors.push(at.member("network_mode").error(detail));
        }
        let borrowed = [
            ("hostname", service.spec.hostname.is_some()),
            ("dns", !service.spec.dns.is_empty()),
            ("extra_hosts", !service.spec.extra_hosts.is_empty()),
        ];
        for (field, _) in borrowed.into_iter().filter(|(_, given)| *given) {
            let detail = format!("belongs to the network, which is `{name}`'s: set it there");
            errors.push(at.member(field).error(detail));
        }
    }
}

/// The services that one service needs to exist first.
fn needs(spec: &ServiceSpec) -> impl Iterator<Item = &ServiceName> {
    let shared = spec.network_mode.iter().filter_map(|mode| match mode {
        NetworkMode::Service(name) => Some(name),
        NetworkMode::Bridge | NetworkMode::Host | NetworkMode::None => None,
    });
    spec.depends_on.keys().chain(shared)
}

fn check_links(app: &SeenApp<'_>, names: &BTreeSet<&ServiceName>, errors: &mut Vec<FieldError>) {
    for service in &app.services {
        for needed in needs(service.spec).filter(|needed| !names.contains(needed)) {
            let field = if service.spec.depends_on.contains_key(needed) {
                "depends_on"
            } else {
                "network_mode"
            };
            let detail = format!("`{needed}` is no service of this app");
            errors.push(service.at.member("config").member(field).error(detail));
        }
    }
    // Services whose needs are all placed are placed in turn; what is left waits for itself.
    let mut waiting: BTreeMap<&ServiceName, &Seen<'_>> = app
        .services
        .iter()
        .map(|service| (service.name, service))
        .collect();
    loop {
        let ready: Vec<&ServiceName> = waiting
            .iter()
            .filter(|(_, service)| needs(service.spec).all(|needed| !waiting.contains_key(needed)))
            .map(|(name, _)| *name)
            .collect();
        if ready.is_empty() {
            break;
        }
        for name in ready {
            waiting.remove(name);
        }
    }
    if let Some(service) = waiting.values().next() {
        let circle: Vec<&str> = waiting.keys().map(|name| name.as_str()).collect();
        let detail = format!("these services wait for each other: {}", circle.join(", "));
        errors.push(
            service
                .at
                .member("config")
                .member("depends_on")
                .error(detail),
        );
    }
}

fn check_ports(apps: &[SeenApp<'_>], errors: &mut Vec<FieldError>) {
    let mut taken: BTreeMap<u16, Vec<(&Port, String)>> = BTreeMap::new();
    for app in apps {
        for service in &app.services {
            let owner = format!("{}/{}", app.key, service.name);
            for (position, port) in service.spec.ports.iter().enumerate() {
                let Some(published) = port.published else {
                    continue;
                };
                let holders = taken.entry(published).or_default();
                let other = holders
                    .iter()
                    .find(|(held, by)| *by != owner && held.conflicts_with(port));
                if let Some((held, by)) = other {
                    let at = service.at.member("config").member("ports").member(position);
                    errors.push(at.error(format!("{port} conflicts with {held} of service {by}")));
                }
                holders.push((port, owner.clone()));
            }
        }
    }
}
