//! How long a visitor of a published port goes without an answer: Holdfast's default swap beside
//! `docker-compose up -d` and watchtower's stop, remove, create, start, of the same images on the same
//! engine, one after the other in each round.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::docker::Docker;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::serving::Serving;
use holdfast_tests::site::wait_for_page;
use holdfast_tests::{apt, place};
use http::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::client::{Client, EVERY};
use crate::spread::Spread;

/// What the three ways were measured to cost.
#[derive(Debug)]
pub(crate) struct Downtime {
    holdfast: Vec<Duration>,
    compose: Vec<Duration>,
    watchtower: Vec<Duration>,
}

/// How the app behaves when it is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum App {
    /// It ends at once.
    Obeys,
    /// It ignores SIGTERM and is killed after one second.
    Ignores,
}

impl App {
    fn image(self, repository: &str, version: &str) -> Image {
        const DEAF: &str =
            "#!/bin/sh\ntrap '' TERM\nhttpd -f -p 8080 -h /www &\nwhile :; do wait; done\n";
        let image = Image::healthy_web(repository, version);
        match self {
            Self::Obeys => image,
            Self::Ignores => image.file("/bin/serve", DEAF),
        }
    }
}

/// A service kept by `docker-compose`.
struct Compose {
    folder: TempDir,
    project: String,
    port: place::Port,
    host: String,
}

impl Compose {
    fn new(docker: &Docker) -> anyhow::Result<Self> {
        apt::require(&["docker-compose"])?;
        Ok(Self {
            folder: place::temporary("compose")?,
            project: format!("bench{}", place::unique()),
            port: place::Port::take()?,
            host: format!("unix://{}", docker.socket().display()),
        })
    }

    async fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("docker-compose");
        command
            .env("DOCKER_HOST", &self.host)
            .args(["--project-name", &self.project, "--file"])
            .arg(self.folder.path().join("docker-compose.yml"))
            .args(words);
        tokio::task::spawn_blocking(move || apt::run(&mut command)).await?
    }

    async fn up(&self, image: &Pushed) -> anyhow::Result<()> {
        let file = json!({ "version": "2.4", "services": { "web": {
            "image": image.reference(), "restart": "always", "stop_grace_period": "1s",
            "ports": [format!("{}:8080", self.port.address())],
        } } });
        let path = self.folder.path().join("docker-compose.yml");
        std::fs::write(path, file.to_string())?;
        self.run(&["up", "-d"]).await.map(drop)
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        let mut command = Command::new("docker-compose");
        command
            .env("DOCKER_HOST", &self.host)
            .args(["--project-name", &self.project, "--file"])
            .arg(self.folder.path().join("docker-compose.yml"))
            .args(["down", "-t", "1"]);
        // What cannot be removed here goes with the lab's engine.
        let _ = apt::run(&mut command);
    }
}

/// A container replaced as watchtower does it.
struct Watchtower {
    docker: Docker,
    name: String,
    port: place::Port,
}

impl Watchtower {
    fn new(docker: &Docker) -> anyhow::Result<Self> {
        Ok(Self {
            docker: docker.clone(),
            name: format!("watched-{}", place::unique()),
            port: place::Port::take()?,
        })
    }

    async fn replace(&self, image: &Pushed) -> anyhow::Result<()> {
        let body = json!({
            "Image": image.reference(), "ExposedPorts": { "8080/tcp": {} },
            "HostConfig": {
                "RestartPolicy": { "Name": "always" },
                "PortBindings": { "8080/tcp": [
                    { "HostIp": "127.0.0.1", "HostPort": self.port.number().to_string() },
                ] },
            },
        });
        let stop = format!("/containers/{}/stop?t=1", self.name);
        let stopped = self.docker.call(Method::POST, &stop, None).await?;
        ensure!(stopped.status.as_u16() < 500, "stop: {stopped:?}");
        self.docker.remove(&self.name).await?;
        self.docker.run(&self.name, &body).await.map(drop)
    }
}

