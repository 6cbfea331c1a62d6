//! Owns reading manifests and indexes of both media-type families (OCI image spec, Docker schema 2).

use std::collections::BTreeMap;

use holdfast_proto::image::{ConfigDigest, Digest, ManifestDigest, Platform};
use serde::Deserialize;

use crate::error::RegistryError;

/// All four at once: a registry asked for fewer answers with something else.
pub(crate) const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// Manifests are a few kilobytes; the distribution project's own bound is 4 MiB.
pub(crate) const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Entries of an index that are looked at: official images have about twenty.
const MAX_ENTRIES: usize = 256;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Marks what `BuildKit` attests about an image.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Keys that are kept, and how much of what stands under them: enough for an address.
const SAID_PREFIX: &str = "org.opencontainers.image.";
const MAX_SAID: usize = 32;
const MAX_SAID_BYTES: usize = 2_048;
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// A manifest document, read.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) media_type: String,
    /// What it says about itself.
    pub(crate) annotations: Said,
    pub(crate) content: Content,
}

/// An image's configuration, read.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    pub(crate) platform: Option<Platform>,
    /// What it says about itself.
    pub(crate) labels: Said,
}

/// Texts by the keys of the OCI image specification ("annotations", "pre-defined annotation keys").
pub(crate) type Said = BTreeMap<String, String>;

/// What a document says.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Entries that may be images, attestations left out.
    Index(Vec<Entry>),
    /// One platform's image.
    Manifest {
        config: ConfigDigest,
        size_bytes: u64,
    },
}

/// One entry of an index.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) digest: ManifestDigest,
    pub(crate) platform: Option<Platform>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<WrittenPlatform>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

/// The platform as written: `unknown` must be seen before normal form.
#[derive(Deserialize)]
struct WrittenPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl WrittenPlatform {
    fn read(self) -> Option<Platform> {
        let named = !self.os.is_empty() && !self.architecture.is_empty();
        named.then(|| Platform::new(&self.os, &self.architecture, self.variant.as_deref()))
    }
}

impl Descriptor {
    /// Attestations and other artifacts ride in an index beside its images.
    fn is_image(&self) -> bool {
        let unknown = self
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "unknown" || platform.architecture == "unknown");
        let known_type = self.media_type.as_deref().is_none_or(|media_type| {
            [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].contains(&media_type)
        });
        known_type
            && !unknown
            && self.artifact_type.is_none()
            && !self
                .annotations
                .as_ref()
                .is_some_and(|annotations| annotations.contains_key(REFERENCE_TYPE))
    }
}

/// Reads a document whose digest was verified before.
pub(crate) fn read(
    what: &str,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<Document, RegistryError> {
    let bad = |why: String| RegistryError::BadManifest {
        what: what.to_owned(),
        why,
    };
    let essence = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    if essence.is_some_and(|essence| essence.starts_with(SCHEMA1)) {
        return Err(RegistryError::Schema1 {
            what: what.to_owned(),
        });
    }
    let written: Written = serde_json::from_slice(body)
        .map_err(|error| bad(format!("it is not JSON of one: {error}")))?;
    if written.schema_version == Some(1) {
        return Err(RegistryError::Schema1 {
            what: what.to_owned(),
        });
    }
    let annotations = said(written.annotations.clone().unwrap_or_default());
    let known = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];
    let announced = essence.filter(|essence| known.contains(essence));
    let media_type = match (announced, written.media_type.as_deref()) {
        (Some(header), Some(own)) if header != own => {
            return Err(bad(format!(
                "it was sent as {header} but calls itself {own}"
            )));
        }
        (Some(media_type), _) | (None, Some(media_type)) => media_type.to_owned(),
        // OCI documents need not name themselves; their members tell.
        (None, None) if written.manifests.is_some() => OCI_INDEX.to_owned(),
        (None, None) => OCI_MANIFEST.to_owned(),
    };
    let content = match (media_type.as_str(), written) {
        (
            OCI_INDEX | DOCKER_LIST,
            Written {
                manifests: Some(entries),
                config: None,
                ..
            },
        ) => Content::Index(index(entries).map_err(bad)?),
        (
            OCI_MANIFEST | DOCKER_MANIFEST,
            Written {
                config: Some(config),
                layers: Some(layers),
                manifests: None,
                ..
            },
        ) => manifest(&config, &layers).map_err(bad)?,
        (other, _) => return Err(bad(format!("its members do not fit its type {other}"))),
    };
    Ok(Document {
        media_type,
        annotations,
        content,
    })
}

