//! The rollout campaign: control APIs die and stand still at random instants of running rollouts, and every
//! invariant holds after each.
//!
//! The instants are drawn from a seed, so a campaign can be had again; what the programs do in between is theirs.
//! Some versions are good and some are not, so that ways back are cut off in the middle as well.

pub mod page;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::time::sleep;

use crate::clock::Stopwatch;
use crate::fleet::draw::Draw;
use crate::fleet::machine::Nature;
use crate::fleet::shelf::Version;
use crate::fleet::{Order, Pace};
use crate::process::Signal;
use crate::simulation::{Setting, Simulation};

/// Devices: five batches of eight.
const DEVICES: usize = 40;
/// Of a hundred devices so many refuse a troubled version: enough to stop it, whoever is in the first batch.
const FAILING_PERCENT: usize = 40;
/// From one instant to the next, at least and at most: a batch of such a fleet is on its way for about a second.
const PAUSE_MS: (u64, u64) = (20, 1_500);
/// How long a program stands still, at least and at most.
const STILL_MS: (u64, u64) = (200, 3_000);
/// The same for one that shall find its leases taken over: they are for 12 s where programs share a store.
const OVERTAKEN_MS: (u64, u64) = (13_000, 20_000);
/// Of a hundred that stand still so many do so for that long.
const OVERTAKEN_PERCENT: u64 = 25;
/// With each blow the wall clock of all programs leaps by so much. It changes nothing: leases are by the database's clock.
const LEAP: Duration = Duration::from_mins(12);
/// A rollout that is left alone ends within this: five batches of a second, and the monitor's own rhythm.
const ENDS_WITHIN: Duration = Duration::from_mins(4);
/// Rollouts whose rows are looked at: the newest ones.
const ROLLOUTS_LOOKED_AT: i64 = 3;

/// Which programs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// One API on `SQLite`, killed and started again.
    Alone,
    /// Three APIs on `PostgreSQL`, their clocks five minutes apart: killed, or stopped and let go on.
    Replicas,
}

impl Place {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Alone, Self::Replicas];

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Replicas => "replicas",
        }
    }
}

/// What is done to a program at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// kill -9, and a new start.
    Kill,
    /// SIGSTOP, sometimes until its leases are over, and SIGCONT.
    Stop,
}

impl Blow {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Stop => "SIGSTOP",
        }
    }
}

/// What came of a campaign at one place.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How often each was done, by the state that the rollout was in just before.
    pub blows: BTreeMap<(Blow, String), usize>,
    /// How rollouts ended, and how many of each.
    pub ends: BTreeMap<String, usize>,
    /// From a new start to a program that is ready, in milliseconds.
    pub ready_ms: Vec<u64>,
    /// What did not hold; a campaign ends at the first.
    pub wrong: Option<String>,
}

impl Outcome {
    /// How many instants there were.
    pub fn instants(&self) -> usize {
        self.blows.values().sum()
    }
}

/// Runs a campaign of so many instants; tells of each.
///
/// # Errors
/// When the lab itself fails. What does not hold is in the outcome.
pub async fn run(
    place: Place,
    instants: usize,
    seed: u64,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    let mut order = Order::of(DEVICES, seed);
    order.pace = Pace {
        wait_s: 5,
        pause: Duration::from_millis(150),
        heartbeat: Duration::from_secs(2),
        patience: Duration::from_secs(1),
    };
    let mut setting = Setting::of(order);
    setting.skews_ms = vec![0];
    if place == Place::Replicas {
        setting.replicas = 3;
        setting.is_postgres = true;
        setting.skews_ms = vec![0, 300_000, -300_000];
    }
    let simulation = Simulation::start(setting).await?;
    // Clocks that differ, and go on by leaps, must not make devices late that are not.
    let policy = json!({
        "batch_size": 8, "health_timeout_minutes": 30 * 24 * 60, "max_failure_rate": 20, "min_success": 80,
    });
    simulation.policy(&policy).await?;
    let mut campaign = Campaign {
        place,
        seed,
        instants,
        simulation,
        draw: Draw::new(seed),
        outcome: Outcome::default(),
    };
    let first = campaign.simulation.push("0");
    campaign.simulation.settle(&first).await?;
    let mut good = first;
    let mut number = 0;
    while campaign.outcome.instants() < instants && campaign.outcome.wrong.is_none() {
        number += 1;
        match campaign.rollout(number, &good).await {
            Ok(version) => good = version,
            Err(wrong) => campaign.outcome.wrong = Some(format!("{wrong:#}")),
        }
        let so_far = &campaign.outcome;
        tell(&format!(
            "{} instants, rollouts ended {:?}",
            so_far.instants(),
            so_far.ends
        ));
    }
    Ok(campaign.outcome)
}

