//! From any reachable situation the plan's steps, run one at a time on a model of an engine, end converged.
//!
//! The model fails what it is told to fail, and checks the invariants after every step.

mod model;
mod world;

use std::collections::BTreeMap;

use holdfast_plan::{
    Amounts, Container, ContainerState, FailedAgent, History, ImagePresence, NetworkState,
    Observed, Rejected, RunningAgent, Sandbox, SandboxSpec,
};
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::time::Timestamp;
use model::Model;
use proptest::prelude::*;

/// Of each of the two tests: more than 100,000 situations in each run.
const CASES: u32 = 52_000;

/// Specs that any service may have. C ends during its trial.
const SPECS: [&str; 14] = [
    "A",
    "B",
    "C",
    "A+",
    "A port=80",
    "B port=80",
    "B port=81",
    "C port=80",
    "A port=80 sandbox=off",
    "B strategy=hand-over",
    "C strategy=hand-over",
    "B strategy=kill-then-download",
    "B strategy=delete-then-download",
    "A restart=no",
];
/// Specs of `b` and `c` only, so that no service waits for itself.
const NEEDY: [&str; 5] = [
    "B needs=a",
    "A needs=a:healthy port=82",
    "B needs=a:completed_successfully",
    "A net=service:a",
    "B join=back",
];
/// Specs of `c` only: one agent runs on a device. That of C fails its trial.
const AGENTS: [&str; 3] = ["A agent=yes", "B agent=yes", "C agent=yes"];

fn state() -> impl Strategy<Value = ContainerState> {
    prop_oneof![
        2 => Just(ContainerState::Created),
        4 => Just(ContainerState::Running),
        1 => Just(ContainerState::Paused),
        2 => Just(ContainerState::Exited { code: 0 }),
        2 => Just(ContainerState::Exited { code: 137 }),
        1 => Just(ContainerState::Dead),
    ]
}

fn spec_of(service: &'static str) -> BoxedStrategy<&'static str> {
    let any = prop::sample::select(SPECS.to_vec());
    let needy = prop::sample::select(NEEDY.to_vec());
    match service {
        "a" => any.boxed(),
        "b" => prop_oneof![3 => any, 1 => needy].boxed(),
        _ => prop_oneof![3 => any, 1 => needy, 1 => prop::sample::select(AGENTS.to_vec())].boxed(),
    }
}

fn service() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "c"])
}

/// A service with one of its specs.
fn service_spec() -> impl Strategy<Value = (&'static str, &'static str)> {
    service().prop_flat_map(|name| (Just(name), spec_of(name)))
}

/// An image in the store: its spec, its tags, and whether the agent pulled it.
fn any_image() -> impl Strategy<Value = (&'static str, Vec<&'static str>, bool)> {
    let tags = prop::sample::subsequence(vec!["a", "b", "c", "foreign"], 0..=4);
    (
        prop::sample::select(vec!["A", "B", "C"]),
        tags,
        any::<bool>(),
    )
}

#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that may be so"
)]
struct Row {
    name: &'static str,
    spec: &'static str,
    generation: u64,
    state: ContainerState,
    armed: bool,
    ran_ms: u64,
    witnessed: bool,
    connected: bool,
    interrupted: bool,
    /// The position of a sandbox in the list, or beyond it: one that is gone.
    shares: Option<usize>,
}

prop_compose! {
    fn any_row()(
        (name, spec) in service_spec(),
        generation in 1_u64..4,
        state in state(),
        armed in any::<bool>(),
        ran_ms in 0_u64..20_000,
        witnessed in any::<bool>(),
        connected in prop::bool::weighted(0.8),
        interrupted in prop::bool::weighted(0.3),
        shares in prop::option::of(0_usize..4),
    ) -> Row {
        Row { name, spec, generation, state, armed, ran_ms, witnessed, connected, interrupted, shares }
    }
}

