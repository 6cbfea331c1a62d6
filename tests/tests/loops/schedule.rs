//! Random lives of a device: services, releases, faults and people, all decided by one seed.

use holdfast_agent::engine::fake::{Behaviour, FakeEngine, Moment};
use holdfast_agent::engine::labels;
use holdfast_plan::ContainerState;
use holdfast_proto::target::ServiceTarget;
use serde_json::{Value, json};

use crate::clock::VirtualClock;
use crate::device::{Device, Dice, End, Release};
use crate::invariants::{DELETES_FIRST, HANDS_OVER};

/// Faults fall on one of so many calls after a new target: a swap of three services takes about so many.
const CALLS: usize = 220;
/// A life ends by a fault, and every round has few; more lives mean that it never gets anywhere.
const MAX_LIVES: usize = 12;

/// One service through all rounds.
struct Kind {
    name: &'static str,
    spec: Value,
}

fn kinds(dice: &Dice) -> Vec<Kind> {
    let strategy = match dice.below(6) {
        0 => "kill-then-download",
        1 => "delete-then-download",
        _ => "download-then-kill",
    };
    let mut web = json!({
        "ports": ["8080:80"],
        "x-holdfast": { "strategy": strategy, "sandbox": !dice.one_in(4) },
    });
    if strategy == "delete-then-download" {
        web["labels"] = json!({ DELETES_FIRST: "yes" });
    }
    if dice.one_in(3) {
        web["restart"] = json!("unless-stopped");
    }
    let mut all = vec![Kind {
        name: "web",
        spec: web,
    }];
    if dice.one_in(2) {
        let mut spec = json!({ "networks": { "back": { "aliases": ["w"] } } });
        if dice.one_in(2) {
            spec["depends_on"] = json!({ "web": { "condition": "service_started" } });
        }
        all.push(Kind {
            name: "worker",
            spec,
        });
    }
    if dice.one_in(3) {
        let spec = json!({
            "labels": { HANDS_OVER: "yes" },
            "x-holdfast": { "strategy": "hand-over" },
        });
        all.push(Kind { name: "api", spec });
    }
    if dice.one_in(3) {
        all.push(Kind {
            name: "side",
            spec: json!({ "network_mode": "service:web" }),
        });
    }
    if dice.one_in(4) {
        all.push(Kind {
            name: "job",
            spec: json!({ "restart": "no" }),
        });
    }
    all
}

fn release(kind: &Kind, name: &str, dice: &Dice, is_last: bool) -> Release {
    if kind.name == "job" {
        let exits = Some((500, 0));
        return Release {
            name: name.to_owned(),
            behaviour: Behaviour {
                exits,
                ..Behaviour::default()
            },
        };
    }
    let bad = !is_last && dice.one_in(4);
    match (bad, dice.below(3)) {
        (true, 0) => Release::never_healthy(name),
        (true, 1) => Release::crash_loop(name),
        (true, _) => Release::broken(name),
        (false, 0) => Release::unchecked(name),
        (false, 1) => Release::stubborn(name),
        (false, _) => Release::healthy(name),
    }
}

/// Puts one fault at one call.
///
/// What is done to the device at a chosen call.
type Fault = Box<dyn FnOnce(&FakeEngine<VirtualClock>)>;

/// A trial that a person ends is lost, rightly; so in the last round nobody does.
fn disturb(device: &Device, from: usize, dice: &Dice, is_last: bool) -> String {
    let number = from + 1 + dice.below(CALLS);
    let moment = if dice.one_in(2) {
        Moment::Before
    } else {
        Moment::After
    };
    let pick = dice.below(64);
    let (what, fault): (&str, Fault) = match dice.below(if is_last { 11 } else { 15 }) {
        0 | 1 => ("the agent dies", Box::new(FakeEngine::kill_agent)),
        2 => (
            "the engine is killed",
            Box::new(|engine| engine.kill_engine(Some(700))),
        ),
        3 => (
            "the engine is killed and the agent dies",
            Box::new(|engine| {
                engine.kill_engine(Some(3_000));
                engine.kill_agent();
            }),
        ),
        4 => (
            "the power goes",
            Box::new(|engine| {
                engine.power_cut(Some(2_000));
                engine.kill_agent();
            }),
        ),
        5 => (
            "the engine hangs",
            Box::new(|engine| engine.hang(Some(25_000))),
        ),
        6 => (
            "events are lost",
            Box::new(|engine| engine.lose_events(true)),
        ),
        7 => (
            "somebody pauses a container",
            on_one(pick, FakeEngine::pause_by_hand),
        ),
        8 => (
            "somebody removes a container",
            on_one(pick, FakeEngine::remove_by_hand),
        ),
        9 => (
            "somebody renames a container",
            on_one(pick, |engine, id| {
                engine.rename_by_hand(id, &format!("mine-{}", &id[60..]));
            }),
        ),
        10 => (
            "somebody prunes all images",
            Box::new(|engine| engine.prune_by_hand(true)),
        ),
        11 => (
            "somebody kills a container",
            on_one(pick, FakeEngine::kill_by_hand),
        ),
        12 => (
            "somebody stops a container",
            on_one(pick, FakeEngine::stop_by_hand),
        ),
        13 => (
            "a container crashes",
            on_one(pick, |engine, id| engine.crash(id, 5)),
        ),
        _ => (
            "a removal takes long",
            on_one(pick, |engine, id| engine.remove_slowly(id, Some(4_000))),
        ),
    };
    device.engine.disturb(number, moment, fault);
    format!("{what} {moment:?} call {number}")
}

