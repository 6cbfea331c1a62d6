//! Owns the plan's words for what is done: steps, why, and one text for each.

use std::fmt;

use holdfast_proto::id::{ServiceKey, ServiceName};
use holdfast_proto::image::{Expected, Platform};
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::{Identity, ServiceTarget};
use holdfast_proto::time::Timestamp;

use crate::health::RejectReason;
use crate::hold::Hold;
use crate::network::{NetworkKey, SandboxSpec};
use crate::observed::{Amounts, ContainerRef, Network};

/// What to do next, what is not done and why, and when to look again.
#[must_use = "a plan nobody executes or reports hides a decision"]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Steps, the first one first. After one has run, look again: the rest may have changed.
    pub steps: Vec<Step>,
    /// What is not done, each with its reason.
    pub holds: Vec<Hold>,
    /// When a hold may end by time alone.
    pub look_again: Option<Timestamp>,
}

impl Plan {
    /// Whether nothing is left to do or to wait for.
    pub fn is_converged(&self) -> bool {
        self.steps.is_empty() && self.holds.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for hold in &self.holds {
            writeln!(f, "hold: {hold}")?;
        }
        if self.is_converged() {
            writeln!(f, "nothing to do")?;
        }
        Ok(())
    }
}

/// One action. Each is safe to repeat: an agent that died in it runs it again.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Fetch an image by digest.
    Pull {
        /// The service that needs it.
        key: ServiceKey,
        /// The pinned name, `name@sha256:…`.
        image: String,
        /// What must be found after the pull.
        expected: Expected,
        /// The platform to ask for.
        platform: Platform,
        /// The tag that keeps it once it is there.
        keep: String,
        /// What for.
        why: PullReason,
    },
    /// Give an image the tag that keeps it from being pruned.
    Keep {
        /// The service that needs it.
        key: ServiceKey,
        /// The pinned name.
        image: String,
        /// The tag.
        tag: String,
    },
    /// Take such a tag away again.
    Release {
        /// The service that needed it.
        key: ServiceKey,
        /// The tag.
        tag: String,
    },
    /// Delete an image that the agent pulled, unless somebody else uses it.
    Collect {
        /// The service that needed it.
        key: ServiceKey,
        /// The pinned name.
        image: String,
    },
    /// Make a container, not started, with restart policy `no`.
    Create {
        /// The service.
        key: ServiceKey,
        /// The container's name, unique per generation.
        name: String,
        /// The target's generation.
        generation: u64,
        /// What to make.
        service: Box<ServiceTarget>,
        /// The sandbox (engine id) whose network it uses, if it uses one.
        sandbox: Option<String>,
    },
    /// Make a network of an app.
    CreateNetwork {
        /// The service that needs it.
        key: ServiceKey,
        /// Which one.
        network: NetworkKey,
        /// Its name in the engine.
        name: String,
    },
    /// Make a sandbox, not started, with restart policy `no`.
    CreateSandbox {
        /// The service.
        key: ServiceKey,
        /// The container's name.
        name: String,
        /// The target's generation.
        generation: u64,
        /// What to make.
        sandbox: Box<SandboxSpec>,
    },
    /// Set a sandbox's restart policy, then start it.
    StartSandbox {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
        /// The policy: `no` while its service's container is on trial.
        restart: RestartPolicy,
        /// What is rejected if the sandbox cannot start, because a port is taken for instance.
        candidate: Option<Identity>,
    },
    /// Connect a container to a network of its app.
    Connect {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
        /// The network's name in the app.
        network: ServiceName,
        /// The names it gets there.
        aliases: Vec<String>,
        /// Whether a connection that is there, but wrong or dead, is cut first.
        again: bool,
    },
    /// Give a container its name back.
    Rename {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
        /// The name.
        name: String,
    },
    /// Give a container its resources back.
    SetAmounts {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
        /// The resources.
        amounts: Amounts,
    },
    /// Set a container's restart policy to `no`, then stop it.
    Stop {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
        /// What for.
        why: StopReason,
    },
    /// Set a container's restart policy, then start it.
    Start {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
        /// The policy: `no` for a candidate, the wanted one for a committed container.
        restart: RestartPolicy,
        /// What the container was made from, to reject it if it cannot start.
        identity: Identity,
        /// Whether it still has to pass the gate.
        candidate: bool,
    },
    /// Set the restart policy of a committed container that lost it.
    Arm {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
        /// The policy.
        restart: RestartPolicy,
    },
    /// Unfreeze a container that somebody paused.
    Unpause {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
    },
    /// Set the wanted restart policy, then write the spec down as last good.
    Commit {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
        /// The policy.
        restart: RestartPolicy,
        /// What passed.
        service: Box<ServiceTarget>,
    },
    /// Write down that a spec failed here; the next look brings the last good one back.
    Reject {
        /// The service.
        key: ServiceKey,
        /// What failed.
        identity: Identity,
        /// Its pinned image.
        image: String,
        /// Why.
        reason: RejectReason,
    },
    /// Write down that a one-shot service ran to its end.
    Complete {
        /// The service.
        key: ServiceKey,
        /// What ran.
        identity: Identity,
    },
    /// Delete a network that no service of the target joins.
    RemoveNetwork {
        /// The app, with the network's name where a service's stands.
        key: ServiceKey,
        /// Which one.
        network: Network,
    },
    /// Delete a stopped container.
    Remove {
        /// The service.
        key: ServiceKey,
        /// Which container.
        container: ContainerRef,
        /// What for.
        why: RemoveReason,
    },
    /// Drop the memory of a rejection: the target names another spec now, so that naming the rejected
    /// one again later tries it again.
    Pardon {
        /// The service.
        key: ServiceKey,
    },
    /// Forget a service that left the target and of which nothing is left.
    Forget {
        /// The service.
        key: ServiceKey,
    },
    /// Take the agent's own program out of a release's image, prove it, and begin its trial in the place of
    /// the one that runs.
    ReplaceAgent {
        /// The service that names the release.
        key: ServiceKey,
        /// The name of the container that the files are read from; it is never started.
        name: String,
        /// The target's generation.
        generation: u64,
        /// The release.
        service: Box<ServiceTarget>,
    },
}

