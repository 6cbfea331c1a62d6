//! Owns the device's decisions: target and observation in, steps and holds out. Cannot do I/O.
//!
//! Invariants that every plan keeps (numbers as in the fault tables):
//! - I1: a container is started only when no other container of its service is up.
//! - I2: a candidate starts with restart policy `no`; stopping a container takes its policy away first.
//! - I3: nothing is stopped for a successor that is not created from a complete, fitting image.
//! - I4: the last good container is removed only after its successor passed the gate.
//! - I5: only images that the accepted target (or an earlier accepted one) pinned are created.
//! - I8: a converged device gets an empty plan.
//! - I9: only containers in [`Observed`], which carries this device's alone, are ever named.
//! - I13: a rejected spec is not tried again until the target names another.

mod health;
mod history;
mod observed;
mod schedule;
mod service;
mod step;

use std::collections::BTreeSet;

use holdfast_proto::id::ServiceKey;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;

pub use health::{GateRules, ProbeState, RejectReason, Verdict, judge};
pub use history::{Attempts, History, Rejected, Retry, ServiceHistory};
pub use observed::{Container, ContainerRef, ContainerState, Health, ImagePresence, Observed};
pub use schedule::{Closed, Opening, ZonedWindow, opening};
pub use step::{Hold, Plan, RemoveReason, Step, StopReason};

/// All that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// What should run.
    pub target: &'a TargetState,
    /// What the engine says.
    pub observed: &'a Observed,
    /// What the agent remembers.
    pub history: &'a History,
    /// How candidates are judged.
    pub gate: &'a GateRules,
    /// The time of the decision; only waiting depends on it.
    pub now: Timestamp,
}

/// Decides the next steps towards the target, and names what it will not do yet.
///
/// Pure: same situation, same plan. A converged device gets an empty plan.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut in_target = BTreeSet::new();
    for (key, service) in situation.target.services() {
        service::plan(situation, &key, service, &mut plan);
        in_target.insert(key);
    }
    leave(situation, &in_target, &mut plan);
    // Stable: the steps of one service keep their order.
    plan.steps.sort_by_key(urgency);
    plan
}

/// Services that left the target: their containers go, then the memory of them.
fn leave(situation: &Situation<'_>, in_target: &BTreeSet<ServiceKey>, plan: &mut Plan) {
    let mut remaining = BTreeSet::new();
    for container in &situation.observed.containers {
        if in_target.contains(&container.key) {
            continue;
        }
        let key = container.key.clone();
        remaining.insert(key.clone());
        if let Some(retry) = situation.history.steps.get(&key)
            && retry.not_before > situation.now
        {
            service::hold_failed_step(&key, retry, plan);
            continue;
        }
        let container_ref = container.handle();
        match container.state {
            state if state.is_up() => plan.steps.push(Step::Stop {
                key,
                container: container_ref,
                why: StopReason::NotInTarget,
            }),
            ContainerState::Removing => {
                plan.holds.push(Hold::Removing {
                    key,
                    container: container_ref,
                });
            }
            ContainerState::Created
            | ContainerState::Exited { .. }
            | ContainerState::Dead
            | ContainerState::Running
            | ContainerState::Paused
            | ContainerState::Restarting => plan.steps.push(Step::Remove {
                key,
                container: container_ref,
                why: RemoveReason::NotInTarget,
            }),
        }
    }
    let known = situation.history.services.keys();
    for key in known.filter(|key| !in_target.contains(key) && !remaining.contains(key)) {
        plan.steps.push(Step::Forget { key: key.clone() });
    }
}

/// What comes first when several services need something: bringing back what worked, then
/// finishing what is begun, then beginning; long downloads last, they run in the background.
fn urgency(step: &Step) -> u8 {
    match step {
        Step::Reject { .. } | Step::Pardon { .. } => 0,
        Step::Stop {
            why: StopReason::Rejected | StopReason::Superfluous,
            ..
        }
        | Step::Start {
            candidate: false, ..
        }
        | Step::Arm { .. }
        | Step::Unpause { .. } => 1,
        Step::Commit { .. } => 2,
        Step::Stop {
            why: StopReason::Replaced,
            ..
        }
        | Step::Start {
            candidate: true, ..
        } => 3,
        Step::Stop {
            why: StopReason::NotInTarget,
            ..
        } => 4,
        Step::Create { .. } => 5,
        Step::Remove { .. } | Step::Forget { .. } => 6,
        Step::Pull { .. } => 7,
    }
}
