//! A device without a network: what it accepted, what it runs, what it would report. Pure: `now` is an argument.
//!
//! It does what the agent's planner does as far as a report shows it: the old version serves while the new one is
//! on trial, a version that its gate refuses is rejected and not tried again until the target names another.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::current::{
    AppReport, CurrentState, HoldReport, RejectedReport, ServiceReport, UpdateStatus,
};
use holdfast_proto::id::ServiceKey;
use holdfast_proto::image::ConfigDigest;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;

/// What a device does with a version that is marked as troubled; with every other one all are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// It gets healthy and stays so.
    Good,
    /// Its gate refuses the version: it goes back by itself and says so.
    Failing,
    /// It says that it converged, and runs the old version.
    Lying,
    /// It never gets there, and reports all the time.
    Stuck,
    /// It is healthy in every other report.
    Flapping,
}

/// Why a target is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is older than what was accepted: of several APIs one may not have heard of a newer one yet.
    #[error("generation {served} was served after {accepted}")]
    Older {
        /// Its generation.
        served: u64,
        /// What was accepted before.
        accepted: u64,
    },
    /// No control API may do that.
    #[error("generation {served} was served as two contents")]
    TwoContents {
        /// The generation.
        served: u64,
    },
}

/// A version that runs, or is to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    content: ConfigDigest,
    image: String,
    generation: u64,
}

#[derive(Debug, Clone)]
struct Trial {
    of: Running,
    began_ms: i64,
    ends_ms: i64,
}

#[derive(Debug, Clone, Default)]
struct Service {
    runs: Option<Running>,
    trial: Option<Trial>,
    rejected: Option<(ConfigDigest, RejectedReport)>,
}

#[derive(Debug, Clone)]
struct Accepted {
    generation: u64,
    etag: String,
}

/// The device.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What it does with troubled versions.
    pub nature: Nature,
    /// From a target to the end of its trial.
    pub takes_ms: i64,
    /// How wrong its own clock is.
    pub clock_off_ms: i64,
    journal: String,
    sequence: u64,
    accepted: Option<Accepted>,
    services: BTreeMap<ServiceKey, Service>,
}

impl Machine {
    /// A device that was never told anything.
    pub fn new(journal: String, nature: Nature, takes_ms: i64) -> Self {
        Self {
            nature,
            takes_ms,
            clock_off_ms: 0,
            journal,
            sequence: 0,
            accepted: None,
            services: BTreeMap::new(),
        }
    }

