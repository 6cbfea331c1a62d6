//! Owns what the command line asks beyond the loop's needs: every running container, images, logs.
//!
//! Only reads; beside `docker.rs` and `convert.rs` it names bollard.

use std::io::Write;

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use futures_util::StreamExt as _;
use holdfast_proto::image::{Digest, Platform};

use super::answers::{self, Status};
use super::{DockerEngine, READ_TIMEOUT, fault};
use crate::engine::{EngineError, Operation, labels};

/// Where images say which version they are (OCI image specification, annotations).
const VERSION_LABEL: &str = "org.opencontainers.image.version";

/// A running container, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningContainer {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image as it was written when the container was made.
    pub reference: String,
    /// The engine's word for what it does.
    pub state: String,
    /// Whether it only holds a network for others: it has no image to update.
    pub is_sandbox: bool,
    /// The image it runs; none if the engine lost it.
    pub image: Option<LocalImage>,
}

/// An image in the engine's store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalImage {
    /// Every digest that the engine calls it by.
    pub ids: Vec<Digest>,
    /// What it was pulled from: `name@sha256:…`.
    pub repo_digests: Vec<String>,
    /// The version that it says it is (`org.opencontainers.image.version`).
    pub version: Option<String>,
    /// The platform it was made for.
    pub platform: Platform,
}

/// What an engine was told about reaching registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Those it speaks plain HTTP to (`insecure-registries`), by name.
    pub insecure: Vec<String>,
    /// Where it asks for images of Docker Hub first (`registry-mirrors`): URLs.
    pub mirrors: Vec<String>,
    /// Its proxies, as its environment says; a password in them is not told.
    pub http_proxy: String,
    /// As `http_proxy`.
    pub https_proxy: String,
    /// Hosts that no proxy is asked for.
    pub no_proxy: String,
}

impl DockerEngine {
    /// Every container that runs now.
    pub async fn running(&self) -> Result<Vec<RunningContainer>, EngineError> {
        let listed: Vec<answers::Listed> = self.get(Operation::List, "/containers/json").await?;
        let mut running = Vec::with_capacity(listed.len());
        for id in listed.into_iter().filter_map(|summary| summary.id) {
            // One that ended since the list was made runs no more.
            let Some(found) = self.inspect(&id).await? else {
                continue;
            };
            let config = found.config.unwrap_or_default();
            let state = found.state.and_then(|state| state.status);
            let own = config.labels.unwrap_or_default();
            let image = match &found.image {
                Some(image) => self.local_image(image).await?,
                None => None,
            };
            // A containerd store of Docker 28 and later says which of an index's children it runs.
            let child = found.image_manifest_descriptor;
            let child: Option<Digest> = child.and_then(|child| child.digest?.parse().ok());
            let image = image.map(|mut image| {
                image.ids.extend(child);
                image
            });
            running.push(RunningContainer {
                name: found
                    .name
                    .unwrap_or_default()
                    .trim_start_matches('/')
                    .to_owned(),
                reference: config.image.unwrap_or_default(),
                state: state.map_or("", Status::word).to_owned(),
                is_sandbox: own
                    .get(labels::ROLE)
                    .is_some_and(|role| role == labels::SANDBOX_ROLE),
                image,
                id,
            });
        }
        running.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(running)
    }

    /// What the engine was told about reaching registries.
    pub async fn ways(&self) -> Result<Ways, EngineError> {
        let info = self
            .call(Operation::Describe, READ_TIMEOUT, |docker| async move {
                docker.info().await
            })
            .await?;
        let config = info.registry_config.unwrap_or_default();
        let known = config.index_configs.unwrap_or_default().into_iter();
        let insecure = known.filter(|(_, index)| index.secure == Some(false));
        Ok(Ways {
            insecure: insecure.map(|(name, _)| name).collect(),
            mirrors: config.mirrors.unwrap_or_default(),
            http_proxy: info.http_proxy.unwrap_or_default(),
            https_proxy: info.https_proxy.unwrap_or_default(),
            no_proxy: info.no_proxy.unwrap_or_default(),
        })
    }

    async fn local_image(&self, id: &str) -> Result<Option<LocalImage>, EngineError> {
        let Some(image) = self.inspect_image(id).await? else {
            return Ok(None);
        };
        let descriptor = image.descriptor.and_then(|descriptor| descriptor.digest);
        let os = image.os.unwrap_or_else(|| "linux".to_owned());
        let mut labels = image
            .config
            .and_then(|config| config.labels)
            .unwrap_or_default();
        Ok(Some(LocalImage {
            version: labels.remove(VERSION_LABEL),
            ids: [image.id, descriptor]
                .into_iter()
                .flatten()
                .filter_map(|text| text.parse().ok())
                .collect(),
            repo_digests: image.repo_digests.unwrap_or_default(),
            platform: Platform::new(
                &os,
                &image.architecture.unwrap_or_default(),
                image.variant.as_deref(),
            ),
        }))
    }

    /// Copies what a container wrote: at most its last `tail` lines, then, with `follow`, what comes.
    pub async fn copy_logs(
        &self,
        id: &str,
        tail: Option<u32>,
        follow: bool,
        out: &mut dyn Write,
        errors: &mut dyn Write,
    ) -> Result<(), LogsError> {
        let docker = self.docker(Operation::Logs).await?;
        let options = LogsOptions {
            follow,
            stdout: true,
            stderr: true,
            tail: tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string()),
            ..LogsOptions::default()
        };
        let mut stream = std::pin::pin!(docker.logs(id, Some(options)));
        // A container that writes nothing is silent for ever; without `follow` the engine is not.
        let patience = if follow {
            std::time::Duration::MAX
        } else {
            READ_TIMEOUT
        };
        loop {
            let next = tokio::time::timeout(patience, stream.next()).await;
            let next = next.map_err(|_| EngineError::TimedOut {
                operation: Operation::Logs,
                timeout_ms: super::millis(READ_TIMEOUT),
            })?;
            let Some(output) = next else { return Ok(()) };
            match output.map_err(|error| fault(Operation::Logs, error))? {
                LogOutput::StdErr { message } => errors.write_all(&message)?,
                LogOutput::StdOut { message }
                | LogOutput::Console { message }
                | LogOutput::StdIn { message } => out.write_all(&message)?,
            }
            out.flush()?;
        }
    }
}

/// A log could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The engine did not give it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It could not be written on.
    #[error("cannot write the log")]
    Write(#[from] std::io::Error),
}
