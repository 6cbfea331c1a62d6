//! Pulls over bad lines, beside `docker pull` over the same ones: how many wedge the engine, how many bytes
//! come twice, how long a good one takes, how much memory it needs.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::agent::Options;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::docker::Docker;
use holdfast_tests::engine::Engine;
use holdfast_tests::images::{Image, Pushed, noise};
use holdfast_tests::line::Line;
use holdfast_tests::place;
use holdfast_tests::site::{CONVERGES_WITHIN, Device, service, target};
use holdfast_tests::tcp_tap::Mode;
use holdfast_tests::wait::{LOOK_AGAIN, try_wait_for};
use serde_json::{Value, json};

use crate::spread::Spread;

/// A pull after which the same layer is still not to be had is a wedge: a good one takes a second.
const WEDGED_AFTER: Duration = Duration::from_secs(15);
/// The slowest line takes an image in so long.
const TAKES_LONG: Duration = Duration::from_mins(10);
/// How long a client waits for a pull that stands still before it goes away (M2).
const GOES_AWAY_AFTER: Duration = Duration::from_secs(5);
/// Slow enough that a layer is caught on its way.
const CAUGHT: Mode = Mode::Slow {
    bytes_per_second: 50_000,
};

/// How a line stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Still {
    /// The blob is asked for and never answered.
    Unanswered,
    /// It stops in the middle.
    InTheMiddle,
    /// It goes on with 64 bytes a second.
    Drip,
}

const STILL: [Still; 3] = [Still::Unanswered, Still::InTheMiddle, Still::Drip];

/// A device on an engine of its own, with a second registry behind a line.
pub(crate) struct Lines {
    line: Line,
    device: Device,
}

impl Lines {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::with(|options| options).await
    }

    async fn with(adjust: impl FnOnce(Options) -> Options) -> anyhow::Result<Self> {
        let line = Line::on(Engine::private().await?).await?;
        let api = line.site.api.url();
        let mut device = line.site.device_at(api, adjust).await?;
        device.agent.run()?;
        Ok(Self { line, device })
    }

    fn docker(&self) -> &Docker {
        self.line.site.engine.docker()
    }

    async fn set(&self, reference: &str) -> anyhow::Result<Value> {
        let wanted = target(&[service("web", reference, &json!({}))]);
        self.line.site.set(&self.device.uuid, &wanted).await
    }

    async fn converge(&self, reference: &str) -> anyhow::Result<()> {
        let wanted = target(&[service("web", reference, &json!({}))]);
        self.line.site.converge(&self.device, &wanted).await?;
        Ok(())
    }

    /// As [`Lines::converge`], over a line on which an image takes minutes.
    async fn converge_late(&self, reference: &str) -> anyhow::Result<()> {
        let stored = self.set(reference).await?;
        let reported = async || {
            let report = self.line.site.report(&self.device.uuid).await?;
            let is_it = report["generation"] == stored["generation"];
            ensure!(is_it && report["status"] == "converged", "{report}");
            anyhow::Ok(())
        };
        try_wait_for("a slow image", TAKES_LONG, reported).await
    }

    async fn moved(&self, bytes: u64) -> anyhow::Result<()> {
        let moved = async || self.line.came() >= bytes;
        try_wait_for("bytes on the line", CONVERGES_WITHIN, moved).await
    }

    /// How the line is before a pull that is to stand still in this way.
    fn prepare(&self, how: Still) {
        self.line.tap.set(match how {
            Still::Unanswered => Mode::Mute { words: "/blobs/" },
            Still::InTheMiddle | Still::Drip => CAUGHT,
        });
    }

    /// Waits until the pull stands still.
    async fn stand_still(&self, how: Still, before: (usize, u64)) -> anyhow::Result<()> {
        match how {
            Still::Unanswered => {
                let muted = async || self.line.tap.muted() > before.0;
                try_wait_for("a blob to be asked for", CONVERGES_WITHIN, muted).await?;
            }
            // Documents are a few kilobytes, a layer's middle is beyond.
            Still::InTheMiddle => {
                self.moved(before.1 + 120_000).await?;
                self.line.tap.set(Mode::Stall);
            }
            Still::Drip => {
                self.moved(before.1 + 120_000).await?;
                self.line.tap.set(Mode::Slow {
                    bytes_per_second: 64,
                });
            }
        }
        Ok(())
    }

    fn so_far(&self) -> (usize, u64) {
        (self.line.tap.muted(), self.line.came())
    }
}

