//! A device in memory: the agent's real reconcile loop and journal on the fake engine, in virtual time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use holdfast_agent::clock::{Clock as _, Randomness};
use holdfast_agent::config::UpdateSettings;
use holdfast_agent::engine::fake::{Behaviour, Check, FakeEngine, PullFault, Remote, changes};
use holdfast_agent::engine::{Engine as _, EngineContainer, labels};
use holdfast_agent::execute::pull::NoLogins;
use holdfast_agent::journal::Journal;
use holdfast_agent::notify::Notifier;
use holdfast_agent::orders::Orders;
use holdfast_agent::permission::Permission;
use holdfast_agent::policy::Policy;
use holdfast_agent::reconcile::{Parts, Reconciler, Rules};
use holdfast_agent::reserve::Reserve;
use holdfast_agent::secrets;
use holdfast_agent::shared::{Accepted, Shared};
use holdfast_plan::{GateRules, Published};
use holdfast_proto::current::UpdateStatus;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::{
    ConfigDigest, Digest, Expected, IndexDigest, ManifestDigest, Pin, Platform, Resolution,
    ResolutionStatus,
};
use holdfast_proto::target::{App, ServiceTarget, TargetState};
use holdfast_proto::time::Timestamp;
use serde_json::Value;
use tempfile::TempDir;

use crate::clock::{BEGINS_MS, VirtualClock};
use crate::invariants;

/// Without a change for so long the loop is at rest: it has looked at everything once more meanwhile.
const AT_REST_MS: u64 = 35_000;
/// Everything converges in less, pulls that are given up five times included.
const LIVES_MS: u64 = 3_600_000;
/// How often a harness looks whether the loop is at rest.
const LOOK_MS: u64 = 5_000;

/// Numbers that a seed decides (splitmix64, public domain).
pub(crate) struct Dice(Cell<u64>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    pub(crate) fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `most`.
    pub(crate) fn below(&self, most: usize) -> usize {
        usize::try_from(self.next() % most as u64).unwrap()
    }

    pub(crate) fn one_in(&self, most: usize) -> bool {
        self.below(most) == 0
    }
}

impl Randomness for Dice {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next().to_le_bytes());
        bytes[8..].copy_from_slice(&self.next().to_le_bytes());
        bytes
    }
}

/// An image that a test deploys.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    pub(crate) name: String,
    pub(crate) behaviour: Behaviour,
}

impl Release {
    fn of(name: &str, behaviour: Behaviour) -> Self {
        Self {
            name: name.to_owned(),
            behaviour,
        }
    }

    pub(crate) fn healthy(name: &str) -> Self {
        let check = Some(Check::HealthyAfter(700));
        Self::of(
            name,
            Behaviour {
                check,
                ..Behaviour::default()
            },
        )
    }

    pub(crate) fn unchecked(name: &str) -> Self {
        Self::of(name, Behaviour::default())
    }

    pub(crate) fn never_healthy(name: &str) -> Self {
        let check = Some(Check::UnhealthyAfter(900));
        Self::of(
            name,
            Behaviour {
                check,
                ..Behaviour::default()
            },
        )
    }

    pub(crate) fn crash_loop(name: &str) -> Self {
        let exits = Some((300, 3));
        Self::of(
            name,
            Behaviour {
                exits,
                ..Behaviour::default()
            },
        )
    }

    pub(crate) fn broken(name: &str) -> Self {
        let broken_entrypoint = true;
        Self::of(
            name,
            Behaviour {
                broken_entrypoint,
                ..Behaviour::default()
            },
        )
    }

    pub(crate) fn stubborn(name: &str) -> Self {
        let ignores_sigterm = true;
        Self::of(
            name,
            Behaviour {
                ignores_sigterm,
                ..Behaviour::default()
            },
        )
    }

    pub(crate) fn config(&self) -> ConfigDigest {
        ConfigDigest(Digest::of(format!("config of {}", self.name).as_bytes()))
    }

    fn index(&self) -> IndexDigest {
        IndexDigest(Digest::of(format!("index of {}", self.name).as_bytes()))
    }

    pub(crate) fn pinned(&self) -> String {
        format!("registry.test/{}@{}", self.name, self.index().0)
    }

    /// A service of the target that runs it; `spec` as Compose says it.
    pub(crate) fn service(&self, service: &str, spec: &Value) -> ServiceTarget {
        let reference = format!("registry.test/{}:1", self.name);
        let platform = Platform::new("linux", "amd64", None);
        let mut config: holdfast_proto::spec::ServiceSpec =
            serde_json::from_value(spec.clone()).unwrap();
        config.image = Some(self.pinned());
        ServiceTarget {
            service_id: serde_json::from_value(serde_json::json!(service.len())).unwrap(),
            service_name: service.parse().unwrap(),
            image_name: self.pinned(),
            config,
            pin: Some(Pin {
                registry: "registry.test".to_owned(),
                repository: self.name.clone(),
                reference: reference.parse().unwrap(),
                index_digest: Some(self.index()),
                expected: Some(Expected {
                    manifest_digest: ManifestDigest(Digest::of(self.name.as_bytes())),
                    config_digest: self.config(),
                    size_bytes: 1,
                }),
                platform: Some(platform),
                resolved_at: None,
                resolution: Resolution {
                    status: ResolutionStatus::Resolved,
                    at: Timestamp::from_millis(BEGINS_MS),
                    error: None,
                    stale_since: None,
                },
                pull_login: false,
            }),
        }
    }

