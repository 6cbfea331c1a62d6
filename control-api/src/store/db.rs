//! Owns the one seam between SQL written once and the two databases.
//!
//! The portable subset: `$1` parameters, `BIGINT` and `TEXT` only, times as milliseconds, JSON as
//! text, `on conflict … do update`, `returning`, keyset pages. Refuses other value types, and SQL
//! built at run time: every statement is a literal.

use std::collections::HashMap;
use std::path::PathBuf;

use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;

/// The PostgreSQL channel on which replicas tell each other about devices.
pub(super) const CHANNEL: &str = "holdfast_devices";
/// The PostgreSQL channel on which replicas tell each other that there are new events.
pub(super) const EVENTS_CHANNEL: &str = "holdfast_events";

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Too many transactions at once, or a conflict that did not go away.
    #[error("the store is busy")]
    Busy(#[source] Option<Box<StoreError>>),
    /// A statement or a connection failed on SQLite.
    #[error("SQLite refused a statement")]
    Sqlite(#[from] rusqlite::Error),
    /// A statement or a connection failed on PostgreSQL.
    #[error("PostgreSQL refused a statement")]
    Postgres(#[from] postgres::Error),
    /// A column holds what this program did not write.
    #[error("column {column} of `{statement}` holds an unexpected value")]
    Column {
        /// Which statement read it.
        statement: &'static str,
        /// Which column, from zero.
        column: usize,
    },
    /// A stored document cannot be read any more.
    #[error("a stored {what} cannot be read")]
    Document {
        /// What kind of document.
        what: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The tables were made by a different version of this program.
    #[error("migration {version} in the database is not the one this program knows")]
    Migration {
        /// The migration that differs.
        version: i64,
    },
    /// The tables were made by a newer version of this program.
    #[error(
        "the database has migration {version}, which this program does not know: use a newer one"
    )]
    Newer {
        /// The migration that is not known.
        version: i64,
    },
    /// The tables were made by an older version of this program, and this use of them may not change them.
    #[error(
        "the tables are those of an older program: `holdfast-api serve` brings them up to date"
    )]
    Older,
    /// There is no database, where one must be.
    #[error("there is no database {0}")]
    Missing(PathBuf),
    /// A new database could not be put in its place.
    #[error("cannot make the database {path}")]
    Make {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The database is damaged.
    #[error("the database file is damaged: {0}")]
    Damaged(String),
    /// A restore was begun and broke off: what is there may be half of the old and half of the new.
    #[error("a restore broke off and left {0}: run `holdfast-api restore FILE` again")]
    HalfRestored(PathBuf),
    /// The blocking task ended without an answer.
    #[error("the store's work was interrupted")]
    Interrupted,
}

impl StoreError {
    /// Whether the same transaction may succeed when it is run again.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
            ),
            Self::Postgres(error) => error.code().is_some_and(|code| {
                *code == postgres::error::SqlState::T_R_SERIALIZATION_FAILURE
                    || *code == postgres::error::SqlState::T_R_DEADLOCK_DETECTED
            }),
            Self::Busy(_)
            | Self::Column { .. }
            | Self::Document { .. }
            | Self::Migration { .. }
            | Self::Newer { .. }
            | Self::Older
            | Self::Missing(_)
            | Self::Make { .. }
            | Self::Damaged(_)
            | Self::HalfRestored(_)
            | Self::Interrupted => false,
        }
    }

    /// Whether the store is away or overloaded, so that asking again later may help.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Busy(_) | Self::Interrupted => true,
            Self::Sqlite(error) => {
                self.is_conflict()
                    || matches!(
                        error.sqlite_error_code(),
                        Some(
                            rusqlite::ErrorCode::DiskFull
                                | rusqlite::ErrorCode::ReadOnly
                                | rusqlite::ErrorCode::SystemIoFailure
                                | rusqlite::ErrorCode::CannotOpen
                        )
                    )
            }
            // No SQLSTATE: the connection failed, not the statement.
            Self::Postgres(error) => error.code().is_none_or(|code| {
                ["08", "53", "57"].contains(&code.code().get(..2).unwrap_or_default())
            }),
            Self::Column { .. }
            | Self::Document { .. }
            | Self::Migration { .. }
            | Self::Newer { .. }
            | Self::Older
            | Self::Missing(_)
            | Self::Make { .. }
            | Self::Damaged(_)
            | Self::HalfRestored(_) => false,
        }
    }

    /// Whether a person has to act before another start can do better.
    pub fn needs_a_person(&self) -> bool {
        matches!(
            self,
            Self::Migration { .. } | Self::Newer { .. } | Self::Damaged(_) | Self::HalfRestored(_)
        )
    }
}

