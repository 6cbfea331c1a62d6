//! Owns what the agent may ask of a container engine, in the agent's words.
//!
//! Refuses to know an engine's API: [`docker`] does, and the loops take any [`Engine`].

pub mod convert;
pub mod docker;
#[cfg(feature = "fake")]
pub mod fake;
pub mod guard;
pub mod known;
pub mod labels;
pub mod member;
pub mod sandbox;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::net::IpAddr;

use holdfast_plan::{Amounts, ContainerState, Health, NetworkKey, Published, SandboxSpec};
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::image::{Digest, Platform};
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::ServiceTarget;

pub use holdfast_proto::image::ImageStore;

/// What the agent asked the engine to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Describe itself.
    Describe,
    /// Give a file of a container.
    ReadFile,
    /// List containers.
    List,
    /// Look at one container.
    Inspect,
    /// Look at one image.
    InspectImage,
    /// Fetch an image.
    Pull,
    /// Make a container.
    Create,
    /// Change a container's restart policy.
    SetRestart,
    /// Start a container.
    Start,
    /// Stop a container.
    Stop,
    /// Unfreeze a container.
    Unpause,
    /// Delete a container.
    Remove,
    /// Change a container's name.
    Rename,
    /// Change a container's resources.
    SetAmounts,
    /// List networks.
    ListNetworks,
    /// Make a network.
    CreateNetwork,
    /// Delete a network.
    RemoveNetwork,
    /// Connect a container to a network.
    Connect,
    /// Take a container off a network.
    Disconnect,
    /// Make the image of sandboxes.
    LoadImage,
    /// List images.
    ListImages,
    /// Give an image a name.
    Tag,
    /// Delete an image or one of its names.
    RemoveImage,
    /// Run a program in a container.
    Exec,
    /// Tell events.
    Watch,
    /// Give a container's log.
    Logs,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Describe => "describe itself",
            Self::ReadFile => "read a file of a container",
            Self::List => "list containers",
            Self::Inspect => "look at a container",
            Self::InspectImage => "look at an image",
            Self::Pull => "pull an image",
            Self::Create => "create a container",
            Self::SetRestart => "set a restart policy",
            Self::Start => "start a container",
            Self::Stop => "stop a container",
            Self::Unpause => "unpause a container",
            Self::Remove => "remove a container",
            Self::Rename => "rename a container",
            Self::SetAmounts => "change a container's resources",
            Self::ListNetworks => "list networks",
            Self::CreateNetwork => "create a network",
            Self::RemoveNetwork => "remove a network",
            Self::Connect => "connect a container to a network",
            Self::Disconnect => "disconnect a container from a network",
            Self::LoadImage => "load the sandbox image",
            Self::ListImages => "list images",
            Self::Tag => "tag an image",
            Self::RemoveImage => "remove an image",
            Self::Exec => "run a program in a container",
            Self::Watch => "tell events",
            Self::Logs => "give a container's log",
        })
    }
}