prop_compose! {
    fn any_model()(
        target in prop::collection::vec(service_spec(), 0..4),
        containers in prop::collection::vec(any_row(), 0..5),
        sandboxes in prop::collection::vec(any_row(), 0..3),
        good in prop::collection::vec(service_spec(), 0..3),
        previous in prop::collection::vec(service_spec(), 0..2),
        rejected in prop::collection::vec(service_spec(), 0..2),
        completed in prop::collection::vec(service_spec(), 0..2),
        images in prop::collection::vec(any_image(), 0..3),
        networks in prop::collection::vec(prop::sample::select(vec!["default", "back", "old"]), 0..3),
        runs in prop::option::of(prop::sample::select(AGENTS.to_vec())),
        failed in prop::option::of(prop::sample::select(AGENTS.to_vec())),
    ) -> Model {
        let mut target: BTreeMap<_, _> = target
            .into_iter()
            .map(|(name, spec)| (name.to_owned(), spec.to_owned()))
            .collect();
        // A target whose services need what it does not have is refused before it gets here.
        if !target.contains_key("a") {
            target.retain(|_, spec| !spec.contains("needs=") && !spec.contains("net="));
        }
        if target.values().any(|spec| spec.contains("net=")) {
            let lender = target.get_mut("a").expect("just checked");
            if lender.contains("hand-over") {
                "A".clone_into(lender);
            }
        }
        let mut history = History::default();
        for (name, spec) in good.into_iter().filter(|(_, spec)| !spec.starts_with('C')) {
            let entry = history.services.entry(world::key(name)).or_default();
            entry.last_good = Some(Box::new(world::service(name, spec)));
        }
        for (name, spec) in previous {
            let entry = history.services.entry(world::key(name)).or_default();
            let past = || Box::new(world::service(name, spec));
            entry.previous = entry.last_good.is_some().then(past);
        }
        for (name, spec) in completed {
            let entry = history.services.entry(world::key(name)).or_default();
            entry.completed = world::service(name, spec).identity();
        }
        for (name, spec) in rejected {
            let service = world::service(name, spec);
            let entry = history.services.entry(world::key(name)).or_default();
            entry.rejected = Some(Rejected {
                identity: service.identity().expect("resolved"),
                image: service.image_name,
                reason: "it was bad".to_owned(),
                at: Timestamp::from_millis(0),
            });
        }
        let sandboxes: Vec<Sandbox> = sandboxes.iter().enumerate().map(sandbox).collect();
        let containers: Vec<Container> =
            containers.iter().enumerate().map(|(n, row)| container(n, row, &sandboxes)).collect();
        for (container, row) in containers.iter().zip(&containers_rows(&containers)) {
            let entry = history.services.entry(container.key.clone()).or_default();
            entry.made.insert(container.name.clone(), container.id.clone());
            if *row {
                entry.interrupted.insert(container.id.clone());
            }
        }
        let platform: holdfast_proto::image::Platform = "linux/amd64".parse().expect("a platform");
        let mut stored = Vec::new();
        let mut present = Vec::new();
        for (spec, tags, is_pulled) in images {
            let image = world::service("any", spec).image_name;
            if present.contains(&spec) {
                continue;
            }
            present.push(spec);
            stored.push(world::stored(spec, tags.into_iter().map(|tag| match tag {
                "foreign" => "reg.local/mine:1".to_owned(),
                name => world::keep(name, spec),
            })));
            if is_pulled {
                history.pulled.insert(image, world::key("a"));
            }
        }
        let images = present.into_iter().map(|spec| {
            let service = world::service("any", spec);
            let config = service.identity().map(|identity| identity.config_digest);
            (service.image_name, ImagePresence::Present { config, platform: platform.clone() })
        });
        let mut networks = networks;
        networks.sort_unstable();
        networks.dedup();
        Model::new(
            world::target(3, &target),
            Observed {
                device: world::device(),
                platform: platform.clone(),
                containers,
                sandboxes,
                networks: networks.into_iter().map(world::network).collect(),
                strangers: Vec::new(),
                refused: BTreeMap::new(),
                images: images.collect(),
                stored: Some(stored),
                disk: None,
                agent: RunningAgent {
                    identity: runs.and_then(|spec| world::service("c", spec).identity()),
                    failed: failed.filter(|spec| runs != Some(*spec)).and_then(|spec| {
                        let identity = world::service("c", spec).identity()?;
                        Some(FailedAgent { identity, reason: "it died".to_owned() })
                    }),
                    ..RunningAgent::default()
                },
            },
            history,
        )
    }
}

