//! Owns the running agent: takes the locks, opens the memory, starts the loops side by side.
//!
//! One thread, one task: the loops share plain memory and are dropped together at the end.

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_plan::{GateRules, ZonedWindow};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::{Clock, Randomness, SystemClock, SystemRandomness};
use crate::config::{FetchBy, PeerSettings, PullSettings, Settings};
use crate::control::client::{Client, ClientError, Origin};
use crate::control::poll::{self, Poller};
use crate::control::pull_login::ApiLogins;
use crate::control::report::Reporter;
use crate::engine::docker::DockerEngine;
use crate::engine::{Engine, EngineInfo};
use crate::enrolment::{Enrolment, EnrolmentError, make_state_folder};
use crate::fault::chain;
use crate::fetch::allowance::{Allowance, Allowed};
use crate::fetch::peer::{Peer, PeerKey};
use crate::fetch::registries::Told;
use crate::fetch::room::Room;
use crate::fetch::share::Share;
use crate::fetch::source::BlobSource;
use crate::fetch::spool::Spool;
use crate::fetch::transport::Transport;
use crate::journal::{Journal, JournalError, Opened};
use crate::local_api::LocalApi;
use crate::lock::{DeviceLock, FolderLock, LockError};
use crate::notify::Notifier;
use crate::orders::Orders;
use crate::permission::Permission;
use crate::policy::Policy;
use crate::reconcile::{Parts, Reconciler, Rules};
use crate::reserve::Reserve;
use crate::retry::Backoff;
use crate::secrets;
use crate::selfupdate::SelfUpdate;
use crate::selfupdate::launcher::Launched;
use crate::shared::{FETCHED_BY_ENGINE, JOURNAL_UNWRITABLE, Shared};
use crate::zones::zone;

/// How often the agent may die over one spec before it gives that spec up (fault table, A03).
pub const MAX_ATTEMPTS: u32 = 3;
/// How often the engine may end a trial of one spec. Generous: an engine that is being repaired or
/// updated says nothing of the release.
pub const MAX_INTERRUPTIONS: u32 = 10;
/// An event stream that ended is opened again from half a second up to five seconds later.
const WATCH_MIN_MS: u64 = 500;
const WATCH_MAX_MS: u64 = 5_000;
/// A journal that could not be opened is tried again so often: a disk is mended by hand.
const JOURNAL_AGAIN_MS: u64 = 10_000;
/// Characters of a key that nobody guesses.
const MIN_PEER_KEY: usize = 32;
/// How many bytes came today, below the state folder.
const USED: &str = "used-today.json";
/// Where bytes of images are while they come, below the state folder.
const SPOOL: &str = "spool";
/// Calls that hang must not keep a stopped agent alive: the loops get this long to end a step.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(85);

/// The agent could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another agent is at work.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The device is not enrolled, or its enrolment is unreadable.
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    /// The memory on disk cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The connection to the server cannot be set up.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The enrolment names no server that can be used.
    #[error("the enrolment's server address cannot be used: {detail}; enrol again")]
    Server {
        /// Why.
        detail: String,
    },
    /// The process cannot hear signals.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

/// Why the loops ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Somebody asked for it.
    Asked,
    /// The journal on the disk can, or must, be opened again.
    ToOpenTheJournal,
    /// Another agent is to run in the place of this one.
    ToMakePlace,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// Somebody asked for it.
    ToItsEnd,
    /// The launcher is to choose again.
    ToMakePlace,
}

/// Runs the agent until SIGTERM or SIGINT, or until another one is to run; containers keep running.
pub async fn run(
    settings: &Settings,
    policy: &Policy,
    launched: &Launched,
) -> Result<Ran, RunError> {
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = hidden {
        tracing::warn!(error = %error, "what crashes is dumped, logins and all");
    }
    make_state_folder(&settings.state_dir)?;
    let _folder = FolderLock::take(&settings.state_dir)?;
    let clock = SystemClock::start();
    let keys = &settings.update.keys;
    let selfupdate = SelfUpdate::open(&settings.state_dir, launched, keys, clock.now());
    loop {
        match Box::pin(work(settings, policy, (&selfupdate, clock))).await? {
            Ended::ToOpenTheJournal => tracing::info!("the journal is opened again"),
            Ended::ToMakePlace => {
                tracing::info!("this agent makes place for another one; containers stay");
                return Ok(Ran::ToMakePlace);
            }
            Ended::Asked => {
                selfupdate.end_trial_in_good_order();
                return Ok(Ran::ToItsEnd);
            }
        }
    }
}

