//! Owns the loop: observe → plan → journal the intent → run one step → journal the outcome → look again.
//!
//! Level-triggered: what woke it says *that* something changed, never *what*. Refuses to change
//! anything that the journal could not write down first.

mod failures;
mod pulls;
mod view;

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use holdfast_plan::{
    Closed, GateRules, History, Observed, Plan, RunningAgent, ServiceHistory, Situation, Step,
    plan as decide,
};
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::target::TargetState;
use tracing::Instrument as _;

use crate::clock::{Clock, Randomness};
use crate::disk;
use crate::engine::{Engine, EngineError, EngineInfo, guard};
use crate::execute::Execution;
use crate::execute::pull::{PullError, PullLogins};
use crate::fault::chain;
use crate::fetch::transport::Transport;
use crate::journal::{Change, Intent, IntentId, Journal, JournalError};
use crate::lock::LockError;
use crate::notify::Notifier;
use crate::observe::{Memory, Subject, observe, wanted_images};
use crate::permission::Permission;
use crate::policy::Policy;
use crate::probe::Prober;
use crate::reserve::Reserve;
use crate::retry::Backoff;
use crate::secrets;
use crate::selfupdate::SelfUpdate;
use crate::shared::{Accepted, FETCHED_BY_ENGINE, JOURNAL_UNWRITABLE, Shared};

use failures::Failures;
use pulls::Pulls;

pub(crate) use view::{Sight, of as view};

/// A full look at the engine at least this often: events may be lost, the list is the truth.
const FULL_LOOK_MS: u64 = 30_000;
/// And where all is as it should be: then the engine tells of what changes, and whoever loses its events looks at once.
const QUIET_LOOK_MS: u64 = 60_000;
/// An engine that is away is asked again from half a second up to five seconds apart: containers
/// must be back within ten seconds of its return.
const AWAY_MIN_MS: u64 = 500;
const AWAY_MAX_MS: u64 = 5_000;
/// The same step so often in a row, each time with success, changes nothing: it is slowed down.
const MAX_REPEATS: u32 = 5;

/// Notice: the reserve was given up and could not be made again yet.
const RESERVE_USED: &str = "reserve_used";

/// How the loop behaves.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How new containers are judged.
    pub gate: GateRules,
    /// When a pull is given up.
    pub no_progress_ms: u64,
}

/// What the loop works with.
pub struct Parts<'a, E, C, R> {
    /// The engine.
    pub engine: &'a E,
    /// Time.
    pub clock: &'a C,
    /// Randomness.
    pub random: &'a R,
    /// Memory on disk.
    pub journal: &'a Journal,
    /// What other loops see.
    pub shared: &'a Shared,
    /// systemd.
    pub notifier: &'a Notifier,
    /// The device.
    pub device: DeviceId,
    /// When updates may begin.
    pub permission: &'a Permission,
    /// What the device's owner allows.
    pub policy: &'a Policy,
    /// Where the files of secrets and configs are.
    pub files: &'a secrets::Place,
    /// What is given up on a full disk.
    pub reserve: &'a Reserve,
    /// Logins for pulls.
    pub logins: &'a dyn PullLogins,
    /// Brings images into the engine; without it the engine fetches them by itself.
    pub transport: Option<&'a Transport<'a, C>>,
    /// The agent's own programs.
    pub selfupdate: Option<&'a SelfUpdate>,
    /// How it behaves.
    pub rules: Rules,
    /// Called when the engine answers, before anything is looked at: another agent may work there.
    pub claim: &'a dyn Fn(&EngineInfo) -> Result<(), LockError>,
}

/// What woke the loop, for the log.
#[derive(Clone, Copy, Debug)]
enum Reason {
    Start,
    Step,
    Signal,
    Timer,
    Pull,
    Probe,
}

impl Reason {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Step => "step",
            Self::Signal => "signal",
            Self::Timer => "timer",
            Self::Pull => "pull",
            Self::Probe => "probe",
        }
    }
}

