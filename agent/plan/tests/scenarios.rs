//! Reads `scenarios.yaml` and checks that each situation gets the plan written under it.
//!
//! The file reads as a list of sentences; its head explains the short forms.

mod world;

use std::collections::BTreeMap;

use holdfast_plan::{
    AgentWait, Amounts, Attempts, Closed, Container, ContainerRef, ContainerState, Disk,
    FailedAgent, GateRules, Health, History, ImagePresence, Joined, NetworkState, Observed,
    ProbeState, Rejected, Retry, RunningAgent, Sandbox, SandboxSpec, Situation, StoredImage,
    Stranger, plan,
};
use holdfast_proto::hash::SpecHash;
use holdfast_proto::id::ServiceKey;
use holdfast_proto::target::ServiceTarget;
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
    sandboxes: Vec<Row>,
    #[serde(default = "default_network")]
    networks: Vec<String>,
    #[serde(default)]
    strangers: Vec<String>,
    #[serde(default)]
    refused: BTreeMap<String, String>,
    #[serde(default)]
    closed: BTreeMap<String, String>,
    /// What the engine stores, by spec: tags, `keep` for the one of the service with that spec's image,
    /// `keep other` for another service's.
    stored: Option<BTreeMap<String, Vec<String>>>,
    /// Specs whose images the agent pulled.
    #[serde(default)]
    pulled: Vec<String>,
    #[serde(default)]
    pulling: Vec<String>,
    #[serde(default)]
    outgrown: BTreeMap<String, u64>,
    /// Names of images that could not be given or taken away a moment ago.
    #[serde(default)]
    stuck: Vec<String>,
    #[serde(default)]
    agent: AgentRow,
    free_mb: Option<u64>,
    free_inodes: Option<u64>,
    #[serde(default)]
    history: BTreeMap<String, Past>,
    plan: String,
}

/// The agent itself, releases by their specs.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AgentRow {
    runs: Option<String>,
    trial_s: Option<i64>,
    failed: Option<String>,
    superseded: Option<String>,
    waits_s: Option<i64>,
}

fn two() -> u64 {
    2
}

fn default_network() -> Vec<String> {
    vec!["default".to_owned()]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that may be so"
)]
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
    healthy_s: Option<u64>,
    /// The agent did not see it run since it lost sight of the engine.
    #[serde(default)]
    unseen: bool,
    /// The sandbox whose network it uses.
    shares: Option<String>,
    /// That sandbox was started again since.
    #[serde(default)]
    stale: bool,
    /// Networks it is connected to; those of its spec unless given.
    joined: Option<Vec<String>>,
    /// Its name, unless it is the one the agent gave it.
    name: Option<String>,
    /// It was given another amount of memory.
    memory: Option<u64>,
    /// The engine forwards no port to it.
    #[serde(default)]
    unpublished: bool,
    probe: Option<String>,
    probe_error: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Past {
    good: Option<String>,
    previous: Option<String>,
    rejected: Option<String>,
    #[serde(default)]
    deaths: u32,
    #[serde(default)]
    interruptions: u32,
    completed: Option<String>,
    #[serde(default)]
    interrupted: Vec<String>,
    pull_again_in_s: Option<i64>,
    step_again_in_s: Option<i64>,
}

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const GATE: GateRules = GateRules {
    stable_ms: 10_000,
    healthy_timeout_ms: 60_000,
    soak_ms: 0,
    max_attempts: 3,
    max_interruptions: 10,
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
    let wanted = match &row.wanted {
        Some(text) => text.parse().expect("a restart policy"),
        None => made_from.config.restart_policy(),
    };
    let id = format!("{}-g{}", row.service, row.generation);
    let health = row.health.as_deref();
    let checked = health.is_some() || row.probe.is_some();
    let healthy = health.is_none_or(|health| health == "healthy")
        && row.probe.as_deref().is_none_or(|probe| probe == "passed");
    Container {
        name: row.name.clone().unwrap_or_else(|| id.clone()),
        network: network_state(row, &made_from),
        amounts: Amounts {
            memory: row
                .memory
                .unwrap_or_else(|| Amounts::of(&made_from.config).memory),
            ..Amounts::of(&made_from.config)
        },
        witnessed: !row.unseen,
        healthy_for_ms: (checked && healthy).then(|| 1_000 * row.healthy_s.unwrap_or(row.ran_s)),
        probe: row.probe.as_deref().map(probe),
        probe_error: row.probe_error.clone(),
        id,
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
        restart: row
            .restart
            .as_deref()
            .map_or(wanted, |text| text.parse().expect("a restart policy")),
        wanted_restart: wanted,
        running_for_ms: state.is_up().then_some(row.ran_s * 1000),
    }
}

