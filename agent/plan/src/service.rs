//! Owns the decision for one service: serve what is good, try what is new, never both at once.

use holdfast_proto::id::ServiceKey;
use holdfast_proto::image::Digest;
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::{Identity, ServiceTarget};
use holdfast_proto::time::Timestamp;

use crate::Situation;
use crate::health::{RejectReason, Verdict, judge};
use crate::history::{Retry, ServiceHistory};
use crate::observed::{Container, ContainerState, ImagePresence};
use crate::step::{Hold, Plan, RemoveReason, Step, StopReason};

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
    let history = situation.history.of(key).unwrap_or(&nothing);
    let containers: Vec<&Container> = situation
        .observed
        .containers
        .iter()
        .filter(|container| container.key == *key)
        .collect();
    let other_spec = history.rejects(service).is_none() && service.identity().is_some();
    if history.rejected.is_some() && other_spec {
        plan.steps.push(Step::Pardon { key: key.clone() });
    }
    let view = View {
        situation,
        key,
        history,
        containers,
    };
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

fn wait_until(until: Timestamp, plan: &mut Plan) {
    plan.look_again = Some(plan.look_again.map_or(until, |earlier| earlier.min(until)));
}

/// One service's part of the situation.
struct View<'a> {
    situation: &'a Situation<'a>,
    key: &'a ServiceKey,
    history: &'a ServiceHistory,
    containers: Vec<&'a Container>,
}

