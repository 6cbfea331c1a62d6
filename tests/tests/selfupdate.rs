//! The agent's update of itself on real parts: a good release stays, a bad one is gone within a minute, and no
//! service notices either.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use holdfast_tests::agent_release::{
    ENDS_WITHIN, Kind, Signer, Updated, agent_service, push, wanted,
};
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::disk::{Disk, SmallDisk, fill};
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::process::{Signal, kill9};
use holdfast_tests::site::{CONVERGES_WITHIN, Site, target};
use holdfast_tests::tap::{Action, Rule, When};
use holdfast_tests::wait::wait_for;
use holdfast_tests::{agent, apt, place};
use serde_json::{Value, json};

/// A release that fails is gone within this, whatever it does.
const BACK_WITHIN: Duration = Duration::from_mins(1);

/// A site with a device that serves, whose agent takes releases of a repository.
struct Bench {
    site: Site,
    signer: Signer,
    repository: String,
    web: Pushed,
    on: Updated,
    served: Value,
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        Self::start_with(|options| options).await
    }

    async fn start_with(
        adjust: impl FnOnce(agent::Options) -> agent::Options,
    ) -> anyhow::Result<Self> {
        let site = Site::start().await?;
        let signer = Signer::new(7)?;
        let on = Updated::start(&site, &signer, "1", adjust).await?;
        let web = Image::idle(format!("web-{}", place::unique()), "one")
            .push(&site.registry, "1")
            .await?;
        site.converge(&on.device, &wanted(&web, None)).await?;
        let served = on.device.running("web").await?;
        Ok(Self {
            site,
            signer,
            repository: format!("agent-{}", place::unique()),
            web,
            on,
            served,
        })
    }

    async fn push(&self, kind: Kind, version: &str) -> anyhow::Result<Pushed> {
        push(
            &self.site.registry,
            &self.repository,
            kind,
            version,
            &self.signer,
        )
        .await
    }

    async fn set(&self, release: &Pushed) -> anyhow::Result<Value> {
        let wanted = wanted(&self.web, Some(release));
        self.site.set(&self.on.device.uuid, &wanted).await
    }

    async fn confirm(&self, version: &str) -> anyhow::Result<Pushed> {
        let release = self.push(Kind::Good, version).await?;
        self.set(&release).await?;
        self.on.wait_confirmed(&self.site, &release).await;
        Ok(release)
    }

    /// No service noticed anything, and nothing of the release is left in the engine.
    async fn nobody_noticed(&self) -> anyhow::Result<()> {
        let now = self.on.device.running("web").await?;
        for what in ["Id", "State", "RestartCount"] {
            let of = |found: &Value| match what {
                "State" => found["State"]["StartedAt"].clone(),
                what => found[what].clone(),
            };
            assert_eq!(of(&now), of(&self.served), "{what}");
        }
        wait_for("the files' container to go", CONVERGES_WITHIN, async || {
            let left = self.on.device.containers_of("agent").await;
            left.is_ok_and(|left| left.is_empty())
        })
        .await;
        Ok(())
    }

    /// A bad release leaves the agent from before, which says why.
    async fn comes_back(&self, kind: Kind, why: &str) -> anyhow::Result<()> {
        let before = self.on.reported(&self.site).await?["configDigest"].clone();
        let pid = self.on.pid()?;
        let release = self.push(kind, "9").await?;
        let stored = self.set(&release).await?;
        if !kind.is_refused() {
            wait_for("the trial to begin", ENDS_WITHIN, async || {
                !self.on.slots()["trial"]["begun"].is_null()
            })
            .await;
        }
        let tried = Stopwatch::start();
        let report = self.on.wait_rejected(&self.site, &release).await;
        assert!(tried.elapsed() < BACK_WITHIN, "{:?}", tried.elapsed());
        let reason = report["rejected"]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(why), "{reason}");
        assert_eq!(report["configDigest"], before, "the one from before runs");
        if kind.is_refused() {
            assert_eq!(self.on.pid()?, pid, "nothing was stopped for it");
        }
        let generation = &stored["generation"];
        let uuid = &self.on.device.uuid;
        self.site.wait_for_status(uuid, generation, "holding").await;
        self.nobody_noticed().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn good_releases_use_the_slots_in_turn_and_an_installed_program_wins() -> anyhow::Result<()> {
    let folder = place::temporary("systemd")?;
    let socket = folder.path().join("notify");
    let systemd = tokio::net::UnixDatagram::bind(&socket)?;
    let readies = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&readies);
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok(read) = systemd.recv(&mut buffer).await {
            counted.fetch_add(usize::from(&buffer[..read] == b"READY=1"), Relaxed);
        }
    });
    let notify = socket.display().to_string();
    let bench = Bench::start_with(|mut options| {
        options.env.push(("NOTIFY_SOCKET".to_owned(), notify));
        options
    })
    .await?;
    let pid = bench.on.pid()?;
    for (version, slot) in [("1", "a"), ("2", "b"), ("3", "a")] {
        bench.confirm(version).await?;
        assert_eq!(bench.on.slots()["current"]["place"], slot);
        assert_eq!(bench.on.slots()["current"]["release"]["version"], version);
        assert_eq!(bench.on.pid()?, pid, "it is one process for systemd");
        let status = bench.on.device.agent.command(&["status"]).await?;
        let program = format!("(slot {slot}); last update: {version} confirmed");
        assert!(status.contains(&program), "{status}");
        bench.nobody_noticed().await?;
    }
    let readies = readies.load(Relaxed);
    assert_eq!(readies, 4, "each said once that it was ready");

    // A new start of the same release.
    kill9(bench.on.pid()?);
    wait_for("the release to run again", ENDS_WITHIN, async || {
        let pid = bench.on.pid().map_err(|error| error.to_string())?;
        let program = fs::read_link(format!("/proc/{pid}/exe")).map_err(|e| e.to_string())?;
        let starts = bench.on.slots()["current"]["starts"] == 0;
        if program.ends_with("versions/a/holdfast-agent") && starts {
            Ok(())
        } else {
            Err(program.display().to_string())
        }
    })
    .await;

    // The same file once more is the same program, another one is not.
    bench.on.install("another package")?;
    kill9(bench.on.pid()?);
    let held = |report: &Value| report.to_string().contains("agent_installed");
    wait_for("the installed program to stay", ENDS_WITHIN, async || {
        let report = bench.site.report(&bench.on.device.uuid).await;
        let report = report.map_err(|error| error.to_string())?;
        if held(&report) {
            Ok(())
        } else {
            Err(report.to_string())
        }
    })
    .await;
    let pid = bench.on.pid()?;
    assert_eq!(fs::read_link(format!("/proc/{pid}/exe"))?, bench.on.package);
    bench.confirm("4").await?;
    bench.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_panics_is_gone_within_a_minute() -> anyhow::Result<()> {
    let bench = Bench::start().await?;
    bench
        .comes_back(Kind::Panicking, "died before it was ready")
        .await?;
    // Named again after another one, it is tried again.
    bench.confirm("2").await?;
    bench
        .comes_back(Kind::Panicking, "died before it was ready")
        .await?;
    assert_eq!(bench.on.slots()["current"]["release"]["version"], "2");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_hangs_is_gone_within_a_minute() -> anyhow::Result<()> {
    let bench = Bench::start().await?;
    bench
        .comes_back(Kind::Hanging, "not ready within 40 s")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_whose_program_is_cut_is_gone_within_a_minute() -> anyhow::Result<()> {
    let bench = Bench::start().await?;
    bench.comes_back(Kind::Truncated, "it ").await?;
    let why = "not the one that SHA256SUMS names";
    bench.comes_back(Kind::CutOnTheWay, why).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_signed_or_for_another_processor_is_never_tried() -> anyhow::Result<()> {
    let bench = Bench::start().await?;
    bench
        .comes_back(Kind::WrongArch, "another processor")
        .await?;
    bench.comes_back(Kind::Unsigned, "does not know").await?;
    // An image that is no release at all.
    let stored = bench.set(&bench.web).await?;
    wait_for("it to be rejected", ENDS_WITHIN, async || {
        let report = bench.on.reported(&bench.site).await;
        let report = report.map_err(|error| error.to_string())?.to_string();
        let why = "/SHA256SUMS of its image cannot be used: it is not there";
        if report.contains(why) {
            Ok(())
        } else {
            Err(report)
        }
    })
    .await;
    assert!(stored["generation"].as_u64() > Some(1));
    bench.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_runs_already_is_taken_up_without_a_restart() -> anyhow::Result<()> {
    let bench = Bench::start().await?;
    let pid = bench.on.pid()?;
    let program = fs::read(&bench.on.package)?;
    let sum = holdfast_tests::layers::sha256(&program).replace("sha256:", "");
    let target = holdfast_agent::selfupdate::release::TARGET;
    let sums = format!("{sum}  holdfast-agent_1_{target}\n");
    let release = Image::new(&bench.repository)
        .file("/holdfast-agent", program)
        .file("/SHA256SUMS.minisig", bench.signer.sign(sums.as_bytes()))
        .file("/SHA256SUMS", sums)
        .push(&bench.site.registry, "1")
        .await?;
    bench.set(&release).await?;
    bench.on.wait_confirmed(&bench.site, &release).await;
    assert_eq!(bench.on.slots()["current"]["place"], "package");
    assert_eq!(bench.on.pid()?, pid);
    bench.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_any_call_of_its_update_goes_on_with_it() -> anyhow::Result<()> {
    let bench = Bench::start().await?;
    let points = [
        ("POST /containers/create", 1, When::BeforeRequest),
        ("POST /containers/create", 1, When::AfterResponse),
        ("GET /containers/*/archive", 1, When::BeforeRequest),
        ("GET /containers/*/archive", 3, When::AfterResponse),
        ("DELETE /containers/*", 1, When::BeforeRequest),
        ("DELETE /containers/*", 1, When::AfterResponse),
    ];
    for (number, (call, nth, when)) in points.into_iter().enumerate() {
        let action = Action::Kill9(bench.on.pid()?);
        let rule = Rule::on(call).nth(nth).when(when).then(action);
        let fired = bench.on.device.tap.arm(rule);
        let version = (number + 1).to_string();
        let release = bench.push(Kind::Good, &version).await?;
        bench.set(&release).await?;
        fired.wait(ENDS_WITHIN).await?;
        bench.on.wait_confirmed(&bench.site, &release).await;
        bench.nobody_noticed().await?;
    }
    Ok(())
}

/// Runs the installed program under strace once, which kills it at a chosen call; then as ever.
fn killed_at(bench: &mut Bench, call: &str, nth: usize) -> anyhow::Result<()> {
    apt::require(&["strace"])?;
    let package = bench.on.package.display().to_string();
    let script = format!(
        r#"while [ "$1" != -- ]; do shift; done; shift 2
        setpriv --pdeathsig KILL -- strace -f -qq -o /dev/null -e trace={call} \
            -e inject={call}:signal=KILL:when={nth} setpriv --pdeathsig KILL -- "$0" "$@"
        while :; do sleep 1; setpriv --pdeathsig KILL -- "$0" "$@"; done"#
    );
    bench.on.device.agent.kill9();
    let words = ["bash", "-c", &script, &package].map(str::to_owned);
    bench.on.device.agent.run_under(&words)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_any_write_of_its_update_ends_with_one_that_works() -> anyhow::Result<()>
{
    let mut bench = Bench::start().await?;
    // The release's name, what is to be tried, that it is tried, that it is confirmed; and beyond the last.
    for nth in 1..=6_usize {
        killed_at(&mut bench, "rename", nth)?;
        let version = nth.to_string();
        let release = bench.push(Kind::Good, &version).await?;
        bench.set(&release).await?;
        let content = release.child("linux/amd64").config_digest.clone();
        let report = wait_for("an agent that works", ENDS_WITHIN, async || {
            let report = bench.on.reported(&bench.site).await;
            let report = report.map_err(|error| error.to_string())?;
            let confirmed = report["configDigest"] == content && report["verified"] == true;
            if confirmed || !report["rejected"].is_null() {
                Ok(report)
            } else {
                Err(format!("{report} {}", bench.on.slots()))
            }
        })
        .await;
        if !report["rejected"].is_null() {
            let reason = report["rejected"]["reason"].as_str().unwrap_or_default();
            assert_eq!(reason, "it died before it was ready", "killed at {nth}");
        }
        bench.nobody_noticed().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_cannot_be_executed_leaves_the_installed_program_at_once() -> anyhow::Result<()>
{
    let bench = Bench::start().await?;
    let one = bench.confirm("1").await?;
    // What a shell would take for a script must be none for the launcher.
    let script = bench.on.device.agent.runtime().join("script-ran");
    let garbage = bench.on.device.agent.state().join("versions/a/garbage");
    fs::write(&garbage, format!("touch {}\n", script.display()))?;
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o755))?;
    fs::rename(&garbage, garbage.with_file_name("holdfast-agent"))?;
    kill9(bench.on.pid()?);
    let report = bench.on.wait_rejected(&bench.site, &one).await;
    let reason = report["rejected"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("could not be executed"), "{reason}");
    assert!(!script.exists(), "it was not given to a shell");
    let program = fs::read_link(format!("/proc/{}/exe", bench.on.pid()?))?;
    assert_eq!(program, bench.on.package);
    bench.confirm("2").await?;
    bench.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_the_update_and_leaves_nothing_of_it() -> anyhow::Result<()> {
    let disk = Disk::mount(SmallDisk::of(112 << 20))?;
    let state = disk.root().join("state");
    let bench = Bench::start_with(|mut options| {
        options.state = Some(state.clone());
        options
    })
    .await?;
    // The image is on its way already when the disk fills up.
    let (full, root) = (Arc::new(std::sync::Mutex::new(None)), disk.root());
    let filler = Arc::clone(&full);
    let run = move |_: &holdfast_tests::tap::Call| {
        let file = fill(&root, 5 << 20).expect("the disk fills up");
        filler.lock().expect("nobody panicked").get_or_insert(file);
    };
    let rule = Rule::on("POST /containers/create").then(Action::Run(Arc::new(run)));
    bench.on.device.tap.arm(rule);
    let release = bench.push(Kind::Good, "1").await?;
    let stored = bench.set(&release).await?;
    let uuid = bench.on.device.uuid.clone();
    let report = bench
        .site
        .wait_for_status(&uuid, &stored["generation"], "holding")
        .await;
    assert!(report.to_string().contains("are free"), "{report}");
    let left = fs::read_dir(state.join("versions/a"))?.count();
    assert_eq!(left, 0, "nothing of it is left");
    assert!(
        state.join("reserve").exists(),
        "the reserve was not spent on it"
    );
    let filler = full.lock().expect("nobody panicked").take();
    fs::remove_file(filler.expect("it was filled"))?;
    bench.on.wait_confirmed(&bench.site, &release).await;
    bench.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_hears_nothing_makes_place_and_is_tried_later() -> anyhow::Result<()> {
    let mut bench = Bench::start().await?;
    let api = bench.site.api.process().pid();
    let signal = move |signal| {
        let pid = i32::try_from(api)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a process id");
        rustix::process::kill_process(pid, signal).expect("it runs");
    };
    let rule =
        Rule::on("DELETE /containers/*").then(Action::Run(Arc::new(move |_| signal(Signal::STOP))));
    bench.on.device.tap.arm(rule);
    let release = bench.push(Kind::Good, "1").await?;
    bench.set(&release).await?;
    let slots = wait_for("the release to make place", ENDS_WITHIN, async || {
        let slots = bench.on.slots();
        let is_back = !slots["unreached"].is_null() && slots["trial"].is_null();
        if is_back {
            Ok(slots)
        } else {
            Err(slots.to_string())
        }
    })
    .await;
    signal(Signal::CONT);
    assert_eq!(slots["failed"], Value::Null, "it is not its fault");
    assert_eq!(slots["unreached"]["times"], 1);
    let why = "its last try ended because it did not hear from the control API";
    wait_for("the pause to be reported", ENDS_WITHIN, async || {
        let report = bench.site.report(&bench.on.device.uuid).await;
        let report = report.map_err(|error| error.to_string())?.to_string();
        if report.contains(why) {
            Ok(())
        } else {
            Err(report)
        }
    })
    .await;
    // A minute later it is tried again.
    bench.on.wait_confirmed(&bench.site, &release).await;
    bench.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_release_stops_a_rollout_and_every_device_is_back() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let signer = Signer::new(7)?;
    let repository = format!("agent-{}", place::unique());
    let push = async |kind| push(&site.registry, &repository, kind, "stable", &signer).await;
    let one = push(Kind::Good).await?;
    let policy = json!({
        "name": "agent", "image_pattern": format!("{}/{repository}:*", site.registry.host()),
        "batch_size": 1, "batch_delay_minutes": 0, "health_timeout_minutes": 3,
    });
    site.api.post("/policies", &policy).await?.good()?;
    let mut devices = Vec::new();
    for _ in 0..2 {
        let on = Updated::start(&site, &signer, "1", |options| options).await?;
        site.set(&on.device.uuid, &target(&[agent_service(&one)]))
            .await?;
        on.wait_confirmed(&site, &one).await;
        devices.push(on);
    }
    push(Kind::Panicking).await?;
    let asked = wait_for(
        "the push to ask for approval",
        CONVERGES_WITHIN,
        async || {
            let open = site.api.get("/approval-requests?state=open").await;
            let open = open.map_err(|error| error.to_string())?.json;
            let mut items = open["items"].as_array().into_iter().flatten();
            let ours = items.find(|one| one.to_string().contains(&repository));
            ours.cloned().ok_or_else(|| open.to_string())
        },
    )
    .await;
    let path = format!("/approval-requests/{}/approve", asked["id"]);
    site.api.post(&path, &json!({})).await?.good()?;
    let ended = wait_for("the rollout to stop", ENDS_WITHIN, async || {
        let newest = site.api.get("/rollouts?limit=1").await;
        let newest = newest.map_err(|error| error.to_string())?.json;
        let shown = site
            .api
            .get(&format!("/rollouts/{}", newest["items"][0]["id"]))
            .await;
        let shown = shown.map_err(|error| error.to_string())?.json;
        let state = shown["state"].as_str().unwrap_or_default();
        if ["rolled_back", "failed", "paused"].contains(&state) {
            Ok(shown)
        } else {
            Err(shown.to_string())
        }
    })
    .await;
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    let counts = json!({ "returned": 1, "waiting": 1 });
    assert_eq!(ended["counts"], counts, "the second device was never told");
    for on in &devices {
        on.wait_confirmed(&site, &one).await;
        assert_eq!(on.slots()["trial"], Value::Null);
    }
    let tried = devices.iter().map(|on| on.slots()["last"].clone());
    let tried: Vec<Value> = tried.filter(|last| last["came"] == "rejected").collect();
    assert_eq!(tried.len(), 1, "{tried:?}");
    assert_eq!(tried[0]["reason"], "it died before it was ready");
    Ok(())
}
