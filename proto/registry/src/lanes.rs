//! Owns how hard a registry is asked: so many requests at a time, and none while it wants peace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::RegistryError;

/// Requests to one registry at a time: enough to hide latency, too few to be taken for a flood.
const REQUESTS_PER_REGISTRY: usize = 4;
/// Registries that are remembered; beyond it those that nobody asks and that want no peace make room.
const MAX_LANES: usize = 1_024;
/// A mirror that cannot be reached is passed by for this long: each try costs a whole time-out.
const MIRROR_REST: Duration = Duration::from_secs(30);

/// One lane for each registry.
#[derive(Debug, Default)]
pub(crate) struct Lanes(Mutex<HashMap<String, Arc<Lane>>>);

#[derive(Debug)]
struct Lane {
    permits: Semaphore,
    not_before: Mutex<Option<Instant>>,
    unreachable_until: Mutex<Option<Instant>>,
}

impl Lane {
    fn left(until: &Mutex<Option<Instant>>) -> Option<Duration> {
        let until = *until.lock().unwrap_or_else(PoisonError::into_inner);
        until?.checked_duration_since(Instant::now())
    }

    fn set(until: &Mutex<Option<Instant>>, wait: Duration) {
        let mut until = until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = Some(Instant::now() + wait);
    }
}

impl Lanes {
    fn lane(&self, registry: &str) -> Arc<Lane> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= MAX_LANES {
            lanes.retain(|_, lane| {
                Arc::strong_count(lane) > 1 || Lane::left(&lane.not_before).is_some()
            });
        }
        let lane = lanes.entry(registry.to_owned()).or_insert_with(|| {
            Arc::new(Lane {
                permits: Semaphore::new(REQUESTS_PER_REGISTRY),
                not_before: Mutex::default(),
                unreachable_until: Mutex::default(),
            })
        });
        Arc::clone(lane)
    }

    /// Waits for a free place at the registry and asks, unless the registry wants peace; hears whether
    /// it wants some from now on.
    ///
    /// # Errors
    /// Those of the question, and `RateLimited` without asking.
    pub(crate) async fn ask<T>(
        &self,
        registry: &str,
        question: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let lane = self.lane(registry);
        // The semaphore is never closed.
        let _permit = lane.permits.acquire().await;
        if let Some(wait) = Lane::left(&lane.not_before) {
            return Err(RegistryError::RateLimited {
                registry: registry.to_owned(),
                retry_after: Some(wait),
            });
        }
        let answer = question.await;
        // Said with 503 it means the same as with 429.
        if let Err(
            RegistryError::RateLimited { retry_after, .. }
            | RegistryError::Server { retry_after, .. },
        ) = &answer
            && let Some(wait) = *retry_after
        {
            Lane::set(&lane.not_before, wait);
        }
        answer
    }

    /// Whether a mirror is worth a try.
    pub(crate) fn is_rested(&self, mirror: &str) -> bool {
        Lane::left(&self.lane(mirror).unreachable_until).is_none()
    }

    /// Remembers that a mirror did not answer.
    pub(crate) fn rest(&self, mirror: &str) {
        Lane::set(&self.lane(mirror).unreachable_until, MIRROR_REST);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn so_many_at_a_time_and_each_registry_by_itself() {
        let lanes = Lanes::default();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let question = |registry| {
            lanes.ask(registry, async {
                let running = now.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(running, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            })
        };
        let one = (0..50).map(|_| question("one"));
        for answer in futures_util::future::join_all(one).await {
            answer.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), REQUESTS_PER_REGISTRY);
        let two = (0..50).map(|at| question(if at % 2 == 0 { "one" } else { "two" }));
        futures_util::future::join_all(two).await;
        assert_eq!(most.load(Ordering::SeqCst), 2 * REQUESTS_PER_REGISTRY);
    }

    #[tokio::test]
    async fn peace_is_for_the_registry_that_wants_it() {
        let lanes = Lanes::default();
        let busy = || async {
            Err::<(), _>(RegistryError::RateLimited {
                registry: "one".to_owned(),
                retry_after: Some(Duration::from_mins(1)),
            })
        };
        lanes.ask("one", busy()).await.unwrap_err();
        let unasked = lanes.ask("one", async { panic!("asked") });
        let error: Result<(), _> = unasked.await;
        assert_eq!(error.unwrap_err().code(), "rate_limited");
        lanes.ask("two", async { Ok(()) }).await.unwrap();
        assert!(lanes.is_rested("one"));
        lanes.rest("one");
        assert!(!lanes.is_rested("one"));
    }
}
