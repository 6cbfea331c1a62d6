//! Owns where bytes of blobs come from: a registry with its mirrors, or a neighbour that has them.
//!
//! A source is never believed: whoever puts the bytes together proves them by their digest.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use holdfast_proto::image::{Digest, Repository};
use holdfast_registry::{Blob, BlobRequest, Client, Identity, RegistryError, RetryAdvice};

/// The longest silence of a source, before the first byte and between two.
const SILENCE: Duration = Duration::from_secs(30);

/// A blob that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes, as its manifest says.
    pub size: u64,
}

/// Why a source gave nothing, or nothing more.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{source_name}: {why}")]
pub struct SourceError {
    /// Which source.
    pub source_name: String,
    /// What happened, for people.
    pub why: String,
    /// When it is worth asking again.
    pub retry: RetryAdvice,
    /// Whether it wants a login, or another one.
    pub wants_login: bool,
    /// Whether it says nothing of this blob: any other would not come either.
    pub is_general: bool,
}

/// Somebody who has blobs.
pub trait BlobSource {
    /// Its name in reports and errors.
    fn name(&self) -> &str;

    /// Begins at byte `from`, or at an earlier one when it cannot begin in the middle.
    fn open<'a>(
        &'a self,
        wanted: &'a Wanted,
        from: u64,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Bytestream + 'a>, SourceError>>;

    /// It gave other bytes than those of a digest, all by itself.
    fn distrust(&self) {}
}

/// Bytes that come from a source, in order.
pub trait Bytestream {
    /// The position in the blob of the byte that comes next.
    fn at(&self) -> u64;

    /// The next bytes; none at the end of the blob.
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Bytes>, SourceError>>;
}

/// A registry, its mirrors first.
#[derive(Debug)]
pub struct Registry<'a> {
    repository: Repository,
    client: &'a Client,
    who: Option<Identity>,
}

impl<'a> Registry<'a> {
    /// The registry of a repository, asked as `who`, or with the credentials that the device itself has.
    pub fn new(repository: Repository, client: &'a Client, who: Option<Identity>) -> Self {
        Self {
            repository,
            client,
            who,
        }
    }
}

impl BlobSource for Registry<'_> {
    fn name(&self) -> &str {
        self.repository.registry()
    }

    fn open<'a>(
        &'a self,
        wanted: &'a Wanted,
        from: u64,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Bytestream + 'a>, SourceError>> {
        Box::pin(async move {
            let request = BlobRequest {
                repository: &self.repository,
                digest: wanted.digest,
                size: wanted.size,
                from,
                who: self.who.as_ref(),
                silence: SILENCE,
            };
            let blob = self.client.blob(&request).await;
            let blob = blob.map_err(|error| failed(self.name(), &error))?;
            let stream = FromRegistry {
                name: self.name().to_owned(),
                blob,
            };
            Ok(Box::new(stream) as Box<dyn Bytestream + 'a>)
        })
    }
}

struct FromRegistry {
    name: String,
    blob: Blob,
}

impl Bytestream for FromRegistry {
    fn at(&self) -> u64 {
        self.blob.at()
    }

    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async {
            let next = self.blob.next().await;
            next.map_err(|error| failed(&self.name, &error))
        })
    }
}

fn failed(name: &str, error: &RegistryError) -> SourceError {
    SourceError {
        source_name: name.to_owned(),
        why: error.to_string(),
        retry: error.retry(),
        wants_login: matches!(
            error,
            RegistryError::Unauthorized { .. } | RegistryError::Forbidden { .. }
        ),
        is_general: error.is_general(),
    }
}
