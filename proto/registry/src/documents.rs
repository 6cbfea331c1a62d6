//! Owns documents that can never change, because they are named by their digest: manifests, indexes and
//! image configurations, read whole, hashed, and kept.
//!
//! Refuses bytes that hash to something else than what was asked for or announced.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_proto::image::{Digest, Platform, Repository};

use crate::client::{Client, Question};
use crate::error::RegistryError;
use crate::manifest::{Configuration, Document, configuration, read};
use crate::settings::Identity;

/// Documents kept of each kind: a few kilobytes each, a fleet's images and their platforms many times over.
const MAX_KEPT: usize = 2_048;
/// Image configurations are kilobytes, with long histories tens of them.
const MAX_CONFIG_BYTES: usize = 4 << 20;

/// A repository, and whose credentials count there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) repository: &'a Repository,
    /// The configured ones without.
    pub(crate) who: Option<&'a Identity>,
}

/// What is kept, for whom: what one may see is not told to another.
type Key = (Repository, Option<String>, Digest);

/// Documents of one kind; they are only dropped for room, the oldest first.
#[derive(Debug)]
pub(crate) struct Kept<T>(Mutex<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    documents: HashMap<Key, Arc<T>>,
    oldest_first: VecDeque<Key>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            documents: HashMap::new(),
            oldest_first: VecDeque::new(),
        }))
    }
}

impl<T> Kept<T> {
    fn key(asker: Asker<'_>, digest: Digest) -> Key {
        let who = asker.who.map(|who| who.id.clone());
        (asker.repository.clone(), who, digest)
    }

    fn get(&self, asker: Asker<'_>, digest: Digest) -> Option<Arc<T>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.documents.get(&Self::key(asker, digest)).cloned()
    }

    fn put(&self, asker: Asker<'_>, digest: Digest, document: &Arc<T>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Self::key(asker, digest);
        if kept
            .documents
            .insert(key.clone(), Arc::clone(document))
            .is_none()
        {
            kept.oldest_first.push_back(key);
        }
        while kept.documents.len() > MAX_KEPT {
            let Some(oldest) = kept.oldest_first.pop_front() else {
                break;
            };
            kept.documents.remove(&oldest);
        }
    }
}

impl Client {
    /// Fetches the document under a tag and keeps it under the digest of its bytes.
    pub(crate) async fn document_of_tag(
        &self,
        asker: Asker<'_>,
        tag: &str,
    ) -> Result<Digest, RegistryError> {
        let (digest, document) = self.fetch_document(asker, tag, None).await?;
        self.documents.put(asker, digest, &Arc::new(document));
        Ok(digest)
    }

    /// The document with a digest.
    pub(crate) async fn document(
        &self,
        asker: Asker<'_>,
        digest: Digest,
    ) -> Result<Arc<Document>, RegistryError> {
        if let Some(document) = self.documents.get(asker, digest) {
            return Ok(document);
        }
        let name = digest.to_string();
        let (_, document) = self.fetch_document(asker, &name, Some(digest)).await?;
        let document = Arc::new(document);
        self.documents.put(asker, digest, &document);
        Ok(document)
    }

    async fn fetch_document(
        &self,
        asker: Asker<'_>,
        name: &str,
        wanted: Option<Digest>,
    ) -> Result<(Digest, Document), RegistryError> {
        let question = Question::manifest(asker.repository, asker.who, name);
        let fetched = self.fetch(&question).await?;
        let what = question.what();
        let announced = fetched
            .announced
            .and_then(|text| text.parse::<Digest>().ok());
        let digest = verified(&what, &fetched.body, wanted.into_iter().chain(announced))?;
        let document = read(&what, fetched.content_type.as_deref(), &fetched.body)?;
        Ok((digest, document))
    }

    /// The image configuration with a digest.
    pub(crate) async fn configuration(
        &self,
        asker: Asker<'_>,
        digest: Digest,
    ) -> Result<Arc<Configuration>, RegistryError> {
        if let Some(configuration) = self.configurations.get(asker, digest) {
            return Ok(configuration);
        }
        let name = digest.to_string();
        let question = Question::blob(asker.repository, asker.who, &name, MAX_CONFIG_BYTES);
        let fetched = self.fetch(&question).await?;
        let what = question.what();
        verified(&what, &fetched.body, [digest])?;
        let configuration = Arc::new(configuration(&what, &fetched.body)?);
        self.configurations.put(asker, digest, &configuration);
        Ok(configuration)
    }

    /// The platform that an image's own configuration names.
    pub(crate) async fn platform_of(
        &self,
        asker: Asker<'_>,
        digest: Digest,
    ) -> Result<Platform, RegistryError> {
        let configuration = self.configuration(asker, digest).await?;
        let platform = configuration.platform.clone();
        platform.ok_or_else(|| RegistryError::BadManifest {
            what: format!("the configuration {digest} of {}", asker.repository),
            why: "it names no platform".to_owned(),
        })
    }
}

/// The digest of the bytes, if it is every one that was announced.
pub(crate) fn verified(
    what: &str,
    bytes: &[u8],
    announced: impl IntoIterator<Item = Digest>,
) -> Result<Digest, RegistryError> {
    let found = Digest::of(bytes);
    match announced.into_iter().find(|digest| *digest != found) {
        Some(announced) => Err(RegistryError::DigestMismatch {
            what: what.to_owned(),
            announced,
            found,
        }),
        None => Ok(found),
    }
}
