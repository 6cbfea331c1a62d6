//! Owns resolving: from a reference to the digests and sizes of every platform's image.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use holdfast_proto::image::{
    Digest, IndexDigest, ManifestDigest, PlatformImage, Reference, Repository, ResolvedImage,
    TopDigest,
};
use reqwest::Method;

use crate::cache::Key;
use crate::client::{Client, Question};
use crate::error::RegistryError;
use crate::manifest::{
    ACCEPT_MANIFESTS, Content, Document, Entry, MAX_MANIFEST_BYTES, platform_of_config, read,
};
use crate::settings::Identity;

/// Indexes inside indexes that are followed (OCI allows nesting; one level is in real use).
const MAX_DEPTH: usize = 2;
/// Manifests of one index asked for at a time.
const CHILDREN_AT_ONCE: usize = 4;
/// Image configurations are kilobytes, with long histories tens of them.
const MAX_CONFIG_BYTES: usize = 4 << 20;

/// What a conditional question found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The reference still points at the digest that was known.
    Unchanged,
    /// It points at this.
    Image(ResolvedImage),
}

/// A repository, and whose credentials count there.
#[derive(Clone, Copy, Debug)]
struct Asker<'a> {
    repository: &'a Repository,
    who: Option<&'a Identity>,
}

impl Client {
    /// What the reference points at: at most one question per tag at a time, answers kept for the TTL.
    ///
    /// A reference with a digest names that digest, whatever tag stands beside it.
    pub async fn resolve(&self, reference: &Reference) -> Result<ResolvedImage, RegistryError> {
        self.resolve_for(reference, None).await
    }

    /// As [`Client::resolve`], with somebody's own credentials; their answers are kept apart.
    pub async fn resolve_for(
        &self,
        reference: &Reference,
        who: Option<&Identity>,
    ) -> Result<ResolvedImage, RegistryError> {
        let repository = reference.repository();
        if let Some(digest) = reference.digest() {
            return self.image(Asker { repository, who }, *digest).await;
        }
        let key = Key {
            repository: repository.clone(),
            tag: reference.tag_or_latest().to_owned(),
            who: who.map_or_else(String::new, |who| who.id.clone()),
        };
        self.answers
            .get(key, |known| async move {
                let digest = known.as_ref().map(|image| *image.top.digest());
                match (self.ask_for(reference, digest.as_ref(), who).await?, known) {
                    (Resolved::Image(image), _) | (Resolved::Unchanged, Some(image)) => Ok(image),
                    // Only said in answer to a known digest.
                    (Resolved::Unchanged, None) => Err(RegistryError::NotFound {
                        what: reference.to_string(),
                    }),
                }
            })
            .await
    }

