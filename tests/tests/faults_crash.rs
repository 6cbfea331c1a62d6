//! Faults A01 to A15: crashes of the agent, power cuts, and engines that die, hang or lie.
//!
//! What else proves a row is named in `docs/faults.md`: the journeys of `swap.rs` and the crash matrix.

use holdfast_tests::api::Options;
use holdfast_tests::disk::{Disk, SmallDisk};
use holdfast_tests::engine::{Engine, Private};
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::registry::Login;
use holdfast_tests::serving::{Serving, id, life};
use holdfast_tests::site::{CONVERGES_WITHIN, Site, service, target};
use holdfast_tests::tap::{Action, Rule, When};
use holdfast_tests::wait::wait_for;
use http::StatusCode;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a03_a_spec_that_kills_the_agent_again_and_again_is_given_up() -> anyhow::Result<()> {
    let mut serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let two = serving.good("two").await?;
    let mut deaths = 0;
    // Each time just before the candidate starts, so that no attempt ever succeeds.
    let mut dies = {
        let device = &serving.device;
        let start = Rule::on("POST /containers/*/start");
        let pid = device.agent.process()?.pid();
        device.tap.arm(start.then(Action::Kill9(pid)))
    };
    let generation = serving.set(&two).await?;
    while deaths < 3 {
        dies.wait(CONVERGES_WITHIN).await?;
        deaths += 1;
        serving
            .device
            .agent
            .process()?
            .wait_for_end(CONVERGES_WITHIN)
            .await?;
        serving.device.agent.run()?;
        if deaths < 3 {
            let start = Rule::on("POST /containers/*/start");
            let pid = serving.device.agent.process()?.pid();
            dies = serving.device.tap.arm(start.then(Action::Kill9(pid)));
        }
    }
    serving.reports(&generation, "holding").await;
    serving
        .says(&["\"rejected\"", "the agent died 3 times"])
        .await;
    serving.one_is_back(&before).await?;
    serving.only_container().await?;

    // It goes on polling, and a target that works is taken up.
    let three = serving.good("three").await?;
    serving.converge(&three).await?;
    serving.serves("three").await;
    Ok(())
}

/// Starts an update to `two`, holds the agent at a moment of it, cuts the power and turns it on again.
async fn power_cut(at: Rule, network: bool) -> anyhow::Result<(Serving, Pushed)> {
    let mut serving = Serving::on(Engine::private().await?).await?;
    let two = serving.good("two").await?;
    let held = serving.device.tap.arm(at.then(Action::Stall));
    serving.set(&two).await?;
    held.wait(CONVERGES_WITHIN).await?;
    serving.device.agent.kill9();
    serving.site.engine.power_cut().await?;
    serving.device.tap.release();
    if !network {
        serving.site.api.process().kill9();
        serving.site.registry.stop();
    }
    serving.site.engine.start().await?;
    serving.device.agent.run()?;
    Ok((serving, two))
}

