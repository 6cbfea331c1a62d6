//! Owns the translation of a service spec into the engine's create call, beside `docker.rs` the only
//! file that knows bollard.
//!
//! Refuses, by name, every field that it cannot apply: nothing is dropped silently.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, DeviceMapping, HealthConfig, HostConfig, HostConfigLogConfig,
    Mount as EngineMount, MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions,
    MountType, MountVolumeOptions, PortBinding, ResourcesUlimits, RestartPolicy as EngineRestart,
    RestartPolicyNameEnum,
};
use holdfast_proto::id::AppId;
use holdfast_proto::spec::{
    Healthcheck, LABEL_PREFIX, Mount, MountKind, NetworkMode, Port, ResourceAmounts, RestartPolicy,
    ServiceSpec,
};

use super::{NewContainer, labels};

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

const LATER: &str = "a later version of the agent will";

/// The engine's create call for a container with restart policy `no`.
pub(super) fn create_body(new: &NewContainer<'_>) -> Result<ContainerCreateBody, Unsupported> {
    let spec = &new.service.config;
    refuse_unapplied(spec)?;
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
        hostname: spec.hostname.clone(),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        cmd: spec.command.as_ref().map(|line| line.0.clone()),
        entrypoint: spec.entrypoint.as_ref().map(|line| line.0.clone()),
        env: list(environment.map(|(name, value)| format!("{name}={value}"))),
        // Without ExposedPorts some engines publish nothing and say nothing.
        exposed_ports: list(spec.ports.iter().map(engine_port)),
        healthcheck: spec.healthcheck.as_ref().map(health),
        labels: Some(all_labels),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: spec
            .stop_grace_period
            .map(|grace| whole(grace.as_millis().div_ceil(1_000))),
        host_config: Some(host_config(&new.key.app, new, spec)),
        ..ContainerCreateBody::default()
    })
}