/// One parameter or one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// SQL null.
    Null,
    /// `BIGINT`; also truth values (0, 1) and times (milliseconds).
    Int(i64),
    /// `TEXT`; also JSON documents and digests in hex.
    Text(String),
}

macro_rules! value_from {
    ($($from:ty => |$name:ident| $make:expr),* $(,)?) => {$(
        impl From<$from> for Value {
            fn from($name: $from) -> Self {
                $make
            }
        }
    )*};
}

value_from! {
    i64 => |value| Self::Int(value),
    bool => |value| Self::Int(i64::from(value)),
    Timestamp => |value| Self::Int(value.as_millis()),
    &str => |value| Self::Text(value.to_owned()),
    &String => |value| Self::Text(value.clone()),
    String => |value| Self::Text(value),
    &DeviceId => |value| Self::Text(value.to_string()),
    DeviceId => |value| Self::Text(value.to_string()),
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Builds a parameter list from anything a [`Value`] can be made of.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$($crate::store::db::Value::from($value)),*]
    };
}

/// One row of an answer.
#[derive(Debug, Clone)]
pub struct Row {
    pub(super) statement: &'static str,
    pub(super) values: Vec<Value>,
}

impl Row {
    fn unexpected(&self, column: usize) -> StoreError {
        StoreError::Column {
            statement: self.statement,
            column,
        }
    }

    /// A number, or none for null.
    pub fn opt_int(&self, column: usize) -> Result<Option<i64>, StoreError> {
        match self.values.get(column) {
            Some(Value::Int(value)) => Ok(Some(*value)),
            Some(Value::Null) => Ok(None),
            Some(Value::Text(_)) | None => Err(self.unexpected(column)),
        }
    }

    /// A number.
    pub fn int(&self, column: usize) -> Result<i64, StoreError> {
        self.opt_int(column)?.ok_or_else(|| self.unexpected(column))
    }

    /// A text, or none for null.
    pub fn opt_text(&self, column: usize) -> Result<Option<&str>, StoreError> {
        match self.values.get(column) {
            Some(Value::Text(value)) => Ok(Some(value)),
            Some(Value::Null) => Ok(None),
            Some(Value::Int(_)) | None => Err(self.unexpected(column)),
        }
    }

    /// A text.
    pub fn text(&self, column: usize) -> Result<&str, StoreError> {
        self.opt_text(column)?
            .ok_or_else(|| self.unexpected(column))
    }

    /// A truth value.
    pub fn truth(&self, column: usize) -> Result<bool, StoreError> {
        Ok(self.int(column)? != 0)
    }

    /// A counter that is never negative.
    pub fn count(&self, column: usize) -> Result<u64, StoreError> {
        u64::try_from(self.int(column)?).map_err(|_| self.unexpected(column))
    }

    /// An instant.
    pub fn time(&self, column: usize) -> Result<Timestamp, StoreError> {
        self.int(column).map(Timestamp::from_millis)
    }

    /// An instant, or none for null.
    pub fn opt_time(&self, column: usize) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.opt_int(column)?.map(Timestamp::from_millis))
    }

    /// A text that parses as `T`, such as an id.
    pub fn parsed<T: std::str::FromStr>(&self, column: usize) -> Result<T, StoreError> {
        self.text(column)?
            .parse()
            .map_err(|_| self.unexpected(column))
    }

    /// A JSON document that this program stored.
    pub fn document<T: serde::de::DeserializeOwned>(
        &self,
        column: usize,
        what: &'static str,
    ) -> Result<T, StoreError> {
        serde_json::from_str(self.text(column)?)
            .map_err(|source| StoreError::Document { what, source })
    }
}

/// Writes a document of ours as JSON text.
pub fn json<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Document { what, source })
}

