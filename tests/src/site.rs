//! A whole installation: one engine, a registry, a control API, and devices with real agents.
//!
//! Journeys talk to it as operators do. A device's containers are removed with it, even when its
//! test failed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use reqwest::Method;
use serde_json::{Value, json};

use crate::agent::{self, Agent};
use crate::api::{self, Answer, Api};
use crate::docker::Docker;
use crate::engine::Engine;
use crate::place;
use crate::registry::{self, Registry};
use crate::tap::EngineTap;
use crate::wait::{try_wait_for, wait_for};

/// From a target to a converged device: a pull from loopback, a swap and a gate of a second or two.
pub const CONVERGES_WITHIN: Duration = Duration::from_secs(90);

/// An engine, a registry and a control API.
#[derive(Debug)]
pub struct Site {
    /// The engine that all devices of all tests share.
    pub engine: Engine,
    /// This site's registry.
    pub registry: Registry,
    /// This site's control API.
    pub api: Api,
}

/// A device of a site: enrolled, with its agent and a tap between agent and engine.
#[derive(Debug)]
pub struct Device {
    /// Its id.
    pub uuid: String,
    /// Its bearer token.
    pub token: String,
    /// Its agent; not started by enrolment.
    pub agent: Agent,
    /// What the agent sees as the engine.
    pub tap: EngineTap,
    docker: Docker,
    reached: u16,
}

/// The secret that a site's registry announces pushes with.
const ANNOUNCES_WITH: &str = "a-secret-between-registry-and-api";

