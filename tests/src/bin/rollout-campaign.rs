//! `make rollout-campaign`: hits control APIs at random instants of rollouts, and writes docs/rollout-campaign.md.
#![allow(clippy::print_stdout, reason = "it reports its progress")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use holdfast_proto::time::Timestamp;
use holdfast_tests::campaign::page::About;
use holdfast_tests::campaign::{self, Place, page};
use holdfast_tests::clock::{Stopwatch, unix_seconds};

const USAGE: &str = "usage: rollout-campaign [OPTION…]
  --place NAME   only this place: alone, replicas
  --instants N   so many instants at each place (300)
  --seed N       what the instants are drawn from (20261121)
  --out FILE     where the page goes (docs/rollout-campaign.md); `-` writes none";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut out = Some(root.join("docs/rollout-campaign.md"));
    let (mut instants, mut seed) = (300, 20_261_121);
    let mut places = Place::ALL.to_vec();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let value = rest.next().context(USAGE)?;
        match word.as_str() {
            "--place" => places.retain(|place| place.word() == value),
            "--instants" => instants = value.parse()?,
            "--seed" => seed = value.parse()?,
            "--out" => out = (value != "-").then(|| PathBuf::from(value)),
            _ => bail!(USAGE),
        }
    }
    if places.is_empty() {
        bail!(USAGE);
    }
    let clock = Stopwatch::start();
    let mut outcomes = BTreeMap::new();
    for place in places {
        let mut tell = |said: &str| {
            println!(
                "{:5} s  {}: {said}",
                clock.elapsed().as_secs(),
                place.word()
            );
        };
        let outcome = campaign::run(place, instants, seed, &mut tell).await?;
        outcomes.insert(place, outcome);
    }
    let now = i64::try_from(unix_seconds())?;
    let now = Timestamp::from_millis(now * 1_000).to_string();
    let mut command = vec!["make rollout-campaign".to_owned()];
    command.extend((!words.is_empty()).then(|| format!("({})", words.join(" "))));
    let about = About {
        command: command.join(" "),
        date: now.get(..10).unwrap_or_default().to_owned(),
        took_s: clock.elapsed().as_secs(),
        seed,
    };
    let text = page::write(&about, &outcomes);
    println!("{text}");
    if let Some(out) = &out {
        std::fs::write(out, &text)?;
    }
    let held = outcomes.values().all(|outcome| outcome.wrong.is_none());
    Ok(ExitCode::from(u8::from(!held)))
}
