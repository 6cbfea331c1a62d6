//! Owns copies of a SQLite store, made while a server writes to it.
//!
//! A copy is one consistent moment, without the room of deleted rows. Refuses to overwrite a file, and to call one
//! a backup that it has not read back.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::db::StoreError;
use super::lock::LockError;
use super::migrate::{self, Tables};
use super::sqlite;

/// How long the copy waits for somebody who holds the whole file, as recovery after a crash does.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// Ends the name of a copy that is not finished.
const PARTIAL: &str = ".partial";
/// What a backup is looked at with: all of it, and that indexes and rows agree.
const CHECK: &str = "pragma integrity_check(1)";

/// Why there is no copy, or why it was not put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file is there already.
    #[error("{0} is there already, and is not overwritten")]
    Exists(PathBuf),
    /// The name cannot be given to SQLite.
    #[error("{0} is not a name in UTF-8")]
    Name(PathBuf),
    /// The file is no copy of a store.
    #[error("{0} is not a backup of a Holdfast database")]
    NotOne(PathBuf),
    /// The file cannot be read back, or the database cannot be read.
    #[error("cannot use {path}")]
    Store {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// A file cannot be written, or put in its place.
    #[error("cannot write {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A server works with the database.
    #[error(transparent)]
    Locked(#[from] LockError),
}

/// Names the file in an error.
pub(super) trait At<T> {
    fn at(self, path: &Path) -> Result<T, BackupError>;
}

impl<T> At<T> for Result<T, std::io::Error> {
    fn at(self, path: &Path) -> Result<T, BackupError> {
        self.map_err(|source| BackupError::Io {
            path: path.to_owned(),
            source,
        })
    }
}

impl<T> At<T> for Result<T, StoreError> {
    fn at(self, path: &Path) -> Result<T, BackupError> {
        self.map_err(|source| BackupError::Store {
            path: path.to_owned(),
            source,
        })
    }
}

impl<T> At<T> for Result<T, rusqlite::Error> {
    fn at(self, path: &Path) -> Result<T, BackupError> {
        self.map_err(StoreError::from).at(path)
    }
}

/// What is in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// How many devices it knows.
    pub devices: i64,
    /// Its size.
    pub size_bytes: u64,
}

/// A name that begins as another one.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The folder that a file is in.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

/// Makes a file durable in its folder, under the name it has now.
pub(super) fn sync_folder(path: &Path) -> Result<(), BackupError> {
    let folder = folder(path);
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .at(folder)
}

/// Gives a file to whoever owns its folder: root may restore what another user serves.
///
/// # Errors
/// When this user may not give files away.
pub(super) fn give_to_owner(path: &Path) -> std::io::Result<()> {
    let (folder, file) = (std::fs::metadata(folder(path))?, std::fs::metadata(path)?);
    if folder.uid() == file.uid() {
        return Ok(());
    }
    chown(path, Some(folder.uid()), Some(folder.gid()))
}

/// A new file that only its owner reads.
pub(super) fn new_file(path: &Path) -> Result<File, BackupError> {
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(BackupError::Exists(path.to_owned()))
        }
        made => made.at(path),
    }
}

/// Removes a file, if there is one.
pub(super) fn remove(path: &Path) -> Result<(), BackupError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.at(path),
    }
}

/// Copies the store to a new file, which a server may write to meanwhile.
///
/// # Errors
/// As [`BackupError`] says; then there is no new file.
pub fn backup(database: &Path, to: &Path) -> Result<Content, BackupError> {
    if !database.exists() {
        return Err(StoreError::Missing(database.to_owned())).at(database);
    }
    // Holds the name from here on, empty: no two backups write to one file.
    new_file(to)?;
    let partial = beside(to, PARTIAL);
    // Not read-only: the first reader after a crash brings the journal in order.
    let flags = OpenFlags::default() & !OpenFlags::SQLITE_OPEN_CREATE;
    let made = copy(database, flags, &partial)
        .and_then(|()| inspect(&partial))
        .and_then(|content| {
            std::fs::rename(&partial, to).at(to)?;
            sync_folder(to)?;
            Ok(content)
        });
    if made.is_err() {
        // What cannot be removed is empty or unfinished, and no restore takes it for a backup.
        let _ = std::fs::remove_file(&partial);
        let _ = std::fs::remove_file(to);
    }
    made
}

/// Copies a store as SQLite reads it, with what is only in its journal yet, and makes the copy durable.
pub(super) fn copy(from: &Path, flags: OpenFlags, to: &Path) -> Result<(), BackupError> {
    remove(to)?;
    let file = new_file(to)?;
    let name = to
        .to_str()
        .ok_or_else(|| BackupError::Name(to.to_owned()))?;
    let source = Connection::open_with_flags(from, flags).at(from)?;
    source.busy_timeout(LOCK_WAIT).at(from)?;
    if !sqlite::is_incremental(&source).at(from)? {
        // Meant for the copy, which takes it over; a file that is only read refuses to note it for itself.
        let _ = source.pragma_update(None, "auto_vacuum", "INCREMENTAL");
    }
    source.execute("vacuum into ?1", [name]).at(from)?;
    file.sync_all().at(to)
}

/// Reads a copy from end to end and says what is in it.
///
/// # Errors
/// When it is damaged, of a newer program, or no copy of a store at all.
pub fn inspect(file: &Path) -> Result<Content, BackupError> {
    let size_bytes = std::fs::metadata(file).at(file)?.len();
    let connection =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).at(file)?;
    sqlite::check(&connection, CHECK).at(file)?;
    if migrate::judge_sqlite(&connection).at(file)? == Tables::None {
        return Err(BackupError::NotOne(file.to_owned()));
    }
    let devices = connection
        .query_row("select count(*) from devices", [], |row| row.get(0))
        .at(file)?;
    Ok(Content {
        devices,
        size_bytes,
    })
}
