//! Owns what one platform's image is made of, for whoever brings it somewhere: its manifest as it was
//! written, and which blobs it names.
//!
//! Refuses blobs that lie elsewhere than in the registry: their addresses are anybody's.

use bytes::Bytes;
use holdfast_proto::image::{Digest, Repository};
use serde::Deserialize;

use crate::client::{Client, Question};
use crate::documents::verified;
use crate::error::RegistryError;
use crate::manifest::{Content, read};
use crate::settings::Identity;

/// Layers of an image: engines stop at 127.
const MAX_LAYERS: usize = 256;

/// A manifest as it was written, and its blobs.
#[derive(Clone, Debug)]
pub struct Contents {
    /// What it is: engines read it by this.
    pub media_type: String,
    /// Its bytes, which have its digest.
    pub bytes: Bytes,
    /// The image's configuration.
    pub config: Piece,
    /// Its layers, the lowest first. One may come twice.
    pub layers: Vec<Piece>,
}

/// A blob that a manifest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes, as the manifest says.
    pub size: u64,
}

#[derive(Deserialize)]
struct Written {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: Digest,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

impl Client {
    /// What the image with this manifest digest is made of.
    ///
    /// # Errors
    /// As for any question; [`RegistryError::BadManifest`] when it is an index, or names what is not in
    /// the registry.
    pub async fn contents(
        &self,
        repository: &Repository,
        manifest: Digest,
        who: Option<&Identity>,
    ) -> Result<Contents, RegistryError> {
        let name = manifest.to_string();
        let question = Question::manifest(repository, who, &name);
        let fetched = self.fetch(&question).await?;
        let what = question.what();
        verified(&what, &fetched.body, [manifest])?;
        let document = read(&what, fetched.content_type.as_deref(), &fetched.body)?;
        let bytes = Bytes::from(fetched.body);
        pieces(document.media_type, &document.content, bytes)
            .map_err(|why| RegistryError::BadManifest { what, why })
    }
}

fn pieces(media_type: String, content: &Content, bytes: Bytes) -> Result<Contents, String> {
    if let Content::Index(_) = content {
        return Err("it is an index of images, not an image".to_owned());
    }
    let Written { config, layers } = serde_json::from_slice(&bytes)
        .map_err(|error| format!("what it names cannot be read: {error}"))?;
    if layers.len() > MAX_LAYERS {
        return Err(format!("it has more than {MAX_LAYERS} layers"));
    }
    let piece = |descriptor: Descriptor| {
        if descriptor.urls.is_empty() {
            let Descriptor { digest, size, .. } = descriptor;
            Ok(Piece { digest, size })
        } else {
            Err(format!(
                "{} is to be fetched from elsewhere than its registry",
                descriptor.digest
            ))
        }
    };
    Ok(Contents {
        media_type,
        config: piece(config)?,
        layers: layers.into_iter().map(piece).collect::<Result<_, _>>()?,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn contents(layers: &Value) -> Result<Contents, String> {
        let manifest = json!({
            "schemaVersion": 2,
            "config": { "digest": Digest::of(b"config"), "size": 6 },
            "layers": layers,
        });
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let document = read("web", None, &bytes).unwrap();
        pieces(document.media_type, &document.content, bytes.into())
    }

    #[test]
    fn an_image_is_its_configuration_and_its_layers() {
        let layer = json!({ "digest": Digest::of(b"layer"), "size": 5 });
        let found = contents(&json!([layer, layer])).unwrap();
        assert_eq!(
            found.media_type,
            "application/vnd.oci.image.manifest.v1+json"
        );
        let piece = |text: &str| Piece {
            digest: Digest::of(text.as_bytes()),
            size: text.len() as u64,
        };
        assert_eq!(found.config, piece("config"));
        assert_eq!(found.layers, [piece("layer"), piece("layer")]);
    }

    #[test]
    fn a_layer_from_elsewhere_is_refused() {
        let foreign = json!({
            "digest": Digest::of(b"layer"), "size": 5, "urls": ["http://169.254.169.254/"],
        });
        let error = contents(&json!([foreign])).unwrap_err();
        assert!(error.contains("from elsewhere"), "{error}");
        let nameless = json!({ "digest": "sha256:zz", "size": 5 });
        let error = contents(&json!([nameless])).unwrap_err();
        assert!(error.contains("cannot be read"), "{error}");
    }

    #[test]
    fn an_index_is_not_an_image() {
        let bytes = br#"{"schemaVersion":2,"manifests":[]}"#;
        let document = read("web", None, bytes).unwrap();
        let made = pieces(
            document.media_type,
            &document.content,
            Bytes::from_static(bytes),
        );
        assert!(made.unwrap_err().contains("an index"));
    }
}
