//! Images made on the spot and pushed, without any other registry and without an engine.
//!
//! The same description always gives the same digests; a changed file, command or label gives new
//! ones. Nothing here parses or chooses: what a registry or engine makes of it is theirs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::layers::{self, Layer, sha256};
use crate::place;
use crate::registry::Registry;

/// Whose words the manifests use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// OCI manifest and OCI index.
    Oci,
    /// Docker schema 2 manifest and Docker manifest list.
    Docker,
}

impl Kind {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

/// A description of an image.
#[derive(Debug, Clone)]
pub struct Image {
    repository: String,
    kind: Kind,
    platforms: Vec<String>,
    single: bool,
    attested: bool,
    config: Value,
    annotations: BTreeMap<String, String>,
    files: BTreeMap<String, (u32, Vec<u8>)>,
    only: BTreeMap<String, BTreeMap<String, (u32, Vec<u8>)>>,
}

/// What a push left in the registry.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// `HOST/REPOSITORY`.
    pub name: String,
    /// The repository's path inside the registry.
    pub repository: String,
    /// The tag it was pushed under.
    pub tag: String,
    /// What the tag names: the index, or the only manifest.
    pub top_digest: String,
    /// The index, when there is one.
    pub index_digest: Option<String>,
    /// The platforms' own digests.
    pub children: Vec<Child>,
}

/// One platform of a pushed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// `linux/arm64`, as given.
    pub platform: String,
    /// Its manifest.
    pub manifest_digest: String,
    /// Its config: the image ID of the classic store.
    pub config_digest: String,
    /// Its compressed layers together.
    pub layers_size_bytes: u64,
}

impl Pushed {
    /// `HOST/REPOSITORY:TAG`.
    pub fn reference(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }

    /// `HOST/REPOSITORY@DIGEST` of what the tag names.
    pub fn pinned(&self) -> String {
        format!("{}@{}", self.name, self.top_digest)
    }

    /// The digests of one platform.
    ///
    /// # Panics
    /// When it was not pushed for that platform.
    pub fn child(&self, platform: &str) -> &Child {
        let child = self
            .children
            .iter()
            .find(|child| child.platform == platform);
        child.unwrap_or_else(|| panic!("{} was not pushed for {platform}", self.name))
    }
}

