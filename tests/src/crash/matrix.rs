//! Shares points out among lanes: each lane takes the next one when it is done with its last.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

use super::lane::Lane;
use super::list;
use super::point::{Outcome, Point};
use super::run::Recording;
use super::scenario::Scenario;

/// Lanes with their engines, and what undisturbed runs on them showed.
#[derive(Debug)]
pub struct Matrix {
    lanes: Vec<Lane>,
    recordings: BTreeMap<Scenario, Recording>,
}

/// What a lane says when it is done with a point.
#[derive(Debug)]
pub struct Done<'a> {
    /// Which one.
    pub point: &'a Point,
    /// What came of it.
    pub outcome: &'a Outcome,
    /// The end of the agent's log, when something was violated.
    pub last_words: &'a str,
}

impl Matrix {
    /// Starts the lanes and watches undisturbed runs of the scenarios.
    pub async fn start(lanes: usize, scenarios: &[Scenario]) -> anyhow::Result<Self> {
        let mut started = Vec::new();
        for _ in 0..lanes {
            started.push(Lane::start().await?);
        }
        let recorded = share_out(&mut started, scenarios.to_vec(), async |lane, scenario| {
            let recording = lane.record(scenario).await;
            let what = || {
                let name = scenario.word();
                format!(
                    "an undisturbed run of {name}; the agent's log:\n{}",
                    lane.agent_log()
                )
            };
            anyhow::Ok((scenario, recording.with_context(what)?))
        });
        let recordings = recorded.await.into_iter().collect::<anyhow::Result<_>>()?;
        Ok(Self {
            lanes: started,
            recordings,
        })
    }

    /// Every point that the recordings show, always in the same order.
    pub fn points(&self) -> Vec<Point> {
        let each = self.recordings.iter();
        each.flat_map(|(scenario, recording)| list::of(*scenario, recording))
            .collect()
    }

    /// Goes through these points; tells of each when it is done.
    pub async fn run(
        &mut self,
        points: Vec<Point>,
        tell: impl Fn(&Done<'_>),
    ) -> BTreeMap<Point, Outcome> {
        let recordings = &self.recordings;
        let done = share_out(&mut self.lanes, points, async |lane, point: Point| {
            let outcome = match recordings.get(&point.scenario) {
                Some(recording) => lane.run(&point, recording).await,
                None => Outcome::NotReached,
            };
            let last_words = match outcome {
                Outcome::Violated(_) => lane.last_words(),
                Outcome::Held { .. } | Outcome::NotReached => "",
            };
            tell(&Done {
                point: &point,
                outcome: &outcome,
                last_words,
            });
            (point, outcome)
        });
        done.await.into_iter().collect()
    }
}

async fn share_out<W, T>(
    lanes: &mut [Lane],
    work: Vec<W>,
    run: impl AsyncFn(&mut Lane, W) -> T,
) -> Vec<T> {
    let queue = Mutex::new(VecDeque::from(work));
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    };
    let lanes = lanes.iter_mut().map(async |lane| {
        let mut done = Vec::new();
        while let Some(work) = next() {
            done.push(run(lane, work).await);
        }
        done
    });
    let done = futures_util::future::join_all(lanes).await;
    done.into_iter().flatten().collect()
}
