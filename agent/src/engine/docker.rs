//! Owns the conversation with a Docker engine; beside `convert.rs` the only file that names bollard.
//!
//! Refuses to trust a status alone (an engine may fail and yet have done it: look again), and to wait
//! for ever: every call has a bound.

mod answers;
mod archive;
mod exec;
mod get;
mod image;
mod libpod;
mod network;
mod read;

pub mod survey;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error as DockerError;
use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, EventMessage, EventMessageTypeEnum, SystemVersion,
};
use bollard::query_parameters::{
    CreateContainerOptions, EventsOptions, RemoveContainerOptions, RenameContainerOptions,
    StopContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt as _;
use holdfast_plan::{Amounts, ContainerState, NetworkKey};
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Platform;
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::Identity;

use super::member::Sink;
use super::{
    Engine, EngineContainer, EngineError, EngineImage, EngineInfo, EngineNetwork, Executed, Fetch,
    ImageStore, NewContainer, NewSandbox, Operation, ReadError, StoredImage, convert, guard, known,
    labels, sandbox,
};
use crate::fault::foreign;
use crate::policy::Policy;
use crate::secrets;

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
/// Events of containers and networks that can change a plan; each health probe's `exec_…` cannot.
const EVENTS: [&str; 10] = [
    "start",
    "die",
    "destroy",
    "disconnect",
    "pause",
    "unpause",
    "oom",
    "health_status",
    "rename",
    "update",
];

/// An engine with Docker's API behind a unix socket.
pub struct DockerEngine {
    socket: PathBuf,
    runtime_dir: PathBuf,
    policy: Policy,
    /// None until a version was agreed on, and again after the engine was away: it may come back newer.
    agreed: RefCell<Option<Agreed>>,
    /// The connection that reads go over; none while one of them uses it.
    conversation: RefCell<Option<get::Conversation>>,
}

/// A connection whose API version both sides know.
#[derive(Clone)]
struct Agreed {
    docker: Docker,
    dialect: Dialect,
}

/// Whose engine speaks Docker's API; they differ where the API leaves room, and in what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// Docker's own.
    Docker,
    /// Podman's.
    ///
    /// Version 4 cannot change a container that exists, so its containers keep the restart policy
    /// `no` for ever, and the agent starts them again itself: no program of Podman's would do it
    /// after a reboot anyway. Such a container is described with the policy that the agent follows.
    Podman,
}

impl DockerEngine {
    /// The engine behind `socket` for commands that change nothing.
    pub fn looking(socket: &Path) -> Self {
        Self::new(socket, Path::new(""), Policy::unrestricted())
    }

    /// The engine behind `socket`, asked only for what `policy` allows; nothing is connected yet. The
    /// files of secrets are below `runtime_dir`, see [`crate::secrets`].
    pub fn new(socket: &Path, runtime_dir: &Path, policy: Policy) -> Self {
        Self {
            socket: socket.to_owned(),
            runtime_dir: runtime_dir.to_owned(),
            policy,
            agreed: RefCell::new(None),
            conversation: RefCell::new(None),
        }
    }

