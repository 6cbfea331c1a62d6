//! `make demo`: the main job, shown in plain words on a real engine and a real registry.
//!
//! Everything it says was asked of the running programs a moment before; nothing is acted.
#![allow(clippy::print_stdout, reason = "showing is its job")]

mod fleet;

use std::time::Duration;

use anyhow::Context;
use holdfast_tests::binaries;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::site::{Device, Site, page, service, target, wait_for_page};
use holdfast_tests::wait::try_wait_for;
use serde_json::{Value, json};

/// Longer than any step takes on a small machine; a demo that hangs should say so.
const STEP_WITHIN: Duration = Duration::from_mins(2);

/// The page's port when it is free, because people remember it.
const FAVOURITE_PORT: u16 = 8080;

struct Demo {
    site: Site,
    device: Device,
    port: u16,
}

fn heading(number: u32, text: &str) {
    println!("\n\x1b[1m{number}. {text}\x1b[0m");
}

fn typed(command: &str) {
    println!("   \x1b[36m$ {command}\x1b[0m");
}

fn said(text: impl std::fmt::Display) {
    println!("   {text}");
}

fn seconds(since: &Stopwatch) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

fn short(pinned: &str) -> String {
    match pinned.split_once("@sha256:") {
        Some((name, hex)) => format!(
            "{name}@sha256:{}…",
            hex.chars().take(12).collect::<String>()
        ),
        None => pinned.to_owned(),
    }
}

impl Demo {
    fn target(&self, image: &Pushed) -> Value {
        let ports = json!([format!("127.0.0.1:{}:8080", self.port)]);
        target(&[service(
            "web",
            &image.reference(),
            &json!({ "ports": ports }),
        )])
    }

    /// Sets the target by tag, shows the call, and answers what was stored.
    async fn set(&self, image: &Pushed) -> anyhow::Result<Value> {
        let body = self.target(image);
        typed(&format!(
            "curl -X POST $API/api/v1/devices/$DEVICE/target-state -H \"Authorization: Bearer $TOKEN\" \\\n       -H 'Content-Type: application/json' -d '{body}'"
        ));
        let stored = self.site.set(&self.device.uuid, &body).await?;
        let name = stored["apps"]["1001"]["services"][0]["imageName"]
            .as_str()
            .unwrap_or_default();
        said(format!(
            "generation {}: {} is now {}",
            stored["generation"],
            image.reference(),
            short(name)
        ));
        Ok(stored)
    }

    /// What a device owner sees, once the agent has looked at what serves now.
    async fn show_device(&self) -> anyhow::Result<()> {
        typed("holdfast-agent status");
        let look = async || {
            let status = self.device.agent.command(&["status"]).await;
            status.ok().filter(|status| status.contains(" running "))
        };
        let status = try_wait_for("the status to show the service", STEP_WITHIN, look).await?;
        for line in status.lines() {
            said(line);
        }
        Ok(())
    }

    async fn first_version(&self) -> anyhow::Result<()> {
        heading(3, "Version 1 is pushed, and the device's target set by tag");
        let one = Image::healthy_web("demo/web", "Hello from version 1")
            .push(&self.site.registry, "1")
            .await?;
        let begun = Stopwatch::start();
        let stored = self.set(&one).await?;
        self.site
            .wait_for_status(&self.device.uuid, &stored["generation"], "converged")
            .await;
        wait_for_page(self.port, "Hello from version 1").await;
        said(format!("after {} the device runs it:", seconds(&begun)));
        let container = self.device.running("web").await?;
        typed("docker inspect --format '{{.Name}} {{.Config.Image}} {{.State.Status}}' web…");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        said(format!(
            "{} {} {}",
            text(&container["Name"]).trim_start_matches('/'),
            short(&text(&container["Config"]["Image"])),
            text(&container["State"]["Status"]),
        ));
        self.show_page().await
    }

    async fn show_page(&self) -> anyhow::Result<()> {
        typed(&format!("curl http://127.0.0.1:{}/", self.port));
        said(page(self.port).await.map_err(anyhow::Error::msg)?);
        Ok(())
    }