/// What to do after one pass.
enum Next {
    /// Give up: another agent works for this device.
    Stop(LockError),
    /// Make place for another agent.
    MakePlace,
    /// Look again at once: something was changed.
    Again,
    /// Wait for a signal, at most so long.
    WaitMs(u64),
}

/// The loop with its memory.
pub struct Reconciler<'a, E, C, R> {
    parts: Parts<'a, E, C, R>,
    info: Option<EngineInfo>,
    away: Backoff,
    histories: BTreeMap<ServiceKey, ServiceHistory>,
    /// Images that the agent pulled.
    pulled: BTreeMap<String, ServiceKey>,
    failures: Failures,
    memory: Memory,
    prober: Prober<'a, E, C>,
    /// Whether the journal knows which containers are the agent's own.
    knows_its_own: bool,
    pulls: Pulls<'a>,
    repeated: (String, u32),
    target: Option<Rc<Accepted>>,
    /// What the device's policy refuses of that target.
    refused: BTreeMap<ServiceKey, String>,
}

impl<'a, E: Engine, C: Clock, R: Randomness> Reconciler<'a, E, C, R> {
    /// Takes up what the journal holds; intents of an agent that died are counted.
    pub fn new(parts: Parts<'a, E, C, R>) -> Result<Self, JournalError> {
        // A disk that cannot be written now is no reason not to look after what runs.
        let dead = parts
            .journal
            .take_dead_intents()
            .or_else(|error| match error {
                JournalError::Write(_) => {
                    tell_unwritable(parts.shared, &error);
                    Ok(Vec::new())
                }
                error => Err(error),
            });
        for dead in dead? {
            tracing::warn!(
                service.name = %dead.key, step = %dead.step,
                "the agent died in the middle of a step; it goes on from what the engine shows"
            );
        }
        let histories = parts.journal.histories()?;
        Ok(Self {
            info: None,
            away: Backoff::new(AWAY_MIN_MS, AWAY_MAX_MS, parts.random.number()),
            failures: Failures::new(parts.random.number()),
            histories,
            pulled: parts.journal.pulled()?,
            memory: Memory::default(),
            prober: Prober::new(parts.engine, parts.clock),
            knows_its_own: parts.journal.knows_what_was_made()?,
            pulls: Pulls::default(),
            repeated: (String::new(), 0),
            target: None,
            refused: BTreeMap::new(),
            parts,
        })
    }

