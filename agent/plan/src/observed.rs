//! Owns what the agent saw of the engine, in the planner's words.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::hash::SpecHash;
use holdfast_proto::id::{DeviceId, ServiceKey, ServiceName};
use holdfast_proto::image::{ConfigDigest, Platform};
use holdfast_proto::spec::{Port, Protocol, RestartPolicy, ServiceSpec};
use holdfast_proto::target::{Identity, ServiceTarget};
use holdfast_proto::time::Timestamp;

use crate::disk::Disk;
use crate::health::ProbeState;
use crate::network::NetworkKey;

/// One look at the engine: this device's containers, and the images that its targets name.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The device.
    pub device: DeviceId,
    /// What images it runs.
    pub platform: Platform,
    /// Every container of a service of this device, in no order.
    pub containers: Vec<Container>,
    /// Every sandbox of this device, in no order.
    pub sandboxes: Vec<Sandbox>,
    /// Every network of this device's apps, in no order.
    pub networks: Vec<Network>,
    /// Containers that carry this device's labels although the agent did not make them.
    pub strangers: Vec<Stranger>,
    /// Services that the device's own policy refuses, each with the reason.
    pub refused: BTreeMap<ServiceKey, String>,
    /// Images by pinned name, `name@sha256:…`; one that is not listed counts as absent.
    pub images: BTreeMap<String, ImagePresence>,
    /// Every image in the engine's store, in no order; none while nobody knows.
    pub stored: Option<Vec<StoredImage>>,
    /// The room where the engine keeps them; none if it cannot be measured.
    pub disk: Option<Disk>,
    /// The agent itself, as the program that looks.
    pub agent: RunningAgent,
}

/// The agent itself: which release runs, and what came of the last one that was tried.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunningAgent {
    /// The release that runs; none while it is the program that was installed with the machine.
    pub identity: Option<Identity>,
    /// Its pinned image, for reports.
    pub image: Option<String>,
    /// Whether that release has yet to prove itself, and until when it may.
    pub on_trial_until: Option<Timestamp>,
    /// A release that was tried and failed, so that the one before it runs again.
    pub failed: Option<FailedAgent>,
    /// The release in whose place somebody installed another program on this device.
    pub superseded: Option<Identity>,
    /// Why none can be tried now.
    pub waits: Option<AgentWait>,
}

/// Why no release of the agent can be tried now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentWait {
    /// The release that is meant; every one, if none.
    pub of: Option<Identity>,
    /// Until when, if time alone decides.
    pub until: Option<Timestamp>,
    /// Why, in words.
    pub why: String,
}

/// A release of the agent that failed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedAgent {
    /// Which one.
    pub identity: Identity,
    /// How, in words.
    pub reason: String,
}

/// One image in the engine's store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredImage {
    /// Its names with tags.
    pub tags: BTreeSet<String>,
    /// Its names with digests, each as [`crate::canonical`] writes it.
    pub digests: BTreeSet<String>,
    /// What it takes on disk, with layers that other images share.
    pub size_bytes: u64,
}

/// Whether an image is in the engine's store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImagePresence {
    /// It must be pulled.
    Absent,
    /// It is there whole.
    Present {
        /// The image's configuration, where the store tells it: on Docker's classic store the image ID.
        config: Option<ConfigDigest>,
        /// The platform it was made for.
        platform: Platform,
    },
}

/// One container of this device.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The service it was made for (labels).
    pub key: ServiceKey,
    /// The target generation it was made in (label).
    pub generation: u64,
    /// The spec it was made from (label).
    pub spec_hash: SpecHash,
    /// The image content it was made from (label).
    pub config_digest: ConfigDigest,
    /// The pinned image it was made from (label).
    pub image: String,
    /// What it does.
    pub state: ContainerState,
    /// What its health check says; none without a check.
    pub health: Option<Health>,
    /// How often the engine started it again.
    pub restart_count: u64,
    /// Whether the kernel killed it for memory.
    pub oom_killed: bool,
    /// The restart policy in force.
    pub restart: RestartPolicy,
    /// The restart policy it gets once it is committed (label).
    pub wanted_restart: RestartPolicy,
    /// Time since the agent first saw this start of it; none unless it runs.
    ///
    /// Measured on the monotonic clock: wall time may jump while a container is being judged. Time in
    /// which the engine was away does not count.
    pub running_for_ms: Option<u64>,
    /// Time since it was first seen healthy without a break; none unless it is.
    pub healthy_for_ms: Option<u64>,
    /// Whether the agent saw this container run since it last lost sight of the engine. The end of one
    /// that it did not see run proves nothing: the engine may have ended it.
    pub witnessed: bool,
    /// What the agent's own probe says; none without a probe, or before its first answer.
    pub probe: Option<ProbeState>,
    /// Why the engine's health check cannot be run, if it cannot.
    pub probe_error: Option<String>,
    /// Its network.
    pub network: NetworkState,
    /// The resources it has.
    pub amounts: Amounts,
}

