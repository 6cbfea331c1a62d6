//! A model of an engine and a journal: enough to run every step, with the invariants checked.

use std::collections::BTreeMap;

use holdfast_plan::{
    Amounts, Container, ContainerState, FailedAgent, GateRules, History, Hold, ImagePresence,
    Joined, NetworkState, Observed, Plan, Rejected, Sandbox, Situation, Step, StoredImage,
    canonical, plan, rollback_ready,
};
use holdfast_proto::hash::SpecHash;
use holdfast_proto::id::ServiceKey;
use holdfast_proto::spec::{RestartPolicy, Strategy};
use holdfast_proto::target::{Identity, ServiceTarget, TargetState};
use holdfast_proto::time::Timestamp;

use crate::world;

pub(crate) const GATE: GateRules = GateRules {
    stable_ms: 10_000,
    healthy_timeout_ms: 60_000,
    soak_ms: 0,
    max_attempts: 3,
    max_interruptions: 10,
};
/// More looks than any target of three services needs; a plan that loops runs into it.
const MOST_STEPS: usize = 300;

/// What an engine and a journal hold.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) target: TargetState,
    pub(crate) observed: Observed,
    history: History,
    next_id: u32,
    /// Whether the steps so far have brought every service into a state that only plans lead to.
    began_well: bool,
}

impl Model {
    pub(crate) fn new(target: TargetState, observed: Observed, history: History) -> Self {
        Self {
            target,
            observed,
            history,
            next_id: 0,
            began_well: false,
        }
    }

    pub(crate) fn plan(&self) -> Plan {
        plan(&Situation {
            target: &self.target,
            observed: &self.observed,
            history: &self.history,
            gate: &GATE,
            closed: &BTreeMap::new(),
            now: Timestamp::from_millis(0),
        })
    }

    fn container(&mut self, id: &str) -> Option<&mut Container> {
        let mut found = self.observed.containers.iter_mut();
        found.find(|container| container.id == id)
    }

    fn sandbox(&mut self, id: &str) -> Option<&mut Sandbox> {
        let mut found = self.observed.sandboxes.iter_mut();
        found.find(|sandbox| sandbox.id == id)
    }

    /// The state, policy and network of a container or sandbox.
    fn any(&mut self, id: &str) -> (&mut ContainerState, &mut RestartPolicy, &mut NetworkState) {
        let observed = &mut self.observed;
        let container = observed.containers.iter_mut().find(|c| c.id == id);
        if let Some(c) = container {
            return (&mut c.state, &mut c.restart, &mut c.network);
        }
        let mut sandboxes = observed.sandboxes.iter_mut();
        let s = sandboxes
            .find(|sandbox| sandbox.id == id)
            .expect("a step names something that exists");
        (&mut s.state, &mut s.restart, &mut s.network)
    }

    fn id(&mut self) -> String {
        self.next_id += 1;
        format!("id{:03}", self.next_id)
    }

    fn past(&mut self, key: &ServiceKey) -> &mut holdfast_plan::ServiceHistory {
        self.history.services.entry(key.clone()).or_default()
    }

    fn taken(&self, name: &str) -> bool {
        let containers = self.observed.containers.iter().map(|found| &found.name);
        let sandboxes = self.observed.sandboxes.iter().map(|found| &found.name);
        containers.chain(sandboxes).any(|found| found == name)
    }

