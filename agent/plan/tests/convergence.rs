//! From any reachable situation the plan's steps, run one at a time on a model of an engine, end converged.
//!
//! The model fails what it is told to fail, and checks the invariants after every step.

mod world;

use std::collections::BTreeMap;

use holdfast_plan::{
    Container, ContainerState, GateRules, History, Hold, ImagePresence, Observed, Rejected,
    Situation, Step, plan,
};
use holdfast_proto::hash::SpecHash;
use holdfast_proto::spec::RestartPolicy;
use holdfast_proto::target::{ServiceTarget, TargetState};
use holdfast_proto::time::Timestamp;
use proptest::prelude::*;

const GATE: GateRules = GateRules {
    stable_ms: 10_000,
    healthy_timeout_ms: 60_000,
    max_attempts: 3,
};
/// More looks than any target of three services needs; a plan that loops runs into it.
const MOST_STEPS: usize = 200;
const SPECS: [&str; 4] = ["A", "B", "C", "A+"];
/// Containers of this spec end during their trial.
const CRASHES: &str = "C";

/// A model of an engine and a journal: enough to run every step, with the invariants checked.
#[derive(Debug)]
struct Model {
    target: TargetState,
    observed: Observed,
    history: History,
    next_id: u32,
}

impl Model {
    fn situation_plan(&self) -> holdfast_plan::Plan {
        plan(&Situation {
            target: &self.target,
            observed: &self.observed,
            history: &self.history,
            gate: &GATE,
            now: Timestamp::from_millis(0),
        })
    }

    fn container(&mut self, id: &str) -> &mut Container {
        let mut found = self
            .observed
            .containers
            .iter_mut()
            .filter(|container| container.id == id);
        found.next().expect("a step names a container that exists")
    }

