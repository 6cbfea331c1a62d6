//! What an agent weighs at rest with twenty containers: size, memory, processor, disk, network; for each target whose
//! program there is.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::images::Image;
use holdfast_tests::machine::arms;
use holdfast_tests::site::{Device, Site, service, target};
use holdfast_tests::tcp_tap::TcpTap;
use holdfast_tests::tls_front::{Line, TlsFront};
use holdfast_tests::{binaries, place};
use serde_json::{Value, json};

use crate::steady::io;

/// As many as a well-used device has; what others published was measured with as many.
pub(crate) const CONTAINERS: usize = 20;
/// The shipped intervals; the lab's own are short.
const POLL_S: u64 = 30;
const HEARTBEAT_S: u64 = 60;
/// Polls over which bytes are counted, a second apart and without any report between them.
const COUNTED_POLLS: usize = 30;
/// From the target to twenty containers, below an emulator on a busy machine; then two heartbeats.
const SETTLES_WITHIN: Duration = Duration::from_mins(15);
/// An emulated program's processor time says nothing about a device's, however long it is watched.
const EMULATED: Duration = Duration::from_mins(1);
/// Ticks of `/proc/PID/stat` in a second (proc(5), `sysconf(_SC_CLK_TCK)`): 100 on every Linux of today.
const TICK: Duration = Duration::from_millis(10);

/// What one agent weighs.
#[derive(Debug, Clone)]
pub(crate) struct Weight {
    /// Bytes of the program's file.
    pub(crate) file: u64,
    /// Resident set, in kB.
    pub(crate) rss_kb: u64,
    /// Proportional set, in kB.
    pub(crate) pss_kb: u64,
    /// What of it is no file's: heap and stacks, in kB.
    pub(crate) anonymous_kb: u64,
    /// How long it was watched.
    pub(crate) over: Duration,
    /// Processor time it took meanwhile.
    pub(crate) processor: Duration,
    /// Bytes that it caused to be written to a disk meanwhile.
    pub(crate) written: u64,
    /// Bytes between it and the API meanwhile.
    pub(crate) wire: u64,
}

impl Weight {
    fn row(&self, target: &str, line: Line) -> String {
        let part = self.processor.as_secs_f64() / self.over.as_secs_f64() * 100.0;
        let per_hour = |bytes: u64| bytes * 3_600 / self.over.as_secs().max(1);
        let line = match line {
            Line::Plain => "HTTP",
            Line::Tls => "HTTPS",
        };
        format!(
            "| {target} | {line} | {} | {} | {} | {} | {part:.4} | {} | {} |\n",
            self.file,
            self.rss_kb,
            self.pss_kb,
            self.anonymous_kb,
            per_hour(self.written),
            per_hour(self.wire)
        )
    }
}

/// Processor time of a process so far: of all its threads, those that ended too.
fn processor(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in brackets and may contain anything; fields 14 and 15 of proc(5) are 12 and 13 after it.
    let (_, after) = stat.rsplit_once(") ").context("a line of stat")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |field: usize| -> anyhow::Result<u32> {
        Ok(fields.get(field).context("a figure")?.parse()?)
    };
    Ok(TICK * (ticks(11)? + ticks(12)?))
}

