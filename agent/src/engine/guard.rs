//! Owns the judgement of finished engine requests by the device's policy, field by field.
//!
//! What goes over the wire is judged, not the spec it came from, so that no second spelling of a
//! thing gets past (CVE-2026-44849 was a check of `Binds` that forgot `Mounts`). Every struct is taken
//! apart completely: a field that a later bollard adds does not compile until somebody has judged it.
//! Refuses what Holdfast itself never sends.

mod files;
mod networks;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, NetworkingConfig, ResourcesUlimits,
};
use holdfast_plan::is_transit_name;
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::image::Reference;
use holdfast_proto::spec::NetworkMode;
use holdfast_proto::target::{ServiceTarget, TargetState};

pub use networks::network;

use super::{Fetch, NewContainer, NewNetwork, convert};
use crate::fault::foreign;
use crate::policy::{Policy, Refusal, Rules};
use crate::secrets;

/// What a container may join beside what the policy lists, because Holdfast made it for the same app.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ours<'a> {
    /// Containers whose namespaces it may share, by name or id.
    pub containers: &'a [&'a str],
    /// Networks it may be attached to, by name or id.
    pub networks: &'a [&'a str],
    /// The folder with the files of this service's secrets and configs, which it may read.
    pub files: Option<&'a Path>,
    /// Whether the agent made the image itself and runs it for itself: such a container comes from
    /// no registry, and the ceilings are not about it.
    pub own_image: bool,
}

const NEVER: &str = "Holdfast never asks for it";

fn refusal(field: impl Into<String>, why: impl Into<String>) -> Refusal {
    Refusal {
        field: field.into(),
        why: why.into(),
    }
}

fn allow(
    allowed: bool,
    field: impl Into<String>,
    why: impl FnOnce() -> String,
) -> Result<(), Refusal> {
    if allowed {
        Ok(())
    } else {
        Err(refusal(field, why()))
    }
}

/// Refuses each of these fields that is set, even to something empty: an empty list of masked paths
/// uncovers all of them.
macro_rules! never {
    ($at:literal: $($value:ident as $field:literal),+ $(,)?) => {
        $(if $value.is_some() {
            return Err(refusal(concat!($at, $field), NEVER));
        })+
    };
}
use never;

/// The services of a target that the policy does not allow, each with the reason.
///
/// No engine is asked: what cannot be made into a request is left to whoever makes it.
pub fn refusals(
    policy: &Policy,
    device: &DeviceId,
    target: &TargetState,
    runtime_dir: &Path,
) -> BTreeMap<ServiceKey, String> {
    // Stands for the sandbox that such a service will use: joining it is no request of the spec's.
    const A_SANDBOX: &str = "a-sandbox";
    let judge = |key: &ServiceKey, service: &ServiceTarget| {
        if service.config.is_agent() {
            return release(policy, &service.image_name).err();
        }
        let borrows = matches!(service.config.network_mode, Some(NetworkMode::Service(_)));
        let new = NewContainer {
            device,
            key,
            name: "",
            generation: target.generation,
            service,
            network: if borrows {
                NewNetwork::Shared(A_SANDBOX)
            } else {
                NewNetwork::Own(&[])
            },
        };
        let around = convert::Surroundings {
            api_version: convert::NEWEST_API,
            runtime_dir,
            shares_hostname: true,
        };
        let body = convert::create_body(&new, around).ok()?;
        let files = secrets::service_folder(runtime_dir, key);
        let ours = Ours {
            containers: &[A_SANDBOX],
            files: Some(&files),
            ..Ours::default()
        };
        container(policy, &body, &ours).err()
    };
    let services = target.services();
    services
        .filter_map(|(key, service)| judge(&key, service).map(|why| (key, why.to_string())))
        .collect()
}

