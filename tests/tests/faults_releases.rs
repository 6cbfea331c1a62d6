//! Faults A30 to A44: releases that are broken, hostile to the device, or too big for it.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;

use holdfast_tests::clock::Stopwatch;
use holdfast_tests::disk::{SmallDisk, fill};
use holdfast_tests::engine::{Engine, Private};
use holdfast_tests::http_tap::HttpTap;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::registry::Login;
use holdfast_tests::serving::{Serving, life};
use holdfast_tests::site::{CONVERGES_WITHIN, Site, service, target};
use holdfast_tests::tap::{Action, Call, Rule};
use holdfast_tests::wait::wait_for;
use holdfast_tests::{agent, api, place};
use serde_json::{Value, json};

/// Levels of nesting: more than twice of what is accepted, and as many as a test's own stack can write.
const DEEP: usize = 300;

/// Deploys a bad target over version `one`; the very container of before serves again, and why is said.
async fn rolls_back(serving: &Serving, bad: &Value, reason: &str) -> anyhow::Result<()> {
    let before = serving.device.running("web").await?;
    let generation = serving.set_target(bad).await?;
    serving.reports(&generation, "holding").await;
    serving.says(&["\"rejected\":{", reason]).await;
    serving.one_is_back(&before).await?;
    serving.only_container().await?;
    Ok(())
}

