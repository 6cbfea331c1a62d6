//! `make bench`: measures what the README claims, on the release binaries, and writes docs/figures.md.
//!
//! Medians of several runs; a client asks for the page every few milliseconds throughout.
#![allow(clippy::print_stdout, reason = "it reports its progress")]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::site::{Device, Site, service, target, wait_for_page};
use holdfast_tests::wait::try_wait_for;
use holdfast_tests::{binaries, place};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const RUNS: usize = 5;
const CONTAINERS: usize = 10;
/// How often the client asks.
const EVERY: Duration = Duration::from_millis(5);
/// A request that takes longer counts as failed: people would have given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const STEP_WITHIN: Duration = Duration::from_mins(2);
/// Polls and reports that the agent is left alone with before its memory is read.
const IDLE_POLLS: usize = 10;

/// A client that keeps asking, and remembers how long it went without a good answer.
struct Client {
    done: Arc<AtomicBool>,
    task: JoinHandle<Duration>,
}

impl Client {
    fn start(port: u16) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&done);
        let task = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            let mut last_good = Stopwatch::start();
            let mut ticks = tokio::time::interval(EVERY);
            while !ends.load(Ordering::Relaxed) {
                ticks.tick().await;
                if asks(port).await {
                    longest = longest.max(last_good.elapsed());
                    last_good = Stopwatch::start();
                }
            }
            longest.max(last_good.elapsed())
        });
        Self { done, task }
    }

    async fn longest_gap(self) -> anyhow::Result<Duration> {
        self.done.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

/// One request over a connection of its own, as a new visitor makes it.
async fn asks(port: u16) -> bool {
    let answer = tokio::time::timeout(ANSWER_WITHIN, async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok()?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.ok()?;
        text.starts_with(b"HTTP/1.1 200").then_some(())
    });
    answer.await.is_ok_and(|answer| answer.is_some())
}

fn web(image: &Pushed, port: u16) -> Value {
    let ports = json!([format!("127.0.0.1:{port}:8080")]);
    target(&[service(
        "web",
        &image.reference(),
        &json!({ "ports": ports }),
    )])
}

/// Median, least and most, in milliseconds.
fn row(what: &str, mut figures: Vec<Duration>) -> String {
    figures.sort();
    let ms = |figure: Option<&Duration>| figure.map_or(0, Duration::as_millis);
    format!(
        "| {what} | {} | {} | {} | {} |\n",
        ms(figures.get(figures.len() / 2)),
        ms(figures.first()),
        ms(figures.last()),
        figures.len()
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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut table =
        String::from("| what | median ms | least | most | runs |\n|---|---|---|---|---|\n");
    let bench = Bench::start().await?;
    println!("swaps …");
    bench.swaps(&mut table).await?;
    let name = bench.repository.clone();
    println!("roll backs …");
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
    println!("footprint …");
    footprint(&mut table).await?;
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/figures.md");
    let now = i64::try_from(holdfast_tests::clock::unix_seconds())?;
    let now = holdfast_proto::time::Timestamp::from_millis(now * 1_000).to_string();
    let today = now.get(..10).unwrap_or_default();
    let text = format!(
        "# Figures\n\nGenerated by `make bench` on {today}; do not edit. One machine, 2 cores, loopback; gate of the tests (health check every\n200 ms, 1 s stable time). A client asks every {} ms over a new connection.\n\n{table}",
        EVERY.as_millis()
    );
    std::fs::write(&out, &text)?;
    println!("{table}\nwritten to docs/figures.md");
    Ok(())
}