type OnEngine = Box<dyn FnOnce(&FakeEngine<VirtualClock>)>;

/// Does something to one of the device's own containers.
fn on_one(pick: usize, what: impl Fn(&FakeEngine<VirtualClock>, &str) + 'static) -> OnEngine {
    Box::new(move |engine| {
        let ours = |found: &holdfast_agent::engine::EngineContainer| {
            found.labels.contains_key(labels::DEVICE)
        };
        let all: Vec<_> = engine.look().into_iter().filter(ours).collect();
        if !all.is_empty() {
            what(engine, &all[pick % all.len()].id);
        }
    })
}

/// Lives through one seed; gives what went wrong.
pub(crate) async fn live_through(seed: u64) -> Result<(), String> {
    let dice = Dice::new(seed);
    let device = Device::new(seed);
    device
        .engine
        .run_foreign("theirs", None, &[("owner", "somebody else")]);
    let kinds = kinds(&dice);
    let rounds = 2 + dice.below(3);
    let mut story = Vec::new();
    for round in 1..=rounds {
        let is_last = round == rounds;
        let mut services: Vec<ServiceTarget> = Vec::new();
        for kind in &kinds {
            let leaves = !is_last && kind.name != "web" && dice.one_in(8);
            let name = format!("{}{round}", kind.name);
            let release = release(kind, &name, &dice, is_last);
            device.engine.publish(&release.pinned(), release.remote());
            if !leaves {
                let mut spec = kind.spec.clone();
                if kind.name == "web" && dice.one_in(6) {
                    spec["ports"] = json!(["8081:80"]);
                }
                services.push(release.service(kind.name, &spec));
            }
        }
        let named = |service: &ServiceTarget| service.image_name.clone();
        story.push(format!(
            "round {round}: {:?}",
            services.iter().map(named).collect::<Vec<_>>()
        ));
        device.set(services);
        let from = device.engine.count();
        for _ in 0..dice.below(4) {
            story.push(disturb(&device, from, &dice, is_last));
        }
        let mut lives = 0;
        loop {
            lives += 1;
            let end = device.live().await;
            device.engine.lose_events(false);
            let violations = device.violations.borrow().join("\n");
            if end == End::Restless || lives > MAX_LIVES || !violations.is_empty() {
                let story = story.join("\n");
                return Err(format!(
                    "{end:?} in life {lives}\n{violations}\n{story}\n{}",
                    device.story()
                ));
            }
            if end == End::AtRest {
                device.engine.calm_down();
                break;
            }
            if dice.one_in(12) {
                story.push("the journal is lost".to_owned());
                device.lose_journal();
            } else {
                device.reopen_journal();
            }
        }
    }
    let wrong = what_is_wrong(&device);
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}\n{}\n{}",
        wrong.join("\n"),
        story.join("\n"),
        device.story()
    ))
}

/// Compares what is left with the last target, whose releases are good and new.
fn what_is_wrong(device: &Device) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = device.engine.look();
    let of = |label: &str, found: &holdfast_agent::engine::EngineContainer| {
        found.labels.get(label).cloned().unwrap_or_default()
    };
    let ours: Vec<_> = all
        .iter()
        .filter(|found| found.labels.contains_key(labels::DEVICE))
        .collect();
    let (sandboxes, apps): (Vec<_>, Vec<_>) = ours
        .into_iter()
        .partition(|found| found.labels.contains_key(labels::ROLE));
    let target = device.target();
    for (key, service) in target.services() {
        let name = key.service.to_string();
        let mine: Vec<_> = apps
            .iter()
            .filter(|found| of(labels::SERVICE, found) == name)
            .collect();
        let ends = name == "job";
        let [container] = mine[..] else {
            // The record of a job that ended well is enough.
            if !(ends && mine.is_empty()) {
                wrong.push(format!("{name}: {} containers are left", mine.len()));
            }
            continue;
        };
        let identity = service.identity().unwrap();
        let is_it = of(labels::SPEC_HASH, container) == identity.spec_hash.to_string()
            && of(labels::CONFIG_DIGEST, container) == identity.config_digest.to_string();
        if !is_it {
            wrong.push(format!("{name}: not what the target says"));
        }
        let state = if ends {
            ContainerState::Exited { code: 0 }
        } else {
            ContainerState::Running
        };
        if container.state != state {
            wrong.push(format!("{name}: {:?}", container.state));
        }
        if container.restart != service.config.restart_policy() {
            wrong.push(format!("{name}: restart {}", container.restart));
        }
        let lender = container
            .shares
            .as_ref()
            .map(|id| all.iter().find(|other| other.id == *id));
        if let Some(lender) = lender
            && !lender.is_some_and(|lender| {
                lender.state.is_up() && lender.started_at < container.started_at
            })
        {
            wrong.push(format!("{name}: its network is dead"));
        }
        let publisher = lender.flatten().unwrap_or(container);
        if !service.config.ports.is_empty() && publisher.published.is_empty() {
            wrong.push(format!("{name}: its port is not published"));
        }
    }
    let names: Vec<String> = target
        .services()
        .map(|(key, _)| key.service.to_string())
        .collect();
    for found in apps.iter().chain(&sandboxes) {
        if !names.contains(&of(labels::SERVICE, found)) {
            wrong.push(format!("{} is left over", found.name));
        }
    }
    for name in names {
        let count = sandboxes
            .iter()
            .filter(|found| of(labels::SERVICE, found) == name)
            .count();
        if count > 1 {
            wrong.push(format!("{name}: {count} sandboxes are left"));
        }
    }
    wrong
}