/// Why an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullReason {
    /// A container is to be made from it.
    Update,
    /// A way back needs it, and it is gone.
    WayBack,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its successor is ready to start.
    Replaced,
    /// It failed its gate.
    Rejected,
    /// Its service is no longer in the target.
    NotInTarget,
    /// Another container of the service is the one that should run.
    Superfluous,
    /// The network it used is gone; it starts again in the new one.
    NetworkLost,
    /// Its service wants the room before the download.
    MakesRoom,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaced => "its successor is ready",
            Self::Rejected => "it failed its gate",
            Self::NotInTarget => "its service left the target",
            Self::Superfluous => "another container serves",
            Self::NetworkLost => "its network is gone",
            Self::MakesRoom => "its service stops before the download",
        })
    }
}

/// Why a container is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveReason {
    /// Its successor passed the gate.
    Succeeded,
    /// It failed its gate and the last good one serves again.
    Rejected,
    /// Its service is no longer in the target.
    NotInTarget,
    /// It was made for a target that has changed since.
    Outdated,
    /// The engine lost it half-way.
    Broken,
    /// No container uses it any more.
    Unused,
    /// Its service wants the room before the download.
    MakesRoom,
}

impl fmt::Display for RemoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Succeeded => "its successor passed the gate",
            Self::Rejected => "it failed its gate",
            Self::NotInTarget => "its service left the target",
            Self::Outdated => "the target changed before it started",
            Self::Broken => "the engine lost it half-way",
            Self::Unused => "nothing uses it",
            Self::MakesRoom => "its service gives the room to the download",
        })
    }
}

impl Step {
    /// The service that the step is for.
    pub fn key(&self) -> &ServiceKey {
        match self {
            Self::Pull { key, .. }
            | Self::Keep { key, .. }
            | Self::Release { key, .. }
            | Self::Collect { key, .. }
            | Self::Create { key, .. }
            | Self::Stop { key, .. }
            | Self::Start { key, .. }
            | Self::Arm { key, .. }
            | Self::Unpause { key, .. }
            | Self::Commit { key, .. }
            | Self::Reject { key, .. }
            | Self::Remove { key, .. }
            | Self::CreateNetwork { key, .. }
            | Self::CreateSandbox { key, .. }
            | Self::StartSandbox { key, .. }
            | Self::Connect { key, .. }
            | Self::Rename { key, .. }
            | Self::SetAmounts { key, .. }
            | Self::Complete { key, .. }
            | Self::RemoveNetwork { key, .. }
            | Self::ReplaceAgent { key, .. }
            | Self::Pardon { key }
            | Self::Forget { key } => key,
        }
    }

