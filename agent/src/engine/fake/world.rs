//! Owns what the model of an engine consists of, and what happens in it by itself as time goes on.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_plan::{Amounts, ContainerState, Health, Published};
use holdfast_proto::image::Platform;
use holdfast_proto::spec::{Protocol, RestartPolicy};

/// First pause before an engine starts an ended container again; it doubles each time …
const RESTART_PAUSE_MS: u64 = 100;
/// … up to a minute …
const MAX_RESTART_PAUSE_MS: u64 = 60_000;
/// … and begins anew after a run of so long.
const GOOD_RUN_MS: u64 = 10_000;
/// The network that an engine has by itself.
pub(super) const BRIDGE: &str = "bridge";

/// What an image's program does, told by its maker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// There is no program: every start fails.
    pub broken_entrypoint: bool,
    /// It ends by itself after so many milliseconds with this code.
    pub exits: Option<(u64, i64)>,
    /// The kernel kills it for memory when it ends.
    pub runs_out_of_memory: bool,
    /// SIGTERM does not end it.
    pub ignores_sigterm: bool,
    /// What its health check says; none without a check.
    pub check: Option<Check>,
    /// How every program that is run in it beside its own ends; if none, as its name says.
    pub exec_code: Option<i64>,
}

/// What a health check says, in milliseconds after a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It passes from then on.
    HealthyAfter(u64),
    /// It has failed often enough by then.
    UnhealthyAfter(u64),
    /// Its program is not in the image; it has failed often enough by then.
    CannotRun(u64),
}

/// An image in a registry.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The digest of its configuration: its id in the store.
    pub id: String,
    /// What it was made for.
    pub platform: Platform,
    /// What its program does.
    pub behaviour: Behaviour,
    /// Its one layer; other images may share it.
    pub layer: String,
    /// How long a pull takes.
    pub pull_ms: u64,
    /// What goes wrong with a pull.
    pub fault: PullFault,
}

/// What goes wrong with a pull.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullFault {
    /// Nothing.
    #[default]
    None,
    /// The registry cannot be reached.
    Unreachable,
    /// The layer breaks off until the engine gives up.
    Breaks,
    /// The layer stops in the middle; the engine forgets it with the pull.
    StallsInBody,
    /// The layer is asked for and never answered: the engine is wedged for it once the pull is dropped.
    NeverAnswers,
}

/// An image in the engine's store.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) platform: Platform,
    pub(super) behaviour: Behaviour,
    pub(super) tags: BTreeSet<String>,
    pub(super) digests: BTreeSet<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) labels: HashMap<String, String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Attachment {
    pub(super) network_id: String,
    pub(super) aliases: BTreeSet<String>,
}

impl Attachment {
    pub(super) fn new(names: &[String]) -> Self {
        Self {
            network_id: String::new(),
            aliases: names.iter().cloned().collect(),
        }
    }

    /// The engine gives a running container its short id for a name, too.
    pub(super) fn join(&mut self, id: &str, network_id: String) {
        self.network_id = network_id;
        self.aliases.insert(id.chars().take(12).collect());
    }
}

/// A running process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) started_ms: u64,
    /// When SIGKILL follows the SIGTERM that it ignores.
    pub(super) killed_at_ms: Option<u64>,
}

#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that dockerd keeps"
)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) labels: HashMap<String, String>,
    pub(super) image: String,
    pub(super) behaviour: Behaviour,
    pub(super) restart: RestartPolicy,
    pub(super) shares: Option<String>,
    pub(super) attachments: BTreeMap<String, Attachment>,
    /// Ports asked for; without a host port the engine chooses one.
    pub(super) ports: Vec<(u16, Protocol, Option<u16>)>,
    pub(super) published: BTreeSet<Published>,
    pub(super) amounts: Amounts,
    pub(super) grace_ms: u64,
    pub(super) state: ContainerState,
    pub(super) process: Option<Process>,
    pub(super) started_at: String,
    pub(super) start_error: String,
    pub(super) ever_started: bool,
    pub(super) stopped_by_hand: bool,
    pub(super) restart_count: u64,
    pub(super) out_of_memory: bool,
    /// The spec switches the image's check off.
    pub(super) check_is_off: bool,
    /// When a removal that somebody began ends.
    pub(super) gone_at_ms: Option<u64>,
    pause_ms: u64,
    restart_at_ms: Option<u64>,
}

