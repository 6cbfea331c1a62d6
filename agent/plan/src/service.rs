//! Owns the decision for one service: serve what is good, try what is new, never both at once unless the
//! service hands over.

mod link;
mod prepare;
mod serve;
mod trial;

use holdfast_proto::id::{ServiceKey, ServiceName};
use holdfast_proto::spec::{Condition, RestartPolicy, ServiceSpec, Strategy};
use holdfast_proto::target::{Identity, ServiceTarget};
use holdfast_proto::time::Timestamp;

use crate::Situation;
use crate::health::ends_by_itself;
use crate::history::{Retry, ServiceHistory};
use crate::hold::Hold;
use crate::leave;
use crate::observed::{Container, ContainerState};
use crate::step::{Plan, RemoveReason, Step, StopReason};

/// The decision for one service of the target.
pub(crate) fn plan(
    situation: &Situation<'_>,
    key: &ServiceKey,
    service: &ServiceTarget,
    plan: &mut Plan,
) {
    if let Some(retry) = situation.history.steps.get(key)
        && retry.not_before > situation.now
    {
        hold_failed_step(key, retry, plan);
        return;
    }
    let nothing = ServiceHistory::default();
    let view = View::new(
        situation,
        key,
        situation.history.of(key).unwrap_or(&nothing),
    );
    let history = view.history;
    let other_spec = history.rejects(service).is_none() && service.identity().is_some();
    if history.rejected.is_some() && other_spec {
        plan.steps.push(Step::Pardon { key: key.clone() });
    }
    if let Some(rejected) = history.rejects(service) {
        // The last good spec may be the rejected one: it passed once, and failed when made anew.
        let good = history
            .last_good
            .as_ref()
            .filter(|good| !rejected.identity.matches(good));
        plan.holds.push(Hold::Rejected {
            key: key.clone(),
            image: rejected.image.clone(),
            reason: rejected.reason.clone(),
            fallback: good.is_some(),
        });
        match good {
            Some(good) => view.serve(good, StopReason::Rejected, plan),
            None => view.stop_all(StopReason::Rejected, plan),
        }
    } else if history.trusts(service) {
        view.serve(service, StopReason::Superfluous, plan);
    } else {
        view.attempt(service, plan);
    }
}

/// Reports a step that failed a moment ago and is tried again later.
pub(crate) fn hold_failed_step(key: &ServiceKey, retry: &Retry, plan: &mut Plan) {
    wait_until(retry.not_before, plan);
    plan.holds.push(Hold::StepFailed {
        key: key.clone(),
        error: retry.error.clone(),
        until: retry.not_before,
    });
}

pub(crate) fn wait_until(until: Timestamp, plan: &mut Plan) {
    plan.look_again = Some(plan.look_again.map_or(until, |earlier| earlier.min(until)));
}

/// One service's part of the situation.
pub(crate) struct View<'a> {
    situation: &'a Situation<'a>,
    key: &'a ServiceKey,
    history: &'a ServiceHistory,
    containers: Vec<&'a Container>,
}

impl<'a> View<'a> {
    pub(crate) fn new(
        situation: &'a Situation<'a>,
        key: &'a ServiceKey,
        history: &'a ServiceHistory,
    ) -> Self {
        Self {
            situation,
            key,
            history,
            containers: situation
                .observed
                .containers
                .iter()
                .filter(|container| container.key == *key)
                .collect(),
        }
    }

