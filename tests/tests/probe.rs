//! The agent's own probes: what they let through, what they stop, and that "cannot run" has a name.

use holdfast_tests::images::Image;
use holdfast_tests::place;
use holdfast_tests::site::{Device, Site, service, target, wait_for_page};
use serde_json::{Value, json};

/// A web service with a probe of the agent's.
fn probed(image: &str, port: u16, probe: &Value) -> Value {
    let config = json!({
        "ports": [format!("127.0.0.1:{port}:8080")],
        "x-holdfast": { "probe": probe },
    });
    target(&[service("web", image, &config)])
}

/// A site with one device that serves version `one`, which has no health check of its own.
async fn serving() -> anyhow::Result<(Site, Device, u16, String)> {
    let site = Site::start().await?;
    let repository = format!("web-{}", place::unique());
    let one = Image::web(&repository, "one")
        .push(&site.registry, "1")
        .await?;
    let mut device = site.device().await?;
    let port = device.port()?;
    device.agent.run()?;
    let http = json!({ "http": { "port": 8080, "path": "/" }, "interval": "200ms" });
    site.converge(&device, &probed(&one.reference(), port, &http))
        .await?;
    wait_for_page(port, "one").await;
    Ok((site, device, port, repository))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_probe_lets_a_good_version_through() -> anyhow::Result<()> {
    let (site, device, port, repository) = serving().await?;
    for (version, probe) in [
        (
            "two",
            json!({ "tcp": { "port": 8080 }, "interval": "200ms" }),
        ),
        (
            "three",
            json!({ "exec": ["/bin/busybox", "true"], "interval": "200ms" }),
        ),
        (
            "four",
            json!({ "http": { "port": 8080, "path": "/", "status": 200 }, "interval": "200ms" }),
        ),
    ] {
        let image = Image::web(&repository, version)
            .push(&site.registry, version)
            .await?;
        site.converge(&device, &probed(&image.reference(), port, &probe))
            .await?;
        wait_for_page(port, version).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a34_a_probe_that_says_no_or_cannot_run_brings_the_old_version_back() -> anyhow::Result<()>
{
    let (site, device, port, repository) = serving().await?;
    let before = device.running("web").await?;
    let image = Image::web(&repository, "bad")
        .push(&site.registry, "bad")
        .await?;
    for (probe, reason) in [
        (
            json!({ "http": { "port": 8080, "path": "/no-such-page" }, "interval": "100ms" }),
            "answered 404",
        ),
        (
            json!({ "tcp": { "port": 1 }, "interval": "100ms", "retries": 2 }),
            "Connection refused",
        ),
        (
            json!({ "exec": ["/bin/busybox", "false"], "interval": "100ms" }),
            "its probe failed: exit code 1",
        ),
        (
            json!({ "exec": ["/no/such/program"], "interval": "100ms" }),
            "its health check cannot run: exit code 126",
        ),
    ] {
        // A rejection is about the container that is made, so each case makes another one.
        let mut asked = probed(&image.reference(), port, &probe);
        asked["apps"]["1001"]["services"][0]["config"]["environment"] = json!({ "CASE": reason });
        let stored = site.set(&device.uuid, &asked).await?;
        let report = site
            .wait_for_status(&device.uuid, &stored["generation"], "holding")
            .await;
        let report = wait_for_rejection(&site, &device, report).await?;
        assert!(report.contains(reason), "{probe}: {report}");
        wait_for_page(port, "one").await;
        assert_eq!(device.running("web").await?["Id"], before["Id"]);
    }
    Ok(())
}

/// Waits until the newest report tells of a rejected spec; gives the report.
async fn wait_for_rejection(site: &Site, device: &Device, first: Value) -> anyhow::Result<String> {
    let generation = first["generation"].clone();
    let what = "a rejection in the report";
    holdfast_tests::wait::try_wait_for(what, holdfast_tests::site::CONVERGES_WITHIN, async || {
        let report = site
            .report(&device.uuid)
            .await
            .map_err(|error| error.to_string())?;
        let holds = report["holds"].as_array();
        let rejected =
            holds.is_some_and(|holds| holds.iter().any(|hold| hold["code"] == "rejected"));
        let text = report.to_string();
        if rejected && report["generation"] == generation {
            Ok(text)
        } else {
            Err(text)
        }
    })
    .await
}