/// Judges an image before it is fetched: by the name that the target gave it. It may come from there or
/// from the agent itself, whatever the policy allows.
pub fn fetch(policy: &Policy, fetch: &Fetch<'_>) -> Result<(), Refusal> {
    allow(
        fetch.from == fetch.pinned || is_transit_name(fetch.from),
        "Image",
        || NEVER.to_owned(),
    )?;
    match policy.rules() {
        Some(rules) => from_allowed_registry(rules, Some(fetch.pinned)),
        None => Ok(()),
    }
}

/// Judges a release of the agent by where it comes from. It runs in no container: the ceilings are not about it.
pub fn release(policy: &Policy, pinned: &str) -> Result<(), Refusal> {
    match policy.rules() {
        Some(rules) => from_allowed_registry(rules, Some(pinned)),
        None => Ok(()),
    }
}

/// Judges a container to make.
pub fn container(
    policy: &Policy,
    body: &ContainerCreateBody,
    ours: &Ours<'_>,
) -> Result<(), Refusal> {
    let Some(rules) = policy.rules() else {
        return Ok(());
    };
    let ContainerCreateBody {
        image,
        host_config,
        networking_config,
        // What happens inside the container, and what it is called there.
        hostname: _,
        user: _,
        working_dir: _,
        cmd: _,
        entrypoint: _,
        env: _,
        exposed_ports: _,
        healthcheck: _,
        labels: _,
        stop_signal: _,
        stop_timeout: _,
        domainname,
        attach_stdin,
        attach_stdout,
        attach_stderr,
        tty,
        open_stdin,
        stdin_once,
        args_escaped,
        volumes,
        network_disabled,
        on_build,
        shell,
    } = body;
    never!("":
        domainname as "Domainname",
        attach_stdin as "AttachStdin",
        attach_stdout as "AttachStdout",
        attach_stderr as "AttachStderr",
        tty as "Tty",
        open_stdin as "OpenStdin",
        stdin_once as "StdinOnce",
        args_escaped as "ArgsEscaped",
        volumes as "Volumes",
        network_disabled as "NetworkDisabled",
        on_build as "OnBuild",
        shell as "Shell",
    );
    if !ours.own_image {
        from_allowed_registry(rules, image.as_deref())?;
    }
    // Without one the engine's defaults hold, which no ceiling knows.
    let unset = HostConfig::default();
    host(rules, host_config.as_ref().unwrap_or(&unset), ours)?;
    if let Some(NetworkingConfig { endpoints_config }) = networking_config {
        for (network, settings) in endpoints_config.iter().flatten() {
            let field = format!("NetworkingConfig.EndpointsConfig.{network}");
            networks::join(rules, network, &field, ours)?;
            networks::endpoint(settings, &field)?;
        }
    }
    Ok(())
}

fn from_allowed_registry(rules: &Rules, image: Option<&str>) -> Result<(), Refusal> {
    let Some(reference) = image.and_then(|image| image.parse::<Reference>().ok()) else {
        return Err(refusal("Image", "it names no image"));
    };
    allow(rules.allows_image(&reference), "Image", || {
        let repository = reference.repository();
        format!("{repository} is in none of the registries that the policy lists")
    })
}