impl Container {
    pub(super) fn new(name: &str, labels: HashMap<String, String>) -> Self {
        Self {
            name: name.to_owned(),
            labels,
            image: String::new(),
            behaviour: Behaviour::default(),
            restart: RestartPolicy::No,
            shares: None,
            attachments: BTreeMap::new(),
            ports: Vec::new(),
            published: BTreeSet::new(),
            amounts: Amounts::default(),
            grace_ms: 10_000,
            state: ContainerState::Created,
            process: None,
            started_at: String::new(),
            start_error: String::new(),
            ever_started: false,
            stopped_by_hand: false,
            restart_count: 0,
            out_of_memory: false,
            check_is_off: false,
            gone_at_ms: None,
            pause_ms: 0,
            restart_at_ms: None,
        }
    }

    /// Its process runs.
    pub(super) fn begin(&mut self, started_at: String, now_ms: u64) {
        self.state = ContainerState::Running;
        self.ever_started = true;
        self.out_of_memory = false;
        self.start_error.clear();
        self.started_at = started_at;
        self.process = Some(Process {
            started_ms: now_ms,
            killed_at_ms: None,
        });
    }

    pub(super) fn health(&self, now_ms: u64) -> (Option<Health>, Option<String>) {
        let Some(check) = self.behaviour.check else {
            return (None, None);
        };
        let Some(process) = self.process else {
            // An engine keeps the last word of a check after the end.
            return (self.ever_started.then_some(Health::Unhealthy), None);
        };
        let lasted = now_ms.saturating_sub(process.started_ms);
        match check {
            Check::HealthyAfter(ms) if lasted >= ms => (Some(Health::Healthy), None),
            Check::UnhealthyAfter(ms) if lasted >= ms => (Some(Health::Unhealthy), None),
            Check::CannotRun(ms) if lasted >= ms => (
                Some(Health::Unhealthy),
                Some("its program is not in the image".to_owned()),
            ),
            Check::HealthyAfter(_) | Check::UnhealthyAfter(_) | Check::CannotRun(_) => {
                (Some(Health::Starting), None)
            }
        }
    }

    /// The moment at which something happens to it by itself.
    fn due(&self) -> Option<u64> {
        match self.state {
            ContainerState::Running => {
                let process = self.process?;
                let ends = self.behaviour.exits.map(|(ms, _)| process.started_ms + ms);
                ends.into_iter().chain(process.killed_at_ms).min()
            }
            ContainerState::Restarting => self.restart_at_ms,
            ContainerState::Removing => self.gone_at_ms,
            ContainerState::Created
            | ContainerState::Paused
            | ContainerState::Exited { .. }
            | ContainerState::Dead => None,
        }
    }

    /// Its process ended; whether and when it starts again is its policy's matter.
    pub(super) fn end(&mut self, code: i64, now_ms: u64, watched: bool) {
        let ran_ms = self
            .process
            .take()
            .map_or(0, |process| now_ms.saturating_sub(process.started_ms));
        self.published.clear();
        self.state = ContainerState::Exited { code };
        if !watched || self.stopped_by_hand || !self.wants_restart(code) {
            return;
        }
        self.pause_ms = if self.pause_ms == 0 || ran_ms >= GOOD_RUN_MS {
            RESTART_PAUSE_MS
        } else {
            (self.pause_ms * 2).min(MAX_RESTART_PAUSE_MS)
        };
        self.restart_count += 1;
        self.restart_at_ms = Some(now_ms + self.pause_ms);
        self.state = ContainerState::Restarting;
    }

    /// Whether its policy starts it again, here or with the engine (measured: M9).
    fn wants_restart(&self, code: i64) -> bool {
        match self.restart {
            RestartPolicy::No => false,
            RestartPolicy::Always => true,
            RestartPolicy::UnlessStopped => !self.stopped_by_hand,
            RestartPolicy::OnFailure(most) => {
                code != 0 && most.is_none_or(|most| self.restart_count < u64::from(most))
            }
        }
    }

    pub(super) fn forget_restarts(&mut self) {
        self.restart_count = 0;
        self.pause_ms = 0;
        self.stopped_by_hand = false;
    }

    /// Whether the engine starts it when it comes back.
    fn returns_with_the_engine(&self) -> bool {
        match self.state {
            ContainerState::Exited { code } => self.ever_started && self.wants_restart(code),
            ContainerState::Created
            | ContainerState::Running
            | ContainerState::Paused
            | ContainerState::Restarting
            | ContainerState::Removing
            | ContainerState::Dead => false,
        }
    }
}

/// What the engine's own program does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Daemon {
    /// It works.
    #[default]
    Up,
    /// It takes connections and never answers (SIGSTOP), until then if a time is given.
    Hung(Option<u64>),
    /// It is gone, until then if a time is given.
    Gone(Option<u64>),
}

