//! Owns the conversation with a Docker engine; beside `convert.rs` the only file that names bollard.
//!
//! Refuses to trust a status alone (an engine may fail and yet have done it: look again), and to wait
//! for ever: every call has a bound.

mod exec;

pub mod survey;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error as DockerError;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerUpdateBody, CreateImageInfo,
    HealthStatusEnum, NetworkSettings,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, EventsOptions, ListContainersOptions,
    RemoveContainerOptions, StopContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt as _;
use holdfast_plan::{ContainerState, Health};
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Platform;
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::Identity;

use super::{
    Engine, EngineContainer, EngineError, EngineImage, EngineInfo, Executed, ImageStore,
    NewContainer, Operation, convert, guard, labels,
};
use crate::fault::foreign;
use crate::policy::Policy;

/// Reading is quick; an engine that needs longer is hung (measured: a stopped one never answers).
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Making, starting and removing touch disks and networks.
const CHANGE_TIMEOUT: Duration = Duration::from_mins(1);
/// What stopping may take beyond the container's own grace period.
const STOP_MARGIN: Duration = Duration::from_secs(20);
/// The engine's own default when a container names no grace period.
const DEFAULT_GRACE_SECONDS: u64 = 10;
/// How long a removal that somebody else began is waited for, and how often it is looked at.
const REMOVAL_LOOKS: u32 = 40;
const REMOVAL_PAUSE: Duration = Duration::from_millis(250);
/// bollard's own bound, above all of ours, so that only ours speak.
const NO_BOUND_SECONDS: u64 = 24 * 3_600;
/// Container events that can change a plan; each health probe's `exec_…` events cannot.
const EVENTS: [&str; 9] = [
    "start",
    "die",
    "destroy",
    "pause",
    "unpause",
    "oom",
    "health_status",
    "rename",
    "update",
];

/// A Docker engine behind a unix socket.
pub struct DockerEngine {
    socket: PathBuf,
    policy: Policy,
    /// None until a version was agreed on, and again after the engine was away: it may come back newer.
    agreed: RefCell<Option<Docker>>,
}

impl DockerEngine {
    /// The engine behind `socket`, asked only for what `policy` allows; nothing is connected yet.
    pub fn new(socket: &Path, policy: Policy) -> Self {
        Self {
            socket: socket.to_owned(),
            policy,
            agreed: RefCell::new(None),
        }
    }

    /// A connection with an agreed API version.
    async fn docker(&self, operation: Operation) -> Result<Docker, EngineError> {
        if let Some(docker) = self.agreed.borrow().as_ref() {
            return Ok(docker.clone());
        }
        let path = self.socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, NO_BOUND_SECONDS, API_DEFAULT_VERSION)
            .map_err(|error| fault(operation, error))?;
        let docker = bounded(operation, READ_TIMEOUT, docker.negotiate_version()).await?;
        *self.agreed.borrow_mut() = Some(docker.clone());
        Ok(docker)
    }

    /// Runs one call; an engine that was away is asked for its version again next time.
    async fn call<T, F: Future<Output = Result<T, DockerError>>>(
        &self,
        operation: Operation,
        timeout: Duration,
        call: impl FnOnce(Docker) -> F,
    ) -> Result<T, EngineError> {
        let docker = self.docker(operation).await?;
        let outcome = bounded(operation, timeout, call(docker)).await;
        if outcome.as_ref().is_err_and(EngineError::is_engine_away) {
            self.forget_version();
        }
        outcome
    }

    fn forget_version(&self) {
        *self.agreed.borrow_mut() = None;
    }

    async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let found = self
            .call(Operation::Inspect, READ_TIMEOUT, |docker| async move {
                docker.inspect_container(id, None).await
            })
            .await;
        absent_is_none(found)
    }

    /// Waits until a removal that somebody else began has ended.
    async fn wait_for_removal(&self, id: &str) -> Result<(), EngineError> {
        for _ in 0..REMOVAL_LOOKS {
            if self.inspect(id).await?.is_none() {
                return Ok(());
            }
            tokio::time::sleep(REMOVAL_PAUSE).await;
        }
        Err(EngineError::TimedOut {
            operation: Operation::Remove,
            timeout_ms: millis(REMOVAL_PAUSE * REMOVAL_LOOKS),
        })
    }
}