/// Opens the journal and reads it once. A device whose disk fails goes on with one in memory: it changes
/// nothing then, and says so in its reports.
fn open_journal(folder: &Path) -> Result<Opened, JournalError> {
    let opened = Journal::open(folder).and_then(|opened| {
        opened.journal.target()?;
        opened.journal.histories()?;
        Ok(opened)
    });
    match opened {
        // Another agent's memory is whole: not to be worked without, and not this one's to replace.
        Ok(_) | Err(JournalError::Newer { .. }) => opened,
        Err(error) => {
            tracing::error!(
                error = %chain(&error),
                "nothing will be changed: the journal on the disk cannot be used"
            );
            Ok(Opened {
                journal: Journal::in_memory(&error)?,
                moved_aside: None,
            })
        }
    }
}

/// Waits until the journal on the disk should be opened again: it could not be and now can, or it was
/// damaged while it was in use.
async fn journal_again<C: Clock>(folder: &Path, journal: &Journal, clock: &C) {
    loop {
        clock.sleep_ms(JOURNAL_AGAIN_MS).await;
        let can_now = || Journal::open(folder).is_ok_and(|opened| opened.journal.target().is_ok());
        if journal.was_damaged() || (journal.lacks_a_file().is_some() && can_now()) {
            return;
        }
    }
}

