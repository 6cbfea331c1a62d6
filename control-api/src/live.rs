//! Owns the poll cache: tokens, `ETags` and rendered bodies of every device, in memory.
//!
//! A poll reads this and nothing else. Refuses to be the truth: it is filled from the store, and
//! every announced change makes it read the store again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use holdfast_proto::hash::etag;
use holdfast_proto::id::DeviceId;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use http::HeaderValue;
use tokio::sync::Notify;

use crate::store::devices::{self, Hot};
use crate::store::{Store, StoreError};

/// Parts of the cache with a lock of their own, so that polls do not wait for each other.
const SHARDS: usize = 64;
/// Bytes of bodies kept in memory; what does not fit is read from the store when it is fetched.
const BODY_BUDGET: usize = 128 * 1024 * 1024;
/// Devices read from the store at a time when the cache is filled.
const PAGE: i64 = 500;

/// What a device is served now.
#[derive(Debug, Clone)]
pub struct Served {
    /// The strong `ETag`, ready for the wire.
    pub etag: HeaderValue,
    /// The generation of the target.
    pub generation: u64,
    /// The document; none when it did not fit into the budget.
    pub body: Option<Bytes>,
}

/// One device in the cache.
#[derive(Debug)]
pub struct Slot {
    /// The device.
    pub uuid: DeviceId,
    /// Its row number in the store.
    pub row: i64,
    served: RwLock<Arc<Served>>,
    token_hash: RwLock<String>,
    is_quarantined: AtomicBool,
    seen_at: AtomicI64,
    flushed_at: AtomicI64,
    changed: Notify,
}

impl Slot {
    /// What the device is served now.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Wakes when the device's target, token or existence changes.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Whether nothing is served to it, and nothing of it is taken.
    pub fn is_quarantined(&self) -> bool {
        self.is_quarantined.load(Ordering::Relaxed)
    }

    /// Notes that the device was heard of.
    pub fn seen(&self, at: Timestamp) {
        self.seen_at.fetch_max(at.as_millis(), Ordering::Relaxed);
    }
}

type Shard<K, V> = RwLock<HashMap<K, V>>;

/// The poll cache of this process.
#[derive(Debug)]
pub struct Live {
    devices: [Shard<DeviceId, Arc<Slot>>; SHARDS],
    tokens: [Shard<String, DeviceId>; SHARDS],
    body_bytes: AtomicUsize,
    /// Whoever reads a device again holds its shard's turn until the cache is changed: of two who
    /// read, the later one also writes later, so that a dead token never comes back to life.
    turns: [tokio::sync::Mutex<()>; SHARDS],
    /// Held for writing while a page is read and put, so that no single device is meanwhile.
    paging: tokio::sync::RwLock<()>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            devices: std::array::from_fn(|_| RwLock::default()),
            tokens: std::array::from_fn(|_| RwLock::default()),
            body_bytes: AtomicUsize::new(0),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            paging: tokio::sync::RwLock::default(),
        }
    }
}

fn token_shard(hash: &str) -> usize {
    hash.bytes()
        .take(2)
        .fold(0, |sum, byte| sum * 16 + usize::from(byte & 0x1f))
        % SHARDS
}

fn device_shard(uuid: DeviceId) -> usize {
    use std::hash::{Hash as _, Hasher as _};
    let mut hasher = std::hash::DefaultHasher::new();
    uuid.hash(&mut hasher);
    usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or_default()
}

impl Live {
    /// The device with this token, judged from memory.
    pub fn by_token(&self, hash: &str) -> Option<DeviceId> {
        self.tokens[token_shard(hash)]
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(hash)
            .copied()
    }

