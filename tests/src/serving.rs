//! A device that serves: a site, a device, and version `one` of a web service on a published port.
//!
//! Most faults begin here. What a test then asserts it reads from the engine, the published page and
//! the report, never from the agent's insides.

use serde_json::{Value, json};

use crate::agent;
use crate::engine::Engine;
use crate::images::{Image, Pushed};
use crate::site::{CONVERGES_WITHIN, Device, Site, page, service, target, wait_for_page};
use crate::wait::{try_wait_for, wait_for};
use crate::{api, place, registry};

/// A site and its one device.
#[derive(Debug)]
pub struct Serving {
    /// Engine, registry and API.
    pub site: Site,
    /// The device; its agent runs.
    pub device: Device,
    /// Where the service `web` is published.
    pub port: u16,
    /// The repository that its versions are pushed to.
    pub repository: String,
    /// The version it serves.
    pub one: Pushed,
}

impl Serving {
    /// On the engine that all tests share.
    pub async fn start() -> anyhow::Result<Self> {
        Self::at(Site::start().await?, |options| options).await
    }

    /// On an engine that the test may kill.
    pub async fn on(engine: Engine) -> anyhow::Result<Self> {
        let open = registry::Login::Open;
        let site = Site::on(engine, api::Options::default(), open, None).await?;
        Self::at(site, |options| options).await
    }

    /// At a site, with other settings of the agent.
    pub async fn at(
        site: Site,
        adjust: impl FnOnce(agent::Options) -> agent::Options,
    ) -> anyhow::Result<Self> {
        let api = site.api.url();
        Self::through(api, site, adjust).await
    }

    /// As [`Serving::at`], where the device reaches the API at another address: a tap's.
    pub async fn through(
        api: String,
        site: Site,
        adjust: impl FnOnce(agent::Options) -> agent::Options,
    ) -> anyhow::Result<Self> {
        let repository = format!("web-{}", place::unique());
        let one = Image::healthy_web(&repository, "one");
        let one = one.push(&site.registry, "one").await?;
        let mut device = site.device_at(api, adjust).await?;
        let port = device.port()?;
        device.agent.run()?;
        let serving = Self {
            site,
            device,
            port,
            repository,
            one,
        };
        serving.converge(&serving.one).await?;
        serving.serves("one").await;
        Ok(serving)
    }

    /// Another version that works.
    pub async fn good(&self, version: &str) -> anyhow::Result<Pushed> {
        let image = Image::healthy_web(&self.repository, version);
        self.push(image, version).await
    }

    /// Pushes an image of the service's repository.
    pub async fn push(&self, image: Image, tag: &str) -> anyhow::Result<Pushed> {
        image.push(&self.site.registry, tag).await
    }

    /// The target that runs this image.
    pub fn target(&self, image: &Pushed) -> Value {
        self.target_with(image, &json!({}))
    }

    /// As [`Serving::target`], with more of the service's fields.
    pub fn target_with(&self, image: &Pushed, more: &Value) -> Value {
        let mut config = json!({ "ports": [format!("127.0.0.1:{}:8080", self.port)] });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        target(&[service("web", &image.reference(), &config)])
    }

    /// Sets the target that runs this image; answers its generation.
    pub async fn set(&self, image: &Pushed) -> anyhow::Result<Value> {
        self.set_target(&self.target(image)).await
    }

    /// Sets any target; answers its generation.
    pub async fn set_target(&self, target: &Value) -> anyhow::Result<Value> {
        Ok(self.site.set(&self.device.uuid, target).await?["generation"].clone())
    }

    /// Sets the target that runs this image and waits until it is reported converged.
    pub async fn converge(&self, image: &Pushed) -> anyhow::Result<Value> {
        self.site.converge(&self.device, &self.target(image)).await
    }

    /// Waits until this generation is reported with this status; answers the report.
    pub async fn reports(&self, generation: &Value, status: &str) -> Value {
        self.site
            .wait_for_status(&self.device.uuid, generation, status)
            .await
    }

    /// Waits until the report contains every one of these words; answers the report's text.
    pub async fn says(&self, words: &[&str]) -> String {
        wait_for(
            &format!("the report to say {words:?}"),
            CONVERGES_WITHIN,
            async || {
                let report = self.site.report(&self.device.uuid).await;
                let text = report.map_err(|error| error.to_string())?.to_string();
                let all = words.iter().all(|word| text.contains(word));
                if all { Ok(text) } else { Err(text) }
            },
        )
        .await
    }

    /// Waits until the published port shows this version.
    pub async fn serves(&self, version: &str) {
        wait_for_page(self.port, version).await;
    }

    /// The version that the published port shows now.
    pub async fn page(&self) -> Result<String, String> {
        page(self.port).await
    }

    /// Waits until the agent polled twice more: it saw what happened, and had time to act on it.
    pub async fn at_rest(&self) -> anyhow::Result<()> {
        let agent = self.device.agent.process()?;
        for _ in 0..2 {
            let same = ["the target has not changed"];
            let mark = agent.mark();
            agent
                .wait_for_log_since(mark, &same, CONVERGES_WITHIN)
                .await?;
        }
        Ok(())
    }

    /// Waits until exactly one container of the service is left, and answers it.
    pub async fn only_container(&self) -> anyhow::Result<Value> {
        try_wait_for(
            "exactly one container of web",
            CONVERGES_WITHIN,
            async || {
                let found = self.device.containers_of("web").await;
                let mut found = found.map_err(|error| error.to_string())?;
                match found.len() {
                    1 => Ok(found.remove(0)),
                    other => Err(format!("{other} containers")),
                }
            },
        )
        .await
    }

    /// Waits until `one` serves from the very container of before, armed to come back by itself.
    pub async fn one_is_back(&self, before: &Value) -> anyhow::Result<()> {
        self.serves("one").await;
        let armed = async || {
            let running = self.device.running("web").await;
            let running = running.map_err(|error| error.to_string())?;
            let policy = running["HostConfig"]["RestartPolicy"]["Name"].clone();
            if running["Id"] == before["Id"] && policy == "always" {
                Ok(())
            } else {
                Err(format!("{} {policy}", running["Id"]))
            }
        };
        try_wait_for(
            "the container of before to be back",
            CONVERGES_WITHIN,
            armed,
        )
        .await
    }
}

/// A container's id and when its process began: the same twice means that nothing touched it.
pub fn life(container: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (
        text(&container["Id"]),
        text(&container["State"]["StartedAt"]),
    )
}

/// A container's engine id.
pub fn id(container: &Value) -> &str {
    container["Id"].as_str().unwrap_or_default()
}