/// The engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There was no answer in time.
    #[error("the engine did not {operation} within {} s", timeout_ms / 1_000)]
    TimedOut {
        /// What was asked.
        operation: Operation,
        /// How long it was waited for.
        timeout_ms: u64,
    },
    /// The connection failed.
    #[error("cannot reach the engine to {operation}")]
    Unreachable {
        /// What was asked.
        operation: Operation,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine said no.
    #[error("the engine refused to {operation} ({status}): {message}")]
    Refused {
        /// What was asked.
        operation: Operation,
        /// The status of its answer.
        status: u16,
        /// Its words.
        message: String,
    },
    /// A pull failed after it had begun.
    #[error("the engine could not pull: {message}")]
    PullBroke {
        /// The engine's words.
        message: String,
    },
    /// A pull stood still.
    #[error("the pull made no progress for {} s and was given up", no_progress_ms / 1_000)]
    PullStalled {
        /// How long it stood still.
        no_progress_ms: u64,
    },
    /// A name belongs to a container or network that is not ours.
    #[error("the name {name} belongs to something that Holdfast did not make")]
    ForeignName {
        /// The name.
        name: String,
    },
    /// The spec asks for something that this agent cannot apply.
    #[error(transparent)]
    Unsupported(#[from] convert::Unsupported),
    /// The device's own policy does not allow the request; the engine was not asked.
    #[error(transparent)]
    Forbidden(#[from] crate::policy::Refusal),
    /// The files of secrets and configs could not be written.
    #[error(transparent)]
    Files(#[from] crate::secrets::SecretsError),
    /// The agent's own program could not be taken out of its image.
    #[error(transparent)]
    Program(#[from] Box<crate::selfupdate::TakeError>),
    /// The answer makes no sense.
    #[error("the engine's answer cannot be understood: {detail}")]
    Nonsense {
        /// What is wrong.
        detail: String,
    },
}

impl EngineError {
    /// Whether a pull failed because the registry wants a login, or does not take the one it got.
    ///
    /// Engines say so in words alone, in the stream of a pull that began or in their answer.
    pub fn wants_login(&self) -> bool {
        let (Self::PullBroke { message }
        | Self::Refused {
            operation: Operation::Pull,
            message,
            ..
        }) = self
        else {
            return false;
        };
        let message = message.to_ascii_lowercase();
        LOGIN_WORDS.iter().any(|words| message.contains(words))
    }

    /// Whether the engine itself is away, so that the failure says nothing of what was asked.
    pub fn is_engine_away(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Unreachable { .. } => true,
            // What a proxy in front of the socket says when the engine behind it is gone.
            Self::Refused { status, .. } => matches!(status, 502..=504),
            Self::PullBroke { .. }
            | Self::PullStalled { .. }
            | Self::ForeignName { .. }
            | Self::Unsupported(_)
            | Self::Forbidden(_)
            | Self::Files(_)
            | Self::Program(_)
            | Self::Nonsense { .. } => false,
        }
    }

    /// Whether the engine's disk was too full for it, which says nothing of what was asked.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Refused { message, .. } | Self::PullBroke { message } => {
                message.contains("no space left on device")
            }
            Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::PullStalled { .. }
            | Self::ForeignName { .. }
            | Self::Unsupported(_)
            | Self::Forbidden(_)
            | Self::Files(_)
            | Self::Program(_)
            | Self::Nonsense { .. } => false,
        }
    }

    /// Whether the same request would be refused again, however often it is repeated.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Unsupported(_) | Self::Forbidden(_) => true,
            Self::Refused {
                operation, status, ..
            } => *operation == Operation::Create && *status == 400,
            Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::PullBroke { .. }
            | Self::PullStalled { .. }
            | Self::ForeignName { .. }
            | Self::Files(_)
            | Self::Program(_)
            | Self::Nonsense { .. } => false,
        }
    }
}

/// A file of a container could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The engine did not give it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The container has none of that name.
    #[error("it is not there")]
    NotThere,
    /// It is a folder, a link or something else.
    #[error("it is no plain file")]
    NotAFile,
    /// It is longer than it may be.
    #[error("it has {bytes} bytes, it may have {most_bytes}")]
    TooLarge {
        /// How long it is.
        bytes: u64,
        /// How long it may be.
        most_bytes: u64,
    },
    /// The engine's answer ended too early.
    #[error("the engine gave a part of it")]
    Truncated,
    /// What was read could not be taken.
    #[error(transparent)]
    Sink(std::io::Error),
}

/// The engine's account of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Names this engine among all.
    pub id: String,
    /// Its version.
    pub version: String,
    /// The API version that was agreed on.
    pub api_version: String,
    /// How it keeps images.
    pub store: ImageStore,
    /// What images it runs.
    pub platform: Platform,
    /// Where it keeps them.
    pub root: String,
}

/// One container as the engine describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineContainer {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its labels, the user's and ours.
    pub labels: HashMap<String, String>,
    /// What it does.
    pub state: ContainerState,
    /// What its health check says.
    pub health: Option<Health>,
    /// How often the engine started it again.
    pub restart_count: u64,
    /// Whether the kernel killed it for memory.
    pub oom_killed: bool,
    /// The restart policy in force.
    pub restart: RestartPolicy,
    /// The engine's name of its latest start: changes with each start, says nothing else.
    pub started_at: String,
    /// Why the engine could not start it, in its words; empty if it could.
    pub start_error: String,
    /// Where it can be reached from the device, while it runs.
    pub addresses: Vec<IpAddr>,
    /// Why its health check cannot be run at all, in the engine's words.
    pub probe_error: Option<String>,
    /// The id of the image it was made from, where the engine's store tells one.
    pub image_id: Option<Digest>,
    /// The container (id) whose network it uses.
    pub shares: Option<String>,
    /// The networks it is connected to, by their names in the engine.
    pub networks: BTreeMap<String, EngineAttachment>,
    /// The ports that the device forwards to it.
    pub published: BTreeSet<Published>,
    /// Its resources.
    pub amounts: Amounts,
}

