//! Owns what the device's owner ordered through the local API: a pause, update locks, an update now.
//!
//! Pause and locks are kept in one small file and survive a restart; the file is written only when an
//! order changes. An update now is for once and is not kept.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use holdfast_proto::id::ServiceKey;
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fault::foreign;
use crate::lease::{Held, Lease};

/// The file in the state folder.
const FILE: &str = "orders.json";
/// Locks that can be held at a time: more than a device has services.
const MAX_LOCKS: usize = 256;
/// A forced update that has not ended by then is over: its reason was a moment's.
pub const FORCE_MS: u64 = 3_600_000;
/// The name of the whole device among the things that can be locked.
pub const DEVICE: &str = "device";

/// Why nothing may be updated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pause {
    /// What for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when, as the device's clock was then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    paused: Option<Pause>,
    /// By `device`, or `app/service`.
    locks: BTreeMap<String, Lease>,
}

/// An order could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// It could not be kept, so it does not count.
    #[error("cannot write {}; the order does not count", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else holds the lock.
    #[error("{scope} is {held}; unlock it first, or lock it as the same owner")]
    Held {
        /// What is locked.
        scope: String,
        /// By whom.
        held: Held,
    },
    /// Too much is locked.
    #[error("{MAX_LOCKS} locks are held, which is the most; unlock some first")]
    TooMany,
    /// An update now is asked of a paused device.
    #[error("updates are paused; resume first")]
    Paused,
}

/// The orders in force.
#[derive(Debug)]
pub struct Orders {
    path: PathBuf,
    kept: RefCell<Kept>,
    /// When each lock was taken on the monotonic clock; those from before a restart count from it.
    since_ms: RefCell<BTreeMap<String, u64>>,
    forced_until_ms: Cell<Option<u64>>,
}

impl Orders {
    /// The orders kept in a state folder.
    ///
    /// A file that cannot be read counts as a pause: somebody wanted something, and `resume` ends it.
    pub fn load(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let kept = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(std::io::Error::from),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Kept::default()),
            Err(error) => Err(error),
        };
        let kept = kept.unwrap_or_else(|error| {
            tracing::error!(
                error = %error,
                "{} cannot be read, so updates are paused: `holdfast-agent resume` ends that",
                path.display()
            );
            Kept {
                paused: Some(Pause {
                    reason: Some("the file with the owner's orders cannot be read".to_owned()),
                    since: None,
                }),
                ..Kept::default()
            }
        });
        Self {
            path,
            kept: RefCell::new(kept),
            since_ms: RefCell::default(),
            forced_until_ms: Cell::new(None),
        }
    }

    /// The pause in force.
    pub fn paused(&self) -> Option<Pause> {
        self.kept.borrow().paused.clone()
    }

    /// Begins a pause, or gives it another reason.
    pub fn pause(&self, reason: Option<&str>, now: Timestamp) -> Result<(), OrderError> {
        let reason = reason.map(foreign).filter(|reason| !reason.is_empty());
        let since = self.paused().and_then(|pause| pause.since).or(Some(now));
        self.forced_until_ms.set(None);
        self.change(|kept| kept.paused = Some(Pause { reason, since }))
    }

    /// Ends a pause.
    pub fn resume(&self) -> Result<(), OrderError> {
        self.change(|kept| kept.paused = None)
    }

    /// Takes a lock on the device or one service; its owner may renew it.
    pub fn lock(
        &self,
        service: Option<&ServiceKey>,
        lease: Lease,
        now_ms: u64,
    ) -> Result<(), OrderError> {
        let scope = scope(service);
        let lease = lease.tamed();
        match self.held(service, now_ms) {
            Some(held) if held.lease.owner != lease.owner => {
                return Err(OrderError::Held { scope, held });
            }
            Some(_) | None => {}
        }
        let held = self.locks(now_ms);
        if held.len() >= MAX_LOCKS && !held.contains_key(&scope) {
            return Err(OrderError::TooMany);
        }
        self.change(|kept| {
            kept.locks.retain(|scope, _| held.contains_key(scope));
            kept.locks.insert(scope.clone(), lease);
        })?;
        self.since_ms.borrow_mut().insert(scope, now_ms);
        Ok(())
    }

    /// Ends the lock on the device or one service, whoever holds it; whether there was one.
    pub fn unlock(&self, service: Option<&ServiceKey>) -> Result<bool, OrderError> {
        let scope = scope(service);
        let held = self.kept.borrow().locks.contains_key(&scope);
        self.change(|kept| {
            kept.locks.remove(&scope);
        })?;
        self.since_ms.borrow_mut().remove(&scope);
        Ok(held)
    }

    /// The lock on the device or one service, if one holds.
    pub fn held(&self, service: Option<&ServiceKey>, now_ms: u64) -> Option<Held> {
        self.held_by_name(&scope(service), now_ms)
    }

    /// Every lock that holds, by what it is on.
    pub fn locks(&self, now_ms: u64) -> BTreeMap<String, Held> {
        let scopes: Vec<String> = self.kept.borrow().locks.keys().cloned().collect();
        let held = scopes.into_iter().filter_map(|scope| {
            let held = self.held_by_name(&scope, now_ms)?;
            Some((scope, held))
        });
        held.collect()
    }

    fn held_by_name(&self, scope: &str, now_ms: u64) -> Option<Held> {
        let kept = self.kept.borrow();
        let lease = kept.locks.get(scope)?;
        let mut since = self.since_ms.borrow_mut();
        let since_ms = *since.entry(scope.to_owned()).or_insert(now_ms);
        lease.held(since_ms, now_ms)
    }

    /// Lets updates begin in spite of locks and windows, until [`Self::end_force`] or an hour passed.
    pub fn force(&self, now_ms: u64) -> Result<(), OrderError> {
        if self.paused().is_some() {
            return Err(OrderError::Paused);
        }
        self.forced_until_ms
            .set(Some(now_ms.saturating_add(FORCE_MS)));
        Ok(())
    }

    /// Whether updates may begin in spite of locks and windows.
    pub fn is_forced(&self, now_ms: u64) -> bool {
        self.forced_until_ms.get().is_some_and(|end| now_ms < end)
    }

    /// What was forced is done.
    pub fn end_force(&self) {
        self.forced_until_ms.set(None);
    }

    /// Changes the file, then memory; an order that changes nothing writes nothing.
    fn change(&self, change: impl FnOnce(&mut Kept)) -> Result<(), OrderError> {
        let mut kept = self.kept.borrow().clone();
        change(&mut kept);
        if kept == *self.kept.borrow() {
            return Ok(());
        }
        let written = serde_json::to_vec_pretty(&kept)
            .map_err(std::io::Error::from)
            .and_then(|bytes| crate::durable::replace(&self.path, &bytes));
        written.map_err(|source| OrderError::Write {
            path: self.path.clone(),
            source,
        })?;
        *self.kept.borrow_mut() = kept;
        Ok(())
    }
}

