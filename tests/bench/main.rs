//! `make bench`: measures what we claim, on the release binaries, beside what others do.
//!
//! `bench [PART…] [--minutes N]` measures the parts named, or all, watching what rests for N minutes; each writes its section of `docs/figures.md`. A
//! sample of every part runs in `make test`, without judging times.
#![allow(clippy::print_stdout, reason = "it reports its progress")]

mod client;
mod device;
mod downtime;
mod footprint;
mod handover;
mod page;
mod resolution;
mod rollback;
mod rollout;
#[cfg(test)]
mod sample;
mod spread;
mod steady;
mod transport;

use std::time::Duration;

use anyhow::{Context as _, bail};

/// Swaps of each kind: enough for a 95th percentile that is not the worst one.
const SWAPS: usize = 20;
const UPDATES: usize = 50;
const OFFLINE_ROLLBACKS: usize = 50;
const FULL_DISK_ROLLBACKS: usize = 20;
const RESOLUTIONS: usize = 10;
const RECONCILES: usize = 1_000;
const PUSHES: usize = 10;
/// How long an agent at rest is watched.
const IDLE_MINUTES: u64 = 10;

const PARTS: [(&str, &str); 10] = [
    ("device", "One device"),
    ("downtime", "Downtime that a client sees"),
    ("footprint", "An agent's footprint"),
    ("handover", "Hand-over"),
    ("resolution", "Resolving"),
    ("rollback", "Rollback"),
    ("rollout", "From a push to a fleet"),
    ("steady", "A device at rest"),
    ("stalls", "Pulls that stand still"),
    ("transport", "Pulls over lines good and bad"),
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut asked: Vec<String> = std::env::args().skip(1).collect();
    let mut minutes = IDLE_MINUTES;
    if let Some(at) = asked.iter().position(|word| word == "--minutes") {
        let value = asked
            .drain(at..)
            .nth(1)
            .context("--minutes N, behind the parts")?;
        minutes = value.parse().context("--minutes N")?;
    }
    let known = |name: &String| PARTS.iter().any(|(part, _)| part == name);
    if let Some(stranger) = asked.iter().find(|name| !known(name)) {
        bail!("no part is called {stranger}; there are {PARTS:?}");
    }
    for (part, title) in PARTS {
        if !asked.is_empty() && !asked.iter().any(|name| name == part) {
            continue;
        }
        println!("{title} …");
        let text = match part {
            "device" => device::measure().await?,
            "downtime" => downtime::measure(SWAPS).await?,
            "footprint" => footprint::measure(Duration::from_mins(minutes)).await?,
            "handover" => handover::measure(UPDATES).await?,
            "resolution" => resolution::measure(RESOLUTIONS).await?,
            "rollback" => rollback::measure(OFFLINE_ROLLBACKS, FULL_DISK_ROLLBACKS).await?,
            "rollout" => rollout::measure(PUSHES).await?,
            "stalls" => transport::measure_stalls().await?,
            "transport" => transport::measure().await?,
            _ => steady::measure(RECONCILES).await?,
        };
        page::put(title, part, &text)?;
        println!("{text}");
    }
    Ok(())
}