impl Engine for DockerEngine {
    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        self.forget_version();
        let docker = self.docker(Operation::Describe).await?;
        let api_version = docker.client_version();
        let info = self
            .call(Operation::Describe, READ_TIMEOUT, |docker| async move {
                docker.info().await
            })
            .await?;
        let os = info.os_type.unwrap_or_else(|| "linux".to_owned());
        let architecture = info.architecture.ok_or_else(|| EngineError::Nonsense {
            detail: "it names no architecture".to_owned(),
        })?;
        // The containerd store says so in the driver's status; the classic stores never do.
        let is_containerd = info.driver_status.iter().flatten().any(|pair| {
            pair.first().is_some_and(|name| name == "driver-type")
                && pair
                    .get(1)
                    .is_some_and(|kind| kind.starts_with("io.containerd."))
        });
        Ok(EngineInfo {
            id: info.id.unwrap_or_default(),
            version: info.server_version.unwrap_or_default(),
            api_version: api_version.to_string(),
            store: if is_containerd {
                ImageStore::Containerd
            } else {
                ImageStore::Classic
            },
            platform: Platform::new(&os, &architecture, None),
            root: info.docker_root_dir.unwrap_or_default(),
        })
    }

    async fn containers(&self, device: &DeviceId) -> Result<Vec<EngineContainer>, EngineError> {
        let options = ListContainersOptions {
            all: true,
            filters: Some(own_label(device)),
            ..ListContainersOptions::default()
        };
        let listed = self
            .call(Operation::List, READ_TIMEOUT, |docker| async move {
                docker.list_containers(Some(options)).await
            })
            .await?;
        let mut containers = Vec::with_capacity(listed.len());
        let mut sharing = Vec::new();
        for id in listed.into_iter().filter_map(|summary| summary.id) {
            // One that vanished between the list and the look is simply not there.
            if let Some(found) = self.inspect(&id).await? {
                sharing.extend(network_owner(&found).map(|owner| (containers.len(), owner)));
                containers.push(container(found)?);
            }
        }
        for (position, owner) in sharing {
            let mut all = containers.iter();
            let owner = all.find(|found| found.id == owner || found.name == owner);
            containers[position].addresses = owner.map_or(Vec::new(), |o| o.addresses.clone());
        }
        Ok(containers)
    }

    async fn container(&self, id: &str) -> Result<Option<EngineContainer>, EngineError> {
        self.inspect(id).await?.map(container).transpose()
    }

    async fn image(&self, pinned: &str) -> Result<Option<EngineImage>, EngineError> {
        let found = self
            .call(Operation::InspectImage, READ_TIMEOUT, |docker| async move {
                docker.inspect_image(pinned).await
            })
            .await;
        let Some(image) = absent_is_none(found)? else {
            return Ok(None);
        };
        let os = image.os.unwrap_or_else(|| "linux".to_owned());
        let architecture = image.architecture.unwrap_or_default();
        let descriptor = image.descriptor.and_then(|descriptor| descriptor.digest);
        Ok(Some(EngineImage {
            ids: [image.id, descriptor]
                .into_iter()
                .flatten()
                .filter_map(|text| text.parse().ok())
                .collect(),
            platform: Platform::new(&os, &architecture, image.variant.as_deref()),
        }))
    }

    async fn pull(
        &self,
        pinned: &str,
        platform: &Platform,
        no_progress_ms: u64,
    ) -> Result<(), EngineError> {
        guard::image(&self.policy, pinned)?;
        let docker = self.docker(Operation::Pull).await?;
        let options = CreateImageOptions {
            from_image: Some(pinned.to_owned()),
            platform: platform.to_string(),
            ..CreateImageOptions::default()
        };
        let stream = docker.create_image(Some(options), None, None);
        let mut stream = std::pin::pin!(stream);
        let mut layers = HashMap::new();
        let patience = Duration::from_millis(no_progress_ms);
        let mut deadline = tokio::time::Instant::now() + patience;
        loop {
            // Dropping the stream closes the connection, which cancels the pull.
            let next = tokio::time::timeout_at(deadline, stream.next()).await;
            match next.map_err(|_| EngineError::PullStalled { no_progress_ms })? {
                None => return Ok(()),
                Some(Ok(message)) => {
                    if progressed(&mut layers, message) {
                        deadline = tokio::time::Instant::now() + patience;
                    }
                }
                Some(Err(DockerError::DockerStreamError { error })) => {
                    return Err(EngineError::PullBroke {
                        message: foreign(&error),
                    });
                }
                Some(Err(error)) => return Err(fault(Operation::Pull, error)),
            }
        }
    }

    async fn create(&self, new: &NewContainer<'_>) -> Result<String, EngineError> {
        let body = convert::create_body(new)?;
        guard::container(&self.policy, &body, &guard::Ours::default())?;
        let options = CreateContainerOptions {
            name: Some(new.name.to_owned()),
            ..CreateContainerOptions::default()
        };
        let outcome = self
            .call(Operation::Create, CHANGE_TIMEOUT, |docker| async move {
                docker.create_container(Some(options), body).await
            })
            .await;
        let failure = match outcome {
            Ok(created) => return Ok(created.id),
            Err(failure) => failure,
        };
        // The answer may have been lost after the work was done, or the name be a stranger's.
        match self.container(new.name).await? {
            Some(found) if is_what_was_asked(&found, new) => Ok(found.id),
            Some(_) => Err(EngineError::ForeignName {
                name: new.name.to_owned(),
            }),
            None => Err(failure),
        }
    }

    async fn set_restart(&self, id: &str, policy: RestartPolicy) -> Result<(), EngineError> {
        let update = ContainerUpdateBody {
            restart_policy: Some(convert::restart(policy)),
            ..ContainerUpdateBody::default()
        };
        self.call(Operation::SetRestart, CHANGE_TIMEOUT, |docker| async move {
            docker.update_container(id, update).await
        })
        .await
    }

    async fn start(&self, id: &str) -> Result<(), EngineError> {
        let outcome = self
            .call(Operation::Start, CHANGE_TIMEOUT, |docker| async move {
                docker.start_container(id, None).await
            })
            .await;
        let Err(failure) = outcome else {
            return Ok(());
        };
        // An engine on a full disk starts a container and says that it did not.
        match self.container(id).await? {
            Some(found) if found.state.is_up() => Ok(()),
            Some(_) | None => Err(failure),
        }
    }

    async fn stop(&self, id: &str) -> Result<(), EngineError> {
        let Some(found) = self.inspect(id).await? else {
            return Ok(());
        };
        let grace = found
            .config
            .and_then(|config| config.stop_timeout)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .unwrap_or(DEFAULT_GRACE_SECONDS);
        let timeout = Duration::from_secs(grace) + STOP_MARGIN;
        let outcome = self
            .call(Operation::Stop, timeout, |docker| async move {
                docker
                    .stop_container(id, None::<StopContainerOptions>)
                    .await
            })
            .await;
        let Err(failure) = outcome else {
            return Ok(());
        };
        match self.container(id).await? {
            Some(found) if found.state.is_up() => Err(failure),
            Some(_) | None => Ok(()),
        }
    }

    async fn unpause(&self, id: &str) -> Result<(), EngineError> {
        let outcome = self
            .call(Operation::Unpause, CHANGE_TIMEOUT, |docker| async move {
                docker.unpause_container(id).await
            })
            .await;
        let Err(failure) = outcome else {
            return Ok(());
        };
        match self.container(id).await? {
            Some(found) if found.state == ContainerState::Paused => Err(failure),
            Some(_) | None => Ok(()),
        }
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptions {
            v: false,
            force: false,
            link: false,
        };
        let outcome = self
            .call(Operation::Remove, CHANGE_TIMEOUT, |docker| async move {
                docker.remove_container(id, Some(options)).await
            })
            .await;
        match outcome {
            Err(EngineError::Refused { status: 404, .. }) => Ok(()),
            Err(EngineError::Refused {
                status: 409,
                message,
                ..
            }) if message.contains("in progress") => self.wait_for_removal(id).await,
            other => other,
        }
    }

    async fn exec(
        &self,
        id: &str,
        words: &[String],
        timeout_ms: u64,
    ) -> Result<Executed, EngineError> {
        self.execute(id, words, timeout_ms).await
    }

    async fn watch(&self, device: &DeviceId, nudge: impl Fn()) -> Result<(), EngineError> {
        let docker = self.docker(Operation::Watch).await?;
        let mut filters = own_label(device);
        filters.insert("type".to_owned(), vec!["container".to_owned()]);
        let events = EVENTS.iter().map(ToString::to_string).collect();
        filters.insert("event".to_owned(), events);
        let mut stream = std::pin::pin!(docker.events(Some(EventsOptions {
            filters: Some(filters),
            ..EventsOptions::default()
        })));
        while let Some(event) = stream.next().await {
            event.map_err(|error| fault(Operation::Watch, error))?;
            nudge();
        }
        Ok(())
    }
}

