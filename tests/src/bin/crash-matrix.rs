//! `make crash-matrix`: lets programs die at every point, and writes docs/crash-matrix.md.
#![allow(clippy::print_stdout, reason = "it reports its progress")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use holdfast_tests::clock::{Stopwatch, unix_seconds};
use holdfast_tests::crash::matrix::{Done, Matrix};
use holdfast_tests::crash::point::{Kind, Outcome, Point};
use holdfast_tests::crash::scenario::Scenario;
use holdfast_tests::crash::{list, page};
use holdfast_tests::{binaries, place};
use serde_json::{Value, json};

const USAGE: &str = "usage: crash-matrix [OPTION…]
  --scenario NAME   only this scenario (may be repeated)
  --kind NAME       only this kind: agent, engine, power, syscall (may be repeated)
  --point TEXT      only points whose name contains this
  --sample N        at most N points, spread over all kinds
  --from N          take up an earlier run: its results of the first N points are kept, except
                    where the lab itself failed (an engine that could not be started)
  --lanes N         so many devices side by side (4)
  --out FILE        where the page goes (docs/crash-matrix.md); `-` writes none
  --list            name the points and run none";

/// Lanes that fit two cores: most of a point's time is waiting for polls and gates.
const LANES: usize = 4;

#[derive(Debug, Clone, Default)]
struct Options {
    scenarios: Vec<Scenario>,
    kinds: Vec<Kind>,
    part: Option<String>,
    sample: Option<usize>,
    from: usize,
    lanes: usize,
    out: Option<PathBuf>,
    list: bool,
    words: Vec<String>,
}

impl Options {
    fn parse(words: &[String]) -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut options = Self {
            lanes: LANES,
            out: Some(root.join("docs/crash-matrix.md")),
            words: words.to_vec(),
            ..Self::default()
        };
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            let mut value = || rest.next().map(String::as_str).context(USAGE);
            match word.as_str() {
                "--scenario" => {
                    let name = value()?;
                    let found = Scenario::ALL.into_iter().find(|one| one.word() == name);
                    options.scenarios.push(found.context("no such scenario")?);
                }
                "--kind" => {
                    let name = value()?;
                    let found = Kind::ALL.into_iter().find(|one| one.word() == name);
                    options.kinds.push(found.context("no such kind")?);
                }
                "--point" => options.part = Some(value()?.to_owned()),
                "--sample" => options.sample = Some(value()?.parse()?),
                "--from" => options.from = value()?.parse()?,
                "--lanes" => options.lanes = value()?.parse()?,
                "--out" => {
                    let path = value()?;
                    options.out = (path != "-").then(|| PathBuf::from(path));
                }
                "--list" => options.list = true,
                _ => bail!(USAGE),
            }
        }
        if options.scenarios.is_empty() {
            options.scenarios = Scenario::ALL.to_vec();
        }
        if options.kinds.is_empty() {
            options.kinds = Kind::ALL.to_vec();
        }
        Ok(options)
    }

    fn wants(&self, point: &Point) -> bool {
        let part = self.part.as_ref();
        self.kinds.contains(&point.kind)
            && part.is_none_or(|part| point.to_string().contains(part.as_str()))
    }
}

/// The results so far, a line each: what a run that is taken up again reads.
fn results_file() -> anyhow::Result<PathBuf> {
    Ok(place::folder("crash-matrix")?.join("results.jsonl"))
}

fn earlier(points: &[Point]) -> anyhow::Result<BTreeMap<Point, Outcome>> {
    let mut found = BTreeMap::new();
    if points.is_empty() {
        return Ok(found);
    }
    let text = fs::read_to_string(results_file()?).context("the earlier run's results")?;
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)?;
        let point = points
            .iter()
            .find(|point| line["point"] == point.to_string());
        if let Some((point, outcome)) = point.zip(Outcome::from_json(&line["outcome"])) {
            found.insert(point.clone(), outcome);
        }
    }
    found.retain(|_, outcome| match outcome {
        Outcome::Violated(all) => all.iter().all(|violation| violation.rule != "lab"),
        Outcome::Held { .. } | Outcome::NotReached => true,
    });
    Ok(found)
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let options = Options::parse(&words)?;
    let clock = Stopwatch::start();
    println!(
        "starting {} lanes and watching undisturbed runs …",
        options.lanes
    );
    let mut matrix = Matrix::start(options.lanes, &options.scenarios).await?;
    let mut points = matrix.points();
    points.retain(|point| options.wants(point));
    if let Some(most) = options.sample {
        points = list::sample(&points, most);
    }
    println!("{} s; {} points", clock.elapsed().as_secs(), points.len());
    if options.list {
        for point in &points {
            println!("{point}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let from = options.from.min(points.len());
    let mut results = earlier(&points[..from])?;
    let mut file = File::options();
    file.create(true)
        .write(true)
        .append(from > 0)
        .truncate(from == 0);
    let file = file.open(results_file()?)?;
    let total = points.len();
    points.retain(|point| !results.contains_key(point));
    let finished = AtomicUsize::new(total - points.len());
    let tell = |done: &Done<'_>| {
        let (name, outcome) = (done.point.to_string(), done.outcome.to_json());
        if let Err(error) = writeln!(&file, "{}", json!({ "point": name, "outcome": outcome })) {
            println!("the results file: {error}");
        }
        let seconds = clock.elapsed().as_secs();
        let number = finished.fetch_add(1, Ordering::Relaxed) + 1;
        println!("{seconds:5} s {number:5}/{total} {name} {outcome}");
        if !done.last_words.is_empty() {
            println!("{}", done.last_words);
        }
    };
    results.extend(matrix.run(points, tell).await);
    drop(matrix);
    let now = i64::try_from(unix_seconds())?;
    let now = holdfast_proto::time::Timestamp::from_millis(now * 1_000).to_string();
    let size = fs::metadata(binaries::agent()?)?.len();
    let about = page::About {
        command: ["make crash-matrix".to_owned()]
            .into_iter()
            .chain((!options.words.is_empty()).then(|| format!("({})", options.words.join(" "))))
            .collect::<Vec<_>>()
            .join(" "),
        date: now.get(..10).unwrap_or_default().to_owned(),
        took_s: clock.elapsed().as_secs(),
        lanes: options.lanes,
        agent: format!("The agent's binary has {size} bytes"),
    };
    let text = page::write(&about, &results);
    println!("{text}");
    if let Some(out) = &options.out {
        fs::write(out, &text)?;
    }
    let held = results
        .values()
        .all(|outcome| !matches!(outcome, Outcome::Violated(_)));
    Ok(ExitCode::from(u8::from(!held)))
}
