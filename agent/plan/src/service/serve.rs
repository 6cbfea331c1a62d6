//! Owns keeping a good spec running: bringing it up, repairing what changed behind the agent's back,
//! clearing away what is over.

use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::ServiceTarget;

use super::link::Link;
use super::{View, identity_of};
use crate::health::ends_by_itself;
use crate::hold::Hold;
use crate::observed::{Amounts, Container, ContainerState};
use crate::step::{Plan, RemoveReason, Step, StopReason};

impl<'a> View<'a> {
    /// Keeps a spec running that passed its gate before.
    pub(super) fn serve(&self, service: &ServiceTarget, stop_others: StopReason, plan: &mut Plan) {
        let link = self.link(service);
        let Some(container) = self.container_of(service, &link) else {
            let ran_to_its_end = ends_by_itself(service.config.restart_policy())
                && self
                    .history
                    .completed
                    .is_some_and(|identity| identity.matches(service));
            if ran_to_its_end {
                self.stop_all(stop_others, plan);
                // The container of its run stays, however it is connected: it is the way back.
                let ran = self.containers.iter().filter(|found| found.is(service));
                let ran = ran.max_by_key(|found| (found.generation, found.id.as_str()));
                self.clear(ran.copied(), &link, stop_others, plan);
            } else {
                self.prepare(service, &link, plan);
            }
            return;
        };
        match container.state {
            ContainerState::Running | ContainerState::Restarting => {
                self.stop_others(Some(container), stop_others, plan);
                if self.repair_network(service, container, &link, plan) {
                    return;
                }
                self.repair(service, container, &link, plan);
                self.clear(Some(container), &link, stop_others, plan);
            }
            ContainerState::Paused => plan.steps.push(Step::Unpause {
                key: self.key.clone(),
                container: container.handle(),
            }),
            ContainerState::Created | ContainerState::Exited { .. } => {
                // Being stopped by a swap is no reason to stay down, whatever the policy says.
                if self.history.interrupted.contains(&container.id) || stays_up(container) {
                    self.bring_up(service, container, &link, stop_others, plan);
                } else {
                    self.rest(service, container, &link, stop_others, plan);
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

    /// Starts a trusted container that is down.
    fn bring_up(
        &self,
        service: &ServiceTarget,
        container: &Container,
        link: &Link<'a>,
        stop_others: StopReason,
        plan: &mut Plan,
    ) {
        if !self.has_what_it_needs(&service.config, plan) {
            return;
        }
        self.stop_others(Some(container), stop_others, plan);
        if self.raise_network(service, container, link, None, plan) {
            plan.steps.push(self.start(container, false));
        }
    }

    /// A one-shot service that ended stays down; that it ended well is written down.
    fn rest(
        &self,
        service: &ServiceTarget,
        container: &Container,
        link: &Link<'a>,
        stop_others: StopReason,
        plan: &mut Plan,
    ) {
        self.stop_others(Some(container), stop_others, plan);
        let ended_well = container.state == ContainerState::Exited { code: 0 }
            && ends_by_itself(container.wanted_restart);
        let known = self
            .history
            .completed
            .is_some_and(|identity| identity.matches(service));
        if ended_well && !known {
            plan.steps.push(Step::Complete {
                key: self.key.clone(),
                identity: identity_of(container),
            });
        }
        self.clear(Some(container), link, stop_others, plan);
    }

    /// Repairs the network of a running container; whether it must be started anew for that.
    fn repair_network(
        &self,
        service: &ServiceTarget,
        container: &Container,
        link: &Link<'a>,
        plan: &mut Plan,
    ) -> bool {
        let Link::Of(sandbox) = link else {
            self.join_networks(service, &container.handle(), &container.network, plan);
            return false;
        };
        let lost = container.network.stale || !sandbox.state.holds_a_network();
        if self.raise_network(service, container, link, None, plan) && lost {
            plan.steps
                .push(self.stop(container, StopReason::NetworkLost));
        }
        lost
    }

    /// Puts back, without a restart, what was changed behind the agent's back.
    fn repair(
        &self,
        service: &ServiceTarget,
        container: &Container,
        link: &Link<'a>,
        plan: &mut Plan,
    ) {
        if container.restart != container.wanted_restart {
            plan.steps.push(Step::Arm {
                key: self.key.clone(),
                container: container.handle(),
                restart: container.wanted_restart,
            });
        }
        if let Link::Of(sandbox) = link
            && sandbox.key == *self.key
            && sandbox.restart != RestartPolicy::Always
        {
            plan.steps.push(Step::Arm {
                key: self.key.clone(),
                container: sandbox.handle(),
                restart: RestartPolicy::Always,
            });
        }
        let amounts = Amounts::of(&service.config);
        if container.amounts != amounts {
            plan.steps.push(Step::SetAmounts {
                key: self.key.clone(),
                container: container.handle(),
                amounts,
            });
        }
        let given = self.history.name_of(&container.id, &container.name);
        if let Some(name) = given.filter(|name| *name != container.name) {
            plan.steps.push(Step::Rename {
                key: self.key.clone(),
                container: container.handle(),
                name: name.to_owned(),
            });
        }
    }

    /// Removes every other container that is down, then the sandboxes that nothing uses.
    fn clear(
        &self,
        container: Option<&Container>,
        link: &Link<'a>,
        stop_others: StopReason,
        plan: &mut Plan,
    ) {
        for other in self.others(container) {
            let why = match stop_others {
                StopReason::Rejected => RemoveReason::Rejected,
                StopReason::Replaced
                | StopReason::NotInTarget
                | StopReason::NetworkLost
                | StopReason::MakesRoom
                | StopReason::Superfluous => RemoveReason::Succeeded,
            };
            if !other.state.is_up() && other.state != ContainerState::Removing {
                plan.steps.push(self.remove(other, why));
            }
        }
        let kept = match link {
            Link::Of(sandbox) => Some(sandbox.id.as_str()),
            Link::Own | Link::Missing(_) | Link::NotYet(_) => None,
        };
        self.clear_sandboxes(kept, plan);
    }

    /// Restores the last good container while its successor is on its way; tidies nothing away yet.
    ///
    /// When the successor is `ready` to be made, what is up may stay as it is for that moment.
    pub(super) fn serve_meanwhile(&self, ready: bool, plan: &mut Plan) {
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
        let well = self.containers.iter();
        let well = well.filter(|found| self.is_well(found, good));
        // Of several, the one that comes back already: only one may.
        let serving = well.max_by_key(|found| {
            let is_armed = found.restart == found.wanted_restart;
            (is_armed, found.generation, found.id.as_str())
        });
        if let Some(serving) = serving {
            // It may be connected otherwise than a new one would be: its successor will be.
            if serving.restart != serving.wanted_restart {
                plan.steps.push(Step::Arm {
                    key: self.key.clone(),
                    container: serving.handle(),
                    restart: serving.wanted_restart,
                });
            }
            return;
        }
        let mut restore = Plan::default();
        self.serve(good, StopReason::Superfluous, &mut restore);
        let restores = restore.steps.into_iter().filter(|step| match step {
            Step::Start { .. }
            | Step::StartSandbox { .. }
            | Step::Connect { .. }
            | Step::Arm { .. }
            | Step::Unpause { .. }
            | Step::Stop { .. } => true,
            Step::Create { .. }
            | Step::CreateNetwork { .. }
            | Step::CreateSandbox { .. }
            | Step::Pull { .. } => !ready,
            Step::Keep { .. }
            | Step::Release { .. }
            | Step::Collect { .. }
            | Step::Commit { .. }
            | Step::Complete { .. }
            | Step::Reject { .. }
            | Step::Remove { .. }
            | Step::RemoveNetwork { .. }
            | Step::Rename { .. }
            | Step::SetAmounts { .. }
            | Step::Pardon { .. }
            | Step::Forget { .. }
            | Step::ReplaceAgent { .. } => false,
        });
        plan.steps.extend(restores);
    }
}

impl View<'_> {
    /// Whether a container of `good` runs and has a network.
    fn is_well(&self, container: &Container, good: &ServiceTarget) -> bool {
        let lender = container.network.shares.as_ref();
        let mut sandboxes = self.situation.observed.sandboxes.iter();
        let lent = lender.is_none_or(|lender| {
            sandboxes.any(|found| found.id == *lender && found.state.holds_a_network())
        });
        container.is(good)
            && container.state == ContainerState::Running
            && lent
            && !container.network.stale
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