    pub(crate) fn remote(&self) -> Remote {
        Remote {
            id: self.config().0.to_string(),
            platform: Platform::new("linux", "amd64", None),
            behaviour: self.behaviour.clone(),
            layer: self.name.clone(),
            pull_ms: 400,
            fault: PullFault::None,
        }
    }
}

/// How one life of the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The loop has nothing to do any more.
    AtRest,
    /// The agent died.
    Died,
    /// It never came to rest.
    Restless,
}

/// What a container is, without what differs between two ways to the same end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Remains {
    pub(crate) service: String,
    pub(crate) is_sandbox: bool,
    pub(crate) image: String,
    pub(crate) state: String,
    pub(crate) restart: String,
    pub(crate) shares: Option<String>,
    pub(crate) networks: BTreeMap<String, BTreeSet<String>>,
    pub(crate) published: BTreeSet<Published>,
}

pub(crate) struct Device {
    pub(crate) engine: FakeEngine<VirtualClock>,
    pub(crate) clock: VirtualClock,
    pub(crate) id: DeviceId,
    pub(crate) violations: Rc<RefCell<Vec<String>>>,
    pub(crate) last: RefCell<Option<Rc<holdfast_agent::shared::View>>>,
    wanted: invariants::Wanted,
    target: RefCell<TargetState>,
    journal: RefCell<Rc<Journal>>,
    folder: RefCell<TempDir>,
    seed: u64,
    lives: Cell<u64>,
}

impl Device {
    pub(crate) fn new(seed: u64) -> Self {
        let clock = VirtualClock::start();
        let folder = in_memory();
        let id: DeviceId = "3f0e6f0a-5f5e-4f36-9c2f-0d6f7d1f1d11".parse().unwrap();
        let engine = FakeEngine::new(clock, seed);
        let violations = Rc::new(RefCell::new(Vec::new()));
        let wanted = invariants::Wanted::default();
        engine.observe(invariants::checks(id, wanted.clone(), violations.clone()));
        Self {
            engine,
            clock,
            id,
            violations,
            last: RefCell::new(None),
            wanted,
            target: RefCell::new(TargetState::empty(id)),
            journal: RefCell::new(Rc::new(Journal::open(folder.path()).unwrap().journal)),
            folder: RefCell::new(folder),
            seed,
            lives: Cell::new(0),
        }
    }

    /// Accepts a new target.
    pub(crate) fn set(&self, services: Vec<ServiceTarget>) {
        let names = services
            .iter()
            .map(|service| service.service_name.to_string());
        *self.wanted.borrow_mut() = names.collect();
        let mut target = self.target.borrow_mut();
        target.generation += 1;
        let app = App {
            app_id: "1".parse().unwrap(),
            app_name: "app".to_owned(),
            services,
        };
        target.apps = BTreeMap::from([("1".parse().unwrap(), app)]);
    }

    pub(crate) fn target(&self) -> TargetState {
        self.target.borrow().clone()
    }

    /// Opens the journal again, as a new process does.
    pub(crate) fn reopen_journal(&self) {
        let opened = Journal::open(self.folder.borrow().path()).unwrap();
        *self.journal.borrow_mut() = Rc::new(opened.journal);
    }

    /// Deletes the journal, as a person or a broken disk does.
    pub(crate) fn lose_journal(&self) {
        *self.folder.borrow_mut() = in_memory();
        self.reopen_journal();
    }

    /// Lives until the loop is at rest or the agent dies, which tests let it do at an engine call.
    pub(crate) async fn live(&self) -> End {
        let lives = self.lives.replace(self.lives.get() + 1);
        let random = Dice::new(self.seed.wrapping_mul(31).wrapping_add(lives));
        let journal = Rc::clone(&self.journal.borrow());
        let shared = Shared::new(Some(Accepted {
            target: self.target(),
            etag: None,
        }));
        let notifier = Notifier::silent();
        let policy = Policy::unrestricted();
        let state = self.folder.borrow().path().to_owned();
        let updates = UpdateSettings {
            windows: Vec::new(),
            lock_dir: state.join("locks"),
        };
        let permission = Permission::new(&updates, Orders::load(&state));
        let files = secrets::Place {
            runtime_dir: state.join("run"),
            on_disk: true,
        };
        // No bytes: the journal's folder is in memory.
        let reserve = Reserve::of(self.folder.borrow().path(), 0);
        let reconciler = Reconciler::new(Parts {
            engine: &self.engine,
            clock: &self.clock,
            random: &random,
            journal: &journal,
            shared: &shared,
            notifier: &notifier,
            device: self.id,
            permission: &permission,
            policy: &policy,
            files: &files,
            reserve: &reserve,
            logins: &NoLogins,
            transport: None,
            selfupdate: None,
            rules: Rules {
                gate: GateRules {
                    stable_ms: 2_000,
                    healthy_timeout_ms: 5_000,
                    soak_ms: 1_000,
                    max_attempts: 3,
                    max_interruptions: 10,
                },
                no_progress_ms: 10_000,
            },
            claim: &|_| Ok(()),
        });
        let mut reconciler = reconciler.unwrap();
        let end = tokio::select! {
            biased;
            () = self.engine.died.notified() => End::Died,
            _ = reconciler.run(std::future::pending()) => End::Restless,
            () = self.watch(&shared) => End::Restless,
            end = self.rest(&shared) => end,
        };
        *self.last.borrow_mut() = Some(shared.view());
        end
    }