fn probe(word: &str) -> ProbeState {
    let mut state = ProbeState::default();
    match word {
        "passed" => state.passed = true,
        "unknown" => {}
        "failed" => {
            state.failures_in_a_row = 3;
            state.last_error = Some("connection refused".to_owned());
        }
        "cannot run" => state.cannot_run = Some("no such program".to_owned()),
        other => panic!("no probe says {other}"),
    }
    state
}

fn network_state(row: &Row, made_from: &ServiceTarget) -> NetworkState {
    let own = row.shares.is_none();
    let mut joined = match &row.joined {
        None => world::joined(made_from),
        Some(names) => {
            let all = names.iter().map(|name| {
                let (name, stale) = match name.strip_suffix(" stale") {
                    Some(name) => (name, true),
                    None => (name.as_str(), false),
                };
                let joined = Joined {
                    aliases: [row.service.clone()].into(),
                    stale,
                };
                (name.parse().expect("a name"), joined)
            });
            all.collect()
        }
    };
    if !own {
        joined.clear();
    }
    NetworkState {
        shares: row.shares.clone(),
        stale: row.stale,
        joined,
        published: if row.unpublished || !own {
            [].into()
        } else {
            world::published(made_from)
        },
    }
}

fn sandbox(row: &Row) -> Sandbox {
    let made_from = service(&row.service, &row.spec);
    let as_container = container(row);
    let name = format!("{}-net-g{}", row.service, row.generation);
    Sandbox {
        id: name.clone(),
        name,
        key: as_container.key,
        generation: row.generation,
        hash: SandboxSpec::of(&made_from.service_name, &made_from.config).hash(),
        state: as_container.state,
        restart: as_container.restart,
        network: as_container.network,
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
        sandboxes: scenario.sandboxes.iter().map(sandbox).collect(),
        networks: scenario
            .networks
            .iter()
            .map(|name| world::network(name))
            .collect(),
        strangers: scenario
            .strangers
            .iter()
            .map(|name| Stranger {
                key: key("web"),
                container: ContainerRef {
                    id: name.clone(),
                    name: name.clone(),
                },
            })
            .collect(),
        refused: scenario
            .refused
            .iter()
            .map(|(name, why)| (key(name), why.clone()))
            .collect(),
        images: right.chain(wrong).chain(foreign).collect(),
        stored: scenario.stored.as_ref().map(stored),
        disk: scenario.free_mb.map(|megabytes| Disk {
            free_bytes: megabytes * 1_000_000,
            free_inodes: scenario.free_inodes,
            floor_bytes: 16_000_000,
            copies: 1,
        }),
        agent: agent(&scenario.agent),
    }
}

fn agent(row: &AgentRow) -> RunningAgent {
    let identity = |spec: &Option<String>| service("web", spec.as_deref()?).identity();
    RunningAgent {
        identity: identity(&row.runs),
        on_trial_until: row.trial_s.map(|seconds| NOW.plus_ms(seconds * 1000)),
        failed: identity(&row.failed).map(|identity| FailedAgent {
            identity,
            reason: "it died".to_owned(),
        }),
        superseded: identity(&row.superseded),
        waits: row.waits_s.map(|seconds| AgentWait {
            of: None,
            until: Some(NOW.plus_ms(seconds * 1000)),
            why: "it did not reach the control API".to_owned(),
        }),
        image: None,
    }
}

