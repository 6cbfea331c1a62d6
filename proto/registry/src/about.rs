//! Owns what an image says about itself: its labels and annotations.
//!
//! Refuses to keep what nobody asks for: only keys of the image specification's own name space count,
//! and only values of a length that a person would read.

use std::collections::BTreeMap;

use holdfast_proto::image::{Platform, Reference};

use crate::client::Client;
use crate::documents::Asker;
use crate::error::RegistryError;
use crate::settings::Identity;

/// What one platform's image says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Labels of its configuration (`config.Labels`) whose key begins with `org.opencontainers.image.`.
    pub labels: BTreeMap<String, String>,
    /// Annotations with such keys: those of the index, and over them those of the platform's manifest.
    pub annotations: BTreeMap<String, String>,
}

impl About {
    /// What is said under a key, such as `org.opencontainers.image.source`; the label before the
    /// annotation, as it is the one that most tools write.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.labels.get(key).or_else(|| self.annotations.get(key));
        found.map(String::as_str)
    }
}

impl Client {
    /// What the image for a platform says about itself; `None` when there is no image for it.
    ///
    /// A reference with a digest costs nothing twice: documents and configurations never change.
    pub async fn about(
        &self,
        reference: &Reference,
        platform: &Platform,
        who: Option<&Identity>,
    ) -> Result<Option<About>, RegistryError> {
        let image = self.resolve_for(reference, who).await?;
        let Some(chosen) = image.for_platform(platform) else {
            return Ok(None);
        };
        let asker = Asker {
            repository: reference.repository(),
            who,
        };
        let mut annotations = BTreeMap::new();
        for digest in [*image.top.digest(), chosen.manifest_digest.0] {
            let document = self.document(asker, digest).await?;
            annotations.extend(document.annotations.clone());
        }
        let configuration = self.configuration(asker, chosen.config_digest.0).await?;
        Ok(Some(About {
            labels: configuration.labels.clone(),
            annotations,
        }))
    }
}
