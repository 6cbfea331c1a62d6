//! Writes an image's documents and puts them into the registry. Each is as small as it can be.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::shape::{Entry, Family, Image, Structure};
use crate::layers::{self, Layer, sha256};
use crate::registry::Registry;

impl Family {
    /// The media type of its manifests.
    pub fn manifest(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
        }
    }

    /// The media type of its indexes.
    pub fn index(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
            Self::Oci => "application/vnd.oci.image.index.v1+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.container.image.v1+json",
            Self::Oci => "application/vnd.oci.image.config.v1+json",
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Self::Oci => "application/vnd.oci.image.layer.v1.tar+gzip",
        }
    }
}

/// Where images say which version they are.
pub const VERSION: &str = "org.opencontainers.image.version";

/// A document in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Its media type.
    pub media_type: &'static str,
    /// Its digest.
    pub digest: String,
    /// Its length in bytes.
    pub size: usize,
}

/// What a push left.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// What the tag points at.
    pub top: Put,
    /// The platforms' manifests, as written, in order.
    pub children: Vec<(&'static str, Put)>,
}

impl Pushed {
    /// The manifest of a platform, as written.
    pub fn child(&self, platform: &str) -> anyhow::Result<&Put> {
        let found = self.children.iter().find(|(own, _)| *own == platform);
        found.map(|(_, put)| put).context("no such platform")
    }
}

/// Puts images into repositories of one registry.
#[derive(Debug)]
pub struct Press<'a> {
    registry: &'a Registry,
    layer: Layer,
    there: Mutex<HashSet<(String, String)>>,
}

impl<'a> Press<'a> {
    /// For this registry.
    pub fn new(registry: &'a Registry) -> anyhow::Result<Self> {
        let file = BTreeMap::from([("matrix".to_owned(), (0o644, b"x\n".to_vec()))]);
        Ok(Self {
            registry,
            layer: layers::files(&file)?,
            there: Mutex::default(),
        })
    }

    /// Puts the layer of all images into a repository, before several are at work there.
    pub async fn begin(&self, repository: &str) -> anyhow::Result<()> {
        let layer = &self.layer;
        self.blob(repository, &layer.digest, &layer.bytes).await
    }

    /// Whether it has to be put there.
    fn is_new(&self, repository: &str, digest: &str) -> bool {
        let there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        !there.contains(&(repository.to_owned(), digest.to_owned()))
    }

    fn is_there(&self, repository: &str, digest: &str) {
        let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        there.insert((repository.to_owned(), digest.to_owned()));
    }

    async fn blob(&self, repository: &str, digest: &str, bytes: &[u8]) -> anyhow::Result<()> {
        if self.is_new(repository, digest) {
            self.registry.put_blob(repository, digest, bytes).await?;
            self.is_there(repository, digest);
        }
        Ok(())
    }

    async fn document(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &'static str,
        document: &Value,
    ) -> anyhow::Result<Put> {
        let bytes = document.to_string().into_bytes();
        let (digest, size) = (sha256(&bytes), bytes.len());
        if tag.is_some() || self.is_new(repository, &digest) {
            let name = tag.unwrap_or(&digest);
            let put = self
                .registry
                .put_manifest(repository, name, media_type, bytes);
            put.await?;
            self.is_there(repository, &digest);
        }
        Ok(Put {
            media_type,
            digest,
            size,
        })
    }

    /// Pushes an image; `id` makes its configurations its own.
    pub async fn push(
        &self,
        repository: &str,
        tag: &str,
        image: &Image,
        id: usize,
    ) -> anyhow::Result<Pushed> {
        let family = image.family;
        let is_single = image.structure == Structure::Single;
        let mut children = Vec::new();
        let mut entries = Vec::new();
        for entry in &image.entries {
            let put = self
                .child(repository, is_single.then_some(tag), family, *entry, id)
                .await?;
            entries.push(json!({
                "mediaType": put.media_type, "digest": put.digest, "size": put.size,
                "platform": place(entry.platform),
            }));
            children.push((entry.platform, put));
        }
        let top = match image.structure {
            Structure::Single => children[0].1.clone(),
            Structure::Index => {
                if let Some(version) = image.attestation {
                    let subject = &children[0].1.digest;
                    let attested = self.attestation(repository, family, version, subject, id);
                    entries.push(attested.await?);
                }
                self.index(repository, Some(tag), family, &entries).await?
            }
            Structure::Nested => {
                let (one, other) = entries.split_at(entries.len() / 2);
                let mut inner = Vec::new();
                for half in [one, other] {
                    let put = self.index(repository, None, family, half).await?;
                    inner.push(json!({
                        "mediaType": put.media_type, "digest": put.digest, "size": put.size,
                    }));
                }
                self.index(repository, Some(tag), family, &inner).await?
            }
        };
        Ok(Pushed { top, children })
    }

    async fn index(
        &self,
        repository: &str,
        tag: Option<&str>,
        family: Family,
        entries: &[Value],
    ) -> anyhow::Result<Put> {
        let index = json!({
            "schemaVersion": 2, "mediaType": family.index(), "manifests": entries,
        });
        self.document(repository, tag, family.index(), &index).await
    }

    async fn child(
        &self,
        repository: &str,
        tag: Option<&str>,
        family: Family,
        entry: Entry,
        id: usize,
    ) -> anyhow::Result<Put> {
        let mut config = place(entry.platform);
        config["created"] = json!("2026-01-01T00:00:00Z");
        config["config"] = json!({
            "Labels": { VERSION: version(entry), "matrix.image": id.to_string() }, "Cmd": ["/matrix"],
        });
        self.manifest(repository, tag, family, config).await
    }

    async fn manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        family: Family,
        mut config: Value,
    ) -> anyhow::Result<Put> {
        let layer = &self.layer;
        config["rootfs"] = json!({ "type": "layers", "diff_ids": [layer.diff_id] });
        let config = config.to_string().into_bytes();
        let digest = sha256(&config);
        for (digest, bytes) in [(&digest, &config), (&layer.digest, &layer.bytes)] {
            self.blob(repository, digest, bytes).await?;
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": family.manifest(),
            "config": { "mediaType": family.config(), "digest": digest, "size": config.len() },
            "layers": [{
                "mediaType": family.layer(), "digest": layer.digest, "size": layer.bytes.len(),
            }],
        });
        self.document(repository, tag, family.manifest(), &manifest)
            .await
    }

    /// An entry that is no image, as build tools add it.
    async fn attestation(
        &self,
        repository: &str,
        family: Family,
        version: u32,
        subject: &str,
        id: usize,
    ) -> anyhow::Result<Value> {
        let config = json!({
            "architecture": "unknown", "os": "unknown", "config": {},
            "created": format!("2026-01-0{version}T00:00:00Z"), "author": id.to_string(),
        });
        let put = self.manifest(repository, None, family, config).await?;
        Ok(json!({
            "mediaType": put.media_type, "digest": put.digest, "size": put.size,
            "platform": { "architecture": "unknown", "os": "unknown" },
            "annotations": {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": subject,
            },
        }))
    }
}

/// What an entry's image says its version is: platform and number, so that a mix-up shows.
pub fn version(entry: Entry) -> String {
    format!("{}-{}", entry.version, entry.platform)
}

/// A platform in a document's words.
pub fn place(platform: &str) -> Value {
    let mut parts = platform.split('/');
    let mut place = json!({ "os": parts.next(), "architecture": parts.next() });
    if let Some(variant) = parts.next() {
        place["variant"] = json!(variant);
    }
    place
}
