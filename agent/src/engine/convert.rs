//! Owns the translation of a service spec into the engine's create call, beside `docker.rs` the only
//! file that knows bollard.
//!
//! Refuses, by name, every field that it cannot apply: nothing is dropped silently.

mod mounts;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, DeviceMapping, EndpointSettings, HealthConfig,
    HostConfig, HostConfigLogConfig, NetworkingConfig, PortBinding, ResourcesUlimits,
    RestartPolicy as EngineRestart, RestartPolicyNameEnum,
};
use holdfast_plan::{Amounts, is_of_the_network};
use holdfast_proto::spec::{
    Healthcheck, LABEL_PREFIX, NetworkMode, Period, Port, RestartPolicy, ServiceSpec,
};

use super::sandbox::{self, NoProgram};
use super::{NewContainer, NewNetwork, NewSandbox, labels};

/// A spec asks for something that this agent cannot apply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this agent cannot apply `{field}`: {why}")]
pub struct Unsupported {
    /// The field, as it is written in the spec.
    pub field: String,
    /// Why not.
    pub why: String,
}

fn unsupported(field: &str, why: &str) -> Unsupported {
    Unsupported {
        field: field.to_owned(),
        why: why.to_owned(),
    }
}

impl From<NoProgram> for Unsupported {
    fn from(error: NoProgram) -> Self {
        unsupported("ports", &error.to_string())
    }
}

/// What a create call depends on beside the container that is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings<'a> {
    /// The version of the engine's API, major and minor.
    pub(crate) api_version: (usize, usize),
    /// Where the files of secrets and configs are.
    pub(crate) runtime_dir: &'a Path,
    /// Whether a shared network comes with its container's host name, as with Docker; else each
    /// container keeps its own.
    pub(crate) shares_hostname: bool,
}

/// Newer than every version that anything here depends on.
pub(crate) const NEWEST_API: (usize, usize) = (usize::MAX, 0);
/// The first API version with `StartInterval`; older engines drop it and say nothing.
const START_INTERVAL_SINCE: (usize, usize) = (1, 44);

/// The engine's create call for a container with restart policy `no`.
pub(crate) fn create_body(
    new: &NewContainer<'_>,
    around: Surroundings<'_>,
) -> Result<ContainerCreateBody, Unsupported> {
    let spec = &new.service.config;
    refuse_unapplied(spec, around.api_version)?;
    let owns_network = matches!(new.network, NewNetwork::Own(_));
    let identity = new
        .service
        .identity()
        .ok_or_else(|| unsupported("image", "it was never resolved to a digest"))?;
    let mut all_labels: HashMap<String, String> = spec
        .labels
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all_labels.extend(labels::write(new, &identity));
    let environment = spec.environment.iter();
    Ok(ContainerCreateBody {
        image: Some(new.service.image_name.clone()),
        // In a shared network these are the other container's, and engines refuse them here.
        hostname: spec
            .hostname
            .clone()
            .filter(|_| owns_network || !around.shares_hostname),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        cmd: spec.command.as_ref().map(|line| line.0.clone()),
        entrypoint: spec.entrypoint.as_ref().map(|line| line.0.clone()),
        env: list(environment.map(|(name, value)| format!("{name}={value}"))),
        // Without ExposedPorts some engines publish nothing and say nothing.
        exposed_ports: list(spec.ports.iter().map(engine_port)).filter(|_| owns_network),
        healthcheck: spec.healthcheck.as_ref().map(health),
        labels: Some(all_labels),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: spec
            .stop_grace_period
            .map(|grace| whole(grace.as_millis().div_ceil(1_000))),
        host_config: Some(host_config(new, spec, around.runtime_dir)?),
        networking_config: match new.network {
            NewNetwork::Own(networks) => first_network(networks),
            NewNetwork::Shared(_) => None,
        },
        ..ContainerCreateBody::default()
    })
}

