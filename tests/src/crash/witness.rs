//! Things on the engine that are not Holdfast's, and a service's own volume: they must stay as they are.

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};

use super::check::{Violation, untouched};
use crate::docker::Docker;
use crate::images::Image;
use crate::registry::Registry;
use crate::{place, wait};

/// How long a stranger's container may take to run again after its engine came back.
const STRANGER_BACK_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);
const MARK: &str = "what a service wrote must stay";

/// A stranger's running and created containers, image, volume and network.
#[derive(Debug)]
pub(super) struct Witness {
    name: String,
    before: Value,
    data: Option<std::path::PathBuf>,
}

impl Witness {
    pub(super) async fn make(docker: &Docker, registry: &Registry) -> anyhow::Result<Self> {
        let name = format!("stranger-{}", place::unique());
        let image = Image::idle(&name, "1").push(registry, "1").await?;
        let reference = image.reference();
        docker.pull(&reference, None).await?;
        let create = async |path: &str, body: Value| {
            let answer = docker.call(Method::POST, path, Some(&body)).await?;
            ensure!(answer.status.is_success(), "{path}: {}", answer.json());
            anyhow::Ok(())
        };
        create("/volumes/create", json!({ "Name": name })).await?;
        create("/networks/create", json!({ "Name": name })).await?;
        // An engine that starts again writes these three out itself.
        let host = json!({ "Dns": [], "DnsOptions": [], "DnsSearch": [] });
        let mut body = json!({ "Image": reference, "HostConfig": host });
        let path = format!("/containers/create?name={name}-created");
        create(&path, body.clone()).await?;
        body["HostConfig"]["RestartPolicy"] = json!({ "Name": "always" });
        body["HostConfig"]["NetworkMode"] = json!(name);
        body["HostConfig"]["Binds"] = json!([format!("{name}:/data")]);
        docker.run(&name, &body).await?;
        let mut witness = Self {
            name,
            before: Value::Null,
            data: None,
        };
        let volume = docker.get(&format!("/volumes/{}", witness.name)).await?;
        write_mark(&volume)?;
        witness.before = witness.look(docker).await?;
        Ok(witness)
    }

    /// Everything of the stranger, without what changes by itself when an engine ends.
    async fn look(&self, docker: &Docker) -> anyhow::Result<Value> {
        let name = &self.name;
        let mut running = docker.container(name).await?.unwrap_or_default();
        running["State"] = running["State"]["Running"].take();
        let networks = running["NetworkSettings"]["Networks"].as_object();
        let networks: Vec<&String> = networks.into_iter().flat_map(|all| all.keys()).collect();
        let networks = json!(networks);
        running["NetworkSettings"] = networks;
        // The engine counts its own restarts of it.
        running["RestartCount"].take();
        let mut network = docker.get(&format!("/networks/{name}")).await?;
        network["Containers"].take();
        let volume = docker.get(&format!("/volumes/{name}")).await?;
        let marked = read_mark(&volume);
        let image = docker.image(&text(&running["Config"]["Image"])).await?;
        Ok(json!({
            "running": running, "network": network, "image": image, "volume": volume, "file": marked,
            "created": docker.container(&format!("{name}-created")).await?,
        }))
    }

    /// What changed of the stranger (I9) and of the service's volume (I10).
    pub(super) async fn check(&self, docker: &Docker) -> anyhow::Result<Vec<Violation>> {
        let back = async || {
            let one = docker.container(&self.name).await;
            one.is_ok_and(|one| one.is_some_and(|one| one["State"]["Running"] == true))
        };
        // One that stays down is told by the comparison.
        let _ = wait::try_wait_for("the stranger", STRANGER_BACK_WITHIN, back).await;
        let mut found = untouched("I9", &self.before, &self.look(docker).await?);
        if let Some(path) = &self.data {
            let after = json!(std::fs::read_to_string(path).ok());
            found.extend(untouched("I10", &json!(MARK), &after));
        }
        Ok(found)
    }

    /// Forgets the service's volume: another device comes.
    pub(super) fn forget_volume(&mut self) {
        self.data = None;
    }

    /// Marks the service's volume at its first sight.
    pub(super) fn mark_volume(&mut self, container: &Value) -> anyhow::Result<()> {
        if self.data.is_some() {
            return Ok(());
        }
        let mounts = container["Mounts"].as_array().context("mounts")?;
        let volume = mounts.iter().find(|mount| mount["Type"] == "volume");
        let volume = volume.context("the service's container has no volume")?;
        let folder = volume["Source"].as_str().context("a volume's folder")?;
        let path = std::path::Path::new(folder).join("mark");
        std::fs::write(&path, MARK)?;
        self.data = Some(path);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[cfg(test)]
    pub(super) fn spoil_volume(&self) -> anyhow::Result<()> {
        let path = self.data.as_ref().context("a marked volume")?;
        Ok(std::fs::remove_file(path)?)
    }
}

fn write_mark(volume: &Value) -> anyhow::Result<()> {
    let folder = volume["Mountpoint"].as_str().context("a mount point")?;
    std::fs::write(std::path::Path::new(folder).join("mark"), MARK)?;
    Ok(())
}

fn read_mark(volume: &Value) -> Option<String> {
    let folder = volume["Mountpoint"].as_str()?;
    std::fs::read_to_string(std::path::Path::new(folder).join("mark")).ok()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
