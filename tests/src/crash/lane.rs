//! One device on an engine of its own, with strangers beside it, that goes from point to point.
//!
//! It brings the device to where a scenario begins and sets the scenario off. What dies, and what must
//! hold then, is `run.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::check::Bounds;
use super::scenario::{Base, SERVICE, Scenario, Style, Trigger, nothing};
use super::state::{Cast, Snapshot};
use super::watch::Watch;
use super::witness::Witness;
use crate::engine::Engine;
use crate::images::Pushed;
use crate::site::{Device, Site};
use crate::wait::try_wait_for;
use crate::{api, place, registry};

/// From the restart of what died to the same end as without: pulls, a gate and a few retries on a busy
/// machine. The page shows what it took.
pub const RECOVERS_WITHIN: Duration = Duration::from_mins(1);

/// The lane.
#[derive(Debug)]
pub struct Lane {
    pub(super) site: Site,
    pub(super) device: Device,
    pub(super) watch: Watch,
    pub(super) witness: Witness,
    pub(super) pid: u32,
    pub(super) last_words: String,
    port: u16,
    repository: String,
    versions: usize,
    generation: u64,
    /// The image that serves, and what the target names.
    good: Option<Deployed>,
    target: Option<Deployed>,
    style: Style,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Deployed {
    reference: String,
    config_digest: String,
}

/// A scenario that was set off: what may happen until its end.
#[derive(Debug)]
pub(super) struct Going {
    pub(super) scenario: Scenario,
    pub(super) bounds: Bounds,
    pub(super) cast: Cast,
    deploys: Option<Deployed>,
}

impl Lane {
    /// An engine, a registry, an API, a stranger and a device with a running agent.
    pub async fn start() -> anyhow::Result<Self> {
        let engine = Engine::private().await?;
        let site = Site::on(engine, api::Options::default(), registry::Login::Open, None).await?;
        let docker = site.engine.docker().clone();
        let witness = Witness::make(&docker, &site.registry).await?;
        let mut device = site.device().await?;
        let mut watch = Watch::start(&docker, &device.uuid);
        watch.connected().await?;
        device.agent.run()?;
        Ok(Self {
            pid: site.engine.pid()?,
            port: device.port()?,
            repository: format!("web-{}", place::unique()),
            last_words: String::new(),
            versions: 0,
            generation: 0,
            good: None,
            target: None,
            style: Style::Published,
            site,
            device,
            watch,
            witness,
        })
    }

    /// Another device instead of one that a violation left in a state nobody knows.
    pub async fn renew(&mut self) -> anyhow::Result<()> {
        self.device.tap.disarm();
        if self.site.engine.docker().ping().await.is_err() {
            self.site.engine.start().await?;
            self.pid = self.site.engine.pid()?;
        }
        self.device = self.site.device().await?;
        self.forget_own_images().await?;
        self.watch = Watch::start(self.site.engine.docker(), &self.device.uuid);
        self.watch.connected().await?;
        self.witness.forget_volume();
        self.device.agent.run()?;
        self.generation = 0;
        self.good = None;
        self.target = None;
        Ok(())
    }

    /// Brings the device to where a scenario begins, undisturbed.
    pub(super) async fn prepare(&mut self, scenario: Scenario) -> anyhow::Result<()> {
        if self.style != scenario.style() {
            // By way of nothing, so that the end does not depend on what this lane did before.
            self.set(None).await?;
            self.wait_for_status("converged", &[]).await?;
            self.forget_own_images().await?;
            self.style = scenario.style();
            self.good = None;
            self.target = None;
        }
        let there = match scenario.base() {
            Base::Empty => self.good.is_none(),
            Base::Serving => self.good.is_some(),
            Base::Converged => self.good.is_some() && self.good == self.target,
        };
        if !there {
            let deploys = match scenario.base() {
                Base::Empty => None,
                Base::Serving | Base::Converged => Some(self.push(Scenario::First).await?),
            };
            self.set(deploys.as_ref()).await?;
            self.wait_for_status("converged", &[]).await?;
            self.good.clone_from(&deploys);
            self.target = deploys;
        }
        if self.good.is_some() {
            let container = self.device.running(SERVICE).await?;
            self.witness.mark_volume(&container)?;
        } else {
            self.forget_own_images().await?;
        }
        Ok(())
    }

    /// Removes the images that the agent made itself, so that it has to make them again.
    async fn forget_own_images(&self) -> anyhow::Result<()> {
        let registry = self.site.registry.host();
        for (_, tags) in self.snapshot().await?.images {
            for tag in tags.iter().filter(|tag| !tag.starts_with(&registry)) {
                self.site.engine.docker().remove_image(tag).await?;
            }
        }
        Ok(())
    }

    async fn push(&mut self, scenario: Scenario) -> anyhow::Result<Deployed> {
        self.versions += 1;
        let version = format!("{}-{}", scenario.word(), self.versions);
        let image = scenario.image(&self.repository, &version);
        let pushed: Pushed = image.push(&self.site.registry, &version).await?;
        let child = pushed.children.first().context("an image for a platform")?;
        Ok(Deployed {
            reference: pushed.reference(),
            config_digest: child.config_digest.clone(),
        })
    }