/// The engine's create call for a sandbox with restart policy `no`.
pub(crate) fn sandbox_body(new: &NewSandbox<'_>) -> ContainerCreateBody {
    let spec = new.spec;
    ContainerCreateBody {
        image: Some(sandbox::IMAGE.to_owned()),
        hostname: spec.hostname.clone(),
        user: Some(sandbox::USER.to_string()),
        exposed_ports: list(spec.ports.iter().map(engine_port)),
        labels: Some(labels::write_sandbox(new)),
        host_config: Some(HostConfig {
            restart_policy: Some(restart(RestartPolicy::No)),
            network_mode: Some(match new.networks.first() {
                Some((network, _)) => network.clone(),
                None => "bridge".to_owned(),
            }),
            port_bindings: port_bindings(&spec.ports),
            dns: list(spec.dns.iter().map(ToString::to_string)),
            extra_hosts: list(spec.extra_hosts.iter().cloned()),
            sysctls: map(spec.sysctls.clone()),
            // The program needs nothing: it waits. No memory limit: the engine's own start-up runs
            // inside it and needs more on some versions than the program ever will.
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            readonly_rootfs: Some(true),
            pids_limit: Some(SANDBOX_PIDS),
            log_config: Some(HostConfigLogConfig {
                typ: Some("none".to_owned()),
                config: None,
            }),
            ..HostConfig::default()
        }),
        networking_config: first_network(new.networks),
        ..ContainerCreateBody::default()
    }
}

/// The engine's start-up inside a sandbox has this many threads to spare.
const SANDBOX_PIDS: i64 = 64;

/// Engines before API 1.44 take one network at most here: the others are connected afterwards.
fn first_network(networks: &[(String, Vec<String>)]) -> Option<NetworkingConfig> {
    let (network, aliases) = networks.first()?;
    let endpoint = (network.clone(), endpoint(aliases));
    Some(NetworkingConfig {
        endpoints_config: Some([endpoint].into()),
    })
}

/// A connection to a network under these names.
pub(super) fn endpoint(aliases: &[String]) -> EndpointSettings {
    EndpointSettings {
        aliases: list(aliases.iter().cloned()),
        ..EndpointSettings::default()
    }
}

/// What a target may ask for and this device cannot give.
fn refuse_unapplied(spec: &ServiceSpec, api_version: (usize, usize)) -> Result<(), Unsupported> {
    for (name, attachment) in &spec.networks {
        if attachment.ipv4_address.is_some() || attachment.ipv6_address.is_some() {
            return Err(unsupported(
                &format!("networks.{name}.ipv4_address or ipv6_address"),
                "the engine chooses the subnets of an app's networks: reach a service by its name",
            ));
        }
    }
    if let Some(NetworkMode::Service(of)) = &spec.network_mode {
        let fields = [
            ("hostname", spec.hostname.is_some()),
            ("dns", !spec.dns.is_empty()),
            ("extra_hosts", !spec.extra_hosts.is_empty()),
            (
                "sysctls: net.…",
                spec.sysctls.keys().any(|name| is_of_the_network(name)),
            ),
        ];
        if let Some((field, _)) = fields.into_iter().find(|(_, is_set)| *is_set) {
            let why = format!("the network and its settings are those of `{of}`: set it there");
            return Err(unsupported(field, &why));
        }
    }
    let reserved = spec
        .deploy
        .as_ref()
        .and_then(|deploy| deploy.resources.as_ref())
        .and_then(|resources| resources.reservations.as_ref());
    if reserved.is_some_and(|reserved| reserved.cpus.is_some() || reserved.pids.is_some()) {
        return Err(unsupported(
            "deploy.resources.reservations",
            "an engine can reserve memory only",
        ));
    }
    let wants_start_interval = spec
        .healthcheck
        .as_ref()
        .is_some_and(|health| health.start_interval.is_some());
    if wants_start_interval && api_version < START_INTERVAL_SINCE {
        let (major, minor) = api_version;
        let (since_major, since_minor) = START_INTERVAL_SINCE;
        let why = format!(
            "the engine's API is {major}.{minor} and knows it from {since_major}.{since_minor} on"
        );
        return Err(unsupported("healthcheck.start_interval", &why));
    }
    if spec
        .labels
        .keys()
        .any(|name| name.starts_with(LABEL_PREFIX))
    {
        return Err(unsupported(
            "labels",
            &format!("names under `{LABEL_PREFIX}` are Holdfast's own"),
        ));
    }
    Ok(())
}

