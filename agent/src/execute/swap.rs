//! Owns the steps that change containers: create, stop, start, commit, remove.

use holdfast_plan::{ContainerRef, RejectReason};
use holdfast_proto::id::ServiceKey;
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::{Identity, ServiceTarget};

use super::{Execution, changed};
use crate::engine::{Engine, EngineError, NewContainer, Operation};
use crate::fault::chain;
use crate::journal::Change;

impl<E: Engine> Execution<'_, E> {
    pub(super) async fn create(
        &self,
        key: &ServiceKey,
        name: &str,
        generation: u64,
        service: &ServiceTarget,
    ) -> Result<Change, EngineError> {
        let new = NewContainer {
            device: self.device,
            key,
            name,
            generation,
            service,
        };
        match self.engine.create(&new).await {
            Ok(_) => Ok(Change::None),
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

    /// Takes the restart policy away first: an engine brings a stopped container with `always` back
    /// when it restarts, and then two of a service would run (I1, I2).
    pub(super) async fn stop(&self, container: &ContainerRef) -> Result<Change, EngineError> {
        match self
            .engine
            .set_restart(&container.id, RestartPolicy::No)
            .await
        {
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
        self.engine.set_restart(&container.id, restart).await?;
        let observed = self
            .observed
            .containers
            .iter()
            .find(|found| found.id == container.id);
        match self.engine.start(&container.id).await {
            Ok(()) => Ok(observed.map_or(Change::None, |found| {
                changed(&self.history, self.tidied(&found.key, &container.id))
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

    pub(super) async fn commit(
        &self,
        key: &ServiceKey,
        container: &ContainerRef,
        restart: RestartPolicy,
        service: &ServiceTarget,
    ) -> Result<Change, EngineError> {
        self.engine.set_restart(&container.id, restart).await?;
        let mut history = self.tidied(key, &container.id);
        history.last_good = Some(service.clone());
        history.attempts = None;
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
        Ok(changed(&self.history, history))
    }
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
        }
        EngineError::TimedOut { .. }
        | EngineError::Unreachable { .. }
        | EngineError::PullBroke { .. }
        | EngineError::PullStalled { .. }
        | EngineError::ForeignName { .. }
        | EngineError::Unsupported(_)
        | EngineError::Forbidden(_)
        | EngineError::Nonsense { .. } => false,
    }
}
