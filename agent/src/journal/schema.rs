//! Owns the journal's tables, its settings, and what to do with a damaged file.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};

use super::JournalError;

/// The format that this agent writes. SQLite's `user_version` keeps it in its lower half. What a later agent adds
/// beside it (tables and columns with defaults, which this one neither reads nor writes) may be counted in the upper
/// half: an update of the agent can be taken back, so that one version must be able to go on with the journal of
/// the next. A new format waits until the version before it can read it.
const FORMAT: i64 = 1;
const FORMAT_BITS: i64 = 0xffff;

pub(super) const TABLES: &str = "
create table meta (key text primary key, value integer not null) without rowid;
insert into meta (key, value) values ('name', abs(random() / 2));
create table target (
    id integer primary key check (id = 1),
    body blob not null,
    etag text,
    generation integer not null,
    received_at integer not null
);
create table services (
    app text not null,
    service text not null,
    history text not null,
    primary key (app, service)
) without rowid;
create table intents (
    id integer primary key,
    app text not null,
    service text not null,
    step text not null,
    candidate text,
    begun_at integer not null
);
";

const LATER_TABLES: &str = "
create table if not exists pulled (
    image text primary key,
    app text not null,
    service text not null
) without rowid;
";

/// Pages of a journal that are checked on opening: a target of 5 MB and all that belongs to it have far
/// fewer. A larger
/// file, which no agent wrote, would keep the device waiting at each start.
const MAX_CHECKED_PAGES: i64 = 8_192;

/// Settings of every connection that writes.
pub(super) fn prepare(db: &Connection) -> rusqlite::Result<()> {
    // FULL: an intent is on the disk before its effect begins. The cache is small because the whole
    // journal is: a few pages.
    db.execute_batch(
        "pragma journal_mode = wal;
         pragma synchronous = full;
         pragma cache_size = -128;
         pragma journal_size_limit = 262144;
         pragma busy_timeout = 5000;",
    )?;
    let pages: i64 = db.query_row("pragma page_count", [], |row| row.get(0))?;
    if pages > MAX_CHECKED_PAGES {
        return Ok(());
    }
    let verdict: String = db.query_row("pragma quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
        Some(verdict),
    ))
}

/// Settings of a connection that only reads.
pub(super) fn read_only(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch("pragma busy_timeout = 5000; pragma query_only = on;")
}

/// Brings the file to this agent's format; a newer file is refused.
pub(super) fn migrate(db: &Connection) -> Result<(), JournalError> {
    let found: i64 = db
        .query_row("pragma user_version", [], |row| row.get(0))
        .map_err(JournalError::Read)?;
    if found & FORMAT_BITS > FORMAT || found < 0 {
        return Err(JournalError::Newer {
            found,
            known: FORMAT,
        });
    }
    if found & FORMAT_BITS == FORMAT {
        // What older agents did not write and do not read changes no format, so that one of them can be
        // installed again. Nothing is written when it is there.
        return db.execute_batch(LATER_TABLES).map_err(JournalError::Write);
    }
    let write = || -> rusqlite::Result<()> {
        let tx = db.unchecked_transaction()?;
        tx.execute_batch(TABLES)?;
        tx.execute_batch(LATER_TABLES)?;
        tx.pragma_update(None, "user_version", FORMAT)?;
        tx.commit()
    };
    write().map_err(JournalError::Write)
}

/// Whether an error says that the file is damaged, rather than busy, full or forbidden.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// Makes the file readable by its owner only before SQLite would make it readable by all. One that is there
/// and cannot be opened for writing may still be read.
pub(super) fn make_private(path: &Path) -> std::io::Result<()> {
    let made = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path);
    match made {
        Err(error) if !path.is_file() => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Moves a damaged file aside and removes its companions; the one from the time before is overwritten, so that
/// damage never fills the disk.
pub(super) fn move_aside(path: &Path) -> std::io::Result<PathBuf> {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = with(".damaged");
    std::fs::rename(path, &aside)?;
    for companion in ["-wal", "-shm"] {
        match std::fs::remove_file(with(companion)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(aside)
}