fn host(rules: &Rules, host: &HostConfig, ours: &Ours<'_>) -> Result<(), Refusal> {
    let HostConfig {
        memory,
        nano_cpus,
        pids_limit,
        devices,
        ulimits,
        binds,
        mounts,
        log_config,
        network_mode,
        port_bindings,
        cap_add,
        ipc_mode,
        pid_mode,
        privileged,
        security_opt,
        userns_mode,
        sysctls,
        runtime,
        // What takes rights away, or concerns the inside of the container alone.
        memory_reservation: _,
        init: _,
        restart_policy: _,
        cap_drop: _,
        dns: _,
        extra_hosts: _,
        group_add: _,
        readonly_rootfs: _,
        tmpfs: _,
        shm_size: _,
        cpu_shares,
        cgroup_parent,
        blkio_weight,
        blkio_weight_device,
        blkio_device_read_bps,
        blkio_device_write_bps,
        blkio_device_read_iops,
        blkio_device_write_iops,
        cpu_period,
        cpu_quota,
        cpu_realtime_period,
        cpu_realtime_runtime,
        cpuset_cpus,
        cpuset_mems,
        device_cgroup_rules,
        device_requests,
        memory_swap,
        memory_swappiness,
        oom_kill_disable,
        cpu_count,
        cpu_percent,
        io_maximum_iops,
        io_maximum_bandwidth,
        container_id_file,
        auto_remove,
        volume_driver,
        volumes_from,
        console_size,
        annotations,
        cgroupns_mode,
        dns_options,
        dns_search,
        cgroup,
        links,
        oom_score_adj,
        publish_all_ports,
        storage_opt,
        uts_mode,
        isolation,
        masked_paths,
        readonly_paths,
    } = host;
    never!("HostConfig.":
        cpu_shares as "CpuShares",
        cgroup_parent as "CgroupParent",
        blkio_weight as "BlkioWeight",
        blkio_weight_device as "BlkioWeightDevice",
        blkio_device_read_bps as "BlkioDeviceReadBps",
        blkio_device_write_bps as "BlkioDeviceWriteBps",
        blkio_device_read_iops as "BlkioDeviceReadIOps",
        blkio_device_write_iops as "BlkioDeviceWriteIOps",
        cpu_period as "CpuPeriod",
        cpu_quota as "CpuQuota",
        cpu_realtime_period as "CpuRealtimePeriod",
        cpu_realtime_runtime as "CpuRealtimeRuntime",
        cpuset_cpus as "CpusetCpus",
        cpuset_mems as "CpusetMems",
        device_cgroup_rules as "DeviceCgroupRules",
        device_requests as "DeviceRequests",
        memory_swap as "MemorySwap",
        memory_swappiness as "MemorySwappiness",
        oom_kill_disable as "OomKillDisable",
        cpu_count as "CpuCount",
        cpu_percent as "CpuPercent",
        io_maximum_iops as "IOMaximumIOps",
        io_maximum_bandwidth as "IOMaximumBandwidth",
        container_id_file as "ContainerIDFile",
        auto_remove as "AutoRemove",
        volume_driver as "VolumeDriver",
        volumes_from as "VolumesFrom",
        console_size as "ConsoleSize",
        annotations as "Annotations",
        cgroupns_mode as "CgroupnsMode",
        dns_options as "DnsOptions",
        dns_search as "DnsSearch",
        cgroup as "Cgroup",
        links as "Links",
        oom_score_adj as "OomScoreAdj",
        publish_all_ports as "PublishAllPorts",
        storage_opt as "StorageOpt",
        uts_mode as "UTSMode",
        isolation as "Isolation",
        masked_paths as "MaskedPaths",
        readonly_paths as "ReadonlyPaths",
    );
    allow(
        rules.privileged || *privileged != Some(true),
        "HostConfig.Privileged",
        || "it gives a container all rights on the device".to_owned(),
    )?;
    namespace(rules.host_pid, pid_mode.as_deref(), "PidMode", &[], ours)?;
    let own_ipc = ["private", "shareable", "none"];
    namespace(
        rules.host_ipc,
        ipc_mode.as_deref(),
        "IpcMode",
        &own_ipc,
        ours,
    )?;
    // No container's users can be shared, only the device's.
    let userns = userns_mode.as_deref();
    namespace(
        rules.host_userns,
        userns,
        "UsernsMode",
        &[],
        &Ours::default(),
    )?;
    if let Some(mode) = network_mode.as_deref() {
        networks::join(rules, mode, "HostConfig.NetworkMode", ours)?;
    }
    for (position, text) in binds.iter().flatten().enumerate() {
        files::bind(rules, text, &format!("HostConfig.Binds[{position}]"))?;
    }
    for (position, asked) in mounts.iter().flatten().enumerate() {
        let field = format!("HostConfig.Mounts[{position}]");
        files::mount(rules, asked, ours.files, &field)?;
    }
    for (position, asked) in devices.iter().flatten().enumerate() {
        files::device(rules, asked, &format!("HostConfig.Devices[{position}]"))?;
    }
    each(cap_add.iter().flatten(), "CapAdd", |name| {
        rules.allows_capability(name)
    })?;
    each(security_opt.iter().flatten(), "SecurityOpt", |option| {
        rules.allows_security_option(option)
    })?;
    let names = sysctls.iter().flat_map(HashMap::keys);
    each(names, "Sysctls", |name| rules.sysctls.contains(name))?;
    let names = ulimits.iter().flatten().flat_map(|limit| {
        let ResourcesUlimits {
            name,
            soft: _,
            hard: _,
        } = limit;
        name
    });
    each(names, "Ulimits", |name| rules.ulimits.contains(name))?;
    each(runtime.iter(), "Runtime", |name| {
        rules.runtimes.contains(name)
    })?;
    if let Some(HostConfigLogConfig { typ, config: _ }) = log_config {
        let local = ["json-file", "local", "journald", "none"];
        each(typ.iter(), "LogConfig.Type", |name| {
            local.contains(&name.as_str()) || rules.log_drivers.contains(name)
        })?;
    }
    networks::ports(rules, port_bindings.as_ref())?;
    if ours.own_image {
        return Ok(());
    }
    let ceilings = &rules.ceilings;
    let memory_ceiling = ceilings.memory.map(|size| size.0);
    ceiling("Memory", *memory, memory_ceiling, "bytes")?;
    let cpu_ceiling = ceilings.cpus.map(holdfast_proto::spec::Cpus::as_nanos);
    ceiling(
        "NanoCpus",
        *nano_cpus,
        cpu_ceiling,
        "billionths of a processor",
    )?;
    ceiling(
        "PidsLimit",
        *pids_limit,
        ceilings.pids.map(u64::from),
        "processes",
    )
}

