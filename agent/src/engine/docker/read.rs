//! Owns the engine's description of a container in the agent's words.
//!
//! Refuses nothing that an engine leaves out or writes in its own way: null, 0 and -1 are all "none".

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use holdfast_plan::{Amounts, ContainerState, Health, Published};
use holdfast_proto::spec::RestartPolicy;

use super::answers::{
    self, Binding, Endpoint, HostConfig, Ports, Restart, RestartName, State, Status, Verdict,
};
use super::{Dialect, exec};
use crate::engine::{EngineAttachment, EngineContainer, EngineError, convert, labels};
use crate::fault::foreign;

/// What `docker inspect` says of a container.
pub(super) fn container(
    found: answers::Container,
    dialect: Dialect,
) -> Result<EngineContainer, EngineError> {
    let id = found.id.ok_or_else(|| EngineError::Nonsense {
        detail: "a container has no id".to_owned(),
    })?;
    let host = found.host_config.unwrap_or_default();
    let settings = found.network_settings.unwrap_or_default();
    let endpoints = settings.networks.unwrap_or_default();
    let state = found.state.unwrap_or_default();
    let health = state.health.as_ref();
    let name = found.name.unwrap_or_default();
    let labels = found.config.and_then(|config| config.labels);
    let labels = labels.unwrap_or_default();
    let life = lifecycle(&state);
    let shares = owner(host.network_mode.as_deref());
    Ok(EngineContainer {
        id,
        name: name.trim_start_matches('/').to_owned(),
        state: life,
        probe_error: health.and_then(exec::health_check_fault),
        health: health.and_then(|health| verdict(health.status?)),
        restart_count: found.restart_count.map_or(0, amount),
        oom_killed: state.oom_killed.unwrap_or(false),
        restart: match dialect {
            Dialect::Docker => restart_from(host.restart_policy.as_ref()),
            Dialect::Podman => followed(life, &labels),
        },
        started_at: state.started_at.unwrap_or_default(),
        start_error: foreign(&state.error.unwrap_or_default()),
        addresses: addresses(host.network_mode.as_deref(), &endpoints),
        image_id: found.image.and_then(|id| id.parse().ok()),
        // Podman shows the connections of the container whose network it is.
        networks: if shares.is_some() {
            BTreeMap::new()
        } else {
            attachments(endpoints)
        },
        shares,
        published: published(settings.ports.unwrap_or_default()),
        amounts: amounts(&host),
        labels,
    })
}

/// The restart policy that the agent itself follows, where the engine cannot change one: it looks
/// after what runs, and leaves alone what was stopped.
fn followed(state: ContainerState, labels: &HashMap<String, String>) -> RestartPolicy {
    match labels::read(labels) {
        Some(own) if state.is_up() && own.sandbox_hash.is_some() => RestartPolicy::Always,
        Some(own) if state.is_up() => own.wanted_restart,
        Some(_) | None => RestartPolicy::No,
    }
}

/// A restart policy from the engine's words.
pub(super) fn restart_from(policy: Option<&Restart>) -> RestartPolicy {
    let Some(policy) = policy else {
        return RestartPolicy::No;
    };
    match policy.name {
        None | Some(RestartName::Unsaid | RestartName::No) => RestartPolicy::No,
        Some(RestartName::Always) => RestartPolicy::Always,
        Some(RestartName::UnlessStopped) => RestartPolicy::UnlessStopped,
        Some(RestartName::OnFailure) => RestartPolicy::OnFailure(
            policy
                .maximum_retry_count
                .and_then(|most| u32::try_from(most).ok())
                .filter(|most| *most > 0),
        ),
    }
}

fn lifecycle(state: &State) -> ContainerState {
    match state.status {
        Some(Status::Created) => ContainerState::Created,
        Some(Status::Running | Status::Stopping) => ContainerState::Running,
        Some(Status::Paused) => ContainerState::Paused,
        Some(Status::Restarting) => ContainerState::Restarting,
        Some(Status::Removing) => ContainerState::Removing,
        Some(Status::Dead) => ContainerState::Dead,
        Some(Status::Exited | Status::Unsaid) | None => ContainerState::Exited {
            code: state.exit_code.unwrap_or(0),
        },
    }
}

fn verdict(status: Verdict) -> Option<Health> {
    match status {
        Verdict::Starting => Some(Health::Starting),
        Verdict::Healthy => Some(Health::Healthy),
        Verdict::Unhealthy => Some(Health::Unhealthy),
        Verdict::None | Verdict::Unsaid => None,
    }
}

/// The container whose network this one uses, if it uses another's.
fn owner(mode: Option<&str>) -> Option<String> {
    mode?.strip_prefix("container:").map(str::to_owned)
}

/// Where a container can be reached from the device; nowhere when it has no network of its own.
fn addresses(mode: Option<&str>, endpoints: &HashMap<String, Endpoint>) -> Vec<IpAddr> {
    if mode == Some("host") {
        return vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    }
    let texts = endpoints.values().flat_map(|endpoint| {
        let v6 = endpoint.global_ipv6_address.as_ref();
        [endpoint.ip_address.as_ref(), v6].into_iter().flatten()
    });
    let mut addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses
}

fn attachments(endpoints: HashMap<String, Endpoint>) -> BTreeMap<String, EngineAttachment> {
    endpoints
        .into_iter()
        .map(|(network, endpoint)| {
            let address = |text: Option<String>| text.and_then(|text| text.parse().ok());
            let v6 = address(endpoint.global_ipv6_address);
            // Podman writes the name for the id: then the id is not known.
            let id = endpoint.network_id.filter(|id| *id != network);
            let attachment = EngineAttachment {
                network_id: id.unwrap_or_default(),
                aliases: endpoint.aliases.into_iter().flatten().collect(),
                address: address(endpoint.ip_address).or(v6),
            };
            (network, attachment)
        })
        .collect()
}

/// Ports that are only exposed have no binding here, and so are not published.
fn published(ports: Ports) -> BTreeSet<Published> {
    let parsed = |(port, bindings): (String, Option<Vec<Binding>>)| {
        let (target, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
        let target = target.parse().ok()?;
        let protocol = protocol.parse().ok()?;
        let hosts = bindings.into_iter().flatten();
        let hosts: Vec<u16> = hosts
            .filter_map(|binding| binding.host_port?.parse().ok())
            .collect();
        Some(hosts.into_iter().map(move |host| Published {
            target,
            protocol,
            host,
        }))
    };
    ports.into_iter().filter_map(parsed).flatten().collect()
}

fn amounts(host: &HostConfig) -> Amounts {
    let read = |value: Option<i64>| value.map_or(0, amount);
    Amounts {
        memory: Some(read(host.memory))
            .filter(|bytes| *bytes < convert::NO_MEMORY_LIMIT)
            .unwrap_or(0),
        memory_reservation: read(host.memory_reservation),
        nano_cpus: Some(read(host.nano_cpus))
            .filter(|nanos| !convert::is_no_cpu_limit(*nanos))
            .unwrap_or(0),
        pids: read(host.pids_limit),
    }
}

/// Below zero is an engine's word for none.
fn amount(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