impl<'a> View<'a> {
    /// The container made from `service`: the one that is up, else the newest that can be started.
    fn container_of(&self, service: &ServiceTarget) -> Option<&'a Container> {
        self.containers
            .iter()
            .filter(|container| container.is(service))
            .max_by_key(|container| {
                let lost = matches!(
                    container.state,
                    ContainerState::Dead | ContainerState::Removing
                );
                (
                    container.state.is_up(),
                    !lost,
                    container.generation,
                    container.id.as_str(),
                )
            })
            .copied()
    }

    fn others(&self, chosen: Option<&Container>) -> impl Iterator<Item = &&'a Container> {
        let chosen = chosen.map(|container| container.id.clone());
        self.containers
            .iter()
            .filter(move |container| Some(&container.id) != chosen.as_ref())
    }

    /// Steps that stop every other container that is up; whether there was one.
    fn stop_others(&self, chosen: Option<&Container>, why: StopReason, plan: &mut Plan) -> bool {
        let before = plan.steps.len();
        for container in self
            .others(chosen)
            .filter(|container| container.state.is_up())
        {
            plan.steps.push(Step::Stop {
                key: self.key.clone(),
                container: container.handle(),
                why,
            });
        }
        plan.steps.len() > before
    }

    fn stop_all(&self, why: StopReason, plan: &mut Plan) {
        self.stop_others(None, why, plan);
    }

    fn remove(&self, container: &Container, why: RemoveReason) -> Step {
        Step::Remove {
            key: self.key.clone(),
            container: container.handle(),
            why,
        }
    }

    /// Keeps a spec running that passed its gate before.
    fn serve(&self, service: &ServiceTarget, stop_others: StopReason, plan: &mut Plan) {
        let Some(container) = self.container_of(service) else {
            self.prepare(service, plan);
            return;
        };
        match container.state {
            ContainerState::Running | ContainerState::Restarting => {
                self.stop_others(Some(container), stop_others, plan);
                if container.restart != container.wanted_restart {
                    plan.steps.push(Step::Arm {
                        key: self.key.clone(),
                        container: container.handle(),
                        restart: container.wanted_restart,
                    });
                }
                for other in self.others(Some(container)) {
                    let why = match stop_others {
                        StopReason::Rejected => RemoveReason::Rejected,
                        StopReason::Replaced
                        | StopReason::NotInTarget
                        | StopReason::Superfluous => RemoveReason::Succeeded,
                    };
                    if !other.state.is_up() && other.state != ContainerState::Removing {
                        plan.steps.push(self.remove(other, why));
                    }
                }
            }
            ContainerState::Paused => plan.steps.push(Step::Unpause {
                key: self.key.clone(),
                container: container.handle(),
            }),
            ContainerState::Created | ContainerState::Exited { .. } => {
                self.stop_others(Some(container), stop_others, plan);
                // Being stopped by a swap is no reason to stay down, whatever the policy says.
                if self.history.interrupted.contains(&container.id) || stays_up(container) {
                    plan.steps.push(Step::Start {
                        key: self.key.clone(),
                        container: container.handle(),
                        restart: container.wanted_restart,
                        identity: identity_of(container),
                        candidate: false,
                    });
                }
            }
            ContainerState::Dead => plan
                .steps
                .push(self.remove(container, RemoveReason::Broken)),
            ContainerState::Removing => plan.holds.push(Hold::Removing {
                key: self.key.clone(),
                container: container.handle(),
            }),
        }
    }

    /// Brings a spec towards its gate while the last good one goes on serving.
    fn attempt(&self, service: &ServiceTarget, plan: &mut Plan) {
        let Some(identity) = service.identity() else {
            let resolution = service
                .pin
                .as_ref()
                .and_then(|pin| pin.resolution.error.clone());
            plan.holds.push(Hold::Unresolved {
                key: self.key.clone(),
                image: service.image_name.clone(),
                error: resolution.unwrap_or_else(|| "it was not resolved yet".to_owned()),
            });
            self.serve_meanwhile(false, plan);
            return;
        };
        let deaths = self.history.deaths(service);
        if deaths >= self.situation.gate.max_attempts {
            plan.steps.push(Step::Reject {
                key: self.key.clone(),
                identity,
                image: service.image_name.clone(),
                reason: RejectReason::AgentDied { times: deaths },
            });
            return;
        }
        if let Some(candidate) = self.container_of(service) {
            self.try_out(candidate, service, plan);
            return;
        }
        let begun = plan.steps.len();
        self.prepare(service, plan);
        let prepared = &plan.steps[begun..];
        let ready = prepared
            .iter()
            .any(|step| matches!(step, Step::Create { .. }));
        self.serve_meanwhile(ready, plan);
    }

    /// Restores the last good container while its successor is on its way; tidies nothing away yet.
    ///
    /// When the successor is `ready` to be made, what is up may stay as it is for that moment.
    fn serve_meanwhile(&self, ready: bool, plan: &mut Plan) {
        let Some(good) = &self.history.last_good else {
            return;
        };
        let something_is_up = self
            .containers
            .iter()
            .any(|container| container.state.is_up());
        if ready && something_is_up {
            return;
        }
        let mut restore = Plan::default();
        self.serve(good, StopReason::Superfluous, &mut restore);
        plan.steps
            .extend(restore.steps.into_iter().filter(|step| match step {
                Step::Start { .. }
                | Step::Arm { .. }
                | Step::Unpause { .. }
                | Step::Stop { .. } => true,
                Step::Create { .. } | Step::Pull { .. } => !ready,
                Step::Commit { .. }
                | Step::Reject { .. }
                | Step::Remove { .. }
                | Step::Pardon { .. }
                | Step::Forget { .. } => false,
            }));
    }

    /// A candidate exists: swap it in, judge it, or clear it away.
    fn try_out(&self, candidate: &Container, service: &ServiceTarget, plan: &mut Plan) {
        match candidate.state {
            ContainerState::Created => {
                self.stop_others(Some(candidate), StopReason::Replaced, plan);
                plan.steps.push(Step::Start {
                    key: self.key.clone(),
                    container: candidate.handle(),
                    restart: RestartPolicy::No,
                    identity: identity_of(candidate),
                    candidate: true,
                });
            }
            ContainerState::Paused => plan.steps.push(Step::Unpause {
                key: self.key.clone(),
                container: candidate.handle(),
            }),
            // Stopped for an earlier target, not by itself: its end proves nothing.
            ContainerState::Exited { .. }
                if candidate.generation != self.situation.target.generation =>
            {
                plan.steps
                    .push(self.remove(candidate, RemoveReason::Outdated));
            }
            ContainerState::Dead => plan
                .steps
                .push(self.remove(candidate, RemoveReason::Broken)),
            ContainerState::Removing => plan.holds.push(Hold::Removing {
                key: self.key.clone(),
                container: candidate.handle(),
            }),
            ContainerState::Running
            | ContainerState::Restarting
            | ContainerState::Exited { .. } => self.decide(candidate, service, plan),
        }
    }

    fn decide(&self, candidate: &Container, service: &ServiceTarget, plan: &mut Plan) {
        match judge(candidate, self.situation.gate) {
            Verdict::Pass => {
                self.stop_others(Some(candidate), StopReason::Superfluous, plan);
                plan.steps.push(Step::Commit {
                    key: self.key.clone(),
                    container: candidate.handle(),
                    restart: candidate.wanted_restart,
                    service: Box::new(service.clone()),
                });
            }
            Verdict::Fail(reason) => plan.steps.push(Step::Reject {
                key: self.key.clone(),
                identity: identity_of(candidate),
                image: candidate.image.clone(),
                reason,
            }),
            Verdict::Wait { remaining_ms } => {
                self.stop_others(Some(candidate), StopReason::Superfluous, plan);
                let remaining = i64::try_from(remaining_ms).unwrap_or(i64::MAX);
                let until = self.situation.now.plus_ms(remaining);
                wait_until(until, plan);
                plan.holds.push(Hold::Verifying {
                    key: self.key.clone(),
                    container: candidate.handle(),
                    until,
                });
            }
        }
    }

    /// Gets the image and makes the container; nothing that runs is touched.
    fn prepare(&self, service: &ServiceTarget, plan: &mut Plan) {
        let Some((pinned, pin)) = service.pinned_image().zip(service.pin.as_ref()) else {
            return;
        };
        let Some(expected) = &pin.expected else {
            return;
        };
        let device = &self.situation.observed.platform;
        let image_platform = match self.situation.observed.images.get(&pinned) {
            Some(ImagePresence::Present { platform, .. }) => Some(platform),
            Some(ImagePresence::Absent) | None => pin.platform.as_ref(),
        };
        if let Some(image) = image_platform.filter(|image| !device.runs(image)) {
            plan.holds.push(Hold::UnsupportedPlatform {
                key: self.key.clone(),
                image: image.clone(),
                device: device.clone(),
            });
            return;
        }
        match self.situation.observed.images.get(&pinned) {
            Some(ImagePresence::Present { config, .. }) => {
                if config.is_some_and(|config| config != expected.config_digest) {
                    plan.holds.push(Hold::WrongImage {
                        key: self.key.clone(),
                        image: pinned,
                    });
                } else {
                    self.create(service, plan);
                }
            }
            Some(ImagePresence::Absent) | None => self.pull(service, &pinned, plan),
        }
    }

    fn pull(&self, service: &ServiceTarget, pinned: &str, plan: &mut Plan) {
        let Some(pin) = &service.pin else { return };
        let Some(expected) = pin.expected.clone() else {
            return;
        };
        let retry = self.situation.history.pulls.get(pinned);
        if let Some(retry) = retry.filter(|retry| retry.not_before > self.situation.now) {
            wait_until(retry.not_before, plan);
            plan.holds.push(Hold::PullFailed {
                key: self.key.clone(),
                image: pinned.to_owned(),
                error: retry.error.clone(),
                until: retry.not_before,
            });
            return;
        }
        let platform = pin
            .platform
            .as_ref()
            .unwrap_or(&self.situation.observed.platform)
            .clone();
        plan.steps.push(Step::Pull {
            key: self.key.clone(),
            image: pinned.to_owned(),
            expected,
            platform,
        });
    }

    fn create(&self, service: &ServiceTarget, plan: &mut Plan) {
        let Some(identity) = service.identity() else {
            return;
        };
        let generation = self.situation.target.generation;
        let ServiceKey { app, service: name } = self.key;
        // Unique per device, generation and spec: no two containers of ours can want one name.
        let device = self.situation.observed.device;
        let content = format!("{device} {} {}", identity.config_digest, identity.spec_hash);
        let mark: String = Digest::of(content.as_bytes())
            .hex()
            .chars()
            .take(8)
            .collect();
        plan.steps.push(Step::Create {
            key: self.key.clone(),
            name: format!("{name}-{app}-g{generation}-{mark}"),
            generation,
            service: Box::new(service.clone()),
        });
    }
}

fn identity_of(container: &Container) -> Identity {
    Identity {
        config_digest: container.config_digest,
        spec_hash: container.spec_hash,
    }
}

/// Whether a container that is down should be up by its own restart policy.
fn stays_up(container: &Container) -> bool {
    let ContainerState::Exited { code } = container.state else {
        return true;
    };
    match container.wanted_restart {
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        RestartPolicy::OnFailure(None) => code != 0,
        RestartPolicy::OnFailure(Some(most)) => code != 0 && container.restart_count < most.into(),
        RestartPolicy::No => false,
    }
}
