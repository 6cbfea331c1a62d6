//! Owns how one step of a plan is done. Refuses to decide: what to do comes from the plan.
//!
//! Each step is safe to repeat, and gives back what it changes in its service's history.

pub mod pull;
mod swap;

use holdfast_plan::{Observed, Rejected, ServiceHistory, Step};
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::target::{Identity, ServiceTarget, TargetState};
use holdfast_proto::time::Timestamp;

use crate::engine::{Engine, EngineError, NewContainer, NewNetwork, ReadError};
use crate::fault::chain;
use crate::journal::Change;
use crate::secrets;
use crate::selfupdate::{self, SelfUpdate, TakeError};

/// What a step may look at while it is done.
pub struct Execution<'a, E> {
    /// The engine.
    pub engine: &'a E,
    /// The device.
    pub device: &'a DeviceId,
    /// The target that the plan was made for.
    pub target: &'a TargetState,
    /// The look that the plan was made from.
    pub observed: &'a Observed,
    /// Where the files of secrets and configs are.
    pub files: &'a secrets::Place,
    /// What is remembered of the step's service.
    pub history: ServiceHistory,
    /// The agent's own programs.
    pub selfupdate: Option<&'a SelfUpdate>,
    /// When the step began.
    pub now: Timestamp,
}

impl<E: Engine> Execution<'_, E> {
    /// What must be on the disk before the step begins, beside its intent.
    pub fn before(&self, step: &Step) -> Change {
        match step {
            Step::Stop { container, .. } => {
                let mut history = self.history.clone();
                history.interrupted.insert(container.id.clone());
                changed(&self.history, history)
            }
            // What is not written down as made is a stranger's, also after a crash in between.
            Step::Create { name, .. }
            | Step::CreateSandbox { name, .. }
            | Step::ReplaceAgent { name, .. } => {
                let mut history = self.history.clone();
                history.made.insert(name.clone(), String::new());
                changed(&self.history, history)
            }
            Step::Pull { .. }
            | Step::Keep { .. }
            | Step::Release { .. }
            | Step::Collect { .. }
            | Step::CreateNetwork { .. }
            | Step::StartSandbox { .. }
            | Step::Connect { .. }
            | Step::Rename { .. }
            | Step::SetAmounts { .. }
            | Step::Complete { .. }
            | Step::RemoveNetwork { .. }
            | Step::Start { .. }
            | Step::Arm { .. }
            | Step::Unpause { .. }
            | Step::Commit { .. }
            | Step::Reject { .. }
            | Step::Remove { .. }
            | Step::Pardon { .. }
            | Step::Forget { .. } => Change::None,
        }
    }

    /// Does the step; its history is the one that [`Self::before`] left.
    pub async fn run(&self, step: &Step) -> Result<Change, EngineError> {
        match step {
            // Pulls run beside the other steps: see `pull`.
            Step::Pull { .. } => Ok(Change::None),
            Step::Keep { image, tag, .. } => self.keep(image, tag).await,
            Step::Release { tag, .. } => {
                self.engine.remove_image(tag).await?;
                Ok(Change::None)
            }
            Step::Collect { image, .. } => self.collect(image).await,
            Step::Create {
                key,
                name,
                generation,
                service,
                sandbox,
            } => {
                let new = Creation {
                    key,
                    name,
                    generation: *generation,
                };
                self.create(&new, service, sandbox.as_deref()).await
            }
            Step::CreateSandbox {
                key,
                name,
                generation,
                sandbox,
            } => {
                let new = Creation {
                    key,
                    name,
                    generation: *generation,
                };
                self.create_sandbox(&new, sandbox).await
            }
            Step::StartSandbox {
                container,
                restart,
                candidate,
                key,
            } => {
                self.start_sandbox(key, container, *restart, *candidate)
                    .await
            }
            Step::CreateNetwork { network, name, .. } => {
                self.engine
                    .create_network(self.device, network, name)
                    .await?;
                Ok(Change::None)
            }
            Step::RemoveNetwork { network, .. } => {
                self.engine.remove_network(&network.id).await?;
                Ok(Change::None)
            }
            Step::Connect {
                key,
                container,
                network,
                aliases,
                again,
            } => self.connect(key, container, network, aliases, *again).await,
            Step::Rename {
                container, name, ..
            } => {
                self.engine.rename(&container.id, name).await?;
                Ok(Change::None)
            }
            Step::SetAmounts {
                container, amounts, ..
            } => {
                self.engine.set_amounts(&container.id, *amounts).await?;
                Ok(Change::None)
            }
            Step::Complete { identity, .. } => {
                let mut history = self.history.clone();
                history.completed = Some(*identity);
                Ok(changed(&self.history, history))
            }
            Step::Stop { container, .. } => self.stop(container).await,
            Step::Start {
                container,
                restart,
                identity,
                candidate,
                ..
            } => self.start(container, *restart, *identity, *candidate).await,
            Step::Arm {
                container, restart, ..
            } => {
                self.engine.set_restart(&container.id, *restart).await?;
                Ok(Change::None)
            }
            Step::Unpause { container, .. } => {
                self.engine.unpause(&container.id).await?;
                Ok(Change::None)
            }
            Step::Commit {
                key,
                container,
                restart,
                service,
            } => self.commit(key, container, *restart, service).await,
            Step::Reject {
                identity,
                image,
                reason,
                ..
            } => Ok(self.rejected(*identity, image, reason.to_string())),
            Step::Remove { container, .. } => self.remove(container).await,
            Step::Pardon { .. } => {
                self.pardon_agent();
                let mut history = self.history.clone();
                history.rejected = None;
                Ok(changed(&self.history, history))
            }
            Step::Forget { .. } => {
                self.pardon_agent();
                Ok(Change::Forget)
            }
            Step::ReplaceAgent {
                key,
                name,
                generation,
                service,
            } => {
                let new = Creation {
                    key,
                    name,
                    generation: *generation,
                };
                self.replace_agent(&new, service).await
            }
        }
    }

    /// What was rejected may have been the agent's own release, which is remembered beside its programs too.
    fn pardon_agent(&self) {
        let rejected = self.history.rejected.as_ref();
        if let Some((agent, rejected)) = self.selfupdate.zip(rejected) {
            agent.pardon(&rejected.identity);
        }
    }

    /// Takes the agent's own program out of a release, and writes down that it is to be tried.
    async fn replace_agent(
        &self,
        new: &Creation<'_>,
        service: &ServiceTarget,
    ) -> Result<Change, EngineError> {
        let Some(agent) = self.selfupdate else {
            return Ok(Change::None);
        };
        let holder = selfupdate::holder(service);
        let container = NewContainer {
            device: self.device,
            key: new.key,
            name: new.name,
            generation: new.generation,
            service: &holder,
            network: NewNetwork::Own(&[]),
        };
        let id = self.engine.create(&container).await?;
        let taken = agent.take(self.engine, &id, service, self.now).await;
        // What is left of it is cleared away by the next plan.
        let removed = self.engine.remove(&id).await;
        match (taken, removed) {
            (Err(TakeError::Rejected(why)), _) => {
                let Some(identity) = service.identity() else {
                    return Ok(Change::None);
                };
                Ok(self.rejected(identity, &service.image_name, why))
            }
            (
                Err(TakeError::Read {
                    source: ReadError::Engine(error),
                    ..
                }),
                _,
            ) => Err(error),
            (Err(error), _) => Err(Box::new(error).into()),
            (Ok(()), Ok(())) => {
                let mut history = self.history.clone();
                history.made.remove(new.name);
                Ok(changed(&self.history, history))
            }
            (Ok(()), Err(error)) => {
                tracing::warn!(error = %chain(&error), "a release's container is left for later");
                Ok(Change::None)
            }
        }
    }

    /// Gives an image one more name; what came under another name than its own is known by its content.
    async fn keep(&self, image: &str, tag: &str) -> Result<Change, EngineError> {
        let good = self.history.ways_back();
        let services = self.target.services().map(|(_, service)| service);
        let pins = services.chain(good).filter_map(|service| {
            let is_it = service.pinned_image().is_some_and(|pinned| pinned == image);
            service.pin.as_ref().filter(|_| is_it)
        });
        let ids = pins
            .filter_map(|pin| pin.expected.as_ref())
            .flat_map(|expected| {
                [expected.config_digest.0, expected.manifest_digest.0].map(|id| id.to_string())
            });
        let names = std::iter::once(image.to_owned()).chain(ids);
        for name in names {
            if self.engine.image(&name).await?.is_some() {
                self.engine.tag(&name, tag).await?;
                return Ok(Change::None);
            }
        }
        // The engine says better what it lacks.
        self.engine.tag(image, tag).await?;
        Ok(Change::None)
    }

    /// Removes an image that the agent pulled. One that somebody else's container uses is theirs from now
    /// on: the engine refuses, and the agent does not ask again.
    async fn collect(&self, image: &str) -> Result<Change, EngineError> {
        match self.engine.remove_image(image).await {
            Ok(()) | Err(EngineError::Refused { status: 409, .. }) => {
                Ok(Change::Disown(image.to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// The history with this spec rejected; its deaths are told by the reason and need no count.
    fn rejected(&self, identity: Identity, image: &str, reason: String) -> Change {
        let mut history = self.history.clone();
        history.rejected = Some(Rejected {
            identity,
            image: image.to_owned(),
            reason,
            at: self.now,
        });
        history.attempts = None;
        changed(&self.history, history)
    }

    /// The history without containers that are gone, and without `started`, which runs again. An answer
    /// that was lost when a container was made is filled in: its name is still the one it was given.
    fn tidied(&self, key: &ServiceKey, without: &str) -> ServiceHistory {
        let mut history = self.history.clone();
        let containers = self.observed.containers.iter();
        let containers = containers.map(|found| (&found.key, &found.id, &found.name));
        let sandboxes = self.observed.sandboxes.iter();
        let sandboxes = sandboxes.map(|found| (&found.key, &found.id, &found.name));
        let own: Vec<(&String, &String)> = containers
            .chain(sandboxes)
            .filter(|(found, _, _)| *found == key)
            .map(|(_, id, name)| (id, name))
            .collect();
        let exists = |id: &String| own.iter().any(|(found, _)| *found == id);
        history.interrupted.retain(|id| id != without && exists(id));
        for (name, id) in &mut history.made {
            if let Some((found, _)) = own
                .iter()
                .find(|(_, found)| id.is_empty() && *found == name)
            {
                id.clone_from(found);
            }
        }
        history.made.retain(|_, id| exists(id));
        history
    }
}

/// Whose container is made, and what it is called.
struct Creation<'a> {
    key: &'a ServiceKey,
    name: &'a str,
    generation: u64,
}

fn changed(before: &ServiceHistory, after: ServiceHistory) -> Change {
    if *before == after {
        Change::None
    } else {
        Change::Set(Box::new(after))
    }
}