/// A target that is held before anything is touched: version `one` goes on, unharmed.
async fn holds(serving: &Serving, bad: &Value, words: &[&str]) -> anyhow::Result<()> {
    let before = serving.device.running("web").await?;
    serving.device.tap.forget();
    let generation = serving.set_target(bad).await?;
    serving.reports(&generation, "holding").await;
    serving.says(words).await;
    serving.at_rest().await?;
    let after = serving.device.running("web").await?;
    assert_eq!(life(&before), life(&after));
    assert_eq!(serving.page().await, Ok("one".to_owned()));
    let stops = serving.device.tap.mutations();
    let stops: Vec<&Call> = stops
        .iter()
        .filter(|call| call.path.ends_with("/stop"))
        .collect();
    assert!(stops.is_empty(), "nothing was stopped: {stops:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a31_a_service_that_dies_between_two_looks_is_found_out() -> anyhow::Result<()> {
    let serving = Serving::at(Site::start().await?, |options| {
        options.set("gate", "stable_seconds", 4)
    })
    .await?;
    let bad = serving
        .push(Image::crash_loop(&serving.repository, 2), "two")
        .await?;
    rolls_back(&serving, &serving.target(&bad), "ended with code 3").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a32_a_service_that_is_slow_to_be_healthy_gets_its_time() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let script = "#!/bin/sh\n(sleep 3; touch /ready) &\nexec /bin/serve\n";
    let slow = Image::web(&serving.repository, "two")
        .file("/bin/slowly", script)
        .entrypoint(["/bin/slowly"])
        .config(
            "Healthcheck",
            json!({
                "Test": ["CMD-SHELL", "test -e /ready"], "Interval": 200_000_000,
                "Timeout": 5_000_000_000_u64, "Retries": 2, "StartPeriod": 10_000_000_000_u64,
            }),
        );
    let slow = serving.push(slow, "two").await?;
    let report = serving.converge(&slow).await?;
    assert!(!report.to_string().contains("\"rejected\":{"), "{report}");
    serving.serves("two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a32_a_service_that_is_healthy_only_now_and_then_goes() -> anyhow::Result<()> {
    let serving = Serving::at(Site::start().await?, |options| {
        options.set("gate", "soak_seconds", 4)
    })
    .await?;
    // Healthy at first; after a second every check fails.
    let script = "#!/bin/sh\n(sleep 1; touch /sick) &\nexec /bin/serve\n";
    let flaps = Image::web(&serving.repository, "two")
        .file("/bin/flaps", script)
        .entrypoint(["/bin/flaps"])
        .healthcheck("test ! -e /sick", 200, 2);
    let flaps = serving.push(flaps, "two").await?;
    rolls_back(&serving, &serving.target(&flaps), "health check failed").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a33_a_service_that_dies_in_the_soak_is_rolled_back() -> anyhow::Result<()> {
    let serving = Serving::at(Site::start().await?, |options| {
        options.set("gate", "soak_seconds", 5)
    })
    .await?;
    let script = "#!/bin/sh\nhttpd -f -p 8080 -h /www &\nsleep 2\nexit 9\n";
    let dies = Image::web(&serving.repository, "two")
        .file("/bin/dies", script)
        .entrypoint(["/bin/dies"])
        .healthcheck("wget -q -O /dev/null http://127.0.0.1:8080/", 200, 3);
    let dies = serving.push(dies, "two").await?;
    rolls_back(&serving, &serving.target(&dies), "ended with code 9").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a34_a_health_check_that_cannot_run_is_told_from_an_unhealthy_service() -> anyhow::Result<()>
{
    let serving = Serving::start().await?;
    let unrunnable = Image::web(&serving.repository, "two").config(
        "Healthcheck",
        json!({
            "Test": ["CMD", "/bin/no-such-probe"], "Interval": 200_000_000,
            "Timeout": 5_000_000_000_u64, "Retries": 2,
        }),
    );
    let unrunnable = serving.push(unrunnable, "two").await?;
    rolls_back(&serving, &serving.target(&unrunnable), "cannot run").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a35_a_service_that_ignores_sigterm_is_swapped_within_its_grace() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let script = "#!/bin/sh\ntrap '' TERM\nhttpd -f -p 8080 -h /www &\nwhile :; do wait; done\n";
    let deaf = Image::healthy_web(&serving.repository, "deaf").file("/bin/serve", script);
    let deaf = serving.push(deaf, "deaf").await?;
    let grace = json!({ "stop_grace_period": "1s" });
    let deaf = serving.target_with(&deaf, &grace);
    serving.site.converge(&serving.device, &deaf).await?;
    serving.serves("deaf").await;
    let two = serving.good("two").await?;
    let begun = Stopwatch::start();
    serving.converge(&two).await?;
    serving.serves("two").await;
    serving.only_container().await?;
    // Ten seconds would be the engine's own grace; the spec's counts.
    assert!(begun.elapsed().as_secs() < 9, "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a36_an_image_for_another_platform_is_refused_before_anything_stops() -> anyhow::Result<()>
{
    let site = Site::start().await?;
    let api = HttpTap::start(site.api.address()).await?;
    let serving = Serving::through(api.url(), site, |options| options).await?;
    let before = serving.device.running("web").await?;
    let image = Image::healthy_web(&serving.repository, "two").single();
    let native = serving.push(image.clone(), "two").await?;
    let other = image.platforms(&["linux/arm64"]);
    let other = serving.push(other, "arm").await?;
    let answer = serving
        .site
        .try_set(&serving.device.uuid, &serving.target(&other))
        .await?;
    assert_eq!(
        answer.status.as_u16(),
        422,
        "the API refuses it: {answer:?}"
    );

    // An API that lies: what it says is for this device is for another one. The engine would take it.
    let (own, foreign) = (
        native.child("linux/amd64").clone(),
        other.child("linux/arm64").clone(),
    );
    api.alter(move |_, honest| {
        let text = String::from_utf8_lossy(honest.body())
            .replace(&own.manifest_digest, &foreign.manifest_digest)
            .replace(&own.config_digest, &foreign.config_digest);
        let mut parts = honest.into_parts().0;
        parts.headers.remove("content-length");
        http::Response::from_parts(parts, text.into())
    });
    serving.device.tap.forget();
    serving.set(&native).await?;
    serving.says(&["unsupported_platform"]).await;
    serving.at_rest().await?;
    let stops = serving.device.tap.mutations();
    let stops: Vec<&Call> = stops
        .iter()
        .filter(|call| call.path.ends_with("/stop"))
        .collect();
    assert!(stops.is_empty(), "nothing was stopped: {stops:?}");
    let after = serving.only_container().await?;
    assert_eq!(life(&before), life(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a37_a_port_that_a_stranger_holds_costs_no_loop_of_downtime() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let stranger = place::Port::take()?;
    let listening = TcpListener::bind(stranger.address())?;
    let two = serving.good("two").await?;
    let generation = serving
        .set_target(&target(&[service(
            "web",
            &two.reference(),
            &json!({ "ports": [format!("{}:8080", stranger.address())] }),
        )]))
        .await?;
    serving.reports(&generation, "holding").await;
    serving.one_is_back(&before).await?;
    // Not again and again: what serves is left alone until the target changes.
    serving.at_rest().await?;
    serving.device.tap.forget();
    serving.at_rest().await?;
    assert_eq!(serving.device.tap.mutations(), []);
    drop(listening);
    serving.converge(&two).await?;
    serving.serves("two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a38_two_services_on_one_port_are_refused_whole() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let port = json!({ "ports": [format!("127.0.0.1:{}:8080", serving.port)] });
    let both = target(&[
        service("web", &serving.one.reference(), &port),
        service("also", &serving.one.reference(), &port),
    ]);
    let answer = serving.site.try_set(&serving.device.uuid, &both).await?;
    assert_eq!(answer.status.as_u16(), 422, "{answer:?}");
    serving.at_rest().await?;
    let after = serving.only_container().await?;
    assert_eq!(life(&before), life(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a39_targets_beyond_all_bounds_are_refused_and_cost_nothing() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let image = serving.one.reference();
    let one = |name: &str, config: &Value| service(name, &image, config);
    let many: Vec<Value> = (0..600)
        .map(|n| one(&format!("s{n}"), &json!({})))
        .collect();
    let variables: serde_json::Map<String, Value> = (0..10_000)
        .map(|n| (format!("NAME_{n}"), json!("x".repeat(200))))
        .collect();
    let nul = one("web", &json!({ "environment": { "A": "b\u{0}c" } }));
    let deep = (0..DEEP).fold(json!(1), |inner, _| json!([inner]));
    let cycle = [
        one("a", &json!({ "depends_on": ["b"] })),
        one("b", &json!({ "depends_on": ["a"] })),
    ];
    for (what, bad) in [
        ("a cycle", target(&cycle)),
        ("600 services", target(&many)),
        (
            "5 MB",
            json!({ "apps": {}, "padding": "x".repeat(5 << 20) }),
        ),
        (
            "10,000 variables",
            target(&[one("web", &json!({ "environment": variables }))]),
        ),
        ("a NUL", target(&[nul])),
        ("a strange name", target(&[one("wéb\u{202e}", &json!({}))])),
        (
            "a deep nest",
            target(&[one("web", &json!({ "x-deep": deep }))]),
        ),
    ] {
        let status = match serving.site.try_set(&serving.device.uuid, &bad).await {
            Ok(answer) => answer.status.as_u16(),
            // A body over the bound may be cut off while it is still being sent.
            Err(_) if what == "5 MB" => 413,
            Err(error) => return Err(error.context(what)),
        };
        assert!((400..500).contains(&status), "{what}: {status}");
    }
    serving.at_rest().await?;
    let after = serving.only_container().await?;
    assert_eq!(life(&before), life(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a40_what_the_devices_own_policy_forbids_never_runs() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let folder = place::temporary("policy")?;
    let policy = folder.path().join("policy.yaml");
    let rules = format!(
        "registries: ['{}']\nbind_mounts: [{{ path: /srv/allowed }}]\n",
        site.registry.host()
    );
    fs::write(&policy, rules)?;
    let file = policy.display().to_string();
    let serving = Serving::at(site, |options| options.set("policy", "file", file)).await?;
    let before = serving.device.running("web").await?;
    let idle = Image::idle(&serving.repository, "1");
    let idle = serving.push(idle, "idle").await?;
    let forbidden = [
        json!({ "privileged": true }),
        json!({ "network_mode": "host" }),
        json!({ "pid": "host" }),
        json!({ "ipc": "host" }),
        json!({ "userns_mode": "host" }),
        json!({ "volumes": ["/:/host"] }),
        json!({ "volumes": ["/srv/allowed/below:/host"] }),
        json!({ "volumes": ["/var/run/docker.sock:/var/run/docker.sock"] }),
        json!({ "volumes": [{ "type": "bind", "source": "/etc", "target": "/host" }] }),
        json!({ "devices": ["/dev/mem:/dev/mem"] }),
        json!({ "cap_add": ["SYS_ADMIN"] }),
        json!({ "security_opt": ["seccomp=unconfined"] }),
    ];
    let mut services = vec![service(
        "web",
        &serving.one.reference(),
        &json!({ "ports": [format!("127.0.0.1:{}:8080", serving.port)] }),
    )];
    let name = |number: usize| format!("forbidden{number}");
    for (number, config) in forbidden.iter().enumerate() {
        services.push(service(&name(number), &idle.reference(), config));
    }
    serving.set_target(&target(&services)).await?;
    wait_for("every one to be held", CONVERGES_WITHIN, async || {
        let report = serving.site.report(&serving.device.uuid).await;
        let report = report.map_err(|error| error.to_string())?;
        let holds = report["holds"]
            .as_array()
            .or(report["state"]["holds"].as_array());
        let held = |number: usize| {
            let ours = format!("1001/{}", name(number));
            let ours = |hold: &&Value| hold["code"] == "policy" && hold["service"] == ours.as_str();
            holds.into_iter().flatten().any(|hold| ours(&hold))
        };
        let free: Vec<usize> = (0..forbidden.len())
            .filter(|number| !held(*number))
            .collect();
        if free.is_empty() {
            Ok(())
        } else {
            Err(format!("{free:?} are not held: {report}"))
        }
    })
    .await;
    for (number, config) in forbidden.iter().enumerate() {
        let made = serving.device.containers_of(&name(number)).await?;
        assert!(made.is_empty(), "{config}: {made:?}");
    }
    let after = serving.only_container().await?;
    assert_eq!(life(&before), life(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a41_a_service_that_runs_out_of_memory_is_rolled_back_with_that_reason()
-> anyhow::Result<()> {
    let serving = Serving::start().await?;
    // One line without an end, kept in memory by whoever looks for its end.
    let hog = Image::new(&serving.repository).cmd(["/bin/sh", "-c", "tail /dev/zero"]);
    let hog = serving.push(hog, "hog").await?;
    let limited = serving.target_with(&hog, &json!({ "mem_limit": "16m" }));
    rolls_back(&serving, &limited, "memory").await
}

/// A device whose engine keeps its images on a disk of its own.
async fn on_small_disk(disk: SmallDisk) -> anyhow::Result<Serving> {
    let private = Private {
        disk: Some(disk),
        ..Private::default()
    };
    Serving::on(Engine::private_with(private).await?).await
}

/// A version that brings so many bytes that do not compress.
async fn heavy(serving: &Serving, bytes: usize) -> anyhow::Result<Pushed> {
    let mut noise = Vec::with_capacity(bytes + 16);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    while noise.len() < bytes {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        noise.extend_from_slice(&seed.to_le_bytes());
    }
    let image = Image::healthy_web(&serving.repository, "heavy").file("/noise", noise);
    serving.push(image, "heavy").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a42_an_image_bigger_than_the_disk_is_not_even_begun() -> anyhow::Result<()> {
    let serving = on_small_disk(SmallDisk::of(192 << 20)).await?;
    let heavy = heavy(&serving, 120 << 20).await?;
    holds(&serving, &serving.target(&heavy), &["no_space"]).await?;
    let pulls = serving.device.tap.calls();
    let pulls: Vec<_> = pulls
        .iter()
        .filter(|call| call.path == "/images/create")
        .collect();
    assert!(
        pulls.is_empty(),
        "the room was counted before the download: {pulls:?}"
    );
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a42_a_disk_without_inodes_costs_nothing_that_runs() -> anyhow::Result<()> {
    let disk = SmallDisk {
        bytes: 192 << 20,
        inodes: Some(2_000),
    };
    let serving = on_small_disk(disk).await?;
    let mut crowd = Image::healthy_web(&serving.repository, "crowd");
    for number in 0..3_000 {
        crowd = crowd.file(&format!("/crowd/{number}"), "");
    }
    let crowd = serving.push(crowd, "crowd").await?;
    holds(&serving, &serving.target(&crowd), &["pull_failed"]).await?;
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a43_a_disk_that_fills_up_in_a_swap_leaves_a_way_back() -> anyhow::Result<()> {
    let private = Private {
        disk: Some(SmallDisk::of(192 << 20)),
        ..Private::default()
    };
    let engine = Engine::private_with(private).await?;
    // As on most devices: engine and agent share a disk, so that the reserve is room for the way back.
    let state = engine.data()?.join("agent");
    let site = Site::on(engine, api::Options::default(), Login::Open, None).await?;
    let on_it = |options| agent::Options {
        state: Some(state),
        ..options
    };
    let serving = Serving::at(site, on_it).await?;
    wait_for("the reserve", CONVERGES_WITHIN, async || {
        serving.device.agent.state().join("reserve").exists()
    })
    .await;
    let before = serving.device.running("web").await?;
    let bad = Image::never_healthy(&serving.repository, "bad");
    let bad = serving.push(bad, "bad").await?;
    let data = serving.site.engine.data()?;
    let folder = data.clone();
    // Full to the last block as soon as the candidate is made.
    let full = Arc::new(move |_: &Call| {
        let _ = fill(&folder, 0);
    });
    let filled = serving
        .device
        .tap
        .arm(Rule::on("POST /containers/*/stop").then(Action::Run(full)));
    serving.set(&bad).await?;
    filled.wait(CONVERGES_WITHIN).await?;
    serving.one_is_back(&before).await?;
    serving.says(&["reserve_used"]).await;
    for entry in fs::read_dir(&data)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("filler-") {
            fs::remove_file(entry.path())?;
        }
    }
    serving.says(&["\"rejected\":{"]).await;
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a44_a_layer_that_unpacks_to_more_than_the_disk_is_stopped() -> anyhow::Result<()> {
    let serving = on_small_disk(SmallDisk::of(192 << 20)).await?;
    let before = serving.device.running("web").await?;
    let bomb = Image::healthy_web(&serving.repository, "bomb").file("/zeros", vec![0; 400 << 20]);
    let bomb = serving.push(bomb, "bomb").await?;
    let generation = serving.set(&bomb).await?;
    serving.reports(&generation, "holding").await;
    let after = serving.device.running("web").await?;
    assert_eq!(life(&before), life(&after));
    assert_eq!(serving.page().await, Ok("one".to_owned()));
    // Whatever was unpacked is given back: the next update fits.
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    Ok(())
}
