//! Owns the audit table: append-only; has no function that changes or removes a row.

use holdfast_proto::time::Timestamp;
use serde_json::Value as Json;

use super::db::{Row, StoreError, Tx};
use crate::params;

/// Who caused a change, and in which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `operator`, `device`, `enrolment_key`, `webhook` or `system`.
    pub kind: &'static str,
    /// The token's name, the device's identifier, the key's or the task's name.
    pub name: String,
    /// The request that carried it, or the task's name.
    pub request_id: String,
}

/// A change about to be recorded.
#[derive(Debug, Clone)]
pub struct NewEntry<'a> {
    /// What was done, such as `target.set`.
    pub action: &'a str,
    /// The kind of thing it was done to.
    pub subject_kind: &'a str,
    /// Which one.
    pub subject: String,
    /// How it was.
    pub before: Option<Json>,
    /// How it is.
    pub after: Option<Json>,
}

/// One row of the audit log.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Number of the row; later ones are greater.
    pub id: i64,
    /// Kind of actor.
    pub actor_kind: String,
    /// Name of the actor.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// The kind of thing it was done to.
    pub subject_kind: String,
    /// Which one.
    pub subject: String,
    /// How it was.
    pub before: Option<Json>,
    /// How it is.
    pub after: Option<Json>,
    /// The request that carried it.
    pub request_id: String,
    /// When.
    pub at: Timestamp,
}

/// Appends a row; call it in the transaction that makes the change.
pub fn append(
    tx: &mut Tx<'_>,
    actor: &Actor,
    new: &NewEntry<'_>,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "insert into audit (actor_kind, actor, action, subject_kind, subject, before, after,
                            request_id, at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        params![
            actor.kind,
            &actor.name,
            new.action,
            new.subject_kind,
            &new.subject,
            new.before.as_ref().map(ToString::to_string),
            new.after.as_ref().map(ToString::to_string),
            &actor.request_id,
            now
        ],
    )?;
    Ok(())
}

fn entry(row: &Row) -> Result<Entry, StoreError> {
    let document = |column: usize| -> Result<Option<Json>, StoreError> {
        row.opt_text(column)?
            .map(|_| row.document(column, "audit row"))
            .transpose()
    };
    Ok(Entry {
        id: row.int(0)?,
        actor_kind: row.text(1)?.to_owned(),
        actor: row.text(2)?.to_owned(),
        action: row.text(3)?.to_owned(),
        subject_kind: row.text(4)?.to_owned(),
        subject: row.text(5)?.to_owned(),
        before: document(6)?,
        after: document(7)?,
        request_id: row.text(8)?.to_owned(),
        at: row.time(9)?,
    })
}

/// One page of the log, newest first, before row `before`.
pub fn list(
    tx: &mut Tx<'_>,
    subject: Option<&str>,
    before: i64,
    limit: i64,
) -> Result<Vec<Entry>, StoreError> {
    tx.query(
        "select id, actor_kind, actor, action, subject_kind, subject, before, after, request_id, at
         from audit where id < $1 and (cast($2 as text) is null or subject = $2)
         order by id desc limit $3",
        params![before, subject, limit],
    )?
    .iter()
    .map(entry)
    .collect()
}
