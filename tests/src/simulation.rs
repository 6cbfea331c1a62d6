//! An installation for rollouts: real control APIs on a real database, a fleet of simulated devices, and somebody
//! who looks at the rows all the time and says when an invariant does not hold.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::api::{self, Answer, Api};
use crate::clock::{Stopwatch, unix_millis};
use crate::fleet::shelf::{Shelf, Version};
use crate::fleet::{Fleet, Order};
use crate::invariants::rows::{Rows, Source};
use crate::invariants::{i25_counts, judge};
use crate::postgres::Postgres;
use crate::site::{service, target};
use crate::wall::{Hurry, Wall};

/// Between two looks at the rows: often enough that a batch is seen while it is on its way.
const LOOKS_EVERY: Duration = Duration::from_millis(300);
/// Targets set side by side.
const SETS_AT_ONCE: usize = 8;
/// From a first target to a whole fleet that runs it: 500 reports through one writer.
const SETTLES_WITHIN: Duration = Duration::from_mins(3);
/// Rows change between two looks while reports come in: so often is looked for a quiet moment.
const QUIET_LOOKS: usize = 50;
/// So many of the API's seconds pass in each second, where policies count minutes.
const HURRY: u32 = 6;
/// The image that all devices run.
pub const REPOSITORY: &str = "acme/app";
/// Tag that every version is pushed under.
pub const TAG: &str = "stable";

/// What registries prove themselves with.
const WEBHOOK_SECRET: &str = "a-secret-of-simulated-registries";

/// What an installation should be like.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The fleet.
    pub order: Order,
    /// Control APIs on one database: more than one needs `PostgreSQL`.
    pub replicas: usize,
    /// Whether the database is `PostgreSQL`.
    pub is_postgres: bool,
    /// So many seconds of the APIs' wall clock pass in each second.
    pub hurry: u32,
    /// How far each API's wall clock is off.
    pub skews_ms: Vec<i64>,
}

impl Setting {
    /// One API on `SQLite`, in real time.
    pub fn of(order: Order) -> Self {
        Self {
            order,
            replicas: 1,
            is_postgres: false,
            hurry: 1,
            skews_ms: Vec::new(),
        }
    }

    /// The same, with minutes that are ten seconds long; devices report often enough for such minutes.
    pub fn hurried(mut order: Order) -> Self {
        order.pace.heartbeat = Duration::from_millis(1_500);
        order.pace.wait_s = 1;
        Self {
            hurry: HURRY,
            ..Self::of(order)
        }
    }
}

/// The installation. Its parts end in this order.
#[derive(Debug)]
pub struct Simulation {
    /// The fleet.
    pub fleet: Fleet,
    /// The control APIs.
    pub apis: Vec<Api>,
    /// The registry.
    pub shelf: Shelf,
    /// The clock of the APIs, if it is not everybody's.
    pub wall: Option<Arc<Wall>>,
    source: Source,
    skew_ms: i64,
    seen: Mutex<Seen>,
    _hurry: Option<Hurry>,
    _postgres: Option<Postgres>,
}

#[derive(Debug, Default)]
struct Seen {
    rows: Option<Rows>,
    retried: BTreeSet<i64>,
    /// Rollouts before this one are not looked at any more.
    first: i64,
}

impl Simulation {
    /// Starts everything; devices have no target yet.
    ///
    /// # Errors
    /// When a part cannot be started.
    pub async fn start(setting: Setting) -> anyhow::Result<Self> {
        let shelf = Shelf::start().await?;
        let postgres = if setting.is_postgres {
            Some(Postgres::start().await?)
        } else {
            None
        };
        let database = match &postgres {
            Some(postgres) => Some(postgres.database().await?),
            None => None,
        };
        let wall = if setting.hurry > 1 || !setting.skews_ms.is_empty() {
            Some(Arc::new(Wall::new()?))
        } else {
            None
        };
        let hurry = match &wall {
            Some(wall) if setting.hurry > 1 => Some(Hurry::start(Arc::clone(wall), setting.hurry)),
            Some(_) | None => None,
        };
        let mut apis: Vec<Api> = Vec::new();
        for replica in 0..setting.replicas {
            let off_ms = setting.skews_ms.get(replica).copied().unwrap_or(0);
            let options = api::Options {
                database: database.clone(),
                registries: vec![json!({ "host": shelf.host(), "plain_http": true })],
                settings: json!({
                    "log": { "format": "json", "level": "info" },
                    "poll": { "interval_seconds": 5 }, "digest_cache_seconds": 0,
                    "webhooks": { "secret": WEBHOOK_SECRET },
                    // A tag that moved is somebody's push here, never a discovery.
                    "refresh": { "interval_seconds": 604_800 },
                }),
                env: wall
                    .as_ref()
                    .map_or(Ok(Vec::new()), |wall| wall.env(off_ms))?,
                token: apis.first().map(|first| first.token().to_owned()),
            };
            apis.push(Api::start(options).await?);
        }
        let first = apis.first().context("one API at least")?;
        let source = match database {
            Some(url) => Source::Postgres(url),
            None => Source::Sqlite(first.data().join("holdfast.db")),
        };
        let skews = setting.skews_ms.iter();
        let most = skews.clone().max().copied().unwrap_or(0);
        let least = skews.min().copied().unwrap_or(0);
        let simulation = Self {
            fleet: Fleet::enrol(&apis, setting.order).await?,
            skew_ms: most - least.min(0),
            apis,
            shelf,
            wall,
            source,
            seen: Mutex::default(),
            _hurry: hurry,
            _postgres: postgres,
        };
        simulation.approve(REPOSITORY).await?;
        Ok(simulation)
    }