    /// The device, if it is there.
    pub fn get(&self, uuid: DeviceId) -> Option<Arc<Slot>> {
        self.devices[device_shard(uuid)]
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&uuid)
            .cloned()
    }

    /// How many devices there are.
    pub fn len(&self) -> usize {
        self.devices
            .iter()
            .map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }

    /// Whether there is no device.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the cache from the store, and forgets devices that are no longer there.
    pub async fn reload(&self, store: &Store) -> Result<(), StoreError> {
        let mut after = 0;
        let mut present = std::collections::HashSet::new();
        loop {
            let turn = self.paging.write().await;
            let page = store
                .read(move |tx| devices::hot_page(tx, after, PAGE))
                .await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for hot in page {
                present.insert(hot.uuid);
                self.put(hot);
            }
            drop(turn);
        }
        let gone: Vec<DeviceId> = self
            .slots()
            .into_iter()
            .map(|slot| slot.uuid)
            .filter(|uuid| !present.contains(uuid))
            .collect();
        for uuid in gone {
            // It may have enrolled since its page was read.
            self.refresh(store, uuid).await?;
        }
        Ok(())
    }

    /// Reads one device again; wakes whoever waits for it.
    pub async fn refresh(&self, store: &Store, uuid: DeviceId) -> Result<(), StoreError> {
        let _no_page = self.paging.read().await;
        let _turn = self.turns[device_shard(uuid)].lock().await;
        match store.read(move |tx| devices::hot_one(tx, uuid)).await? {
            Some(hot) => self.put(hot),
            None => self.remove(uuid),
        }
        Ok(())
    }

    /// Devices heard of since this was last asked, with when.
    pub fn take_seen(&self) -> Vec<(i64, Timestamp)> {
        self.slots()
            .into_iter()
            .filter_map(|slot| {
                let seen = slot.seen_at.load(Ordering::Relaxed);
                (slot.flushed_at.swap(seen, Ordering::Relaxed) < seen)
                    .then(|| (slot.row, Timestamp::from_millis(seen)))
            })
            .collect()
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        let mut slots = Vec::new();
        for shard in &self.devices {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            slots.extend(shard.values().cloned());
        }
        slots
    }

    fn put(&self, hot: Hot) {
        let uuid = hot.uuid;
        let (served, held) = self.serve(uuid, hot.target);
        let served = Arc::new(served);
        let existing = self.get(uuid).filter(|slot| slot.row == hot.id);
        let stale_hash = if let Some(slot) = existing {
            let old = {
                let mut place = slot.served.write().unwrap_or_else(PoisonError::into_inner);
                // Two refreshes may overtake each other; a generation never goes back.
                if place.generation > served.generation {
                    self.body_bytes.fetch_sub(held, Ordering::Relaxed);
                    None
                } else {
                    Some(std::mem::replace(&mut *place, served))
                }
            };
            if let Some(old) = old {
                let freed = old.body.as_ref().map_or(0, Bytes::len);
                self.body_bytes.fetch_sub(freed, Ordering::Relaxed);
            }
            let mut hash = slot
                .token_hash
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let stale = (*hash != hot.token_hash).then(|| hash.clone());
            hash.clone_from(&hot.token_hash);
            drop(hash);
            let is_quarantined = hot.is_quarantined;
            slot.is_quarantined.store(is_quarantined, Ordering::Relaxed);
            slot.changed.notify_waiters();
            stale
        } else {
            self.remove(uuid);
            let slot = Arc::new(Slot {
                uuid,
                row: hot.id,
                served: RwLock::new(served),
                token_hash: RwLock::new(hot.token_hash.clone()),
                is_quarantined: AtomicBool::new(hot.is_quarantined),
                seen_at: AtomicI64::new(0),
                flushed_at: AtomicI64::new(0),
                changed: Notify::new(),
            });
            self.devices[device_shard(uuid)]
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(uuid, slot);
            None
        };
        if let Some(hash) = stale_hash {
            self.forget_token(&hash);
        }
        self.tokens[token_shard(&hot.token_hash)]
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(hot.token_hash, uuid);
    }

    fn remove(&self, uuid: DeviceId) {
        let removed = self.devices[device_shard(uuid)]
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&uuid);
        if let Some(slot) = removed {
            let hash = slot
                .token_hash
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            self.forget_token(&hash);
            let freed = slot.served().body.as_ref().map_or(0, Bytes::len);
            self.body_bytes.fetch_sub(freed, Ordering::Relaxed);
            slot.changed.notify_waiters();
        }
    }

    fn forget_token(&self, hash: &str) {
        self.tokens[token_shard(hash)]
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(hash);
    }

    fn serve(&self, uuid: DeviceId, target: Option<(String, u64, String)>) -> (Served, usize) {
        let (tag, generation, body) = target.unwrap_or_else(|| empty(uuid));
        let size = body.len();
        let fits = self.body_bytes.fetch_add(size, Ordering::Relaxed) + size <= BODY_BUDGET;
        if !fits {
            self.body_bytes.fetch_sub(size, Ordering::Relaxed);
        }
        let served = Served {
            // An `ETag` of ours is hex in quotes; the empty fallback only means one poll too many.
            etag: HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\"")),
            generation,
            body: fits.then(|| Bytes::from(body)),
        };
        (served, if fits { size } else { 0 })
    }
}

/// What a device is served that was never given a target: `ETag`, generation, body.
///
/// # Panics
/// Never: an empty target is plain data.
pub fn empty(uuid: DeviceId) -> (String, u64, String) {
    let state = TargetState::empty(uuid);
    let body = serde_json::to_string(&state).expect("an empty target is plain data");
    (etag(body.as_bytes()), state.generation, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c02_bodies_beyond_the_budget_are_left_to_the_store_and_room_comes_back() {
        let live = Live::default();
        let size = 4 * 1024 * 1024;
        let fit = BODY_BUDGET / size;
        for n in 0..fit + 5 {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            let uuid = DeviceId::from_random(bytes);
            for generation in 1..=2 {
                live.put(Hot {
                    id: i64::try_from(n).unwrap() + 1,
                    uuid,
                    is_quarantined: false,
                    token_hash: format!("{n:064x}"),
                    target: Some(("\"tag\"".to_owned(), generation, "x".repeat(size))),
                });
            }
        }
        let slots = live.slots();
        let kept = slots.iter().filter(|slot| slot.served().body.is_some());
        // The last one that fits has no room for its second body beside its first.
        assert!((fit - 1..=fit).contains(&kept.count()));
        assert!(slots.iter().all(|slot| slot.served().generation == 2));
        assert!(live.body_bytes.load(Ordering::Relaxed) <= BODY_BUDGET);
        for slot in slots {
            live.remove(slot.uuid);
        }
        assert_eq!(live.body_bytes.load(Ordering::Relaxed), 0);
    }
}