/// Processor time of the threads that there are, to the nanosecond, and which they are.
fn threads(pid: u32) -> anyhow::Result<(Vec<String>, Duration)> {
    let (mut names, mut nanos) = (Vec::new(), 0);
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?;
        let text = fs::read_to_string(thread.path().join("schedstat"))?;
        nanos += text
            .split_whitespace()
            .next()
            .context("a figure")?
            .parse::<u64>()?;
        names.push(thread.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok((names, Duration::from_nanos(nanos)))
}

/// A figure of `/proc/PID/FILE`, in kB.
fn kb(pid: u32, file: &str, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let figure = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
    Ok(figure
        .with_context(|| format!("{name} in {file}"))?
        .parse()?)
}

/// What the unit that is shipped puts into the agent's environment.
fn environment() -> Vec<(String, String)> {
    let unit = include_str!("../../systemd/holdfast-agent.service");
    let lines = unit.lines();
    let words = lines
        .filter_map(|line| line.strip_prefix("Environment="))
        .flat_map(str::split_whitespace);
    words
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// An agent on its way to rest, and what it needs.
pub(crate) struct Resting {
    file: PathBuf,
    line: Line,
    tap: TcpTap,
    device: Device,
    wanted: Value,
    _front: Option<TlsFront>,
    // The last to go.
    site: Site,
}

/// Starts an agent that is to come to rest with so many containers; `short` for one that is not watched for minutes.
pub(crate) async fn rest(
    program: &Path,
    file: &Path,
    containers: usize,
    line: Line,
    short: bool,
) -> anyhow::Result<Resting> {
    let site = Site::start().await?;
    let image = Image::idle(format!("idle-{}", place::unique()), "1")
        .push(&site.registry, "1")
        .await?;
    let front = match line {
        Line::Plain => None,
        Line::Tls => Some(TlsFront::start(site.api.address()).await?),
    };
    let behind = front
        .as_ref()
        .map_or_else(|| site.api.address(), TlsFront::address);
    let tap = TcpTap::start(behind).await?;
    let url = match line {
        Line::Plain => tap.url(),
        Line::Tls => format!("https://{}", tap.address()),
    };
    let mut device = site
        .device_at(url, |mut options| {
            if let Some(front) = &front {
                options = front.trusted(options);
            }
            options.program = Some(program.to_owned());
            options.env = environment();
            options = options.set("log", "level", "info");
            if short {
                options
            } else {
                options.set("poll", "interval_seconds", POLL_S).set(
                    "report",
                    "heartbeat_seconds",
                    HEARTBEAT_S,
                )
            }
        })
        .await?;
    device.agent.run()?;
    let services: Vec<Value> = (0..containers)
        .map(|number| service(&format!("idle{number}"), &image.reference(), &json!({})))
        .collect();
    Ok(Resting {
        file: file.to_owned(),
        line,
        wanted: target(&services),
        tap,
        device,
        _front: front,
        site,
    })
}

impl Resting {
    /// Lets it come to rest, and watches it so long.
    pub(crate) async fn weigh(&self, over: Duration) -> anyhow::Result<Weight> {
        let settled = self
            .site
            .settle(&self.device, &self.wanted, 2, SETTLES_WITHIN);
        settled.await?;
        let pid = self.device.agent.process()?.pid();
        let bytes = || {
            let (up, down) = self.tap.bytes();
            up + down
        };
        let before = (
            processor(pid)?,
            threads(pid)?,
            io(pid, "write_bytes")?,
            bytes(),
        );
        let clock = Stopwatch::start();
        // The one wait that is for time itself: what is measured is what happens in it.
        tokio::time::sleep(over).await;
        let over = clock.elapsed();
        let (ticks, now) = (processor(pid)?.saturating_sub(before.0), threads(pid)?);
        // Exact while the threads are the same; else to a tick.
        let same = now.0 == before.1.0;
        Ok(Weight {
            file: fs::metadata(&self.file)?.len(),
            rss_kb: kb(pid, "status", "VmRSS")?,
            pss_kb: kb(pid, "smaps_rollup", "Pss")?,
            anonymous_kb: kb(pid, "smaps_rollup", "Anonymous")?,
            over,
            processor: if same {
                now.1.saturating_sub(before.1.1)
            } else {
                ticks
            },
            written: io(pid, "write_bytes")? - before.2,
            wire: bytes() - before.3,
        })
    }
}

/// Bytes of one poll that is answered "not changed", both ways, over a connection that is kept.
pub(crate) async fn poll_bytes(polls: usize) -> anyhow::Result<u64> {
    let site = Site::start().await?;
    let tap = TcpTap::start(site.api.address()).await?;
    let mut device = site
        .device_at(tap.url(), |options| {
            options.set("report", "heartbeat_seconds", 3_600)
        })
        .await?;
    device.agent.run()?;
    let image = Image::idle(format!("idle-{}", place::unique()), "1")
        .push(&site.registry, "1")
        .await?;
    site.converge(
        &device,
        &target(&[service("idle", &image.reference(), &json!({}))]),
    )
    .await?;
    let agent = device.agent.process()?;
    let same = ["the target has not changed"];
    let next = async || {
        agent
            .wait_for_log_since(agent.mark(), &same, SETTLES_WITHIN)
            .await
    };
    // What an update still has to tell is told.
    for _ in 0..5 {
        next().await?;
    }
    let (mark, (up, down), connections) = (agent.mark(), tap.bytes(), tap.connections());
    for _ in 0..polls {
        next().await?;
    }
    let (up, down) = (tap.bytes().0 - up, tap.bytes().1 - down);
    let lines = agent.lines_since(mark);
    let seen = lines.iter().filter(|line| line.contains(same[0])).count();
    anyhow::ensure!(
        tap.connections() == connections,
        "the connection was not kept"
    );
    Ok((up + down) / u64::try_from(seen)?)
}

struct Program {
    target: String,
    file: PathBuf,
    run: PathBuf,
    native: bool,
    _folder: tempfile::TempDir,
}

/// The agents of `HOLDFAST_CROSS_DIR`, which are shipped, or else that of `make release`.
fn programs() -> anyhow::Result<Vec<Program>> {
    let folder = || place::temporary("footprint");
    let Some(cross) = std::env::var_os("HOLDFAST_CROSS_DIR").map(PathBuf::from) else {
        let agent = binaries::agent()?;
        return Ok(vec![Program {
            target: "`make release`".to_owned(),
            run: agent.clone(),
            file: agent,
            native: true,
            _folder: folder()?,
        }]);
    };
    let mut found = Vec::new();
    for (target, words) in arms::TARGETS {
        let folder = folder()?;
        let run = arms::program(&cross, target, folder.path())?;
        if let (Some(run), Some(file)) = (run, arms::file(&cross, target)?) {
            let native = words.is_empty();
            found.push(Program {
                target: target.to_owned(),
                file,
                run,
                native,
                _folder: folder,
            });
        }
    }
    anyhow::ensure!(!found.is_empty(), "no agent in {}", cross.display());
    Ok(found)
}

/// Published by their makers or measured once beside this project's floor, on x86-64, with as many containers.
const OTHERS: &str = "\
| others, x86-64 | RSS, MiB | program, MB |\n|---|---|---|\n\
| Ankaios agent | 8.0 | 8.8 |\n| Komodo periphery | 14.3 | 26 |\n| Mender | 30.8 | 10.3 |\n\
| balena-supervisor | not measured: it is a Node.js program in a container of its own | |\n";

/// The section of `docs/figures.md`.
pub(crate) async fn measure(over: Duration) -> anyhow::Result<String> {
    let mut text = format!(
        "An agent at rest with {CONTAINERS} containers, at the shipped intervals (a poll every {POLL_S} s, a report every \
         {HEARTBEAT_S} s), watched for {} minutes, all of this machine's at the same \
         time, emulated ones one after the other for a minute. Bytes written are extrapolated to an hour from that. \
         Below qemu a program shares memory and time with its emulator: its file is what counts, the rest is an \
         upper bound.\n\n\
         | target | API by | program, bytes | RSS, kB | PSS, kB | anonymous, kB | processor, % of a core | bytes written per hour | bytes on the wire per hour |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        over.as_secs() / 60
    );
    let (native, emulated): (Vec<Program>, Vec<Program>) =
        programs()?.into_iter().partition(|program| program.native);
    let mut resting = Vec::new();
    for program in &native {
        for line in [Line::Plain, Line::Tls] {
            let one = rest(&program.run, &program.file, CONTAINERS, line, false).await?;
            resting.push((&program.target, one));
        }
    }
    // Programs at rest do not disturb each other, and minutes are dear.
    let at_once = resting.iter().map(async |(target, one)| {
        let weight = one.weigh(over).await?;
        anyhow::Ok(weight.row(target, one.line))
    });
    for row in try_join_all(at_once).await? {
        text.push_str(&row);
    }
    drop(resting);
    for program in &emulated {
        let one = rest(&program.run, &program.file, CONTAINERS, Line::Tls, false).await?;
        let weight = one.weigh(over.min(EMULATED)).await?;
        text.push_str(&weight.row(&format!("{}, under qemu", program.target), one.line));
    }
    let poll = poll_bytes(COUNTED_POLLS).await?;
    writeln!(
        text,
        "\nA poll that is answered \"not changed\" is {poll} bytes, both ways together, over plain HTTP on a connection that is \
         kept (mean of {COUNTED_POLLS}).\n\n{OTHERS}"
    )?;
    Ok(text)
}
