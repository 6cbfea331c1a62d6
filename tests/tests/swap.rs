//! Journey B: a target becomes a running container, and a bad one never costs the good one.

use std::time::Duration;

use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::place;
use holdfast_tests::site::{CONVERGES_WITHIN, Device, Site, page, service, target, wait_for_page};
use holdfast_tests::tap::{Action, Rule, When};
use holdfast_tests::wait::wait_for;
use serde_json::{Value, json};

/// A published web service of this image.
fn web(image: &Pushed, port: u16) -> Value {
    target(&[service(
        "web",
        &image.reference(),
        &json!({ "ports": [format!("127.0.0.1:{port}:8080")] }),
    )])
}

/// A site with one device that serves version `one` on a port.
async fn serving() -> anyhow::Result<(Site, Device, u16, String)> {
    let site = Site::start().await?;
    let repository = format!("web-{}", place::unique());
    let one = Image::healthy_web(&repository, "one")
        .push(&site.registry, "1")
        .await?;
    let mut device = site.device().await?;
    let port = device.port()?;
    device.agent.run()?;
    site.converge(&device, &web(&one, port)).await?;
    wait_for_page(port, "one").await;
    Ok((site, device, port, repository))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_takes_over_and_the_old_one_goes() -> anyhow::Result<()> {
    let (site, device, port, repository) = serving().await?;
    let old = device.running("web").await?;
    device.tap.forget();
    let two = Image::healthy_web(&repository, "two")
        .push(&site.registry, "2")
        .await?;
    site.converge(&device, &web(&two, port)).await?;
    wait_for_page(port, "two").await;
    let new = device.running("web").await?;
    assert_ne!(old["Id"], new["Id"]);
    assert_eq!(new["Image"], two.child("linux/amd64").config_digest);
    assert_eq!(
        device.containers().await?.len(),
        2,
        "the old container is gone: one serves, one holds the network"
    );

    // The candidate was made before the old one was stopped.
    let calls: Vec<String> = device
        .tap
        .mutations()
        .iter()
        .map(|call| format!("{} {}", call.method, call.path))
        .collect();
    let place_of = |part: &str| calls.iter().position(|call| call.contains(part));
    assert!(
        place_of("/containers/create") < place_of("/stop"),
        "{calls:?}"
    );
    assert!(place_of("/stop") < place_of("/start"), "{calls:?}");
    Ok(())
}

/// Deploys a bad image over version `one` and checks that `one` serves again.
async fn comes_back_after(make: impl FnOnce(&str) -> Image, reason: &str) -> anyhow::Result<()> {
    let (site, device, port, repository) = serving().await?;
    let old = device.running("web").await?;
    let bad = make(&repository).push(&site.registry, "bad").await?;
    let stored = site.set(&device.uuid, &web(&bad, port)).await?;
    let report = site
        .wait_for_status(&device.uuid, &stored["generation"], "holding")
        .await;
    wait_for("the old container to serve", CONVERGES_WITHIN, async || {
        let report = site
            .report(&device.uuid)
            .await
            .map_err(|error| error.to_string())?;
        let text = report.to_string();
        let back = page(port).await.is_ok_and(|page| page == "one");
        if back && text.contains("\"rejected\"") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    let running = device.running("web").await?;
    assert_eq!(
        running["Id"], old["Id"],
        "the very container from before serves: {report}"
    );
    assert_eq!(
        running["HostConfig"]["RestartPolicy"]["Name"], "always",
        "and is armed again"
    );

    wait_for(
        "the failed container to be removed",
        CONVERGES_WITHIN,
        async || {
            device
                .containers()
                .await
                .is_ok_and(|containers| containers.len() == 2)
        },
    )
    .await;
    let report = site.report(&device.uuid).await?.to_string();
    assert!(report.contains(reason), "the report says why: {report}");

    // Not tried again until the target changes: further polls leave the engine alone.
    device.tap.forget();
    let mark = device.agent.process()?.mark();
    device
        .agent
        .process()?
        .wait_for_log_since(mark, &["the target has not changed"], CONVERGES_WITHIN)
        .await?;
    device
        .agent
        .process()?
        .wait_for_log_since(mark, &["the target has not changed"], CONVERGES_WITHIN)
        .await?;
    assert_eq!(device.tap.mutations(), []);

    // Naming the good one and then the bad one again is a new wish: it is tried, and fails, again.
    let one = Image::healthy_web(&repository, "one")
        .push(&site.registry, "1")
        .await?;
    site.converge(&device, &web(&one, port)).await?;
    device.tap.forget();
    let stored = site.set(&device.uuid, &web(&bad, port)).await?;
    site.wait_for_status(&device.uuid, &stored["generation"], "holding")
        .await;
    wait_for(
        "the bad one to be tried again",
        CONVERGES_WITHIN,
        async || {
            device
                .tap
                .mutations()
                .iter()
                .any(|call| call.path.ends_with("/containers/create"))
        },
    )
    .await;

    let good = Image::healthy_web(&repository, "three")
        .push(&site.registry, "3")
        .await?;
    site.converge(&device, &web(&good, port)).await?;
    wait_for_page(port, "three").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a30_a_broken_entrypoint_brings_the_old_container_back() -> anyhow::Result<()> {
    comes_back_after(
        |name| Image::broken_entrypoint(name),
        "could not be started",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a32_a_never_healthy_image_brings_the_old_container_back() -> anyhow::Result<()> {
    comes_back_after(
        |name| Image::never_healthy(name, "sick"),
        "health check failed",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a31_a_crash_looping_image_brings_the_old_container_back() -> anyhow::Result<()> {
    comes_back_after(|name| Image::crash_loop(name, 0), "ended with code 3").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a20_foreign_containers_are_never_touched() -> anyhow::Result<()> {
    let (site, device, port, repository) = serving().await?;
    let pushed = Image::idle(format!("{repository}-foreign"), "1")
        .push(&site.registry, "1")
        .await?;
    device.docker().pull(&pushed.reference(), None).await?;
    let name = format!("foreign-{}", place::unique());
    let body = json!({ "Image": pushed.reference(), "Labels": { "owner": "somebody else" } });
    let foreign = device.docker().run(&name, &body).await?;
    let before = device.docker().container(&foreign).await?;

    let two = Image::healthy_web(&repository, "two")
        .push(&site.registry, "2")
        .await?;
    site.converge(&device, &web(&two, port)).await?;
    site.converge(&device, &json!({ "apps": {} })).await?;
    assert_eq!(
        device.containers().await?.len(),
        0,
        "an empty target leaves nothing of ours"
    );
    let after = device.docker().container(&foreign).await?;
    device.docker().remove(&foreign).await?;
    let state = |container: &Option<Value>| container.as_ref().map(|c| c["State"].clone());
    assert_eq!(state(&before), state(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a19_a_killed_or_removed_container_is_restored() -> anyhow::Result<()> {
    let (_site, device, port, _) = serving().await?;
    let first = device.running("web").await?;
    let id = first["Id"].as_str().unwrap_or_default();
    device.docker().kill(id).await?;
    wait_for_page(port, "one").await;
    assert_eq!(
        device.wait_running("web").await?["Id"],
        first["Id"],
        "started again"
    );
    device.docker().remove(id).await?;
    wait_for_page(port, "one").await;
    assert_ne!(
        device.wait_running("web").await?["Id"],
        first["Id"],
        "made anew"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a47_without_api_and_registry_a_restarted_agent_keeps_and_restores() -> anyhow::Result<()> {
    let (mut site, mut device, port, _) = serving().await?;
    let before = device.running("web").await?;
    device.agent.stop();
    site.api.process().kill9();
    site.registry.stop();
    device.agent.run()?;
    let offline = "asking for the target failed";
    device
        .agent
        .process()?
        .wait_for_log(&[offline], CONVERGES_WITHIN)
        .await?;
    let after = device.running("web").await?;
    assert_eq!(before["Id"], after["Id"]);
    assert_eq!(
        before["State"]["StartedAt"], after["State"]["StartedAt"],
        "kept running"
    );
    device
        .docker()
        .kill(before["Id"].as_str().unwrap_or_default())
        .await?;
    wait_for_page(port, "one").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a59_a_second_agent_for_the_same_device_refuses_to_run() -> anyhow::Result<()> {
    let (_site, device, _, _) = serving().await?;
    let refused = device.agent.command(&["run"]).await;
    let message = refused
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    assert!(message.contains("another agent"), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_converged_device_leaves_the_engine_alone() -> anyhow::Result<()> {
    let (_site, device, _, _) = serving().await?;
    let agent = device.agent.process()?;
    device.tap.forget();
    let mut mark = agent.mark();
    for _ in 0..3 {
        agent
            .wait_for_log_since(mark, &["the target has not changed"], CONVERGES_WITHIN)
            .await?;
        mark = agent.mark();
    }
    assert_eq!(device.tap.mutations(), [], "polls change nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a46_a_pull_that_stalls_is_given_up_and_tried_again() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let repository = format!("stall-{}", place::unique());
    let one = Image::healthy_web(&repository, "one")
        .push(&site.registry, "1")
        .await?;
    let adjust =
        |options: holdfast_tests::agent::Options| options.set("pull", "no_progress_seconds", 1);
    let mut device = site.device_at(site.api.url(), adjust).await?;
    let stalled = device
        .tap
        .arm(Rule::on("POST /images/create").then(Action::Stall));
    device.agent.run()?;
    let stored = site
        .set(
            &device.uuid,
            &target(&[service("web", &one.reference(), &json!({}))]),
        )
        .await?;
    stalled.wait(CONVERGES_WITHIN).await?;
    wait_for(
        "the stalled pull to be reported",
        CONVERGES_WITHIN,
        async || {
            let report = site
                .report(&device.uuid)
                .await
                .map_err(|error| error.to_string())?
                .to_string();
            if report.contains("pull_failed") {
                Ok(())
            } else {
                Err(report)
            }
        },
    )
    .await;
    device.tap.release();
    site.wait_for_status(&device.uuid, &stored["generation"], "converged")
        .await;
    Ok(())
}

/// Kills the agent at a moment of the swap from `one` to `two`, starts it again, and checks the end.
async fn ends_as_without_the_crash(at: Rule) -> anyhow::Result<()> {
    let (site, mut device, port, repository) = serving().await?;
    let two = Image::healthy_web(&repository, "two")
        .push(&site.registry, "2")
        .await?;
    let pid = device.agent.process()?.pid();
    let fired = device.tap.arm(at.then(Action::Kill9(pid)));
    let stored = site.set(&device.uuid, &web(&two, port)).await?;
    fired.wait(CONVERGES_WITHIN).await?;
    device
        .agent
        .process()?
        .wait_for_end(Duration::from_secs(10))
        .await?;
    device.agent.run()?;
    site.wait_for_status(&device.uuid, &stored["generation"], "converged")
        .await;
    wait_for_page(port, "two").await;
    let running = device.running("web").await?;
    assert_eq!(running["Image"], two.child("linux/amd64").config_digest);
    assert_eq!(running["HostConfig"]["RestartPolicy"]["Name"], "always");
    assert_eq!(device.containers().await?.len(), 2, "no orphan is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a01_killed_during_a_pull_it_ends_as_without_the_crash() -> anyhow::Result<()> {
    ends_as_without_the_crash(Rule::on("POST /images/create").when(When::AfterResponse)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a01_killed_after_create_it_ends_as_without_the_crash() -> anyhow::Result<()> {
    ends_as_without_the_crash(Rule::on("POST /containers/create").when(When::AfterResponse)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a01_killed_after_stop_it_ends_as_without_the_crash() -> anyhow::Result<()> {
    ends_as_without_the_crash(Rule::on("POST /containers/*/stop").when(When::AfterResponse)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a01_killed_after_start_it_ends_as_without_the_crash() -> anyhow::Result<()> {
    ends_as_without_the_crash(Rule::on("POST /containers/*/start").when(When::AfterResponse)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a01_killed_before_the_commit_it_ends_as_without_the_crash() -> anyhow::Result<()> {
    // The swap sets three policies: the old container's before its stop, then the candidate's for its
    // trial if it is not `no` yet, and last the wanted one: the commit begins there.
    let commit = Rule::on("POST /containers/*/update").when(When::BeforeRequest);
    ends_as_without_the_crash(commit.nth(2)).await
}