fn stored(images: &BTreeMap<String, Vec<String>>) -> Vec<StoredImage> {
    let image = |(spec, tags): (&String, &Vec<String>)| {
        let (transit, tags): (Vec<_>, Vec<_>) = tags.iter().partition(|tag| *tag == "transit");
        let tags = tags.into_iter().map(|tag| match tag.strip_prefix("keep") {
            Some("") => world::keep("web", spec),
            Some(name) => world::keep(name.trim(), spec),
            None => tag.clone(),
        });
        let mut stored = world::stored(spec, tags);
        if !transit.is_empty() {
            let digest = holdfast_proto::image::Digest::of(b"manifest");
            let name = format!("127.0.0.1:4711/{}/web@{digest}", "0".repeat(32));
            stored.digests.insert(name);
        }
        stored
    };
    images.iter().map(image).collect()
}

fn history(scenario: &Scenario) -> History {
    let mut history = History::default();
    for row in scenario.containers.iter().chain(&scenario.sandboxes) {
        // What the agent called it when it made it.
        let given = container(row).id;
        let entry = history.services.entry(key(&row.service)).or_default();
        entry.made.insert(given.clone(), given);
    }
    let image = |spec: &String| service("any", spec).image_name;
    let pulled = scenario.pulled.iter();
    history.pulled = pulled.map(|spec| (image(spec), key("web"))).collect();
    history.pulling = scenario.pulling.iter().map(image).collect();
    let outgrown = scenario.outgrown.iter();
    history.outgrown = outgrown
        .map(|(spec, megabytes)| (image(spec), megabytes * 1_000_000))
        .collect();
    for spec in &scenario.stuck {
        let retry = Retry {
            attempts: 1,
            not_before: NOW.plus_ms(60_000),
            error: "it is in use".to_owned(),
        };
        let names = [image(spec), world::keep("web", spec)];
        history
            .images
            .extend(names.map(|name| (name, retry.clone())));
    }
    for (name, past) in &scenario.history {
        let retry = |seconds: i64| Retry {
            attempts: 1,
            not_before: NOW.plus_ms(seconds * 1000),
            error: "no route to host".to_owned(),
        };
        let tried = scenario.target.get(name).map(|spec| service(name, spec));
        let rejected = past.rejected.as_ref().map(|spec| service(name, spec));
        let entry = history.services.entry(key(name)).or_default();
        entry.previous = past
            .previous
            .as_ref()
            .map(|spec| Box::new(service(name, spec)));
        entry.last_good = past.good.as_ref().map(|spec| Box::new(service(name, spec)));
        entry.rejected = rejected.map(|service| Rejected {
            identity: service.identity().expect("resolved"),
            image: service.image_name,
            reason: "it was bad".to_owned(),
            at: NOW,
        });
        entry.interrupted = past.interrupted.iter().cloned().collect();
        entry.completed = past
            .completed
            .as_ref()
            .and_then(|spec| service(name, spec).identity());
        if let Some(tried) = tried {
            entry.attempts = tried
                .identity()
                .filter(|_| past.deaths > 0 || past.interruptions > 0)
                .map(|identity| Attempts {
                    identity,
                    count: past.deaths,
                    interruptions: past.interruptions,
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

fn closed(scenario: &Scenario) -> BTreeMap<ServiceKey, Closed> {
    let closed = |(name, why): (&String, &String)| {
        let code = match why.as_str() {
            "paused" => Closed::PAUSED,
            "window" => "window",
            other => panic!("nothing closes because of {other}"),
        };
        let closed = Closed {
            code,
            detail: why.clone(),
            until: None,
        };
        (key(name), closed)
    };
    scenario.closed.iter().map(closed).collect()
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
        let tag = world::keep("web", spec);
        let (_, digits) = tag.rsplit_once(':').expect("a tag");
        text = text.replace(&format!(":{digits}"), &format!(":{spec}"));
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
        let closed = closed(scenario);
        let situation = Situation {
            target: &target,
            observed: &observed,
            history: &history,
            gate: &GATE,
            closed: &closed,
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
