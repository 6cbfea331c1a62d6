//! Follows the engine's events of one device, to catch what no look at the end can see.
//!
//! An engine that was killed forgets its events: after a reconnection the list is the truth (M13).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::docker::{Docker, encode};
use crate::wait::LOOK_AGAIN;

/// What was seen since the last [`Watch::begin`].
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Moments at which more than one container of a service ran, in words.
    pub doubles: Vec<String>,
    /// How often a container of each image (by configuration digest) was started.
    pub starts: BTreeMap<String, usize>,
    running: BTreeMap<String, BTreeSet<String>>,
}

impl Seen {
    /// Takes in one event or listed container.
    pub fn started(&mut self, service: &str, id: &str) {
        let running = self.running.entry(service.to_owned()).or_default();
        running.insert(id.to_owned());
        if running.len() > 1 {
            let ids: Vec<&str> = running
                .iter()
                .map(|id| id.get(..12).unwrap_or(id))
                .collect();
            self.doubles
                .push(format!("{service}: {} ran at once", ids.join(" and ")));
        }
    }

    /// Takes in the end of a container.
    pub fn ended(&mut self, service: &str, id: &str) {
        if let Some(running) = self.running.get_mut(service) {
            running.remove(id);
        }
    }
}

/// The follower; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    connected: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins to follow a device's containers.
    pub fn start(docker: &Docker, device: &str) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (tell, connected) = watch::channel(false);
        let follower = Follower {
            socket: docker.socket().to_owned(),
            docker: docker.clone(),
            label: format!("io.holdfast.device={device}"),
            seen: Arc::clone(&seen),
            tell,
        };
        let task = tokio::spawn(async move {
            loop {
                // An error means that the engine is away; it is tried again until this is dropped.
                let _ = follower.follow().await;
                follower.tell.send_replace(false);
                sleep(LOOK_AGAIN).await;
            }
        });
        Self {
            seen,
            connected,
            task,
        }
    }

    /// Waits until events flow.
    pub async fn connected(&mut self) -> anyhow::Result<()> {
        let wait = self.connected.wait_for(|connected| *connected);
        tokio::time::timeout(std::time::Duration::from_secs(30), wait)
            .await
            .context("the engine's events do not flow")??;
        Ok(())
    }

    /// Forgets what was seen, except what runs.
    pub fn begin(&self) {
        let mut seen = guard(&self.seen);
        seen.doubles.clear();
        seen.starts.clear();
    }

    /// What was seen since then.
    pub fn seen(&self) -> Seen {
        guard(&self.seen).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Follower {
    socket: PathBuf,
    docker: Docker,
    label: String,
    seen: Arc<Mutex<Seen>>,
    tell: watch::Sender<bool>,
}

impl Follower {
    async fn follow(&self) -> anyhow::Result<()> {
        let mut body = events(&self.socket, &self.label).await?;
        self.list().await?;
        self.tell.send_replace(true);
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                self.take(&serde_json::from_slice(&line)?);
            }
        }
        Ok(())
    }

    /// What runs now, read anew after a connection.
    async fn list(&self) -> anyhow::Result<()> {
        let all = self.docker.labelled(&self.label).await?;
        let mut seen = guard(&self.seen);
        seen.running.clear();
        for one in all.iter().filter(|one| one["State"] == "running") {
            let labels = &one["Labels"];
            if labels["io.holdfast.role"].is_null() {
                let service = labels["io.holdfast.service"].as_str().unwrap_or_default();
                seen.started(service, one["Id"].as_str().unwrap_or_default());
            }
        }
        Ok(())
    }

    fn take(&self, event: &Value) {
        let about = &event["Actor"]["Attributes"];
        if !about["io.holdfast.role"].is_null() {
            return;
        }
        let service = about["io.holdfast.service"].as_str().unwrap_or_default();
        let id = event["Actor"]["ID"].as_str().unwrap_or_default();
        let mut seen = guard(&self.seen);
        match event["Action"].as_str() {
            Some("start") => {
                let image = about["io.holdfast.config-digest"].as_str();
                *seen
                    .starts
                    .entry(image.unwrap_or_default().to_owned())
                    .or_default() += 1;
                seen.started(service, id);
            }
            Some("die" | "destroy") => seen.ended(service, id),
            Some(_) | None => {}
        }
    }
}

async fn events(socket: &Path, label: &str) -> anyhow::Result<hyper::body::Incoming> {
    let filters =
        json!({ "type": ["container"], "label": [label], "event": ["start", "die", "destroy"] });
    let path = format!("/events?filters={}", encode(&filters.to_string()));
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "docker");
    let response = sender
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?;
    Ok(response.into_body())
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