/// Swaps the same versions in all three ways, so many times each.
pub(crate) async fn rounds(app: App, swaps: usize) -> anyhow::Result<Downtime> {
    let serving = Serving::start().await?;
    let docker = serving.device.docker().clone();
    let compose = Compose::new(&docker)?;
    let watchtower = Watchtower::new(&docker)?;
    let measured = swap_all(&serving, &compose, &watchtower, app, swaps).await;
    docker.remove(&watchtower.name).await?;
    measured
}

async fn swap_all(
    serving: &Serving,
    compose: &Compose,
    watchtower: &Watchtower,
    app: App,
    swaps: usize,
) -> anyhow::Result<Downtime> {
    let mut versions = Vec::new();
    for version in ["even", "odd"] {
        let image = app.image(&serving.repository, version);
        let image = serving.push(image, version).await?;
        watchtower.docker.pull(&image.reference(), None).await?;
        versions.push((version, image));
    }
    let mut measured = Downtime {
        holdfast: Vec::new(),
        compose: Vec::new(),
        watchtower: Vec::new(),
    };
    let grace = json!({ "stop_grace_period": "1s" });
    // The first round only brings each of them up.
    for round in 0..=swaps {
        let (version, image) = versions.get(round % 2).context("two versions")?;
        let target = serving.target_with(image, &grace);
        let ours = async {
            let client = Client::start(serving.port);
            serving.site.converge(&serving.device, &target).await?;
            wait_for_page(serving.port, version).await;
            client.longest_gap().await
        };
        let ours = ours.await?;
        let client = Client::start(compose.port.number());
        compose.up(image).await?;
        wait_for_page(compose.port.number(), version).await;
        let theirs = client.longest_gap().await?;
        let client = Client::start(watchtower.port.number());
        watchtower.replace(image).await?;
        wait_for_page(watchtower.port.number(), version).await;
        let others = client.longest_gap().await?;
        if round > 0 {
            measured.holdfast.push(ours);
            measured.compose.push(theirs);
            measured.watchtower.push(others);
        }
    }
    Ok(measured)
}

impl Downtime {
    /// How many swaps of each kind were measured.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> [usize; 3] {
        [&self.holdfast, &self.compose, &self.watchtower].map(Vec::len)
    }

    /// A table, and the ratios of the medians.
    fn table(self) -> anyhow::Result<String> {
        let [ours, theirs, others] = [self.holdfast, self.compose, self.watchtower].map(Spread::of);
        let mut text = String::from(
            "| longest time without an answer, ms | least | median | p95 | most | swaps |\n\
             |---|---|---|---|---|---|\n",
        );
        writeln!(text, "| Holdfast, default swap | {ours} |")?;
        writeln!(text, "| `docker-compose up -d` 1.29 | {theirs} |")?;
        writeln!(
            text,
            "| watchtower's stop, remove, create, start | {others} |"
        )?;
        let ratio = |other: Spread| ours.median.as_secs_f64() / other.median.as_secs_f64();
        writeln!(
            text,
            "\nRatio of the medians: {:.3} of docker-compose's, {:.3} of watchtower's.",
            ratio(theirs),
            ratio(others)
        )?;
        Ok(text)
    }
}

/// The section of `docs/figures.md`.
pub(crate) async fn measure(swaps: usize) -> anyhow::Result<String> {
    let obeys = rounds(App::Obeys, swaps).await?.table()?;
    let ignores = rounds(App::Ignores, swaps).await?.table()?;
    Ok(format!(
        "A client asks a published port every {} ms over a new connection; the same two versions on the \
         same engine, the three ways one after the other in each round.\n\n\
         An app that ends at SIGTERM:\n\n{obeys}\n\
         An app that ignores SIGTERM, with a grace of one second:\n\n{ignores}",
        EVERY.as_millis()
    ))
}
