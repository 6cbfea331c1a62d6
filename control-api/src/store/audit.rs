//! Owns the audit table: append-only, each row chained to the one before it.
//!
//! Refuses to change a row, and to remove any but the oldest, whose removal is a row itself.

use holdfast_domain::chain::{self, Break, Content, Point, Verdict, Walk};
use holdfast_domain::retention;
use holdfast_proto::time::Timestamp;
use serde_json::Value as Json;

use super::db::{Row, StoreError, Tx};
use super::history;
use crate::params;

/// Rows read at a time along the chain: a row is a few hundred bytes, with a long list of images some dozen KiB.
const PAGE: i64 = 500;

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
    let (id, previous) = history::take_audit(tx)?;
    let before = new.before.as_ref().map(ToString::to_string);
    let after = new.after.as_ref().map(ToString::to_string);
    let content = Content {
        id,
        actor_kind: actor.kind,
        actor: &actor.name,
        action: new.action,
        subject_kind: new.subject_kind,
        subject: &new.subject,
        before: before.as_deref(),
        after: after.as_deref(),
        request_id: &actor.request_id,
        at_ms: now.as_millis(),
    };
    let hash = chain::hash(&previous, &content);
    tx.execute(
        "insert into audit (id, actor_kind, actor, action, subject_kind, subject, before, after,
                            request_id, at, hash)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        params![
            id,
            actor.kind,
            &actor.name,
            new.action,
            new.subject_kind,
            &new.subject,
            before.as_deref(),
            after.as_deref(),
            &actor.request_id,
            now,
            &hash
        ],
    )?;
    history::set_last_audit(tx, &Point { id, hash })
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

/// The rows after `after` in the order of their numbers, as they are stored.
fn raw(tx: &mut Tx<'_>, after: i64, limit: i64) -> Result<Vec<Row>, StoreError> {
    tx.query(
        "select id, actor_kind, actor, action, subject_kind, subject, before, after, request_id,
                at, hash
         from audit where id > $1 order by id limit $2",
        params![after, limit],
    )
}

fn content(row: &Row) -> Result<Content<'_>, StoreError> {
    Ok(Content {
        id: row.int(0)?,
        actor_kind: row.text(1)?,
        actor: row.text(2)?,
        action: row.text(3)?,
        subject_kind: row.text(4)?,
        subject: row.text(5)?,
        before: row.opt_text(6)?,
        after: row.opt_text(7)?,
        request_id: row.text(8)?,
        at_ms: row.int(9)?,
    })
}

/// Chains the rows that were written before there was a chain; the migration's own step.
pub(super) fn chain_old(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let mut here = Point::beginning();
    loop {
        let rows = raw(tx, here.id, PAGE)?;
        if rows.is_empty() {
            return history::set_last_audit(tx, &here);
        }
        for row in &rows {
            let content = content(row)?;
            here = Point {
                id: content.id,
                hash: chain::hash(&here.hash, &content),
            };
            tx.execute(
                "update audit set hash = $2 where id = $1",
                params![here.id, &here.hash],
            )?;
        }
    }
}

/// What was found along the chain, and how many rows were looked at.
pub fn verify(tx: &mut Tx<'_>) -> Result<(Verdict, u64), StoreError> {
    let head = history::head(tx)?;
    let mut walk = Walk::from(head.audit_pruned);
    // Rows that were removed cannot come back: one before the beginning was put there.
    if let Some(row) = raw(tx, i64::MIN, 1)?.first()
        && row.int(0)? <= walk.here().id
    {
        return Ok((Verdict::Broken(row.int(0)?, Break::Changed), 1));
    }
    loop {
        let rows = raw(tx, walk.here().id, PAGE)?;
        if rows.is_empty() {
            let seen = walk.rows();
            return Ok((walk.end(&head.last_audit), seen));
        }
        for row in &rows {
            if let Err((id, how)) = walk.step(&content(row)?, row.opt_text(10)?) {
                return Ok((Verdict::Broken(id, how), walk.rows()));
            }
        }
    }
}

/// What pruning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruned {
    /// So many rows were removed.
    Rows(u64),
    /// None: this row is broken, and what is removed could not be proven any more.
    Broken(i64),
}

/// Removes some of the oldest rows that are from before `cutoff`, and leaves a row that says so.
pub fn prune(
    tx: &mut Tx<'_>,
    actor: &Actor,
    cutoff: Timestamp,
    now: Timestamp,
) -> Result<Pruned, StoreError> {
    let mut walk = Walk::from(history::head(tx)?.audit_pruned);
    let from = walk.here().id;
    let rows = raw(tx, from, PAGE)?;
    let times = rows
        .iter()
        .map(|row| Ok((row.int(0)?, row.time(9)?)))
        .collect::<Result<Vec<_>, StoreError>>()?;
    let Some(last) = retention::may_go(times, cutoff, now) else {
        return Ok(Pruned::Rows(0));
    };
    for row in &rows {
        if row.int(0)? > last {
            break;
        }
        if let Err((id, _)) = walk.step(&content(row)?, row.opt_text(10)?) {
            return Ok(Pruned::Broken(id));
        }
    }
    let through = walk.here().clone();
    // What stands before the beginning was put there, and stays for whoever looks into it.
    let removed = tx.execute(
        "delete from audit where id > $1 and id <= $2",
        params![from, through.id],
    )?;
    history::set_audit_pruned(tx, &through)?;
    let entry = NewEntry {
        action: chain::PRUNE,
        subject_kind: "audit",
        subject: through.id.to_string(),
        before: None,
        after: Some(chain::pruned(&through, removed)),
    };
    append(tx, actor, &entry, now)?;
    Ok(Pruned::Rows(removed))
}
