//! Owns the rules of a single service that types alone cannot carry.

use super::{HealthTest, NetworkMode, ServiceSpec};
use crate::problem::{FieldError, Pointer};

/// Every field a service may have, with what it holds: for the API's document and for messages.
pub const FIELDS: [(&str, &str); 46] = [
    ("image", "image reference"),
    ("command", "text or list of text"),
    ("entrypoint", "text or list of text"),
    ("environment", "map, or list of NAME=value"),
    (
        "ports",
        "list of [[ip:]published:]target[/protocol], numbers or long forms",
    ),
    ("volumes", "list of source:target[:options] or long forms"),
    ("tmpfs", "path or list of paths"),
    ("networks", "list of names, or map of name to attachment"),
    ("network_mode", "bridge, host, none or service:NAME"),
    ("restart", "no, always, on-failure[:N] or unless-stopped"),
    (
        "healthcheck",
        "test, interval, timeout, retries, start_period, start_interval, disable",
    ),
    (
        "depends_on",
        "list of services, or map of service to condition",
    ),
    ("devices", "list of host[:container[:rwm]]"),
    ("privileged", "true or false"),
    ("cap_add", "list of capabilities"),
    ("cap_drop", "list of capabilities"),
    ("user", "user[:group]"),
    ("working_dir", "absolute path"),
    ("hostname", "host name"),
    ("extra_hosts", "list of host:address, or map"),
    ("dns", "address or list of addresses"),
    ("labels", "map, or list of NAME=value"),
    ("logging", "driver and options"),
    ("ulimits", "map of name to number or soft and hard"),
    ("sysctls", "map, or list of NAME=value"),
    ("security_opt", "list of options"),
    ("read_only", "true or false"),
    ("init", "true or false"),
    ("stop_signal", "signal name"),
    ("stop_grace_period", "duration such as 10s"),
    ("mem_limit", "size such as 64m"),
    ("cpus", "number of processors"),
    ("pids_limit", "number"),
    ("deploy", "resources.limits and resources.reservations"),
    ("shm_size", "size such as 64m"),
    ("group_add", "list of groups"),
    ("userns_mode", "host"),
    ("pid", "host"),
    ("ipc", "private, shareable, host or none"),
    ("runtime", "runtime name"),
    ("secrets", "list of source, target, uid, gid, mode, content"),
    ("configs", "list of source, target, uid, gid, mode, content"),
    (
        "x-holdfast",
        "how it is updated: agent, strategy, handover_timeout, sandbox, soak, probe, windows, priority",
    ),
    // Read by the operator's CLI, which writes the variables into `environment`.
    (
        "env_file",
        "not accepted here: the command line client reads it",
    ),
    (
        "build",
        "not accepted: a device runs images, it does not build them",
    ),
    (
        "container_name",
        "not accepted: names are unique per generation, reach a service by its name",
    ),
];

/// A service needs few of these; the bound keeps a hostile document from costing minutes.
const MAX_ITEMS: usize = 4_096;

impl ServiceSpec {
    /// Finds everything wrong with this service by itself.
    pub fn check(&self, at: &Pointer, errors: &mut Vec<FieldError>) {
        self.check_names(at, errors);
        self.check_network(at, errors);
        self.check_amounts(at, errors);
        if let Some(options) = &self.holdfast {
            options.check(!self.ports.is_empty(), &at.member("x-holdfast"), errors);
        }
        if self.is_agent() {
            self.check_agent(at, errors);
        }
        let lists = [
            ("environment", self.environment.len()),
            ("ports", self.ports.len()),
            ("volumes", self.volumes.len()),
            ("labels", self.labels.len()),
        ];
        for (name, len) in lists {
            if len > MAX_ITEMS {
                errors.push(
                    at.member(name)
                        .error(format!("more than {MAX_ITEMS} entries")),
                );
            }
        }
    }

    /// The agent's own release has an image and nothing that a container would be made with.
    fn check_agent(&self, at: &Pointer, errors: &mut Vec<FieldError>) {
        let bare = Self {
            image: self.image.clone(),
            holdfast: self.holdfast.clone(),
            extensions: self.extensions.clone(),
            ..Self::default()
        };
        // Both are plain data with text keys; serde_json can write all of these.
        let fields = |spec: &Self| match serde_json::to_value(spec) {
            Ok(serde_json::Value::Object(fields)) => fields,
            Ok(_) | Err(_) => serde_json::Map::new(),
        };
        let bare = fields(&bare);
        for name in fields(self).keys().filter(|name| !bare.contains_key(*name)) {
            let detail = "the agent's own release (`x-holdfast.agent`) runs in no container: it has an \
                          image and nothing else";
            errors.push(at.member(name).error(detail));
        }
    }

