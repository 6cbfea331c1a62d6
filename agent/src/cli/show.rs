//! Owns `holdfast-agent status` and `plan`: the running agent's account, or a look of one's own.

use std::collections::BTreeMap;
use std::io::Write;

use holdfast_plan::{History, Plan, Situation, plan as decide};
use holdfast_proto::current::{HoldReport, PullReport, ServiceReport};
use holdfast_proto::target::TargetState;
use hyper::Method;
use serde::de::DeserializeOwned;

use super::{Output, json, short_image, table};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Settings;
use crate::control::poll;
use crate::disk;
use crate::engine::Engine as _;
use crate::engine::docker::DockerEngine;
use crate::enrolment::Enrolment;
use crate::journal::Journal;
use crate::local_api::client::{AskError, ask};
use crate::observe::{Memory, Subject, observe};
use crate::orders::Orders;
use crate::permission::Permission;
use crate::reconcile;
use crate::reserve::Reserve;
use crate::selfupdate::slots::{Came, Outcome, Place};
use crate::selfupdate::{AgentStatus, SelfUpdate};
use crate::shared::Accepted;
use crate::status::{Beside, Control, PlanStatus, Status};

/// What the device shows when no agent runs: a look at engine and journal that changes nothing.
async fn look(settings: &Settings) -> anyhow::Result<(Status, PlanStatus)> {
    let enrolment = Enrolment::load(&settings.state_dir)?;
    let journal = Journal::open_read_only(&settings.state_dir)?;
    let stored = match &journal {
        Some(journal) => poll::stored(journal, &enrolment.uuid)?,
        None => None,
    };
    let received_at = match &journal {
        Some(journal) => journal.target()?.map(|stored| stored.received_at),
        None => None,
    };
    let services = match &journal {
        Some(journal) => journal.histories()?,
        None => BTreeMap::new(),
    };
    let pulled = match &journal {
        Some(journal) => journal.pulled()?,
        None => BTreeMap::new(),
    };
    let history = History {
        services,
        pulled,
        ..History::default()
    };
    let accepted = stored.unwrap_or_else(|| Accepted {
        target: TargetState::empty(enrolment.uuid),
        etag: None,
    });
    let engine = DockerEngine::looking(&settings.docker.socket);
    let info = engine.describe().await?;
    let clock = SystemClock::start();
    let permission = Permission::new(&settings.updates, Orders::load(&settings.state_dir));
    let reserve = Reserve::of(&settings.state_dir, settings.disk.reserve_bytes());
    let agent = SelfUpdate::asleep(&settings.state_dir);
    let subject = Subject {
        device: &enrolment.uuid,
        info: &info,
        target: &accepted.target,
        history: &history,
        adopts: match &journal {
            Some(journal) => !journal.knows_what_was_made()?,
            None => true,
        },
        probes: &BTreeMap::new(),
        refused: &BTreeMap::new(),
        agent: agent.1,
        disk: disk::of_engine(
            std::path::Path::new(&info.root),
            &reserve,
            crate::run::spool_folder(settings).as_deref(),
        ),
    };
    let look = observe(&engine, &subject, &mut Memory::default(), 0).await?;
    let observed = look.observed;
    let (now, now_ms) = (clock.now(), clock.monotonic_ms());
    let closed = permission.closed(&accepted.target, &history.services, now, now_ms);
    let plan = if accepted.target.generation == 0 {
        // Without a target nothing is ever done, whatever runs.
        Plan::default()
    } else {
        decide(&Situation {
            target: &accepted.target,
            observed: &observed,
            history: &history,
            gate: &crate::run::rules(settings).gate,
            closed: &closed,
            now,
        })
    };
    let view = reconcile::view(&reconcile::Sight {
        accepted: &accepted,
        observed: &observed,
        histories: &history.services,
        plan: &plan,
        pulling: false,
        info: Some(&info),
    });
    let beside = Beside {
        agent_pid: running_agent(settings),
        target_received_at: received_at,
        notices: Vec::new(),
        pulls: Vec::new(),
        control: Control::of(permission.orders(), clock.monotonic_ms()),
        agent: agent.0,
    };
    let status = Status::of(&enrolment, &view, beside);
    Ok((status, PlanStatus::of(&view)))
}

