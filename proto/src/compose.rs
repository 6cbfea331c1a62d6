//! Owns turning a Compose file into a target: the same input that people send as JSON.
//!
//! Refuses by its place in the file whatever a device would not do as Compose does: nothing that a person wrote
//! is silently dropped.

mod grants;
mod yaml;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::id::AppId;
use crate::problem::{FieldError, Pointer, parse_json};
use crate::spec::{MountKind, ServiceSpec};
use crate::target::TargetInput;

/// What a file without `name` is called: Compose takes its folder's name, and there is no folder here.
const DEFAULT_NAME: &str = "compose";
/// The network that every app has (Compose spec, "networks").
const DEFAULT_NETWORK: &str = "default";

/// A Compose file as a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// The target as JSON text, in one form whatever the order of the file.
    pub text: String,
    /// The same, read and checked.
    pub input: TargetInput,
}

/// Why a Compose file is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// It is no YAML; with line and column where they are known.
    #[error("the body is not YAML: {0}")]
    Malformed(String),
    /// Values in it are wrong; the pointers are places in the file.
    #[error("{} places in the file are wrong", .0.len())]
    Invalid(Vec<FieldError>),
}

/// Fields of Compose's services that no device has, and what to do instead.
const NOT_TAKEN: [(&str, &str); 12] = [
    ("extends", "one file is read: write the service out"),
    ("profiles", "leave out the services that are not to run"),
    ("scale", "a device runs one container of a service"),
    ("platform", "each device gets its own platform's image"),
    ("pull_policy", "images are pinned by digest and pulled once"),
    ("links", "services of an app reach each other by name"),
    (
        "external_links",
        "services of an app reach each other by name",
    ),
    ("expose", "services of an app reach all ports of each other"),
    ("volumes_from", "name the volume in both services"),
    ("develop", "a device runs images, it does not build them"),
    ("attach", "nobody watches a device's containers start"),
    ("annotations", "use labels"),
];

/// Reads a Compose file (compose-spec, version of 2024) as a target of one app.
///
/// The app is called what `name` says. The `x-…` extensions beside `services` are only for aliases.
///
/// # Errors
/// When it is no YAML, when it grows too much, or when anything in it is not taken; then with the place of each
/// fault that could be found.
pub fn read(bytes: &[u8]) -> Result<Converted, ComposeError> {
    let document = yaml::read(bytes)?;
    convert(document).map_err(ComposeError::Invalid)
}

fn convert(document: Value) -> Result<Converted, Vec<FieldError>> {
    let root = Pointer::default();
    let Value::Object(mut file) = document else {
        return Err(vec![
            root.error("a Compose file is a mapping with `services`"),
        ]);
    };
    let mut errors = Vec::new();
    file.retain(|name, _| !name.starts_with("x-"));
    for (name, value) in &mut file {
        undollar(value, &root.member(name), &mut errors);
    }
    let name = name(file.remove("name"), &mut errors);
    let services = members(
        file.remove("services"),
        &root.member("services"),
        &mut errors,
    );
    let declared = Declared {
        networks: plain(file.remove("networks"), "networks", "bridge", &mut errors),
        volumes: plain(file.remove("volumes"), "volumes", "local", &mut errors),
    };
    let grants = [
        (
            "secrets",
            grants::declared(file.remove("secrets"), "secrets", &mut errors),
        ),
        (
            "configs",
            grants::declared(file.remove("configs"), "configs", &mut errors),
        ),
    ];
    // Compose itself reads nothing from it any more.
    file.remove("version");
    for name in file.keys() {
        errors.push(root.member(name).error(
            "not taken: a file has name, services, networks, volumes, secrets, configs and `x-…`",
        ));
    }
    if services.is_empty() && errors.is_empty() {
        errors.push(root.member("services").error("name at least one service"));
    }
    let mut names = Vec::new();
    let mut written = Vec::new();
    for (name, service) in services {
        let at = root.member("services").member(&name);
        let Value::Object(mut config) = service else {
            errors.push(at.error("a service is a mapping with `image`"));
            continue;
        };
        for (field, instead) in NOT_TAKEN {
            if config.remove(field).is_some() {
                errors.push(at.member(field).error(format!("not taken: {instead}")));
            }
        }
        for (kind, declared) in &grants {
            grants::fill(&mut config, kind, declared, &at, &mut errors);
        }
        if config.get("image").is_none_or(Value::is_null) && !config.contains_key("build") {
            errors.push(at.member("image").error("is missing: a device runs images"));
        }
        check_service(&config, &declared, &at, &mut errors);
        written.push(json!({ "serviceId": name, "serviceName": name, "config": config }));
        names.push(name);
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let app = json!({ "appId": name, "appName": name, "services": written });
    let mut apps = Map::new();
    apps.insert(name, app);
    let text = json!({ "apps": apps }).to_string();
    let input = TargetInput::parse(text.as_bytes()).map_err(|errors| {
        errors
            .into_iter()
            .map(|error| back(error, &names))
            .collect::<Vec<_>>()
    })?;
    Ok(Converted { text, input })
}

/// The app's name.
fn name(value: Option<Value>, errors: &mut Vec<FieldError>) -> String {
    let at = Pointer::default().member("name");
    match value {
        None | Some(Value::Null) => DEFAULT_NAME.to_owned(),
        Some(Value::String(name)) => {
            if let Err(error) = name.parse::<AppId>() {
                errors.push(at.error(error.to_string()));
            }
            name
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            errors.push(at.error("must be text"));
            String::new()
        }
    }
}

/// The members of a mapping in the order of their names; none where there is no mapping.
fn members(
    value: Option<Value>,
    at: &Pointer,
    errors: &mut Vec<FieldError>,
) -> Vec<(String, Value)> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(members)) => {
            let mut members: Vec<(String, Value)> = members.into_iter().collect();
            members.sort_by(|one, other| one.0.cmp(&other.0));
            members
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            errors.push(at.error("must be a mapping"));
            Vec::new()
        }
    }
}

