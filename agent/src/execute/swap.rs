//! Owns the steps that change containers: create, connect, stop, start, commit, remove.

use std::collections::BTreeMap;

use holdfast_plan::{
    Attempts, Container, ContainerRef, ContainerState, RejectReason, SandboxSpec, ServiceHistory,
    attachments,
};
use holdfast_proto::id::{ServiceKey, ServiceName};
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::{Identity, ServiceTarget};

use super::{Creation, Execution, changed};
use crate::engine::{Engine, EngineError, NewContainer, NewNetwork, NewSandbox, Operation};
use crate::fault::chain;
use crate::journal::Change;
use crate::secrets;

impl<E: Engine> Execution<'_, E> {
    pub(super) async fn create(
        &self,
        new: &Creation<'_>,
        service: &ServiceTarget,
        sandbox: Option<&str>,
    ) -> Result<Change, EngineError> {
        secrets::ensure(self.files, new.key, &service.config)?;
        let joined = attachments(&service.service_name, &service.config);
        let networks = self.in_engine(new.key, joined);
        let container = NewContainer {
            device: self.device,
            key: new.key,
            name: new.name,
            generation: new.generation,
            service,
            network: sandbox.map_or(NewNetwork::Own(&networks), NewNetwork::Shared),
        };
        match self.engine.create(&container).await {
            Ok(id) => Ok(self.made(new.name, id)),
            // The policy speaks of this device, not of the spec: it is held, and free when either changes.
            Err(error @ EngineError::Forbidden(_)) => Err(error),
            // A spec that can never become a container is rejected, so that what runs goes on.
            Err(error) if error.is_final() => {
                let identity = service.identity().filter(|_| !self.history.trusts(service));
                let Some(identity) = identity else {
                    return Err(error);
                };
                let reason = RejectReason::StartFailed {
                    error: chain(&error),
                };
                Ok(self.rejected(identity, &service.image_name, reason.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn create_sandbox(
        &self,
        new: &Creation<'_>,
        spec: &SandboxSpec,
    ) -> Result<Change, EngineError> {
        let networks = self.in_engine(new.key, spec.networks.clone());
        let sandbox = NewSandbox {
            device: self.device,
            key: new.key,
            name: new.name,
            generation: new.generation,
            spec,
            networks: &networks,
        };
        let id = self.engine.create_sandbox(&sandbox).await?;
        Ok(self.made(new.name, id))
    }

    /// An app's networks by their names in the engine.
    fn in_engine(
        &self,
        key: &ServiceKey,
        joined: BTreeMap<ServiceName, Vec<String>>,
    ) -> Vec<(String, Vec<String>)> {
        let known = |(network, aliases): (ServiceName, Vec<String>)| {
            let mut networks = self.observed.networks.iter();
            let found =
                networks.find(|found| found.key.app == key.app && found.key.network == network)?;
            Some((found.name.clone(), aliases))
        };
        joined.into_iter().filter_map(known).collect()
    }

    fn made(&self, name: &str, id: String) -> Change {
        let mut history = self.history.clone();
        history.made.insert(name.to_owned(), id);
        changed(&self.history, history)
    }

    pub(super) async fn connect(
        &self,
        key: &ServiceKey,
        container: &ContainerRef,
        network: &ServiceName,
        aliases: &[String],
        again: bool,
    ) -> Result<Change, EngineError> {
        let joined = BTreeMap::from([(network.clone(), aliases.to_vec())]);
        for (name, aliases) in self.in_engine(key, joined) {
            if again {
                self.engine.disconnect(&name, &container.id).await?;
            }
            self.engine.connect(&name, &container.id, &aliases).await?;
        }
        Ok(Change::None)
    }

    pub(super) async fn start_sandbox(
        &self,
        key: &ServiceKey,
        container: &ContainerRef,
        restart: RestartPolicy,
        candidate: Option<Identity>,
    ) -> Result<Change, EngineError> {
        self.arm(container, restart).await?;
        match self.engine.start(&container.id).await {
            Ok(()) => Ok(Change::None),
            Err(error) if says_it_cannot_start(&error) => {
                let Some(identity) = candidate else {
                    return Err(error);
                };
                let mut services = self.target.services();
                let image = services
                    .find(|(found, _)| found == key)
                    .map(|(_, service)| service.image_name.as_str());
                let reason = RejectReason::StartFailed {
                    error: chain(&error),
                };
                Ok(self.rejected(identity, image.unwrap_or_default(), reason.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// Sets the restart policy that a container does not have yet.
    ///
    /// An engine whose disk is full changes no policy, but starts what is made (measured): a container that
    /// is to serve again is then started without one, and gets it when there is room.
    async fn arm(
        &self,
        container: &ContainerRef,
        restart: RestartPolicy,
    ) -> Result<(), EngineError> {
        let containers = self.observed.containers.iter();
        let containers = containers.map(|found| (&found.id, found.restart));
        let sandboxes = self.observed.sandboxes.iter();
        let mut all = containers.chain(sandboxes.map(|found| (&found.id, found.restart)));
        if all.any(|(id, has)| *id == container.id && has == restart) {
            return Ok(());
        }
        match self.engine.set_restart(&container.id, restart).await {
            Err(error) if error.is_disk_full() && restart != RestartPolicy::No => {
                tracing::warn!(
                    error = %chain(&error),
                    "{container} gets its restart policy once the disk has room"
                );
                Ok(())
            }
            other => other,
        }
    }

    /// Takes the restart policy away first: an engine brings a stopped container with `always` back
    /// when it restarts, and then two of a service would run (I1, I2).
    pub(super) async fn stop(&self, container: &ContainerRef) -> Result<Change, EngineError> {
        match self.arm(container, RestartPolicy::No).await {
            Err(EngineError::Refused { status: 404, .. }) => return Ok(Change::None),
            other => other?,
        }
        self.engine.stop(&container.id).await?;
        Ok(Change::None)
    }

    pub(super) async fn start(
        &self,
        container: &ContainerRef,
        restart: RestartPolicy,
        identity: Identity,
        candidate: bool,
    ) -> Result<Change, EngineError> {
        let observed = self
            .observed
            .containers
            .iter()
            .find(|found| found.id == container.id);
        // After a reboot they are gone.
        if let Some((found, service)) =
            observed.and_then(|found| Some((found, self.spec_of(found)?)))
        {
            secrets::ensure(self.files, &found.key, &service.config)?;
        }
        self.arm(container, restart).await?;
        match self.engine.start(&container.id).await {
            Ok(()) => Ok(observed.map_or(Change::None, |found| {
                let mut history = self.tidied(&found.key, &container.id);
                if candidate && found.state != ContainerState::Created {
                    count_interruption(&mut history, identity);
                }
                changed(&self.history, history)
            })),
            Err(error) if candidate && says_it_cannot_start(&error) => {
                let image = observed.map(|found| found.image.as_str());
                let reason = RejectReason::StartFailed {
                    error: chain(&error),
                };
                Ok(self.rejected(identity, image.unwrap_or_default(), reason.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// The spec that a container was made from, if it is still known.
    fn spec_of(&self, container: &Container) -> Option<&ServiceTarget> {
        let wanted = self.target.services();
        let wanted = wanted
            .filter(|(key, _)| *key == container.key)
            .map(|(_, service)| service);
        wanted
            .chain(self.history.last_good.as_deref())
            .find(|service| container.is(service))
    }

    pub(super) async fn commit(
        &self,
        key: &ServiceKey,
        container: &ContainerRef,
        restart: RestartPolicy,
        service: &ServiceTarget,
    ) -> Result<Change, EngineError> {
        self.engine.set_restart(&container.id, restart).await?;
        let mut history = self.tidied(key, &container.id);
        history.commit(service);
        history.attempts = None;
        let mut containers = self.observed.containers.iter();
        let ended = containers.any(|found| {
            found.id == container.id && found.state == ContainerState::Exited { code: 0 }
        });
        history.completed = service.identity().filter(|_| ended);
        // What was rejected stays so for as long as the target names it.
        let mut services = self.target.services();
        let current = services.find(|(found, _)| found == key);
        if current.is_none_or(|(_, current)| history.rejects(current).is_none()) {
            history.rejected = None;
        }
        Ok(changed(&self.history, history))
    }

    pub(super) async fn remove(&self, container: &ContainerRef) -> Result<Change, EngineError> {
        self.engine.remove(&container.id).await?;
        let mut history = self.history.clone();
        history.interrupted.remove(&container.id);
        history.made.retain(|_, id| *id != container.id);
        Ok(changed(&self.history, history))
    }
}

/// A trial that begins again was ended by something else than its container.
fn count_interruption(history: &mut ServiceHistory, identity: Identity) {
    let before = history.attempts.take();
    let mut attempts = before
        .filter(|attempts| attempts.identity == identity)
        .unwrap_or(Attempts {
            identity,
            count: 0,
            interruptions: 0,
        });
    attempts.interruptions = attempts.interruptions.saturating_add(1);
    history.attempts = Some(attempts);
}

/// Whether a failed start speaks of the container, not of the engine or of a race.
///
/// A broken entrypoint is 400, a taken port 500 (both measured on 20.10); 404 and 409 mean that the
/// container itself was taken away or is being taken away.
fn says_it_cannot_start(error: &EngineError) -> bool {
    match error {
        EngineError::Refused {
            operation, status, ..
        } => {
            *operation == Operation::Start
                && !matches!(status, 404 | 409)
                && !error.is_engine_away()
                && !error.is_disk_full()
        }
        EngineError::TimedOut { .. }
        | EngineError::Unreachable { .. }
        | EngineError::PullBroke { .. }
        | EngineError::PullStalled { .. }
        | EngineError::ForeignName { .. }
        | EngineError::Unsupported(_)
        | EngineError::Forbidden(_)
        | EngineError::Files(_)
        | EngineError::Program(_)
        | EngineError::Nonsense { .. } => false,
    }
}