/// Bytes that nothing compresses and no other image has (splitmix64).
pub fn noise(bytes: usize) -> Vec<u8> {
    let seed = u64::from_str_radix(&place::unique(), 16).unwrap_or(1);
    let numbers = (1..).map(|n: u64| {
        let mut z = (n ^ seed.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    numbers.flat_map(u64::to_le_bytes).take(bytes).collect()
}

/// The label that says of which repository an image is.
const OF: &str = "test.repository";

impl Image {
    /// An OCI image for linux/amd64 under an index, with busybox and nothing to do. A label makes it unlike
    /// images of other repositories: an engine has equal images once, and tests share one.
    pub fn new(repository: impl Into<String>) -> Self {
        let repository = repository.into();
        let labels = json!({ OF: repository });
        Self {
            repository,
            kind: Kind::Oci,
            platforms: vec!["linux/amd64".to_owned()],
            single: false,
            attested: false,
            config: json!({ "Env": ["PATH=/bin"], "WorkingDir": "/", "Labels": labels }),
            annotations: BTreeMap::new(),
            files: BTreeMap::new(),
            only: BTreeMap::new(),
        }
    }

    /// The platforms it is for.
    #[must_use]
    pub fn platforms(mut self, platforms: &[&str]) -> Self {
        self.platforms = platforms
            .iter()
            .map(|&platform| platform.to_owned())
            .collect();
        self
    }

    /// Whose words its manifests use.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Pushes the first platform's manifest alone, without an index.
    #[must_use]
    pub fn single(mut self) -> Self {
        self.single = true;
        self
    }

    /// Adds an attestation child (`unknown/unknown`) to the index, as buildx does.
    #[must_use]
    pub fn attested(mut self) -> Self {
        self.attested = true;
        self
    }

    /// Sets a key of the config's `config` object as it stands.
    #[must_use]
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// The default command.
    #[must_use]
    pub fn cmd<const N: usize>(self, words: [&str; N]) -> Self {
        self.config("Cmd", json!(words.as_slice()))
    }

    /// The entrypoint.
    #[must_use]
    pub fn entrypoint<const N: usize>(self, words: [&str; N]) -> Self {
        self.config("Entrypoint", json!(words.as_slice()))
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        if let Some(list) = self.config["Env"].as_array_mut() {
            list.push(json!(format!("{name}={value}")));
        }
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.config["Labels"][name] = json!(value);
        self
    }

    /// Adds an annotation to the index and every manifest (OCI only).
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Declares a TCP port.
    #[must_use]
    pub fn expose(mut self, port: u16) -> Self {
        self.config["ExposedPorts"][format!("{port}/tcp")] = json!({});
        self
    }

    /// A health check run in the container: every `interval_ms`, unhealthy after `retries` failures.
    #[must_use]
    pub fn healthcheck(self, shell: &str, interval_ms: u64, retries: u32) -> Self {
        let check = json!({
            "Test": ["CMD-SHELL", shell], "Interval": interval_ms * 1_000_000,
            "Timeout": 5_000_000_000_u64, "Retries": retries,
        });
        self.config("Healthcheck", check)
    }

    /// Adds a file, the same on every platform.
    #[must_use]
    pub fn file(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let path = path.trim_start_matches('/').to_owned();
        self.files.insert(path, (0o755, bytes.into()));
        self
    }

    /// Adds or replaces a file on one platform only, so that only that child's digests change.
    #[must_use]
    pub fn file_only(mut self, platform: &str, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let path = path.trim_start_matches('/').to_owned();
        let files = self.only.entry(platform.to_owned()).or_default();
        files.insert(path, (0o755, bytes.into()));
        self
    }

    /// A web server on port 8080 whose page is the version; it ends at once on SIGTERM.
    pub fn web(repository: impl Into<String>, version: &str) -> Self {
        const SERVE: &str = "#!/bin/sh\ntrap 'exit 0' TERM INT\nhttpd -f -p 8080 -h /www &\nwait\n";
        Self::new(repository)
            .file("/bin/serve", SERVE)
            .file("/www/index.html", format!("{version}\n"))
            .label("org.opencontainers.image.version", version)
            .entrypoint(["/bin/serve"])
            .expose(8080)
    }

    /// [`Image::web`] that also says itself when it is healthy.
    pub fn healthy_web(repository: impl Into<String>, version: &str) -> Self {
        let check = "wget -q -O /dev/null http://127.0.0.1:8080/ || exit 1";
        Self::web(repository, version).healthcheck(check, 200, 3)
    }

    /// Runs and serves, but its health check never passes.
    pub fn never_healthy(repository: impl Into<String>, version: &str) -> Self {
        Self::web(repository, version).healthcheck("exit 1", 200, 2)
    }

    /// Runs for ever, does nothing, and ends at once on SIGTERM.
    pub fn idle(repository: impl Into<String>, version: &str) -> Self {
        const IDLE: &str =
            "#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 3600 & wait $!; done\n";
        Self::new(repository)
            .file("/bin/idle", IDLE)
            .label("org.opencontainers.image.version", version)
            .entrypoint(["/bin/idle"])
    }

    /// Cannot be started: its entrypoint does not exist.
    pub fn broken_entrypoint(repository: impl Into<String>) -> Self {
        Self::new(repository).entrypoint(["/bin/not-there"])
    }

    /// Starts, and ends with status 3 after so many seconds (0: at once).
    pub fn crash_loop(repository: impl Into<String>, after_seconds: u32) -> Self {
        let script = format!("echo about to crash; sleep {after_seconds}; exit 3");
        Self::new(repository).cmd(["/bin/sh", "-c", &script])
    }

    /// Puts layers, configs and manifests into the registry and the tag on top.
    pub async fn push(&self, registry: &Registry, tag: &str) -> anyhow::Result<Pushed> {
        let mut children = Vec::new();
        let mut entries = Vec::new();
        for platform in &self.platforms {
            let (child, entry) = self.push_child(registry, platform, tag).await?;
            children.push(child);
            entries.push(entry);
        }
        let first = children.first().map(|child| child.manifest_digest.clone());
        let mut index_digest = None;
        if !self.single {
            if self.attested {
                entries.push(self.push_attestation(registry, first.as_deref()).await?);
            }
            let mut index = json!({
                "schemaVersion": 2, "mediaType": self.kind.index(), "manifests": entries,
            });
            self.annotate(&mut index);
            let bytes = index.to_string().into_bytes();
            let kind = self.kind.index();
            let digest = registry.put_manifest(&self.repository, tag, kind, bytes);
            index_digest = Some(digest.await?);
        }
        let top = index_digest.clone().or(first);
        Ok(Pushed {
            name: format!("{}/{}", registry.host(), self.repository),
            repository: self.repository.clone(),
            tag: tag.to_owned(),
            top_digest: top.ok_or_else(|| anyhow::anyhow!("an image for no platform"))?,
            index_digest,
            children,
        })
    }

    async fn push_child(
        &self,
        registry: &Registry,
        platform: &str,
        tag: &str,
    ) -> anyhow::Result<(Child, Value)> {
        let mut files = self.files.clone();
        files.extend(self.only.get(platform).cloned().unwrap_or_default());
        let mut layers = vec![layers::busybox(platform)?];
        if !files.is_empty() {
            layers.push(layers::files(&files)?);
        }
        let mut words = platform.split('/');
        let mut place = json!({ "os": words.next(), "architecture": words.next() });
        if let Some(variant) = words.next() {
            place["variant"] = json!(variant);
        }
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let mut config = place.clone();
        config["created"] = json!("2026-01-01T00:00:00Z");
        config["config"] = self.config.clone();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let config = config.to_string().into_bytes();
        let (child, size) = self
            .push_manifest(registry, &config, &layers, self.single.then_some(tag))
            .await?;
        let entry = json!({
            "mediaType": self.kind.manifest(), "digest": child.manifest_digest, "size": size,
            "platform": place,
        });
        let platform = platform.to_owned();
        Ok((Child { platform, ..child }, entry))
    }

    async fn push_manifest(
        &self,
        registry: &Registry,
        config: &[u8],
        layers: &[Layer],
        tag: Option<&str>,
    ) -> anyhow::Result<(Child, usize)> {
        let config_digest = sha256(config);
        registry
            .put_blob(&self.repository, &config_digest, config)
            .await?;
        let mut listed = Vec::new();
        for layer in layers {
            registry
                .put_blob(&self.repository, &layer.digest, &layer.bytes)
                .await?;
            listed.push(json!({
                "mediaType": self.kind.layer(), "digest": layer.digest, "size": layer.bytes.len(),
            }));
        }
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": self.kind.manifest(),
            "config": {
                "mediaType": self.kind.config(), "digest": config_digest, "size": config.len(),
            },
            "layers": listed,
        });
        self.annotate(&mut manifest);
        let manifest = manifest.to_string().into_bytes();
        let size = manifest.len();
        let digest = sha256(&manifest);
        let reference = tag.unwrap_or(&digest);
        let kind = self.kind.manifest();
        let manifest_digest = registry
            .put_manifest(&self.repository, reference, kind, manifest)
            .await?;
        let child = Child {
            platform: String::new(),
            manifest_digest,
            config_digest,
            layers_size_bytes: layers.iter().map(|layer| layer.bytes.len() as u64).sum(),
        };
        Ok((child, size))
    }

    /// A child that is no image: what build tools add to say how an image was made.
    async fn push_attestation(
        &self,
        registry: &Registry,
        subject: Option<&str>,
    ) -> anyhow::Result<Value> {
        let config = json!({ "architecture": "unknown", "os": "unknown", "config": {} });
        let statement = BTreeMap::from([("statement.json".to_owned(), (0o644, b"{}".to_vec()))]);
        let layers = [layers::files(&statement)?];
        let config = config.to_string().into_bytes();
        let (child, size) = self.push_manifest(registry, &config, &layers, None).await?;
        Ok(json!({
            "mediaType": self.kind.manifest(), "digest": child.manifest_digest, "size": size,
            "platform": { "os": "unknown", "architecture": "unknown" },
            "annotations": {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": subject,
            },
        }))
    }

    fn annotate(&self, document: &mut Value) {
        match self.kind {
            Kind::Oci if !self.annotations.is_empty() => {
                document["annotations"] = json!(self.annotations);
            }
            Kind::Oci | Kind::Docker => {}
        }
    }
}