impl Container {
    /// Whether it was made from exactly what `service` says.
    pub fn is(&self, service: &ServiceTarget) -> bool {
        Identity {
            config_digest: self.config_digest,
            spec_hash: self.spec_hash,
        }
        .matches(service)
    }

    /// What to call it in a step.
    pub fn handle(&self) -> ContainerRef {
        ContainerRef {
            id: self.id.clone(),
            name: self.name.clone(),
        }
    }
}

/// How a container or sandbox is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkState {
    /// The container (engine id) whose network it uses; none if it has its own.
    pub shares: Option<String>,
    /// Whether that container was started again since: this one's network is dead then.
    pub stale: bool,
    /// The app's networks it is connected to.
    pub joined: BTreeMap<ServiceName, Joined>,
    /// Ports that the device really forwards to it; counts only while it runs.
    pub published: BTreeSet<Published>,
}

impl NetworkState {
    /// The first port that should be forwarded and is not.
    pub(crate) fn missing<'p>(&self, ports: &'p [Port]) -> Option<&'p Port> {
        ports.iter().find(|port| {
            !self.published.iter().any(|published| {
                published.target == port.target
                    && published.protocol == port.protocol
                    && port.published.is_none_or(|host| host == published.host)
            })
        })
    }
}

/// Whether a connection to an app's network works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Names it has there.
    pub aliases: BTreeSet<String>,
    /// Whether it is to a network that no longer exists.
    pub stale: bool,
}

/// A port that the device forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// In the container.
    pub target: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// On the device.
    pub host: u16,
}

/// Resources that an engine can change on a container; 0 means none or unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Most memory, bytes.
    pub memory: u64,
    /// Memory kept for it, bytes.
    pub memory_reservation: u64,
    /// Most processor time, in billionths of a processor.
    pub nano_cpus: u64,
    /// Most processes.
    pub pids: u64,
}

impl Amounts {
    /// What a spec asks for.
    pub fn of(spec: &ServiceSpec) -> Self {
        let resources = spec
            .deploy
            .as_ref()
            .and_then(|deploy| deploy.resources.clone())
            .unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        let reserved = resources.reservations.unwrap_or_default();
        let pids = spec.pids_limit.or(limits.pids);
        Self {
            memory: spec.mem_limit.or(limits.memory).map_or(0, |size| size.0),
            memory_reservation: reserved.memory.map_or(0, |size| size.0),
            nano_cpus: spec
                .cpus
                .or(limits.cpus)
                .map_or(0, holdfast_proto::spec::Cpus::as_nanos),
            // -1 is Compose's word for unlimited.
            pids: pids.and_then(|most| u64::try_from(most).ok()).unwrap_or(0),
        }
    }
}

/// The container that holds a service's network.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The service it was made for (label).
    pub key: ServiceKey,
    /// The target generation it was made in (label).
    pub generation: u64,
    /// [`crate::SandboxSpec::hash`] of what it was made from (label).
    pub hash: String,
    /// What it does.
    pub state: ContainerState,
    /// The restart policy in force.
    pub restart: RestartPolicy,
    /// Its network.
    pub network: NetworkState,
}

impl Sandbox {
    /// What to call it in a step.
    pub fn handle(&self) -> ContainerRef {
        ContainerRef {
            id: self.id.clone(),
            name: self.name.clone(),
        }
    }
}

/// A container that claims to be ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// The service that its labels name.
    pub key: ServiceKey,
    /// The container.
    pub container: ContainerRef,
}

/// One network of an app of this device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The engine's id.
    pub id: String,
    /// Its name in the engine.
    pub name: String,
    /// Which one it is (labels).
    pub key: NetworkKey,
}

/// Names one container of the engine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerRef {
    /// The engine's id.
    pub id: String,
    /// Its name, for people.
    pub name: String,
}

impl std::fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Its process runs.
    Running,
    /// Its process is frozen.
    Paused,
    /// Its process ended and the engine is about to start it again.
    Restarting,
    /// Its process ended.
    Exited {
        /// The process's exit code.
        code: i64,
    },
    /// The engine is removing it.
    Removing,
    /// The engine failed to remove it.
    Dead,
}

impl ContainerState {
    /// Whether a process of it exists, or soon will without anyone's doing.
    pub fn is_up(self) -> bool {
        match self {
            Self::Running | Self::Paused | Self::Restarting => true,
            Self::Created | Self::Exited { .. } | Self::Removing | Self::Dead => false,
        }
    }

    /// Whether a sandbox in this state keeps its network alive.
    pub(crate) fn holds_a_network(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// The engine's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited { .. } => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }
}

/// What a health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not decided yet.
    Starting,
    /// The last check passed.
    Healthy,
    /// Enough checks failed in a row.
    Unhealthy,
}

impl Health {
    /// The engine's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}