fn host_config(
    new: &NewContainer<'_>,
    spec: &ServiceSpec,
    runtime_dir: &Path,
) -> Result<HostConfig, Unsupported> {
    let owns_network = matches!(new.network, NewNetwork::Own(_));
    let amounts = Amounts::of(spec);
    let some = |amount: u64| Some(amount).filter(|amount| *amount > 0).map(whole);
    let sysctls: BTreeMap<String, String> = spec
        .sysctls
        .iter()
        .filter(|(name, _)| owns_network || !is_of_the_network(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    Ok(HostConfig {
        restart_policy: Some(restart(RestartPolicy::No)),
        network_mode: Some(network_mode(new, spec)?),
        port_bindings: port_bindings(&spec.ports).filter(|_| owns_network),
        binds: list(mounts::binds(spec)),
        mounts: list(mounts::mounts(new, runtime_dir)),
        tmpfs: map(spec.tmpfs.iter().map(|entry| {
            let (path, options) = entry.split_once(':').unwrap_or((entry, ""));
            (path.to_owned(), options.to_owned())
        })),
        devices: list(spec.devices.iter().map(|device| DeviceMapping {
            path_on_host: Some(device.host.clone()),
            path_in_container: Some(device.container.clone()),
            cgroup_permissions: Some(device.permissions.clone()),
        })),
        privileged: Some(spec.privileged),
        cap_add: list(spec.cap_add.iter().cloned()),
        cap_drop: list(spec.cap_drop.iter().cloned()),
        extra_hosts: list(spec.extra_hosts.iter().cloned()).filter(|_| owns_network),
        dns: list(spec.dns.iter().map(ToString::to_string)).filter(|_| owns_network),
        log_config: spec.logging.as_ref().map(|logging| HostConfigLogConfig {
            typ: logging.driver.clone(),
            config: map(logging.options.clone()),
        }),
        ulimits: list(spec.ulimits.iter().map(|(name, limit)| ResourcesUlimits {
            name: Some(name.clone()),
            soft: Some(limit.soft),
            hard: Some(limit.hard),
        })),
        sysctls: map(sysctls),
        security_opt: list(spec.security_opt.iter().cloned()),
        readonly_rootfs: Some(spec.read_only),
        init: spec.init,
        memory: some(amounts.memory),
        memory_reservation: some(amounts.memory_reservation),
        nano_cpus: some(amounts.nano_cpus),
        // Said in so many words: without it Podman sets a limit of its own.
        pids_limit: Some(some(amounts.pids).unwrap_or(UNLIMITED)),
        shm_size: spec.shm_size.map(|size| whole(size.0)),
        group_add: list(spec.group_add.iter().cloned()),
        userns_mode: spec.userns_mode.clone(),
        pid_mode: spec.pid.clone(),
        ipc_mode: spec.ipc.clone(),
        runtime: spec.runtime.clone(),
        ..HostConfig::default()
    })
}

/// The engine's word for no limit.
pub(super) const UNLIMITED: i64 = -1;

fn network_mode(new: &NewContainer<'_>, spec: &ServiceSpec) -> Result<String, Unsupported> {
    let networks = match new.network {
        NewNetwork::Shared(id) => return Ok(format!("container:{id}")),
        NewNetwork::Own(networks) => networks,
    };
    match (&spec.network_mode, networks.first()) {
        (Some(NetworkMode::Service(_)), _) => Err(unsupported(
            "network_mode",
            "its service has no network yet",
        )),
        (Some(NetworkMode::Host), _) => Ok("host".to_owned()),
        (Some(NetworkMode::None), _) => Ok("none".to_owned()),
        (None, Some((network, _))) => Ok(network.clone()),
        (Some(NetworkMode::Bridge), _) | (None, None) => Ok("bridge".to_owned()),
    }
}

fn engine_port(port: &Port) -> String {
    format!("{}/{}", port.target, port.protocol)
}

fn port_bindings(ports: &[Port]) -> Option<HashMap<String, Option<Vec<PortBinding>>>> {
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in ports {
        bindings
            .entry(engine_port(port))
            .or_default()
            .get_or_insert_default()
            .push(PortBinding {
                host_ip: port.host_ip.map(|ip| ip.to_string()),
                // Empty: the engine chooses a free one.
                host_port: Some(port.published.map(|p| p.to_string()).unwrap_or_default()),
            });
    }
    Some(bindings).filter(|bindings| !bindings.is_empty())
}

fn health(check: &Healthcheck) -> HealthConfig {
    if check.disable {
        return HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        };
    }
    let nanos = |period: Period| whole(period.as_millis() * 1_000_000);
    HealthConfig {
        test: check
            .test
            .as_ref()
            .map(holdfast_proto::spec::HealthTest::to_list),
        interval: check.interval.map(nanos),
        timeout: check.timeout.map(nanos),
        retries: check.retries.map(i64::from),
        start_period: check.start_period.map(nanos),
        start_interval: check.start_interval.map(nanos),
    }
}

/// More memory than any device has: engines cannot take a limit away from a container that has one.
pub(super) const NO_MEMORY_LIMIT: u64 = 1 << 62;
/// The same of memory and swap together; a multiple of every page size.
const NO_SWAP_LIMIT: i64 = i64::MAX & !0xffff;
/// A limit of all processors less this means none: engines can raise one but not take it away.
const NO_CPU_LIMIT_MARK: u64 = 1;

/// Whether a processor limit is one that [`amounts_body`] wrote for "none".
pub(super) fn is_no_cpu_limit(nano_cpus: u64) -> bool {
    const PROCESSOR: u64 = 1_000_000_000;
    nano_cpus % PROCESSOR == PROCESSOR - NO_CPU_LIMIT_MARK
}

/// The engine's update call that changes a container's resources, on a device with so many processors.
pub(super) fn amounts_body(now: Amounts, wanted: Amounts, processors: u64) -> ContainerUpdateBody {
    let differs = |one: u64, other: u64, value: i64| Some(value).filter(|_| one != other);
    // Memory may not exceed memory and swap together: both change at once. Twice is what engines
    // choose by themselves for a new container.
    let (memory, swap) = match wanted.memory {
        0 => (whole(NO_MEMORY_LIMIT), NO_SWAP_LIMIT),
        bytes => (whole(bytes), whole(bytes.saturating_mul(2))),
    };
    let nano_cpus = match wanted.nano_cpus {
        0 => whole((processors * 1_000_000_000).saturating_sub(NO_CPU_LIMIT_MARK)),
        nanos => whole(nanos),
    };
    let or_none = |amount: u64| {
        if amount == 0 {
            UNLIMITED
        } else {
            whole(amount)
        }
    };
    ContainerUpdateBody {
        memory: differs(now.memory, wanted.memory, memory),
        memory_swap: differs(now.memory, wanted.memory, swap),
        memory_reservation: differs(
            now.memory_reservation,
            wanted.memory_reservation,
            or_none(wanted.memory_reservation),
        ),
        nano_cpus: differs(now.nano_cpus, wanted.nano_cpus, nano_cpus),
        pids_limit: differs(now.pids, wanted.pids, or_none(wanted.pids)),
        ..ContainerUpdateBody::default()
    }
}

/// What an engine that cannot change containers says of their resources.
pub(super) fn no_new_amounts() -> Unsupported {
    unsupported(
        "deploy.resources",
        "Podman cannot change the resources of a container that exists",
    )
}

/// A restart policy in the engine's words.
pub(super) fn restart(policy: RestartPolicy) -> EngineRestart {
    let (name, most) = match policy {
        RestartPolicy::No => (RestartPolicyNameEnum::NO, None),
        RestartPolicy::Always => (RestartPolicyNameEnum::ALWAYS, None),
        RestartPolicy::UnlessStopped => (RestartPolicyNameEnum::UNLESS_STOPPED, None),
        RestartPolicy::OnFailure(most) => (RestartPolicyNameEnum::ON_FAILURE, most),
    };
    EngineRestart {
        name: Some(name),
        maximum_retry_count: most.map(i64::from),
    }
}

fn list<T>(items: impl IntoIterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<T> = items.into_iter().collect();
    Some(items).filter(|items| !items.is_empty())
}

fn map(entries: impl IntoIterator<Item = (String, String)>) -> Option<HashMap<String, String>> {
    let entries: HashMap<String, String> = entries.into_iter().collect();
    Some(entries).filter(|entries| !entries.is_empty())
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
