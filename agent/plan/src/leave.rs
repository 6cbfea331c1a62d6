//! Owns what is done about services and networks that left the target.

use std::collections::BTreeSet;

use holdfast_proto::id::ServiceKey;

use crate::Situation;
use crate::hold::Hold;
use crate::network::{NetworkKey, attachments, wanted_networks};
use crate::observed::{ContainerRef, ContainerState, Network};
use crate::service::hold_failed_step;
use crate::step::{Plan, RemoveReason, Step, StopReason};

/// Their containers go, then their sandboxes and networks, then the memory of them.
pub(crate) fn plan(situation: &Situation<'_>, in_target: &BTreeSet<ServiceKey>, plan: &mut Plan) {
    let observed = situation.observed;
    let mut remaining = BTreeSet::new();
    let gone = |key: &ServiceKey| !in_target.contains(key);
    for container in observed.containers.iter().filter(|c| gone(&c.key)) {
        remaining.insert(container.key.clone());
        if !is_held(situation, &container.key, plan) {
            clear(&container.key, container.handle(), container.state, plan);
        }
    }
    for sandbox in observed.sandboxes.iter().filter(|s| gone(&s.key)) {
        remaining.insert(sandbox.key.clone());
        let mut users = observed.containers.iter();
        let used = users.any(|container| container.network.shares.as_ref() == Some(&sandbox.id));
        if !used && !is_held(situation, &sandbox.key, plan) {
            clear(&sandbox.key, sandbox.handle(), sandbox.state, plan);
        }
    }
    networks(situation, plan);
    let known = situation.history.services.keys();
    for key in known.filter(|key| gone(key) && !remaining.contains(key)) {
        plan.steps.push(Step::Forget { key: key.clone() });
    }
}

/// Whether nothing is done about this service now, because a step failed or its owner paused.
fn is_held(situation: &Situation<'_>, key: &ServiceKey, plan: &mut Plan) -> bool {
    if let Some(retry) = situation.history.steps.get(key)
        && retry.not_before > situation.now
    {
        hold_failed_step(key, retry, plan);
        return true;
    }
    let Some(closed) = situation.closed.get(key) else {
        return false;
    };
    let hold = Hold::Closed {
        key: key.clone(),
        code: closed.code,
        detail: closed.detail.clone(),
    };
    if !plan.holds.contains(&hold) {
        plan.holds.push(hold);
    }
    true
}

/// Steps that leave nothing of a container.
pub(crate) fn clear(
    key: &ServiceKey,
    container: ContainerRef,
    state: ContainerState,
    plan: &mut Plan,
) {
    let key = key.clone();
    match state {
        ContainerState::Running | ContainerState::Paused | ContainerState::Restarting => {
            plan.steps.push(Step::Stop {
                key,
                container,
                why: StopReason::NotInTarget,
            });
        }
        ContainerState::Removing => plan.holds.push(Hold::Removing { key, container }),
        ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Dead => {
            plan.steps.push(Step::Remove {
                key,
                container,
                why: RemoveReason::NotInTarget,
            });
        }
    }
}

/// Networks that neither the target nor a way back joins, and that nothing is connected to.
fn networks(situation: &Situation<'_>, plan: &mut Plan) {
    let observed = situation.observed;
    let mut wanted = wanted_networks(situation.target);
    for (key, history) in &situation.history.services {
        if let Some(good) = &history.last_good {
            let joined = attachments(&good.service_name, &good.config);
            wanted.extend(joined.into_keys().map(|network| NetworkKey {
                app: key.app.clone(),
                network,
            }));
        }
    }
    let joined = |network: &Network| {
        let containers = observed.containers.iter().map(|c| (&c.key, &c.network));
        let sandboxes = observed.sandboxes.iter().map(|s| (&s.key, &s.network));
        containers.chain(sandboxes).any(|(key, state)| {
            key.app == network.key.app && state.joined.contains_key(&network.key.network)
        })
    };
    for network in &observed.networks {
        let key = ServiceKey {
            app: network.key.app.clone(),
            service: network.key.network.clone(),
        };
        if wanted.contains(&network.key) || joined(network) || is_held(situation, &key, plan) {
            continue;
        }
        plan.steps.push(Step::RemoveNetwork {
            key,
            network: network.clone(),
        });
    }
}