    fn crashes(container: &Container) -> bool {
        container.is(&world::service(container.key.service.as_str(), CRASHES))
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Pull {
                image,
                expected,
                platform,
                ..
            } => {
                let config = Some(expected.config_digest);
                self.observed
                    .images
                    .insert(image, ImagePresence::Present { config, platform });
            }
            Step::Create {
                key,
                name,
                generation,
                service,
            } => {
                let id = format!("id{}", self.next_id);
                self.next_id += 1;
                assert!(
                    self.observed
                        .containers
                        .iter()
                        .all(|container| container.name != name),
                    "the name {name} is taken"
                );
                let identity = service
                    .identity()
                    .expect("I5: only resolved images are created");
                self.observed.containers.push(Container {
                    id,
                    name,
                    key,
                    generation,
                    spec_hash: SpecHash::of(&service.config),
                    config_digest: identity.config_digest,
                    image: service.image_name.clone(),
                    state: ContainerState::Created,
                    health: None,
                    restart_count: 0,
                    oom_killed: false,
                    restart: RestartPolicy::No,
                    wanted_restart: RestartPolicy::Always,
                    running_for_ms: None,
                });
            }
            Step::Stop { key, container, .. } => {
                let entry = self.history.services.entry(key).or_default();
                entry.interrupted.insert(container.id.clone());
                let stopped = self.container(&container.id);
                assert!(stopped.state.is_up(), "only what is up is stopped");
                stopped.restart = RestartPolicy::No;
                stopped.state = ContainerState::Exited { code: 143 };
            }
            Step::Start {
                key,
                container,
                restart,
                candidate,
                ..
            } => {
                let up = self.observed.containers.iter();
                let up = up
                    .filter(|other| other.key == key && other.state.is_up())
                    .count();
                assert_eq!(
                    up, 0,
                    "I1: {container} starts while another container is up"
                );
                let entry = self.history.services.entry(key).or_default();
                entry.interrupted.remove(&container.id);
                let started = self.container(&container.id);
                assert!(!candidate || restart == RestartPolicy::No, "I2");
                started.restart = restart;
                started.state = ContainerState::Running;
                started.running_for_ms = Some(0);
                if candidate && Self::crashes(started) {
                    started.state = ContainerState::Exited { code: 1 };
                }
            }
            Step::Arm {
                container, restart, ..
            } => self.container(&container.id).restart = restart,
            Step::Unpause { container, .. } => {
                self.container(&container.id).state = ContainerState::Running;
            }
            Step::Commit {
                key,
                container,
                restart,
                service,
            } => {
                self.container(&container.id).restart = restart;
                let entry = self.history.services.entry(key).or_default();
                entry.last_good = Some(*service);
                entry.rejected = None;
            }
            Step::Reject {
                key,
                identity,
                image,
                reason,
            } => {
                let at = Timestamp::from_millis(0);
                let reason = reason.to_string();
                let entry = self.history.services.entry(key).or_default();
                entry.rejected = Some(Rejected {
                    identity,
                    image,
                    reason,
                    at,
                });
            }
            Step::Remove { key, container, .. } => {
                let removed = self.container(&container.id).clone();
                assert!(!removed.state.is_up(), "only what is down is removed");
                let in_target = self.target.services().any(|(other, _)| other == key);
                let good = self
                    .history
                    .services
                    .get(&key)
                    .and_then(|past| past.last_good.as_ref());
                let is_good = good.is_some_and(|good| removed.is(good));
                let twin = self.observed.containers.iter();
                let twin = twin
                    .filter(|other| good.is_some_and(|good| other.is(good)))
                    .count()
                    > 1;
                assert!(
                    !in_target || !is_good || twin || removed.state == ContainerState::Dead,
                    "I4: the last good container is removed"
                );
                self.observed
                    .containers
                    .retain(|other| other.id != container.id);
            }
            Step::Pardon { key } => {
                self.history.services.entry(key).or_default().rejected = None;
            }
            Step::Forget { key } => {
                self.history.services.remove(&key);
            }
        }
    }

    /// Runs the plan's first step again and again until nothing is left to do.
    fn converge(&mut self) {
        for _ in 0..MOST_STEPS {
            let decided = self.situation_plan();
            if let Some(step) = decided.steps.into_iter().next() {
                self.run(step);
                continue;
            }
            let trials = decided
                .holds
                .iter()
                .any(|hold| matches!(hold, Hold::Verifying { .. }));
            if !trials {
                return;
            }
            for container in &mut self.observed.containers {
                container.running_for_ms = container.running_for_ms.map(|ran| ran + GATE.stable_ms);
            }
        }
        panic!(
            "not converged after {MOST_STEPS} steps: {}",
            self.situation_plan()
        );
    }

    fn check_converged(&self) {
        for (key, wanted) in self.target.services() {
            let past = self.history.services.get(&key);
            let rejected = past
                .and_then(|past| past.rejects(&wanted.clone()))
                .is_some();
            let good = past.and_then(|past| past.last_good.clone());
            let should_run: Option<ServiceTarget> = match (rejected, good) {
                (false, _) => Some(wanted.clone()),
                (true, good) => {
                    good.filter(|good| past.is_none_or(|past| past.rejects(good).is_none()))
                }
            };
            let up = self.observed.containers.iter();
            let up: Vec<_> = up
                .into_iter()
                .filter(|c| c.key == key && c.state.is_up())
                .collect();
            match should_run {
                Some(service) => {
                    assert_eq!(up.len(), 1, "one container of {key} runs");
                    assert!(up[0].is(&service), "{key} runs the right one");
                    assert_eq!(up[0].restart, up[0].wanted_restart, "{key} is armed");
                }
                None => assert!(up.is_empty(), "a rejected first deployment does not run"),
            }
        }
        for container in &self.observed.containers {
            let in_target = self.target.services().any(|(key, _)| key == container.key);
            assert!(in_target, "nothing is left of what left the target");
        }
    }
}

