//! Owns the SQLite side of the seam: one writer, a few readers, durable commits.
//!
//! Refuses to open a damaged file: an empty store in its place would look like an empty fleet. Refuses to write to
//! one that turns out to be damaged.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::backup::{beside, folder};
use super::db::{Driver, Row, StoreError, Tx, Value};
use super::restore::half_restored;
use super::{Access, Attempt, Opening, conclude, migrate};

/// Reads that may run side by side: enough for a dashboard while reports are written.
const READERS: usize = 4;
/// How long a statement waits for another program's lock (a backup, say) before it is a conflict.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How long a request queues for the writer or a reader before it is told to come back.
const QUEUE_WAIT: Duration = Duration::from_secs(10);
/// The journal is cut back to this after it grew, as it does while a backup reads: 64 MiB.
const JOURNAL_LIMIT: i64 = 64 * 1024 * 1024;
/// Pages given back to the file system at a time, 16 MiB: writers get their turn in between.
const PAGES_GIVEN_BACK: i64 = 4_096;
/// Ends the name of a new database until it has all its tables.
const UNFINISHED: &str = ".unfinished";
/// Prepared statements kept per connection: more than this program has.
const STATEMENTS: usize = 128;
/// The names SQLite knows our parameters by, in order.
const NAMES: [&str; 16] = [
    "$1", "$2", "$3", "$4", "$5", "$6", "$7", "$8", "$9", "$10", "$11", "$12", "$13", "$14", "$15",
    "$16",
];

#[derive(Debug)]
pub(super) struct Database {
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    write_turn: Arc<Semaphore>,
    read_turn: Arc<Semaphore>,
    /// The first damage that was met.
    damage: OnceLock<String>,
}

impl Database {
    pub(super) fn open(path: &Path, opening: Opening) -> Result<Self, StoreError> {
        if let Some(beginning) = half_restored(path) {
            return Err(StoreError::HalfRestored(beginning));
        }
        let is_there = path.exists();
        // An empty file where a database was would be served as an empty fleet.
        if is_there && std::fs::metadata(path).is_ok_and(|file| file.len() == 0) {
            return Err(StoreError::Damaged("it is empty".to_owned()));
        }
        if !is_there && opening == Opening::Look {
            return Err(StoreError::Missing(path.to_owned()));
        }
        if !is_there {
            // It would be taken for the new one's journal, and it says that there was an old one.
            if beside(path, "-wal").exists() {
                return Err(StoreError::Damaged("only its journal is there".to_owned()));
            }
            make(path)?;
        }
        let mut writer = connect(path, OpenFlags::default())?;
        check(&writer, "pragma quick_check(1)")?;
        match opening {
            // `foreign_keys` is off while migrating would rebuild tables; ours only add, so it stays on.
            Opening::Serve => migrate::sqlite(&mut writer)?,
            Opening::Look => {
                migrate::judge_sqlite(&writer)?.must_be_current()?;
                writer.pragma_update(None, "query_only", "ON")?;
            }
        }
        let readers = (0..READERS)
            .map(|_| {
                let reader = connect(path, OpenFlags::default())?;
                reader.pragma_update(None, "query_only", "ON")?;
                Ok(reader)
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        Ok(Self {
            writer: Mutex::new(writer),
            readers: Mutex::new(readers),
            write_turn: Arc::new(Semaphore::new(1)),
            read_turn: Arc::new(Semaphore::new(READERS)),
            damage: OnceLock::new(),
        })
    }

    /// Refuses once damage was met: what is written to a damaged file may be lost, or damage more of it.
    pub(super) fn is_sound(&self) -> Result<(), StoreError> {
        self.damage
            .get()
            .map_or(Ok(()), |how| Err(StoreError::Damaged(how.clone())))
    }

    /// Gives some free pages back to the file system; says whether there are more.
    pub(super) fn give_back_room(&self) -> Result<bool, StoreError> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // A file from before this setting gives nothing back until it comes out of a backup.
        if !is_incremental(&writer)? {
            return Ok(false);
        }
        let free = || writer.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
        let before = free()?;
        writer
            .prepare(&format!("pragma incremental_vacuum({PAGES_GIVEN_BACK})"))?
            .query([])?
            .next()?;
        let after = free()?;
        Ok(after > 0 && after < before)
    }

    pub(super) async fn permit(&self, access: Access) -> Result<OwnedSemaphorePermit, StoreError> {
        let turn = match access {
            Access::Write => {
                self.is_sound()?;
                &self.write_turn
            }
            Access::Read => &self.read_turn,
        };
        match tokio::time::timeout(QUEUE_WAIT, Arc::clone(turn).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(StoreError::Busy(None)),
        }
    }

    pub(super) fn attempt<T, E: From<StoreError>>(
        &self,
        access: Access,
        work: &dyn Fn(&mut Tx<'_>) -> Result<T, E>,
    ) -> Attempt<T, E> {
        match access {
            Access::Write => {
                // A panic in `work` rolled its transaction back; the connection itself is sound.
                let mut connection = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
                self.run(&mut connection, TransactionBehavior::Immediate, work)
            }
            Access::Read => {
                let mut reader = Borrowed::take(&self.readers);
                match &mut reader.connection {
                    Some(connection) => self.run(connection, TransactionBehavior::Deferred, work),
                    None => Attempt::Failed(StoreError::Busy(None).into()),
                }
            }
        }
    }

    fn run<T, E: From<StoreError>>(
        &self,
        connection: &mut Connection,
        behaviour: TransactionBehavior,
        work: &dyn Fn(&mut Tx<'_>) -> Result<T, E>,
    ) -> Attempt<T, E> {
        match connection.transaction_with_behavior(behaviour) {
            Ok(tx) => {
                let mut tx = Tx::new(Driver::Sqlite(tx));
                let outcome = work(&mut tx);
                if let Some(how) = tx.damage() {
                    self.note_damage(how);
                }
                conclude(tx, outcome)
            }
            Err(error) => {
                let error = damage(error);
                if let StoreError::Damaged(how) = &error {
                    self.note_damage(how);
                }
                if error.is_conflict() {
                    Attempt::Conflict(error)
                } else {
                    Attempt::Failed(error.into())
                }
            }
        }
    }

    fn note_damage(&self, how: &str) {
        if self.damage.set(how.to_owned()).is_ok() {
            tracing::error!(
                error = how,
                "the database file is damaged: nothing is written any more until `holdfast-api restore FILE` \
                 put a backup in its place"
            );
        }
    }
}

/// Makes a new database, whole or not at all: a first start that was killed must not leave an empty file behind,
/// which the next one could not tell from a fleet that was lost.
fn make(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Make {
        path: path.to_owned(),
        source,
    };
    let fresh = beside(path, UNFINISHED);
    for suffix in ["", "-wal", "-shm"] {
        match std::fs::remove_file(beside(&fresh, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let mut connection = connect(&fresh, OpenFlags::default())?;
    migrate::sqlite(&mut connection)?;
    // Whoever closes it last writes its journal into it.
    connection.close().map_err(|(_, error)| error)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    std::fs::File::open(folder(path))
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

/// A reader that goes back to its place, also when the work panics.
struct Borrowed<'a> {
    home: &'a Mutex<Vec<Connection>>,
    connection: Option<Connection>,
}

impl<'a> Borrowed<'a> {
    fn take(home: &'a Mutex<Vec<Connection>>) -> Self {
        let connection = home.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { home, connection }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.home
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection);
        }
    }
}

/// What an error says about the file.
fn damage(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            StoreError::Damaged(error.to_string())
        }
        Some(_) | None => StoreError::Sqlite(error),
    }
}

/// Whether the file can give room back without being written anew.
pub(super) fn is_incremental(connection: &Connection) -> Result<bool, rusqlite::Error> {
    let mode: i64 = connection.pragma_query_value(None, "auto_vacuum", |row| row.get(0))?;
    Ok(mode == 2)
}

/// Refuses a damaged file; `pragma` says how closely it is looked at.
pub(super) fn check(connection: &Connection, pragma: &'static str) -> Result<(), StoreError> {
    let verdict: String = connection
        .query_row(pragma, [], |row| row.get(0))
        .map_err(damage)?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(StoreError::Damaged(verdict))
    }
}

pub(super) fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(LOCK_WAIT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Counts for a new file, and only before anything else is written to it.
    if !is_incremental(&connection).map_err(damage)? {
        connection
            .pragma_update(None, "auto_vacuum", "INCREMENTAL")
            .map_err(damage)?;
    }
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(damage)?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_LIMIT)?;
    // FULL: an acknowledged write must survive a power cut, and WAL syncs only at checkpoints else.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    Ok(connection)
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(value) => ValueRef::Integer(*value),
            Self::Text(value) => ValueRef::Text(value.as_bytes()),
        }))
    }
}

