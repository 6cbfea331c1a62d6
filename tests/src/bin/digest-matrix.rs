//! `make digest-matrix`: asks the agent about every shape of image, and writes docs/digest-matrix.md.
#![allow(clippy::print_stdout, reason = "it reports its progress")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use holdfast_tests::clock::{Stopwatch, unix_seconds};
use holdfast_tests::matrix::list;
use holdfast_tests::matrix::page;
use holdfast_tests::matrix::run::Matrix;

const USAGE: &str = "usage: digest-matrix [OPTION…]
  --every N   only every Nth image
  --out FILE  where the page goes (docs/digest-matrix.md); `-` writes none";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut out = Some(root.join("docs/digest-matrix.md"));
    let mut every = 1;
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let value = rest.next().context(USAGE)?;
        match word.as_str() {
            "--every" => every = value.parse()?,
            "--out" => out = (value != "-").then(|| PathBuf::from(value)),
            _ => bail!(USAGE),
        }
    }
    let clock = Stopwatch::start();
    let matrix = Matrix::start().await?;
    let cases: Vec<_> = list::cases().into_iter().step_by(every).collect();
    let images = cases.len();
    let tell = |words: &str| println!("{:4} s  {words}", clock.elapsed().as_secs());
    let answers = matrix.run(cases, tell).await?;
    let now = i64::try_from(unix_seconds())?;
    let now = holdfast_proto::time::Timestamp::from_millis(now * 1_000).to_string();
    let mut command = vec!["make digest-matrix".to_owned()];
    command.extend((!words.is_empty()).then(|| format!("({})", words.join(" "))));
    let about = page::About {
        command: command.join(" "),
        date: now.get(..10).unwrap_or_default().to_owned(),
        took_s: clock.elapsed().as_secs(),
        engine: matrix.engine_version().await?,
        images,
    };
    let text = page::write(&about, &answers);
    println!("{text}");
    if let Some(out) = &out {
        std::fs::write(out, &text)?;
    }
    let right = answers.iter().all(|answer| answer.wrong.is_none());
    Ok(ExitCode::from(u8::from(!right)))
}