pub(super) enum Driver<'a> {
    Sqlite(rusqlite::Transaction<'a>),
    Postgres {
        tx: postgres::Transaction<'a>,
        prepared: &'a mut HashMap<&'static str, postgres::Statement>,
    },
}

/// What others are told once a transaction is committed.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Devices that changed.
    pub(super) devices: Vec<DeviceId>,
    /// Whether there are new events.
    pub(super) events: bool,
}

/// An open transaction; dropped without commit it leaves nothing behind.
pub struct Tx<'a> {
    driver: Driver<'a>,
    news: News,
    conflict: Option<StoreError>,
    damage: Option<String>,
}

impl<'a> Tx<'a> {
    pub(super) fn new(driver: Driver<'a>) -> Self {
        Self {
            driver,
            news: News::default(),
            conflict: None,
            damage: None,
        }
    }

    /// What a statement found damaged.
    pub(super) fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Whether other programs may work on the same store.
    pub const fn is_shared(&self) -> bool {
        matches!(self.driver, Driver::Postgres { .. })
    }

    /// The database's clock: the one that all programs on it agree about.
    pub fn clock(&mut self) -> Result<Timestamp, StoreError> {
        let sql = if self.is_shared() {
            "select cast(extract(epoch from clock_timestamp()) * 1000 as bigint)"
        } else {
            "select cast(unixepoch('subsec') * 1000 as integer)"
        };
        self.query_opt(sql, &[])?
            .ok_or(StoreError::Interrupted)?
            .time(0)
    }

    /// Runs a statement and counts the rows it changed.
    pub fn execute(&mut self, sql: &'static str, params: &[Value]) -> Result<u64, StoreError> {
        let outcome = match &mut self.driver {
            Driver::Sqlite(tx) => super::sqlite::execute(tx, sql, params),
            Driver::Postgres { tx, prepared } => {
                super::postgres::execute(tx, prepared, sql, params)
            }
        };
        self.noting_conflict(outcome)
    }

    /// Runs a statement and returns every row; the caller's SQL bounds how many.
    pub fn query(&mut self, sql: &'static str, params: &[Value]) -> Result<Vec<Row>, StoreError> {
        let outcome = match &mut self.driver {
            Driver::Sqlite(tx) => super::sqlite::query(tx, sql, params),
            Driver::Postgres { tx, prepared } => super::postgres::query(tx, prepared, sql, params),
        };
        self.noting_conflict(outcome)
    }

    /// Runs a statement that answers one row or none.
    pub fn query_opt(
        &mut self,
        sql: &'static str,
        params: &[Value],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, params)?.into_iter().next())
    }

    /// Tells every process on this store, once committed, that the device changed.
    pub fn announce(&mut self, device: DeviceId) -> Result<(), StoreError> {
        match &self.driver {
            Driver::Sqlite(_) => {}
            Driver::Postgres { .. } => {
                self.query(
                    "select cast(pg_notify($1, $2) as text)",
                    params![CHANNEL, device],
                )?;
            }
        }
        self.news.devices.push(device);
        Ok(())
    }

    /// Tells whoever waits for events in every process on this store, once committed, that there are new ones.
    pub(super) fn note_event(&mut self) -> Result<(), StoreError> {
        if self.news.events {
            return Ok(());
        }
        match &self.driver {
            Driver::Sqlite(_) => {}
            Driver::Postgres { .. } => {
                self.query(
                    "select cast(pg_notify($1, '') as text)",
                    params![EVENTS_CHANNEL],
                )?;
            }
        }
        self.news.events = true;
        Ok(())
    }

    pub(super) fn commit(self) -> Result<News, StoreError> {
        match self.driver {
            Driver::Sqlite(tx) => tx.commit()?,
            Driver::Postgres { tx, .. } => tx.commit()?,
        }
        Ok(self.news)
    }

    /// Rolls back; says whether a statement failed only because of a concurrent transaction.
    pub(super) fn into_conflict(self) -> Option<StoreError> {
        self.conflict
    }

    fn noting_conflict<T>(&mut self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        match outcome {
            Err(error) if error.is_conflict() => {
                self.conflict = Some(error);
                Err(StoreError::Busy(None))
            }
            Err(StoreError::Damaged(how)) => {
                self.damage = Some(how.clone());
                Err(StoreError::Damaged(how))
            }
            other => other,
        }
    }
}
