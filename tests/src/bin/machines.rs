//! `make test-machines`: installs what `make package` made on booted machines, and writes docs/machines.md.
#![allow(clippy::print_stdout, reason = "it reports its progress")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use holdfast_proto::time::Timestamp;
use holdfast_tests::clock::{Stopwatch, unix_seconds};
use holdfast_tests::machine::arms;
use holdfast_tests::machine::checks::{self, Ledger, Row};
use holdfast_tests::machine::packages::Packages;
use holdfast_tests::machine::page::{self, About};
use holdfast_tests::machine::root::Architecture;
use holdfast_tests::machine::{script, server};

const USAGE: &str = "usage: machines [OPTION…]
  --packages DIR  what `make package` made (HOLDFAST_PACKAGES)
  --cross DIR     agents as DIR/TARGET/holdfast-agent (HOLDFAST_CROSS_DIR; else those beside the packages)
  --only PLACES   only these places, with commas: amd64, arm64, script, api, arms
  --out FILE      where the page goes (docs/machines.md); `-` writes none";

const PLACES: [&str; 5] = ["amd64", "arm64", "script", "api", "arms"];

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut out = Some(root.join("docs/machines.md"));
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (mut packages, mut cross) = (folder("HOLDFAST_PACKAGES"), folder("HOLDFAST_CROSS_DIR"));
    let mut places = PLACES.to_vec();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let value = rest.next().context(USAGE)?;
        match word.as_str() {
            "--packages" => packages = Some(PathBuf::from(value)),
            "--cross" => cross = Some(PathBuf::from(value)),
            "--only" => places.retain(|place| value.split(',').any(|one| one == *place)),
            "--out" => out = (value != "-").then(|| PathBuf::from(value)),
            _ => bail!(USAGE),
        }
    }
    if places.is_empty() {
        bail!(USAGE);
    }
    let places_asked = places.clone();
    let clock = Stopwatch::start();
    let mut tell = |row: &Row| {
        let (word, found) = match &row.found {
            Ok(found) => ("ok", found),
            Err(wrong) => ("FAILED", wrong),
        };
        println!(
            "{:5} s  {}: {}: {word}: {found}",
            clock.elapsed().as_secs(),
            row.place,
            row.what
        );
    };
    let mut ledger = Ledger::new(&mut tell);
    for place in places {
        if place == "arms" {
            let cross = cross.as_deref().or(packages.as_deref()).context(USAGE)?;
            arms::journeys(&mut ledger, cross).await;
            continue;
        }
        let packages = Packages::at(packages.as_deref().context(USAGE)?)?;
        if place == "script" {
            ledger
                .at("amd64: `curl … | sh`", async |ledger: &mut Ledger<'_>| {
                    script::install(ledger, &packages).await
                })
                .await;
            continue;
        }
        if place == "api" {
            ledger
                .at(
                    "amd64: the control API's package",
                    async |ledger: &mut Ledger<'_>| server::package(ledger, &packages).await,
                )
                .await;
            continue;
        }
        let architecture = if place == "arm64" {
            Architecture::Arm64
        } else {
            Architecture::Amd64
        };
        ledger
            .at(
                &format!("{place}: the agent's package"),
                async |ledger: &mut Ledger<'_>| {
                    checks::package(ledger, &packages, architecture).await
                },
            )
            .await;
    }
    let rows = ledger.rows();
    let now = i64::try_from(unix_seconds())?;
    let now = Timestamp::from_millis(now * 1_000).to_string();
    let about = About {
        command: if places_asked == PLACES {
            "make test-machines".to_owned()
        } else {
            format!("make test-machines (only {})", places_asked.join(", "))
        },
        date: now.get(..10).unwrap_or_default().to_owned(),
        took_s: clock.elapsed().as_secs(),
    };
    let text = page::write(&about, &rows);
    if let Some(out) = &out {
        std::fs::write(out, &text)?;
    }
    println!("{}", text.lines().last().unwrap_or_default());
    let held = rows.iter().all(|row| row.found.is_ok());
    Ok(ExitCode::from(u8::from(!held)))
}
