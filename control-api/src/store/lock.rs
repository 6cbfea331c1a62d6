//! Owns the lock that says who works with a SQLite file: one server, or one restore.
//!
//! The kernel lets go of it when its holder ends, however it ends. Refuses to wait: a second server would answer
//! polls from a memory of its own, and a restore under a running server would be lost.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::backup::{beside, give_to_owner};

/// Ends the name of the file that is locked: the database itself is replaced by a restore.
const SUFFIX: &str = ".lock";

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("another holdfast-api works with {0}: stop it first")]
    Held(PathBuf),
    /// The file cannot be made or locked.
    #[error("cannot lock {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The right to work with a SQLite file, for as long as it is kept.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of this database.
    ///
    /// # Errors
    /// When somebody else has it, or its file cannot be used.
    pub fn take(database: &Path) -> Result<Self, LockError> {
        let path = beside(database, SUFFIX);
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        // Who may not give it away made it for themselves.
        let _ = give_to_owner(&path);
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held(database.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}
