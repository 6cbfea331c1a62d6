//! A push that travels to a fleet: six real devices in batches of two, beside a script that replaces the six
//! containers one after another; and what fleets of simulated devices cost the control API.

use std::fmt::Write as _;
use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::fleet::Order;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::simulation::{Setting, Simulation};
use holdfast_tests::site::{CONVERGES_WITHIN, Device, Site, service, target};
use holdfast_tests::wait::try_wait_for;
use serde_json::json;

use crate::spread::Spread;

const DEVICES: usize = 6;
const REPOSITORY: &str = "bench/rollout";
/// Three batches, each with a pull and a gate, on a busy machine.
const TRAVELS_WITHIN: Duration = Duration::from_mins(3);
/// A rollout over the largest simulated fleet.
const ENDS_WITHIN: Duration = Duration::from_mins(10);
/// Devices of the two fleets that are compared.
pub(crate) const FLEETS: [usize; 2] = [50, 500];
const SEED: u64 = 20_261_121;

/// From a push to the first container that runs it, and to the last.
#[derive(Debug, Default)]
pub(crate) struct Travels {
    pub(crate) first: Vec<Duration>,
    pub(crate) last: Vec<Duration>,
    /// The same with `docker pull`, `docker rm -f` and `docker run` for one container after another.
    pub(crate) script_first: Vec<Duration>,
    pub(crate) script_last: Vec<Duration>,
}

async fn fleet(site: &Site, first: &Pushed) -> anyhow::Result<Vec<Device>> {
    let policy = json!({
        "name": "bench", "image_pattern": format!("{}/{REPOSITORY}:*", site.registry.host()),
        "batch_size": 2, "batch_delay_minutes": 0, "health_timeout_minutes": 5,
    });
    site.api.post("/policies", &policy).await?.good()?;
    let image = json!({ "image_name": format!("{}/{REPOSITORY}", site.registry.host()) });
    site.api.post("/images", &image).await?.good()?;
    let mut devices = Vec::new();
    for _ in 0..DEVICES {
        let mut device = site.device().await?;
        device.agent.run()?;
        let wanted = target(&[service("web", &first.reference(), &json!({}))]);
        site.converge(&device, &wanted).await?;
        devices.push(device);
    }
    Ok(devices)
}

async fn succeeded(site: &Site, digest: &str) -> anyhow::Result<()> {
    try_wait_for("the rollout to succeed", TRAVELS_WITHIN, async || {
        let newest = site
            .api
            .get("/rollouts?limit=1&state=succeeded")
            .await
            .ok()?;
        newest.json["items"][0]
            .to_string()
            .contains(digest)
            .then_some(())
    })
    .await
}

/// So many pushes, each to all devices.
pub(crate) async fn pushes(rounds: usize) -> anyhow::Result<Travels> {
    let site = Site::start().await?;
    let image = |version: &str| Image::healthy_web(REPOSITORY, version);
    let first = image("0").push(&site.registry, "stable").await?;
    let devices = fleet(&site, &first).await?;
    let mut travels = Travels::default();
    for round in 1..=rounds {
        let watch = Stopwatch::start();
        let pushed = image(&round.to_string())
            .push(&site.registry, "stable")
            .await?;
        let content = &pushed.child("linux/amd64").config_digest;
        let first = OnceLock::new();
        try_wait_for("all devices to run it", TRAVELS_WITHIN, async || {
            let mut with = 0;
            for device in &devices {
                let running = device.running("web").await.ok()?;
                with += usize::from(running["Image"] == *content);
                if with > 0 {
                    first.get_or_init(|| watch.elapsed());
                }
            }
            (with == DEVICES).then_some(())
        })
        .await?;
        travels.last.push(watch.elapsed());
        let first = first.get().copied();
        travels.first.push(first.context("nobody runs it")?);
        succeeded(&site, &pushed.top_digest).await?;
        let (first, last) = by_script(&site, round).await?;
        travels.script_first.push(first);
        travels.script_last.push(last);
    }
    Ok(travels)
}

/// What a script on one machine does after a push, for six containers; it waits for each to be healthy.
async fn by_script(site: &Site, round: usize) -> anyhow::Result<(Duration, Duration)> {
    let docker = site.engine.docker();
    let watch = Stopwatch::start();
    let version = format!("script {round}");
    let pushed = Image::healthy_web("bench/script", &version)
        .push(&site.registry, "stable")
        .await?;
    let mut first = None;
    for number in 0..DEVICES {
        let name = format!("script-{number}");
        docker.cli(&["pull", "-q", &pushed.reference()]).await?;
        if round > 1 {
            docker.cli(&["rm", "-f", &name]).await?;
        }
        docker
            .cli(&["run", "-d", "--name", &name, &pushed.reference()])
            .await?;
        try_wait_for(
            "the container to be healthy",
            CONVERGES_WITHIN,
            async || {
                let found = docker.container(&name).await.ok()??;
                (found["State"]["Health"]["Status"] == "healthy").then_some(())
            },
        )
        .await?;
        first.get_or_insert_with(|| watch.elapsed());
    }
    Ok((first.context("no container")?, watch.elapsed()))
}