fn each<'a>(
    mut values: impl Iterator<Item = &'a String>,
    field: &str,
    allows: impl Fn(&String) -> bool,
) -> Result<(), Refusal> {
    match values.find(|value| !allows(value)) {
        Some(value) => Err(refusal(
            format!("HostConfig.{field}"),
            format!("`{}` is not listed", foreign(value)),
        )),
        None => Ok(()),
    }
}

/// A container without a limit may use everything, which is more than any ceiling.
fn ceiling(field: &str, asked: Option<i64>, most: Option<u64>, unit: &str) -> Result<(), Refusal> {
    let Some(most) = most else {
        return Ok(());
    };
    let field = format!("HostConfig.{field}");
    match asked
        .and_then(|asked| u64::try_from(asked).ok())
        .filter(|asked| *asked > 0)
    {
        None => Err(refusal(
            field,
            format!("it has no limit, write one of at most {most} {unit}"),
        )),
        Some(asked) => allow(asked <= most, field, || {
            format!("{asked} is more than {most} {unit}")
        }),
    }
}

/// Judges whose namespace a container uses: its own, the device's, or another container's.
fn namespace(
    host_allowed: bool,
    mode: Option<&str>,
    field: &str,
    own: &[&str],
    ours: &Ours<'_>,
) -> Result<(), Refusal> {
    let field = format!("HostConfig.{field}");
    match mode {
        None | Some("") => Ok(()),
        Some(word) if own.contains(&word) => Ok(()),
        Some("host") => allow(host_allowed, field, || "it is the device's own".to_owned()),
        Some(other) => other_container(other, field, ours),
    }
}

fn other_container(mode: &str, field: String, ours: &Ours<'_>) -> Result<(), Refusal> {
    let other = mode.strip_prefix("container:");
    allow(
        other.is_some_and(|other| ours.containers.contains(&other)),
        field,
        || format!("`{}` is not its own", foreign(mode)),
    )
}

#[cfg(test)]
mod tests;