    /// Asks the registry now, whatever is kept, given the digest that is known already.
    pub async fn ask(
        &self,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<Resolved, RegistryError> {
        self.ask_for(reference, known, None).await
    }

    /// As [`Client::ask`], with somebody's own credentials.
    pub async fn ask_for(
        &self,
        reference: &Reference,
        known: Option<&Digest>,
        who: Option<&Identity>,
    ) -> Result<Resolved, RegistryError> {
        let repository = reference.repository();
        let asker = Asker { repository, who };
        if let Some(digest) = reference.digest() {
            return self.image(asker, *digest).await.map(Resolved::Image);
        }
        let tag = reference.tag_or_latest();
        let question = Question {
            repository,
            who,
            method: &Method::HEAD,
            kind: "manifests",
            name: tag,
            accept: ACCEPT_MANIFESTS,
            if_none_match: known,
            limit: MAX_MANIFEST_BYTES,
        };
        // HEAD is free where GET counts against a limit, and tells all we need when nothing moved.
        let head = self.fetch(&question).await?;
        if head.not_modified && known.is_some() {
            return Ok(Resolved::Unchanged);
        }
        let announced = head.announced.filter(|_| !head.method_refused);
        let digest = match announced.map(|text| text.parse::<Digest>()) {
            Some(Ok(digest)) => digest,
            // No header, or not one we can check: the bytes themselves tell.
            Some(Err(_)) | None => self.digest_of_body(asker, tag).await?,
        };
        if known == Some(&digest) {
            return Ok(Resolved::Unchanged);
        }
        // By digest: a tag that moves between the two requests cannot mix two images.
        self.image(asker, digest).await.map(Resolved::Image)
    }

    /// Fetches a tag's document and keeps it under the digest of its bytes.
    async fn digest_of_body(&self, asker: Asker<'_>, tag: &str) -> Result<Digest, RegistryError> {
        let (digest, document) = self.fetch_document(asker, tag, None).await?;
        self.documents
            .put(asker.repository, digest, Arc::new(document));
        Ok(digest)
    }

    async fn fetch_document(
        &self,
        asker: Asker<'_>,
        name: &str,
        wanted: Option<Digest>,
    ) -> Result<(Digest, Document), RegistryError> {
        let question = Question {
            repository: asker.repository,
            who: asker.who,
            method: &Method::GET,
            kind: "manifests",
            name,
            accept: ACCEPT_MANIFESTS,
            if_none_match: None,
            limit: MAX_MANIFEST_BYTES,
        };
        let fetched = self.fetch(&question).await?;
        let what = question.what();
        let found = Digest::of(&fetched.body);
        let header = fetched
            .announced
            .and_then(|text| text.parse::<Digest>().ok());
        let mut announcements = wanted.into_iter().chain(header);
        if let Some(announced) = announcements.find(|digest| *digest != found) {
            return Err(RegistryError::DigestMismatch {
                what,
                announced,
                found,
            });
        }
        Ok((
            found,
            read(&what, fetched.content_type.as_deref(), &fetched.body)?,
        ))
    }

    async fn document(
        &self,
        asker: Asker<'_>,
        digest: Digest,
    ) -> Result<Arc<Document>, RegistryError> {
        if let Some(document) = self.documents.get(asker.repository, &digest) {
            return Ok(document);
        }
        let (_, document) = self
            .fetch_document(asker, &digest.to_string(), Some(digest))
            .await?;
        let document = Arc::new(document);
        self.documents
            .put(asker.repository, digest, Arc::clone(&document));
        Ok(document)
    }

    /// Everything behind one digest.
    async fn image(
        &self,
        asker: Asker<'_>,
        digest: Digest,
    ) -> Result<ResolvedImage, RegistryError> {
        let document = self.document(asker, digest).await?;
        let (top, platforms) = match &document.content {
            Content::Index(entries) => {
                let top = TopDigest::Index(IndexDigest(digest));
                (top, self.children(asker, entries.clone(), MAX_DEPTH).await?)
            }
            Content::Manifest { .. } => {
                let manifest = ManifestDigest(digest);
                let entry = Entry {
                    digest: manifest,
                    platform: None,
                };
                let images = self.child(asker, entry, MAX_DEPTH).await?;
                (TopDigest::Manifest(manifest), images)
            }
        };
        Ok(ResolvedImage {
            repository: asker.repository.clone(),
            top,
            media_type: document.media_type.clone(),
            platforms,
        })
    }

    async fn children(
        &self,
        asker: Asker<'_>,
        entries: Vec<Entry>,
        depth: usize,
    ) -> Result<Vec<PlatformImage>, RegistryError> {
        // In the index's order: the first entry that fits a platform is the one it names.
        let images: Vec<Vec<PlatformImage>> = futures_util::stream::iter(entries)
            .map(|entry| self.child(asker, entry, depth))
            .buffered(CHILDREN_AT_ONCE)
            .try_collect()
            .await?;
        Ok(images.concat())
    }

    /// One entry's image, or the images of an index nested in its place.
    fn child<'a>(
        &'a self,
        asker: Asker<'a>,
        entry: Entry,
        depth: usize,
    ) -> BoxFuture<'a, Result<Vec<PlatformImage>, RegistryError>> {
        async move {
            let digest = entry.digest.0;
            let document = self.document(asker, digest).await?;
            match &document.content {
                Content::Index(_) if depth == 0 => Err(RegistryError::BadManifest {
                    what: format!("{}@{digest}", asker.repository),
                    why: format!("indexes are nested more than {MAX_DEPTH} deep"),
                }),
                Content::Index(entries) => self.children(asker, entries.clone(), depth - 1).await,
                Content::Manifest { config, size_bytes } => {
                    let platform = match entry.platform {
                        Some(platform) => platform,
                        None => self.platform_of(asker, config.0).await?,
                    };
                    Ok(vec![PlatformImage {
                        platform,
                        manifest_digest: entry.digest,
                        config_digest: *config,
                        size_bytes: *size_bytes,
                    }])
                }
            }
        }
        .boxed()
    }

    /// The platform that an image's own configuration names.
    async fn platform_of(
        &self,
        asker: Asker<'_>,
        config: Digest,
    ) -> Result<holdfast_proto::image::Platform, RegistryError> {
        let name = config.to_string();
        let question = Question {
            repository: asker.repository,
            who: asker.who,
            method: &Method::GET,
            kind: "blobs",
            name: &name,
            accept: "*/*",
            if_none_match: None,
            limit: MAX_CONFIG_BYTES,
        };
        let fetched = self.fetch(&question).await?;
        let what = question.what();
        let found = Digest::of(&fetched.body);
        if found != config {
            return Err(RegistryError::DigestMismatch {
                what,
                announced: config,
                found,
            });
        }
        platform_of_config(&what, &fetched.body)
    }
}
