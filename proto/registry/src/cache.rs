//! Owns what need not be asked twice: immutable documents by digest, and recent answers for tags.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_proto::image::{Digest, Repository, ResolvedImage};
use tokio::time::Instant;

use crate::error::RegistryError;
use crate::manifest::Document;

/// Documents kept: a few kilobytes each, a fleet's images and their platforms many times over.
const MAX_DOCUMENTS: usize = 2_048;
/// Tags kept, each with one answer.
const MAX_ANSWERS: usize = 4_096;

/// Documents by digest: they can never change, so they are only dropped for room.
#[derive(Debug, Default)]
pub(crate) struct Documents(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    documents: HashMap<(Repository, Digest), Arc<Document>>,
    oldest_first: VecDeque<(Repository, Digest)>,
}

impl Documents {
    pub(crate) fn get(&self, repository: &Repository, digest: &Digest) -> Option<Arc<Document>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.documents.get(&(repository.clone(), *digest)).cloned()
    }

    pub(crate) fn put(&self, repository: &Repository, digest: Digest, document: Arc<Document>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (repository.clone(), digest);
        if kept.documents.insert(key.clone(), document).is_none() {
            kept.oldest_first.push_back(key);
        }
        while kept.documents.len() > MAX_DOCUMENTS {
            let Some(oldest) = kept.oldest_first.pop_front() else {
                break;
            };
            kept.documents.remove(&oldest);
        }
    }
}

/// A tag, and for whom it was asked: what one may see is not told to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) repository: Repository,
    pub(crate) tag: String,
    pub(crate) who: String,
}

/// What was found out about one tag.
#[derive(Debug, Default)]
struct Answer {
    /// The newest image, and when it was asked for.
    image: Option<(Instant, ResolvedImage)>,
    /// A failure since then.
    failure: Option<(Instant, RegistryError)>,
}

/// Whoever holds the lock is the one who asks.
type Slot = Arc<tokio::sync::Mutex<Answer>>;

/// Recent answers for tags, and at most one question at a time for each.
#[derive(Debug)]
pub(crate) struct Answers {
    ttl: Duration,
    failure_ttl: Duration,
    slots: Mutex<HashMap<Key, Slot>>,
}

impl Answers {
    pub(crate) fn new(ttl: Duration, failure_ttl: Duration) -> Self {
        Self {
            ttl,
            failure_ttl: failure_ttl.min(ttl),
            slots: Mutex::default(),
        }
    }

    fn slot(&self, key: Key) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_ANSWERS {
            // What nobody waits for makes room.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry(key).or_default())
    }

    /// The answer for a tag: a recent one, or what `ask` finds out given the last one known.
    pub(crate) async fn get<F>(
        &self,
        key: Key,
        ask: impl FnOnce(Option<ResolvedImage>) -> F,
    ) -> Result<ResolvedImage, RegistryError>
    where
        F: Future<Output = Result<ResolvedImage, RegistryError>>,
    {
        let slot = self.slot(key);
        let arrived = Instant::now();
        let mut answer = slot.lock().await;
        // Asked while we waited for the lock, or recently enough.
        let is_fresh = |at: Instant, ttl: Duration| at >= arrived || at.elapsed() < ttl;
        match (&answer.failure, &answer.image) {
            (Some((at, error)), _) if is_fresh(*at, self.failure_ttl) => return Err(error.clone()),
            (None, Some((at, image))) if is_fresh(*at, self.ttl) => return Ok(image.clone()),
            _ => {}
        }
        let asked_at = Instant::now();
        let known = answer.image.as_ref().map(|(_, image)| image.clone());
        match ask(known).await {
            Ok(image) => {
                *answer = Answer {
                    image: Some((asked_at, image.clone())),
                    failure: None,
                };
                Ok(image)
            }
            Err(error) => {
                answer.failure = Some((asked_at, error.clone()));
                Err(error)
            }
        }
    }
}