/// Which containers the agent itself stopped: told by a mark in their names.
fn containers_rows(containers: &[Container]) -> Vec<bool> {
    containers
        .iter()
        .map(|container| container.name.ends_with("-interrupted"))
        .collect()
}

fn sandbox((position, row): (usize, &Row)) -> Sandbox {
    let made_from = world::service(row.name, row.spec);
    let id = format!("box{position}");
    Sandbox {
        name: id.clone(),
        id,
        key: world::key(row.name),
        generation: row.generation,
        hash: SandboxSpec::of(&made_from.service_name, &made_from.config).hash(),
        state: row.state,
        restart: policy(row.armed),
        network: NetworkState {
            joined: if row.connected {
                world::joined(&made_from)
            } else {
                BTreeMap::new()
            },
            published: world::published(&made_from),
            ..NetworkState::default()
        },
    }
}

fn policy(armed: bool) -> RestartPolicy {
    if armed {
        RestartPolicy::Always
    } else {
        RestartPolicy::No
    }
}

fn container(position: usize, row: &Row, sandboxes: &[Sandbox]) -> Container {
    let service = world::service(row.name, row.spec);
    let identity = service.identity().expect("resolved");
    let mark = if row.interrupted { "-interrupted" } else { "" };
    let shares = row.shares.map(|shares| {
        sandboxes
            .get(shares)
            .map_or_else(|| "gone".to_owned(), |sandbox| sandbox.id.clone())
    });
    let own = shares.is_none();
    Container {
        id: format!("old{position}"),
        name: format!("old{position}{mark}"),
        key: world::key(row.name),
        generation: row.generation,
        spec_hash: identity.spec_hash,
        config_digest: identity.config_digest,
        image: service.image_name.clone(),
        state: row.state,
        health: None,
        restart_count: 0,
        oom_killed: false,
        restart: policy(row.armed),
        wanted_restart: service.config.restart_policy(),
        running_for_ms: row.state.is_up().then_some(row.ran_ms),
        healthy_for_ms: None,
        witnessed: row.witnessed,
        probe: None,
        probe_error: None,
        network: NetworkState {
            shares,
            stale: !own && !row.connected && row.state.is_up(),
            joined: if own && row.connected {
                world::joined(&service)
            } else {
                BTreeMap::new()
            },
            published: if own {
                world::published(&service)
            } else {
                [].into()
            },
        },
        amounts: if row.connected {
            Amounts::of(&service.config)
        } else {
            Amounts {
                memory: 1,
                ..Amounts::default()
            }
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn converges_from_any_situation_and_then_rests(mut model in any_model()) {
        model.converge();
        model.check_converged();
        let before = model.clone();
        model.converge();
        prop_assert!(before == model, "I8: a converged device is left alone");
    }

    #[test]
    fn the_order_of_what_was_seen_does_not_matter(model in any_model()) {
        let forward = model.plan();
        let mut reversed = model;
        reversed.observed.containers.reverse();
        reversed.observed.sandboxes.reverse();
        reversed.observed.networks.reverse();
        reversed.observed.stored.as_mut().expect("it is known").reverse();
        let backward = reversed.plan();
        let sorted = |plan: &holdfast_plan::Plan| {
            let mut lines: Vec<String> = plan.to_string().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        prop_assert_eq!(sorted(&forward), sorted(&backward));
    }
}
