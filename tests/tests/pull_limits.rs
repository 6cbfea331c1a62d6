//! How much of the line, the day and the disk a pull may take.

use std::path::Path;

use anyhow::Context as _;
use holdfast_tests::clock::{self, Stopwatch};
use holdfast_tests::disk::{SmallDisk, fill};
use holdfast_tests::engine::{Engine, Private};
use holdfast_tests::images::{Image, Pushed, noise};
use holdfast_tests::line::Line;
use holdfast_tests::registry::Login;
use holdfast_tests::serving::{Serving, life};
use holdfast_tests::site::{CONVERGES_WITHIN, Device, Site};
use holdfast_tests::tcp_tap::Mode;
use holdfast_tests::wait::wait_for;
use holdfast_tests::{agent, api, place};
use serde_json::{Value, json};

async fn heavy(line: &Line, bytes: usize) -> anyhow::Result<Pushed> {
    let image = Image::idle(format!("heavy-{}", place::unique()), "one");
    image
        .file("noise", noise(bytes))
        .push(&line.registry, "1")
        .await
}

async fn says(line: &Line, device: &Device, words: &str) {
    wait_for(
        &format!("the report to say {words:?}"),
        CONVERGES_WITHIN,
        async || match line.site.report(&device.uuid).await {
            Ok(report) if report.to_string().contains(words) => Ok(()),
            other => Err(other),
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_comes_in_a_second_than_is_allowed() -> anyhow::Result<()> {
    const CAP: u64 = 2_000_000;
    /// The most that kernels keep between the line and the agent.
    const ON_ITS_WAY: u64 = 2_000_000;
    let line = Line::on(Engine::shared().await?).await?;
    let image = heavy(&line, 8_000_000).await?;
    let capped = |options: agent::Options| options.set("pull", "most_bytes_per_second", CAP);
    let mut device = line.site.device_at(line.site.api.url(), capped).await?;
    device.agent.run()?;
    let begun = Stopwatch::start();
    line.site.converge(&device, &line.target(&image)).await?;
    let took_ms = u64::try_from(begun.elapsed().as_millis())?;
    let (came, allowed) = (line.came(), CAP * took_ms / 1_000);
    assert!(
        came < allowed + allowed / 10 + ON_ITS_WAY,
        "{came} bytes in {took_ms} ms"
    );
    Ok(())
}

/// A zone in which the day does not end while a test runs.
fn zone() -> &'static str {
    let hour = clock::unix_seconds() / 3_600 % 24;
    if hour == 23 { "Asia/Tokyo" } else { "UTC" }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_days_bytes_are_counted_over_a_restart() -> anyhow::Result<()> {
    let line = Line::on(Engine::shared().await?).await?;
    let image = heavy(&line, 4_000_000).await?;
    let frugal = |options: agent::Options| {
        let options = options.set("pull", "most_mb_per_day", 2);
        options.set("pull", "timezone", zone())
    };
    let mut device = line.site.device_at(line.site.api.url(), frugal).await?;
    device.agent.run()?;
    line.tap.set(Mode::Slow {
        bytes_per_second: 4_000_000,
    });
    let stored = line.site.set(&device.uuid, &line.target(&image)).await?;
    says(&line, &device, "today's bytes are used up").await;
    let before = line.came();
    assert!((2_000_000..2_500_000).contains(&before), "{before}");
    for restarts in 1..=2 {
        device.agent.kill9();
        device.agent.run()?;
        let log = device.agent.process()?;
        log.wait_for_log(&["today's bytes are used up"], CONVERGES_WITHIN)
            .await?;
        let came = line.came() - before;
        assert!(came < 20_000 * restarts, "{came} bytes more");
    }
    // Its owner allows more: it goes on where it was.
    device.agent.stop();
    let file = device.agent.config_file();
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    settings["pull"]["most_mb_per_day"] = json!(100);
    std::fs::write(&file, settings.to_string())?;
    device.agent.run()?;
    line.site
        .wait_for_status(&device.uuid, &stored["generation"], "converged")
        .await;
    let (came, bytes) = (line.came(), image.child("linux/amd64").layers_size_bytes);
    assert!(came < bytes + bytes / 5, "{came} bytes came, not {bytes}");
    Ok(())
}

/// An engine whose disk the agent shares, as on most devices.
async fn small() -> anyhow::Result<(Engine, std::path::PathBuf)> {
    let private = Private {
        disk: Some(SmallDisk::of(320 << 20)),
        ..Private::default()
    };
    let engine = Engine::private_with(private).await?;
    let state = engine.data()?.join("agent");
    Ok((engine, state))
}

fn empty(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("filler-") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The megabytes that a hold asks for, and those that are free.
fn shortage(report: &str) -> Option<(u64, u64)> {
    let (_, rest) = report.split_once("it needs ")?;
    let (need, rest) = rest.split_once(" MB free, ")?;
    let (free, _) = rest.split_once(" MB are")?;
    Some((need.parse().ok()?, free.parse().ok()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a42_what_fits_is_pulled_and_what_does_not_is_not_begun() -> anyhow::Result<()> {
    let (engine, state) = small().await?;
    let data = engine.data()?;
    let site = Site::on(engine, api::Options::default(), Login::Open, None).await?;
    let on_it = |options| agent::Options {
        state: Some(state),
        ..options
    };
    let serving = Serving::at(site, on_it).await?;
    let noisy = Image::healthy_web(&serving.repository, "two").file("noise", noise(20_000_000));
    let two = serving.push(noisy, "two").await?;
    fill(&data, 60_000_000)?;
    let before = serving.device.running("web").await?;
    let generation = serving.set(&two).await?;
    let report = serving.says(&["no_space", "it needs "]).await;
    let (megabytes, _) = shortage(&report).unwrap_or_else(|| panic!("{report}"));
    let leave = |tenths: u64| -> anyhow::Result<()> {
        empty(&data)?;
        fill(&data, megabytes * 1_000_000 / 10 * tenths)?;
        Ok(())
    };
    leave(9)?;
    let seen = async || {
        serving.device.agent.command(&["update-now"]).await?;
        let report = serving.site.report(&serving.device.uuid).await?;
        let found = shortage(&report.to_string());
        anyhow::Ok(found.filter(|(need, free)| free * 10 > need * 8))
    };
    let seen = async || seen().await.and_then(|found| found.context("not yet"));
    wait_for("the hold to say what is free now", CONVERGES_WITHIN, seen).await;
    let calls = serving.device.tap.calls();
    assert!(
        calls
            .iter()
            .filter(|call| call.path == "/images/create")
            .count()
            == 1,
        "a tenth too little: not begun"
    );
    assert_eq!(life(&before), life(&serving.device.running("web").await?));
    leave(12)?;
    serving.device.agent.command(&["update-now"]).await?;
    serving.reports(&generation, "converged").await;
    serving.serves("two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a43_a_disk_that_others_fill_in_a_pull_costs_nothing_that_runs() -> anyhow::Result<()> {
    let (engine, state) = small().await?;
    let data = engine.data()?;
    let line = Line::on(engine).await?;
    let on_it = |options| agent::Options {
        state: Some(state),
        ..options
    };
    let mut device = line.site.device_at(line.site.api.url(), on_it).await?;
    device.agent.run()?;
    let one = heavy(&line, 1_000).await?;
    line.site.converge(&device, &line.target(&one)).await?;
    let before = device.running("web").await?;
    let two = heavy(&line, 16_000_000).await?;
    line.tap.set(Mode::Slow {
        bytes_per_second: 4_000_000,
    });
    let came = line.came();
    let stored = line.site.set(&device.uuid, &line.target(&two)).await?;
    let middle = async || line.came() > came + 4_000_000;
    wait_for("the middle of the pull", CONVERGES_WITHIN, middle).await;
    // However long it takes to fill the disk, the pull is not done before.
    line.tap.set(Mode::Slow {
        bytes_per_second: 500_000,
    });
    fill(&data, 0)?;
    says(&line, &device, "no_space").await;
    let log = device.agent.process()?;
    log.wait_for_log(&["others left only"], CONVERGES_WITHIN)
        .await?;
    assert_eq!(life(&before), life(&device.running("web").await?));
    empty(&data)?;
    line.tap.set(Mode::Open);
    line.site
        .wait_for_status(&device.uuid, &stored["generation"], "converged")
        .await;
    Ok(())
}