fn state() -> impl Strategy<Value = ContainerState> {
    prop_oneof![
        Just(ContainerState::Created),
        Just(ContainerState::Running),
        Just(ContainerState::Paused),
        Just(ContainerState::Exited { code: 0 }),
        Just(ContainerState::Exited { code: 137 }),
        Just(ContainerState::Dead),
    ]
}

prop_compose! {
    fn any_container()(
        service in prop::sample::select(vec!["a", "b", "c"]),
        spec in prop::sample::select(SPECS.to_vec()),
        generation in 1_u64..4,
        state in state(),
        armed in any::<bool>(),
        ran_ms in 0_u64..20_000,
    ) -> (&'static str, &'static str, u64, ContainerState, bool, u64) {
        (service, spec, generation, state, armed, ran_ms)
    }
}

prop_compose! {
    fn any_model()(
        target in prop::collection::btree_map(
            prop::sample::select(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]),
            prop::sample::select(SPECS.map(str::to_owned).to_vec()),
            0..3,
        ),
        containers in prop::collection::vec(any_container(), 0..5),
        good in prop::collection::btree_map(
            prop::sample::select(vec!["a", "b", "c"]),
            prop::sample::select(vec!["A", "B", "A+"]),
            0..3,
        ),
        rejected in prop::collection::btree_map(
            prop::sample::select(vec!["a", "b", "c"]),
            prop::sample::select(SPECS.to_vec()),
            0..2,
        ),
        images in prop::collection::vec(prop::sample::select(SPECS.to_vec()), 0..3),
    ) -> Model {
        let mut history = History::default();
        for (name, spec) in good {
            history.services.entry(world::key(name)).or_default().last_good =
                Some(world::service(name, spec));
        }
        for (name, spec) in rejected {
            let service = world::service(name, spec);
            history.services.entry(world::key(name)).or_default().rejected = Some(Rejected {
                identity: service.identity().expect("resolved"),
                image: service.image_name,
                reason: "it was bad".to_owned(),
                at: Timestamp::from_millis(0),
            });
        }
        let containers = containers.into_iter().enumerate().map(
            |(position, (name, spec, generation, state, armed, ran_ms))| {
                let service = world::service(name, spec);
                let identity = service.identity().expect("resolved");
                Container {
                    id: format!("old{position}"),
                    name: format!("old{position}"),
                    key: world::key(name),
                    generation,
                    spec_hash: identity.spec_hash,
                    config_digest: identity.config_digest,
                    image: service.image_name,
                    state,
                    health: None,
                    restart_count: 0,
                    oom_killed: false,
                    restart: if armed { RestartPolicy::Always } else { RestartPolicy::No },
                    wanted_restart: RestartPolicy::Always,
                    running_for_ms: state.is_up().then_some(ran_ms),
                }
            },
        );
        let platform: holdfast_proto::image::Platform = "linux/amd64".parse().expect("a platform");
        let images = images.into_iter().map(|spec| {
            let service = world::service("any", spec);
            let config = service.identity().map(|identity| identity.config_digest);
            (service.image_name, ImagePresence::Present { config, platform: platform.clone() })
        });
        Model {
            target: world::target(3, &target),
            observed: Observed {
                device: world::device(),
                platform: platform.clone(),
                containers: containers.collect(),
                images: images.collect::<BTreeMap<_, _>>(),
            },
            history,
            next_id: 0,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn converges_from_any_situation_and_then_rests(mut model in any_model()) {
        model.converge();
        model.check_converged();
        let before = (model.observed.clone(), model.history.clone());
        model.converge();
        prop_assert!(before == (model.observed, model.history), "I8: a converged device is left alone");
    }

    #[test]
    fn the_order_of_what_was_seen_does_not_matter(model in any_model()) {
        let forward = model.situation_plan();
        let mut reversed = model;
        reversed.observed.containers.reverse();
        let backward = reversed.situation_plan();
        let sorted = |plan: &holdfast_plan::Plan| {
            let mut lines: Vec<String> = plan.to_string().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        prop_assert_eq!(sorted(&forward), sorted(&backward));
    }
}