struct Campaign {
    place: Place,
    seed: u64,
    instants: usize,
    simulation: Simulation,
    draw: Draw,
    outcome: Outcome,
}

impl Campaign {
    /// One rollout from its beginning to its end, with blows in between; answers what the fleet runs then.
    async fn rollout(&mut self, number: u64, good: &Version) -> anyhow::Result<Version> {
        let is_troubled = self.draw.chance(40);
        let content = number.to_string();
        let version = if is_troubled {
            self.simulation.push_troubled(&content)
        } else {
            self.simulation.push(&content)
        };
        let devices = self.simulation.fleet.devices();
        let failing = Draw::of(self.seed, number).some(DEVICES * FAILING_PERCENT / 100, DEVICES);
        for device in devices {
            let fails = failing.contains(&device.number);
            device.set_nature(if fails { Nature::Failing } else { Nature::Good });
        }
        let id = self.simulation.begin().await?;
        self.simulation.forget_before(id - ROLLOUTS_LOOKED_AT).await;
        while self.outcome.instants() < self.instants {
            let (least, most) = PAUSE_MS;
            sleep(Duration::from_millis(self.draw.between(least, most))).await;
            let rows = self.simulation.look().await?;
            let rollout = rows.rollouts.get(&id).context("the rollout is gone")?;
            let state = rollout.state.clone();
            if ["succeeded", "rolled_back", "failed", "paused"].contains(&state.as_str()) {
                break;
            }
            let blow = match self.place {
                Place::Replicas if self.draw.chance(40) => Blow::Stop,
                Place::Replicas | Place::Alone => Blow::Kill,
            };
            self.strike(blow)
                .await
                .with_context(|| format!("rollout {id}, {}", blow.word()))?;
            *self.outcome.blows.entry((blow, state)).or_default() += 1;
        }
        self.end(id, is_troubled, &version, good).await
    }

    /// Kills or stops one of the programs, and looks while it is away and when it is back.
    async fn strike(&mut self, blow: Blow) -> anyhow::Result<()> {
        let most = u64::try_from(self.simulation.apis.len() - 1)?;
        let victim = usize::try_from(self.draw.between(0, most))?;
        match blow {
            Blow::Kill => {
                let process = self.simulation.apis[victim].process();
                process.kill9();
                self.leap()?;
                self.simulation.look().await?;
                let clock = Stopwatch::start();
                self.simulation.apis[victim].process().restart()?;
                self.simulation.apis[victim].ready().await?;
                self.outcome
                    .ready_ms
                    .push(u64::try_from(clock.elapsed().as_millis())?);
            }
            Blow::Stop => {
                let is_long = self.place == Place::Replicas && self.draw.chance(OVERTAKEN_PERCENT);
                let (least, most) = if is_long { OVERTAKEN_MS } else { STILL_MS };
                let still = Duration::from_millis(self.draw.between(least, most));
                self.simulation.apis[victim].process().signal(Signal::STOP);
                let looked = self.stand_still(still).await;
                // Whatever was seen, the program goes on.
                self.simulation.apis[victim].process().signal(Signal::CONT);
                looked?;
            }
        }
        self.simulation.look().await?;
        Ok(())
    }

    fn leap(&self) -> anyhow::Result<()> {
        match &self.simulation.wall {
            Some(wall) => wall.advance(LEAP),
            None => Ok(()),
        }
    }

    async fn stand_still(&self, still: Duration) -> anyhow::Result<()> {
        self.leap()?;
        sleep(still).await;
        self.simulation.look().await?;
        Ok(())
    }

    /// Left alone the rollout ends as its version deserves, and devices run what the rows say.
    async fn end(
        &mut self,
        id: i64,
        is_troubled: bool,
        version: &Version,
        good: &Version,
    ) -> anyhow::Result<Version> {
        let ends = ["succeeded", "rolled_back", "failed", "paused"];
        let shown = self.simulation.until(id, &ends, ENDS_WITHIN).await?;
        let state = shown["state"].as_str().unwrap_or_default().to_owned();
        let wanted = if is_troubled {
            "rolled_back"
        } else {
            "succeeded"
        };
        ensure!(
            state == wanted,
            "rollout {id} is {state} and should be {wanted}: {}",
            shown["reason"]
        );
        let runs = if is_troubled { good } else { version };
        self.simulation.runs(runs, DEVICES, ENDS_WITHIN).await?;
        *self.outcome.ends.entry(state).or_default() += 1;
        Ok(runs.clone())
    }
}