impl Site {
    /// An open registry, an API on `SQLite`, pushes announced to it.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(api::Options::default(), registry::Login::Open, None).await
    }

    /// As [`Site::start`], with other settings of the API and a login at the registry.
    pub async fn start_with(
        options: api::Options,
        login: registry::Login,
        known_login: Option<(&str, &str)>,
    ) -> anyhow::Result<Self> {
        Self::on(Engine::shared().await?, options, login, known_login).await
    }

    /// As [`Site::start_with`], with devices on this engine.
    pub async fn on(
        engine: Engine,
        options: api::Options,
        login: registry::Login,
        known_login: Option<(&str, &str)>,
    ) -> anyhow::Result<Self> {
        // The API is started first for its address; the registry's is known when it runs.
        let port = place::Port::take()?;
        let notify = format!("http://{}/api/v1/webhooks/distribution", port.address());
        let registry = Registry::start(registry::Options {
            delete: true,
            notify: Some((notify, ANNOUNCES_WITH.to_owned())),
            login,
            tls: false,
        })
        .await?;
        let options = options
            .registry(&registry, known_login)
            .set("webhooks", json!({ "secret": ANNOUNCES_WITH }))
            .set("poll", json!({ "interval_seconds": 1 }))
            .set("digest_cache_seconds", json!(0));
        let api = Api::start_on(port, options).await?;
        Ok(Self {
            engine,
            registry,
            api,
        })
    }

    /// A new enrolment key for one device.
    pub async fn enrolment_key(&self) -> anyhow::Result<String> {
        let key = self
            .api
            .post("/enrolment-keys", &json!({ "name": "test" }))
            .await?
            .good()?;
        key.json["key"]
            .as_str()
            .map(str::to_owned)
            .context("the answer has a key")
    }

    /// Enrols a device whose agent is not started yet.
    pub async fn device(&self) -> anyhow::Result<Device> {
        self.device_at(self.api.url(), |options| options).await
    }

    /// As [`Site::device`], reaching the API at another address and with other settings.
    pub async fn device_at(
        &self,
        api: String,
        adjust: impl FnOnce(agent::Options) -> agent::Options,
    ) -> anyhow::Result<Device> {
        self.device_on(&self.engine, api, adjust).await
    }

    /// As [`Site::device_at`], with an engine of its own, which must outlive it.
    pub async fn device_on(
        &self,
        engine: &Engine,
        api: String,
        adjust: impl FnOnce(agent::Options) -> agent::Options,
    ) -> anyhow::Result<Device> {
        let tap = EngineTap::start(engine.socket())?;
        let options = adjust(agent::Options::new(api, &tap.socket()));
        let agent = Agent::enrol(options, &self.enrolment_key().await?).await?;
        let file = agent.state().join("enrolment.json");
        let enrolment: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        let text = |name: &str| {
            enrolment[name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("{name} in {}", file.display()))
        };
        Ok(Device {
            uuid: text("uuid")?,
            token: text("token")?,
            agent,
            tap,
            docker: engine.docker().clone(),
            reached: 0,
        })
    }

    /// A device that only exists in the API: for platforms that this machine is not.
    pub async fn paper_device(
        &self,
        os: &str,
        architecture: &str,
        variant: Option<&str>,
    ) -> anyhow::Result<String> {
        let mut platform = json!({ "os": os, "architecture": architecture });
        if let Some(variant) = variant {
            platform["variant"] = variant.into();
        }
        let body =
            json!({ "name": "paper", "labels": {}, "platform": platform, "agentVersion": "0" });
        let key = self.enrolment_key().await?;
        let answer = self
            .api
            .call_as(Some(&key), Method::POST, "/enroll", &[], Some(&body))
            .await?
            .good()?;
        answer.json["uuid"]
            .as_str()
            .map(str::to_owned)
            .context("the answer has a uuid")
    }

    /// Sets a device's target; any status is an answer.
    pub async fn try_set(&self, uuid: &str, target: &Value) -> anyhow::Result<Answer> {
        self.api
            .post(&format!("/devices/{uuid}/target-state"), target)
            .await
    }

    /// Sets a device's target, which must be accepted, and answers what was stored.
    pub async fn set(&self, uuid: &str, target: &Value) -> anyhow::Result<Value> {
        Ok(self.try_set(uuid, target).await?.good()?.json)
    }

    /// The device's last report; null before the first.
    pub async fn report(&self, uuid: &str) -> anyhow::Result<Value> {
        let answer = self
            .api
            .get(&format!("/devices/{uuid}/current-state"))
            .await?;
        Ok(answer.json)
    }

    /// Waits until the device reports this generation with this status, and answers the report.
    pub async fn wait_for_status(&self, uuid: &str, generation: &Value, status: &str) -> Value {
        let what = format!("generation {generation} to be reported {status}");
        wait_for(&what, CONVERGES_WITHIN, async || {
            let report = self.report(uuid).await.map_err(|error| error.to_string())?;
            let state = find_state(&report);
            if state["generation"] == *generation && state["status"] == status {
                Ok(state.clone())
            } else {
                Err(report.to_string())
            }
        })
        .await
    }

    /// Sets a target and waits, for hours if asked to, until the device has converged and then reported so many times more.
    pub async fn settle(
        &self,
        device: &Device,
        target: &Value,
        reports: u64,
        within: Duration,
    ) -> anyhow::Result<()> {
        let stored = self.set(&device.uuid, target).await?;
        let now = async || {
            let report = self.report(&device.uuid).await;
            report.map_err(|error| error.to_string())
        };
        let sequence = |report: &Value| find_state(report)["sequence"].as_u64();
        let first = try_wait_for("the device to converge", within, async || {
            let report = now().await?;
            let state = find_state(&report);
            let there =
                state["generation"] == stored["generation"] && state["status"] == "converged";
            there
                .then(|| sequence(&report))
                .flatten()
                .ok_or_else(|| report.to_string())
        })
        .await?;
        try_wait_for("more reports", within, async || {
            let report = now().await?;
            let enough = sequence(&report).is_some_and(|last| last >= first + reports);
            enough.then_some(()).ok_or_else(|| report.to_string())
        })
        .await
    }

    /// Sets a target and waits until the device reports that it converged.
    pub async fn converge(&self, device: &Device, target: &Value) -> anyhow::Result<Value> {
        let stored = self.set(&device.uuid, target).await?;
        Ok(self
            .wait_for_status(&device.uuid, &stored["generation"], "converged")
            .await)
    }
}

/// The API wraps a report in its age and presence; the report itself has the `sequence`.
fn find_state(answer: &Value) -> &Value {
    if answer["sequence"].is_null() {
        &answer["state"]
    } else {
        answer
    }
}

/// A target of one app `1001` with these services.
pub fn target(services: &[Value]) -> Value {
    json!({ "apps": { "1001": { "appId": 1001, "appName": "Web Server", "services": services } } })
}

/// One service of a target.
pub fn service(name: &str, image: &str, config: &Value) -> Value {
    json!({ "serviceId": name, "serviceName": name, "imageName": image, "config": config })
}

impl Device {
    /// Every container of this device as the engine's list shows it, stopped ones too.
    pub async fn containers(&self) -> anyhow::Result<Vec<Value>> {
        self.docker
            .labelled(&format!("io.holdfast.device={}", self.uuid))
            .await
    }