/// Binds by name: SQLite numbers `$n` by first appearance, not by `n`.
fn bind(statement: &mut rusqlite::CachedStatement<'_>, params: &[Value]) -> Result<(), StoreError> {
    debug_assert!(params.len() <= NAMES.len(), "more parameters than names");
    for (name, value) in NAMES.iter().zip(params) {
        if let Some(index) = statement.parameter_index(name)? {
            statement.raw_bind_parameter(index, value)?;
        }
    }
    Ok(())
}

pub(super) fn execute(
    tx: &Transaction<'_>,
    sql: &'static str,
    params: &[Value],
) -> Result<u64, StoreError> {
    let mut statement = tx.prepare_cached(sql).map_err(damage)?;
    bind(&mut statement, params)?;
    Ok(statement.raw_execute().map_err(damage)? as u64)
}

pub(super) fn query(
    tx: &Transaction<'_>,
    sql: &'static str,
    params: &[Value],
) -> Result<Vec<Row>, StoreError> {
    let mut statement = tx.prepare_cached(sql).map_err(damage)?;
    bind(&mut statement, params)?;
    let columns = statement.column_count();
    let mut rows = statement.raw_query();
    let mut answer = Vec::new();
    while let Some(row) = rows.next().map_err(damage)? {
        let values = (0..columns)
            .map(|column| match row.get_ref(column)? {
                ValueRef::Null => Ok(Value::Null),
                ValueRef::Integer(value) => Ok(Value::Int(value)),
                ValueRef::Text(bytes) => std::str::from_utf8(bytes)
                    .map(|text| Value::Text(text.to_owned()))
                    .map_err(|_| StoreError::Column {
                        statement: sql,
                        column,
                    }),
                ValueRef::Real(_) | ValueRef::Blob(_) => Err(StoreError::Column {
                    statement: sql,
                    column,
                }),
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        answer.push(Row {
            statement: sql,
            values,
        });
    }
    Ok(answer)
}
