//! Owns how a look and a plan become the view that reports and `systemctl status` show.

use std::collections::BTreeMap;
use std::path::PathBuf;

use holdfast_plan::{Container, Hold, Observed, Plan, Rejected, ServiceHistory};
use holdfast_proto::current::{
    AppReport, EngineReport, HoldReport, RejectedReport, ServiceReport, UpdateStatus,
};
use holdfast_proto::id::{AppId, ServiceKey};
use holdfast_proto::target::ServiceTarget;

use crate::engine::EngineInfo;
use crate::shared::{Accepted, View};
use crate::status::PlannedStep;

/// What a view is made from.
pub(crate) struct Sight<'a> {
    pub(crate) accepted: &'a Accepted,
    pub(crate) observed: &'a Observed,
    pub(crate) histories: &'a BTreeMap<ServiceKey, ServiceHistory>,
    pub(crate) plan: &'a Plan,
    pub(crate) pulling: bool,
    pub(crate) info: Option<&'a EngineInfo>,
}

/// The view before a target came.
pub(super) fn no_target(info: Option<&EngineInfo>) -> View {
    with_engine(View::unknown(), info)
}

/// The view while the engine is away: what was seen last, and that nothing is seen now.
pub(super) fn engine_away(accepted: Option<&Accepted>, before: &View) -> View {
    View {
        generation: accepted.map_or(0, |accepted| accepted.target.generation),
        etag: accepted.and_then(|accepted| accepted.etag.clone()),
        status: UpdateStatus::EngineUnreachable,
        steps: Vec::new(),
        holds: Vec::new(),
        look_again: None,
        engine: None,
        ..before.clone()
    }
}

/// The view of a look and the plan made from it.
pub(crate) fn of(sight: &Sight<'_>) -> View {
    let view = View {
        generation: sight.accepted.target.generation,
        etag: sight.accepted.etag.clone(),
        status: status(sight),
        apps: apps(sight),
        steps: sight.plan.steps.iter().map(PlannedStep::from).collect(),
        holds: sight.plan.holds.iter().map(hold).collect(),
        look_again: sight.plan.look_again,
        engine: None,
        machine: None,
    };
    with_engine(view, sight.info)
}

/// The view in one line, for `systemctl status`.
pub(super) fn sentence(view: &View) -> String {
    let running = view
        .apps
        .values()
        .flat_map(|app| app.services.values())
        .filter(|service| service.state == "running")
        .count();
    let word = match view.status {
        UpdateStatus::Converged => "converged",
        UpdateStatus::Applying => "applying",
        UpdateStatus::Holding => "holding",
        UpdateStatus::EngineUnreachable => "the container engine does not answer",
        UpdateStatus::NoTarget => "no target yet",
    };
    format!(
        "generation {}: {word}; {running} running, {} steps, {} holds",
        view.generation,
        view.steps.len(),
        view.holds.len()
    )
}

fn with_engine(mut view: View, info: Option<&EngineInfo>) -> View {
    view.engine = info.map(|info| EngineReport {
        version: info.version.clone(),
        api_version: info.api_version.clone(),
        image_store: info.store.word().to_owned(),
    });
    view.machine = info.map(|info| (info.platform.clone(), PathBuf::from(&info.root)));
    view
}

fn status(sight: &Sight<'_>) -> UpdateStatus {
    let plan = sight.plan;
    // A way back that is missing takes nothing from what runs.
    let beside = |hold: &Hold| matches!(hold, Hold::NoWayBack { .. });
    let all_is_done = plan.steps.is_empty() && plan.holds.iter().all(beside);
    if all_is_done && !sight.pulling {
        return UpdateStatus::Converged;
    }
    let on_its_way = |hold: &Hold| match hold {
        Hold::Verifying { .. }
        | Hold::Removing { .. }
        | Hold::Waiting { .. }
        | Hold::NetworkAway { .. } => true,
        Hold::Rejected { .. }
        | Hold::NoSpace { .. }
        | Hold::NoWayBack { .. }
        | Hold::PullFailed { .. }
        | Hold::StepFailed { .. }
        | Hold::Unresolved { .. }
        | Hold::UnsupportedPlatform { .. }
        | Hold::WrongImage { .. }
        | Hold::Refused { .. }
        | Hold::Closed { .. }
        | Hold::Stranger { .. } => false,
    };
    if sight.pulling || !plan.steps.is_empty() || plan.holds.iter().all(on_its_way) {
        UpdateStatus::Applying
    } else {
        UpdateStatus::Holding
    }
}

fn hold(hold: &Hold) -> HoldReport {
    HoldReport {
        code: hold.code().to_owned(),
        service: Some(hold.key().to_string()),
        detail: hold.to_string(),
    }
}

fn apps(sight: &Sight<'_>) -> BTreeMap<AppId, AppReport> {
    let mut apps: BTreeMap<AppId, AppReport> = BTreeMap::new();
    let mut add = |key: &ServiceKey, report: ServiceReport| {
        apps.entry(key.app.clone())
            .or_default()
            .services
            .insert(key.service.clone(), report);
    };
    for container in &sight.observed.containers {
        add(&container.key, service(sight, &container.key, None));
    }
    for (key, target) in sight.accepted.target.services() {
        add(&key, service(sight, &key, Some(target)));
    }
    apps
}

/// The container that serves: one that is up before one that is not, newer before older.
fn serving<'a>(sight: &Sight<'a>, key: &ServiceKey) -> Option<&'a Container> {
    let own = sight.observed.containers.iter();
    own.filter(|container| container.key == *key)
        .max_by_key(|container| (container.state.is_up(), container.generation))
}

fn service(sight: &Sight<'_>, key: &ServiceKey, target: Option<&ServiceTarget>) -> ServiceReport {
    let history = sight.histories.get(key);
    let last_good = history.and_then(|history| history.last_good.as_ref());
    let rejected = history
        .zip(target)
        .and_then(|(history, target)| history.rejects(target));
    if target.is_some_and(|target| target.config.is_agent()) {
        return agent(sight, rejected);
    }
    let container = serving(sight, key);
    ServiceReport {
        container_id: container.map(|container| container.id.clone()),
        container_name: container.map(|container| container.name.clone()),
        image: container.map(|container| container.image.clone()),
        config_digest: container.map(|container| container.config_digest),
        generation: container.map(|container| container.generation),
        state: container
            .map_or("missing", |container| container.state.word())
            .to_owned(),
        health: container
            .and_then(|container| container.health)
            .map(|health| health.word().to_owned()),
        restart_count: container.map_or(0, |container| container.restart_count),
        verified: container
            .zip(last_good)
            .is_some_and(|(container, good)| container.is(good)),
        rollback_ready: history
            .and_then(|history| holdfast_plan::rollback_ready(sight.observed, history)),
        rejected: rejected.map(rejection),
    }
}

fn rejection(rejected: &Rejected) -> RejectedReport {
    RejectedReport {
        image: rejected.image.clone(),
        reason: rejected.reason.clone(),
        at: rejected.at,
    }
}

/// The agent itself as a service: it has no container, and runs as long as it can say so.
fn agent(sight: &Sight<'_>, rejected: Option<&Rejected>) -> ServiceReport {
    let agent = &sight.observed.agent;
    ServiceReport {
        container_id: None,
        container_name: None,
        image: agent.image.clone(),
        config_digest: agent.identity.map(|identity| identity.config_digest),
        generation: None,
        state: "running".to_owned(),
        health: None,
        restart_count: 0,
        verified: agent.identity.is_some() && agent.on_trial_until.is_none(),
        rollback_ready: None,
        rejected: rejected.map(rejection),
    }
}