    /// The engine's full account of the containers of a service, without what holds its network.
    pub async fn containers_of(&self, service: &str) -> anyhow::Result<Vec<Value>> {
        let mut found = Vec::new();
        for container in self.containers().await? {
            let id = container["Id"].as_str().unwrap_or_default();
            if container["Labels"]["io.holdfast.service"] == service
                && container["Labels"]["io.holdfast.role"].is_null()
                && let Some(container) = self.docker.container(id).await?
            {
                found.push(container);
            }
        }
        Ok(found)
    }

    /// The engine's full account of the one running container of a service.
    pub async fn running(&self, service: &str) -> anyhow::Result<Value> {
        let all = self.containers_of(service).await?;
        let mut up = all
            .iter()
            .filter(|container| container["State"]["Running"] == true);
        match (up.next(), up.next()) {
            (Some(container), None) => Ok(container.clone()),
            (None, _) => anyhow::bail!("no container of {service} runs: {all:?}"),
            (Some(_), Some(_)) => anyhow::bail!("two containers of {service} run"),
        }
    }

    /// Waits for the one running container of a service.
    pub async fn wait_running(&self, service: &str) -> anyhow::Result<Value> {
        let what = format!("one running container of {service}");
        try_wait_for(&what, CONVERGES_WITHIN, async || {
            self.running(service)
                .await
                .map_err(|error| error.to_string())
        })
        .await
    }

    /// The device's engine.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// A port of this machine that nothing uses, for a service to publish.
    pub fn port(&mut self) -> anyhow::Result<u16> {
        // Kept taken only while chosen: the engine binds it a moment later.
        self.reached = place::Port::take()?.number();
        Ok(self.reached)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.agent.kill9();
        remove_all(
            self.docker.socket(),
            &format!("io.holdfast.device={}", self.uuid),
        );
    }
}

/// Removes every container and network with a label; what fails is left to the engine's end.
///
/// Networks are few: an engine has addresses for about thirty.
pub(crate) fn remove_all(socket: &Path, label: &str) {
    let docker = |words: &[&str]| {
        let mut command = Command::new("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .args(words);
        command.stderr(Stdio::null()).output()
    };
    let filter = format!("label={label}");
    let remove = |list: &[&str], remove: &[&str]| {
        let Ok(found) = docker(&[list, &["--quiet", "--no-trunc", "--filter", &filter]].concat())
        else {
            return;
        };
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        let words: Vec<&str> = found.split_whitespace().collect();
        if !words.is_empty() {
            let _ = docker(&[remove, &words].concat());
        }
    };
    // Twice: Podman keeps a container whose network another one uses until that one is gone.
    for _ in 0..2 {
        remove(&["ps", "--all"], &["rm", "--force", "--volumes"]);
    }
    remove(&["network", "ls"], &["network", "rm"]);
}

/// The page a web service shows on a published port, or why there is none.
pub async fn page(port: u16) -> Result<String, String> {
    let ask = async || {
        let asked = api::client()
            .get(format!("http://127.0.0.1:{port}/"))
            .timeout(Duration::from_secs(2));
        let page = asked.send().await?.text().await?;
        Ok::<_, reqwest::Error>(page.trim().to_owned())
    };
    // With every cause: whether it was refused, reset or silent tells where to look.
    ask()
        .await
        .map_err(|error| format!("{:#}", anyhow::Error::new(error)))
}

/// Waits until a published port shows this page.
///
/// # Panics
/// When the deadline passes, with what this machine's network looked like then.
#[track_caller]
pub fn wait_for_page(port: u16, text: &str) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let what = format!("the page `{text}`");
        let shown = try_wait_for(&what, CONVERGES_WITHIN, async || {
            let found = page(port).await?;
            if found == text { Ok(()) } else { Err(found) }
        });
        if let Err(error) = shown.await {
            panic!("{place}: {error}\n{}", network(port));
        }
    }
}

/// Links, routes, neighbours and what concerns a port: why a packet may not arrive.
fn network(port: u16) -> String {
    let script = format!(
        "ip -br addr; ip -4 route; ip neigh; grep -ahoE 'container-ip.*' /proc/[0-9]*/cmdline \
         | tr '\\0' ' '; ss -Hltnp 'sport = :{port}'; iptables-save | grep {port}"
    );
    let found = Command::new("sh").args(["-c", &script]).output();
    found.map_or_else(
        |e| e.to_string(),
        |found| String::from_utf8_lossy(&found.stdout).into_owned(),
    )
}
