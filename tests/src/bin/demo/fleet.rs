//! The demo's second half: a push travels to a fleet of four devices, and a bad one comes back.

use anyhow::Context as _;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::site::{Device, Site, service, target};
use holdfast_tests::wait::try_wait_for;
use serde_json::{Value, json};

use crate::{STEP_WITHIN, heading, said, seconds, short, typed};

const REPOSITORY: &str = "demo/kiosk";
const TAG: &str = "stable";
const DEVICES: usize = 4;

/// Four more devices, and what they follow.
pub(crate) struct Fleet<'a> {
    site: &'a Site,
    devices: Vec<Device>,
}

/// What is so is printed as `a 2, b 1`.
fn counts(counts: &Value) -> String {
    let members = counts.as_object().into_iter().flatten();
    let told: Vec<String> = members
        .map(|(name, many)| format!("{name} {many}"))
        .collect();
    told.join(", ")
}

impl<'a> Fleet<'a> {
    /// Enrols the devices; all run the first version, two may be touched at a time.
    pub(crate) async fn join(site: &'a Site) -> anyhow::Result<Self> {
        heading(
            6,
            "Four more devices follow one tag, and a policy says: two at a time",
        );
        let first = push(site, &Image::healthy_web(REPOSITORY, "1")).await?;
        let pattern = format!("{}/{REPOSITORY}:*", site.registry.host());
        let policy = json!({
            "name": "kiosks", "image_pattern": pattern, "batch_size": 2,
            "batch_delay_minutes": 0, "health_timeout_minutes": 5,
        });
        typed(&format!(
            "curl -X POST $API/api/v1/policies … -d '{policy}'"
        ));
        site.api.post("/policies", &policy).await?.good()?;
        let wanted = target(&[service("kiosk", &first.reference(), &json!({}))]);
        let mut devices = Vec::new();
        for _ in 0..DEVICES {
            let mut device = site.device().await?;
            device.agent.run()?;
            site.set(&device.uuid, &wanted).await?;
            devices.push(device);
        }
        let fleet = Self { site, devices };
        fleet.all_run(&first).await?;
        said(format!("{DEVICES} devices run {}", first.reference()));
        Ok(fleet)
    }

    /// A good version: somebody is asked once, then it goes to all.
    pub(crate) async fn good_push(&self) -> anyhow::Result<()> {
        heading(
            7,
            "A new version is pushed: nobody approved this image yet, so somebody is asked",
        );
        let begun = Stopwatch::start();
        let second = push(self.site, &Image::healthy_web(REPOSITORY, "2")).await?;
        said(format!(
            "pushed {}; the registry's notification arrives",
            second.reference()
        ));
        let open = "/approval-requests?state=open";
        let asked = try_wait_for("the push to ask for approval", STEP_WITHIN, async || {
            let answer = self.site.api.get(open).await.ok()?;
            let mut items = answer.json["items"].as_array()?.iter();
            items
                .find(|one| one.to_string().contains(REPOSITORY))
                .cloned()
        })
        .await?;
        let path = format!("/approval-requests/{}/approve", asked["id"]);
        typed(&format!("curl -X POST $API/api/v1{path} …"));
        self.site.api.post(&path, &json!({})).await?.good()?;
        let ended = self.ended(&["succeeded"]).await?;
        self.all_run(&second).await?;
        said(format!(
            "{} after the push all four run it, in {} batches: {}",
            seconds(&begun),
            ended["batch_count"],
            counts(&ended["counts"])
        ));
        Ok(())
    }

    /// A bad version: it reaches the first batch and no further.
    pub(crate) async fn bad_push(&self) -> anyhow::Result<()> {
        heading(
            8,
            "A bad version is pushed to the same tag: its containers crash",
        );
        let begun = Stopwatch::start();
        let before = self.serving().await?;
        let bad = push(self.site, &Image::crash_loop(REPOSITORY, 0)).await?;
        let ended = self.ended(&["rolled_back"]).await?;
        said(format!(
            "{} after the push the rollout of {} is rolled back: {}",
            seconds(&begun),
            short(&format!("{REPOSITORY}@{}", bad.top_digest)),
            counts(&ended["counts"])
        ));
        typed(&format!("curl $API/api/v1/rollouts/{} …", ended["id"]));
        said(format!(
            "\"{}\"",
            ended["reason"].as_str().unwrap_or_default()
        ));
        let again = async || (self.serving().await.ok()? == before).then_some(());
        try_wait_for("all four to run what they ran", STEP_WITHIN, again).await?;
        said("all four run what they ran before; two were never touched");
        Ok(())
    }

    /// The rollout of the newest push, once it has ended so.
    async fn ended(&self, states: &[&str]) -> anyhow::Result<Value> {
        let what = format!("a rollout to be {states:?}");
        let ended = try_wait_for(&what, STEP_WITHIN, async || {
            let newest = self.site.api.get("/rollouts?limit=1").await.ok()?.json;
            let id = newest["items"][0]["id"].as_i64()?;
            let path = format!("/rollouts/{id}");
            let shown = self.site.api.get(&path).await.ok()?.json;
            states.contains(&shown["state"].as_str()?).then_some(shown)
        });
        ended.await
    }

    /// The content that runs on each device.
    async fn serving(&self) -> anyhow::Result<Vec<String>> {
        let mut serving = Vec::new();
        for device in &self.devices {
            let running = device.running("kiosk").await?;
            let image = running["Image"].as_str().context("a container's image")?;
            serving.push(image.to_owned());
        }
        Ok(serving)
    }

    async fn all_run(&self, image: &Pushed) -> anyhow::Result<()> {
        let is_it = |content: &String| {
            let mut children = image.children.iter();
            children.any(|child| child.config_digest == *content)
        };
        try_wait_for("all four to run it", STEP_WITHIN, async || {
            let serving = self.serving().await.ok()?;
            serving.iter().all(is_it).then_some(())
        })
        .await
    }
}

async fn push(site: &Site, image: &Image) -> anyhow::Result<Pushed> {
    image.push(&site.registry, TAG).await
}