/// A container's connection to a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineAttachment {
    /// The network's id; empty while the engine has not connected it yet (a created container), and
    /// where the engine does not tell.
    pub network_id: String,
    /// Names it has there.
    pub aliases: BTreeSet<String>,
    /// Its address there, once it runs.
    pub address: Option<IpAddr>,
}

/// One network as the engine describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineNetwork {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
}

/// One image in the engine's store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Its id.
    pub id: String,
    /// Its names with tags, `name:tag`.
    pub tags: Vec<String>,
    /// Its names with digests, `name@sha256:…`.
    pub digests: Vec<String>,
    /// What it takes on disk, with layers that other images share.
    pub size_bytes: u64,
}

/// What an engine fetches, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Fetch<'a> {
    /// The image as the target pins it: the device's policy judges this name.
    pub pinned: &'a str,
    /// The name by which the engine finds it: the same, or the agent's own on loopback.
    pub from: &'a str,
    /// The platform to ask for.
    pub platform: &'a Platform,
    /// A login, or none.
    pub auth: Option<&'a PullAuth>,
    /// Without progress for so long it is given up.
    pub no_progress_ms: u64,
}

/// How a new container is connected.
#[derive(Clone, Copy, Debug)]
pub enum NewNetwork<'a> {
    /// As its spec's network mode says, and to the first of these networks, given by their names in the
    /// engine with its names there; the others are connected afterwards.
    Own(&'a [(String, Vec<String>)]),
    /// It uses the network of this container (id), its sandbox.
    Shared(&'a str),
}

impl<'a> NewNetwork<'a> {
    /// The networks it is connected to, by their names in the engine.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let networks: &'a [(String, Vec<String>)] = match *self {
            Self::Own(networks) => networks,
            Self::Shared(_) => &[],
        };
        networks.iter().map(|(name, _)| name.as_str())
    }

    /// The container whose network it uses.
    pub fn lender(&self) -> Option<&'a str> {
        match *self {
            Self::Own(_) => None,
            Self::Shared(id) => Some(id),
        }
    }
}

/// A sandbox to make.
#[derive(Clone, Copy, Debug)]
pub struct NewSandbox<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// The service it is for.
    pub key: &'a ServiceKey,
    /// The container's name.
    pub name: &'a str,
    /// The target's generation.
    pub generation: u64,
    /// What to make.
    pub spec: &'a SandboxSpec,
    /// Networks by their names in the engine with the service's names there; the first is connected.
    pub networks: &'a [(String, Vec<String>)],
}

/// What a program that ran in a container said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// The program's exit code; none if it had not ended in time.
    pub exit_code: Option<i64>,
    /// The beginning of its output, or why it could not be run.
    pub output: String,
}

impl Executed {
    /// What shells and engines give for a program that may not be run.
    pub const NOT_RUNNABLE: i64 = 126;
    /// What they give for a program that is not there.
    pub const NOT_FOUND: i64 = 127;
    /// What stands for one that the engine could not start this time.
    pub const NOT_STARTED: i64 = -1;
}

/// One image as the engine describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineImage {
    /// Every digest that the engine calls it by: its id, and on containerd its descriptor.
    pub ids: Vec<Digest>,
    /// The platform it was made for.
    pub platform: Platform,
}

/// A container to make.
#[derive(Clone, Copy, Debug)]
pub struct NewContainer<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// The service.
    pub key: &'a ServiceKey,
    /// The container's name.
    pub name: &'a str,
    /// The target's generation.
    pub generation: u64,
    /// What to make.
    pub service: &'a ServiceTarget,
    /// How it is connected.
    pub network: NewNetwork<'a>,
}

/// What engines say when a registry wants a login (Docker and Podman, each from its registry client).
const LOGIN_WORDS: [&str; 4] = [
    "unauthorized",
    "authentication required",
    "no basic auth credentials",
    "access denied",
];

/// What an engine logs in with at a registry for one pull. It is kept in memory alone and never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum PullAuth {
    /// A token that the registry minted for the image's repository (`registrytoken`).
    Token(String),
    /// A user and a password.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
}

impl std::fmt::Debug for PullAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(…)",
            Self::Password { .. } => "Password(…)",
        })
    }
}

/// A container engine. Every call ends in bounded time; every change is safe to repeat.
pub trait Engine {
    /// Agrees on an API version, then describes the engine.
    fn describe(&self) -> impl Future<Output = Result<EngineInfo, EngineError>>;

