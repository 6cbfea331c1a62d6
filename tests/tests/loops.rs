//! The agent's loop in virtual time on the fake engine: every death, every cut, thousands of schedules.
//!
//! The cheap sibling of the crash matrix: no program is started, and a failure names its seed.

#![allow(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

#[path = "fake/clock.rs"]
mod clock;
#[path = "loops/device.rs"]
mod device;
#[path = "loops/invariants.rs"]
mod invariants;
#[path = "loops/schedule.rs"]
mod schedule;

use holdfast_agent::engine::Engine as _;
use holdfast_agent::engine::fake::{FakeEngine, Moment};
use holdfast_proto::target::ServiceTarget;
use serde_json::json;

use clock::VirtualClock;
use device::{Device, End, Release};

/// With `RUST_LOG` set, what the agent logs is shown: for the story of one seed.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt()
            .without_time()
            .with_env_filter(filter)
            .try_init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(work)
}

fn web(release: &Release) -> ServiceTarget {
    release.service("web", &json!({ "ports": ["8080:80"] }))
}

/// Brings a device to this target with nobody in the way.
async fn deploy(device: &Device, services: Vec<ServiceTarget>) {
    device.set(services);
    let end = device.live().await;
    assert_eq!(end, End::AtRest, "{}", device.story());
    assert_good(device, "");
}

fn assert_good(device: &Device, what: &str) {
    let violations = device.violations.borrow();
    assert!(
        violations.is_empty(),
        "{what}: {violations:#?}\n{}",
        device.story()
    );
}

/// A device that serves `one`, with `two` in the registry.
async fn serving(seed: u64, one: &Release, two: &Release) -> Device {
    let device = Device::new(seed);
    for release in [one, two] {
        device.engine.publish(&release.pinned(), release.remote());
    }
    deploy(&device, vec![web(one)]).await;
    device
}

#[test]
fn a_swap_ends_with_the_new_one_alone() {
    block_on(async {
        let (one, two) = (Release::healthy("one"), Release::healthy("two"));
        let device = serving(1, &one, &two).await;
        deploy(&device, vec![web(&two)]).await;
        let remains: Vec<_> = device.remains().into_iter().collect();
        eprintln!("{}", device.story());
        let apps: Vec<_> = remains.iter().filter(|found| !found.is_sandbox).collect();
        assert_eq!(apps.len(), 1, "{remains:#?}");
        assert_eq!(apps[0].image, two.config().0.to_string());
        assert_eq!(apps[0].state, "running");
        assert_eq!(apps[0].restart, "always");
    });
}

/// What happens at one call of a swap.
type Fault = fn(&FakeEngine<VirtualClock>);

/// Runs a swap with a fault at the `number`-th call; gives the calls of the whole.
async fn swap_with(fault: Option<(usize, Moment, Fault)>, to: &Release) -> (Device, usize) {
    let one = Release::healthy("one");
    let device = serving(1, &one, to).await;
    let before = device.engine.count();
    if let Some((number, moment, fault)) = fault {
        device
            .engine
            .disturb(before + number, moment, Box::new(fault));
    }
    device.set(vec![web(to)]);
    let mut end = device.live().await;
    if end == End::Died {
        device.reopen_journal();
        end = device.live().await;
    }
    let what = format!("fault at {fault:?}");
    assert_eq!(end, End::AtRest, "{what}\n{}", device.story());
    assert_good(&device, &what);
    let calls = device.engine.count() - before;
    (device, calls)
}

fn ends_the_same_whenever(fault: Fault, to: &Release) {
    ends_the_same_at(&[Moment::Before, Moment::After], fault, to);
}

fn ends_the_same_at(moments: &[Moment], fault: Fault, to: &Release) {
    let (calls, wanted) = block_on(async {
        let (device, calls) = swap_with(None, to).await;
        (calls, device.remains())
    });
    for number in 1..=calls {
        for &moment in moments {
            block_on(async {
                let (device, _) = swap_with(Some((number, moment, fault)), to).await;
                let remains = device.remains();
                assert_eq!(
                    remains,
                    wanted,
                    "call {number} {moment:?}\n{}",
                    device.story()
                );
            });
        }
    }
}

#[test]
fn wherever_the_agent_dies_a_swap_ends_the_same() {
    ends_the_same_whenever(FakeEngine::kill_agent, &Release::healthy("two"));
}

#[test]
fn wherever_the_agent_dies_a_rollback_ends_the_same() {
    for bad in [
        Release::never_healthy("two"),
        Release::crash_loop("two"),
        Release::broken("two"),
    ] {
        ends_the_same_whenever(FakeEngine::kill_agent, &bad);
    }
}