    /// The generation that it accepted last; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.accepted.as_ref().map_or(0, |one| one.generation)
    }

    /// The entity tag of what it accepted last.
    pub fn etag(&self) -> Option<String> {
        self.accepted.as_ref().map(|one| one.etag.clone())
    }

    /// The contents that serve.
    pub fn runs(&self) -> BTreeSet<ConfigDigest> {
        let running = self.services.values();
        running
            .filter_map(|service| service.runs.as_ref().map(|one| one.content))
            .collect()
    }

    /// Takes a target as it was served.
    ///
    /// # Errors
    /// Why it does not. Then nothing changes.
    pub fn accept(&mut self, etag: &str, target: &TargetState, now_ms: i64) -> Result<(), Refused> {
        if let Some(known) = &self.accepted {
            let (served, accepted) = (target.generation, known.generation);
            if served < accepted {
                return Err(Refused::Older { served, accepted });
            }
            if served == accepted && etag != known.etag {
                return Err(Refused::TwoContents { served });
            }
        }
        self.accepted = Some(Accepted {
            generation: target.generation,
            etag: etag.to_owned(),
        });
        let mut left: BTreeSet<ServiceKey> = self.services.keys().cloned().collect();
        for (key, wanted) in target.services() {
            left.remove(&key);
            let expected = wanted.pin.as_ref().and_then(|pin| pin.expected.as_ref());
            let Some(content) = expected.map(|expected| expected.config_digest) else {
                // Never resolved: a device runs no image without a digest.
                continue;
            };
            let of = Running {
                content,
                image: wanted.image_name.clone(),
                generation: target.generation,
            };
            let ends_ms = now_ms.saturating_add(self.takes_ms);
            let service = self.services.entry(key).or_default();
            service.want(of, now_ms, ends_ms);
        }
        for key in left {
            self.services.remove(&key);
        }
        Ok(())
    }

    /// Does what is due; says whether anything changed.
    pub fn step(&mut self, is_troubled: &dyn Fn(ConfigDigest) -> bool, now_ms: i64) -> bool {
        let (nature, now) = (self.nature, self.own_time(now_ms));
        let due = self.services.values_mut().filter_map(|service| {
            let trial = service.trial.as_ref()?;
            (trial.ends_ms <= now_ms).then_some(service)
        });
        let mut changed = false;
        for service in due {
            let Some(Trial { of, .. }) = service.trial.clone() else {
                continue;
            };
            match (is_troubled(of.content), nature) {
                (true, Nature::Lying | Nature::Stuck) => continue,
                (true, Nature::Failing) => {
                    let rejected = RejectedReport {
                        image: of.image.clone(),
                        reason: "its health check failed".to_owned(),
                        at: now,
                    };
                    service.rejected = Some((of.content, rejected));
                }
                (true, Nature::Good | Nature::Flapping) | (false, _) => service.runs = Some(of),
            }
            service.trial = None;
            changed = true;
        }
        changed
    }

    /// When there is something to do next by itself; a trial that never ends has no such moment.
    pub fn next_due(&self, now_ms: i64) -> Option<i64> {
        let trials = self.services.values().filter_map(|one| one.trial.as_ref());
        let ends = trials.map(|trial| trial.ends_ms);
        ends.filter(|ends_ms| *ends_ms > now_ms).min()
    }

    /// What it says of itself, under the next number.
    pub fn report(
        &mut self,
        is_troubled: &dyn Fn(ConfigDigest) -> bool,
        now_ms: i64,
    ) -> CurrentState {
        self.sequence += 1;
        let mut apps: BTreeMap<_, AppReport> = BTreeMap::new();
        let mut holds = Vec::new();
        let mut is_applying = false;
        for (key, service) in &self.services {
            let trial = service.trial.as_ref();
            is_applying |= trial.is_some();
            let lies = self.nature == Nature::Lying
                && trial.is_some_and(|trial| is_troubled(trial.of.content));
            if lies {
                is_applying = false;
            }
            let mut said = service.said(now_ms);
            let flaps = self.nature == Nature::Flapping
                && said.verified
                && said.config_digest.is_some_and(is_troubled);
            if flaps && self.sequence.is_multiple_of(2) {
                said.health = Some("unhealthy".to_owned());
            }
            if let Some(rejected) = &said.rejected {
                holds.push(HoldReport {
                    code: "rejected".to_owned(),
                    service: Some(key.to_string()),
                    detail: rejected.reason.clone(),
                });
            }
            let app = apps.entry(key.app.clone()).or_default();
            app.services.insert(key.service.clone(), said);
        }
        let status = match (&self.accepted, is_applying, holds.is_empty()) {
            (None, ..) => UpdateStatus::NoTarget,
            (Some(_), true, _) => UpdateStatus::Applying,
            (Some(_), false, false) => UpdateStatus::Holding,
            (Some(_), false, true) => UpdateStatus::Converged,
        };
        CurrentState {
            sequence: self.sequence,
            journal: self.journal.clone(),
            agent_version: "0.0.0-simulated".to_owned(),
            generation: self.generation(),
            target_etag: self.etag(),
            status,
            apps,
            steps: Vec::new(),
            holds,
            pulls: Vec::new(),
            system: None,
            engine: None,
        }
    }

    fn own_time(&self, now_ms: i64) -> Timestamp {
        Timestamp::from_millis(now_ms.saturating_add(self.clock_off_ms))
    }
}

impl Service {
    fn want(&mut self, of: Running, began_ms: i64, ends_ms: i64) {
        if self
            .rejected
            .as_ref()
            .is_some_and(|(one, _)| *one != of.content)
        {
            self.rejected = None;
        }
        let is_there = self
            .runs
            .as_ref()
            .is_some_and(|one| one.content == of.content);
        if is_there || self.rejected.is_some() {
            self.trial = None;
            return;
        }
        match &mut self.trial {
            // The same version under a newer generation: its trial goes on.
            Some(trial) if trial.of.content == of.content => trial.of = of,
            Some(_) | None => {
                self.trial = Some(Trial {
                    of,
                    began_ms,
                    ends_ms,
                });
            }
        }
    }

    /// The service as the engine would show it: in the second half of a trial the candidate serves.
    fn said(&self, now_ms: i64) -> ServiceReport {
        let trial = self.trial.as_ref();
        let candidate = trial.filter(|trial| {
            let half = trial.began_ms.midpoint(trial.ends_ms);
            (half..trial.ends_ms).contains(&now_ms)
        });
        let serves = candidate.map(|trial| &trial.of).or(self.runs.as_ref());
        ServiceReport {
            container_id: serves.map(|one| format!("{}-{}", one.content.0.short(), one.generation)),
            container_name: None,
            image: serves.map(|one| one.image.clone()),
            config_digest: serves.map(|one| one.content),
            generation: serves.map(|one| one.generation),
            state: if serves.is_some() {
                "running"
            } else {
                "missing"
            }
            .to_owned(),
            health: serves.map(|_| {
                if candidate.is_some() {
                    "starting"
                } else {
                    "healthy"
                }
                .to_owned()
            }),
            restart_count: 0,
            verified: candidate.is_none() && serves.is_some(),
            rollback_ready: Some(true),
            rejected: self.rejected.as_ref().map(|(_, report)| report.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
