//! What the device's owner can say about updates: windows, locks, pause, force; and what is shown to them.

use std::fs;
use std::process::Output;
use std::time::Duration;

use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::site::{CONVERGES_WITHIN, Device, Site, page, service, target, wait_for_page};
use holdfast_tests::wait::wait_for;
use holdfast_tests::{binaries, place};
use serde_json::{Value, json};

/// Longer than the agent takes from a target to the decision what to do with it.
const DECIDES_WITHIN: Duration = Duration::from_secs(30);

/// A device that serves version `one`, and images of later versions.
struct Serving {
    site: Site,
    device: Device,
    port: u16,
    repository: String,
}

impl Serving {
    async fn start() -> anyhow::Result<Self> {
        let site = Site::start().await?;
        let mut device = site.device().await?;
        let port = device.port()?;
        let repository = format!("web-{}", place::unique());
        device.agent.run()?;
        let serving = Self {
            site,
            device,
            port,
            repository,
        };
        let one = serving.image("one").await?;
        serving
            .site
            .converge(&serving.device, &serving.target(&one, &json!({})))
            .await?;
        wait_for_page(port, "one").await;
        Ok(serving)
    }

    async fn image(&self, version: &str) -> anyhow::Result<Pushed> {
        let image = Image::healthy_web(&self.repository, version);
        image.push(&self.site.registry, version).await
    }

    fn target(&self, image: &Pushed, options: &Value) -> Value {
        let ports = [format!("127.0.0.1:{}:8080", self.port)];
        let config = json!({ "ports": ports, "x-holdfast": options });
        target(&[service("web", &image.reference(), &config)])
    }

    /// Sets a target that must be held for this reason, in the report as in `plan`.
    async fn is_held(&self, target: &Value, code: &str, words: &str) -> anyhow::Result<Value> {
        let stored = self.site.set(&self.device.uuid, target).await?;
        let generation = stored["generation"].clone();
        let what = format!("a hold `{code}` of generation {generation}");
        wait_for(&what, DECIDES_WITHIN, async || {
            let report = self.site.report(&self.device.uuid).await;
            let report = report.map_err(|error| error.to_string())?;
            let state = if report["state"].is_null() {
                &report
            } else {
                &report["state"]
            };
            let mut holds = state["holds"].as_array().into_iter().flatten();
            let held = holds.any(|hold| hold["code"] == code && hold["service"] == "1001/web");
            if held && state["generation"] == generation {
                Ok(())
            } else {
                Err(report.to_string())
            }
        })
        .await;
        let plan = self.device.agent.command(&["plan"]).await?;
        assert!(
            plan.contains("hold: 1001/web") && plan.contains(words),
            "{plan}"
        );
        assert_eq!(page(self.port).await, Ok("one".to_owned()));
        Ok(generation)
    }

    async fn converges(&self, generation: &Value, page: &str) {
        let uuid = &self.device.uuid;
        self.site
            .wait_for_status(uuid, generation, "converged")
            .await;
        wait_for_page(self.port, page).await;
    }