    fn check_names(&self, at: &Pointer, errors: &mut Vec<FieldError>) {
        for name in self
            .extensions
            .keys()
            .filter(|name| !name.starts_with("x-"))
        {
            let detail = match FIELDS.iter().find(|(known, _)| known == name) {
                Some((known, why)) => format!("`{known}` is {why}"),
                None => "unknown field: not a service field of the Compose specification that a device can apply; extensions begin with `x-`".to_owned(),
            };
            errors.push(at.member(name).error(detail));
        }
        for name in self
            .environment
            .keys()
            .filter(|name| name.is_empty() || name.contains('='))
        {
            let detail = "a variable's name is not empty and has no `=`";
            errors.push(at.member("environment").member(name).error(detail));
        }
        for name in self.labels.keys() {
            if name.is_empty() {
                errors.push(at.member("labels").error("a label's name is not empty"));
            } else if name.starts_with(super::LABEL_PREFIX) {
                let detail = format!("labels under `{}` are Holdfast's own", super::LABEL_PREFIX);
                errors.push(at.member("labels").member(name).error(detail));
            }
        }
        let known_signal = |signal: &str| {
            let bare = signal.strip_prefix("SIG").unwrap_or(signal);
            !bare.is_empty()
                && bare
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-".contains(c))
        };
        if self
            .stop_signal
            .as_deref()
            .is_some_and(|signal| !known_signal(signal))
        {
            errors.push(
                at.member("stop_signal")
                    .error("not a signal such as SIGTERM"),
            );
        }
        if self
            .working_dir
            .as_deref()
            .is_some_and(|path| !path.starts_with('/'))
        {
            errors.push(at.member("working_dir").error("must be an absolute path"));
        }
        for (position, path) in self.tmpfs.iter().enumerate() {
            if !path.starts_with('/') {
                let detail = "must be an absolute path, with options after a colon";
                errors.push(at.member("tmpfs").member(position).error(detail));
            }
        }
        if let Some(health) = &self.healthcheck {
            let switched_off = health.disable || health.test == Some(HealthTest::None);
            if health.disable
                && health
                    .test
                    .as_ref()
                    .is_some_and(|test| *test != HealthTest::None)
            {
                let detail = "a check cannot be both disabled and given a test";
                errors.push(at.member("healthcheck").error(detail));
            }
            if !switched_off && health.retries == Some(0) {
                errors.push(
                    at.member("healthcheck")
                        .member("retries")
                        .error("must be 1 or more"),
                );
            }
        }
    }

    fn check_network(&self, at: &Pointer, errors: &mut Vec<FieldError>) {
        // Compose's answer to a person's own command; a device that acts by itself would interrupt what
        // nobody asked it to.
        for (name, _) in self.depends_on.iter().filter(|(_, needed)| needed.restart) {
            let detail = "not accepted: a device restarts no service because another was updated";
            let dependency = at.member("depends_on").member(name);
            errors.push(dependency.member("restart").error(detail));
        }
        if let Some(mode) = &self.network_mode {
            if !self.networks.is_empty() {
                let detail = "a service has either networks or a network_mode";
                errors.push(at.member("networks").error(detail));
            }
            let own_network = *mode == NetworkMode::Bridge;
            if !own_network && !self.ports.is_empty() {
                let detail = format!("network_mode {mode} leaves no network of its own to publish");
                errors.push(at.member("ports").error(detail));
            }
        }
        for (position, port) in self.ports.iter().enumerate() {
            if self.ports[..position]
                .iter()
                .any(|earlier| earlier.conflicts_with(port))
            {
                let detail = format!("{port} is published twice by this service");
                errors.push(at.member("ports").member(position).error(detail));
            }
        }
        let mut targets = std::collections::BTreeSet::new();
        for (position, mount) in self.volumes.iter().enumerate() {
            if !targets.insert(&mount.target) {
                let detail = format!("{} is mounted twice", mount.target);
                errors.push(at.member("volumes").member(position).error(detail));
            }
        }
    }

    fn check_amounts(&self, at: &Pointer, errors: &mut Vec<FieldError>) {
        if self.pids_limit.is_some_and(|most| most < -1 || most == 0) {
            errors.push(
                at.member("pids_limit")
                    .error("must be -1 (unlimited) or 1 and more"),
            );
        }
        // Engines refuse containers with less than 6 MiB (moby, daemon/daemon_unix.go).
        if self
            .mem_limit
            .is_some_and(|limit| limit.0 > 0 && limit.0 < 6 << 20)
        {
            errors.push(at.member("mem_limit").error("must be 6m or more"));
        }
        let limits = self
            .deploy
            .as_ref()
            .and_then(|deploy| deploy.resources.as_ref());
        if let Some(limits) = limits.and_then(|resources| resources.limits.as_ref()) {
            let twice = [
                (
                    "mem_limit",
                    self.mem_limit.is_some() && limits.memory.is_some(),
                ),
                ("cpus", self.cpus.is_some() && limits.cpus.is_some()),
                (
                    "pids_limit",
                    self.pids_limit.is_some() && limits.pids.is_some(),
                ),
            ];
            for (name, _) in twice.into_iter().filter(|(_, both)| *both) {
                let detail = "is set here and in deploy.resources.limits: keep one";
                errors.push(at.member(name).error(detail));
            }
        }
    }
}

#[cfg(feature = "openapi")]
mod openapi {
    use utoipa::openapi::RefOr;
    use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, SchemaType};
    use utoipa::{PartialSchema, ToSchema};

    use super::{FIELDS, ServiceSpec};

    impl PartialSchema for ServiceSpec {
        fn schema() -> RefOr<Schema> {
            let any = |what: &str| {
                ObjectBuilder::new()
                    .schema_type(SchemaType::AnyValue)
                    .description(Some(what))
            };
            FIELDS
                .iter()
                .filter(|(_, what)| !what.starts_with("not accepted"))
                .fold(ObjectBuilder::new(), |object, (name, what)| {
                    object.property(*name, any(what))
                })
                .description(Some(
                    "Service fields of the Compose specification; `x-…` extensions are kept.",
                ))
                .additional_properties(Some(AdditionalProperties::FreeForm(true)))
                .into()
        }
    }

    impl ToSchema for ServiceSpec {}
}
