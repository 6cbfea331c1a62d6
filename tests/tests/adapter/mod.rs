//! One device's view of an engine through the agent's own adapter, for tests that need no agent.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use holdfast_agent::engine::docker::DockerEngine;
use holdfast_agent::engine::{Engine as _, NewContainer, NewNetwork, NewSandbox};
use holdfast_agent::policy::Policy;
use holdfast_agent::secrets::Place;
use holdfast_plan::{NetworkKey, SandboxSpec};
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::target::{ServiceTarget, TargetState};
use holdfast_tests::docker::Docker;
use holdfast_tests::images::Pushed;
use holdfast_tests::place;
use serde_json::{Value, json};

/// The agent's adapter, the same engine asked directly, and a device that nobody else is.
pub(crate) struct Adapter {
    /// The agent's own.
    pub(crate) engine: DockerEngine,
    /// Shares no code with it.
    pub(crate) docker: Docker,
    /// The device.
    pub(crate) device: DeviceId,
    /// Its memory for secrets.
    pub(crate) secrets: Place,
    _runtime: tempfile::TempDir,
}

impl Adapter {
    /// For the engine behind this socket.
    pub(crate) fn at(socket: &Path) -> anyhow::Result<Self> {
        let runtime = tempfile::tempdir_in("/dev/shm")?;
        Ok(Self {
            engine: DockerEngine::new(socket, runtime.path(), Policy::unrestricted()),
            docker: Docker::at(socket),
            device: DeviceId::from_random(place::random()?),
            secrets: Place {
                runtime_dir: runtime.path().to_owned(),
                on_disk: false,
            },
            _runtime: runtime,
        })
    }

    /// A container's name that no other test has.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{name}-{}", &self.device.to_string()[..8])
    }

    /// Makes a container and gives its id.
    pub(crate) async fn create(
        &self,
        name: &str,
        service: &ServiceTarget,
        network: NewNetwork<'_>,
    ) -> anyhow::Result<String> {
        let new = NewContainer {
            device: &self.device,
            key: &key("web"),
            name: &self.name(name),
            generation: 1,
            service,
            network,
        };
        Ok(self.engine.create(&new).await?)
    }

    /// Makes the sandbox of a service and gives its id.
    pub(crate) async fn create_sandbox(
        &self,
        name: &str,
        service: &ServiceTarget,
        networks: &[(String, Vec<String>)],
    ) -> anyhow::Result<String> {
        let spec = SandboxSpec::of(&service.service_name, &service.config);
        let new = NewSandbox {
            device: &self.device,
            key: &key("web"),
            name: &self.name(name),
            generation: 1,
            spec: &spec,
            networks,
        };
        Ok(self.engine.create_sandbox(&new).await?)
    }

    /// Makes a network of the app and gives its name in the engine.
    pub(crate) async fn create_network(&self, name: &str) -> anyhow::Result<String> {
        let key = NetworkKey {
            app: "1001".parse()?,
            network: name.parse()?,
        };
        let name = self.name(name);
        self.engine
            .create_network(&self.device, &key, &name)
            .await?;
        Ok(name)
    }

    /// Runs a line in a container and gives its output.
    pub(crate) async fn sh(&self, container: &str, line: &str) -> anyhow::Result<String> {
        let words = ["/bin/sh", "-c", line].map(str::to_owned);
        let said = self.engine.exec(container, &words, 10_000).await?;
        anyhow::ensure!(said.exit_code == Some(0), "{line}: {said:?}");
        Ok(said.output)
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let socket = format!("unix://{}", self.docker.socket().display());
        let filter = format!("label=io.holdfast.device={}", self.device);
        for (list, remove) in [
            (&["ps", "--all"][..], &["rm", "--force", "--volumes"][..]),
            (&["network", "ls"], &["network", "rm"]),
            (&["volume", "ls"], &["volume", "rm", "--force"]),
        ] {
            let docker = |words: &[&str]| {
                let mut command = Command::new("docker");
                command.arg("-H").arg(&socket).args(words);
                command.stderr(Stdio::null()).output()
            };
            let found = docker(&[list, &["--quiet", "--filter", &filter]].concat());
            let Ok(found) = found.map(|found| String::from_utf8_lossy(&found.stdout).into_owned())
            else {
                return;
            };
            let names: Vec<&str> = found.split_whitespace().collect();
            if !names.is_empty() {
                let _ = docker(&[remove, &names].concat());
            }
        }
    }
}

/// A service of the app that tests use.
pub(crate) fn key(service: &str) -> ServiceKey {
    ServiceKey {
        app: "1001".parse().expect("an app's id"),
        service: service.parse().expect("a service's name"),
    }
}

/// A service as a target carries it, resolved to this image.
pub(crate) fn service(image: &Pushed, config: &Value) -> anyhow::Result<ServiceTarget> {
    let child = image.child("linux/amd64");
    let pinned = image.pinned();
    let mut config = config.clone();
    config["image"] = json!(pinned);
    let target = json!({
        "uuid": "00000000-0000-4000-8000-000000000001",
        "generation": 1,
        "apps": { "1001": { "appId": 1001, "appName": "App", "services": [{
            "serviceId": 1, "serviceName": "web", "imageName": pinned, "config": config,
            "pin": {
                "reference": image.reference(), "registry": "127.0.0.1", "repository": image.repository,
                "indexDigest": image.index_digest,
                "expected": { "manifestDigest": child.manifest_digest,
                    "configDigest": child.config_digest, "sizeBytes": 1 },
                "platform": { "os": "linux", "architecture": "amd64" },
                "resolvedAt": "2026-01-01T00:00:00.000Z",
                "resolution": { "status": "resolved", "at": "2026-01-01T00:00:00.000Z" }
            }
        }] } }
    });
    let target = TargetState::parse(target.to_string().as_bytes());
    let target = target.map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let service = target.services().next().context("the only service")?;
    Ok(service.1.clone())
}