/// Names that services may use.
struct Declared {
    networks: BTreeSet<String>,
    volumes: BTreeSet<String>,
}

/// Networks or volumes of the file: their names. A device makes them in one way, so that nothing can be said of
/// them but that.
fn plain(
    value: Option<Value>,
    kind: &str,
    driver: &str,
    errors: &mut Vec<FieldError>,
) -> BTreeSet<String> {
    let at = Pointer::default().member(kind);
    let mut names = BTreeSet::new();
    for (name, definition) in members(value, &at, errors) {
        let here = at.member(&name);
        for (field, value) in members(Some(definition), &here, errors) {
            let is_default = field == "driver" && value == driver;
            if !is_default && !field.starts_with("x-") {
                errors.push(here.member(&field).error(format!(
                    "not taken: a device makes {kind} of its own, with driver {driver} and no options"
                )));
            }
        }
        names.insert(name);
    }
    names
}

/// Everything wrong with one service by itself, and names in it that the file does not declare.
fn check_service(
    config: &Map<String, Value>,
    declared: &Declared,
    at: &Pointer,
    errors: &mut Vec<FieldError>,
) {
    let text = Value::Object(config.clone()).to_string();
    let spec: ServiceSpec = match parse_json(text.as_bytes()) {
        Ok(spec) => spec,
        Err(found) => {
            errors.extend(found.into_iter().map(|error| at.beneath(error)));
            return;
        }
    };
    spec.check(at, errors);
    for network in spec.networks.keys().map(ToString::to_string) {
        if network != DEFAULT_NETWORK && !declared.networks.contains(&network) {
            let here = at.member("networks");
            errors.push(here.error(format!("`{network}` is not in the file's networks")));
        }
    }
    for (position, mount) in spec.volumes.iter().enumerate() {
        let named = mount
            .source
            .as_ref()
            .filter(|_| mount.kind == MountKind::Volume);
        if let Some(name) = named.filter(|name| !declared.volumes.contains(*name)) {
            let here = at.member("volumes").member(position);
            errors.push(here.error(format!("`{name}` is not in the file's volumes")));
        }
    }
}

/// Takes `$$` for a dollar sign, as Compose does. Variables are refused: those of whoever wrote the file are not
/// here, and nothing may be put in their place.
fn undollar(value: &mut Value, at: &Pointer, errors: &mut Vec<FieldError>) {
    match value {
        Value::String(text) if text.contains('$') => {
            if text.replace("$$", "").contains('$') {
                // Without the text: it may be a secret.
                errors.push(at.error(
                    "variables are not filled in here: write the value, and `$$` for a dollar sign",
                ));
            } else {
                *text = text.replace("$$", "$");
            }
        }
        Value::Array(items) => {
            for (position, item) in items.iter_mut().enumerate() {
                undollar(item, &at.member(position), errors);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                undollar(member, &at.member(name), errors);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// An error in the target as an error in the file: `/apps/web/services/0/config/ports` is `/services/nginx/ports`.
fn back(error: FieldError, names: &[String]) -> FieldError {
    let root = Pointer::default();
    let services = root.member("services");
    let mut parts = error.pointer.splitn(6, '/').skip(3);
    let (at, rest) = match (parts.next(), parts.next(), parts.next()) {
        (Some("services"), Some(position), rest) => {
            let name = position
                .parse()
                .ok()
                .and_then(|position: usize| names.get(position));
            let service = name.map_or_else(|| services.clone(), |name| services.member(name));
            let field = rest.and_then(|rest| rest.strip_prefix("config"));
            (service, field.unwrap_or_default())
        }
        (Some("appName" | "appId"), _, _) => (root.member("name"), ""),
        (_, _, _) => (services, ""),
    };
    let pointer = rest.to_owned();
    at.beneath(FieldError {
        pointer,
        detail: error.detail,
    })
}

#[cfg(test)]
mod tests;