/// Two images, one at each registry, that share a layer of their own.
async fn pair(lines: &Lines) -> anyhow::Result<(Pushed, Pushed)> {
    let shared = noise(400_000);
    let image = |version: &str| {
        let repository = format!("pull-{}", place::unique());
        Image::idle(repository, version).file("shared", shared.clone())
    };
    let stalls = image("one").push(&lines.line.registry, "1").await?;
    let good = image("two").push(&lines.line.site.registry, "1").await?;
    Ok((stalls, good))
}

/// What stalled pulls left behind.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    /// From the next target until it is converged.
    pub(crate) ours: Vec<Duration>,
    /// The same of `docker pull`; none where it was wedged.
    pub(crate) engines: Vec<(Still, Option<Duration>)>,
}

/// So many pulls that stand still, each followed by a good one of an image that shares the layer; so many of the
/// same with `docker pull`.
pub(crate) async fn stalls(many: usize, beside: usize) -> anyhow::Result<Stalls> {
    let mut found = Stalls::default();
    let ways = || STILL.iter().copied().cycle().enumerate();
    let lines = Lines::start().await?;
    let engine = lines.line.site.engine.pid()?;
    for (run, how) in ways().take(many) {
        let took = stalled(&lines, how).await;
        let took = took.with_context(|| format!("stall {run}, {how:?}"))?;
        found.ours.push(took);
    }
    ensure!(
        engine == lines.line.site.engine.pid()?,
        "the engine was restarted"
    );
    drop(lines);
    let mut lines = None;
    for (_, how) in ways().take(beside) {
        let fresh = match lines.take() {
            Some(lines) => lines,
            None => Lines::start().await?,
        };
        let took = stalled_engine(&fresh, how).await?;
        // What is wedged also keeps one of the engine's places for downloads: the next one would wait for it.
        lines = took.is_some().then_some(fresh);
        found.engines.push((how, took));
    }
    Ok(found)
}

async fn stalled(lines: &Lines, how: Still) -> anyhow::Result<Duration> {
    let (stalls, good) = pair(lines).await?;
    lines.prepare(how);
    let before = lines.so_far();
    lines.set(&lines.line.reference(&stalls)).await?;
    lines.stand_still(how, before).await?;
    let begun = Stopwatch::start();
    lines.converge(&good.reference()).await?;
    Ok(begun.elapsed())
}

async fn stalled_engine(lines: &Lines, how: Still) -> anyhow::Result<Option<Duration>> {
    let (stalls, good) = pair(lines).await?;
    lines.prepare(how);
    let before = lines.so_far();
    let reference = lines.line.reference(&stalls);
    let pull = lines.docker().pull(&reference, None);
    let watch = async {
        lines.stand_still(how, before).await?;
        tokio::time::sleep(GOES_AWAY_AFTER).await;
        anyhow::Ok(())
    };
    tokio::select! {
        ended = pull => ended?,
        stood = watch => stood?,
    }
    let begun = Stopwatch::start();
    let reference = good.reference();
    let next = lines.docker().pull(&reference, None);
    match tokio::time::timeout(WEDGED_AFTER, next).await {
        Ok(outcome) => outcome.map(|()| Some(begun.elapsed())),
        Err(_) => Ok(None),
    }
}

/// Bytes over the line for an image of so many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes {
    pub(crate) image: u64,
    pub(crate) ours: u64,
    /// Whether the engine was asked, too.
    pub(crate) beside: bool,
    /// Its bytes, and those of the layer that it did not have from the first image; none: it gave up.
    pub(crate) engines: Option<(u64, u64)>,
}

