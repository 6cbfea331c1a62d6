//! What one device does: swaps and roll backs from the set target on, and what the agent weighs.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::site::{Device, Site, service, target, wait_for_page};
use holdfast_tests::wait::try_wait_for;
use holdfast_tests::{binaries, place};
use serde_json::{Value, json};

use crate::client::{Client, asks};
use crate::spread::Spread;

const RUNS: usize = 5;
const CONTAINERS: usize = 10;
const STEP_WITHIN: Duration = Duration::from_mins(2);
/// Polls and reports that the agent is left alone with before its memory is read.
const IDLE_POLLS: usize = 10;

fn web(image: &Pushed, port: u16) -> Value {
    let ports = json!([format!("127.0.0.1:{port}:8080")]);
    target(&[service(
        "web",
        &image.reference(),
        &json!({ "ports": ports }),
    )])
}

/// Median, least and most, in milliseconds.
fn row(what: &str, figures: Vec<Duration>) -> String {
    let spread = Spread::of(figures);
    format!(
        "| {what} | {} | {} | {} | {} |\n",
        spread.median.as_millis(),
        spread.least.as_millis(),
        spread.most.as_millis(),
        spread.runs
    )
}

struct Bench {
    site: Site,
    device: Device,
    port: u16,
    repository: String,
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let site = Site::start().await?;
        let mut device = site
            .device_at(site.api.url(), |options| {
                options.set("log", "level", "info")
            })
            .await?;
        let port = device.port()?;
        device.agent.run()?;
        Ok(Self {
            site,
            device,
            port,
            repository: format!("bench-{}", place::unique()),
        })
    }

    async fn good(&self, version: usize) -> anyhow::Result<Pushed> {
        let text = format!("version {version}");
        Image::healthy_web(&self.repository, &text)
            .push(&self.site.registry, &format!("v{version}"))
            .await
    }

    /// Swaps between good versions: from the set target to converged, and what a client noticed.
    async fn swaps(&self, table: &mut String) -> anyhow::Result<()> {
        let (mut gaps, mut whole) = (Vec::new(), Vec::new());
        for version in 1..=RUNS {
            let image = self.good(version).await?;
            let client = Client::start(self.port);
            let begun = Stopwatch::start();
            self.site
                .converge(&self.device, &web(&image, self.port))
                .await?;
            wait_for_page(self.port, &format!("version {version}")).await;
            whole.push(begun.elapsed());
            gaps.push(client.longest_gap().await?);
        }
        *table += &row("swap: target set → converged", whole);
        *table += &row("swap: longest time a client went without an answer", gaps);
        Ok(())
    }

    /// A bad image over a good one: until the good one serves for good, and what a client noticed.
    async fn roll_backs(
        &self,
        what: &str,
        make: impl Fn(usize) -> Image,
        table: &mut String,
    ) -> anyhow::Result<()> {
        let (mut gaps, mut whole) = (Vec::new(), Vec::new());
        for run in 0..RUNS {
            let good = self.good(1).await?;
            self.site
                .converge(&self.device, &web(&good, self.port))
                .await?;
            wait_for_page(self.port, "version 1").await;
            let old = self.device.running("web").await?["Id"].clone();
            let tag = format!("bad-{}-{run}", place::unique());
            let bad = make(run)
                .label("run", &tag)
                .push(&self.site.registry, &tag)
                .await?;
            let client = Client::start(self.port);
            let begun = Stopwatch::start();
            let stored = self
                .site
                .set(&self.device.uuid, &web(&bad, self.port))
                .await?;
            try_wait_for(
                "the good container to serve again",
                STEP_WITHIN,
                async || {
                    let report = self
                        .site
                        .report(&self.device.uuid)
                        .await
                        .map_err(|e| e.to_string())?
                        .to_string();
                    let reported = report.contains("\"rejected\"")
                        && report.contains(&format!("\"generation\":{}", stored["generation"]));
                    let running = self
                        .device
                        .running("web")
                        .await
                        .map_err(|e| e.to_string())?;
                    if reported && running["Id"] == old && asks(self.port).await {
                        Ok(())
                    } else {
                        Err(report)
                    }
                },
            )
            .await?;
            whole.push(begun.elapsed());
            gaps.push(client.longest_gap().await?);
        }
        *table += &row(
            &format!("{what}: target set → old container serves, reported"),
            whole,
        );
        *table += &row(
            &format!("{what}: longest time a client went without an answer"),
            gaps,
        );
        Ok(())
    }
}

/// Proportional set size of a process (kernel documentation, `smaps_rollup`), in kB.
fn pss_kb(pid: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text
        .lines()
        .find(|line| line.starts_with("Pss:"))
        .context("a Pss line")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("a figure")?
        .parse()?)
}

/// The agent's memory and size with ten containers, after a while of nothing to do.
async fn footprint(table: &mut String) -> anyhow::Result<()> {
    let site = Site::start().await?;
    let image = Image::idle(format!("idle-{}", place::unique()), "1")
        .push(&site.registry, "1")
        .await?;
    let mut device = site
        .device_at(site.api.url(), |options| {
            options.set("log", "level", "debug")
        })
        .await?;
    device.agent.run()?;
    let services: Vec<Value> = (0..CONTAINERS)
        .map(|number| service(&format!("idle{number}"), &image.reference(), &json!({})))
        .collect();
    site.converge(&device, &target(&services)).await?;
    let agent = device.agent.process()?;
    for _ in 0..IDLE_POLLS {
        let mark = agent.mark();
        agent
            .wait_for_log_since(mark, &["the target has not changed"], STEP_WITHIN)
            .await?;
    }
    let pss = pss_kb(agent.pid())?;
    let length = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len());
    let agent_size = length(&binaries::agent()?)?;
    let api_size = length(&binaries::api()?)?;
    writeln!(table, "\n| footprint | figure |\n|---|---|")?;
    writeln!(
        table,
        "| agent, idle with {CONTAINERS} containers, PSS | {pss} kB |"
    )?;
    writeln!(table, "| agent, release binary | {agent_size} bytes |")?;
    writeln!(table, "| control API, release binary | {api_size} bytes |")?;
    Ok(())
}

/// The section of `docs/figures.md`.
pub(crate) async fn measure() -> anyhow::Result<String> {
    let mut table =
        String::from("| what | median ms | least | most | runs |\n|---|---|---|---|---|\n");
    let bench = Bench::start().await?;
    bench.swaps(&mut table).await?;
    let name = bench.repository.clone();
    bench
        .roll_backs(
            "broken entrypoint",
            |_| Image::broken_entrypoint(&name),
            &mut table,
        )
        .await?;
    bench
        .roll_backs(
            "never healthy",
            |run| Image::never_healthy(&name, &format!("bad {run}")),
            &mut table,
        )
        .await?;
    bench
        .roll_backs("crash loop", |_| Image::crash_loop(&name, 0), &mut table)
        .await?;
    drop(bench);
    footprint(&mut table).await?;
    Ok(table)
}