    async fn set(&mut self, deploys: Option<&Deployed>) -> anyhow::Result<()> {
        let body = match deploys {
            Some(image) => self.style.target(&image.reference, self.port),
            None => nothing(),
        };
        let stored = self.site.set(&self.device.uuid, &body).await?;
        self.generation = stored["generation"].as_u64().context("a generation")?;
        Ok(())
    }

    /// Sets a scenario off.
    pub(super) async fn go(&mut self, scenario: Scenario) -> anyhow::Result<Going> {
        let kept: BTreeSet<String> = self
            .snapshot()
            .await?
            .containers
            .into_iter()
            .map(|one| one.id)
            .collect();
        let before = self.good.as_ref().map(|good| good.config_digest.clone());
        let deploys = match scenario.trigger() {
            Trigger::Deploy => Some(self.push(scenario).await?),
            Trigger::Lose => self.good.clone(),
            Trigger::Clear => None,
        };
        self.watch.begin();
        self.device.tap.forget();
        match scenario.trigger() {
            Trigger::Deploy | Trigger::Clear => self.set(deploys.as_ref()).await?,
            Trigger::Lose => {
                let container = self.device.running(SERVICE).await?;
                let id = container["Id"].as_str().context("an id")?;
                self.site.engine.docker().remove(id).await?;
            }
        }
        let target = deploys.as_ref().map(|image| image.config_digest.clone());
        let replaces = scenario.trigger() == Trigger::Deploy && before.is_some();
        let style = scenario.style();
        let last_good = before.clone();
        let last_good = last_good.filter(|_| replaces && style.keeps_the_last_good());
        let allowed = target.iter().chain(&before).cloned().collect();
        Ok(Going {
            scenario,
            bounds: Bounds {
                generation: self.generation,
                target: target.clone(),
                last_good,
                replaces: replaces && style.makes_first(),
                both_may_run: style == Style::HandOver,
                engine_restarted: false,
                allowed,
                fails: target.clone().filter(|_| scenario.fails()),
            },
            cast: Cast {
                target,
                before,
                kept,
                port: self.port,
                foreign: vec![self.site.registry.host()],
            },
            deploys,
        })
    }

    /// Remembers where a scenario that came to its good end left the device.
    pub(super) fn arrived(&mut self, going: &Going) {
        self.target.clone_from(&going.deploys);
        if !going.scenario.fails() {
            self.good.clone_from(&going.deploys);
        }
    }

    pub(super) async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        Snapshot::take(self.site.engine.docker(), &self.device.uuid).await
    }

    /// The last report's state.
    async fn report(&self) -> anyhow::Result<Value> {
        let answer = self.site.report(&self.device.uuid).await?;
        Ok(if answer["sequence"].is_null() {
            answer["state"].clone()
        } else {
            answer
        })
    }

    /// Waits until this generation is reported with this status, and for these holds only.
    pub(super) async fn wait_for_status(&self, status: &str, holds: &[&str]) -> anyhow::Result<()> {
        let what = format!(
            "generation {} to be reported {status} {holds:?}",
            self.generation
        );
        try_wait_for(&what, RECOVERS_WITHIN, async || {
            let report = self.report().await.map_err(|error| error.to_string())?;
            let codes = report["holds"].as_array().into_iter().flatten();
            let same = codes
                .map(|hold| hold["code"].as_str())
                .eq(holds.iter().copied().map(Some));
            if report["generation"] == self.generation && report["status"] == status && same {
                Ok(())
            } else {
                let (holds, steps) = (&report["holds"], &report["steps"]);
                let (status, generation) = (&report["status"], &report["generation"]);
                Err(format!("{generation} {status} holds {holds} steps {steps}"))
            }
        })
        .await
    }

    /// Waits until the device looks like this; answers what it looked like last.
    pub(super) async fn wait_for_signature(
        &self,
        expected: &[String],
        going: &Going,
    ) -> anyhow::Result<()> {
        let what = "the same end as without the crash";
        try_wait_for(what, RECOVERS_WITHIN, async || {
            let snapshot = self.snapshot().await.map_err(|error| error.to_string())?;
            let found = snapshot.signature(&going.cast);
            if found == expected {
                Ok(())
            } else {
                Err(found.join(" | "))
            }
        })
        .await
    }

    /// Waits until the agent has asked for the target twice more and found nothing new.
    pub(super) async fn two_polls(&self) -> anyhow::Result<()> {
        let agent = self.device.agent.process()?;
        let mut mark = agent.mark();
        for _ in 0..2 {
            let said = ["the target has not changed"];
            agent
                .wait_for_log_since(mark, &said, RECOVERS_WITHIN)
                .await?;
            mark = agent.mark();
        }
        Ok(())
    }

    /// The end of the agent's log at the last violation.
    pub fn last_words(&self) -> &str {
        &self.last_words
    }

    /// The end of the agent's log, for evidence.
    pub fn agent_log(&self) -> String {
        let process = self.device.agent.process();
        process.map_or_else(|error| error.to_string(), crate::process::Process::tail)
    }
}
