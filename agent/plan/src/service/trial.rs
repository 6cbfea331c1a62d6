//! Owns the trial of a candidate: swapping it in, judging it, clearing it away.

use holdfast_proto::spec::Strategy;
use holdfast_proto::target::ServiceTarget;

use super::link::Link;
use super::{View, identity_of, wait_until};
use crate::health::{RejectReason, Verdict, judge};
use crate::hold::Hold;
use crate::observed::{Container, ContainerState};
use crate::step::{Plan, RemoveReason, Step, StopReason};

impl<'a> View<'a> {
    /// Why no further attempt at `service` is made: it cost the agent or a trial its life too often.
    pub(super) fn gives_up(&self, service: &ServiceTarget) -> Option<RejectReason> {
        let gate = self.situation.gate;
        let deaths = self.history.deaths(service);
        let interruptions = self.history.interruptions(service);
        if deaths >= gate.max_attempts {
            Some(RejectReason::AgentDied { times: deaths })
        } else if interruptions >= gate.max_interruptions {
            Some(RejectReason::Interrupted {
                times: interruptions,
            })
        } else {
            None
        }
    }

    /// A candidate exists: swap it in, judge it, or clear it away.
    pub(super) fn try_out(
        &self,
        candidate: &Container,
        service: &ServiceTarget,
        link: &Link<'a>,
        plan: &mut Plan,
    ) {
        match candidate.state {
            ContainerState::Created => self.swap_in(candidate, service, link, plan),
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
            // The engine ended it, or the agent did to repair its network: it is tried from the beginning.
            ContainerState::Exited { .. }
                if !candidate.witnessed || self.history.interrupted.contains(&candidate.id) =>
            {
                self.swap_in(candidate, service, link, plan);
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
            | ContainerState::Exited { .. } => self.decide(candidate, service, link, plan),
        }
    }

    fn swap_in(
        &self,
        candidate: &Container,
        service: &ServiceTarget,
        link: &Link<'a>,
        plan: &mut Plan,
    ) {
        if !self.has_what_it_needs(&service.config, plan) {
            self.serve_meanwhile(false, plan);
            return;
        }
        self.stop_but_the_handing(candidate, service, StopReason::Replaced, plan);
        let identity = Some(identity_of(candidate));
        if self.raise_network(service, candidate, link, identity, plan) {
            plan.steps.push(self.start(candidate, true));
        }
    }

    /// Stops every other container that is up, except the one that hands over to the candidate.
    fn stop_but_the_handing(
        &self,
        candidate: &Container,
        service: &ServiceTarget,
        why: StopReason,
        plan: &mut Plan,
    ) {
        let handing = self.handing(candidate, service).map(|old| old.id.clone());
        for other in self.others(Some(candidate)) {
            if !other.state.is_up() {
                self.disarm(other, plan);
            } else if Some(&other.id) != handing.as_ref() {
                plan.steps.push(self.stop(other, why));
            }
        }
    }

    /// With `hand-over`: the container that goes on serving beside the candidate.
    fn handing(&self, candidate: &Container, service: &ServiceTarget) -> Option<&'a Container> {
        if service.config.strategy() != Strategy::HandOver {
            return None;
        }
        let good = self.history.last_good.as_ref();
        self.others(Some(candidate))
            .filter(|other| other.state.is_up())
            .max_by_key(|other| {
                let is_good = good.is_some_and(|good| other.is(good));
                (is_good, other.generation, other.id.as_str())
            })
            .copied()
    }

    fn decide(
        &self,
        candidate: &Container,
        service: &ServiceTarget,
        link: &Link<'a>,
        plan: &mut Plan,
    ) {
        if self.lost_its_network(candidate, service, link, plan) {
            return;
        }
        let unpublished = match link {
            _ if candidate.state != ContainerState::Running => None,
            Link::Own => candidate.network.missing(&service.config.ports),
            Link::Of(sandbox) if sandbox.state == ContainerState::Running => {
                sandbox.network.missing(&service.config.ports)
            }
            Link::Of(_) | Link::Missing(_) | Link::NotYet(_) => None,
        };
        let verdict = match unpublished {
            Some(port) => Verdict::Fail(RejectReason::PortNotPublished {
                port: port.to_string(),
            }),
            None => judge(candidate, &service.config, self.situation.gate),
        };
        match verdict {
            Verdict::Pass => self.pass(candidate, service, plan),
            Verdict::Fail(reason) => plan.steps.push(Step::Reject {
                key: self.key.clone(),
                identity: identity_of(candidate),
                image: candidate.image.clone(),
                reason,
            }),
            Verdict::Wait { remaining_ms } => {
                self.stop_but_the_handing(candidate, service, StopReason::Superfluous, plan);
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

    /// A candidate whose network went away is no worse for it: it is started again.
    fn lost_its_network(
        &self,
        candidate: &Container,
        service: &ServiceTarget,
        link: &Link<'a>,
        plan: &mut Plan,
    ) -> bool {
        let Link::Of(sandbox) = link else {
            return false;
        };
        let lost = candidate.network.stale || !sandbox.state.holds_a_network();
        if !candidate.state.is_up() || !lost {
            return false;
        }
        let identity = Some(identity_of(candidate));
        if self.raise_network(service, candidate, link, identity, plan) {
            plan.steps
                .push(self.stop(candidate, StopReason::NetworkLost));
        }
        true
    }

    fn pass(&self, candidate: &Container, service: &ServiceTarget, plan: &mut Plan) {
        self.stop_but_the_handing(candidate, service, StopReason::Superfluous, plan);
        // Only one container of a service may come back with the engine.
        if let Some(old) = self.handing(candidate, service) {
            self.disarm(old, plan);
        }
        plan.steps.push(Step::Commit {
            key: self.key.clone(),
            container: candidate.handle(),
            restart: candidate.wanted_restart,
            service: Box::new(service.clone()),
        });
    }
}