fn scope(service: Option<&ServiceKey>) -> String {
    service.map_or_else(|| DEVICE.to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> ServiceKey {
        ServiceKey {
            app: "1001".parse().unwrap(),
            service: "web".parse().unwrap(),
        }
    }

    fn lease(owner: &str, ttl_seconds: Option<u64>) -> Lease {
        Lease {
            owner: Some(owner.to_owned()),
            ttl_seconds,
            reason: None,
        }
    }

    #[test]
    fn pause_and_locks_survive_a_restart_and_force_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let orders = Orders::load(folder.path());
        orders.force(0).unwrap();
        orders
            .lock(Some(&web()), lease("till", Some(60)), 0)
            .unwrap();
        assert!(orders.is_forced(FORCE_MS - 1) && !orders.is_forced(FORCE_MS));
        orders
            .pause(Some("holiday"), Timestamp::from_millis(5))
            .unwrap();
        assert!(!orders.is_forced(0), "a pause ends what was forced");
        assert!(matches!(orders.force(0), Err(OrderError::Paused)));

        let again = Orders::load(folder.path());
        assert_eq!(again.paused().unwrap().reason.as_deref(), Some("holiday"));
        assert_eq!(
            again.paused().unwrap().since,
            Some(Timestamp::from_millis(5))
        );
        // The lease's time counts from the first look after the restart: no clock survived it.
        assert!(again.held(Some(&web()), 1_000_000).is_some());
        assert!(again.held(Some(&web()), 1_059_999).is_some());
        assert!(again.held(Some(&web()), 1_060_000).is_none());
        again.resume().unwrap();
        assert!(Orders::load(folder.path()).paused().is_none());
    }

    #[test]
    fn a_lock_is_renewed_by_its_owner_and_taken_by_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let orders = Orders::load(folder.path());
        orders.lock(None, lease("till", Some(10)), 0).unwrap();
        orders.lock(None, lease("till", Some(10)), 5_000).unwrap();
        let refused = orders.lock(None, lease("other", None), 14_000).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "device is locked by till; unlock it first, or lock it as the same owner"
        );
        orders.lock(None, lease("other", None), 15_000).unwrap();
        assert_eq!(orders.locks(u64::MAX).len(), 1);
        assert!(orders.unlock(None).unwrap());
        assert!(!orders.unlock(None).unwrap());
        assert!(orders.locks(0).is_empty());
    }

    #[test]
    fn an_order_that_changes_nothing_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let orders = Orders::load(folder.path());
        orders.resume().unwrap();
        orders.unlock(None).unwrap();
        assert!(!folder.path().join(FILE).exists());
        orders.pause(None, Timestamp::from_millis(1)).unwrap();
        let modified = || {
            let metadata = std::fs::metadata(folder.path().join(FILE)).unwrap();
            std::os::unix::fs::MetadataExt::ino(&metadata)
        };
        let before = modified();
        orders.pause(None, Timestamp::from_millis(2)).unwrap();
        assert_eq!(modified(), before);
    }

    #[test]
    fn an_order_that_cannot_be_kept_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let orders = Orders::load(&folder.path().join("gone"));
        let refused = orders.pause(None, Timestamp::from_millis(1)).unwrap_err();
        assert!(matches!(refused, OrderError::Write { .. }));
        assert_eq!(orders.paused(), None);
    }

    #[test]
    fn an_unreadable_file_is_a_pause_that_resume_ends() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        let orders = Orders::load(folder.path());
        let reason = orders.paused().unwrap().reason.unwrap();
        assert!(reason.contains("cannot be read"), "{reason}");
        orders.resume().unwrap();
        assert!(Orders::load(folder.path()).paused().is_none());
    }
}