fn own_label(device: &DeviceId) -> HashMap<String, Vec<String>> {
    let label = format!("{}={device}", labels::DEVICE);
    HashMap::from([("label".to_owned(), vec![label])])
}

async fn bounded<T>(
    operation: Operation,
    timeout: Duration,
    call: impl Future<Output = Result<T, DockerError>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(outcome) => outcome.map_err(|error| fault(operation, error)),
        Err(_) => Err(EngineError::TimedOut {
            operation,
            timeout_ms: millis(timeout),
        }),
    }
}

fn fault(operation: Operation, error: DockerError) -> EngineError {
    match error {
        DockerError::DockerResponseServerError {
            status_code,
            message,
        } => EngineError::Refused {
            operation,
            status: status_code,
            message: foreign(&message),
        },
        DockerError::JsonDataError { message, .. } => EngineError::Nonsense { detail: message },
        other => EngineError::Unreachable {
            operation,
            source: Box::new(other),
        },
    }
}

fn absent_is_none<T>(outcome: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(EngineError::Refused { status: 404, .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whether a pull's message says that something moved. The engine repeats "Retrying in n seconds"
/// while nothing does; its own retries end by themselves, and ours are longer.
fn progressed(layers: &mut HashMap<String, (String, i64)>, message: CreateImageInfo) -> bool {
    let status = message.status.unwrap_or_default();
    if status.starts_with("Retrying") {
        return false;
    }
    let current = message
        .progress_detail
        .and_then(|detail| detail.current)
        .unwrap_or(0);
    let seen = (status, current);
    let before = layers.insert(message.id.unwrap_or_default(), seen.clone());
    before != Some(seen)
}

fn is_what_was_asked(found: &EngineContainer, new: &NewContainer<'_>) -> bool {
    let identity: Option<Identity> = new.service.identity();
    labels::belongs_to(&found.labels, new.device)
        && labels::read(&found.labels).is_some_and(|own| {
            own.key == *new.key
                && own.generation == new.generation
                && Some(own.identity) == identity
        })
}

fn container(found: ContainerInspectResponse) -> Result<EngineContainer, EngineError> {
    let id = found.id.ok_or_else(|| EngineError::Nonsense {
        detail: "a container has no id".to_owned(),
    })?;
    let state = found.state.unwrap_or_default();
    let exit_code = state.exit_code.unwrap_or(0);
    let probe_error = state.health.as_ref().and_then(exec::health_check_fault);
    let health = state.health.and_then(|health| health.status);
    let host = found.host_config.unwrap_or_default();
    Ok(EngineContainer {
        addresses: addresses(host.network_mode.as_deref(), found.network_settings),
        probe_error,
        name: found
            .name
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned(),
        labels: found
            .config
            .and_then(|config| config.labels)
            .unwrap_or_default(),
        state: match state.status {
            Some(ContainerStateStatusEnum::CREATED) => ContainerState::Created,
            Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::STOPPING) => {
                ContainerState::Running
            }
            Some(ContainerStateStatusEnum::PAUSED) => ContainerState::Paused,
            Some(ContainerStateStatusEnum::RESTARTING) => ContainerState::Restarting,
            Some(ContainerStateStatusEnum::REMOVING) => ContainerState::Removing,
            Some(ContainerStateStatusEnum::DEAD) => ContainerState::Dead,
            Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::EMPTY) | None => {
                ContainerState::Exited { code: exit_code }
            }
        },
        health: match health {
            Some(HealthStatusEnum::STARTING) => Some(Health::Starting),
            Some(HealthStatusEnum::HEALTHY) => Some(Health::Healthy),
            Some(HealthStatusEnum::UNHEALTHY) => Some(Health::Unhealthy),
            Some(HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) | None => None,
        },
        restart_count: found
            .restart_count
            .and_then(|count| u64::try_from(count).ok())
            .unwrap_or(0),
        oom_killed: state.oom_killed.unwrap_or(false),
        restart: convert::restart_from(host.restart_policy.as_ref()),
        started_at: state.started_at.unwrap_or_default(),
        start_error: foreign(&state.error.unwrap_or_default()),
        id,
    })
}

/// The container whose network this one uses, if it uses another's.
fn network_owner(found: &ContainerInspectResponse) -> Option<String> {
    let mode = found.host_config.as_ref()?.network_mode.as_deref()?;
    mode.strip_prefix("container:").map(str::to_owned)
}

/// Where a container can be reached from the device; nowhere when it has no network of its own.
fn addresses(mode: Option<&str>, settings: Option<NetworkSettings>) -> Vec<IpAddr> {
    if mode == Some("host") {
        return vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    }
    let endpoints = settings.and_then(|settings| settings.networks);
    let addresses = endpoints.into_iter().flatten().flat_map(|(_, endpoint)| {
        let v6 = endpoint.global_ipv6_address;
        [endpoint.ip_address, v6].into_iter().flatten()
    });
    let mut addresses: Vec<IpAddr> = addresses.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses
}

#[cfg(test)]
mod tests;