/// One image over a line like this, and one of the same size by the engine itself.
pub(crate) async fn over(line: Mode, image_bytes: usize) -> anyhow::Result<Bytes> {
    let lines = Lines::start().await?;
    let image = async |version: &str| {
        let repository = format!("pull-{}", place::unique());
        let image = Image::idle(repository, version).file("noise", noise(image_bytes));
        image.push(&lines.line.registry, "1").await
    };
    let (one, two) = (image("one").await?, image("two").await?);
    lines.line.tap.set(line);
    let before = lines.line.came();
    lines.converge_late(&lines.line.reference(&one)).await?;
    let ours = lines.line.came() - before;
    let before = lines.line.came();
    let pulled = lines.docker().pull(&lines.line.reference(&two), None).await;
    let engines = pulled.is_ok().then(|| lines.line.came() - before);
    Ok(Bytes {
        image: one.child("linux/amd64").layers_size_bytes,
        ours,
        beside: true,
        engines: engines.map(|came| (came, image_bytes as u64)),
    })
}

/// Bytes over the line while the agent is killed so often in one pull, and those of the image.
pub(crate) async fn kills(many: u32, image_bytes: usize) -> anyhow::Result<Bytes> {
    let mut lines = Lines::start().await?;
    let repository = format!("pull-{}", place::unique());
    let one = Image::idle(&repository, "one").file("noise", noise(image_bytes));
    let one = one.push(&lines.line.registry, "1").await?;
    let image = one.child("linux/amd64").layers_size_bytes;
    lines.line.tap.set(Mode::Slow {
        bytes_per_second: 4_000_000,
    });
    let before = lines.line.came();
    let stored = lines.set(&lines.line.reference(&one)).await?;
    for kill in 1..=many {
        let at = before + image * u64::from(kill) / u64::from(many + 1);
        lines.moved(at).await?;
        lines.device.agent.kill9();
        lines.device.agent.run()?;
    }
    lines
        .line
        .site
        .wait_for_status(&lines.device.uuid, &stored["generation"], "converged")
        .await;
    let ours = lines.line.came() - before;
    let running = lines.device.running("web").await?;
    ensure!(
        running["Image"] == one.child("linux/amd64").config_digest,
        "another image runs"
    );
    Ok(Bytes {
        image,
        ours,
        beside: false,
        engines: None,
    })
}

/// Pulls of new images over a good line, ours and the engine's in turn.
pub(crate) async fn speed(
    rounds: usize,
    image_bytes: usize,
) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let lines = Lines::start().await?;
    let (mut ours, mut engines) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let image = async || {
            let repository = format!("pull-{}", place::unique());
            let image = Image::idle(repository, "one").file("noise", noise(image_bytes));
            image.push(&lines.line.site.registry, "1").await
        };
        let (one, two) = (image().await?, image().await?);
        let log = lines.device.agent.process()?;
        let mark = log.mark();
        lines.set(&one.reference()).await?;
        let began = log.wait_for_log_since(mark, &["begun: ", "pull"], CONVERGES_WITHIN);
        began.await?;
        let from = Stopwatch::start();
        let ended = log.wait_for_log_since(mark, &["pulled and verified"], CONVERGES_WITHIN);
        ended.await?;
        ours.push(from.elapsed());
        let from = Stopwatch::start();
        lines.docker().pull(&two.reference(), None).await?;
        engines.push(from.elapsed());
    }
    Ok((ours, engines))
}

