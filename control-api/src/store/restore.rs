//! Owns putting a copy of a SQLite store in its place, and what a start must refuse when that broke off.
//!
//! The copy is made ready beside the database and takes its place in one step; the old one is kept. Refuses to
//! work under a running server.

use std::fs::File;
use std::path::{Path, PathBuf};

use holdfast_proto::time::Timestamp;
use rusqlite::{OpenFlags, TransactionBehavior};
use serde_json::json;

use super::audit::{self, Actor, NewEntry};
use super::backup::{self, At as _, BackupError, Content, beside, inspect, remove, sync_folder};
use super::db::{Driver, StoreError, Tx};
use super::events::{self, NewEvent};
use super::lock::Lock;
use super::{history, migrate, sqlite};

/// Ends the name of the copy while it is made ready.
const COPY: &str = ".restore";
/// Ends the name of the copy that is ready: while it is there, the database may be half gone.
const READY: &str = ".restore-ready";
/// Ends the names of the files that SQLite keeps beside a database.
const JOURNAL: &str = "-wal";
const INDEX: &str = "-shm";
/// Numbers of events left out: more than were given out since the backup, so that whoever follows the stream
/// takes no new event for one they have seen.
const EVENTS_LEFT_OUT: i64 = 1_000_000;

/// What was put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What is in it.
    pub content: Content,
    /// Where the database is that was there before, if there was one.
    pub kept: Option<PathBuf>,
}

/// The beginning of a restore that broke off, if there is one.
pub(super) fn half_restored(database: &Path) -> Option<PathBuf> {
    let ready = beside(database, READY);
    ready.exists().then_some(ready)
}

/// Puts a backup in the database's place.
///
/// # Errors
/// As [`BackupError`] says. Until the copy is ready the database is untouched; after that the step is finished by
/// another call, and no server starts before.
pub fn restore(database: &Path, from: &Path, now: Timestamp) -> Result<Restored, BackupError> {
    let folder = backup::folder(database);
    std::fs::create_dir_all(folder).at(folder)?;
    let _lock = Lock::take(database)?;
    inspect(from)?;
    let copy = beside(database, COPY);
    let content = make_ready(from, &copy, now)?;
    let ready = beside(database, READY);
    std::fs::rename(&copy, &ready).at(&ready)?;
    sync_folder(database)?;
    let kept = keep(database, now)?;
    std::fs::rename(&ready, database).at(database)?;
    sync_folder(database)?;
    Ok(Restored { content, kept })
}

/// Copies the backup beside the database and brings it up to date, as one file without a journal.
fn make_ready(from: &Path, copy: &Path, now: Timestamp) -> Result<Content, BackupError> {
    for leftover in [JOURNAL, INDEX] {
        remove(&beside(copy, leftover))?;
    }
    backup::copy(from, OpenFlags::SQLITE_OPEN_READ_ONLY, copy)?;
    write_down(copy, now).at(copy)?;
    backup::give_to_owner(copy).at(copy)?;
    File::open(copy).and_then(|file| file.sync_all()).at(copy)?;
    inspect(copy)
}

/// Notes in the copy that it was put back.
fn write_down(copy: &Path, now: Timestamp) -> Result<(), StoreError> {
    let mut connection = sqlite::connect(copy, OpenFlags::default())?;
    migrate::sqlite(&mut connection)?;
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut tx = Tx::new(Driver::Sqlite(tx));
    let actor = Actor {
        kind: "system",
        name: "restore".to_owned(),
        request_id: "restore".to_owned(),
    };
    let last = history::head(&mut tx)?.last_event;
    let detail = json!({ "last_event": last });
    history::skip_events(&mut tx, EVENTS_LEFT_OUT)?;
    let entry = NewEntry {
        action: "store.restore",
        subject_kind: "store",
        subject: "store".to_owned(),
        before: None,
        after: Some(detail.clone()),
    };
    audit::append(&mut tx, &actor, &entry, now)?;
    let event = NewEvent {
        kind: "store.restored",
        device: None,
        subject: None,
        detail,
        delivery: None,
    };
    events::record(&mut tx, &event, now)?;
    tx.commit()?;
    // Folds the journal into the file, which is renamed without it.
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get(0))?;
    if mode == "delete" {
        Ok(())
    } else {
        Err(StoreError::Busy(None))
    }
}

/// Moves the database aside with its journal, which may hold its newest rows.
fn keep(database: &Path, now: Timestamp) -> Result<Option<PathBuf>, BackupError> {
    let time: String = now
        .to_string()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let kept = beside(database, &format!(".before-{time}"));
    // The index is made anew from the journal; under another name it would be wrong.
    remove(&beside(database, INDEX))?;
    let mut is_there = false;
    for suffix in [JOURNAL, ""] {
        let (old, new) = (beside(database, suffix), beside(&kept, suffix));
        if old.exists() {
            std::fs::rename(&old, &new).at(&old)?;
            is_there = true;
        }
    }
    sync_folder(database)?;
    Ok(is_there.then_some(kept))
}
