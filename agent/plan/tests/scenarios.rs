//! Reads `scenarios.yaml` and checks that each situation gets the plan written under it.
//!
//! The file reads as a list of sentences; its head explains the short forms.

mod world;

use std::collections::BTreeMap;

use holdfast_plan::{
    Attempts, Container, ContainerState, GateRules, Health, History, ImagePresence, Observed,
    Rejected, Retry, Situation, plan,
};
use holdfast_proto::hash::SpecHash;
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::time::Timestamp;
use serde::Deserialize;
use world::{key, service, target};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    title: String,
    #[serde(default)]
    target: BTreeMap<String, String>,
    #[serde(default = "two")]
    generation: u64,
    #[serde(default)]
    images: Vec<String>,
    #[serde(default)]
    wrong_images: Vec<String>,
    #[serde(default)]
    foreign_platform: Vec<String>,
    #[serde(default)]
    containers: Vec<Row>,
    #[serde(default)]
    history: BTreeMap<String, Past>,
    plan: String,
}

fn two() -> u64 {
    2
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    service: String,
    spec: String,
    generation: u64,
    state: String,
    health: Option<String>,
    #[serde(default)]
    ran_s: u64,
    #[serde(default)]
    restarts: u64,
    #[serde(default)]
    oom: bool,
    restart: Option<String>,
    wanted: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Past {
    good: Option<String>,
    rejected: Option<String>,
    #[serde(default)]
    deaths: u32,
    #[serde(default)]
    interrupted: Vec<String>,
    pull_again_in_s: Option<i64>,
    step_again_in_s: Option<i64>,
}

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const GATE: GateRules = GateRules {
    stable_ms: 10_000,
    healthy_timeout_ms: 60_000,
    max_attempts: 3,
};

fn container(row: &Row) -> Container {
    let made_from = service(&row.service, &row.spec);
    let identity = made_from.identity().expect("scenario specs are resolved");
    let (word, code) = row.state.split_once(' ').unwrap_or((&row.state, "0"));
    let state = match word {
        "created" => ContainerState::Created,
        "running" => ContainerState::Running,
        "paused" => ContainerState::Paused,
        "restarting" => ContainerState::Restarting,
        "removing" => ContainerState::Removing,
        "dead" => ContainerState::Dead,
        "exited" => ContainerState::Exited {
            code: code.parse().expect("an exit code"),
        },
        other => panic!("no state is called {other}"),
    };
    let policy = |text: &Option<String>| -> RestartPolicy {
        text.as_deref()
            .unwrap_or("always")
            .parse()
            .expect("a restart policy")
    };
    let name = format!("{}-g{}", row.service, row.generation);
    Container {
        id: name.clone(),
        name,
        key: key(&row.service),
        generation: row.generation,
        spec_hash: SpecHash::of(&made_from.config),
        config_digest: identity.config_digest,
        image: made_from.image_name,
        state,
        health: row.health.as_deref().map(|health| match health {
            "starting" => Health::Starting,
            "healthy" => Health::Healthy,
            "unhealthy" => Health::Unhealthy,
            other => panic!("no health is called {other}"),
        }),
        restart_count: row.restarts,
        oom_killed: row.oom,
        restart: policy(&row.restart),
        wanted_restart: policy(&row.wanted),
        running_for_ms: state.is_up().then_some(row.ran_s * 1000),
    }
}

fn observed(scenario: &Scenario) -> Observed {
    let device = world::device();
    let present = |spec: &String, wrong: bool, foreign: bool| {
        let service = service("any", spec);
        let mut config = service.identity().map(|identity| identity.config_digest);
        if wrong {
            config = world::service("any", "other")
                .identity()
                .map(|i| i.config_digest);
        }
        let platform = if foreign {
            "linux/arm64"
        } else {
            "linux/amd64"
        };
        let platform = platform.parse().expect("a platform");
        (
            service.image_name,
            ImagePresence::Present { config, platform },
        )
    };
    let right = scenario
        .images
        .iter()
        .map(|spec| present(spec, false, false));
    let wrong = scenario
        .wrong_images
        .iter()
        .map(|spec| present(spec, true, false));
    let foreign = scenario
        .foreign_platform
        .iter()
        .map(|spec| present(spec, false, true));
    Observed {
        device,
        platform: "linux/amd64".parse().expect("a platform"),
        containers: scenario.containers.iter().map(container).collect(),
        images: right.chain(wrong).chain(foreign).collect(),
    }
}

fn history(scenario: &Scenario) -> History {
    let mut history = History::default();
    for (name, past) in &scenario.history {
        let retry = |seconds: i64| Retry {
            attempts: 1,
            not_before: NOW.plus_ms(seconds * 1000),
            error: "no route to host".to_owned(),
        };
        let tried = scenario.target.get(name).map(|spec| service(name, spec));
        let rejected = past.rejected.as_ref().map(|spec| service(name, spec));
        let entry = history.services.entry(key(name)).or_default();
        entry.last_good = past.good.as_ref().map(|spec| service(name, spec));
        entry.rejected = rejected.map(|service| Rejected {
            identity: service.identity().expect("resolved"),
            image: service.image_name,
            reason: "it was bad".to_owned(),
            at: NOW,
        });
        entry.interrupted = past.interrupted.iter().cloned().collect();
        if let Some(tried) = tried {
            entry.attempts = tried
                .identity()
                .filter(|_| past.deaths > 0)
                .map(|identity| Attempts {
                    identity,
                    count: past.deaths,
                });
            if let Some(seconds) = past.pull_again_in_s {
                history.pulls.insert(tried.image_name, retry(seconds));
            }
        }
        if let Some(seconds) = past.step_again_in_s {
            history.steps.insert(key(name), retry(seconds));
        }
    }
    history
}

/// Digests in plans are shown by the letter of the spec they belong to.
fn readable(text: &str) -> String {
    let mut text = text.to_owned();
    for spec in ["A", "B", "C"] {
        let image = service("any", spec).image_name;
        let (name, hex) = image.split_once("@sha256:").expect("pinned");
        text = text.replace(
            &format!("{name}@sha256:{}", &hex[..12]),
            &format!("image {spec}"),
        );
    }
    text
}

#[test]
fn every_scenario_gets_its_plan() {
    let text = include_str!("scenarios.yaml");
    let scenarios: Vec<Scenario> = serde_yaml::from_str(text).expect("scenarios.yaml is valid");
    assert!(scenarios.len() >= 30, "the scenarios were read");
    let mut wrong = Vec::new();
    for scenario in &scenarios {
        let target = target(scenario.generation, &scenario.target);
        let observed = observed(scenario);
        let history = history(scenario);
        let situation = Situation {
            target: &target,
            observed: &observed,
            history: &history,
            gate: &GATE,
            now: NOW,
        };
        let decided = readable(&plan(&situation).to_string());
        if decided != scenario.plan {
            wrong.push(format!(
                "\n{}:\n--- written\n{}--- decided\n{decided}",
                scenario.title, scenario.plan
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
}
