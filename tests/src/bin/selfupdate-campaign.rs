//! `make selfupdate-campaign`: gives devices bad releases of the agent, and writes docs/selfupdate-campaign.md.
#![allow(clippy::print_stdout, reason = "it reports its progress")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_proto::time::Timestamp;
use holdfast_tests::agent_release::{ENDS_WITHIN, Kind, Signer, Updated, push, wanted};
use holdfast_tests::clock::{Stopwatch, unix_seconds};
use holdfast_tests::images::Image;
use holdfast_tests::place;
use holdfast_tests::site::Site;
use holdfast_tests::wait::try_wait_for;
use serde_json::Value;

const USAGE: &str = "usage: selfupdate-campaign [OPTION…]
  --times N      so many of each kind (20)
  --devices N    so many devices at once (10)
  --only KIND    panicking, hanging, wrong-arch, unsigned or truncated
  --out FILE     where the page goes (docs/selfupdate-campaign.md); `-` writes none";

/// The release that failed must be gone after so long.
const BACK_WITHIN: Duration = Duration::from_mins(1);
/// As the unit that is shipped does.
const RESTART_SECONDS: &str = "5";

/// What one try showed.
struct Tried {
    /// From the beginning of the trial to the report of the agent from before; none if nothing was stopped.
    away: Option<Duration>,
    wrong: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut out = Some(root.join("docs/selfupdate-campaign.md"));
    let (mut times, mut devices) = (20_usize, 10_usize);
    let mut kinds = Kind::BAD.to_vec();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let value = rest.next().context(USAGE)?;
        match word.as_str() {
            "--times" => times = value.parse()?,
            "--devices" => devices = value.parse()?,
            "--only" => kinds.retain(|kind| kind.word() == value),
            "--out" => out = (value != "-").then(|| PathBuf::from(value)),
            _ => bail!(USAGE),
        }
    }
    if kinds.is_empty() || devices == 0 {
        bail!(USAGE);
    }
    let clock = Stopwatch::start();
    let site = Arc::new(Site::start().await?);
    let signer = Arc::new(Signer::new(7)?);
    let web = Image::idle(format!("web-{}", place::unique()), "one");
    let web = Arc::new(web.push(&site.registry, "1").await?);
    let mut running = Vec::new();
    for _ in 0..devices {
        let on = Updated::start(&site, &signer, RESTART_SECONDS, |options| options).await?;
        site.converge(&on.device, &wanted(&web, None)).await?;
        running.push(Arc::new(on));
    }
    let mut rows = Vec::new();
    for kind in kinds {
        let mut tried: Vec<Tried> = Vec::new();
        while tried.len() < times {
            let release = format!("agent-{}", place::unique());
            let release = push(&site.registry, &release, kind, "9", &signer).await?;
            let release = Arc::new(release);
            let mut turn = tokio::task::JoinSet::new();
            for on in running.iter().take(times - tried.len()) {
                let (site, on) = (Arc::clone(&site), Arc::clone(on));
                let (web, release) = (Arc::clone(&web), Arc::clone(&release));
                turn.spawn(async move {
                    site.set(&on.device.uuid, &wanted(&web, Some(&release)))
                        .await?;
                    one(&site, &on, kind, &release.name).await
                });
            }
            while let Some(done) = turn.join_next().await {
                tried.push(done??);
            }
        }
        let good = tried.iter().filter(|one| one.wrong.is_none()).count();
        println!(
            "{:5} s  {}: {good} of {times}",
            clock.elapsed().as_secs(),
            kind.word()
        );
        rows.push((kind, tried));
    }
    let mut command = vec!["make selfupdate-campaign".to_owned()];
    command.extend((!words.is_empty()).then(|| format!("({})", words.join(" "))));
    let text = page(&command.join(" "), devices, clock.elapsed(), &rows)?;
    println!("{text}");
    if let Some(out) = &out {
        std::fs::write(out, &text)?;
    }
    let all = rows.iter().flat_map(|(_, tried)| tried);
    let held = all.into_iter().all(|one| one.wrong.is_none());
    Ok(ExitCode::from(u8::from(!held)))
}