    /// Lets an image of the registry run.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn approve(&self, repository: &str) -> anyhow::Result<()> {
        let image = json!({ "image_name": format!("{}/{repository}", self.shelf.host()) });
        self.api().post("/images", &image).await?.good().map(drop)
    }

    /// The API that operators talk to.
    ///
    /// # Panics
    /// Never: there is one at least.
    pub fn api(&self) -> &Api {
        self.apis.first().expect("one API is started at least")
    }

    /// What webhooks bring to be heard.
    pub fn webhook_secret(&self) -> &'static str {
        WEBHOOK_SECRET
    }

    /// The present, as the APIs see it.
    pub fn now_ms(&self) -> i64 {
        self.wall
            .as_ref()
            .map_or_else(unix_millis, |wall| wall.now_ms())
    }

    /// Pushes a version of the image.
    pub fn push(&self, content: &str) -> Version {
        self.shelf.push(REPOSITORY, TAG, content)
    }

    /// Pushes a version with which devices have their troubles.
    pub fn push_troubled(&self, content: &str) -> Version {
        let version = self.push(content);
        self.fleet.trouble(&version);
        version
    }

    /// Tells every device to run the image, and waits until the API knows of each that it does.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn settle(&self, version: &Version) -> anyhow::Result<()> {
        let devices = stream::iter(self.fleet.devices());
        let told = devices.map(|device| self.set_target(&device.uuid, &version.reference));
        let _: Vec<Answer> = told.buffer_unordered(SETS_AT_ONCE).try_collect().await?;
        let wanted = self.fleet.devices().len();
        self.watch(
            "every device to be verified",
            SETTLES_WITHIN,
            async |rows| {
                let verified = rows.told.values().filter(|told| told.verified_at.is_some());
                let verified = verified.count();
                let running = self.fleet.running(version);
                Ok(((verified, running) == (wanted, wanted)).then_some(()))
            },
        )
        .await
    }

    /// Tells one device to run an image.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn set_target(&self, uuid: &str, reference: &str) -> anyhow::Result<Answer> {
        let body = target(&[service("web", reference, &json!({}))]);
        let path = format!("/devices/{uuid}/target-state");
        self.post(&path, &body).await?.good()
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let (api, method) = (self.api(), Method::POST);
        api.call_patiently(api.token(), method, path, body).await
    }

    /// Makes the policy that rules the image; what is not said is quick: no soak, a time-out of a minute.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn policy(&self, says: &Value) -> anyhow::Result<()> {
        let mut body = json!({
            "name": "simulated", "image_pattern": format!("{}/{REPOSITORY}:*", self.shelf.host()),
            "batch_delay_minutes": 0, "health_timeout_minutes": 1,
        });
        for (member, value) in says.as_object().into_iter().flatten() {
            body[member] = value.clone();
        }
        self.api().post("/policies", &body).await?.good()?;
        Ok(())
    }

    /// Begins a rollout of what the tag means now; any answer is one.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn try_begin(&self) -> anyhow::Result<Answer> {
        let body = json!({ "image": format!("{}/{REPOSITORY}:{TAG}", self.shelf.host()) });
        self.post("/rollouts", &body).await
    }

    /// Begins a rollout of what the tag means now.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn begin(&self) -> anyhow::Result<i64> {
        let begun = self.try_begin().await?.good()?;
        begun.json["id"].as_i64().context("the rollout's number")
    }

    /// What the API shows of a rollout.
    ///
    /// # Errors
    /// When it shows none.
    pub async fn rollout(&self, id: i64) -> anyhow::Result<Value> {
        Ok(self
            .api()
            .get(&format!("/rollouts/{id}"))
            .await?
            .good()?
            .json)
    }

    /// `pause`, `resume`, `cancel` …; any answer is one.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn act(&self, id: i64, what: &str) -> anyhow::Result<Answer> {
        if what == "retry" {
            self.seen.lock().await.retried.insert(id);
        }
        let reason = json!({ "reason": "a test wants it" });
        self.post(&format!("/rollouts/{id}/{what}"), &reason).await
    }

    /// From now on only rollouts from this one on are looked at.
    pub async fn forget_before(&self, id: i64) {
        let mut seen = self.seen.lock().await;
        seen.first = id;
        seen.rows = None;
    }

    /// Reads the rows and judges them against those of the last look.
    ///
    /// # Errors
    /// What does not hold.
    pub async fn look(&self) -> anyhow::Result<Rows> {
        let mut seen = self.seen.lock().await;
        let mut rows = self.source.read(seen.first, self.now_ms()).await?;
        rows.retried.clone_from(&seen.retried);
        rows.skew_ms = self.skew_ms;
        judge(seen.rows.as_ref(), &rows).map_err(|wrong| anyhow!(wrong))?;
        let wrongs = self.fleet.wrongs(self.apis.len() == 1);
        ensure!(
            wrongs.is_empty(),
            "devices were served what they may not be: {wrongs:?}"
        );
        seen.rows = Some(rows.clone());
        Ok(rows)
    }

    /// Looks again and again until `done` finds something.
    ///
    /// # Errors
    /// What does not hold, and what did not come in time.
    pub async fn watch<T>(
        &self,
        what: &str,
        within: Duration,
        mut done: impl AsyncFnMut(&Rows) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let clock = Stopwatch::start();
        loop {
            let rows = self.look().await?;
            if let Some(found) = done(&rows).await? {
                return Ok(found);
            }
            let standings = standings(&rows);
            ensure!(
                clock.elapsed() < within,
                "waited {within:?} for {what}; last seen: {standings}"
            );
            sleep(LOOKS_EVERY).await;
        }
    }

    /// Looks until a rollout is in one of these states, and answers what the API shows of it.
    ///
    /// # Errors
    /// What does not hold, and that it did not come to that in time.
    pub async fn until(&self, id: i64, states: &[&str], within: Duration) -> anyhow::Result<Value> {
        let what = format!("rollout {id} to be {states:?}");
        self.watch(&what, within, async |rows| {
            let state = rows.rollouts.get(&id).map(|one| one.state.as_str());
            Ok(state.filter(|state| states.contains(state)).map(|_| ()))
        })
        .await?;
        self.shown(id).await
    }

    /// What the API shows of a rollout, its counters compared with a recount.
    ///
    /// # Errors
    /// That they differ.
    pub async fn shown(&self, id: i64) -> anyhow::Result<Value> {
        for _ in 0..QUIET_LOOKS {
            let before = self.look().await?;
            let shown = self.rollout(id).await?;
            let after = self.look().await?;
            if before.of(id).eq(after.of(id)) {
                i25_counts(&after, id, &shown).map_err(|wrong| anyhow!(wrong))?;
                return Ok(shown);
            }
        }
        Err(anyhow!("rollout {id} never stood still"))
    }

    /// Waits until so many devices run a version, as they know themselves.
    ///
    /// # Errors
    /// When they do not in time.
    pub async fn runs(
        &self,
        version: &Version,
        many: usize,
        within: Duration,
    ) -> anyhow::Result<()> {
        let what = format!("{many} devices to run {}", version.content);
        self.watch(&what, within, async |_| {
            Ok((self.fleet.running(version) == many).then_some(()))
        })
        .await
    }
}

/// How many devices of each rollout stand how: for error messages.
fn standings(rows: &Rows) -> String {
    let mut found = String::new();
    for (id, rollout) in &rows.rollouts {
        let mut counts = std::collections::BTreeMap::new();
        for member in rows.of(*id) {
            *counts.entry(member.standing.as_str()).or_insert(0) += 1;
        }
        let _ = write!(found, "rollout {id} {} {counts:?}; ", rollout.state);
    }
    found
}
