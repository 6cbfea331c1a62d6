//! Owns what need not be asked twice within a while: recent answers, and at most one question at a time
//! for each.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_proto::image::Repository;
use tokio::time::Instant;

use crate::error::RegistryError;

/// Answers kept: a fleet's tags many times over.
const MAX_ANSWERS: usize = 4_096;

/// A tag, and for whom it was asked: what one may see is not told to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) repository: Repository,
    /// None for the list of all tags.
    pub(crate) tag: Option<String>,
    /// None for the configured credentials.
    pub(crate) who: Option<String>,
}

/// What was found out.
#[derive(Debug)]
struct Answer<T> {
    /// The newest good answer, and when it was asked for.
    good: Option<(Instant, T)>,
    /// A failure since then.
    failure: Option<(Instant, RegistryError)>,
}

impl<T> Default for Answer<T> {
    fn default() -> Self {
        Self {
            good: None,
            failure: None,
        }
    }
}

/// Whoever holds the lock is the one who asks.
type Slot<T> = Arc<tokio::sync::Mutex<Answer<T>>>;

/// Recent answers.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    ttl: Duration,
    failure_ttl: Duration,
    slots: Mutex<HashMap<Key, Slot<T>>>,
}

impl<T: Clone> Answers<T> {
    pub(crate) fn new(ttl: Duration, failure_ttl: Duration) -> Self {
        Self {
            ttl,
            failure_ttl: failure_ttl.min(ttl),
            slots: Mutex::default(),
        }
    }

    fn slot(&self, key: Key) -> Slot<T> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_ANSWERS && !slots.contains_key(&key) {
            // A slot that is locked has somebody who asks.
            let in_use = |slot: &Slot<T>| Arc::strong_count(slot) > 1;
            let is_old = |slot: &Slot<T>| {
                let answer = slot.try_lock();
                answer.is_ok_and(|answer| match &answer.good {
                    Some((at, _)) => at.elapsed() >= self.ttl,
                    None => true,
                })
            };
            slots.retain(|_, slot| in_use(slot) || !is_old(slot));
            if slots.len() >= MAX_ANSWERS {
                slots.retain(|_, slot| in_use(slot));
            }
        }
        Arc::clone(slots.entry(key).or_default())
    }

    /// A recent answer, or what `ask` finds out given the last good one.
    pub(crate) async fn get<F>(
        &self,
        key: Key,
        ask: impl FnOnce(Option<T>) -> F,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let slot = self.slot(key);
        let arrived = Instant::now();
        let mut answer = slot.lock().await;
        // Asked while we waited for the lock, or recently enough.
        let is_fresh = |at: Instant, ttl: Duration| at >= arrived || at.elapsed() < ttl;
        match (&answer.failure, &answer.good) {
            (Some((at, error)), _) if is_fresh(*at, self.failure_ttl) => return Err(error.clone()),
            (None, Some((at, good))) if is_fresh(*at, self.ttl) => return Ok(good.clone()),
            (Some(_) | None, _) => {}
        }
        let asked_at = Instant::now();
        let known = answer.good.as_ref().map(|(_, good)| good.clone());
        match ask(known).await {
            Ok(good) => {
                *answer = Answer {
                    good: Some((asked_at, good.clone())),
                    failure: None,
                };
                Ok(good)
            }
            Err(error) => {
                answer.failure = Some((asked_at, error.clone()));
                Err(error)
            }
        }
    }
}
