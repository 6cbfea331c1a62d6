//! Owns what the agent saw of the engine, in the planner's words.

use std::collections::BTreeMap;

use holdfast_proto::hash::SpecHash;
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::image::{ConfigDigest, Platform};
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::{Identity, ServiceTarget};

/// One look at the engine: this device's containers, and the images that its targets name.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The device.
    pub device: DeviceId,
    /// What images it runs.
    pub platform: Platform,
    /// Every container with this device's labels, in no order.
    pub containers: Vec<Container>,
    /// Images by pinned name, `name@sha256:…`; one that is not listed counts as absent.
    pub images: BTreeMap<String, ImagePresence>,
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
    /// Measured on the monotonic clock: wall time may jump while a container is being judged.
    pub running_for_ms: Option<u64>,
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