    /// Reconciles until `shutdown` ends; a step that is running then is finished, a pull is dropped.
    ///
    /// Fails only when another agent works for the same device on the same engine.
    pub async fn run(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), LockError> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut reason = Reason::Start;
        'passes: loop {
            self.parts.notifier.alive();
            let span = tracing::info_span!("reconcile", reason = reason.word());
            let next = self.pass().instrument(span).await;
            // A look at a slow engine and the wait after it must not add up against the watchdog.
            self.parts.notifier.alive();
            let wait_ms = match next {
                Next::Again => 0,
                Next::WaitMs(wait_ms) => wait_ms,
                Next::Stop(error) => return Err(error),
                Next::MakePlace => break,
            };
            let Parts {
                clock,
                shared,
                notifier,
                ..
            } = self.parts;
            let begun_ms = clock.monotonic_ms();
            let pulling = !self.pulls.is_empty();
            reason = loop {
                let waited_ms = clock.monotonic_ms().saturating_sub(begun_ms);
                let left_ms = wait_ms.saturating_sub(waited_ms);
                let alive_ms = notifier.alive_interval_ms().unwrap_or(left_ms);
                tokio::select! {
                    biased;
                    () = &mut shutdown => break 'passes,
                    Some(done) = self.pulls.next(), if pulling => {
                        self.after_pull(done);
                        break Reason::Pull;
                    }
                    () = self.prober.changed() => break Reason::Probe,
                    () = shared.reconcile.notified() => break Reason::Signal,
                    () = clock.sleep_ms(left_ms.min(alive_ms)) => {
                        if left_ms > alive_ms {
                            // The watchdog is fed; there is nothing to look at yet.
                            notifier.alive();
                        } else if wait_ms == 0 {
                            break Reason::Step;
                        } else {
                            break Reason::Timer;
                        }
                    }
                }
            };
        }
        for begun in self.pulls.abort() {
            self.finish(begun.intent, &begun.key, Change::None);
        }
        Ok(())
    }

    /// Looks, decides, and does the first step.
    async fn pass(&mut self) -> Next {
        match self.meet_engine().await {
            Ok(Ok(())) => {}
            Ok(Err(taken)) => return Next::Stop(taken),
            Err(error) => return self.engine_away(&error),
        }
        let Some(accepted) = self
            .parts
            .shared
            .target()
            .filter(|accepted| accepted.target.generation > 0)
        else {
            self.parts.shared.note_look();
            self.publish(view::no_target(self.info.as_ref()));
            return Next::WaitMs(FULL_LOOK_MS);
        };
        if self.target.as_ref() != Some(&accepted) {
            // A new target is a new chance for everything that failed.
            self.give_new_chance();
            let Parts {
                policy,
                device,
                files,
                ..
            } = self.parts;
            let runtime_dir = &files.runtime_dir;
            self.refused = guard::refusals(policy, &device, &accepted.target, runtime_dir);
            self.target = Some(accepted.clone());
        }
        if self.parts.shared.take_hurry() {
            self.failures.forget_outgrown();
            self.give_new_chance();
        }
        let history = self.history();
        let observed = match self.look(&accepted, &history).await {
            Ok(observed) => observed,
            Err(error) => return self.engine_away(&error),
        };
        self.engine_back();
        self.parts.shared.note_look();
        let now = self.parts.clock.now();
        if !self.knows_its_own {
            return self.adopt(&observed);
        }
        let closed = self.closed(&accepted.target);
        let plan = decide(&Situation {
            target: &accepted.target,
            observed: &observed,
            history: &history,
            gate: &self.parts.rules.gate,
            closed: &closed,
            now,
        });
        self.failures.keep_only_of(&plan);
        if plan.is_converged() && !self.parts.shared.is_asking() {
            self.parts.permission.orders().end_force();
        }
        self.publish(view::of(&view::Sight {
            accepted: &accepted,
            observed: &observed,
            histories: &self.histories,
            plan: &plan,
            pulling: !self.pulls.is_empty(),
            info: self.info.as_ref(),
        }));
        if self.parts.selfupdate.is_some_and(SelfUpdate::is_on_trial) {
            // An agent that has not proved itself changes nothing.
            return Next::WaitMs(FULL_LOOK_MS);
        }
        self.give_up_pulls(&accepted.target, &history);
        let begun = self.begin_pulls(&plan, &observed);
        let inline = |step: &&Step| !matches!(step, Step::Pull { .. });
        match plan.steps.iter().find(inline) {
            Some(step) => self.step(step, &accepted, &observed).await,
            None if begun => Next::Again,
            None => {
                self.repeated.1 = 0;
                self.keep_reserve();
                let most_ms = if plan.is_converged() {
                    self.keep_files(&accepted.target);
                    QUIET_LOOK_MS
                } else {
                    FULL_LOOK_MS
                };
                let until = plan.look_again.map(|at| at.since_ms(now).max(0));
                let until = until.and_then(|ms| u64::try_from(ms).ok());
                // One more millisecond: the end itself must lie behind the next look.
                Next::WaitMs(until.map_or(most_ms, |ms| (ms + 1).min(most_ms)))
            }
        }
    }

    async fn meet_engine(&mut self) -> Result<Result<(), LockError>, EngineError> {
        if self.info.is_none() {
            let info = self.parts.engine.describe().await?;
            if let Err(taken) = (self.parts.claim)(&info) {
                return Ok(Err(taken));
            }
            tracing::info!(
                engine.version = %info.version, engine.api_version = %info.api_version,
                engine.store = info.store.word(), platform = %info.platform,
                "the container engine answers"
            );
            self.info = Some(info);
        }
        Ok(Ok(()))
    }

    async fn look(
        &mut self,
        accepted: &Accepted,
        history: &History,
    ) -> Result<Observed, EngineError> {
        let info = self.info.as_ref().ok_or_else(|| EngineError::Nonsense {
            detail: "it was not asked yet".to_owned(),
        })?;
        let probes = self.prober.states();
        let subject = Subject {
            device: &self.parts.device,
            info,
            target: &accepted.target,
            history,
            adopts: !self.knows_its_own,
            probes: &probes,
            refused: &self.refused,
            disk: disk::of_engine(Path::new(&info.root), self.parts.reserve, self.spool()),
            agent: self.agent(),
        };
        if self.parts.shared.take_sight_lost() {
            self.memory.lose_sight();
        }
        let now_ms = self.parts.clock.monotonic_ms();
        let look = observe(self.parts.engine, &subject, &mut self.memory, now_ms).await?;
        self.prober.watch(look.trials);
        Ok(look.observed)
    }

    /// The agent itself, as it is now.
    fn agent(&self) -> RunningAgent {
        let Parts {
            clock,
            shared,
            selfupdate,
            ..
        } = self.parts;
        let (now, now_ms) = (clock.now(), clock.monotonic_ms());
        selfupdate.map_or_else(RunningAgent::default, |agent| {
            agent.running(now, now_ms, shared.hears())
        })
    }

    /// Services that no update may begin of now; also of those that left the target.
    fn closed(&self, target: &TargetState) -> BTreeMap<ServiceKey, Closed> {
        let Parts {
            clock, permission, ..
        } = self.parts;
        let (now, now_ms) = (clock.now(), clock.monotonic_ms());
        permission.closed(target, &self.histories, now, now_ms)
    }

    /// With a new or rebuilt journal: what carries this device's labels is taken up as its own, once.
    fn adopt(&mut self, observed: &Observed) -> Next {
        let containers = observed.containers.iter();
        let containers = containers.map(|found| (&found.key, &found.name, &found.id));
        let sandboxes = observed.sandboxes.iter();
        let sandboxes = sandboxes.map(|found| (&found.key, &found.name, &found.id));
        let mut histories = self.histories.clone();
        let mut count = 0_usize;
        for (key, name, id) in containers.chain(sandboxes) {
            let history = histories.entry(key.clone()).or_default();
            history.made.insert(name.clone(), id.clone());
            count += 1;
        }
        if let Err(error) = self.parts.journal.adopt(&histories) {
            return self.unwritable(&error);
        }
        if count > 0 {
            tracing::info!(
                count,
                "a new journal takes up this device's containers by their labels"
            );
        }
        self.histories = histories;
        self.knows_its_own = true;
        Next::Again
    }

    /// What is remembered, with the failures' times on the wall clock of this moment.
    fn history(&self) -> History {
        let (now, now_ms) = (self.parts.clock.now(), self.parts.clock.monotonic_ms());
        History {
            services: self.histories.clone(),
            pulls: self.failures.pulls(now, now_ms),
            steps: self.failures.steps(now, now_ms),
            images: self.failures.images(now, now_ms),
            outgrown: self.failures.outgrown(now_ms),
            pulled: self.pulled.clone(),
            pulling: self.pulls.images().cloned().collect(),
        }
    }

    /// An engine that is away says nothing of any spec: nothing is judged or undone for it.
    fn engine_away(&mut self, error: &EngineError) -> Next {
        self.info = None;
        self.memory.lose_sight();
        let wait_ms = self.away.next_ms();
        if self.away.failures() == 1 {
            tracing::error!(error = %chain(error), "the container engine does not answer");
        }
        let accepted = self.parts.shared.target();
        self.publish(view::engine_away(
            accepted.as_deref(),
            &self.parts.shared.view(),
        ));
        Next::WaitMs(wait_ms)
    }

    fn give_new_chance(&mut self) {
        self.failures.clear();
        if let Some(transport) = self.parts.transport {
            transport.give_new_chance();
        }
    }

    fn engine_back(&mut self) {
        if self.away.failures() > 0 {
            // What failed while it went away is tried again at once.
            self.failures.clear();
            self.away.reset();
        }
    }

    fn publish(&self, view: crate::shared::View) {
        if view.differs_from(&self.parts.shared.view()) {
            self.parts.notifier.status(&view::sentence(&view));
        }
        self.parts.shared.publish(view);
    }

    /// Does one step: intent on the disk, effect, outcome on the disk.
    async fn step(&mut self, step: &Step, accepted: &Accepted, observed: &Observed) -> Next {
        let key = step.key().clone();
        if let Some(wait) = self.slow_down(step) {
            return wait;
        }
        let Parts {
            engine,
            clock,
            notifier,
            device,
            files,
            ..
        } = self.parts;
        let mut execution = Execution {
            engine,
            device: &device,
            target: &accepted.target,
            observed,
            files,
            history: self.histories.get(&key).cloned().unwrap_or_default(),
            selfupdate: self.parts.selfupdate,
            now: clock.now(),
        };
        let before = execution.before(step);
        let intent = Intent {
            key: key.clone(),
            step: step.to_string(),
            candidate: step.candidate(),
        };
        if !step.begins() && self.parts.reserve.give_up_if_full() {
            self.tell_reserve_used();
        }
        let id = match self.begin(&intent, &before, step.begins()) {
            Ok(id) => id,
            Err(error) => return self.unwritable(&error),
        };
        if let Change::Set(history) = &before {
            execution.history = (**history).clone();
        }
        self.remember(&key, before);
        let begun_ms = clock.monotonic_ms();
        let outcome = {
            let mut work = std::pin::pin!(execution.run(step));
            let mut done = Vec::new();
            let tick_ms = notifier.alive_interval_ms().unwrap_or(FULL_LOOK_MS);
            let outcome = loop {
                let pulling = !self.pulls.is_empty();
                tokio::select! {
                    outcome = &mut work => break outcome,
                    Some(pull) = self.pulls.next(), if pulling => done.push(pull),
                    () = clock.sleep_ms(tick_ms) => notifier.alive(),
                }
            };
            for pull in done {
                self.after_pull(pull);
            }
            outcome
        };
        let duration_ms = clock.monotonic_ms().saturating_sub(begun_ms);
        match outcome {
            Ok(change) => {
                tracing::info!(
                    step = step.code(), service.name = %key.service, app.id = %key.app,
                    generation = accepted.target.generation, duration_ms, "{step}"
                );
                self.failures.step_succeeded(&key, step.code());
                if let Some(name) = step.image_name() {
                    self.failures.image_succeeded(name);
                    self.memory.forget_images();
                }
                if let Step::Start { container, .. } = step {
                    self.memory.began(&container.id);
                }
                self.finish(id, &key, change);
                if self.parts.selfupdate.is_some_and(SelfUpdate::makes_place) {
                    return Next::MakePlace;
                }
            }
            Err(error) => {
                self.repeated.1 = 0;
                let error_text = chain(&error);
                let now_ms = clock.monotonic_ms();
                let attempt = match step.image_name() {
                    // What runs and what is to run depends on no image's name: nothing else waits for it.
                    Some(name) => {
                        let is_used = matches!(error, EngineError::Refused { status: 409, .. });
                        self.failures
                            .image_failed(name, &error_text, is_used, now_ms)
                    }
                    None => self
                        .failures
                        .step_failed(&key, step.code(), &error_text, now_ms),
                };
                tracing::error!(
                    step = step.code(), service.name = %key.service, app.id = %key.app,
                    generation = accepted.target.generation, attempt, duration_ms,
                    error = %error_text, "failed: {step}"
                );
                self.finish(id, &key, Change::None);
                if error.is_engine_away() {
                    self.info = None;
                    self.memory.lose_sight();
                }
            }
        }
        Next::Again
    }

    /// A step that succeeds again and again without effect is treated as one that failed.
    fn slow_down(&mut self, step: &Step) -> Option<Next> {
        let text = step.to_string();
        if self.repeated.0 == text {
            self.repeated.1 += 1;
        } else {
            self.repeated = (text, 0);
        }
        if self.repeated.1 < MAX_REPEATS {
            return None;
        }
        self.repeated.1 = 0;
        let now_ms = self.parts.clock.monotonic_ms();
        let why = "done several times without effect";
        self.failures.step_failed(step.key(), "repeat", why, now_ms);
        tracing::warn!(step = step.code(), "{step}: {why}");
        Some(Next::Again)
    }

    /// Writes an intent down. On a full disk the reserve makes room for it, unless it begins something new.
    fn begin(
        &self,
        intent: &Intent,
        change: &Change,
        begins: bool,
    ) -> Result<IntentId, JournalError> {
        let Parts { journal, clock, .. } = self.parts;
        let first = journal.begin(intent, change, clock.now());
        if first.is_ok() || begins || !self.parts.reserve.give_up() {
            return first;
        }
        self.tell_reserve_used();
        journal.begin(intent, change, clock.now())
    }

    fn tell_reserve_used(&self) {
        let detail = "the disk is full: the agent gave its reserve up to end what it had begun; \
                      make room, then it is put back";
        self.parts.shared.notice(RESERVE_USED, detail);
    }

    /// Makes the reserve, or makes it again, while nothing else is going on.
    fn keep_reserve(&self) {
        if self.pulls.is_empty() && self.parts.reserve.make() {
            self.parts.shared.clear_notice(RESERVE_USED);
        }
    }

    /// Clears away the files of secrets and configs that no spec needs any more. Only when all runs as
    /// the target says: until then a container may be up whose spec is nowhere else.
    fn keep_files(&self, target: &TargetState) {
        let wanted = target
            .services()
            .map(|(key, service)| (key, &service.config));
        let good = self.histories.iter().filter_map(|(key, history)| {
            let good = history.last_good.as_ref()?;
            Some((key.clone(), &good.config))
        });
        let wanted = wanted.chain(good);
        if let Err(error) = secrets::keep_only(&self.parts.files.runtime_dir, wanted) {
            tracing::warn!(error = %error, "files of secrets that nothing needs cannot be cleared away");
        }
    }

    fn unwritable(&mut self, error: &JournalError) -> Next {
        tell_unwritable(self.parts.shared, error);
        Next::WaitMs(AWAY_MAX_MS)
    }

    /// Writes an outcome down. The effect is there already: memory takes it even if the disk does not.
    fn finish(&mut self, intent: IntentId, key: &ServiceKey, change: Change) {
        let Parts {
            journal, reserve, ..
        } = self.parts;
        let mut outcome = journal.finish(intent, key, &change);
        if outcome.is_err() && reserve.give_up() {
            self.tell_reserve_used();
            outcome = journal.finish(intent, key, &change);
        }
        match outcome {
            Ok(()) => self.parts.shared.clear_notice(JOURNAL_UNWRITABLE),
            Err(error) => {
                let detail = chain(&error);
                tracing::error!(error = %detail, "an outcome could not be written down");
                self.parts.shared.notice(JOURNAL_UNWRITABLE, &detail);
            }
        }
        self.remember(key, change);
    }

    fn remember(&mut self, key: &ServiceKey, change: Change) {
        match change {
            Change::None => {}
            Change::Set(history) => {
                self.histories.insert(key.clone(), *history);
            }
            Change::Forget => {
                self.histories.remove(key);
            }
            Change::Own(image) => {
                self.pulled.entry(image).or_insert_with(|| key.clone());
            }
            Change::Disown(image) => {
                self.pulled.remove(&image);
            }
        }
    }

    /// Ends pulls of images that nothing needs any more: the target changed while they ran.
    fn give_up_pulls(&mut self, target: &TargetState, history: &History) {
        let needed = wanted_images(target, history);
        for begun in self.pulls.give_up(|image| needed.contains_key(image)) {
            tracing::info!(
                step = "pull", service.name = %begun.key.service, app.id = %begun.key.app,
                "a pull is given up: nothing needs its image any more"
            );
            self.finish(begun.intent, &begun.key, Change::None);
        }
    }

    fn spool(&self) -> Option<&Path> {
        self.parts
            .transport
            .map(|transport| transport.spool.folder())
    }

    /// Starts the pulls that the plan asks for and that do not run yet; whether one was started.
    fn begin_pulls(&mut self, plan: &Plan, observed: &Observed) -> bool {
        let mut begun = false;
        for step in &plan.steps {
            let asked = pulls::of(step, observed, self.info.as_ref(), &self.parts.rules);
            let Some((mut pull, why)) = asked else {
                continue;
            };
            pull.login = self.is_login_known(&pull.image);
            pull.seed = self.parts.random.number();
            if !self.pulls.has_room_for(&pull.image) {
                continue;
            }
            let intent = Intent {
                key: step.key().clone(),
                step: step.to_string(),
                candidate: None,
            };
            let now = self.parts.clock.now();
            let own = Change::Own(pull.image.clone());
            match self.parts.journal.begin(&intent, &own, now) {
                Ok(id) => {
                    self.remember(&intent.key, own);
                    tracing::info!(
                        step = step.code(), service.name = %intent.key.service,
                        app.id = %intent.key.app, image.digest = %pull.image, "begun: {step}"
                    );
                    let Parts {
                        engine,
                        clock,
                        logins,
                        transport,
                        ..
                    } = self.parts;
                    let key = intent.key;
                    let of = pulls::Begun {
                        intent: id,
                        key,
                        why,
                    };
                    self.pulls
                        .begin(engine, clock, logins, transport, (pull, of));
                    begun = true;
                }
                Err(error) => {
                    self.unwritable(&error);
                    return false;
                }
            }
        }
        begun
    }

    /// Whether the target says that somebody has a login for this image's registry.
    fn is_login_known(&self, image: &str) -> bool {
        let accepted = self.target.iter();
        let mut services = accepted.flat_map(|accepted| accepted.target.services());
        services.any(|(_, service)| {
            service.image_name == image && service.pin.as_ref().is_some_and(|pin| pin.pull_login)
        })
    }

    fn after_pull(&mut self, done: pulls::Done) {
        let Some(pulls::Begun { intent, key, why }) = self.pulls.take(&done.image) else {
            return;
        };
        self.memory.forget_images();
        if let Some(transport) = self.parts.transport {
            match transport.unreached() {
                Some(why) => self.parts.shared.notice(FETCHED_BY_ENGINE, &why),
                None => self.parts.shared.clear_notice(FETCHED_BY_ENGINE),
            }
        }
        match done.outcome {
            Ok(()) => {
                tracing::info!(
                    step = "pull", service.name = %key.service, app.id = %key.app,
                    image.digest = %done.image, "pulled and verified {}", done.image
                );
                self.failures.pull_succeeded(&done.image);
            }
            Err(error) => {
                let text = chain(&error);
                let now_ms = self.parts.clock.monotonic_ms();
                if let PullError::NoSpace {
                    is_too_large: true, ..
                } = &error
                    && let Some(free) = done.free_before
                {
                    self.failures.outgrew(&done.image, free, now_ms);
                }
                let wait_ms = error.wait_ms(self.parts.clock.now()).unwrap_or(0);
                let failed = (text.as_str(), wait_ms);
                let attempt = self.failures.pull_failed(&done.image, why, failed, now_ms);
                tracing::error!(
                    step = "pull", service.name = %key.service, app.id = %key.app,
                    image.digest = %done.image, attempt, error = %text,
                    "a pull failed; what runs goes on"
                );
            }
        }
        self.finish(intent, &key, Change::None);
    }
}

fn tell_unwritable(shared: &Shared, error: &JournalError) {
    let detail = chain(error);
    tracing::error!(error = %detail, "nothing is changed: the journal cannot be written");
    shared.notice(JOURNAL_UNWRITABLE, &detail);
}
