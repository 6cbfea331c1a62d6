//! Owns the control store: one place to run a transaction, on SQLite or PostgreSQL.
//!
//! Table files are plain functions on a `Tx`; their SQL is written once. Refuses SQL that is not a
//! literal (`&'static str`) and callers that hold a transaction across an await.

pub mod audit;
pub mod credentials;
pub mod db;
pub mod devices;
pub mod enrolment_keys;
pub mod events;
mod migrate;
mod postgres;
pub mod reports;
pub mod resolutions;
mod sqlite;
pub mod tag_candidates;
pub mod tag_history;
pub mod targets;
pub mod tokens;

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_proto::id::DeviceId;
use tokio::sync::broadcast;

use crate::retry;
pub use db::{StoreError, Tx};

/// Announcements a slow listener may lag behind before it has to reload everything.
const ANNOUNCEMENT_BACKLOG: usize = 4_096;

/// Where the store lives.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// One file, for a single process.
    Sqlite(PathBuf),
    /// A connection string; several processes may share it.
    Postgres(String),
}

impl std::fmt::Debug for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => f.debug_tuple("Sqlite").field(path).finish(),
            // The connection string carries a password.
            Self::Postgres(_) => f.write_str("Postgres(…)"),
        }
    }
}

/// What changed, for the caches of every process on this store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The target, token or existence of this device.
    Device(DeviceId),
    /// Announcements may have been missed: forget everything and read again.
    Everything,
}

#[derive(Debug)]
enum Backend {
    Sqlite(sqlite::Database),
    Postgres(postgres::Database),
}

/// The control store; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Arc<Backend>,
    changes: broadcast::Sender<Change>,
}

/// What a transaction may do, chosen by the verb the caller uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Write,
    Read,
}

/// How one attempt at a transaction ended.
enum Attempt<T, E> {
    Done(T, Vec<DeviceId>),
    Failed(E),
    Conflict(StoreError),
}

impl Store {
    /// Opens the store and brings its tables up to date.
    ///
    /// # Errors
    /// When it cannot be reached, is damaged, or was migrated by a different program.
    pub async fn open(location: Location) -> Result<Self, StoreError> {
        let (changes, _) = broadcast::channel(ANNOUNCEMENT_BACKLOG);
        let sender = changes.clone();
        let backend = blocking(move || match location {
            Location::Sqlite(path) => sqlite::Database::open(&path).map(Backend::Sqlite),
            Location::Postgres(url) => {
                postgres::Database::open(&url, sender).map(Backend::Postgres)
            }
        })
        .await??;
        Ok(Self {
            backend: Arc::new(backend),
            changes,
        })
    }

    /// Changes of devices committed from now on, by this process or (on PostgreSQL) any other.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Runs `work` in one serialisable transaction; on conflict with another one, again.
    ///
    /// `work` may run several times, so it must not have effects outside its `Tx`.
    ///
    /// # Errors
    /// What `work` returned, after which nothing is stored; or that the store could not do it.
    pub async fn transact<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: Fn(&mut Tx<'_>) -> Result<T, E> + Send + Sync + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.run(Access::Write, work).await
    }

    /// Runs `work` on one consistent snapshot that it cannot change.
    ///
    /// # Errors
    /// As [`Store::transact`].
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: Fn(&mut Tx<'_>) -> Result<T, E> + Send + Sync + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.run(Access::Read, work).await
    }

    async fn run<T, E, F>(&self, access: Access, work: F) -> Result<T, E>
    where
        F: Fn(&mut Tx<'_>) -> Result<T, E> + Send + Sync + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let work = Arc::new(work);
        let mut waits = retry::transaction_conflict();
        loop {
            let backend = Arc::clone(&self.backend);
            let permit = match &*backend {
                Backend::Sqlite(database) => database.permit(access).await?,
                Backend::Postgres(database) => database.permit().await?,
            };
            let work = Arc::clone(&work);
            let attempt = blocking(move || {
                let _permit = permit;
                match &*backend {
                    Backend::Sqlite(database) => database.attempt(access, &*work),
                    Backend::Postgres(database) => database.attempt(access, &*work),
                }
            })
            .await?;
            match attempt {
                Attempt::Done(value, announced) => {
                    for device in announced {
                        // No receiver only means that no cache is running.
                        let _ = self.changes.send(Change::Device(device));
                    }
                    return Ok(value);
                }
                Attempt::Failed(error) => return Err(error),
                Attempt::Conflict(error) => match waits.next() {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(StoreError::Busy(Some(Box::new(error))).into()),
                },
            }
        }
    }
}

/// Judges one attempt, the same for both databases.
fn conclude<T, E: From<StoreError>>(tx: Tx<'_>, outcome: Result<T, E>) -> Attempt<T, E> {
    match outcome {
        Ok(value) => match tx.commit() {
            Ok(announced) => Attempt::Done(value, announced),
            Err(error) if error.is_conflict() => Attempt::Conflict(error),
            Err(error) => Attempt::Failed(error.into()),
        },
        Err(error) => match tx.into_conflict() {
            Some(conflict) => Attempt::Conflict(conflict),
            None => Attempt::Failed(error),
        },
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| StoreError::Interrupted)
}
