//! Owns the control store: one place to run a transaction, on SQLite or PostgreSQL.
//!
//! Table files are plain functions on a `Tx`; their SQL is written once. Refuses SQL that is not a
//! literal (`&'static str`) and callers that hold a transaction across an await.

pub mod approvals;
pub mod audit;
pub mod backup;
pub mod credentials;
pub mod db;
pub mod deliveries;
pub mod devices;
pub mod enrolment_keys;
pub mod events;
pub mod fleets;
pub mod generations;
pub mod history;
pub mod image_updates;
pub mod images;
pub mod leases;
pub mod lock;
mod migrate;
pub mod notification_channels;
pub mod notification_deliveries;
pub mod policies;
mod postgres;
pub mod releases;
pub mod reports;
pub mod resolutions;
pub mod restore;
pub mod retention;
pub mod rollouts;
mod sqlite;
pub mod tag_candidates;
pub mod tag_history;
pub mod targets;
pub mod tokens;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::id::DeviceId;
use tokio::sync::{broadcast, watch};

use crate::clock::Stopwatch;
use crate::retry;
use db::News;
pub use db::{StoreError, Tx};

/// How long a transaction is tried again: behind another program's lock each attempt takes seconds, and a client
/// that was told to come back is better off than one that waits.
const CONFLICT_PATIENCE: Duration = Duration::from_secs(10);
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
    announcer: Announcer,
}

/// Where this process hears of what was committed, by itself or (on PostgreSQL) by others.
#[derive(Debug, Clone)]
struct Announcer {
    changes: broadcast::Sender<Change>,
    /// Counts the times there were new events.
    events: watch::Sender<u64>,
}

impl Announcer {
    fn new() -> Self {
        let (changes, _) = broadcast::channel(ANNOUNCEMENT_BACKLOG);
        let (events, _) = watch::channel(0);
        Self { changes, events }
    }

    fn change(&self, change: Change) {
        // No receiver only means that no cache is running.
        let _ = self.changes.send(change);
    }

    fn new_events(&self) {
        self.events.send_modify(|times| *times += 1);
    }
}

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// To work with: made when it is not there, brought up to date.
    Serve,
    /// To look at: it must be there and up to date, and stays as it is.
    Look,
}

/// What a transaction may do, chosen by the verb the caller uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Write,
    Read,
}

/// How one attempt at a transaction ended.
enum Attempt<T, E> {
    Done(T, News),
    Failed(E),
    Conflict(StoreError),
}

impl Store {
    /// Opens the store and brings its tables up to date.
    ///
    /// # Errors
    /// When it cannot be reached, is damaged, or was migrated by a different program.
    pub async fn open(location: Location) -> Result<Self, StoreError> {
        Self::open_to(location, Opening::Serve).await
    }

    /// Opens the store only to read it, beside the server that works with it.
    ///
    /// # Errors
    /// When it cannot be reached, is damaged, is not there, or is not of this program's version.
    pub async fn look(location: Location) -> Result<Self, StoreError> {
        Self::open_to(location, Opening::Look).await
    }

    async fn open_to(location: Location, opening: Opening) -> Result<Self, StoreError> {
        let announcer = Announcer::new();
        let heard = announcer.clone();
        let backend = blocking(move || match location {
            Location::Sqlite(path) => sqlite::Database::open(&path, opening).map(Backend::Sqlite),
            Location::Postgres(url) => {
                postgres::Database::open(&url, opening, heard).map(Backend::Postgres)
            }
        })
        .await??;
        Ok(Self {
            backend: Arc::new(backend),
            announcer,
        })
    }

    /// Whether other programs may work on the same store.
    pub fn is_shared(&self) -> bool {
        matches!(*self.backend, Backend::Postgres(_))
    }

    /// Damage that was met since the store was opened: from then on nothing is written.
    ///
    /// # Errors
    /// When there is some.
    pub fn is_sound(&self) -> Result<(), StoreError> {
        match &*self.backend {
            Backend::Sqlite(database) => database.is_sound(),
            Backend::Postgres(_) => Ok(()),
        }
    }

    /// Changes of devices committed from now on, by this process or (on PostgreSQL) any other.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.announcer.changes.subscribe()
    }

    /// Changes whenever there may be new events, recorded by this process or (on PostgreSQL) any other.
    pub fn new_events(&self) -> watch::Receiver<u64> {
        self.announcer.events.subscribe()
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
        let mut is_again = false;
        let begun = Stopwatch::start();
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
                    Backend::Postgres(database) => database.attempt(access, is_again, &*work),
                }
            })
            .await?;
            match attempt {
                Attempt::Done(value, news) => {
                    for device in news.devices {
                        self.announcer.change(Change::Device(device));
                    }
                    if news.events {
                        self.announcer.new_events();
                    }
                    return Ok(value);
                }
                Attempt::Failed(error) => return Err(error),
                Attempt::Conflict(error) => {
                    match waits.next().filter(|_| begun.elapsed() < CONFLICT_PATIENCE) {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => return Err(StoreError::Busy(Some(Box::new(error))).into()),
                    }
                }
            }
            is_again = true;
        }
    }

    /// Gives room that deleted rows left back to the file system; PostgreSQL does so by itself.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn give_back_room(&self) -> Result<(), StoreError> {
        loop {
            let backend = Arc::clone(&self.backend);
            let permit = match &*backend {
                Backend::Sqlite(database) => database.permit(Access::Write).await?,
                Backend::Postgres(_) => return Ok(()),
            };
            let has_more = blocking(move || {
                let _permit = permit;
                match &*backend {
                    Backend::Sqlite(database) => database.give_back_room(),
                    Backend::Postgres(_) => Ok(false),
                }
            })
            .await??;
            if !has_more {
                return Ok(());
            }
        }
    }
}

/// Judges one attempt, the same for both databases.
fn conclude<T, E: From<StoreError>>(tx: Tx<'_>, outcome: Result<T, E>) -> Attempt<T, E> {
    match outcome {
        Ok(value) => match tx.commit() {
            Ok(news) => Attempt::Done(value, news),
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
