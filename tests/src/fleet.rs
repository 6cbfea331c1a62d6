//! Fleets of simulated devices: hundreds in this process, each speaking real HTTP to real control APIs.
//!
//! It owns what stands in for machines that cannot be had. It refuses to stand in for the control API, and to
//! know anything of it that a device does not know. What a device does is drawn from a seed.

pub mod device;
pub mod draw;
mod life;
pub mod machine;
pub mod shelf;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use holdfast_proto::image::ConfigDigest;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::api::Api;
use device::{Device, Habits};
use draw::Draw;
use life::Net;
use shelf::Version;

/// Tasks that all devices of a fleet share.
const TASKS: usize = 4;
/// Enrolments side by side: as many as an API of two cores has use for.
const ENROL_AT_ONCE: usize = 16;

/// How devices talk to the API.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Seconds for which a poll asks to be held; 0 polls again and again.
    pub wait_s: u64,
    /// Between two polls that are not held, and after a failure, about.
    pub pause: Duration,
    /// Between two reports when nothing changes, about.
    pub heartbeat: Duration,
    /// After so long an API that says nothing is left for another one.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            wait_s: 20,
            pause: Duration::from_millis(300),
            heartbeat: Duration::from_secs(10),
            patience: Duration::from_secs(5),
        }
    }
}

/// A fleet to be.
#[derive(Debug, Clone)]
pub struct Order {
    /// How many devices.
    pub many: usize,
    /// What everything about them is drawn from.
    pub seed: u64,
    /// How they talk.
    pub pace: Pace,
    /// From a target to the end of its trial, from the least to the most.
    pub takes_ms: (u64, u64),
    /// The labels of the device with this number.
    pub labels: fn(usize) -> BTreeMap<String, String>,
}

impl Order {
    /// So many devices that settle within half a second, without labels.
    pub fn of(many: usize, seed: u64) -> Self {
        Self {
            many,
            seed,
            pace: Pace::default(),
            takes_ms: (100, 500),
            labels: |_| BTreeMap::new(),
        }
    }
}

/// The versions with which devices have the troubles of their nature.
#[derive(Debug, Clone, Default)]
pub struct Troubled(Arc<Mutex<BTreeSet<ConfigDigest>>>);

impl Troubled {
    /// Whether this version is one of them.
    pub fn has(&self, content: ConfigDigest) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&content)
    }

    fn add(&self, content: ConfigDigest) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(content);
    }
}

/// The fleet; dropping it switches every device off.
#[derive(Debug)]
pub struct Fleet {
    devices: Vec<Arc<Device>>,
    troubled: Troubled,
    tasks: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// Enrols the devices and switches them on. They spread over the APIs, and go from one that fails to the next.
    ///
    /// # Errors
    /// When a device cannot be enrolled.
    pub async fn enrol(apis: &[Api], order: Order) -> anyhow::Result<Self> {
        let first = apis.first().context("an API to enrol at")?;
        let key = json!({ "name": "fleet" });
        let key = first.post("/enrolment-keys", &key).await?.good()?;
        let key = key.json["key"].as_str().context("a key")?.to_owned();
        let troubled = Troubled::default();
        let enrolled = stream::iter(0..order.many)
            .map(|number| enrol(first, &key, number, &order, &troubled))
            .buffered(ENROL_AT_ONCE);
        let enrolled: Vec<anyhow::Result<Device>> = enrolled.collect().await;
        let devices = enrolled.into_iter().map(|one| one.map(Arc::new));
        let devices: Vec<Arc<Device>> = devices.collect::<anyhow::Result<_>>()?;
        let net = Arc::new(Net {
            client: crate::api::client(),
            apis: apis.iter().map(Api::url).collect(),
            pace: order.pace,
        });
        let share = devices.len().div_ceil(TASKS).max(1);
        let tasks = devices.chunks(share).map(|share| {
            let lives = share
                .iter()
                .map(|one| life::live(Arc::clone(one), Arc::clone(&net)));
            let lives = join_all(lives.collect::<Vec<_>>());
            tokio::spawn(async move {
                lives.await;
            })
        });
        let tasks = tasks.collect();
        Ok(Self {
            devices,
            troubled,
            tasks,
        })
    }

    /// The devices by their numbers.
    pub fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// The device with this id.
    pub fn device(&self, uuid: &str) -> Option<&Arc<Device>> {
        self.devices.iter().find(|device| device.uuid == uuid)
    }

    /// From now on devices have the troubles of their nature with this version.
    pub fn trouble(&self, version: &Version) {
        self.troubled.add(version.content);
    }

    /// How many devices run this version, as they know themselves.
    pub fn running(&self, version: &Version) -> usize {
        let devices = self.devices.iter();
        devices.filter(|one| one.runs(version.content)).count()
    }

    /// The ids of devices that were ever told to run this version.
    pub fn told(&self, version: &Version) -> BTreeSet<String> {
        let devices = self.devices.iter();
        let told = devices.filter(|one| one.was_told(version.content));
        told.map(|one| one.uuid.clone()).collect()
    }

    /// What no control API may do, as devices saw it; with one API only, older generations are among it.
    pub fn wrongs(&self, is_one_api: bool) -> Vec<String> {
        let devices = self.devices.iter();
        devices.flat_map(|one| one.wrongs(is_one_api)).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn enrol(
    api: &Api,
    key: &str,
    number: usize,
    order: &Order,
    troubled: &Troubled,
) -> anyhow::Result<Device> {
    let mut draw = Draw::of(order.seed, u64::try_from(number)?);
    let body = json!({
        "name": format!("simulated-{number:03}"), "labels": (order.labels)(number),
        "platform": { "os": "linux", "architecture": "amd64" }, "agentVersion": "0.0.0-simulated",
    });
    let answer = api
        .call_patiently(key, Method::POST, "/enroll", &body)
        .await?
        .good()?;
    let text = |name: &str| {
        let value = answer.json.get(name).and_then(Value::as_str);
        value.map(str::to_owned).context("an enrolment")
    };
    let (least, most) = order.takes_ms;
    let habits = Habits {
        takes_ms: i64::try_from(draw.between(least, most))?,
        seed: draw.number(),
    };
    let device = Device::new(
        text("uuid")?,
        text("token")?,
        number,
        habits,
        troubled.clone(),
    );
    Ok(device)
}
