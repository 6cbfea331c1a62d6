//! Owns resolving: from a reference to the digests and sizes of every platform's image.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use holdfast_proto::image::{
    Digest, IndexDigest, ManifestDigest, PlatformImage, Reference, ResolvedImage, TopDigest,
};
use reqwest::Method;

use crate::cache::Key;
use crate::client::{Client, Question};
use crate::documents::Asker;
use crate::error::RegistryError;
use crate::manifest::{Content, Entry};
use crate::settings::Identity;

/// Indexes inside indexes that are followed (OCI allows nesting; one level is in real use).
const MAX_DEPTH: usize = 2;
/// Manifests of one index asked for at a time.
const CHILDREN_AT_ONCE: usize = 4;
/// Manifests of one image in all, through every nested index: each of them is a request.
const MAX_CHILDREN: usize = 256;

/// What a conditional question found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The reference still points at the digest that was known.
    Unchanged,
    /// It points at this.
    Image(ResolvedImage),
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
            tag: Some(reference.tag_or_latest().to_owned()),
            who: who.map(|who| who.id.clone()),
        };
        self.images
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
        let Some(known) = known else {
            // Nothing to compare with: the document itself is wanted whatever its digest is.
            let digest = self.document_of_tag(asker, tag).await?;
            return self.image(asker, digest).await.map(Resolved::Image);
        };
        let question = Question {
            method: &Method::HEAD,
            if_none_match: Some(known),
            ..Question::manifest(repository, who, tag)
        };
        // HEAD is free where GET counts against a limit, and tells all we need when nothing moved.
        let head = self.fetch(&question).await?;
        if head.not_modified {
            return Ok(Resolved::Unchanged);
        }
        let announced = head.announced.filter(|_| !head.method_refused);
        let digest = match announced.map(|text| text.parse::<Digest>()) {
            Some(Ok(digest)) => digest,
            // No header, or not one we can check: the bytes themselves tell.
            Some(Err(_)) | None => self.document_of_tag(asker, tag).await?,
        };
        if *known == digest {
            return Ok(Resolved::Unchanged);
        }
        // By digest: a tag that moves between the two requests cannot mix two images.
        self.image(asker, digest).await.map(Resolved::Image)
    }

    /// Everything behind one digest.
    async fn image(
        &self,
        asker: Asker<'_>,
        digest: Digest,
    ) -> Result<ResolvedImage, RegistryError> {
        let document = self.document(asker, digest).await?;
        let left = AtomicUsize::new(MAX_CHILDREN);
        let (top, platforms) = match &document.content {
            Content::Index(entries) => {
                let top = TopDigest::Index(IndexDigest(digest));
                let images = self.children(asker, entries.clone(), MAX_DEPTH, &left);
                (top, images.await?)
            }
            Content::Manifest { .. } => {
                let manifest = ManifestDigest(digest);
                let entry = Entry {
                    digest: manifest,
                    platform: None,
                };
                let images = self.child(asker, entry, MAX_DEPTH, &left).await?;
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
        left: &AtomicUsize,
    ) -> Result<Vec<PlatformImage>, RegistryError> {
        // In the index's order: the first entry that fits a platform is the one it names.
        let images: Vec<Vec<PlatformImage>> = futures_util::stream::iter(entries)
            .map(|entry| self.child(asker, entry, depth, left))
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
        left: &'a AtomicUsize,
    ) -> BoxFuture<'a, Result<Vec<PlatformImage>, RegistryError>> {
        async move {
            let digest = entry.digest.0;
            let one_less = |left: usize| left.checked_sub(1);
            if left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                .is_err()
            {
                return Err(RegistryError::BadManifest {
                    what: asker.repository.to_string(),
                    why: format!("it has more than {MAX_CHILDREN} manifests"),
                });
            }
            let document = self.document(asker, digest).await?;
            match &document.content {
                Content::Index(_) if depth == 0 => Err(RegistryError::BadManifest {
                    what: format!("{}@{digest}", asker.repository),
                    why: format!("indexes are nested more than {MAX_DEPTH} deep"),
                }),
                Content::Index(entries) => {
                    self.children(asker, entries.clone(), depth - 1, left).await
                }
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
}