fn index(entries: Vec<Descriptor>) -> Result<Vec<Entry>, String> {
    if entries.len() > MAX_ENTRIES {
        return Err(format!("it has more than {MAX_ENTRIES} entries"));
    }
    entries
        .into_iter()
        .filter(Descriptor::is_image)
        .map(|entry| {
            Ok(Entry {
                digest: ManifestDigest(digest(&entry.digest)?),
                platform: entry.platform.and_then(WrittenPlatform::read),
            })
        })
        .collect()
}

fn manifest(config: &Descriptor, layers: &[Descriptor]) -> Result<Content, String> {
    let size_bytes = layers
        .iter()
        .try_fold(config.size, |sum, layer| sum.checked_add(layer.size))
        .ok_or("its sizes add up to more than can be")?;
    Ok(Content::Manifest {
        config: ConfigDigest(digest(&config.digest)?),
        size_bytes,
    })
}

fn digest(text: &str) -> Result<Digest, String> {
    text.parse()
        .map_err(|error: holdfast_proto::image::DigestError| error.to_string())
}

/// What is kept of an image's words about itself: anything else could be as large as its writer likes.
fn said(all: BTreeMap<String, String>) -> Said {
    all.into_iter()
        .filter(|(key, text)| {
            key.starts_with(SAID_PREFIX) && key.len() + text.len() <= MAX_SAID_BYTES
        })
        .take(MAX_SAID)
        .collect()
}

#[derive(Deserialize)]
struct WrittenConfiguration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
    config: Option<Execution>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    labels: Option<BTreeMap<String, String>>,
}

/// Reads an image's configuration whose digest was verified before (OCI image specification, "config").
pub(crate) fn configuration(what: &str, body: &[u8]) -> Result<Configuration, RegistryError> {
    let written: WrittenConfiguration =
        serde_json::from_slice(body).map_err(|_| RegistryError::BadManifest {
            what: what.to_owned(),
            why: "it is not an image's configuration".to_owned(),
        })?;
    let labels = written.config.and_then(|config| config.labels);
    let platform = WrittenPlatform {
        os: written.os,
        architecture: written.architecture,
        variant: written.variant,
    };
    Ok(Configuration {
        platform: platform.read(),
        labels: said(labels.unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn document(content_type: &str, body: &str) -> Result<Document, RegistryError> {
        read("x", Some(content_type), body.replace('D', D).as_bytes())
    }

    #[test]
    fn attestations_are_no_images() {
        let body = r#"{"schemaVersion":2,"manifests":[
            {"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"D","size":1,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}},
            {"digest":"D","platform":{"os":"unknown","architecture":"unknown"}},
            {"digest":"D","artifactType":"application/x","platform":{"os":"linux","architecture":"amd64"}},
            {"digest":"D","annotations":{"vnd.docker.reference.type":"attestation-manifest"}},
            {"mediaType":"application/x","digest":"D"},
            {"digest":"D"}]}"#;
        let Content::Index(entries) = document(OCI_INDEX, body).unwrap().content else {
            panic!("an index")
        };
        let platforms: Vec<_> = entries
            .iter()
            .map(|entry| entry.platform.as_ref().map(ToString::to_string))
            .collect();
        assert_eq!(platforms, [Some("linux/arm64".to_owned()), None]);
    }

    #[test]
    fn sizes_add_up_and_types_must_agree() {
        let body = r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",
            "config":{"digest":"D","size":3},"layers":[{"digest":"D","size":4},{"digest":"D","size":5}]}"#;
        let read = document(&format!("{DOCKER_MANIFEST}; charset=utf-8"), body).unwrap();
        assert!(matches!(
            read.content,
            Content::Manifest { size_bytes: 12, .. }
        ));
        assert!(matches!(
            document(OCI_MANIFEST, body),
            Err(RegistryError::BadManifest { .. })
        ));
        assert!(
            document("application/json", body).is_ok(),
            "a mute header leaves it to the body"
        );
    }

    #[test]
    fn refuses_what_is_no_manifest() {
        let schema1 = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(matches!(
            document("application/json", schema1),
            Err(RegistryError::Schema1 { .. })
        ));
        let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(matches!(
            document(signed, "{}"),
            Err(RegistryError::Schema1 { .. })
        ));
        for body in [
            "<html>please log in</html>",
            "{}",
            r#"{"manifests":[{"digest":"sha256:short"}]}"#,
            r#"{"manifests":[],"config":{"digest":"D"},"layers":[]}"#,
            r#"{"config":{"digest":"D","size":18446744073709551615},"layers":[{"digest":"D","size":1}]}"#,
        ] {
            let refused = document("text/html", body);
            assert!(
                matches!(refused, Err(RegistryError::BadManifest { .. })),
                "{body}: {refused:?}"
            );
        }
    }
}
