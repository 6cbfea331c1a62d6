//! Owns the head of history: the one row that whoever writes an event or an audit row changes first.
//!
//! On PostgreSQL it makes writers wait for each other, so that numbers come in the order of commits: whoever has
//! read up to a number has missed nothing below it. Refuses to give a number out twice, also after rows are gone.

use holdfast_domain::chain::Point;

use super::db::{StoreError, Tx};
use crate::params;

/// How far history reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Number of the newest event; zero when there was none yet.
    pub last_event: i64,
    /// Events up to this number were removed by the retention.
    pub events_pruned: i64,
    /// The newest row of the audit log.
    pub last_audit: Point,
    /// Rows of the audit log up to this one were removed by the retention.
    pub audit_pruned: Point,
}

/// Reads the head.
pub fn head(tx: &mut Tx<'_>) -> Result<Head, StoreError> {
    let row = tx
        .query_opt(
            "select last_event, events_pruned, last_audit, audit_hash, audit_pruned,
                    audit_pruned_hash
             from history_head where id = 1",
            params![],
        )?
        .ok_or(StoreError::Interrupted)?;
    Ok(Head {
        last_event: row.int(0)?,
        events_pruned: row.int(1)?,
        last_audit: Point {
            id: row.int(2)?,
            hash: row.text(3)?.to_owned(),
        },
        audit_pruned: Point {
            id: row.int(4)?,
            hash: row.text(5)?.to_owned(),
        },
    })
}

/// Takes the number of the next event.
pub(super) fn take_event(tx: &mut Tx<'_>) -> Result<i64, StoreError> {
    skip_events(tx, 1)
}

/// Leaves `count` numbers of events out, and answers the last of them.
pub fn skip_events(tx: &mut Tx<'_>, count: i64) -> Result<i64, StoreError> {
    tx.query_opt(
        "update history_head set last_event = last_event + $1 where id = 1 returning last_event",
        params![count],
    )?
    .ok_or(StoreError::Interrupted)?
    .int(0)
}

/// Takes the number of the next audit row; answers it with the hash of the row before.
pub(super) fn take_audit(tx: &mut Tx<'_>) -> Result<(i64, String), StoreError> {
    let row = tx
        .query_opt(
            "update history_head set last_audit = last_audit + 1 where id = 1
             returning last_audit, audit_hash",
            params![],
        )?
        .ok_or(StoreError::Interrupted)?;
    Ok((row.int(0)?, row.text(1)?.to_owned()))
}

/// Notes which audit row is the newest: the one whose number was taken in this transaction.
pub(super) fn set_last_audit(tx: &mut Tx<'_>, last: &Point) -> Result<(), StoreError> {
    tx.execute(
        "update history_head set last_audit = $1, audit_hash = $2 where id = 1",
        params![last.id, &last.hash],
    )?;
    Ok(())
}

/// Notes how far events were pruned.
pub(super) fn set_events_pruned(tx: &mut Tx<'_>, through: i64) -> Result<(), StoreError> {
    tx.execute(
        "update history_head set events_pruned = $1 where id = 1 and events_pruned < $1",
        params![through],
    )?;
    Ok(())
}

/// Notes how far the audit log was pruned.
pub(super) fn set_audit_pruned(tx: &mut Tx<'_>, through: &Point) -> Result<(), StoreError> {
    tx.execute(
        "update history_head set audit_pruned = $1, audit_pruned_hash = $2
         where id = 1 and audit_pruned < $1",
        params![through.id, &through.hash],
    )?;
    Ok(())
}
