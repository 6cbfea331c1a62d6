//! A backup of the control API, restored after more was told: a real device accepts what comes next.

use holdfast_tests::images::Image;
use holdfast_tests::place;
use holdfast_tests::site::{CONVERGES_WITHIN, Site, service, target};
use holdfast_tests::wait::wait_for;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_device_accepts_the_next_generation_after_a_restore() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    let repository = format!("web-{}", place::unique());
    let mut device = site.device().await?;
    device.agent.run()?;
    let mut targets = Vec::new();
    for version in ["one", "two", "three", "four"] {
        let image = Image::healthy_web(&repository, version);
        let image = image.push(&site.registry, version).await?;
        targets.push(target(&[service("web", &image.reference(), &json!({}))]));
    }
    let [one, two, three, four] = &targets[..] else {
        unreachable!("four were pushed");
    };
    site.converge(&device, one).await?;
    let copy = site.api.data().join("copy.db");
    let copy = copy.to_str().expect("the lab's folders are text");
    site.api.command(&["backup", copy]).await?;
    site.converge(&device, two).await?;
    let before = site.converge(&device, three).await?;
    assert_eq!(before["generation"], 3);

    // Under the running program there is no restore; without it there is, and the device notices nothing of it.
    let refused = site.api.command(&["restore", copy]).await;
    assert!(refused.is_err(), "{refused:?}");
    site.api.process().stop();
    let said = site.api.command(&["restore", copy]).await?;
    assert!(said.contains("1 devices are back"), "{said}");
    site.api.process().restart()?;
    site.api.ready().await?;

    // What the server believes to be generation 2 is older than what the device has: it is lifted above that.
    site.set(&device.uuid, four).await?;
    wait_for(
        "the device to run version four",
        CONVERGES_WITHIN,
        async || {
            let report = site.report(&device.uuid).await;
            let report = report.map_err(|error| error.to_string())?;
            let running = device.running("web").await.map_err(|e| e.to_string())?;
            let version = &running["Config"]["Labels"]["org.opencontainers.image.version"];
            let is_there = version == "four" && report["status"] == "converged";
            let is_newer = report["generation"].as_i64() > Some(3);
            (is_there && is_newer)
                .then_some(())
                .ok_or_else(|| format!("{version}: {report}"))
        },
    )
    .await;
    Ok(())
}