    /// Stable name of the action, for logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Pull { .. } => "pull",
            Self::Keep { .. } => "keep_image",
            Self::Release { .. } => "release_image",
            Self::Collect { .. } => "collect_image",
            Self::Create { .. } => "create",
            Self::Stop { .. } => "stop",
            Self::Start { .. } => "start",
            Self::Arm { .. } => "arm",
            Self::Unpause { .. } => "unpause",
            Self::Commit { .. } => "commit",
            Self::Reject { .. } => "reject",
            Self::Remove { .. } => "remove",
            Self::CreateNetwork { .. } => "create_network",
            Self::CreateSandbox { .. } => "create_sandbox",
            Self::StartSandbox { .. } => "start_sandbox",
            Self::Connect { .. } => "connect",
            Self::Rename { .. } => "rename",
            Self::SetAmounts { .. } => "set_amounts",
            Self::Complete { .. } => "complete",
            Self::RemoveNetwork { .. } => "remove_network",
            Self::Pardon { .. } => "pardon",
            Self::Forget { .. } => "forget",
            Self::ReplaceAgent { .. } => "replace_agent",
        }
    }

    /// Whether the step works on a spec that has not passed its gate here yet; an agent that dies in
    /// such a step counts the death against the spec.
    pub fn candidate(&self) -> Option<Identity> {
        match self {
            Self::Create { service, .. } | Self::Commit { service, .. } => service.identity(),
            Self::Start {
                identity,
                candidate: true,
                ..
            } => Some(*identity),
            Self::StartSandbox { candidate, .. } => *candidate,
            Self::CreateNetwork { .. }
            | Self::CreateSandbox { .. }
            | Self::Connect { .. }
            | Self::Rename { .. }
            | Self::SetAmounts { .. }
            | Self::Complete { .. }
            | Self::RemoveNetwork { .. }
            | Self::Pull { .. }
            | Self::Keep { .. }
            | Self::Release { .. }
            | Self::Collect { .. }
            | Self::Stop { .. }
            | Self::Start { .. }
            | Self::Arm { .. }
            | Self::Unpause { .. }
            | Self::Reject { .. }
            | Self::Remove { .. }
            | Self::Pardon { .. }
            | Self::Forget { .. }
            | Self::ReplaceAgent { .. } => None,
        }
    }
}

impl Step {
    /// The image's name that is given or taken away, if that is all the step does.
    pub fn image_name(&self) -> Option<&str> {
        match self {
            Self::Keep { tag: name, .. }
            | Self::Release { tag: name, .. }
            | Self::Collect { image: name, .. } => Some(name),
            Self::Pull { .. }
            | Self::Create { .. }
            | Self::CreateNetwork { .. }
            | Self::CreateSandbox { .. }
            | Self::StartSandbox { .. }
            | Self::Connect { .. }
            | Self::Rename { .. }
            | Self::SetAmounts { .. }
            | Self::Stop { .. }
            | Self::Start { .. }
            | Self::Arm { .. }
            | Self::Unpause { .. }
            | Self::Commit { .. }
            | Self::Reject { .. }
            | Self::Complete { .. }
            | Self::RemoveNetwork { .. }
            | Self::Remove { .. }
            | Self::Pardon { .. }
            | Self::Forget { .. }
            | Self::ReplaceAgent { .. } => None,
        }
    }

    /// Whether it begins something new, rather than ends what is begun or brings back what worked: only
    /// the latter may spend the last room on a disk.
    pub fn begins(&self) -> bool {
        match self {
            Self::Pull { .. }
            | Self::Keep { .. }
            | Self::Create { .. }
            | Self::CreateNetwork { .. }
            | Self::CreateSandbox { .. }
            | Self::ReplaceAgent { .. }
            | Self::Stop {
                why: StopReason::Replaced | StopReason::MakesRoom,
                ..
            } => true,
            Self::Release { .. }
            | Self::Collect { .. }
            | Self::StartSandbox { .. }
            | Self::Connect { .. }
            | Self::Rename { .. }
            | Self::SetAmounts { .. }
            | Self::Stop {
                why:
                    StopReason::Rejected
                    | StopReason::NotInTarget
                    | StopReason::Superfluous
                    | StopReason::NetworkLost,
                ..
            }
            | Self::Start { .. }
            | Self::Arm { .. }
            | Self::Unpause { .. }
            | Self::Commit { .. }
            | Self::Reject { .. }
            | Self::Complete { .. }
            | Self::RemoveNetwork { .. }
            | Self::Remove { .. }
            | Self::Pardon { .. }
            | Self::Forget { .. } => false,
        }
    }

