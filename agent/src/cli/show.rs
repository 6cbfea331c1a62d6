//! Owns `holdfast-agent status` and `plan`: a look at the engine and the journal. Changes nothing.

use std::collections::BTreeMap;
use std::io::Write;

use holdfast_plan::{History, Plan, Situation, plan as decide};
use holdfast_proto::current::ServiceReport;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use serde_json::json;

use super::{Output, json as write_json, table};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Settings;
use crate::control::poll;
use crate::engine::docker::DockerEngine;
use crate::engine::{Engine as _, EngineInfo};
use crate::enrolment::Enrolment;
use crate::journal::Journal;
use crate::observe::{Memory, Subject, observe};
use crate::policy::Policy;
use crate::reconcile;
use crate::shared::{Accepted, View};

/// What both commands look at.
struct Look {
    enrolment: Enrolment,
    info: EngineInfo,
    accepted: Accepted,
    received_at: Option<Timestamp>,
    view: View,
    plan: Plan,
}

async fn look(settings: &Settings) -> anyhow::Result<Look> {
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
    let history = History {
        services,
        ..History::default()
    };
    let accepted = stored.unwrap_or_else(|| Accepted {
        target: TargetState::empty(enrolment.uuid),
        etag: None,
    });
    let engine = DockerEngine::new(
        &settings.docker.socket,
        &settings.runtime_dir,
        Policy::unrestricted(),
    );
    let info = engine.describe().await?;
    let clock = SystemClock::start();
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
    };
    let observed = observe(&engine, &subject, &mut Memory::default(), 0).await?;
    let plan = if accepted.target.generation == 0 {
        // Without a target nothing is ever done, whatever runs.
        Plan::default()
    } else {
        decide(&Situation {
            target: &accepted.target,
            observed: &observed,
            history: &history,
            gate: &crate::run::rules(settings).gate,
            closed: &BTreeMap::new(),
            now: clock.now(),
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
    Ok(Look {
        enrolment,
        info,
        accepted,
        received_at,
        view,
        plan,
    })
}

pub(super) async fn plan(
    settings: &Settings,
    output: Output,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let look = look(settings).await?;
    match output {
        Output::Table => write!(out, "{}", look.plan)?,
        Output::Json => {
            let steps: Vec<_> = look
                .plan
                .steps
                .iter()
                .map(|step| {
                    json!({
                        "code": step.code(),
                        "service": step.key().to_string(),
                        "text": step.to_string(),
                    })
                })
                .collect();
            let value = json!({
                "generation": look.accepted.target.generation,
                "steps": steps,
                "holds": look.view.holds,
                "look_again": look.plan.look_again,
            });
            write_json(out, &value)?;
        }
    }
    Ok(())
}

pub(super) async fn status(
    settings: &Settings,
    output: Output,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let look = look(settings).await?;
    let agent = running_agent(settings);
    match output {
        Output::Table => status_table(&look, agent, out)?,
        Output::Json => {
            let value = json!({
                "uuid": look.enrolment.uuid,
                "api_url": look.enrolment.api_url,
                "agent_pid": agent,
                "platform": look.info.platform,
                "generation": look.accepted.target.generation,
                "target_etag": look.accepted.etag,
                "target_received_at": look.received_at,
                "status": look.view.status,
                "engine": look.view.engine,
                "apps": look.view.apps,
                "steps": look.view.steps,
                "holds": look.view.holds,
            });
            write_json(out, &value)?;
        }
    }
    Ok(())
}

fn status_table(look: &Look, agent: Option<u32>, out: &mut dyn Write) -> anyhow::Result<()> {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let received = look
        .received_at
        .map(|at| format!(", received {at}"))
        .unwrap_or_default();
    let agent = agent.map_or_else(|| "not running".to_owned(), |pid| format!("process {pid}"));
    let EngineInfo {
        version,
        api_version,
        store,
        platform,
        ..
    } = &look.info;
    let store = store.word();
    table(
        out,
        &[
            row("device", look.enrolment.uuid.to_string()),
            row("server", look.enrolment.api_url.clone()),
            row("agent", agent),
            row(
                "engine",
                format!("{version}, API {api_version}, {store} store, {platform}"),
            ),
            row(
                "target",
                format!("generation {}{received}", look.accepted.target.generation),
            ),
        ],
    )?;
    let mut rows = vec![
        [
            "SERVICE",
            "STATE",
            "HEALTH",
            "VERIFIED",
            "GENERATION",
            "IMAGE",
            "CONTAINER",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (app, report) in &look.view.apps {
        for (name, service) in &report.services {
            rows.push(service_row(&format!("{app}/{name}"), service));
        }
    }
    if rows.len() > 1 {
        writeln!(out)?;
        table(out, &rows)?;
    }
    writeln!(out)?;
    write!(out, "{}", look.plan)?;
    Ok(())
}

fn service_row(name: &str, service: &ServiceReport) -> Vec<String> {
    let dash = || "-".to_owned();
    let image = service.image.as_ref().map(|image| {
        // Enough of the digest to compare by eye.
        let end = image.find("@sha256:").map_or(image.len(), |at| at + 20);
        image.chars().take(end).collect()
    });
    vec![
        name.to_owned(),
        service.state.clone(),
        service.health.clone().unwrap_or_else(dash),
        if service.verified { "yes" } else { "no" }.to_owned(),
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