    async fn agreed(&self, operation: Operation) -> Result<Agreed, EngineError> {
        if let Some(agreed) = self.agreed.borrow().as_ref() {
            return Ok(agreed.clone());
        }
        let path = self.socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, NO_BOUND_SECONDS, API_DEFAULT_VERSION)
            .map_err(|error| fault(operation, error))?;
        let docker = bounded(operation, READ_TIMEOUT, docker.negotiate_version()).await?;
        let version = bounded(operation, READ_TIMEOUT, docker.version()).await?;
        let agreed = Agreed {
            docker,
            dialect: dialect(&version),
        };
        *self.agreed.borrow_mut() = Some(agreed.clone());
        Ok(agreed)
    }

    /// A connection with an agreed API version.
    async fn docker(&self, operation: Operation) -> Result<Docker, EngineError> {
        Ok(self.agreed(operation).await?.docker)
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
        outcome.map_err(|failure| self.noted(failure))
    }

    /// Forgets the agreed version after a failure that another engine may be behind.
    fn noted(&self, failure: EngineError) -> EngineError {
        if failure.is_engine_away() {
            self.forget_version();
        }
        failure
    }

    fn forget_version(&self) {
        *self.agreed.borrow_mut() = None;
        *self.conversation.borrow_mut() = None;
    }

    async fn inspect(&self, id: &str) -> Result<Option<answers::Container>, EngineError> {
        let path = format!("/containers/{}/json", get::name(id));
        absent_is_none(self.get(Operation::Inspect, &path).await)
    }

    async fn look(&self, id: &str) -> Result<Option<EngineContainer>, EngineError> {
        let Some(found) = self.inspect(id).await? else {
            return Ok(None);
        };
        let dialect = self.agreed(Operation::Inspect).await?.dialect;
        read::container(found, dialect).map(Some)
    }

    /// A container that must be there for what is asked of it.
    async fn must_find(
        &self,
        operation: Operation,
        id: &str,
    ) -> Result<EngineContainer, EngineError> {
        self.look(id).await?.ok_or_else(|| EngineError::Refused {
            operation,
            status: 404,
            message: format!("there is no container {id}"),
        })
    }

    /// Makes a container; `is_it` tells whether one of that name is what was asked for.
    async fn create_named(
        &self,
        name: &str,
        // Large, and kept while the engine works.
        body: Box<ContainerCreateBody>,
        is_it: impl Fn(&EngineContainer) -> bool,
    ) -> Result<String, EngineError> {
        let options = CreateContainerOptions {
            name: Some(name.to_owned()),
            ..CreateContainerOptions::default()
        };
        let outcome = self
            .call(Operation::Create, CHANGE_TIMEOUT, |docker| async move {
                Box::pin(docker.create_container(Some(options), *body)).await
            })
            .await;
        let failure = match outcome {
            Ok(created) => return Ok(created.id),
            Err(failure) => failure,
        };
        // The answer may have been lost after the work was done, or the name be a stranger's.
        match self.look(name).await? {
            Some(found) if is_it(&found) => Ok(found.id),
            Some(_) => Err(EngineError::ForeignName {
                name: name.to_owned(),
            }),
            None => Err(failure),
        }
    }

    /// Removes a container; one that is gone is fine, and one that somebody else removes is awaited.
    async fn delete(&self, id: &str, force: bool) -> Result<(), EngineError> {
        let options = RemoveContainerOptions {
            // Volumes are the user's: they stay.
            v: false,
            force,
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
            }) if message.contains("in progress") => self.wait_for_removal(id, message).await,
            other => other,
        }
    }

    /// Waits until a removal that somebody else began has ended; `message` is what the engine said.
    async fn wait_for_removal(&self, id: &str, message: String) -> Result<(), EngineError> {
        for _ in 0..REMOVAL_LOOKS {
            if self.inspect(id).await?.is_none() {
                return Ok(());
            }
            tokio::time::sleep(REMOVAL_PAUSE).await;
        }
        // The engine answers: it is this removal that is stuck, not the engine.
        Err(EngineError::Refused {
            operation: Operation::Remove,
            status: 409,
            message,
        })
    }

    async fn start_once(&self, id: &str) -> Result<(), EngineError> {
        self.call(Operation::Start, CHANGE_TIMEOUT, |docker| async move {
            docker.start_container(id, None).await
        })
        .await
    }
}