/// What a rollout over a fleet of simulated devices costs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) devices: usize,
    /// From the order to the state `succeeded`.
    pub(crate) took: Duration,
    /// Processor time of the control API meanwhile, with the devices' polls and reports in it.
    pub(crate) processor: Duration,
    /// Its memory at the end, in kB.
    pub(crate) rss_kb: u64,
}

/// One rollout in ten batches over so many devices.
pub(crate) async fn cost(devices: usize) -> anyhow::Result<Cost> {
    let mut simulation = Simulation::start(Setting::of(Order::of(devices, SEED))).await?;
    let old = simulation.push("old");
    simulation.settle(&old).await?;
    simulation.policy(&json!({ "batch_percent": 10 })).await?;
    simulation.push("new");
    let pid = simulation.apis[0].process().pid();
    let before = processor(pid)?;
    let watch = Stopwatch::start();
    let id = simulation.begin().await?;
    let path = format!("/rollouts/{id}");
    // Not `until`, which recounts all rows all the time on the same two cores.
    try_wait_for("the rollout to succeed", ENDS_WITHIN, async || {
        let shown = simulation.apis[0].get(&path).await.ok()?.json;
        (shown["state"] == "succeeded").then_some(())
    })
    .await?;
    Ok(Cost {
        devices,
        took: watch.elapsed(),
        processor: processor(pid)?.saturating_sub(before),
        rss_kb: rss_kb(pid)?,
    })
}

/// User and system time of a process (proc(5), `stat`, fields 14 and 15).
fn processor(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after) = stat.rsplit_once(')').context("a stat line")?;
    let mut fields = after.split_whitespace().skip(11);
    let mut next = || anyhow::Ok(fields.next().context("a field")?.parse::<u64>()?);
    let ticks = next()? + next()?;
    Ok(Duration::from_millis(
        ticks * 1_000 / rustix::param::clock_ticks_per_second(),
    ))
}

fn rss_kb(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("VmRSS")?.parse()?)
}

/// The section of `docs/figures.md`.
pub(crate) async fn measure(rounds: usize) -> anyhow::Result<String> {
    let travels = pushes(rounds).await?;
    let of = |figures: Vec<Duration>| Spread::of(figures);
    let (first, last) = (of(travels.first), of(travels.last));
    let (script_first, script_last) = (of(travels.script_first), of(travels.script_last));
    let ratio = |ours: Duration, theirs: Duration| ours.as_secs_f64() / theirs.as_secs_f64();
    let mut text = format!(
        "A push to the registry, its notification, a rollout over six real agents on one engine in three batches of two; the image\n\
         is approved. Beside it, on the same engine: a script that pulls, removes and starts six containers one after another and\n\
         waits for each to be healthy, without a gate, a way back or batches. In milliseconds.\n\n\
         | from the push to | least | median | 95 % | most | pushes | beside the script |\n|---|---|---|---|---|---|---|\n\
         | the first container | {first} | {:.2} |\n| the last container | {last} | {:.2} |\n\
         | the script's first | {script_first} | |\n| the script's last | {script_last} | |\n\n\
         A rollout in ten batches over simulated devices that speak real HTTP, SQLite; the control API's processor time holds\n\
         their polls and reports as well.\n\n\
         | devices | seconds | processor ms per device | resident memory, kB |\n|---|---|---|---|\n",
        ratio(first.median, script_first.median),
        ratio(last.median, script_last.median),
    );
    let mut each = Vec::new();
    for devices in FLEETS {
        let cost = cost(devices).await?;
        let ms = cost.processor.as_secs_f64() * 1_000.0 / f64::from(u32::try_from(cost.devices)?);
        writeln!(
            text,
            "| {} | {:.1} | {ms:.1} | {} |",
            cost.devices,
            cost.took.as_secs_f64(),
            cost.rss_kb
        )?;
        each.push(ms);
    }
    if let [small, large] = each[..] {
        writeln!(
            text,
            "\nA device of {} costs {:.2} times what one of {} does.",
            FLEETS[1],
            large / small,
            FLEETS[0]
        )?;
    }
    Ok(text)
}