    async fn broken_version(&self) -> anyhow::Result<()> {
        heading(4, "Version 2 is broken: it never becomes healthy");
        let bad = Image::never_healthy("demo/web", "Hello from version 2")
            .push(&self.site.registry, "2")
            .await?;
        let begun = Stopwatch::start();
        let before = self.device.running("web").await?["Id"].clone();
        self.set(&bad).await?;
        let reason = try_wait_for("the device to reject version 2", STEP_WITHIN, async || {
            let report = self.site.report(&self.device.uuid).await.ok()?;
            let web = find(&report, "rejected")?.clone();
            let back = page(self.port)
                .await
                .is_ok_and(|page| page == "Hello from version 1");
            back.then(|| web["reason"].as_str().map(str::to_owned))?
        })
        .await?;
        let after = self.device.wait_running("web").await?["Id"].clone();
        anyhow::ensure!(
            before == after,
            "the very container of version 1 serves again"
        );
        said(format!(
            "after {} the device had tried it, rejected it and gone back by itself:",
            seconds(&begun)
        ));
        said(format!("\"{reason}\""));
        self.show_page().await?;
        self.show_device().await
    }

    async fn good_version(&self) -> anyhow::Result<()> {
        heading(5, "Version 3 is good again");
        let good = Image::healthy_web("demo/web", "Hello from version 3")
            .push(&self.site.registry, "3")
            .await?;
        let begun = Stopwatch::start();
        let stored = self.set(&good).await?;
        self.site
            .wait_for_status(&self.device.uuid, &stored["generation"], "converged")
            .await;
        wait_for_page(self.port, "Hello from version 3").await;
        said(format!(
            "after {} it has taken over, and the old container is gone:",
            seconds(&begun)
        ));
        self.show_page().await?;
        self.show_device().await
    }
}

/// The first member of this name anywhere in a document.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(members) => members
            .get(name)
            .filter(|found| !found.is_null())
            .or_else(|| members.values().find_map(|member| find(member, name))),
        Value::Array(items) => items.iter().find_map(|item| find(item, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

async fn set_up() -> anyhow::Result<Demo> {
    println!(
        "Everything below is real: a Docker engine, a registry, the control API and an agent."
    );
    heading(
        1,
        "An engine, a registry and the control API start on this machine",
    );
    let begun = Stopwatch::start();
    let site = Site::start().await?;
    typed("holdfast-api serve --config api.yaml");
    said(format!("ready after {}", seconds(&begun)));
    said(format!(
        "engine    unix://{}",
        site.engine.socket().display()
    ));
    said(format!("registry  {}", site.registry.host()));
    said(format!(
        "API       {}   (admin token: {})",
        site.api.url(),
        site.api.data().join("admin-token").display()
    ));

    heading(2, "A device enrols, and its agent starts");
    typed(&format!(
        "holdfast-agent enroll --key $KEY --api {}",
        site.api.url()
    ));
    let mut device = site.device().await?;
    typed("holdfast-agent run");
    device.agent.run()?;
    said(format!("device    {}", device.uuid));
    let free = std::net::TcpListener::bind(("127.0.0.1", FAVOURITE_PORT)).is_ok();
    let port = if free { FAVOURITE_PORT } else { device.port()? };
    Ok(Demo { site, device, port })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let programs = binaries::folder().context("the programs are built")?;
    println!("Holdfast, from {}", programs.display());
    let demo = set_up().await?;
    demo.first_version().await?;
    demo.broken_version().await?;
    demo.good_version().await?;
    let fleet = fleet::Fleet::join(&demo.site).await?;
    fleet.good_push().await?;
    fleet.bad_push().await?;
    if std::env::var_os("DEMO_ONCE").is_none_or(|once| once == "0" || once.is_empty()) {
        println!("\nIt goes on running; try it from another terminal:");
        said(format!(
            "export API={} DEVICE={} TOKEN=$(cat {})",
            demo.site.api.url(),
            demo.device.uuid,
            demo.site.api.data().join("admin-token").display()
        ));
        said(format!(
            "export DOCKER_HOST=unix://{}",
            demo.site.engine.socket().display()
        ));
        said("curl -s $API/api/v1/devices -H \"Authorization: Bearer $TOKEN\"");
        said(
            "docker kill $(docker ps -q --filter label=io.holdfast.service=web)   # it comes back",
        );
        println!("Ctrl-C ends and removes everything.");
        tokio::signal::ctrl_c().await?;
    }
    println!("\nRemoving everything that was started …");
    Ok(())
}