/// The most memory (PSS, kilobytes) that the agent has while an image comes.
pub(crate) async fn memory(image_bytes: usize) -> anyhow::Result<u64> {
    let lines = Lines::start().await?;
    let repository = format!("pull-{}", place::unique());
    let image = Image::idle(repository, "one").file("noise", noise(image_bytes));
    let image = image.push(&lines.line.site.registry, "1").await?;
    let rollup = format!("/proc/{}/smaps_rollup", lines.device.agent.process()?.pid());
    let most = std::cell::Cell::new(0);
    let watch = async {
        loop {
            let text = std::fs::read_to_string(&rollup).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let words = line.and_then(|line| line.split_whitespace().next());
            let now = words.and_then(|word| word.parse().ok()).unwrap_or(0);
            most.set(most.get().max(now));
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let reference = image.reference();
    let work = lines.converge(&reference);
    tokio::select! {
        outcome = work => outcome?,
        () = watch => {}
    }
    Ok(most.get())
}

/// How fast an image comes where so many bytes a second are allowed, in thousandths of that.
pub(crate) async fn capped(cap: u64, image_bytes: usize) -> anyhow::Result<u64> {
    let lines = Lines::with(|options| options.set("pull", "most_bytes_per_second", cap)).await?;
    let repository = format!("pull-{}", place::unique());
    let image = Image::idle(repository, "one").file("noise", noise(image_bytes));
    let image = image.push(&lines.line.registry, "1").await?;
    let before = lines.line.came();
    let log = lines.device.agent.process()?;
    let mark = log.mark();
    lines.set(&lines.line.reference(&image)).await?;
    // The first bytes are documents and the base layer.
    lines.moved(before + 3_000).await?;
    let begun = Stopwatch::start();
    let ended = log.wait_for_log_since(mark, &["pulled and verified"], TAKES_LONG);
    ended.await?;
    let took_us = u64::try_from(begun.elapsed().as_micros())?.max(1);
    let came = lines.line.came() - before;
    Ok(came.saturating_mul(1_000_000) / took_us * 1_000 / cap)
}

/// The section of `docs/figures.md` on pulls that stand still.
pub(crate) async fn measure_stalls() -> anyhow::Result<String> {
    let stalls = stalls(100, 30).await?;
    let slow = stalls
        .ours
        .iter()
        .filter(|took| **took > Duration::from_secs(5));
    let (late, many) = (slow.count(), stalls.ours.len());
    let of_engine = |how: Still| {
        let runs = stalls.engines.iter().filter(|(kind, _)| *kind == how);
        let wedged = runs.clone().filter(|(_, took)| took.is_none()).count();
        format!("{wedged} of {}", runs.count())
    };
    Ok(format!(
        "Pulls that stand still, each followed by one of an image that shares the layer; wedged is a layer that \
         is still not there {} s after another registry offers it:\n\n\
         | | pulls | next one took, ms: least | median | p95 | most | runs | over 5 s | wedged |\n\
         |---|---|---|---|---|---|---|---|---|\n\
         | through the agent | {many} | {} | {late} | 0 |\n\n\
         `docker pull`: wedged {} where the blob is never answered, {} where it stops in the middle, {} at 64 bytes a \
         second.\n",
        WEDGED_AFTER.as_secs(),
        Spread::of(stalls.ours.clone()),
        of_engine(Still::Unanswered),
        of_engine(Still::InTheMiddle),
        of_engine(Still::Drip),
    ))
}

/// The section of `docs/figures.md` on bytes, time and memory.
pub(crate) async fn measure() -> anyhow::Result<String> {
    let drops = over(Mode::EndsAfter { bytes: 2_000_000 }, 20_000_000).await?;
    let narrow = Mode::Slow {
        bytes_per_second: 32_000,
    };
    let narrow = over(narrow, 1_200_000).await?;
    let killed = kills(100, 60_000_000).await?;
    let capped = capped(1_000_000, 20_000_000).await?;
    let (ours, engines) = speed(10, 60_000_000).await?;
    let pss = memory(500_000_000).await?;
    let (ours, engines) = (Spread::of(ours), Spread::of(engines));
    let ratio = ours.median.as_secs_f64() / engines.median.as_secs_f64();
    let row = |what: &str, bytes: Bytes| {
        let share = |(came, of): (u64, u64)| thousandths(came.saturating_mul(1_000) / of.max(1));
        let engines = match (bytes.engines, bytes.beside) {
            (Some(both), _) => share(both),
            (None, true) => "gave up".to_owned(),
            (None, false) => "–".to_owned(),
        };
        let ours = share((bytes.ours, bytes.image));
        format!("| {what} | {} | {ours} | {engines} |\n", bytes.image)
    };
    Ok(format!(
        "| line | image, bytes | bytes over it, of the image's: agent | `docker pull` |\n|---|---|---|---|\n\
         {}{}{}\n\
         60 MB over a good line: {} ms through the agent, {} ms by the engine (medians of {}): {ratio:.2}. \
         20 MB where 1 MB a second is allowed: {} of that. Memory of the agent while 500 MB come: at most \
         {pss} kB (PSS).\n",
        row("every connection ends after 2 MB", drops),
        row("256 kbit/s", narrow),
        row("the agent killed 100 times", killed),
        ours.median.as_millis(),
        engines.median.as_millis(),
        ours.runs,
        thousandths(capped),
    ))
}

/// A number of thousandths, with a point.
fn thousandths(number: u64) -> String {
    format!("{}.{:03}", number / 1_000, number % 1_000)
}