    async fn status(&self) -> anyhow::Result<Value> {
        let text = self
            .device
            .agent
            .command(&["status", "--output", "json"])
            .await?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// Runs a command whose exit code is part of the answer.
async fn output(device: &Device, words: &[&str]) -> anyhow::Result<Output> {
    let mut command = std::process::Command::new(binaries::agent()?);
    command
        .arg("--config")
        .arg(device.agent.config_file())
        .args(words);
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

/// An hour of UTC that begins two hours from now: closed now and for as long as any test runs.
fn closed_window() -> Value {
    let hour = holdfast_tests::clock::unix_seconds() / 3_600 % 24;
    let at = |hours: u64| format!("{:02}:00", (hour + hours) % 24);
    json!({ "start": at(2), "end": at(3), "timezone": "UTC" })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_window_holds_an_update_and_an_open_one_lets_it_through() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let two = serving.image("two").await?;
    let closed = json!({ "windows": [closed_window()] });
    serving
        .is_held(
            &serving.target(&two, &closed),
            "window",
            "outside the update window",
        )
        .await?;
    let open = json!({ "windows": [
        closed_window(),
        { "start": "00:00", "end": "00:00", "timezone": "Pacific/Auckland" },
    ] });
    let stored = serving
        .site
        .set(&serving.device.uuid, &serving.target(&two, &open))
        .await?;
    serving.converges(&stored["generation"], "two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_file_holds_an_update_and_force_overrides_it_once() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let folder = serving.device.agent.runtime().join("locks/1001/web");
    fs::create_dir_all(&folder)?;
    let lock = folder.join("update.lock");
    fs::write(&lock, r#"{"owner":"till","reason":"a sale is open"}"#)?;
    let two = serving.image("two").await?;
    let target = serving.target(&two, &json!({}));
    let words = "locked by till: a sale is open";
    let generation = serving.is_held(&target, "locked", words).await?;
    serving
        .device
        .agent
        .command(&["update-now", "--force"])
        .await?;
    serving.converges(&generation, "two").await;
    wait_for("force to be over", DECIDES_WITHIN, async || {
        let status = serving.status().await.map_err(|error| error.to_string())?;
        if status["control"]["forced"] == false {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;

    // It was for once: the next update is held again, until the file is gone.
    let one = serving.image("one").await?;
    let back = serving.target(&one, &json!({}));
    let stored = serving.site.set(&serving.device.uuid, &back).await?;
    let generation = &stored["generation"];
    let uuid = &serving.device.uuid;
    serving
        .site
        .wait_for_status(uuid, generation, "holding")
        .await;
    assert_eq!(page(serving.port).await, Ok("two".to_owned()));
    fs::remove_file(&lock)?;
    serving.device.agent.command(&["update-now"]).await?;
    serving.converges(generation, "one").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_and_pause_hold_updates_across_a_restart_until_they_are_ended() -> anyhow::Result<()> {
    let mut serving = Serving::start().await?;
    let agent = &serving.device.agent;
    agent
        .command(&["lock", "1001/web", "--owner", "till", "--ttl", "2h"])
        .await?;
    let refused = output(&serving.device, &["lock", "1001/web", "--owner", "other"]).await?;
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("locked by till"), "{said}");
    let two = serving.image("two").await?;
    let target = serving.target(&two, &json!({}));
    serving.is_held(&target, "locked", "locked by till").await?;

    serving.device.agent.kill9();
    // Nobody runs: the plan is made by the command itself, and says the same.
    let plan = serving.device.agent.command(&["plan"]).await?;
    assert!(plan.contains("locked by till"), "{plan}");
    serving.device.agent.run()?;
    wait_for("the agent's answer", DECIDES_WITHIN, async || {
        let status = serving.status().await.map_err(|error| error.to_string())?;
        let lock = &status["control"]["locks"]["1001/web"];
        if lock["owner"] == "till" && status["status"] == "holding" {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    let agent = &serving.device.agent;
    agent.command(&["pause", "--reason", "audit"]).await?;
    agent.command(&["unlock", "1001/web"]).await?;
    let generation = serving
        .is_held(&target, "paused", "paused on the device: audit")
        .await?;
    let refused = output(&serving.device, &["update-now", "--force"]).await?;
    assert_eq!(refused.status.code(), Some(1));
    let status = agent.command(&["status"]).await?;
    assert!(
        status.contains("paused") && status.contains(": audit"),
        "{status}"
    );
    agent.command(&["resume"]).await?;
    serving.converges(&generation, "two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_nothing_wrong_and_the_support_bundle_holds_no_secret() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let canary = format!("canary-{}", place::unique());
    let two = serving.image("two").await?;
    let mut target = serving.target(&two, &json!({}));
    target["apps"]["1001"]["services"][0]["config"]["environment"] = json!({ "KEY": canary });
    serving.site.converge(&serving.device, &target).await?;
    let doctor = output(&serving.device, &["doctor", "--output", "json"]).await?;
    let checks: Vec<Value> = serde_json::from_slice(&doctor.stdout)?;
    let wrong: Vec<&Value> = checks
        .iter()
        .filter(|check| check["verdict"] == "wrong")
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(doctor.status.code(), Some(0));
    let found = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.expect("a check of this name");
        assert_eq!(check["verdict"], "ok", "{check}");
        check["found"].as_str().unwrap_or_default().to_owned()
    };
    let clock = found("clock");
    assert!(clock.ends_with("as the control API's does"), "{clock}");
    let answers = format!("{} answers", serving.site.registry.host());
    assert_eq!(found("registries"), answers);
    found("DNS");
    found("files");
    let short = output(&serving.device, &["doctor", "--json"]).await?;
    let again: Vec<Value> = serde_json::from_slice(&short.stdout)?;
    assert_eq!(again.len(), checks.len());

    let file = serving.device.agent.runtime().join("support.tar.gz");
    let path = file.display().to_string();
    serving
        .device
        .agent
        .command(&["support-bundle", &path])
        .await?;
    let mut text = Vec::new();
    let packed = fs::read(&file)?;
    let mut unpacked = flate2::read::GzDecoder::new(packed.as_slice());
    std::io::Read::read_to_end(&mut unpacked, &mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains(&serving.device.uuid) && text.contains("\"converged\""));
    assert!(!text.contains(&canary), "an environment variable");
    assert!(!text.contains(&serving.device.token), "the token");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_those_of_the_services_container() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let script = "echo one; echo two; echo oops >&2; trap 'exit 0' TERM; sleep 3600 & wait";
    let talker = Image::new(format!("talker-{}", place::unique()))
        .cmd(["/bin/sh", "-c", script])
        .push(&site.registry, "1")
        .await?;
    let mut device = site.device().await?;
    device.agent.run()?;
    let services = [service("talker", &talker.reference(), &json!({}))];
    site.converge(&device, &target(&services)).await?;
    let logs = output(&device, &["logs", "talker"]).await?;
    assert_eq!(String::from_utf8_lossy(&logs.stdout), "one\ntwo\n");
    assert_eq!(String::from_utf8_lossy(&logs.stderr), "oops\n");
    let missing = output(&device, &["logs", "nobody"]).await?;
    assert_eq!(missing.status.code(), Some(1));
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("1001/talker"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_goes_on_without_a_folder_for_its_socket() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut device = site
        .device_at(site.api.url(), |options| {
            options.set("local_api", "socket", "/nowhere/agent.sock")
        })
        .await?;
    device.agent.run()?;
    let idle = Image::idle(format!("idle-{}", place::unique()), "1")
        .push(&site.registry, "1")
        .await?;
    let services = [service("idle", &idle.reference(), &json!({}))];
    site.converge(&device, &target(&services)).await?;
    let status = device.agent.command(&["status"]).await?;
    assert!(status.contains("nothing to do"), "{status}");
    wait_for("a warning about it", CONVERGES_WITHIN, async || {
        let process = device.agent.process().map_err(|error| error.to_string())?;
        let log = process.lines();
        let warned = log.iter().any(|line| line.contains("no local API"));
        if warned { Ok(()) } else { Err(log.join("\n")) }
    })
    .await;
    Ok(())
}
