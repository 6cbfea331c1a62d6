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
//! - I14: no container of the agent's own release is ever started, and that release is tried only when
//!   nothing else is on its way.

mod agent;
mod disk;
mod health;
mod history;
mod hold;
mod images;
mod leave;
mod network;
mod observed;
mod schedule;
mod service;
mod step;

use std::collections::BTreeMap;

use holdfast_proto::id::ServiceKey;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;

pub use disk::{Disk, Shortage, UNPACKED_PER_FETCHED};
pub use health::{GateRules, ProbeState, RejectReason, Verdict, judge};
pub use history::{Attempts, History, Rejected, Retry, ServiceHistory};
pub use hold::Hold;
pub use images::{canonical, is_transit_name, keep_tag, rollback_ready};
pub use network::{NetworkKey, SandboxSpec, attachments, is_of_the_network};
pub use observed::{
    AgentWait, Amounts, Container, ContainerRef, ContainerState, FailedAgent, Health,
    ImagePresence, Joined, Network, NetworkState, Observed, Published, RunningAgent, Sandbox,
    StoredImage, Stranger,
};
pub use schedule::{Closed, Opening, ZonedWindow, opening};
pub use step::{Plan, PullReason, RemoveReason, Step, StopReason};

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
    /// Services that no update may begin of now, each with the reason.
    pub closed: &'a BTreeMap<ServiceKey, Closed>,
    /// The time of the decision; only waiting depends on it.
    pub now: Timestamp,
}

/// Decides the next steps towards the target, and names what it will not do yet.
///
/// Pure: same situation, same plan. A converged device gets an empty plan.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut priorities = BTreeMap::new();
    let mut agent = None;
    for (key, service) in situation.target.services() {
        if service.config.is_agent() {
            agent = agent::plan(situation, &key, service, &mut plan).or(agent);
        } else {
            service::plan(situation, &key, service, &mut plan);
        }
        priorities.insert(key, service.config.priority());
    }
    leave::plan(situation, &priorities.keys().cloned().collect(), &mut plan);
    for stranger in &situation.observed.strangers {
        plan.holds.push(Hold::Stranger {
            key: stranger.key.clone(),
            container: stranger.container.clone(),
        });
    }
    images::plan(situation, &mut plan);
    if let Some(step) = agent {
        agent::begin(situation, step, &mut plan);
    }
    // Stable: the steps of one service keep their order.
    plan.steps.sort_by_key(|step| {
        let priority = priorities.get(step.key()).copied().unwrap_or(0);
        (urgency(step), std::cmp::Reverse(priority))
    });
    plan
}

/// What comes first when several services need something: bringing back what worked, then
/// finishing what is begun, then beginning; long downloads last, they run in the background.
fn urgency(step: &Step) -> u8 {
    match step {
        Step::Reject { .. } | Step::Pardon { .. } | Step::Complete { .. } => 0,
        Step::Stop {
            why: StopReason::Rejected | StopReason::Superfluous | StopReason::NetworkLost,
            ..
        }
        | Step::Start {
            candidate: false, ..
        }
        | Step::StartSandbox {
            candidate: None, ..
        }
        | Step::Connect { .. }
        | Step::Arm { .. }
        | Step::Unpause { .. } => 1,
        Step::Commit { .. } => 2,
        Step::Stop {
            why: StopReason::Replaced,
            ..
        }
        | Step::Start {
            candidate: true, ..
        }
        | Step::StartSandbox {
            candidate: Some(_), ..
        } => 3,
        Step::Stop {
            why: StopReason::NotInTarget | StopReason::MakesRoom,
            ..
        }
        | Step::Keep { .. } => 4,
        Step::Create { .. } | Step::CreateNetwork { .. } | Step::CreateSandbox { .. } => 5,
        Step::Remove { .. }
        | Step::RemoveNetwork { .. }
        | Step::Rename { .. }
        | Step::SetAmounts { .. }
        | Step::Forget { .. } => 6,
        Step::Pull {
            why: PullReason::Update,
            ..
        } => 7,
        Step::Pull {
            why: PullReason::WayBack,
            ..
        }
        | Step::Release { .. }
        | Step::Collect { .. }
        | Step::ReplaceAgent { .. } => 8,
    }
}
