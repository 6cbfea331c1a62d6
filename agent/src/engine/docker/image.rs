//! Owns images: looking, pulling, naming, removing, and making the one that sandboxes run.
//!
//! Refuses to wait for a pull that stands still; its caller says for how long.

use std::collections::HashMap;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::models::{BuildInfo, CreateImageInfo};
use bollard::query_parameters::{
    CreateImageOptions, ImportImageOptions, RemoveImageOptions, TagImageOptions,
};
use futures_util::StreamExt as _;
use holdfast_plan::is_transit_name;
use holdfast_proto::image::Platform;

use super::{
    Agreed, CHANGE_TIMEOUT, Dialect, DockerEngine, DockerError, READ_TIMEOUT, absent_is_none,
    answers, bounded, fault, get,
};
use crate::engine::convert::Unsupported;
use crate::engine::{EngineError, EngineImage, Fetch, Operation, PullAuth, StoredImage, sandbox};
use crate::fault::foreign;

impl DockerEngine {
    pub(super) async fn find_image(&self, name: &str) -> Result<Option<EngineImage>, EngineError> {
        let Some(image) = self.inspect_image(name).await? else {
            return Ok(None);
        };
        let os = image.os.unwrap_or_else(|| "linux".to_owned());
        let architecture = image.architecture.unwrap_or_default();
        let descriptor = image.descriptor.and_then(|descriptor| descriptor.digest);
        Ok(Some(EngineImage {
            ids: [image.id, descriptor]
                .into_iter()
                .flatten()
                .filter_map(|text| text.parse().ok())
                .collect(),
            platform: Platform::new(&os, &architecture, image.variant.as_deref()),
        }))
    }

    pub(super) async fn inspect_image(
        &self,
        name: &str,
    ) -> Result<Option<answers::Image>, EngineError> {
        let path = format!("/images/{}/json", get::name(name));
        absent_is_none(self.get(Operation::InspectImage, &path).await)
    }

    pub(super) async fn pull_image(&self, fetch: &Fetch<'_>) -> Result<(), EngineError> {
        let Fetch {
            from,
            platform,
            auth,
            no_progress_ms,
            ..
        } = *fetch;
        let Agreed { docker, dialect } = self.agreed(Operation::Pull).await?;
        if dialect == Dialect::Podman && is_transit_name(from) {
            return self.pull_from_agent(from, platform).await;
        }
        let options = CreateImageOptions {
            from_image: Some(from.to_owned()),
            platform: platform.to_string(),
            ..CreateImageOptions::default()
        };
        let stream = docker.create_image(Some(options), None, auth.map(credentials));
        let mut stream = std::pin::pin!(stream);
        let mut layers = HashMap::new();
        let patience = Duration::from_millis(no_progress_ms);
        let mut deadline = tokio::time::Instant::now() + patience;
        loop {
            // Dropping the stream closes the connection, which cancels the pull.
            let next = tokio::time::timeout_at(deadline, stream.next()).await;
            match next.map_err(|_| EngineError::PullStalled { no_progress_ms })? {
                None => return Ok(()),
                Some(Ok(message)) => {
                    if progressed(&mut layers, message) {
                        deadline = tokio::time::Instant::now() + patience;
                    }
                }
                Some(Err(DockerError::DockerStreamError { error })) => {
                    return Err(EngineError::PullBroke {
                        message: foreign(&error),
                    });
                }
                Some(Err(error)) => return Err(self.noted(fault(Operation::Pull, error))),
            }
        }
    }

    /// Makes the image of sandboxes on the device itself: no registry, no network.
    pub(super) async fn load_sandbox_image(&self) -> Result<(), EngineError> {
        let version = self
            .call(Operation::Describe, READ_TIMEOUT, |docker| async move {
                docker.version().await
            })
            .await?;
        let os = version.os.unwrap_or_else(|| "linux".to_owned());
        let platform = Platform::new(&os, &version.arch.unwrap_or_default(), None);
        let archive = sandbox::image(&platform).map_err(Unsupported::from)?;
        let docker = self.docker(Operation::LoadImage).await?;
        let body = bollard::body_full(archive.into());
        let load = async {
            let mut stream =
                std::pin::pin!(docker.import_image(ImportImageOptions::default(), body, None));
            while let Some(message) = stream.next().await {
                let BuildInfo { .. } = message?;
            }
            Ok(())
        };
        let loaded = bounded(Operation::LoadImage, CHANGE_TIMEOUT, load).await;
        loaded.map_err(|error| self.noted(error))
    }

    pub(super) async fn list_images(&self) -> Result<Vec<StoredImage>, EngineError> {
        let found: Vec<answers::StoredImage> =
            self.get(Operation::ListImages, "/images/json").await?;
        // What some engines write where there is no name.
        let named = |names: Option<Vec<String>>| {
            let is_name = |name: &String| !name.starts_with("<none>") && !name.ends_with("<none>");
            names.into_iter().flatten().filter(is_name).collect()
        };
        Ok(found
            .into_iter()
            .map(|image| StoredImage {
                id: image.id,
                tags: named(image.repo_tags),
                digests: named(image.repo_digests),
                size_bytes: u64::try_from(image.size).unwrap_or(0),
            })
            .collect())
    }

    pub(super) async fn tag_image(&self, image: &str, name: &str) -> Result<(), EngineError> {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        let options = TagImageOptions {
            repo: Some(repository.to_owned()),
            tag: Some(tag.to_owned()),
        };
        self.call(Operation::Tag, CHANGE_TIMEOUT, |docker| async move {
            docker.tag_image(image, Some(options)).await
        })
        .await
    }

    pub(super) async fn remove_image_or_name(&self, image: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptions {
            force: false,
            ..RemoveImageOptions::default()
        };
        let outcome = self
            .call(
                Operation::RemoveImage,
                CHANGE_TIMEOUT,
                |docker| async move { docker.remove_image(image, Some(options), None).await },
            )
            .await;
        absent_is_none(outcome).map(drop)
    }
}

/// A login as the engine's API takes it (`X-Registry-Auth`).
fn credentials(auth: &PullAuth) -> DockerCredentials {
    match auth {
        PullAuth::Token(token) => DockerCredentials {
            registrytoken: Some(token.clone()),
            ..DockerCredentials::default()
        },
        PullAuth::Password { username, password } => DockerCredentials {
            username: Some(username.clone()),
            password: Some(password.clone()),
            ..DockerCredentials::default()
        },
    }
}

/// Whether a pull's message says that something moved. The engine repeats "Retrying in n seconds"
/// while nothing does; its own retries end by themselves, and ours are longer.
pub(super) fn progressed(
    layers: &mut HashMap<String, (String, i64)>,
    message: CreateImageInfo,
) -> bool {
    let status = message.status.unwrap_or_default();
    if status.starts_with("Retrying") {
        return false;
    }
    let current = message
        .progress_detail
        .and_then(|detail| detail.current)
        .unwrap_or(0);
    let seen = (status, current);
    let before = layers.insert(message.id.unwrap_or_default(), seen.clone());
    before != Some(seen)
}
