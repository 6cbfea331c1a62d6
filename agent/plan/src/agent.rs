//! Owns the decision for the agent's own release: never a container, tried when all else is at rest.

use holdfast_proto::id::ServiceKey;
use holdfast_proto::target::ServiceTarget;

use crate::Situation;
use crate::health::RejectReason;
use crate::history::ServiceHistory;
use crate::hold::Hold;
use crate::observed::{AgentWait, ContainerRef};
use crate::service::{View, hold_failed_step, wait_until};
use crate::step::{Plan, Step};

/// Why no release is tried: somebody installed another program in its place.
const INSTALLED: &str = "agent_installed";
/// Why no release is tried: it would not be seen whether it works.
const WAITS: &str = "agent_waits";

/// The decision for the service that names the agent's release; the step to try it, if nothing of its own
/// is in the way.
pub(crate) fn plan(
    situation: &Situation<'_>,
    key: &ServiceKey,
    service: &ServiceTarget,
    plan: &mut Plan,
) -> Option<Step> {
    if let Some(retry) = situation.history.steps.get(key)
        && retry.not_before > situation.now
    {
        hold_failed_step(key, retry, plan);
        return None;
    }
    let nothing = ServiceHistory::default();
    let history = situation.history.of(key).unwrap_or(&nothing);
    let view = View::new(situation, key, history);
    // What the files were read from, and what a service of this name was before it named the agent.
    view.clear_away(plan);
    let agent = &situation.observed.agent;
    if history.rejected.is_some()
        && history.rejects(service).is_none()
        && service.identity().is_some()
    {
        plan.steps.push(Step::Pardon { key: key.clone() });
    }
    if agent.identity.is_some_and(|runs| runs.matches(service)) {
        if let Some(until) = agent.on_trial_until {
            wait_until(until, plan);
            plan.holds.push(Hold::Verifying {
                key: key.clone(),
                container: ContainerRef {
                    id: String::new(),
                    name: "this agent".to_owned(),
                },
                until,
            });
        }
        return None;
    }
    if let Some(rejected) = history.rejects(service) {
        plan.holds.push(Hold::Rejected {
            key: key.clone(),
            image: rejected.image.clone(),
            reason: rejected.reason.clone(),
            fallback: true,
        });
        return None;
    }
    let Some(identity) = service.identity() else {
        view.hold_unresolved(service, plan);
        return None;
    };
    let failed = agent.failed.as_ref();
    if let Some(failed) = failed.filter(|failed| failed.identity.matches(service)) {
        plan.steps.push(Step::Reject {
            key: key.clone(),
            identity,
            image: service.image_name.clone(),
            reason: RejectReason::AgentFailed {
                error: failed.reason.clone(),
            },
        });
        return None;
    }
    let mut hold = |code, detail: &str| {
        plan.holds.push(Hold::Closed {
            key: key.clone(),
            code,
            detail: detail.to_owned(),
        });
    };
    if agent
        .superseded
        .is_some_and(|before| before.matches(service))
    {
        let detail = "somebody installed another agent in the place of this release; it stays until the \
                      target names another release";
        hold(INSTALLED, detail);
        return None;
    }
    // An agent always runs: its update always interrupts one.
    if view.is_held_unless_first(service, false, plan) {
        return None;
    }
    if let Some(shortage) = view.lacks_room(service) {
        view.hold_no_space(shortage, plan);
        return None;
    }
    if !view.has_image(service, plan) {
        return None;
    }
    let concerns = |wait: &&AgentWait| wait.of.is_none_or(|of| of.matches(service));
    if let Some(wait) = agent.waits.as_ref().filter(concerns) {
        plan.holds.push(Hold::Closed {
            key: key.clone(),
            code: WAITS,
            detail: wait.why.clone(),
        });
        if let Some(until) = wait.until {
            wait_until(until, plan);
        }
        return None;
    }
    let content = format!("{} {}", identity.config_digest, identity.spec_hash);
    Some(Step::ReplaceAgent {
        key: key.clone(),
        name: view.unique_name("-files", &content),
        generation: situation.target.generation,
        service: Box::new(service.clone()),
    })
}

/// Adds the step if nothing is done, fetched or on trial: what is under way is not judged by another agent
/// than the one that began it.
pub(crate) fn begin(situation: &Situation<'_>, step: Step, plan: &mut Plan) {
    let under_way = |hold: &Hold| matches!(hold, Hold::Verifying { .. } | Hold::Removing { .. });
    let is_quiet = plan.steps.is_empty()
        && situation.history.pulling.is_empty()
        && !plan.holds.iter().any(under_way);
    if is_quiet {
        plan.steps.push(step);
    }
}