/// Waits for the end of one release on one device.
async fn one(site: &Site, on: &Updated, kind: Kind, name: &str) -> anyhow::Result<Tried> {
    let served = on.device.running("web").await?["Id"].clone();
    let tried = if kind.is_refused() {
        None
    } else {
        let begins = async || {
            let slots = on.slots();
            let begun = slots["trial"]["release"]["image"]
                .as_str()
                .unwrap_or_default();
            begun.contains(name) && !slots["trial"]["begun"].is_null()
        };
        try_wait_for("the trial to begin", ENDS_WITHIN, begins).await?;
        Some(Stopwatch::start())
    };
    let pid = on.pid()?;
    let report = try_wait_for("the release to be rejected", ENDS_WITHIN, async || {
        let report = on.reported(site).await.map_err(|error| error.to_string())?;
        let image = report["rejected"]["image"].as_str().unwrap_or_default();
        if image.contains(name) {
            Ok(report)
        } else {
            Err(report.to_string())
        }
    })
    .await?;
    let away = tried.map(|tried| tried.elapsed());
    let wrong = if away.is_some_and(|away| away > BACK_WITHIN) {
        Some(format!("it was back after {away:?}"))
    } else if on.device.running("web").await?["Id"] != served {
        Some("a service was restarted".to_owned())
    } else if kind.is_refused() && on.pid()? != pid {
        Some("the agent was stopped for it".to_owned())
    } else if report["configDigest"] != Value::Null {
        Some(format!("another agent runs: {report}"))
    } else {
        None
    };
    if let Some(wrong) = &wrong {
        println!("         {}: {wrong}", kind.word());
    }
    Ok(Tried { away, wrong })
}

fn page(
    command: &str,
    devices: usize,
    took: Duration,
    rows: &[(Kind, Vec<Tried>)],
) -> anyhow::Result<String> {
    let now = i64::try_from(unix_seconds())?;
    let now = Timestamp::from_millis(now * 1_000).to_string();
    let mut text = format!(
        "# Bad releases of the agent\n\n\
         Written by `{command}` on {} in {} s, with {devices} devices at once on one engine and a supervisor that \
         starts the agent again after {RESTART_SECONDS} s, as the unit does. Each release is another image, given to \
         a device as its target. *Away* is from the moment in which its trial begins to the report of the agent from \
         before, which has polled by then; a release that is refused stops nothing. A try counts as good when that \
         takes at most {} s, the device says why, and its other service is the same container.\n\n\
         | release | tries | good | away, median | away, longest |\n|---|---:|---:|---:|---:|\n",
        now.get(..10).unwrap_or_default(),
        took.as_secs(),
        BACK_WITHIN.as_secs(),
    );
    for (kind, tried) in rows {
        let good = tried.iter().filter(|one| one.wrong.is_none()).count();
        let mut away: Vec<u128> = tried
            .iter()
            .filter_map(|one| one.away)
            .map(|d| d.as_millis())
            .collect();
        away.sort_unstable();
        let shown = |ms: Option<&u128>| {
            ms.map_or_else(
                || "never".to_owned(),
                |ms| format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
            )
        };
        writeln!(
            text,
            "| {} | {} | {good} | {} | {} |",
            kind.word(),
            tried.len(),
            shown(away.get(away.len() / 2)),
            shown(away.last())
        )?;
    }
    let wrong = rows.iter().flat_map(|(kind, tried)| {
        let wrong = tried.iter().filter_map(|one| one.wrong.as_ref());
        wrong.map(|wrong| format!("- {}: {wrong}", kind.word()))
    });
    let wrong: Vec<String> = wrong.collect();
    if !wrong.is_empty() {
        writeln!(text, "\nWhat did not hold:\n\n{}", wrong.join("\n"))?;
    }
    Ok(text)
}
