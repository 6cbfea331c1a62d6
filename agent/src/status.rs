//! Owns what the device shows its owner: the documents of the local API and of `--output json`.

use std::collections::BTreeMap;

use holdfast_plan::Step;
use holdfast_proto::current::{AppReport, EngineReport, HoldReport, PullReport, UpdateStatus};
use holdfast_proto::id::{AppId, DeviceId};
use holdfast_proto::image::Platform;
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::enrolment::Enrolment;
use crate::lease::Lease;
use crate::orders::{Orders, Pause};
use crate::selfupdate::AgentStatus;
use crate::shared::View;

/// What runs and how far the device is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The device.
    pub uuid: DeviceId,
    /// Its server.
    pub api_url: String,
    /// Version of the agent.
    pub agent_version: String,
    /// The running agent's process; none when the agent does not run.
    pub agent_pid: Option<u32>,
    /// Where that program came from, and what came of its last update.
    #[serde(default)]
    pub agent: AgentStatus,
    /// What images the device runs, once the engine told.
    pub platform: Option<Platform>,
    /// Generation of the accepted target; 0 before the first.
    pub generation: u64,
    /// Its entity tag.
    pub target_etag: Option<String>,
    /// When it came.
    pub target_received_at: Option<Timestamp>,
    /// How far the device is with it.
    pub status: UpdateStatus,
    /// The container engine.
    pub engine: Option<EngineReport>,
    /// Services by app and name, as the engine runs them.
    pub apps: BTreeMap<AppId, AppReport>,
    /// The next steps in words.
    pub steps: Vec<String>,
    /// What is not done and why.
    pub holds: Vec<HoldReport>,
    /// Images on their way.
    #[serde(default)]
    pub pulls: Vec<PullReport>,
    /// What the owner ordered.
    pub control: Control,
}

/// What the device's owner ordered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// The pause in force.
    pub paused: Option<Pause>,
    /// Whether updates may begin in spite of locks and windows.
    pub forced: bool,
    /// Locks taken through the local API, by `device` or `app/service`; lock files show as holds.
    pub locks: BTreeMap<String, LockStatus>,
}

/// A lock that holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LockStatus {
    /// What was asked for.
    #[serde(flatten)]
    pub lease: Lease,
    /// When it ends by itself.
    pub seconds_left: Option<u64>,
}

/// What the agent would do next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanStatus {
    /// Generation of the target that it is about.
    pub generation: u64,
    /// The next steps, the first one first.
    pub steps: Vec<PlannedStep>,
    /// What is not done and why.
    pub holds: Vec<HoldReport>,
    /// When a hold may end by time alone.
    pub look_again: Option<Timestamp>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Stable name of the action.
    pub code: String,
    /// The service, `app/name`.
    pub service: String,
    /// The step in words.
    pub text: String,
}

impl From<&Step> for PlannedStep {
    fn from(step: &Step) -> Self {
        Self {
            code: step.code().to_owned(),
            service: step.key().to_string(),
            text: step.to_string(),
        }
    }
}

impl Control {
    /// The orders in force.
    pub fn of(orders: &Orders, now_ms: u64) -> Self {
        let locks = orders.locks(now_ms).into_iter().map(|(scope, held)| {
            let status = LockStatus {
                lease: held.lease,
                seconds_left: held.left_ms.map(|left_ms| left_ms.div_ceil(1_000)),
            };
            (scope, status)
        });
        Self {
            paused: orders.paused(),
            forced: orders.is_forced(now_ms),
            locks: locks.collect(),
        }
    }
}

impl PlanStatus {
    /// The plan that a view was made with.
    pub fn of(view: &View) -> Self {
        Self {
            generation: view.generation,
            steps: view.steps.clone(),
            holds: view.holds.clone(),
            look_again: view.look_again,
        }
    }
}

/// What a status says beside the view.
pub struct Beside {
    /// The running agent's process.
    pub agent_pid: Option<u32>,
    /// When the target came.
    pub target_received_at: Option<Timestamp>,
    /// What else keeps this from being a plain view: notices about the agent itself.
    pub notices: Vec<HoldReport>,
    /// Images on their way.
    pub pulls: Vec<PullReport>,
    /// What the owner ordered.
    pub control: Control,
    /// Where the agent's program came from.
    pub agent: AgentStatus,
}

impl Status {
    /// The status of a view.
    pub fn of(enrolment: &Enrolment, view: &View, beside: Beside) -> Self {
        let machine = view.machine.as_ref();
        let holds = view.holds.iter().cloned();
        Self {
            uuid: enrolment.uuid,
            api_url: enrolment.api_url.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_pid: beside.agent_pid,
            agent: beside.agent,
            platform: machine.map(|(platform, _)| platform.clone()),
            generation: view.generation,
            target_etag: view.etag.clone(),
            target_received_at: beside.target_received_at,
            status: view.status,
            engine: view.engine.clone(),
            apps: view.apps.clone(),
            steps: view.steps.iter().map(|step| step.text.clone()).collect(),
            holds: holds.chain(beside.notices).collect(),
            pulls: beside.pulls,
            control: beside.control,
        }
    }
}