/// Fields that a target may carry and this agent does not apply yet.
fn refuse_unapplied(spec: &ServiceSpec) -> Result<(), Unsupported> {
    if !spec.networks.is_empty() {
        return Err(unsupported("networks", LATER));
    }
    if let Some(NetworkMode::Service(_)) = spec.network_mode {
        return Err(unsupported("network_mode: service:…", LATER));
    }
    if !spec.secrets.is_empty() {
        return Err(unsupported("secrets", LATER));
    }
    if !spec.configs.is_empty() {
        return Err(unsupported("configs", LATER));
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
    // Needs an engine of 2024 and fails silently on older ones.
    if spec
        .healthcheck
        .as_ref()
        .is_some_and(|health| health.start_interval.is_some())
    {
        return Err(unsupported("healthcheck.start_interval", LATER));
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

fn host_config(app: &AppId, new: &NewContainer<'_>, spec: &ServiceSpec) -> HostConfig {
    let resources = spec
        .deploy
        .as_ref()
        .and_then(|deploy| deploy.resources.clone())
        .unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    let reserved: ResourceAmounts = resources.reservations.unwrap_or_default();
    let memory = spec.mem_limit.or(limits.memory);
    let cpus = spec.cpus.or(limits.cpus);
    let (binds, mounts): (Vec<&Mount>, Vec<&Mount>) =
        spec.volumes.iter().partition(|mount| is_short_bind(mount));
    HostConfig {
        restart_policy: Some(restart(RestartPolicy::No)),
        network_mode: Some(network(spec.network_mode.as_ref())),
        port_bindings: port_bindings(&spec.ports),
        binds: list(binds.into_iter().map(bind)),
        mounts: list(
            mounts
                .into_iter()
                .map(|mount| engine_mount(app, new, mount)),
        ),
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
        extra_hosts: list(spec.extra_hosts.iter().cloned()),
        dns: list(spec.dns.iter().map(ToString::to_string)),
        log_config: spec.logging.as_ref().map(|logging| HostConfigLogConfig {
            typ: logging.driver.clone(),
            config: map(logging.options.clone()),
        }),
        ulimits: list(spec.ulimits.iter().map(|(name, limit)| ResourcesUlimits {
            name: Some(name.clone()),
            soft: Some(limit.soft),
            hard: Some(limit.hard),
        })),
        sysctls: map(spec.sysctls.clone()),
        security_opt: list(spec.security_opt.iter().cloned()),
        readonly_rootfs: Some(spec.read_only),
        init: spec.init,
        memory: memory.map(|size| whole(size.0)),
        memory_reservation: reserved.memory.map(|size| whole(size.0)),
        nano_cpus: cpus.map(|cpus| whole(cpus.as_nanos())),
        pids_limit: spec.pids_limit.or(limits.pids),
        shm_size: spec.shm_size.map(|size| whole(size.0)),
        group_add: list(spec.group_add.iter().cloned()),
        userns_mode: spec.userns_mode.clone(),
        pid_mode: spec.pid.clone(),
        ipc_mode: spec.ipc.clone(),
        runtime: spec.runtime.clone(),
        ..HostConfig::default()
    }
}

fn network(mode: Option<&NetworkMode>) -> String {
    match mode {
        Some(NetworkMode::Host) => "host",
        Some(NetworkMode::None) => "none",
        // `service:` was refused above.
        Some(NetworkMode::Bridge | NetworkMode::Service(_)) | None => "bridge",
    }
    .to_owned()
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
    let nanos = |period: holdfast_proto::spec::Period| whole(period.as_millis() * 1_000_000);
    HealthConfig {
        test: check
            .test
            .as_ref()
            .map(holdfast_proto::spec::HealthTest::to_list),
        interval: check.interval.map(nanos),
        timeout: check.timeout.map(nanos),
        retries: check.retries.map(i64::from),
        start_period: check.start_period.map(nanos),
        start_interval: None,
    }
}

/// Whether a mount needs the engine's short form: only that creates a missing path of the device.
fn is_short_bind(mount: &Mount) -> bool {
    mount.kind == MountKind::Bind
        && mount
            .bind
            .as_ref()
            .is_some_and(|bind| bind.create_host_path)
}

fn bind(mount: &Mount) -> String {
    let source = mount.source.as_deref().unwrap_or_default();
    let propagation = mount
        .bind
        .as_ref()
        .and_then(|bind| bind.propagation.as_deref());
    let options: Vec<&str> = [mount.read_only.then_some("ro"), propagation]
        .into_iter()
        .flatten()
        .collect();
    if options.is_empty() {
        format!("{source}:{}", mount.target)
    } else {
        format!("{source}:{}:{}", mount.target, options.join(","))
    }
}

fn engine_mount(app: &AppId, new: &NewContainer<'_>, mount: &Mount) -> EngineMount {
    let kind = match mount.kind {
        MountKind::Bind => MountType::BIND,
        MountKind::Volume => MountType::VOLUME,
        MountKind::Tmpfs => MountType::TMPFS,
    };
    let source = match mount.kind {
        // As Compose does: a volume belongs to its app, not to whoever knows its name.
        MountKind::Volume => mount.source.as_ref().map(|name| format!("{app}_{name}")),
        MountKind::Bind | MountKind::Tmpfs => mount.source.clone(),
    };
    let propagation = mount
        .bind
        .as_ref()
        .and_then(|bind| bind.propagation.as_deref());
    EngineMount {
        target: Some(mount.target.clone()),
        source,
        typ: Some(kind),
        read_only: Some(mount.read_only),
        bind_options: propagation.map(|word| MountBindOptions {
            propagation: word.parse::<MountBindOptionsPropagationEnum>().ok(),
            ..MountBindOptions::default()
        }),
        volume_options: (mount.kind == MountKind::Volume).then(|| MountVolumeOptions {
            no_copy: mount.volume.as_ref().map(|volume| volume.nocopy),
            labels: Some(
                [
                    (labels::MANAGED.to_owned(), "true".to_owned()),
                    (labels::DEVICE.to_owned(), new.device.to_string()),
                    (labels::APP.to_owned(), app.to_string()),
                ]
                .into(),
            ),
            ..MountVolumeOptions::default()
        }),
        tmpfs_options: mount.tmpfs.as_ref().map(|tmpfs| MountTmpfsOptions {
            size_bytes: tmpfs.size.map(|size| whole(size.0)),
            mode: tmpfs.mode.map(i64::from),
            ..MountTmpfsOptions::default()
        }),
        ..EngineMount::default()
    }
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

/// A restart policy from the engine's words.
pub(super) fn restart_from(policy: Option<&EngineRestart>) -> RestartPolicy {
    let Some(policy) = policy else {
        return RestartPolicy::No;
    };
    match policy.name {
        None | Some(RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO) => RestartPolicy::No,
        Some(RestartPolicyNameEnum::ALWAYS) => RestartPolicy::Always,
        Some(RestartPolicyNameEnum::UNLESS_STOPPED) => RestartPolicy::UnlessStopped,
        Some(RestartPolicyNameEnum::ON_FAILURE) => RestartPolicy::OnFailure(
            policy
                .maximum_retry_count
                .and_then(|most| u32::try_from(most).ok())
                .filter(|most| *most > 0),
        ),
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