#[test]
fn wherever_the_engine_is_killed_a_swap_ends_the_same() {
    ends_the_same_whenever(
        |engine| engine.kill_engine(Some(700)),
        &Release::healthy("two"),
    );
}

#[test]
fn wherever_the_power_goes_a_swap_ends_the_same() {
    let cut: Fault = |engine| {
        engine.power_cut(Some(2_000));
        engine.kill_agent();
    };
    ends_the_same_whenever(cut, &Release::healthy("two"));
}

#[test]
fn whichever_answer_is_lost_a_swap_ends_the_same() {
    let lose: Fault = FakeEngine::lose_answer;
    ends_the_same_at(&[Moment::After], lose, &Release::healthy("two"));
}

/// The releases whose images the engine has, of these.
async fn stored<'a>(device: &Device, releases: &'a [&'a Release]) -> Vec<&'a str> {
    let images = device.engine.images().await.unwrap();
    let there = |release: &&&Release| {
        let mut images = images.iter();
        // By its content: names come and go.
        images.any(|image| image.id == release.config().0.to_string())
    };
    let there = releases.iter().filter(there);
    there.map(|release| release.name.as_str()).collect()
}

async fn rests(device: &Device) {
    let end = device.live().await;
    assert_eq!(end, End::AtRest, "{}", device.story());
    assert_good(device, "");
}

/// A device that was updated from `one` over `two` to `three`.
async fn updated_twice(releases: &[&Release; 3]) -> Device {
    let [one, two, three] = releases;
    let device = serving(1, one, two).await;
    device.engine.publish(&three.pinned(), three.remote());
    deploy(&device, vec![web(two)]).await;
    deploy(&device, vec![web(three)]).await;
    device
}

#[test]
fn of_many_images_what_runs_and_what_was_good_before_are_left() {
    block_on(async {
        let [one, two, three] = ["one", "two", "three"].map(Release::healthy);
        let all = [&one, &two, &three];
        let device = updated_twice(&all).await;
        assert_eq!(stored(&device, &all).await, ["two", "three"]);
        device.engine.prune_by_hand(false);
        assert_eq!(
            stored(&device, &all).await,
            ["two", "three"],
            "both have a tag"
        );
        deploy(&device, vec![]).await;
        assert_eq!(stored(&device, &all).await, [] as [&str; 0]);
    });
}

#[test]
fn a_way_back_that_was_pruned_is_fetched_again_and_nothing_is_swapped() {
    block_on(async {
        let [one, two, three] = ["one", "two", "three"].map(Release::healthy);
        let all = [&one, &two, &three];
        let device = updated_twice(&all).await;
        let before = device.remains();
        device.engine.prune_by_hand(true);
        assert_eq!(stored(&device, &all).await, ["three"]);
        rests(&device).await;
        assert_eq!(stored(&device, &all).await, ["two", "three"]);
        device.engine.remove_image_by_hand(&three.pinned());
        rests(&device).await;
        assert_eq!(stored(&device, &all).await, ["two", "three"]);
        assert_eq!(device.remains(), before);
    });
}

#[test]
fn without_its_journal_the_agent_clears_no_image_away() {
    block_on(async {
        let [one, two, three] = ["one", "two", "three"].map(Release::healthy);
        let all = [&one, &two, &three];
        let device = updated_twice(&all).await;
        device.lose_journal();
        rests(&device).await;
        assert_eq!(stored(&device, &all).await, ["two", "three"]);
        deploy(&device, vec![web(&one)]).await;
        assert_eq!(stored(&device, &all).await, ["one", "two", "three"]);
    });
}

/// Seeds of every run; more with `HOLDFAST_SEEDS=FROM..TO`.
const SEEDS: std::ops::Range<u64> = 1..2_001;

fn seeds() -> std::ops::Range<u64> {
    let given = std::env::var("HOLDFAST_SEEDS").ok();
    let parsed = given.as_deref().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    parsed.unwrap_or(SEEDS)
}

#[test]
fn random_schedules_end_at_the_target_and_break_no_rule() {
    let seeds = seeds();
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let failed = std::sync::Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().len() >= 10 {
                        return;
                    }
                    if let Err(story) = block_on(schedule::live_through(seed)) {
                        failed.lock().unwrap().push((seed, story));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let heads: Vec<String> = failed
        .iter()
        .map(|(seed, story)| {
            let head: Vec<&str> = story.lines().take(2).collect();
            format!("seed {seed}: {}", head.join(" / "))
        })
        .collect();
    let first = failed.iter().min_by_key(|(_, story)| story.len());
    let (seed, story) = first.map_or((0, ""), |(seed, story)| (*seed, story));
    assert!(
        failed.is_empty(),
        "{}\nthe shortest, again with HOLDFAST_SEEDS={seed}..{}:\n{story}",
        heads.join("\n"),
        seed + 1,
    );
}