#[tokio::test(flavor = "multi_thread")]
async fn a04_after_a_power_cut_in_a_pull_the_old_version_runs_without_a_network()
-> anyhow::Result<()> {
    let pull = Rule::on("POST /images/create").when(When::AfterResponse);
    let (mut serving, _) = power_cut(pull, false).await?;
    serving.serves("one").await;
    serving.only_container().await?;
    // With the network back the pull begins again.
    serving.site.registry.process().restart()?;
    serving.site.api.process().restart()?;
    serving.site.api.ready().await?;
    serving.serves("two").await;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a05_after_a_power_cut_between_stop_and_start_the_device_serves_again() -> anyhow::Result<()>
{
    let stop = Rule::on("POST /containers/*/stop").when(When::AfterResponse);
    let (serving, two) = power_cut(stop, false).await?;
    // Without a network: the new image is there, and so is the old container.
    serving.serves("two").await;
    let running = serving.only_container().await?;
    assert_eq!(running["Image"], two.child("linux/amd64").config_digest);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a07_after_a_power_cut_that_loses_what_was_not_synced_the_update_ends() -> anyhow::Result<()>
{
    let disk = Disk::mount(SmallDisk::of(32 << 20))?;
    let state = disk.root().join("state");
    let engine = Engine::private().await?;
    let site = Site::on(engine, Options::default(), Login::Open, None).await?;
    let mut serving = Serving::at(site, |mut options| {
        options.state = Some(state);
        options
    })
    .await?;
    let moments = [
        ("two", "POST /containers/create"),
        ("three", "POST /containers/*/stop"),
        ("four", "POST /containers/*/start"),
    ];
    for (version, moment) in moments {
        let image = serving.good(version).await?;
        let at = Rule::on(moment).when(When::AfterResponse);
        let held = serving.device.tap.arm(at.then(Action::Stall));
        let generation = serving.set(&image).await?;
        held.wait(CONVERGES_WITHIN).await?;
        let forgotten = disk.root().join("nobody-synced-this");
        std::fs::write(&forgotten, "x".repeat(4_096))?;
        serving.device.agent.kill9();
        serving.site.engine.power_cut().await?;
        serving.device.tap.release();
        disk.lose_power()?;
        // Else nothing was cut.
        let there = std::fs::read(&forgotten).unwrap_or_default();
        assert!(!there.starts_with(b"x"), "the disk forgets nothing");
        serving.site.engine.start().await?;
        serving.device.agent.run()?;
        serving.serves(version).await;
        let running = serving.only_container().await?;
        let wanted = &image.child("linux/amd64").config_digest;
        assert_eq!(running["Image"], *wanted, "{moment}");
        serving.reports(&generation, "converged").await;
    }
    Ok(())
}

/// Cuts the power while a candidate is on trial; in its second life it runs `then`.
async fn power_cut_in_the_gate(then: &str) -> anyhow::Result<(Serving, Value, Value)> {
    let mut serving = Serving::on(Engine::private().await?).await?;
    let before = serving.device.running("web").await?;
    let script =
        format!("#!/bin/sh\n[ -e /once ] && {{ {then}; }}\ntouch /once\nexec /bin/serve\n");
    let image = Image::web(&serving.repository, "two")
        .file("/bin/lives", script)
        .entrypoint(["/bin/lives"])
        .healthcheck("test -e /ready", 200, 500);
    let two = serving.push(image, "two").await?;
    let generation = serving.set(&two).await?;
    serving.serves("two").await;
    serving.device.agent.kill9();
    serving.site.engine.power_cut().await?;
    serving.site.engine.start().await?;
    serving.device.agent.run()?;
    Ok((serving, before, generation))
}

#[tokio::test(flavor = "multi_thread")]
async fn a06_after_a_power_cut_in_the_gate_a_good_candidate_gets_another_trial()
-> anyhow::Result<()> {
    let (serving, _, generation) = power_cut_in_the_gate("touch /ready").await?;
    serving.reports(&generation, "converged").await;
    serving.serves("two").await;
    let running = serving.only_container().await?;
    assert_eq!(running["HostConfig"]["RestartPolicy"]["Name"], "always");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a06_after_a_power_cut_in_the_gate_a_bad_candidate_goes() -> anyhow::Result<()> {
    let (serving, before, generation) = power_cut_in_the_gate("exit 3").await?;
    serving.reports(&generation, "holding").await;
    serving.one_is_back(&before).await?;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a08_an_engine_restart_in_the_gate_is_no_failure_of_the_release() -> anyhow::Result<()> {
    let serving = Serving::on(Engine::private().await?).await?;
    // Needs two seconds of its own each time it starts.
    let script = "#!/bin/sh\nrm -f /ready\n(sleep 2; touch /ready) &\nexec /bin/serve\n";
    let image = Image::web(&serving.repository, "two")
        .file("/bin/slowly", script)
        .entrypoint(["/bin/slowly"])
        .healthcheck("test -e /ready", 200, 50);
    let two = serving.push(image, "two").await?;
    let started = serving
        .device
        .tap
        .arm(Rule::on("POST /containers/*/start").when(When::AfterResponse));
    let generation = serving.set(&two).await?;
    started.wait(CONVERGES_WITHIN).await?;
    serving.site.engine.stop().await?;
    serving.site.engine.start().await?;
    let report = serving.reports(&generation, "converged").await;
    assert!(!report.to_string().contains("rejected\":{"), "{report}");
    serving.serves("two").await;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a08_an_engine_restart_in_a_pull_is_no_failure_of_the_release() -> anyhow::Result<()> {
    let serving = Serving::on(Engine::private().await?).await?;
    let two = serving.good("two").await?;
    let pull = Rule::on("POST /images/create").when(When::AfterResponse);
    let held = serving.device.tap.arm(pull.then(Action::Stall));
    let generation = serving.set(&two).await?;
    held.wait(CONVERGES_WITHIN).await?;
    serving.site.engine.stop().await?;
    serving.device.tap.release();
    serving.site.engine.start().await?;
    serving.reports(&generation, "converged").await;
    serving.serves("two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a09_every_service_runs_again_after_the_engine_was_killed() -> anyhow::Result<()> {
    let serving = Serving::on(Engine::private().await?).await?;
    // Ends with an error when somebody ends it, as most programs do: `on-failure` means again then.
    let ends = "#!/bin/sh\ntrap 'exit 143' TERM\nwhile :; do sleep 3600 & wait $!; done\n";
    let idle = Image::idle(&serving.repository, "1").file("/bin/idle", ends);
    let idle = serving.push(idle, "idle").await?;
    let policies = ["always", "unless-stopped", "on-failure"];
    let mut services: Vec<_> = policies
        .iter()
        .map(|policy| service(policy, &idle.reference(), &json!({ "restart": policy })))
        .collect();
    services.push(service(
        "web",
        &serving.one.reference(),
        &json!({ "ports": [format!("127.0.0.1:{}:8080", serving.port)] }),
    ));
    let all = target(&services);
    serving.site.converge(&serving.device, &all).await?;
    // Shims and processes live on; dockerd forgets those that were stopped by nobody.
    serving.site.engine.kill9().await?;
    serving.site.engine.start().await?;
    for policy in policies {
        serving.device.wait_running(policy).await?;
        let found = serving.device.containers_of(policy).await?;
        assert_eq!(found.len(), 1, "{policy}: {found:?}");
    }
    serving.serves("one").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a10_an_engine_that_hangs_is_reported_and_costs_nothing() -> anyhow::Result<()> {
    let serving = Serving::on(Engine::private().await?).await?;
    let before = serving.device.running("web").await?;
    serving.site.engine.hang().await?;
    // A person's look at the device makes the agent look: the event of a stopped engine never comes.
    let two = serving.good("two").await?;
    let generation = serving.set(&two).await?;
    let report = serving.reports(&generation, "engine_unreachable").await;
    assert!(report.is_object(), "{report}");
    // It goes on polling while calls hang.
    serving.at_rest().await?;
    let threads = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/task")).map(Iterator::count);
    let pid = serving.device.agent.process()?.pid();
    let many = threads(pid)?;
    assert!(many < 20, "{many} threads wait for a hanging engine");
    serving.site.engine.go_on()?;
    serving.reports(&generation, "converged").await;
    serving.serves("two").await;
    let after = serving.only_container().await?;
    assert_ne!(life(&before), life(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a11_a_containerd_crash_under_live_restore_recreates_nothing() -> anyhow::Result<()> {
    let private = Private {
        args: vec!["--live-restore".to_owned()],
        ..Private::default()
    };
    let serving = Serving::on(Engine::private_with(private).await?).await?;
    let before = serving.device.running("web").await?;
    serving.device.tap.forget();
    serving.site.engine.kill9_containerd()?;
    serving.site.engine.kill9().await?;
    serving.site.engine.start().await?;
    wait_for("the agent to look again", CONVERGES_WITHIN, async || {
        let looks = serving.device.tap.calls();
        looks
            .iter()
            .any(|call| call.path == "/containers/json" && call.status == Some(StatusCode::OK))
    })
    .await;
    serving.at_rest().await?;
    let after = serving.device.running("web").await?;
    assert_eq!(life(&before), life(&after));
    assert_eq!(before["State"]["Pid"], after["State"]["Pid"]);
    assert_eq!(serving.page().await, Ok("one".to_owned()));
    let creates = serving.device.tap.mutations();
    let creates: Vec<_> = creates
        .iter()
        .filter(|call| call.path.ends_with("/create"))
        .collect();
    assert!(creates.is_empty(), "{creates:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a12_what_no_event_tells_is_found_by_looking() -> anyhow::Result<()> {
    let mut serving = Serving::start().await?;
    serving.device.agent.stop();
    // The stream of events stays silent for ever; a full look comes all the same.
    let silent = serving
        .device
        .tap
        .arm(Rule::on("GET /events").times(100).then(Action::Stall));
    serving.device.agent.run()?;
    silent.wait(CONVERGES_WITHIN).await?;
    serving.at_rest().await?;
    let running = serving.device.running("web").await?;
    serving.device.docker().remove(id(&running)).await?;
    serving.serves("one").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a12_an_event_stream_that_breaks_is_followed_by_a_full_look() -> anyhow::Result<()> {
    let mut serving = Serving::start().await?;
    serving.device.agent.stop();
    let broken = serving
        .device
        .tap
        .arm(Rule::on("GET /events").times(3).then(Action::Reset));
    serving.device.agent.run()?;
    broken.wait(CONVERGES_WITHIN).await?;
    let running = serving.device.running("web").await?;
    serving.device.docker().remove(id(&running)).await?;
    serving.serves("one").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a13_calls_that_fail_after_they_were_done_do_nothing_twice() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let two = serving.good("two").await?;
    // Every third change is done and then answered with 500.
    for nth in (1..60).step_by(3) {
        let lie = Rule::on_mutation().nth(nth).when(When::AfterResponse);
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        serving
            .device
            .tap
            .arm(lie.then(Action::Refuse(status, "a lie of the tap")));
    }
    serving.device.tap.forget();
    let generation = serving.set(&two).await?;
    serving.reports(&generation, "converged").await;
    serving.serves("two").await;
    let running = serving.only_container().await?;
    assert_eq!(running["Image"], two.child("linux/amd64").config_digest);
    let made = |call: &&holdfast_tests::tap::Call| {
        call.path == "/containers/create" && call.query.contains("web")
    };
    let made = serving.device.tap.mutations().iter().filter(made).count();
    assert!(
        made <= 2,
        "{made} creates of one service and what holds its network"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a15_an_engine_that_refuses_the_version_is_reported_and_met_again() -> anyhow::Result<()> {
    let mut serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    serving.device.agent.stop();
    let too_new = "client version 1.99 is too new. Maximum supported API version is 1.12";
    let refused = serving.device.tap.arm(
        Rule::on("GET /info")
            .times(10_000)
            .then(Action::Refuse(StatusCode::BAD_REQUEST, too_new)),
    );
    serving.device.agent.run()?;
    refused.wait(CONVERGES_WITHIN).await?;
    serving.says(&["engine_unreachable"]).await;
    serving.at_rest().await?;
    // The engine is upgraded: the agent asks again by itself.
    serving.device.tap.disarm();
    serving.says(&["\"converged\""]).await;
    let after = serving.device.running("web").await?;
    assert_eq!(life(&before), life(&after));
    Ok(())
}