impl Engine for DockerEngine {
    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        self.forget_version();
        let agreed = self.agreed(Operation::Describe).await?;
        let api_version = agreed.docker.client_version();
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
        let root = info.docker_root_dir.unwrap_or_default();
        // Podman makes up another id for each answer; its store stays where it is.
        let id = match agreed.dialect {
            Dialect::Podman => format!("podman:{root}"),
            Dialect::Docker => info.id.unwrap_or_default(),
        };
        Ok(EngineInfo {
            id,
            version: info.server_version.unwrap_or_default(),
            api_version: api_version.to_string(),
            store: if is_containerd {
                ImageStore::Containerd
            } else {
                ImageStore::Classic
            },
            platform: Platform::new(&os, &architecture, None),
            root,
        })
    }

    async fn containers(&self, device: &DeviceId) -> Result<Vec<EngineContainer>, EngineError> {
        let path = format!("/containers/json?all=true&{}", only_of(device));
        let listed: Vec<answers::Listed> = self.get(Operation::List, &path).await?;
        let mut containers = Vec::with_capacity(listed.len());
        let mut sharing = Vec::new();
        for id in listed.into_iter().filter_map(|summary| summary.id) {
            // One that vanished between the list and the look is simply not there.
            if let Some(found) = self.look(&id).await? {
                sharing.extend(found.shares.clone().map(|owner| (containers.len(), owner)));
                containers.push(found);
            }
        }
        for (position, owner) in sharing {
            let mut all = containers.iter();
            let Some(owner) = all.find(|found| found.id == owner || found.name == owner) else {
                continue;
            };
            let (id, addresses) = (owner.id.clone(), owner.addresses.clone());
            containers[position].shares = Some(id);
            containers[position].addresses = addresses;
        }
        Ok(containers)
    }

    async fn container(&self, id: &str) -> Result<Option<EngineContainer>, EngineError> {
        self.look(id).await
    }

    async fn image(&self, pinned: &str) -> Result<Option<EngineImage>, EngineError> {
        self.find_image(pinned).await
    }

    async fn pull(&self, fetch: &Fetch<'_>) -> Result<(), EngineError> {
        guard::fetch(&self.policy, fetch)?;
        self.pull_image(fetch).await
    }

    async fn create(&self, new: &NewContainer<'_>) -> Result<String, EngineError> {
        let agreed = self.agreed(Operation::Create).await?;
        let version = agreed.docker.client_version();
        let around = convert::Surroundings {
            api_version: (version.major_version, version.minor_version),
            runtime_dir: &self.runtime_dir,
            shares_hostname: match agreed.dialect {
                Dialect::Docker => true,
                Dialect::Podman => false,
            },
        };
        let mut body = Box::new(convert::create_body(new, around)?);
        let networks: Vec<&str> = new.network.names().collect();
        let lender = new.network.lender();
        let files = secrets::service_folder(&self.runtime_dir, new.key);
        // It holds the files of a release of the agent, and is never started.
        let is_agent = new.service.config.is_agent();
        if is_agent {
            guard::release(&self.policy, &new.service.image_name)?;
        }
        let ours = guard::Ours {
            containers: lender.as_slice(),
            networks: &networks,
            files: Some(&files),
            own_image: is_agent,
        };
        guard::container(&self.policy, &body, &ours)?;
        // The policy speaks of where an image comes from; here it may be called otherwise.
        body.image = Some(known::name_for(self, new).await?);
        self.create_named(new.name, body, |found| is_what_was_asked(found, new))
            .await
    }

    async fn create_sandbox(&self, new: &NewSandbox<'_>) -> Result<String, EngineError> {
        let is_it = |found: &EngineContainer| is_this_sandbox(found, new);
        let networks: Vec<&str> = new.networks.iter().map(|(name, _)| name.as_str()).collect();
        let ours = guard::Ours {
            networks: &networks,
            own_image: true,
            ..guard::Ours::default()
        };
        let body = Box::new(convert::sandbox_body(new));
        guard::container(&self.policy, &body, &ours)?;
        let first = self.create_named(new.name, body.clone(), is_it).await;
        let Err(EngineError::Refused { status: 404, .. }) = &first else {
            return first;
        };
        if self.find_image(sandbox::IMAGE).await?.is_some() {
            // It is a network that is missing.
            return first;
        }
        self.load_sandbox_image().await?;
        self.create_named(new.name, body, is_it).await
    }

    async fn set_restart(&self, id: &str, policy: RestartPolicy) -> Result<(), EngineError> {
        match self.agreed(Operation::SetRestart).await?.dialect {
            Dialect::Docker => {}
            Dialect::Podman => return self.must_find(Operation::SetRestart, id).await.map(drop),
        }
        let update = ContainerUpdateBody {
            restart_policy: Some(convert::restart(policy)),
            ..ContainerUpdateBody::default()
        };
        let outcome = self
            .call(Operation::SetRestart, CHANGE_TIMEOUT, |docker| async move {
                docker.update_container(id, update).await
            })
            .await;
        let Err(failure) = outcome else {
            return Ok(());
        };
        match self.look(id).await? {
            Some(found) if found.restart == policy => Ok(()),
            Some(_) | None => Err(failure),
        }
    }

    async fn start(&self, id: &str) -> Result<(), EngineError> {
        let Err(failure) = self.start_once(id).await else {
            return Ok(());
        };
        // An engine on a full disk starts a container and says that it did not.
        match self.look(id).await? {
            Some(found) if found.state.is_up() => Ok(()),
            Some(found) if network::speaks_of_an_endpoint(&failure) => {
                self.connect_anew(&found).await?;
                self.start_once(id).await
            }
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
        match self.look(id).await? {
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
        match self.look(id).await? {
            Some(found) if found.state == ContainerState::Paused => Err(failure),
            Some(_) | None => Ok(()),
        }
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let Err(failure) = self.delete(id, false).await else {
            return Ok(());
        };
        match self.look(id).await? {
            None => Ok(()),
            // What is left of one whose removal failed; nothing of it runs.
            Some(found) if found.state == ContainerState::Dead => self.delete(id, true).await,
            Some(_) => Err(failure),
        }
    }

    async fn rename(&self, id: &str, name: &str) -> Result<(), EngineError> {
        let options = RenameContainerOptions {
            name: name.to_owned(),
        };
        let outcome = self
            .call(Operation::Rename, CHANGE_TIMEOUT, |docker| async move {
                docker.rename_container(id, options).await
            })
            .await;
        let Err(failure) = outcome else {
            return Ok(());
        };
        match self.look(name).await? {
            Some(found) if found.id == id => Ok(()),
            Some(_) => Err(EngineError::ForeignName {
                name: name.to_owned(),
            }),
            None => Err(failure),
        }
    }

    async fn set_amounts(&self, id: &str, amounts: Amounts) -> Result<(), EngineError> {
        let found = self.must_find(Operation::SetAmounts, id).await?;
        match self.agreed(Operation::SetAmounts).await?.dialect {
            Dialect::Docker => {}
            Dialect::Podman => return Err(convert::no_new_amounts().into()),
        }
        let info = self
            .call(Operation::Describe, READ_TIMEOUT, |docker| async move {
                docker.info().await
            })
            .await?;
        let processors = info.ncpu.and_then(|count| u64::try_from(count).ok());
        let update = convert::amounts_body(found.amounts, amounts, processors.unwrap_or(1));
        self.call(Operation::SetAmounts, CHANGE_TIMEOUT, |docker| async move {
            docker.update_container(id, update).await
        })
        .await
    }

    async fn networks(&self, device: &DeviceId) -> Result<Vec<EngineNetwork>, EngineError> {
        self.list_networks(&only_of(device)).await
    }

    async fn create_network(
        &self,
        device: &DeviceId,
        key: &NetworkKey,
        name: &str,
    ) -> Result<(), EngineError> {
        self.make_network(device, key, name).await
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        self.delete_network(id).await
    }

    async fn connect(
        &self,
        network: &str,
        container: &str,
        aliases: &[String],
    ) -> Result<(), EngineError> {
        self.connect_to(network, container, aliases).await
    }

    async fn disconnect(&self, network: &str, container: &str) -> Result<(), EngineError> {
        self.disconnect_from(network, container).await
    }

    async fn images(&self) -> Result<Vec<StoredImage>, EngineError> {
        self.list_images().await
    }

    async fn tag(&self, image: &str, name: &str) -> Result<(), EngineError> {
        self.tag_image(image, name).await
    }

    async fn remove_image(&self, image: &str) -> Result<(), EngineError> {
        self.remove_image_or_name(image).await
    }

    async fn read_file(
        &self,
        id: &str,
        path: &str,
        most_bytes: u64,
        take: Sink<'_>,
    ) -> Result<(), ReadError> {
        self.read_archive(id, path, most_bytes, take).await
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
        // Not filtered by label: what happens to networks carries no labels of containers.
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let filters = HashMap::from([
            ("type".to_owned(), words(&["container", "network"])),
            ("event".to_owned(), words(&EVENTS)),
        ]);
        let mut stream = std::pin::pin!(docker.events(Some(EventsOptions {
            filters: Some(filters),
            ..EventsOptions::default()
        })));
        while let Some(event) = stream.next().await {
            let event = event.map_err(|error| fault(Operation::Watch, error))?;
            if may_concern(device, &event) {
                nudge();
            }
        }
        Ok(())
    }
}

/// Whether an event is about this device's containers, or about a network that one may be in.
fn may_concern(device: &DeviceId, event: &EventMessage) -> bool {
    if event.typ == Some(EventMessageTypeEnum::NETWORK) {
        return true;
    }
    let labels = event
        .actor
        .as_ref()
        .and_then(|actor| actor.attributes.as_ref());
    labels.is_some_and(|labels| labels::belongs_to(labels, device))
}

/// The part of a query that asks only for what is this device's.
fn only_of(device: &DeviceId) -> String {
    get::only("label", &format!("{}={device}", labels::DEVICE))
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

/// The engine does not speak the API version that was agreed on.
#[derive(Debug, thiserror::Error)]
#[error("it speaks other versions of its API: {0}")]
struct OtherVersion(String);

fn fault(operation: Operation, error: DockerError) -> EngineError {
    match error {
        DockerError::DockerResponseServerError {
            status_code,
            message,
        } => refusal(operation, status_code, &message),
        DockerError::JsonDataError { message, .. } => EngineError::Nonsense { detail: message },
        other => EngineError::Unreachable {
            operation,
            source: Box::new(other),
        },
    }
}

/// What it means that an engine said no.
fn refusal(operation: Operation, status: u16, message: &str) -> EngineError {
    // An engine that was upgraded or taken back while the agent ran. As good as away: the next call
    // agrees on a version again.
    if status == 400 && message.contains("client version") {
        return EngineError::Unreachable {
            operation,
            source: Box::new(OtherVersion(foreign(message))),
        };
    }
    // Podman's words and status for a container that goes while it looks at it.
    let is_gone = status == 500 && message.ends_with("no such container");
    EngineError::Refused {
        operation,
        status: if is_gone { 404 } else { status },
        message: foreign(message),
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

/// The engine's version names its components; Docker's is called "Engine".
fn dialect(version: &SystemVersion) -> Dialect {
    let mut components = version.components.iter().flatten();
    if components.any(|component| component.name.starts_with("Podman")) {
        Dialect::Podman
    } else {
        Dialect::Docker
    }
}

fn is_this_sandbox(found: &EngineContainer, new: &NewSandbox<'_>) -> bool {
    labels::belongs_to(&found.labels, new.device)
        && labels::read(&found.labels).is_some_and(|own| {
            own.key == *new.key
                && own.generation == new.generation
                && own.sandbox_hash == Some(new.spec.hash())
        })
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

#[cfg(test)]
mod tests;