    fn others(&self, chosen: Option<&Container>) -> impl Iterator<Item = &&'a Container> {
        let chosen = chosen.map(|container| container.id.clone());
        self.containers
            .iter()
            .filter(move |container| Some(&container.id) != chosen.as_ref())
    }

    /// Steps that stop every other container that is up, and keep those that are down from coming back
    /// with the engine.
    fn stop_others(&self, chosen: Option<&Container>, why: StopReason, plan: &mut Plan) {
        for container in self.others(chosen) {
            if container.state.is_up() {
                plan.steps.push(self.stop(container, why));
            } else {
                self.disarm(container, plan);
            }
        }
    }

    fn disarm(&self, container: &Container, plan: &mut Plan) {
        let exists = !matches!(
            container.state,
            ContainerState::Removing | ContainerState::Dead
        );
        if exists && container.restart != RestartPolicy::No {
            plan.steps.push(Step::Arm {
                key: self.key.clone(),
                container: container.handle(),
                restart: RestartPolicy::No,
            });
        }
    }

    fn stop_all(&self, why: StopReason, plan: &mut Plan) {
        self.stop_others(None, why, plan);
    }

    fn stop(&self, container: &Container, why: StopReason) -> Step {
        Step::Stop {
            key: self.key.clone(),
            container: container.handle(),
            why,
        }
    }

    fn remove(&self, container: &Container, why: RemoveReason) -> Step {
        Step::Remove {
            key: self.key.clone(),
            container: container.handle(),
            why,
        }
    }

    fn start(&self, container: &Container, candidate: bool) -> Step {
        Step::Start {
            key: self.key.clone(),
            container: container.handle(),
            restart: if candidate {
                RestartPolicy::No
            } else {
                container.wanted_restart
            },
            identity: identity_of(container),
            candidate,
        }
    }

    /// Whether every service that `spec` waits for is there; says which is not.
    fn has_what_it_needs(&self, spec: &ServiceSpec, plan: &mut Plan) -> bool {
        let mut all = true;
        for (name, dependency) in spec.depends_on.iter().filter(|(_, d)| d.required) {
            if !self.is_met(name, dependency.condition, plan) {
                plan.holds.push(Hold::Waiting {
                    key: self.key.clone(),
                    on: name.clone(),
                    condition: dependency.condition,
                });
                all = false;
            }
        }
        all
    }

    fn is_met(&self, name: &ServiceName, condition: Condition, plan: &mut Plan) -> bool {
        let key = ServiceKey {
            app: self.key.app.clone(),
            service: name.clone(),
        };
        let nothing = ServiceHistory::default();
        let history = self.situation.history.of(&key).unwrap_or(&nothing);
        let needed = View::new(self.situation, &key, history);
        let mut target = self.situation.target.services();
        let spec = target
            .find(|(other, _)| *other == key)
            .map(|(_, spec)| spec);
        let completed = |container: &&Container| {
            container.state == ContainerState::Exited { code: 0 }
                && ends_by_itself(container.wanted_restart)
                && spec.is_none_or(|spec| container.is(spec))
        };
        let ended_well = needed.containers.iter().any(completed)
            || history
                .completed
                .zip(spec)
                .is_some_and(|(identity, spec)| identity.matches(spec));
        let mut up = needed
            .containers
            .iter()
            .filter(|container| container.state.is_up());
        match condition {
            Condition::ServiceStarted => ended_well || up.next().is_some(),
            Condition::ServiceCompletedSuccessfully => ended_well,
            Condition::ServiceHealthy => up.any(|container| {
                let passed = history
                    .last_good
                    .as_ref()
                    .is_some_and(|good| container.is(good));
                let stable_ms = self.situation.gate.stable_ms;
                let left_ms = stable_ms.saturating_sub(container.running_for_ms.unwrap_or(0));
                let checked = container.health.is_some() || container.probe.is_some();
                if checked {
                    container.healthy_for_ms.is_some()
                } else {
                    // Without a check, having stayed up is the only sign of health.
                    if left_ms > 0 && !passed {
                        let left_ms = i64::try_from(left_ms).unwrap_or(i64::MAX);
                        wait_until(self.situation.now.plus_ms(left_ms), plan);
                    }
                    passed || left_ms == 0
                }
            }),
        }
    }

    pub(crate) fn hold_unresolved(&self, service: &ServiceTarget, plan: &mut Plan) {
        let resolution = service
            .pin
            .as_ref()
            .and_then(|pin| pin.resolution.error.clone());
        plan.holds.push(Hold::Unresolved {
            key: self.key.clone(),
            image: service.image_name.clone(),
            error: resolution.unwrap_or_else(|| "it was not resolved yet".to_owned()),
        });
    }

    /// Steps that leave no container and no sandbox of the service.
    pub(crate) fn clear_away(&self, plan: &mut Plan) {
        let containers = self.containers.iter();
        let containers = containers.map(|found| (found.handle(), found.state));
        let sandboxes = self.situation.observed.sandboxes.iter();
        let sandboxes = sandboxes.filter(|sandbox| {
            let mut users = self.containers.iter();
            sandbox.key == *self.key
                && !users.any(|user| user.network.shares.as_ref() == Some(&sandbox.id))
        });
        let sandboxes = sandboxes.map(|found| (found.handle(), found.state));
        let stays = |state: ContainerState| {
            // What runs was a service before: it ends when that may be.
            state.is_up() && self.situation.closed.contains_key(self.key)
        };
        for (container, state) in containers.chain(sandboxes).filter(|(_, s)| !stays(*s)) {
            leave::clear(self.key, container, state, plan);
        }
    }

    /// Brings a spec towards its gate while the last good one goes on serving.
    fn attempt(&self, service: &ServiceTarget, plan: &mut Plan) {
        let Some(identity) = service.identity() else {
            self.hold_unresolved(service, plan);
            self.serve_meanwhile(false, plan);
            return;
        };
        if let Some(reason) = self.gives_up(service) {
            plan.steps.push(Step::Reject {
                key: self.key.clone(),
                identity,
                image: service.image_name.clone(),
                reason,
            });
            return;
        }
        let link = self.link(service);
        let candidate = self.container_of(service, &link);
        let begun = candidate.is_some_and(|candidate| candidate.state != ContainerState::Created);
        if let Some(candidate) = candidate.filter(|_| begun) {
            self.try_out(candidate, service, &link, plan);
            return;
        }
        if self.is_held(service, plan) {
            self.serve_meanwhile(false, plan);
            return;
        }
        if let Some(shortage) = self.lacks_room(service) {
            self.hold_no_space(shortage, plan);
            self.serve_meanwhile(false, plan);
            return;
        }
        if let Some(candidate) = candidate {
            self.try_out(candidate, service, &link, plan);
            return;
        }
        if self.makes_room_first(service, plan) {
            return;
        }
        let (steps, holds) = (plan.steps.len(), plan.holds.len());
        self.prepare(service, &link, plan);
        let ready = plan.steps[steps..].iter().any(Step::is_preparation);
        let on_its_way = plan.holds.len() == holds;
        if on_its_way && self.stops_first(service) {
            // Bringing the old one back now would only stop it again.
            return;
        }
        self.serve_meanwhile(ready, plan);
    }

    /// Whether the device or its owner does not want this update now; what may be prepared is.
    fn is_held(&self, service: &ServiceTarget, plan: &mut Plan) -> bool {
        // A first deployment interrupts nobody, so that only a pause holds it.
        self.is_held_unless_first(service, self.history.last_good.is_none(), plan)
    }

    pub(crate) fn is_held_unless_first(
        &self,
        service: &ServiceTarget,
        is_first: bool,
        plan: &mut Plan,
    ) -> bool {
        if let Some(why) = self.situation.observed.refused.get(self.key) {
            plan.holds.push(Hold::Refused {
                key: self.key.clone(),
                why: why.clone(),
            });
            return true;
        }
        let closed = self.situation.closed.get(self.key);
        let closed = closed.filter(|closed| closed.is_pause() || !is_first);
        let Some(closed) = closed else {
            return false;
        };
        if let Some(until) = closed.until {
            wait_until(until, plan);
        }
        plan.holds.push(Hold::Closed {
            key: self.key.clone(),
            code: closed.code,
            detail: closed.detail.clone(),
        });
        if !closed.is_pause() && service.config.strategy() == Strategy::DownloadThenKill {
            self.pull_ahead(service, plan);
        }
        true
    }

    /// With the strategies that stop first: stops, and removes, what runs. Whether it did.
    fn makes_room_first(&self, service: &ServiceTarget, plan: &mut Plan) -> bool {
        if !self.stops_first(service) || !self.may_pull_now(service) {
            return false;
        }
        if !self.has_what_it_needs(&service.config, plan) {
            return false;
        }
        let before = plan.steps.len();
        self.stop_all(StopReason::MakesRoom, plan);
        let delete = service.config.strategy() == Strategy::DeleteThenDownload;
        if delete && plan.steps.len() == before {
            let there = |container: &&&Container| container.state != ContainerState::Removing;
            for container in self.containers.iter().filter(there) {
                plan.steps
                    .push(self.remove(container, RemoveReason::MakesRoom));
            }
        }
        plan.steps.len() > before
    }

    fn stops_first(&self, service: &ServiceTarget) -> bool {
        match service.config.strategy() {
            Strategy::DownloadThenKill | Strategy::HandOver => false,
            Strategy::KillThenDownload | Strategy::DeleteThenDownload => {
                self.history.last_good.is_some()
            }
        }
    }
}

fn identity_of(container: &Container) -> Identity {
    Identity {
        config_digest: container.config_digest,
        spec_hash: container.spec_hash,
    }
}