    /// Whether it makes something beside what runs, quickly and without touching it.
    pub(crate) fn is_preparation(&self) -> bool {
        matches!(
            self,
            Self::Create { .. } | Self::CreateNetwork { .. } | Self::CreateSandbox { .. }
        )
    }
}

/// A pinned name with the digest cut to what people compare.
pub(crate) fn short_image(image: &str) -> String {
    match image.split_once("@sha256:") {
        Some((name, hex)) => format!("{name}@sha256:{}", hex.chars().take(12).collect::<String>()),
        None => image.to_owned(),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pull {
                key,
                image,
                platform,
                why,
                ..
            } => {
                let image = short_image(image);
                match why {
                    PullReason::Update => write!(f, "{key}: pull {image} for {platform}"),
                    PullReason::WayBack => {
                        write!(f, "{key}: pull {image} again, it is the way back")
                    }
                }
            }
            Self::Keep { key, image, .. } => {
                write!(f, "{key}: keep {} by a tag", short_image(image))
            }
            Self::Release { key, tag } => {
                write!(f, "{key}: remove the tag {tag}: nothing needs it")
            }
            Self::Collect { key, image } => {
                write!(f, "{key}: remove {}: nothing needs it", short_image(image))
            }
            Self::Create {
                key, name, service, ..
            } => {
                write!(
                    f,
                    "{key}: create {name} from {}",
                    short_image(&service.image_name)
                )
            }
            Self::Stop {
                key,
                container,
                why,
            } => write!(f, "{key}: stop {container}: {why}"),
            Self::Start {
                key,
                container,
                candidate: true,
                ..
            } => {
                write!(f, "{key}: start {container} on trial")
            }
            Self::Start {
                key,
                container,
                restart,
                ..
            } => {
                write!(f, "{key}: start {container} with restart {restart}")
            }
            Self::Arm {
                key,
                container,
                restart,
            } => {
                write!(f, "{key}: set restart {restart} on {container}")
            }
            Self::Unpause { key, container } => write!(f, "{key}: unpause {container}"),
            Self::Commit { key, container, .. } => {
                write!(f, "{key}: commit {container}: it passed its gate")
            }
            Self::Reject {
                key, image, reason, ..
            } => {
                write!(f, "{key}: reject {}: {reason}", short_image(image))
            }
            Self::Remove {
                key,
                container,
                why,
            } => write!(f, "{key}: remove {container}: {why}"),
            Self::CreateNetwork { key, name, .. } => write!(f, "{key}: create network {name}"),
            Self::CreateSandbox { key, name, .. } => {
                write!(f, "{key}: create {name} to hold its network")
            }
            Self::StartSandbox { key, container, .. } => {
                write!(f, "{key}: start {container}, which holds its network")
            }
            Self::Connect {
                key,
                container,
                network,
                again,
                ..
            } => {
                let how = if *again { "again " } else { "" };
                write!(f, "{key}: connect {container} {how}to network {network}")
            }
            Self::Rename {
                key,
                container,
                name,
            } => write!(f, "{key}: rename {container} back to {name}"),
            Self::SetAmounts { key, container, .. } => {
                write!(f, "{key}: give {container} its resources back")
            }
            Self::Complete { key, .. } => write!(f, "{key}: it ran to its end"),
            Self::RemoveNetwork { key, network } => {
                write!(
                    f,
                    "{key}: remove network {}: no service joins it",
                    network.name
                )
            }
            Self::Pardon { key } => {
                write!(
                    f,
                    "{key}: forget the rejection, the target names another spec"
                )
            }
            Self::Forget { key } => write!(f, "{key}: forget, nothing of it is left"),
            Self::ReplaceAgent { key, service, .. } => {
                write!(
                    f,
                    "{key}: try the agent of {}",
                    short_image(&service.image_name)
                )
            }
        }
    }
}