    /// The strategy of the spec that the target names for a service.
    fn strategy(&self, key: &ServiceKey) -> Strategy {
        let mut services = self.target.services();
        services
            .find(|(found, _)| found == key)
            .map(|(_, service)| service.config.strategy())
            .unwrap_or_default()
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Pull {
                key,
                image,
                expected,
                platform,
                keep,
                ..
            } => {
                let config = Some(expected.config_digest);
                self.store(&image).tags.insert(keep);
                self.history.pulled.entry(image.clone()).or_insert(key);
                self.observed
                    .images
                    .insert(image, ImagePresence::Present { config, platform });
            }
            Step::Keep { image, tag, .. } => {
                self.store(&image).tags.insert(tag);
            }
            Step::Release { tag, .. } => {
                for image in self.observed.stored.iter_mut().flatten() {
                    image.tags.remove(&tag);
                }
            }
            Step::Collect { image, .. } => self.collect(&image),
            Step::Create {
                key,
                name,
                generation,
                service,
                sandbox,
            } => self.create(key, name, generation, &service, sandbox),
            Step::CreateNetwork { network, name, .. } => {
                let made = world::network(network.network.as_str());
                assert_eq!((&made.name, &made.key), (&name, &network));
                assert!(!self.observed.networks.contains(&made), "made twice");
                self.observed.networks.push(made);
            }
            Step::RemoveNetwork { network, .. } => {
                let name = &network.key.network;
                let states = self.observed.containers.iter().map(|c| &c.network);
                let mut states = states.chain(self.observed.sandboxes.iter().map(|s| &s.network));
                assert!(
                    states.all(|state| !state.joined.contains_key(name)),
                    "an engine refuses to remove a network that is in use"
                );
                self.observed.networks.retain(|found| *found != network);
            }
            Step::CreateSandbox {
                key,
                name,
                generation,
                sandbox,
            } => {
                assert!(!self.taken(&name), "the name {name} is taken");
                let id = self.id();
                let first = sandbox.networks.iter().next();
                self.observed.sandboxes.push(Sandbox {
                    id,
                    name,
                    key,
                    generation,
                    hash: sandbox.hash(),
                    state: ContainerState::Created,
                    restart: RestartPolicy::No,
                    network: NetworkState {
                        joined: first
                            .map(|(network, aliases)| (network.clone(), connection(aliases)))
                            .into_iter()
                            .collect(),
                        published: sandbox
                            .ports
                            .iter()
                            .map(|port| holdfast_plan::Published {
                                target: port.target,
                                protocol: port.protocol,
                                host: port.published.unwrap_or(1),
                            })
                            .collect(),
                        ..NetworkState::default()
                    },
                });
            }
            Step::StartSandbox {
                key,
                container,
                restart,
                ..
            } => {
                let mut others = self.observed.sandboxes.iter();
                assert!(
                    others.all(|other| other.key != key || !other.state.is_up()),
                    "two sandboxes of {key} would want the same ports"
                );
                let (state, policy, _) = self.any(&container.id);
                (*state, *policy) = (ContainerState::Running, restart);
                for user in &mut self.observed.containers {
                    if user.network.shares.as_ref() == Some(&container.id) && user.state.is_up() {
                        user.network.stale = true;
                    }
                }
            }
            Step::Connect {
                container,
                network,
                aliases,
                ..
            } => {
                let mut networks = self.observed.networks.iter();
                assert!(networks.any(|found| found.key.network == network));
                let (_, _, state) = self.any(&container.id);
                state.joined.insert(network, connection(&aliases));
            }
            Step::Rename {
                container, name, ..
            } => {
                assert!(!self.taken(&name), "the name {name} is taken");
                self.container(&container.id).expect("it exists").name = name;
            }
            Step::SetAmounts {
                container, amounts, ..
            } => self.container(&container.id).expect("it exists").amounts = amounts,
            Step::Complete { key, identity } => self.past(&key).completed = Some(identity),
            Step::Stop { key, container, .. } => {
                self.past(&key).interrupted.insert(container.id.clone());
                let (state, policy, _) = self.any(&container.id);
                assert!(state.is_up(), "only what is up is stopped");
                (*state, *policy) = (ContainerState::Exited { code: 143 }, RestartPolicy::No);
            }
            Step::Start {
                key,
                container,
                restart,
                candidate,
                ..
            } => self.start(&key, &container.id, restart, candidate),
            Step::Arm {
                container, restart, ..
            } => *self.any(&container.id).1 = restart,
            Step::Unpause { container, .. } => {
                *self.any(&container.id).0 = ContainerState::Running;
            }
            Step::Commit {
                key,
                container,
                restart,
                service,
            } => {
                let committed = self.container(&container.id).expect("it exists");
                committed.restart = restart;
                let ended = committed.state == ContainerState::Exited { code: 0 };
                let identity = service.identity().filter(|_| ended);
                let entry = self.past(&key);
                entry.commit(&service);
                entry.rejected = None;
                entry.attempts = None;
                entry.completed = identity;
            }
            Step::Reject {
                key,
                identity,
                image,
                reason,
            } => {
                let at = Timestamp::from_millis(0);
                let reason = reason.to_string();
                self.past(&key).rejected = Some(Rejected {
                    identity,
                    image,
                    reason,
                    at,
                });
            }
            Step::Remove { key, container, .. } => self.remove(&key, &container.id),
            Step::Pardon { key } => {
                self.past(&key).rejected = None;
                self.observed.agent.failed = None;
            }
            Step::ReplaceAgent { service, .. } => self.replace_agent(&service),
            Step::Forget { key } => {
                self.history.services.remove(&key);
            }
        }
        self.check_one_comes_back();
    }

    /// Tries a release of the agent: that of image C fails.
    fn replace_agent(&mut self, service: &ServiceTarget) {
        let plan = self.plan();
        assert_eq!(plan.steps.len(), 1, "I14: nothing else is to be done");
        let trial = |hold: &Hold| matches!(hold, Hold::Verifying { .. });
        assert!(!plan.holds.iter().any(trial), "I14: nothing is on trial");
        assert!(
            self.observed.images.contains_key(&service.image_name),
            "I3: it is there"
        );
        let identity = service.identity().expect("resolved");
        let agent = &mut self.observed.agent;
        if service.image_name == world::service("any", "C").image_name {
            let reason = "it died".to_owned();
            agent.failed = Some(FailedAgent { identity, reason });
        } else {
            agent.identity = Some(identity);
            agent.failed = None;
        }
    }

    /// The image in the engine's store, put there if it is not.
    fn store(&mut self, image: &str) -> &mut StoredImage {
        let name = canonical(image);
        let stored = self.observed.stored.as_mut().expect("it is known");
        let found = stored.iter().position(|one| one.digests.contains(&name));
        let position = found.unwrap_or_else(|| {
            stored.push(StoredImage {
                digests: [name].into(),
                ..StoredImage::default()
            });
            stored.len() - 1
        });
        &mut stored[position]
    }

    fn collect(&mut self, image: &str) {
        assert!(
            self.history.pulled.remove(image).is_some(),
            "I9: only what the agent pulled is removed"
        );
        let found = self.store(image).clone();
        assert!(found.tags.is_empty(), "I9: somebody named it: {found:?}");
        let mut containers = self.observed.containers.iter();
        assert!(
            containers.all(|container| container.image != image),
            "an engine refuses to remove an image that is in use"
        );
        for (key, service) in self.target.services() {
            assert_ne!(service.image_name, image, "an image of the target stays");
            let past = self.history.services.get(&key);
            let good = past.and_then(|past| past.last_good.as_ref());
            let asked_for = service.config.strategy() == Strategy::DeleteThenDownload;
            assert!(
                asked_for || good.is_none_or(|good| good.image_name != image),
                "I4: the image of the last good spec is removed"
            );
        }
        let stored = self.observed.stored.as_mut().expect("it is known");
        stored.retain(|one| !one.digests.contains(&canonical(image)));
        self.observed.images.remove(image);
    }

    fn create(
        &mut self,
        key: ServiceKey,
        name: String,
        generation: u64,
        service: &ServiceTarget,
        sandbox: Option<String>,
    ) {
        assert!(!self.taken(&name), "the name {name} is taken");
        let identity = service
            .identity()
            .expect("I5: only resolved images are created");
        let image = service.pinned_image().expect("resolved");
        assert!(
            matches!(
                self.observed.images.get(&image),
                Some(ImagePresence::Present { .. })
            ),
            "I3: only complete images are used"
        );
        if let Some(sandbox) = &sandbox {
            assert!(self.sandbox(sandbox).is_some(), "no sandbox {sandbox}");
        }
        let id = self.id();
        let first = world::joined(service).into_iter().next();
        self.past(&key).made.insert(name.clone(), id.clone());
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
            wanted_restart: service.config.restart_policy(),
            running_for_ms: None,
            healthy_for_ms: None,
            witnessed: false,
            probe: None,
            probe_error: None,
            network: NetworkState {
                // An engine connects one network when it makes a container.
                joined: first.filter(|_| sandbox.is_none()).into_iter().collect(),
                published: if sandbox.is_none() {
                    world::published(service)
                } else {
                    [].into()
                },
                shares: sandbox,
                stale: false,
            },
            amounts: Amounts::of(&service.config),
        });
    }

    fn start(&mut self, key: &ServiceKey, id: &str, restart: RestartPolicy, candidate: bool) {
        let is_agent = self
            .target
            .services()
            .any(|(found, service)| found == *key && service.config.is_agent());
        assert!(
            !is_agent,
            "I14: no container of the agent's own release is started"
        );
        let up = self.observed.containers.iter();
        let up = up
            .filter(|other| other.key == *key && other.id != id && other.state.is_up())
            .count();
        let hands_over = candidate && self.strategy(key) == Strategy::HandOver;
        assert!(
            up <= usize::from(hands_over),
            "I1: {id} starts while {up} other containers are up"
        );
        self.past(key).interrupted.remove(id);
        let started = self.container(id).expect("it exists").clone();
        if let Some(shares) = &started.network.shares {
            let sandbox = self.sandbox(shares).expect("its sandbox exists");
            assert!(
                sandbox.state.is_up(),
                "an engine starts nothing in a network that is down"
            );
        }
        assert!(
            started.network.joined.values().all(|joined| !joined.stale),
            "an engine starts nothing on a network that is gone"
        );
        assert!(!candidate || restart == RestartPolicy::No, "I2");
        if candidate && started.state != ContainerState::Created {
            let identity = Identity {
                config_digest: started.config_digest,
                spec_hash: started.spec_hash,
            };
            let attempts = self.past(key).attempts.take();
            let before = attempts.filter(|attempts| attempts.identity == identity);
            self.past(key).attempts = Some(holdfast_plan::Attempts {
                identity,
                count: 0,
                interruptions: before.map_or(0, |before| before.interruptions) + 1,
            });
        }
        let crashes = candidate && crashes(&started);
        let one_shot = started.wanted_restart == RestartPolicy::No;
        let started = self.container(id).expect("it exists");
        started.restart = restart;
        started.network.stale = false;
        started.witnessed = true;
        started.running_for_ms = Some(0);
        started.state = match (crashes, one_shot) {
            (true, _) => ContainerState::Exited { code: 1 },
            (false, true) => ContainerState::Exited { code: 0 },
            (false, false) => ContainerState::Running,
        };
    }

    fn remove(&mut self, key: &ServiceKey, id: &str) {
        if let Some(sandbox) = self.sandbox(id) {
            assert!(!sandbox.state.is_up(), "only what is down is removed");
            self.observed.sandboxes.retain(|other| other.id != id);
            return;
        }
        let removed = self.container(id).expect("it exists").clone();
        assert!(!removed.state.is_up(), "only what is down is removed");
        // One that names the agent's own release now has left the target as a container.
        let in_target = self
            .target
            .services()
            .any(|(other, service)| other == *key && !service.config.is_agent());
        let past = self.history.services.get(key);
        let good = past.and_then(|past| past.last_good.as_ref());
        let is_good = good.is_some_and(|good| removed.is(good));
        let twins = self.observed.containers.iter();
        let twins = twins
            .filter(|other| good.is_some_and(|good| other.is(good)))
            .count();
        let lost = removed.state == ContainerState::Dead;
        let asked_for = self.strategy(key) == Strategy::DeleteThenDownload;
        assert!(
            !in_target || !is_good || twins > 1 || lost || asked_for,
            "I4: the last good container is removed"
        );
        self.observed.containers.retain(|other| other.id != id);
    }

    /// I2: once the agent has put things right, at most one container of a service comes back with the
    /// engine.
    fn check_one_comes_back(&self) {
        if !self.began_well {
            return;
        }
        for (key, _) in self.target.services() {
            let armed = self.observed.containers.iter();
            let armed = armed
                .filter(|c| c.key == key && c.restart != RestartPolicy::No)
                .count();
            assert!(
                armed <= 1,
                "I2: {armed} containers of {key} would come back"
            );
        }
    }

    /// Runs the plan's first step again and again until nothing is left to do.
    pub(crate) fn converge(&mut self) {
        for _ in 0..MOST_STEPS {
            let decided = self.plan();
            if let Some(step) = decided.steps.into_iter().next() {
                self.run(step);
                continue;
            }
            let time_helps = decided.look_again.is_some()
                && decided
                    .holds
                    .iter()
                    .any(|hold| matches!(hold, Hold::Verifying { .. } | Hold::Waiting { .. }));
            if !time_helps {
                self.began_well = true;
                return;
            }
            for container in &mut self.observed.containers {
                container.running_for_ms = container.running_for_ms.map(|ran| ran + GATE.stable_ms);
            }
        }
        panic!("not converged after {MOST_STEPS} steps: {}", self.plan());
    }

    /// Whether a service of the target can run: what it needs can, and it was not rejected for good.
    fn can_run(&self, key: &ServiceKey) -> Option<ServiceTarget> {
        let mut services = self.target.services();
        let (_, wanted) = services.find(|(found, _)| found == key)?;
        let past = self.history.services.get(key);
        let rejected = past.and_then(|past| past.rejects(wanted)).is_some();
        if !rejected {
            return Some(wanted.clone());
        }
        let good = past.and_then(|past| past.last_good.as_deref().cloned());
        good.filter(|good| past.is_none_or(|past| past.rejects(good).is_none()))
    }

    pub(crate) fn check_converged(&self) {
        let waits = self
            .plan()
            .holds
            .into_iter()
            .any(|hold| matches!(hold, Hold::Waiting { .. } | Hold::NetworkAway { .. }));
        for (key, service) in self.target.services() {
            if service.config.is_agent() {
                self.check_agent(&key, service);
                continue;
            }
            let up = self.observed.containers.iter();
            let up: Vec<_> = up.filter(|c| c.key == key && c.state.is_up()).collect();
            match self.can_run(&key) {
                Some(service) if service.config.restart_policy() == RestartPolicy::No => {
                    assert!(up.len() <= 1, "at most one container of {key} runs");
                    let right = up.iter().all(|found| found.is(&service));
                    assert!(waits || right, "nothing but {key}'s own job runs");
                }
                Some(service) => {
                    // What waits keeps what it found, whatever that was.
                    if waits {
                        continue;
                    }
                    assert_eq!(up.len(), 1, "one container of {key} runs");
                    assert!(up[0].is(&service), "{key} runs the right one");
                    assert_eq!(up[0].restart, up[0].wanted_restart, "{key} is armed");
                    self.check_network(up[0], &service);
                }
                None => assert!(up.is_empty(), "a rejected first deployment does not run"),
            }
        }
        for (key, _) in self.target.services() {
            let past = self.history.services.get(&key);
            let ready = past.and_then(|past| rollback_ready(&self.observed, past));
            assert!(waits || ready != Some(false), "the ways back are there");
        }
        for container in &self.observed.containers {
            let in_target = self.target.services().any(|(key, _)| key == container.key);
            assert!(in_target, "nothing is left of what left the target");
        }
    }

    fn check_agent(&self, key: &ServiceKey, service: &ServiceTarget) {
        let mut containers = self.observed.containers.iter();
        assert!(
            containers.all(|found| found.key != *key),
            "I14: no container of {key} is left"
        );
        let past = self.history.services.get(key);
        let rejected = past.is_some_and(|past| past.rejects(service).is_some());
        let runs = self.observed.agent.identity;
        let runs = runs.is_some_and(|identity| identity.matches(service));
        assert!(runs || rejected, "the target's agent runs, or was rejected");
    }

    fn check_network(&self, container: &Container, service: &ServiceTarget) {
        let state = match &container.network.shares {
            None => &container.network,
            Some(shares) => {
                let mut sandboxes = self.observed.sandboxes.iter();
                let sandbox = sandboxes.find(|sandbox| sandbox.id == *shares);
                let sandbox = sandbox.expect("its sandbox exists");
                assert!(sandbox.state.is_up(), "its network is up");
                assert!(!container.network.stale, "and it is in it");
                &sandbox.network
            }
        };
        for (network, wanted) in world::joined(service) {
            let joined = state.joined.get(&network);
            assert!(
                joined.is_some_and(
                    |joined| !joined.stale && wanted.aliases.is_subset(&joined.aliases)
                ),
                "it is reached on {network}"
            );
        }
    }
}

fn connection(aliases: &[String]) -> Joined {
    Joined {
        aliases: aliases.iter().cloned().collect(),
        stale: false,
    }
}

/// Containers of image C end during their trial.
fn crashes(container: &Container) -> bool {
    container.image == world::service("any", "C").image_name
}