async fn work(
    settings: &Settings,
    policy: &Policy,
    (selfupdate, clock): (&SelfUpdate, SystemClock),
) -> Result<Ended, RunError> {
    let enrolment = Enrolment::load(&settings.state_dir)?;
    let opened = open_journal(&settings.state_dir)?;
    let journal = opened.journal;
    let shared = Shared::new(poll::stored(&journal, &enrolment.uuid)?);
    if let Some(why) = journal.lacks_a_file() {
        shared.notice(JOURNAL_UNWRITABLE, why);
    }
    if let Some(aside) = opened.moved_aside {
        let detail = format!(
            "the journal was damaged, moved to {} and begun anew; containers are known by their labels",
            aside.display()
        );
        tracing::error!("{detail}");
        shared.notice("journal_rebuilt", &detail);
    }
    let client = client(settings, &enrolment)?;
    let random = SystemRandomness;
    if let Some(why) = selfupdate.complaint() {
        tracing::error!("{why}");
        shared.notice("agent_versions", why);
    }
    let notifier = Notifier::from_env();
    let engine = DockerEngine::new(
        &settings.docker.socket,
        &settings.runtime_dir,
        policy.clone(),
    );
    let files = secrets::Place {
        runtime_dir: settings.runtime_dir.clone(),
        on_disk: settings.secrets_on_disk,
    };
    let reserve = Reserve::of(&settings.state_dir, settings.disk.reserve_bytes());
    let claimed = RefCell::new(None);
    let claim = |info: &EngineInfo| {
        let mut claimed = claimed.borrow_mut();
        if claimed.is_none() {
            *claimed = Some(DeviceLock::take(&enrolment.uuid, &info.id)?);
        }
        Ok(())
    };
    let permission = Permission::new(&settings.updates, Orders::load(&settings.state_dir));
    let local_api = LocalApi {
        socket: &settings.local_api.socket,
        enrolment: &enrolment,
        journal: &journal,
        shared: &shared,
        permission: &permission,
        clock: &clock,
        selfupdate: Some(selfupdate),
    };
    let logins = ApiLogins::new(&client, &enrolment, &clock);
    let registries = Told {
        engine: &engine,
        settings: &settings.pull,
    };
    let spool = spool(settings, &shared);
    let tell_pulls = |pulls| shared.note_pulls(pulls, clock.monotonic_ms());
    let key = peer_key(&settings.peers);
    let neighbours = neighbours(&settings.peers, key.as_ref());
    let transport = spool.as_ref().map(|spool| Transport {
        registries: &registries,
        spool,
        neighbours: &neighbours,
        keeps: settings.peers.listen.is_some(),
        allowance: RefCell::new(Allowance::open(
            allowed(&settings.pull),
            &settings.state_dir.join(USED),
        )),
        clock: &clock,
        tell: &tell_pulls,
        room: Room::new(neighbours.is_empty()),
    });
    let share = settings.peers.listen.zip(key.as_ref());
    let share = share
        .zip(transport.as_ref())
        .map(|((address, key), transport)| Share {
            address,
            key,
            spool: transport.spool,
            room: &transport.room,
            clock: &clock,
        });
    let mut reconciler = Reconciler::new(Parts {
        engine: &engine,
        clock: &clock,
        random: &random,
        journal: &journal,
        shared: &shared,
        notifier: &notifier,
        device: enrolment.uuid,
        permission: &permission,
        policy,
        files: &files,
        reserve: &reserve,
        logins: &logins,
        transport: transport.as_ref(),
        selfupdate: Some(selfupdate),
        rules: rules(settings),
        claim: &claim,
    })?;
    let poller = Poller {
        client: &client,
        enrolment: &enrolment,
        journal: &journal,
        shared: &shared,
        clock: &clock,
        random: &random,
        interval_ms: settings
            .poll
            .interval_seconds
            .map(|seconds| 1_000 * seconds),
        in_a_hurry: selfupdate.is_on_trial(),
    };
    let reporter = Reporter {
        client: &client,
        enrolment: &enrolment,
        journal: &journal,
        shared: &shared,
        clock: &clock,
        random: &random,
        heartbeat_ms: 1_000 * settings.report.heartbeat_seconds,
    };
    tracing::info!(
        device.id = %enrolment.uuid, server = %client.origin(), version = env!("CARGO_PKG_VERSION"),
        place = selfupdate.status().place.word(), on_trial = selfupdate.is_on_trial(),
        "the agent runs"
    );
    let ended = tokio::sync::Notify::new();
    let mut stop = Signals::listen()?;
    notifier.ready();
    tokio::select! {
        outcome = reconciler.run(ended.notified()) => outcome?,
        () = selfupdate.prove(&shared, &clock, &reserve) => {}
        () = poller.run() => {}
        () = reporter.run() => {}
        () = local_api.run() => {}
        () = watch(&engine, &enrolment, &shared, &clock, &random) => {}
        never = if_any(transport.as_ref().map(Transport::run)) => match never {},
        never = if_any(share.as_ref().map(Share::run)) => match never {},
        () = journal_again(&settings.state_dir, &journal, &clock) => {
            return Ok(Ended::ToOpenTheJournal);
        }
        () = async {
            let name = stop.next().await;
            tracing::info!("{name} received: the running step is finished, containers stay");
            notifier.stopping();
            ended.notify_one();
            tokio::time::sleep(SHUTDOWN_LIMIT).await;
        } => tracing::warn!("a step did not end in time; it is taken up at the next start"),
    }
    if selfupdate.makes_place() {
        return Ok(Ended::ToMakePlace);
    }
    tracing::info!("the agent ended");
    Ok(Ended::Asked)
}

struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, RunError> {
        let listen = |kind| signal(kind).map_err(RunError::Signals);
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// The gate and the bounds that the settings ask for.
pub fn rules(settings: &Settings) -> Rules {
    Rules {
        gate: GateRules {
            stable_ms: 1_000 * settings.gate.stable_seconds,
            healthy_timeout_ms: 1_000 * settings.gate.healthy_timeout_seconds,
            soak_ms: 1_000 * settings.gate.soak_seconds,
            max_attempts: MAX_ATTEMPTS,
            max_interruptions: MAX_INTERRUPTIONS,
        },
        no_progress_ms: 1_000 * settings.pull.no_progress_seconds,
    }
}

async fn if_any(work: Option<impl Future<Output = Infallible>>) -> Infallible {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// The key that neighbours share. Without it the agent goes on alone.
fn peer_key(settings: &PeerSettings) -> Option<PeerKey> {
    let file = settings.key_file.as_ref()?;
    let read = std::fs::read_to_string(file).map_err(|error| error.to_string());
    let read = read.and_then(|text| match text.trim() {
        short if short.len() < MIN_PEER_KEY => {
            Err(format!("it is shorter than {MIN_PEER_KEY} characters"))
        }
        key => Ok(PeerKey::new(key.as_bytes())),
    });
    read.inspect_err(|why| {
        tracing::error!(file = %file.display(), error = %why, "neighbours are left alone: no key");
    })
    .ok()
}

fn neighbours(settings: &PeerSettings, key: Option<&PeerKey>) -> Vec<Box<dyn BlobSource>> {
    let Some(key) = key else {
        return Vec::new();
    };
    let peer = |address: &String| match Peer::new(address, key.clone()) {
        Ok(peer) => Some(Box::new(peer) as Box<dyn BlobSource>),
        Err(error) => {
            tracing::error!(peer = %address, error = %chain(&error), "a neighbour cannot be asked");
            None
        }
    };
    settings.ask.iter().filter_map(peer).collect()
}

/// How much of the line images may use. The settings were checked: every zone is known.
fn allowed(settings: &PullSettings) -> Allowed {
    let free = settings.free_windows.iter().filter_map(|window| {
        Some(ZonedWindow {
            zone: zone(&window.timezone)?,
            window: window.clone(),
        })
    });
    Allowed {
        per_second: settings.most_bytes_per_second,
        per_day: settings
            .most_mb_per_day
            .map(|mb| mb.saturating_mul(1_000_000)),
        zone: settings.timezone.as_ref().and_then(zone),
        free: free.collect(),
    }
}

/// The folder of images on their way, if the agent is to bring them.
pub fn spool_folder(settings: &Settings) -> Option<PathBuf> {
    match settings.pull.fetch {
        FetchBy::Engine => None,
        FetchBy::Agent => Some(settings.state_dir.join(SPOOL)),
    }
}

/// None where the engine is to fetch by itself, or has to.
fn spool(settings: &Settings, shared: &Shared) -> Option<Spool> {
    let folder = spool_folder(settings)?;
    let opened = Spool::open(&folder, settings.pull.spool_mb.saturating_mul(1_000_000));
    opened
        .inspect_err(|error| {
            let why = chain(error);
            tracing::warn!(error = %why, "the engine fetches images by itself");
            shared.notice(FETCHED_BY_ENGINE, &why);
        })
        .ok()
}

fn client(settings: &Settings, enrolment: &Enrolment) -> Result<Client, RunError> {
    let origin = Origin::parse(&enrolment.api_url).map_err(|detail| RunError::Server { detail })?;
    if let Some(configured) = settings.api.url.as_ref().filter(|url| **url != origin) {
        tracing::warn!(
            server = %origin, configured = %configured,
            "the configuration names another server than the one that enrolled this device; \
             its token is sent to that one only: enrol again to move"
        );
    }
    if origin.is_readable_on_the_way() {
        tracing::warn!(server = %origin, "the connection is not encrypted: use https");
    }
    Ok(Client::new(origin, settings.api.ca_file.as_deref())?)
}

/// Wakes the reconcile loop on container events; a stream that ends is opened again.
async fn watch<E: Engine, C: Clock, R: Randomness>(
    engine: &E,
    enrolment: &Enrolment,
    shared: &Shared,
    clock: &C,
    random: &R,
) {
    let mut backoff = Backoff::new(WATCH_MIN_MS, WATCH_MAX_MS, random.number());
    loop {
        let begun_ms = clock.monotonic_ms();
        let nudge = || shared.reconcile.notify_one();
        if let Err(error) = engine.watch(&enrolment.uuid, nudge).await {
            tracing::debug!(error = %chain(&error), "the engine's events ended");
        }
        // Whatever happened while nobody listened is seen by looking.
        shared.lose_sight();
        if clock.monotonic_ms().saturating_sub(begun_ms) > WATCH_MAX_MS {
            backoff.reset();
        }
        clock.sleep_ms(backoff.next_ms()).await;
    }
}
