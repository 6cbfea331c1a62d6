//! What the engine shows of one device at one moment, and the same without names that vary.
//!
//! It only reads. Two devices in the same situation have the same [`Snapshot::signature`].

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::{Value, json};

use crate::docker::{Docker, encode};

/// One container of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// The service it belongs to.
    pub service: String,
    /// What it is for; empty for the service's own container.
    pub role: String,
    /// Its image's configuration digest.
    pub image: String,
    /// The engine's word: `running`, `exited`, …
    pub state: String,
    /// `always`, `no`, …
    pub restart: String,
    /// The generation that made it.
    pub generation: u64,
    /// Published ports, networks and mounts, without names that vary.
    pub attached: String,
    /// Its own name, for evidence.
    pub name: String,
}

impl Container {
    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        matches!(self.state.as_str(), "running" | "restarting" | "paused")
    }

    /// Whether the engine may start it by itself.
    pub fn comes_back(&self) -> bool {
        !matches!(self.restart.as_str(), "no" | "")
    }

    /// In one line, for evidence.
    pub fn line(&self) -> String {
        let Self {
            name,
            role,
            state,
            restart,
            generation,
            ..
        } = self;
        let image = self.image.get(..19).unwrap_or(&self.image);
        format!("{name} {role} {state} restart={restart} g{generation} {image}")
    }
}

/// What the agent's own tags on images of services begin with.
const KEEP: &str = "holdfast.local/keep/";

/// A device on its engine at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its containers.
    pub containers: Vec<Container>,
    /// Its networks' names as the target knows them.
    pub networks: Vec<String>,
    /// Configuration digests and tags of all images on the engine.
    pub images: Vec<(String, Vec<String>)>,
}

/// What a scenario's images are to it, so that they can be told without their digests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cast {
    /// The image that the target names.
    pub target: Option<String>,
    /// The image that served before.
    pub before: Option<String>,
    /// Containers that were there before.
    pub kept: BTreeSet<String>,
    /// The port that the service publishes on the device.
    pub port: u16,
    /// Tags that are not Holdfast's begin with one of these.
    pub foreign: Vec<String>,
}

impl Cast {
    fn name(&self, image: &str) -> &'static str {
        if self.target.as_deref() == Some(image) {
            "target"
        } else if self.before.as_deref() == Some(image) {
            "before"
        } else {
            "other"
        }
    }
}

impl Snapshot {
    /// Looks at a device.
    pub async fn take(docker: &Docker, device: &str) -> anyhow::Result<Self> {
        let label = format!("io.holdfast.device={device}");
        let mut found = Vec::new();
        for summary in docker.labelled(&label).await? {
            let id = summary["Id"].as_str().context("a container has an id")?;
            // One that goes between the two looks is gone.
            found.extend(docker.container(id).await?);
        }
        let mut containers: Vec<Container> = found.iter().map(|one| read(one, &found)).collect();
        containers.sort_by(|a, b| (&a.service, &a.name).cmp(&(&b.service, &b.name)));
        let filters = encode(&json!({ "label": [label] }).to_string());
        let networks = docker.get(&format!("/networks?filters={filters}")).await?;
        let mut networks: Vec<String> = list(&networks)
            .map(|network| text(&network["Labels"]["io.holdfast.network"]))
            .collect();
        networks.sort();
        let images = docker.get("/images/json").await?;
        let images = list(&images).map(|image| {
            let tags = list(&image["RepoTags"]).map(text);
            let tags = tags.filter(|tag| tag != "<none>:<none>");
            (text(&image["Id"]), tags.collect())
        });
        Ok(Self {
            containers,
            networks,
            images: images.collect(),
        })
    }

    /// The services' own containers.
    pub fn own(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|one| one.role.is_empty())
    }

    /// Whether an image is there.
    pub fn has_image(&self, config_digest: &str) -> bool {
        self.images.iter().any(|(id, _)| id == config_digest)
    }

    /// Everything that must be the same after a crash as without it, a line each.
    pub fn signature(&self, cast: &Cast) -> Vec<String> {
        let mut lines: Vec<String> = self
            .containers
            .iter()
            .map(|one| {
                let image = if one.role.is_empty() {
                    cast.name(&one.image)
                } else {
                    "its own image"
                };
                let kept = if cast.kept.contains(&one.id) { "kept" } else { "new" };
                let Container {
                    service,
                    role,
                    state,
                    restart,
                    attached,
                    ..
                } = one;
                let attached = attached.replace(&format!("→{}", cast.port), "→its port");
                format!("{kept} container {service} {role} of {image}: {state}, restart {restart}, {attached}")
            })
            .collect();
        lines.extend(self.networks.iter().map(|name| format!("network {name}")));
        // What was good before `before` may be kept: the lane's last scenario decides whether there is one.
        let mut previous = 0;
        for (image, tags) in &self.images {
            let foreign = |tag: &&String| cast.foreign.iter().any(|own| tag.starts_with(own));
            let ours = tags.iter().filter(|tag| !foreign(tag));
            let ours = ours.filter(|tag| {
                let is_previous = cast.name(image) == "other" && tag.starts_with(KEEP);
                previous += usize::from(is_previous);
                !is_previous || previous > 1
            });
            lines.extend(ours.map(|tag| match cast.name(image) {
                // An image of the agent's own making is known by its name.
                "other" => format!("tag {}", tag.split(':').next().unwrap_or(tag)),
                name => format!("tag on {name}"),
            }));
        }
        lines.sort();
        lines
    }

    /// In a few lines, for evidence.
    pub fn lines(&self) -> String {
        let lines: Vec<String> = self.containers.iter().map(Container::line).collect();
        format!("{}; networks {:?}", lines.join("; "), self.networks)
    }
}

fn read(one: &Value, all: &[Value]) -> Container {
    let labels = &one["Config"]["Labels"];
    Container {
        id: text(&one["Id"]),
        service: text(&labels["io.holdfast.service"]),
        role: text(&labels["io.holdfast.role"]),
        image: text(&one["Image"]),
        state: text(&one["State"]["Status"]),
        restart: text(&one["HostConfig"]["RestartPolicy"]["Name"]),
        generation: text(&labels["io.holdfast.generation"]).parse().unwrap_or(0),
        attached: attached(one, all),
        name: text(&one["Name"]),
    }
}

fn attached(one: &Value, all: &[Value]) -> String {
    let mut ports: Vec<String> = entries(&one["NetworkSettings"]["Ports"])
        .map(|(port, bindings)| {
            let hosts = list(bindings).map(|host| text(&host["HostPort"]));
            format!("{port}→{}", hosts.collect::<Vec<_>>().join(","))
        })
        .collect();
    ports.sort();
    let mode = text(&one["HostConfig"]["NetworkMode"]);
    let networks = match mode.strip_prefix("container:") {
        Some(owner) => match all.iter().find(|other| other["Id"] == owner) {
            Some(owner) => {
                let labels = &owner["Config"]["Labels"];
                let (service, role) = (&labels["io.holdfast.service"], &labels["io.holdfast.role"]);
                format!("network of {} {}", text(service), text(role))
            }
            None => "network of a container that is gone".to_owned(),
        },
        None => format!(
            "{} networks",
            entries(&one["NetworkSettings"]["Networks"]).count()
        ),
    };
    let mut mounts: Vec<String> = list(&one["Mounts"])
        .map(|mount| {
            format!(
                "{} at {}",
                text(&mount["Type"]),
                text(&mount["Destination"])
            )
        })
        .collect();
    mounts.sort();
    format!("ports {ports:?}, {networks}, mounts {mounts:?}")
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
