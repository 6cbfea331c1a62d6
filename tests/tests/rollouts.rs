//! Journey A on real parts: a push to the registry becomes a running container on every device, batch by batch; and a
//! bad one comes back.

use std::sync::OnceLock;
use std::time::Duration;

use holdfast_tests::clock::Stopwatch;
use holdfast_tests::images::Image;
use holdfast_tests::place;
use holdfast_tests::site::{CONVERGES_WITHIN, Device, Site, service, target};
use holdfast_tests::wait::wait_for;
use reqwest::Method;
use serde_json::{Value, json};

/// Six swaps in three batches, each with a pull and a gate of some seconds.
const TRAVELS_WITHIN: Duration = Duration::from_mins(3);

/// Six devices that run version one of an image nobody approved, and a policy for it: batches of two.
struct Fleet {
    site: Site,
    repository: String,
    devices: Vec<Device>,
}

impl Fleet {
    async fn start() -> anyhow::Result<Self> {
        let site = Site::start().await?;
        let repository = format!("web-{}", place::unique());
        let one = Image::healthy_web(&repository, "one")
            .push(&site.registry, "stable")
            .await?;
        let policy = json!({
            "name": "web", "image_pattern": format!("{}/{repository}:*", site.registry.host()),
            "batch_size": 2, "batch_delay_minutes": 0, "health_timeout_minutes": 2,
        });
        site.api.post("/policies", &policy).await?.good()?;
        let mut devices = Vec::new();
        for _ in 0..6 {
            let mut device = site.device().await?;
            device.agent.run()?;
            let wanted = target(&[service("web", &one.reference(), &json!({}))]);
            site.converge(&device, &wanted).await?;
            devices.push(device);
        }
        Ok(Self {
            site,
            repository,
            devices,
        })
    }

    /// Waits for the question whether the image may run, and says yes.
    async fn approve(&self) -> anyhow::Result<()> {
        let asked = wait_for(
            "the push to ask for approval",
            CONVERGES_WITHIN,
            async || {
                let open = self.site.api.get("/approval-requests?state=open").await;
                let open = open.map_err(|error| error.to_string())?.json;
                let mut items = open["items"].as_array().into_iter().flatten();
                let ours = items.find(|one| one.to_string().contains(&self.repository));
                ours.cloned().ok_or_else(|| open.to_string())
            },
        )
        .await;
        let path = format!("/approval-requests/{}/approve", asked["id"]);
        self.site.api.post(&path, &json!({})).await?.good()?;
        Ok(())
    }

    /// The newest rollout, once it is in one of these states.
    async fn rollout(&self, states: &[&str]) -> Value {
        let what = format!("a rollout to be {states:?}");
        wait_for(&what, TRAVELS_WITHIN, async || {
            let newest = self.site.api.get("/rollouts?limit=1").await;
            let newest = newest.map_err(|error| error.to_string())?.json;
            let id = &newest["items"][0]["id"];
            let shown = self.site.api.get(&format!("/rollouts/{id}")).await;
            let shown = shown.map_err(|error| error.to_string())?.json;
            let state = shown["state"].as_str().unwrap_or_default();
            if states.contains(&state) {
                return Ok(shown);
            }
            Err(shown.to_string())
        })
        .await
    }

    /// The content that serves on each device.
    async fn serving(&self) -> anyhow::Result<Vec<String>> {
        let mut serving = Vec::new();
        for device in &self.devices {
            let running = device.running("web").await?;
            let image = running["Image"].as_str().unwrap_or_default();
            serving.push(image.to_owned());
        }
        Ok(serving)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_becomes_a_container_on_six_devices_two_at_a_time() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let before = fleet.serving().await?;
    let pushed = Stopwatch::start();
    let two = Image::healthy_web(&fleet.repository, "two")
        .push(&fleet.site.registry, "stable")
        .await?;
    fleet.approve().await?;
    let content = two.child("linux/amd64").config_digest.clone();
    let first = OnceLock::new();
    wait_for("all six to run it", TRAVELS_WITHIN, async || {
        let mut with = 0;
        for device in &fleet.devices {
            let running = device.running("web").await.map_err(|e| e.to_string())?;
            with += usize::from(running["Image"] == content);
        }
        if with > 0 {
            first.get_or_init(|| pushed.elapsed());
        }
        (with == 6)
            .then_some(())
            .ok_or_else(|| format!("{with} run it"))
    })
    .await;
    let last = pushed.elapsed();
    let ended = fleet.rollout(&["succeeded"]).await;
    println!(
        "from the push to the first container {:.1} s, to the last {:.1} s",
        first.get().copied().unwrap_or_default().as_secs_f64(),
        last.as_secs_f64()
    );
    assert_eq!(ended["counts"], json!({ "verified": 6 }), "{ended}");
    assert_eq!(ended["batch_count"], 3);
    // The timeline says that no batch was opened before the one before it was verified.
    let timeline = format!("/rollouts/{}/timeline?limit=200", ended["id"]);
    let timeline = fleet.site.api.get(&timeline).await?.good()?.json;
    let (mut told, mut verified) = (0, 0);
    for happening in timeline["items"].as_array().into_iter().flatten() {
        match happening["what"].as_str().unwrap_or_default() {
            "told" => told += 1,
            "verified" => verified += 1,
            "batch_opened" => assert_eq!(told, verified, "{timeline}"),
            _ => {}
        }
        assert!(told - verified <= 2, "{timeline}");
    }
    assert_eq!((told, verified), (6, 6));
    assert_ne!(fleet.serving().await?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_push_reaches_two_of_six_devices_and_comes_back() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let before = fleet.serving().await?;
    Image::crash_loop(&fleet.repository, 0)
        .push(&fleet.site.registry, "stable")
        .await?;
    fleet.approve().await?;
    let ended = fleet.rollout(&["rolled_back", "failed", "paused"]).await;
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    assert_eq!(
        ended["counts"],
        json!({ "returned": 2, "waiting": 4 }),
        "{ended}"
    );
    for device in &fleet.devices {
        device.wait_running("web").await?;
    }
    assert_eq!(fleet.serving().await?, before);
    // What was rolled back is not begun again by another push of the same.
    let registry = fleet.site.registry.host();
    let tag = json!({ "image": format!("{registry}/{}:stable", fleet.repository) });
    let preview = fleet
        .site
        .api
        .call(Method::POST, "/rollouts?dry_run=true", Some(&tag));
    let preview = preview.await?.good()?.json;
    assert_eq!(preview["batches"].as_array().map(Vec::len), Some(3));
    Ok(())
}