/// Everything behind the engine's socket.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) daemon: Daemon,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) networks: BTreeMap<String, Network>,
    pub(super) images: BTreeMap<String, Image>,
    pub(super) registry: BTreeMap<String, Remote>,
    pub(super) wedged: BTreeSet<String>,
    pub(super) foreign_ports: BTreeSet<u16>,
    pub(super) disk_is_full: bool,
    /// Counts what happened to containers; a watcher sees it grow.
    pub(super) events: u64,
    /// Decides in which order an engine that comes back starts containers: they start side by side.
    pub(super) seed: u64,
    made: u64,
}

impl World {
    /// An engine with its own networks and nothing else.
    pub(super) fn new(seed: u64) -> Self {
        let mut world = Self {
            seed,
            ..Self::default()
        };
        for name in [BRIDGE, "host", "none"] {
            let network = Network {
                name: name.to_owned(),
                labels: HashMap::new(),
            };
            let id = world.new_id();
            world.networks.insert(id, network);
        }
        world
    }

    pub(super) fn new_id(&mut self) -> String {
        self.made += 1;
        format!("{:012x}{:052x}", self.made, self.made)
    }

    /// Lets everything happen that is due by now, in its order.
    pub(super) fn settle(&mut self, now_ms: u64) {
        while let Some((at, id)) = self.next().filter(|(at, _)| *at <= now_ms) {
            self.events += 1;
            if id.is_empty() {
                match self.daemon {
                    Daemon::Gone(_) => self.return_of_the_engine(at),
                    Daemon::Up | Daemon::Hung(_) => self.daemon = Daemon::Up,
                }
                continue;
            }
            let watched = self.daemon == Daemon::Up;
            let Some(container) = self.containers.get_mut(&id) else {
                return;
            };
            if container.state == ContainerState::Removing {
                self.containers.remove(&id);
                continue;
            }
            if container.state == ContainerState::Restarting {
                container.restart_at_ms = None;
                // A failed automatic start leaves the container down.
                let _ = self.launch(&id, at);
                continue;
            }
            let by_itself = container.behaviour.exits.filter(|(ms, _)| {
                let started = container.process.map_or(0, |process| process.started_ms);
                started + ms <= at
            });
            let code = by_itself.map_or(137, |(_, code)| code);
            container.out_of_memory = by_itself.is_some() && container.behaviour.runs_out_of_memory;
            container.end(code, at, watched);
        }
    }

    /// When what happens next by itself, and to which container; to the engine if that is empty.
    pub(super) fn next(&self) -> Option<(u64, String)> {
        let is_up = self.daemon == Daemon::Up;
        let back = match self.daemon {
            Daemon::Gone(Some(at)) if !self.disk_is_full => Some((at, String::new())),
            Daemon::Hung(Some(at)) => Some((at, String::new())),
            Daemon::Gone(_) | Daemon::Up | Daemon::Hung(_) => None,
        };
        let due = |(id, container): (&String, &Container)| {
            // Nobody starts anything while the engine is not there.
            let counts = is_up || container.state != ContainerState::Restarting;
            Some((container.due().filter(|_| counts)?, id.clone()))
        };
        self.containers.iter().filter_map(due).chain(back).min()
    }

    /// The engine comes back: what still runs is stopped, then policies decide (measured: M9).
    pub(super) fn return_of_the_engine(&mut self, now_ms: u64) {
        self.daemon = Daemon::Up;
        self.wedged.clear();
        for container in self.containers.values_mut() {
            if container.state.is_up() {
                let restarting = container.state == ContainerState::Restarting;
                // It is stopped as by a person: SIGTERM, the grace, SIGKILL.
                let code = match (restarting, container.behaviour.ignores_sigterm) {
                    (true, _) => 1,
                    (false, true) => 137,
                    (false, false) => 0,
                };
                container.process = None;
                container.published.clear();
                container.state = ContainerState::Exited { code };
                container.stopped_by_hand = !restarting;
            }
        }
        let returning = self.containers.iter();
        let returning = returning.filter(|(_, container)| container.returns_with_the_engine());
        let mut order: Vec<String> = returning.map(|(id, _)| id.clone()).collect();
        if !self.seed.is_multiple_of(2) {
            order.reverse();
        }
        for id in order {
            let _ = self.launch(&id, now_ms);
        }
    }

    /// The power goes: no process is left.
    pub(super) fn power_cut(&mut self) {
        for container in self.containers.values_mut() {
            if container.state.is_up() {
                container.process = None;
                container.published.clear();
                container.restart_at_ms = None;
                container.state = ContainerState::Exited { code: 255 };
            }
        }
    }
}
