//! Owns the SQLite side of the seam: one writer, a few readers, durable commits.
//!
//! Refuses to open a damaged file: an empty store in its place would look like an empty fleet.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::db::{Driver, Row, StoreError, Tx, Value};
use super::{Access, Attempt, conclude, migrate};

/// Reads that may run side by side: enough for a dashboard while reports are written.
const READERS: usize = 4;
/// How long a statement waits for another program's lock (a backup, say) before it is a conflict.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How long a request queues for the writer or a reader before it is told to come back.
const QUEUE_WAIT: Duration = Duration::from_secs(10);
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
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut writer = connect(path, OpenFlags::default())?;
        // `foreign_keys` is off while migrating would rebuild tables; ours only add, so it stays on.
        migrate::sqlite(&mut writer)?;
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
        })
    }

    pub(super) async fn permit(&self, access: Access) -> Result<OwnedSemaphorePermit, StoreError> {
        let turn = match access {
            Access::Write => &self.write_turn,
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
                run(&mut connection, TransactionBehavior::Immediate, work)
            }
            Access::Read => {
                let mut reader = Borrowed::take(&self.readers);
                match &mut reader.connection {
                    Some(connection) => run(connection, TransactionBehavior::Deferred, work),
                    None => Attempt::Failed(StoreError::Busy(None).into()),
                }
            }
        }
    }
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

fn run<T, E: From<StoreError>>(
    connection: &mut Connection,
    behaviour: TransactionBehavior,
    work: &dyn Fn(&mut Tx<'_>) -> Result<T, E>,
) -> Attempt<T, E> {
    match connection.transaction_with_behavior(behaviour) {
        Ok(tx) => {
            let mut tx = Tx::new(Driver::Sqlite(tx));
            let outcome = work(&mut tx);
            conclude(tx, outcome)
        }
        Err(error) => {
            let error = StoreError::from(error);
            if error.is_conflict() {
                Attempt::Conflict(error)
            } else {
                Attempt::Failed(error.into())
            }
        }
    }
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(LOCK_WAIT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let damage = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            StoreError::Damaged(error.to_string())
        }
        Some(_) | None => StoreError::Sqlite(error),
    };
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(damage)?;
    // FULL: an acknowledged write must survive a power cut, and WAL syncs only at checkpoints else.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    let verdict: String = connection
        .query_row("pragma quick_check(1)", [], |row| row.get(0))
        .map_err(damage)?;
    if verdict == "ok" {
        Ok(connection)
    } else {
        Err(StoreError::Damaged(verdict))
    }
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
    let mut statement = tx.prepare_cached(sql)?;
    bind(&mut statement, params)?;
    Ok(statement.raw_execute()? as u64)
}

pub(super) fn query(
    tx: &Transaction<'_>,
    sql: &'static str,
    params: &[Value],
) -> Result<Vec<Row>, StoreError> {
    let mut statement = tx.prepare_cached(sql)?;
    bind(&mut statement, params)?;
    let columns = statement.column_count();
    let mut rows = statement.raw_query();
    let mut answer = Vec::new();
    while let Some(row) = rows.next()? {
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