    /// This device's containers, whatever their state.
    fn containers(
        &self,
        device: &DeviceId,
    ) -> impl Future<Output = Result<Vec<EngineContainer>, EngineError>>;

    /// One container by id or name; none if there is none.
    fn container(
        &self,
        id: &str,
    ) -> impl Future<Output = Result<Option<EngineContainer>, EngineError>>;

    /// One image by its pinned name; none if there is none.
    fn image(&self, pinned: &str)
    -> impl Future<Output = Result<Option<EngineImage>, EngineError>>;

    /// Fetches an image.
    fn pull(&self, fetch: &Fetch<'_>) -> impl Future<Output = Result<(), EngineError>>;

    /// Makes a container with restart policy `no`, and gives its id.
    fn create(&self, new: &NewContainer<'_>) -> impl Future<Output = Result<String, EngineError>>;

    /// Sets a container's restart policy.
    fn set_restart(
        &self,
        id: &str,
        policy: RestartPolicy,
    ) -> impl Future<Output = Result<(), EngineError>>;

    /// Starts a container; one that runs already is fine.
    fn start(&self, id: &str) -> impl Future<Output = Result<(), EngineError>>;

    /// Stops a container with its own grace period; one that is stopped or gone is fine.
    fn stop(&self, id: &str) -> impl Future<Output = Result<(), EngineError>>;

    /// Unfreezes a container.
    fn unpause(&self, id: &str) -> impl Future<Output = Result<(), EngineError>>;

    /// Deletes a stopped container; one that is gone is fine. Its volumes stay.
    fn remove(&self, id: &str) -> impl Future<Output = Result<(), EngineError>>;

    /// Makes a sandbox with restart policy `no`, and its image if that is missing; gives its id.
    fn create_sandbox(
        &self,
        new: &NewSandbox<'_>,
    ) -> impl Future<Output = Result<String, EngineError>>;

    /// Changes a container's name.
    fn rename(&self, id: &str, name: &str) -> impl Future<Output = Result<(), EngineError>>;

    /// Changes a container's resources.
    fn set_amounts(
        &self,
        id: &str,
        amounts: Amounts,
    ) -> impl Future<Output = Result<(), EngineError>>;

    /// This device's networks.
    fn networks(
        &self,
        device: &DeviceId,
    ) -> impl Future<Output = Result<Vec<EngineNetwork>, EngineError>>;

    /// Makes a network of an app; one that is there with the same name and labels is fine.
    fn create_network(
        &self,
        device: &DeviceId,
        key: &NetworkKey,
        name: &str,
    ) -> impl Future<Output = Result<(), EngineError>>;

    /// Deletes a network; one that is gone is fine.
    fn remove_network(&self, id: &str) -> impl Future<Output = Result<(), EngineError>>;

    /// Connects a container to a network with these names; one that is connected is fine.
    fn connect(
        &self,
        network: &str,
        container: &str,
        aliases: &[String],
    ) -> impl Future<Output = Result<(), EngineError>>;

    /// Takes a container off a network, also off one that no longer exists.
    fn disconnect(
        &self,
        network: &str,
        container: &str,
    ) -> impl Future<Output = Result<(), EngineError>>;

    /// Every image in the store.
    fn images(&self) -> impl Future<Output = Result<Vec<StoredImage>, EngineError>>;

    /// Gives an image (by id or any name) one more name, `name:tag`.
    fn tag(&self, image: &str, name: &str) -> impl Future<Output = Result<(), EngineError>>;

    /// Deletes one name of an image, or by its id the image itself when nothing uses it; gone is fine.
    fn remove_image(&self, image: &str) -> impl Future<Output = Result<(), EngineError>>;

    /// Gives a file of a container, also of one that was never started, to `take`; one that is longer than
    /// `most_bytes` is refused before any of it is given.
    fn read_file(
        &self,
        id: &str,
        path: &str,
        most_bytes: u64,
        take: member::Sink<'_>,
    ) -> impl Future<Output = Result<(), ReadError>>;

    /// Runs a program in a running container; it goes on by itself when it takes longer.
    fn exec(
        &self,
        id: &str,
        words: &[String],
        timeout_ms: u64,
    ) -> impl Future<Output = Result<Executed, EngineError>>;

    /// Calls `nudge` when something about this device's containers changes, until the stream ends.
    fn watch(
        &self,
        device: &DeviceId,
        nudge: impl Fn(),
    ) -> impl Future<Output = Result<(), EngineError>>;
}
