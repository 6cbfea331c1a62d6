//! Owns bringing the tables up to date: numbered texts, each in one transaction, once.
//!
//! One text serves both databases. Two words in it stand for what they spell differently:
//! `IDENTITY_KEY` (a number the database gives out) and `ROW_KEY` (a number we bring). Refuses a
//! database whose applied migrations differ from the texts in this program.

use std::collections::HashMap;

use holdfast_proto::image::Digest;
use postgres::{Client, IsolationLevel};
use rusqlite::{Connection, TransactionBehavior};

use super::audit;
use super::db::{Driver, StoreError, Tx};
use crate::{clock, params};

struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "first tables",
        sql: include_str!("../../migrations/0001_first_tables.sql"),
    },
    Migration {
        version: 2,
        name: "registries",
        sql: include_str!("../../migrations/0002_registries.sql"),
    },
    Migration {
        version: 3,
        name: "rollouts",
        sql: include_str!("../../migrations/0003_rollouts.sql"),
    },
    Migration {
        version: 4,
        name: "fleets",
        sql: include_str!("../../migrations/0004_fleets.sql"),
    },
    Migration {
        version: HISTORY,
        name: "history",
        sql: include_str!("../../migrations/0005_history.sql"),
    },
    Migration {
        version: 6,
        name: "notifications",
        sql: include_str!("../../migrations/0006_notifications.sql"),
    },
    Migration {
        version: 7,
        name: "deliveries",
        sql: include_str!("../../migrations/0007_deliveries.sql"),
    },
    Migration {
        version: 8,
        name: "image updates",
        sql: include_str!("../../migrations/0008_image_updates.sql"),
    },
    Migration {
        version: 9,
        name: "quarantine",
        sql: include_str!("../../migrations/0009_quarantine.sql"),
    },
];

/// The migration from which on audit rows are chained.
const HISTORY: i64 = 5;

/// Replicas that start together migrate one after the other: the lock's number is arbitrary.
const ADVISORY_LOCK: i64 = 0x686f_6c64_6661_7374;

const LEDGER: &str = "create table if not exists schema_migrations (
    version bigint primary key, name text not null, checksum text not null, applied_at bigint not null)";
const IS_THERE_SQLITE: &str = "select count(*) from sqlite_schema where name = 'schema_migrations'";
const IS_THERE_POSTGRES: &str = "select count(*) from pg_tables
    where tablename = 'schema_migrations' and schemaname = any (current_schemas(false))";
const APPLIED: &str = "select version, checksum from schema_migrations order by version";
const KNOWN: &str = "select checksum from schema_migrations where version = $1";
const RECORD: &str =
    "insert into schema_migrations (version, name, checksum, applied_at) values ($1, $2, $3, $4)";

impl Migration {
    fn checksum(&self) -> String {
        Digest::of(self.sql.as_bytes()).hex()
    }

    /// Whether it still has to run, given the checksum the database recorded for it.
    fn is_pending(&self, recorded: Option<&str>) -> Result<bool, StoreError> {
        match recorded {
            None => Ok(true),
            Some(checksum) if checksum == self.checksum() => Ok(false),
            Some(_) => Err(StoreError::Migration {
                version: self.version,
            }),
        }
    }

    /// What no SQL can do, and the record that it was applied.
    fn finish(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        if self.version == HISTORY {
            audit::chain_old(tx)?;
        }
        tx.execute(
            RECORD,
            params![
                self.version,
                self.name,
                self.checksum(),
                clock::now().as_millis()
            ],
        )?;
        Ok(())
    }

    fn sql(&self, identity_key: &str, row_key: &str) -> String {
        self.sql
            .replace("IDENTITY_KEY", identity_key)
            .replace("ROW_KEY", row_key)
    }
}

pub(super) fn sqlite(connection: &mut Connection) -> Result<(), StoreError> {
    for migration in MIGRATIONS {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(LEDGER)?;
        let recorded: Option<String> = tx
            .prepare(KNOWN)?
            .query_map([migration.version], |row| row.get(0))?
            .next()
            .transpose()?;
        if migration.is_pending(recorded.as_deref())? {
            tx.execute_batch(
                &migration.sql("integer primary key autoincrement", "integer primary key"),
            )?;
            let mut tx = Tx::new(Driver::Sqlite(tx));
            migration.finish(&mut tx)?;
            tx.commit()?;
        } else {
            tx.commit()?;
        }
    }
    Ok(())
}

pub(super) fn postgres(client: &mut Client) -> Result<(), StoreError> {
    for migration in MIGRATIONS {
        let mut tx = client
            .build_transaction()
            .isolation_level(IsolationLevel::ReadCommitted)
            .start()?;
        tx.execute("select pg_advisory_xact_lock($1)", &[&ADVISORY_LOCK])?;
        tx.batch_execute(LEDGER)?;
        let recorded: Option<String> = tx
            .query_opt(KNOWN, &[&migration.version])?
            .map(|row| row.get(0));
        if migration.is_pending(recorded.as_deref())? {
            tx.batch_execute(&migration.sql(
                "bigint generated by default as identity primary key",
                "bigint primary key",
            ))?;
            let mut prepared = HashMap::new();
            let mut tx = Tx::new(Driver::Postgres {
                tx,
                prepared: &mut prepared,
            });
            migration.finish(&mut tx)?;
            tx.commit()?;
        } else {
            tx.commit()?;
        }
    }
    Ok(())
}

/// How the tables of a database compare with what this program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tables {
    /// There are none of ours.
    None,
    /// Migrations of this program are still to come.
    Older,
    /// They are this program's.
    Current,
}

impl Tables {
    pub(super) fn must_be_current(self) -> Result<(), StoreError> {
        match self {
            Self::Current => Ok(()),
            Self::None | Self::Older => Err(StoreError::Older),
        }
    }
}

/// Compares what was applied with the texts in this program.
fn judge(applied: &[(i64, String)]) -> Result<Tables, StoreError> {
    for (version, checksum) in applied {
        let Some(known) = MIGRATIONS.iter().find(|known| known.version == *version) else {
            return Err(StoreError::Newer { version: *version });
        };
        known.is_pending(Some(checksum))?;
    }
    Ok(if applied.len() < MIGRATIONS.len() {
        Tables::Older
    } else {
        Tables::Current
    })
}

pub(super) fn judge_sqlite(connection: &Connection) -> Result<Tables, StoreError> {
    let ledgers: i64 = connection.query_row(IS_THERE_SQLITE, [], |row| row.get(0))?;
    if ledgers == 0 {
        return Ok(Tables::None);
    }
    let applied = connection
        .prepare(APPLIED)?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<_>, _>>()?;
    judge(&applied)
}

pub(super) fn judge_postgres(client: &mut Client) -> Result<Tables, StoreError> {
    let ledgers: i64 = client.query_one(IS_THERE_POSTGRES, &[])?.get(0);
    if ledgers == 0 {
        return Ok(Tables::None);
    }
    let applied: Vec<(i64, String)> = client
        .query(APPLIED, &[])?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    judge(&applied)
}
