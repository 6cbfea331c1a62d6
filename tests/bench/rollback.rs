//! Rollbacks while neither API nor registry answer, and while the disk is full: how many succeed, and
//! how long it takes from the failed gate until the container of before serves.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_proto::time::Timestamp;
use holdfast_tests::clock::unix_millis;
use holdfast_tests::disk::{SmallDisk, fill};
use holdfast_tests::engine::{Engine, Private};
use holdfast_tests::images::Image;
use holdfast_tests::registry::Login;
use holdfast_tests::serving::Serving;
use holdfast_tests::site::{CONVERGES_WITHIN, Site, page};
use holdfast_tests::tap::{Action, Call, Rule, When};
use holdfast_tests::tcp_tap::{Mode, TcpTap};
use holdfast_tests::wait::try_wait_for;
use holdfast_tests::{agent, api};
use serde_json::Value;

use crate::spread::Spread;

/// What is wrong while the rollback happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Neither API nor registry answer.
    Offline,
    /// The disk of images and containers has no free byte.
    DiskFull,
}

/// Large enough for two versions and the reserve, small enough to be filled at once.
const DISK_BYTES: u64 = 256 << 20;

/// So many rollbacks; how long each took. One that does not come back is an error.
pub(crate) async fn rollbacks(trouble: Trouble, many: usize) -> anyhow::Result<Vec<Duration>> {
    let full = trouble == Trouble::DiskFull;
    let private = Private {
        disk: full.then(|| SmallDisk::of(DISK_BYTES)),
        ..Private::default()
    };
    let engine = Engine::private_with(private).await?;
    let site = Site::on(engine, api::Options::default(), Login::Open, None).await?;
    let line = TcpTap::start(site.api.address()).await?;
    // As on most devices: engine and agent share a disk, so that the reserve is room for the way back.
    let state = full.then(|| Ok::<_, anyhow::Error>(site.engine.data()?.join("agent")));
    let state = state.transpose()?;
    let adjust = |options: agent::Options| agent::Options {
        state,
        ..options.set("log", "level", "info")
    };
    let mut serving = Serving::through(line.url(), site, adjust).await?;
    let mut took = Vec::new();
    for run in 0..many {
        let once = one(&mut serving, &line, trouble, run).await;
        took.push(once.with_context(|| format!("rollback {} of {many}", run + 1))?);
    }
    Ok(took)
}

async fn one(
    serving: &mut Serving,
    line: &TcpTap,
    trouble: Trouble,
    run: usize,
) -> anyhow::Result<Duration> {
    let before = serving.device.running("web").await?;
    // Serves for a moment and ends with an error: the gate fails when it ends.
    let dies = "#!/bin/sh\nhttpd -f -p 8080 -h /www &\nsleep 0.5\nexit 9\n";
    let tag = format!("bad-{run}");
    let bad = Image::web(&serving.repository, &tag).file("/bin/serve", dies);
    let bad = serving.push(bad, &tag).await?;
    let at = |call| Rule::on(call).when(When::AfterResponse);
    let reached = match trouble {
        Trouble::Offline => serving.device.tap.arm(at("POST /containers/*/stop")),
        Trouble::DiskFull => {
            let data = serving.site.engine.data()?;
            let full = move |_: &Call| {
                // Whatever does not fit any more is what full means.
                let _ = fill(&data, 0);
            };
            // Only a candidate that runs can fail its gate: a full disk lets no new one start.
            let rule = at("POST /containers/*/start").then(Action::Run(Arc::new(full)));
            serving.device.tap.arm(rule)
        }
    };
    serving.set(&bad).await?;
    reached.wait(CONVERGES_WITHIN).await?;
    if trouble == Trouble::Offline {
        line.set(Mode::Cut);
        serving.site.registry.stop();
    }
    let candidate = candidate(serving, &before).await?;
    let failed_at = try_wait_for("the candidate to end", CONVERGES_WITHIN, async || {
        let found = serving.device.docker().container(&candidate).await;
        let found = found.ok().flatten().ok_or("it is gone")?;
        if found["State"]["Running"] == true || found["State"]["Status"] == "created" {
            return Err("it runs");
        }
        let at = found["State"]["FinishedAt"].as_str().unwrap_or_default();
        at.parse::<Timestamp>().map_err(|_| "no time of its end")
    })
    .await?;
    let back_at = try_wait_for("version one", CONVERGES_WITHIN, async || {
        let text = page(serving.port).await?;
        if text == "one" {
            Ok(unix_millis())
        } else {
            Err(text)
        }
    })
    .await?;
    serving.one_is_back(&before).await?;
    match trouble {
        Trouble::Offline => {
            serving.site.registry.process().restart()?;
            line.set(Mode::Open);
        }
        Trouble::DiskFull => {
            for entry in fs::read_dir(serving.site.engine.data()?)?.flatten() {
                if entry.file_name().to_string_lossy().starts_with("filler-") {
                    fs::remove_file(entry.path())?;
                }
            }
        }
    }
    serving.says(&[&bad.top_digest, "\"rejected\":{"]).await;
    serving.converge(&serving.one).await?;
    let now = serving.only_container().await?;
    ensure!(now["Id"] == before["Id"], "another container serves");
    let took = back_at.saturating_sub(failed_at.as_millis());
    Ok(Duration::from_millis(u64::try_from(took).unwrap_or(0)))
}

/// The container on trial.
async fn candidate(serving: &Serving, before: &Value) -> anyhow::Result<String> {
    try_wait_for("the candidate", CONVERGES_WITHIN, async || {
        let all = serving.device.containers_of("web").await.ok()?;
        let other = all.iter().find(|found| found["Id"] != before["Id"])?;
        other["Id"].as_str().map(str::to_owned)
    })
    .await
}

/// The section of `docs/figures.md`.
pub(crate) async fn measure(offline: usize, full: usize) -> anyhow::Result<String> {
    let without = rollbacks(Trouble::Offline, offline).await?;
    let crowded = rollbacks(Trouble::DiskFull, full).await?;
    Ok(format!(
        "From the end of a candidate that fails its gate until the container of before answers.\n\n\
         | ms | least | median | p95 | most | came back |\n|---|---|---|---|---|---|\n\
         | API and registry away | {} of {offline} |\n| the disk full | {} of {full} |\n",
        Spread::of(without),
        Spread::of(crowded),
    ))
}