    /// As the agent does: events wake the loop, and their end makes it look.
    async fn watch(&self, shared: &Shared) {
        loop {
            let nudge = || shared.reconcile.notify_one();
            let _ = self.engine.watch(&self.id, nudge).await;
            shared.lose_sight();
            self.clock.sleep_ms(500).await;
        }
    }

    async fn rest(&self, shared: &Shared) -> End {
        let begun_ms = self.clock.monotonic_ms();
        let (mut changes, mut since_ms) = (self.engine.changes(), begun_ms);
        loop {
            self.clock.sleep_ms(LOOK_MS).await;
            let now_ms = self.clock.monotonic_ms();
            if now_ms - begun_ms > LIVES_MS {
                return End::Restless;
            }
            let view = shared.view();
            let waits = match view.status {
                UpdateStatus::Converged => false,
                UpdateStatus::Holding => {
                    let lasts = ["rejected", "waiting", "network_away"];
                    view.holds
                        .iter()
                        .any(|hold| !lasts.contains(&hold.code.as_str()))
                }
                UpdateStatus::Applying
                | UpdateStatus::EngineUnreachable
                | UpdateStatus::NoTarget => true,
            };
            if self.engine.changes() != changes || waits {
                (changes, since_ms) = (self.engine.changes(), now_ms);
            } else if now_ms - since_ms > AT_REST_MS {
                return End::AtRest;
            }
        }
    }

    /// What is left of this device's containers, in an order of its own.
    pub(crate) fn remains(&self) -> BTreeSet<Remains> {
        let all = self.engine.look();
        let own = |label: &str, found: &EngineContainer| {
            found.labels.get(label).cloned().unwrap_or_default()
        };
        let id = self.id.to_string();
        let ours = all.iter().filter(|found| own(labels::DEVICE, found) == id);
        ours.map(|found| {
            let lender = found.shares.as_ref().map(|id| {
                let lender = all.iter().find(|other| other.id == *id);
                lender.map_or("gone".to_owned(), |lender| own(labels::SERVICE, lender))
            });
            let networks = found.networks.iter();
            Remains {
                service: own(labels::SERVICE, found),
                is_sandbox: own(labels::ROLE, found) == labels::SANDBOX_ROLE,
                image: found.image_id.map(|id| id.to_string()).unwrap_or_default(),
                state: found.state.word().to_owned(),
                restart: found.restart.to_string(),
                shares: lender,
                networks: networks
                    .map(|(name, attached)| (name.clone(), attached.aliases.clone()))
                    .collect(),
                published: found.published.clone(),
            }
        })
        .collect()
    }

    /// The last calls and what the loop said last, for a failed test.
    pub(crate) fn story(&self) -> String {
        let calls = self.engine.calls();
        let changing = calls.iter().enumerate();
        let changing = changing.filter(|(_, call)| changes(call.operation));
        let mut lines: Vec<String> = changing
            .map(|(number, call)| {
                let subject = short(&call.subject);
                format!("{:5} {:?} {subject}", number + 1, call.operation)
            })
            .collect();
        // A loop that turns for ever tells nothing new.
        lines.truncate(150);
        let view = self.last.borrow();
        let said = view
            .as_ref()
            .map(|view| format!("{:?} {:?} {:#?}", view.status, view.steps, view.holds));
        let containers: Vec<String> = self.engine.look().iter().map(describe).collect();
        format!(
            "changing calls:\n{}\ncontainers:\n{}\nthe loop said: {}",
            lines.join("\n"),
            containers.join("\n"),
            said.unwrap_or_default()
        )
    }
}

/// What tells the fake's ids apart.
pub(crate) fn short(id: &str) -> &str {
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id {
        id[..12].trim_start_matches('0')
    } else {
        id
    }
}

/// A folder in memory where there is such a place: the tests ask for thousands of commits.
fn in_memory() -> TempDir {
    let shm = std::path::Path::new("/dev/shm");
    let folder = if shm.is_dir() {
        TempDir::new_in(shm)
    } else {
        TempDir::new()
    };
    folder.unwrap()
}

fn describe(found: &EngineContainer) -> String {
    format!(
        "{} {} {:?} {} health {:?} shares {:?} networks {:?} error {:?}",
        short(&found.id),
        found.name,
        found.state,
        found.restart,
        found.health,
        found.shares.as_deref().map(short),
        found.networks.keys(),
        found.start_error,
    )
}