/// The running agent's own account; none when it does not run.
async fn asked<T: DeserializeOwned>(settings: &Settings, path: &str) -> anyhow::Result<Option<T>> {
    match ask(&settings.local_api.socket, Method::GET, path, None).await {
        Ok(document) => Ok(Some(document)),
        Err(AskError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn plan_of(settings: &Settings) -> anyhow::Result<PlanStatus> {
    match asked(settings, "/v1/plan").await? {
        Some(plan) => Ok(plan),
        None => Ok(look(settings).await?.1),
    }
}

pub(super) async fn status_of(settings: &Settings) -> anyhow::Result<Status> {
    match asked(settings, "/v1/status").await? {
        Some(status) => Ok(status),
        None => Ok(look(settings).await?.0),
    }
}

pub(super) async fn plan(
    settings: &Settings,
    output: Output,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let plan = plan_of(settings).await?;
    match output {
        Output::Table => {
            let steps = plan.steps.iter().map(|step| step.text.as_str());
            Ok(what_next(steps, &plan.holds, out)?)
        }
        Output::Json => json(out, &plan),
    }
}

pub(super) async fn status(
    settings: &Settings,
    output: Output,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let status = status_of(settings).await?;
    match output {
        Output::Table => Ok(status_table(&status, out)?),
        Output::Json => json(out, &status),
    }
}

fn what_next<'a>(
    steps: impl Iterator<Item = &'a str>,
    holds: &[HoldReport],
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let mut nothing = holds.is_empty();
    for step in steps {
        writeln!(out, "{step}")?;
        nothing = false;
    }
    for hold in holds {
        writeln!(out, "hold: {}", hold.detail)?;
    }
    if nothing {
        writeln!(out, "nothing to do")?;
    }
    Ok(())
}

fn status_table(status: &Status, out: &mut dyn Write) -> std::io::Result<()> {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let received = status.target_received_at;
    let received = received.map(|at| format!(", received {at}"));
    let agent = status
        .agent_pid
        .map_or_else(|| "not running".to_owned(), |pid| format!("process {pid}"));
    let engine = status.engine.as_ref().map(|engine| {
        let platform = status.platform.as_ref();
        let platform = platform.map(|platform| format!(", {platform}"));
        format!(
            "{}, API {}, {} store{}",
            engine.version,
            engine.api_version,
            engine.image_store,
            platform.unwrap_or_default()
        )
    });
    let target = format!(
        "generation {}{}",
        status.generation,
        received.unwrap_or_default()
    );
    let mut rows = vec![
        row("device", status.uuid.to_string()),
        row("server", status.api_url.clone()),
        row("agent", agent),
        row("program", program(&status.agent_version, &status.agent)),
        row("engine", engine.unwrap_or_else(|| "not known".to_owned())),
        row("target", target),
    ];
    rows.extend(orders(&status.control).map(|(name, words)| row(name, words)));
    table(out, &rows)?;
    let mut rows = vec![
        [
            "SERVICE",
            "STATE",
            "HEALTH",
            "VERIFIED",
            "WAY BACK",
            "GENERATION",
            "IMAGE",
            "CONTAINER",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (app, report) in &status.apps {
        for (name, service) in &report.services {
            rows.push(service_row(&format!("{app}/{name}"), service));
        }
    }
    if rows.len() > 1 {
        writeln!(out)?;
        table(out, &rows)?;
    }
    writeln!(out)?;
    for pull in &status.pulls {
        writeln!(out, "{}", on_its_way(pull))?;
    }
    let steps = status.steps.iter().map(String::as_str);
    what_next(steps, &status.holds, out)
}

/// `0.2.0 from registry.example/agent@sha256:0123456789ab (slot a); last update: 0.2.0 confirmed at …`.
fn program(version: &str, agent: &AgentStatus) -> String {
    let from = match (&agent.image, agent.place) {
        (Some(image), Place::Package) => format!(" from {}, as installed", short_image(image)),
        (Some(image), place) => format!(" from {} (slot {})", short_image(image), place.word()),
        (None, _) => ", as installed".to_owned(),
    };
    let trial = if agent.on_trial { ", on trial" } else { "" };
    let last = agent.last.as_ref().map(|last| {
        let Outcome {
            version,
            came,
            reason,
            at,
            ..
        } = last;
        let came = match came {
            Came::Confirmed => "confirmed",
            Came::Rejected => "rejected",
            Came::Unreached => "taken back, it is tried again",
            Came::Superseded => "superseded",
        };
        let reason = reason.as_ref().map(|reason| format!(": {reason}"));
        let reason = reason.unwrap_or_default();
        format!("; last update: {version} {came} at {at}{reason}")
    });
    format!("{version}{from}{trial}{}", last.unwrap_or_default())
}

/// `registry.example/web: 12.3 of at most 60.0 MB, 256 kB/s, at most 3 min left`.
fn on_its_way(pull: &PullReport) -> String {
    let megabytes = |bytes: u64| format!("{}.{}", bytes / 1_000_000, bytes % 1_000_000 / 100_000);
    let rate = pull.bytes_per_second;
    let rate = rate.map(|rate| format!(", {} kB/s", rate / 1_000));
    let left = pull.seconds_left.map(|seconds| match seconds {
        0..120 => format!(", at most {seconds} s left"),
        _ => format!(", at most {} min left", seconds.div_ceil(60)),
    });
    format!(
        "{}: {} of at most {} MB{}{}",
        pull.image,
        megabytes(pull.fetched_bytes),
        megabytes(pull.most_bytes),
        rate.unwrap_or_default(),
        left.unwrap_or_default()
    )
}

/// The owner's orders in words, those that there are.
pub(super) fn orders(control: &Control) -> impl Iterator<Item = (&'static str, String)> {
    let with = |before: &str, text: Option<&str>| {
        text.map(|text| format!("{before}{text}"))
            .unwrap_or_default()
    };
    let paused = control.paused.as_ref().map(|pause| {
        let since = pause.since.map(|since| since.to_string());
        let since = with(" since ", since.as_deref());
        let words = format!("yes{since}{}", with(": ", pause.reason.as_deref()));
        ("paused", words)
    });
    let forced = control.forced.then(|| {
        let words = "locks and update windows do not count now";
        ("forced", words.to_owned())
    });
    let locks = control.locks.iter().map(move |(scope, lock)| {
        let owner = with(" by ", lock.lease.owner.as_deref());
        let left = lock.seconds_left.map(|left| format!("{left} s more"));
        let left = with(" for ", left.as_deref());
        let reason = with(": ", lock.lease.reason.as_deref());
        ("locked", format!("{scope}{owner}{left}{reason}"))
    });
    paused.into_iter().chain(forced).chain(locks)
}

fn yes_or_no(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

fn service_row(name: &str, service: &ServiceReport) -> Vec<String> {
    let dash = || "-".to_owned();
    let image = service.image.as_deref().map(short_image);
    vec![
        name.to_owned(),
        service.state.clone(),
        service.health.clone().unwrap_or_else(dash),
        yes_or_no(service.verified).to_owned(),
        service
            .rollback_ready
            .map_or_else(dash, |ready| yes_or_no(ready).to_owned()),
        service.generation.map_or_else(dash, |n| n.to_string()),
        image.unwrap_or_else(dash),
        service.container_name.clone().unwrap_or_else(dash),
    ]
}

/// The process that holds the state folder, if it still lives.
fn running_agent(settings: &Settings) -> Option<u32> {
    let text = std::fs::read_to_string(settings.state_dir.join("agent.lock")).ok()?;
    let pid: u32 = text.trim().parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    name.starts_with("holdfast-agent").then_some(pid)
}
