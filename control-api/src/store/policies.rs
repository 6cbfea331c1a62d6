//! Owns the table of update policies; refuses to keep one that cannot be carried out.

use holdfast_domain::policy::Policy;
use holdfast_proto::policy::PolicyInput;
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx, json};
use crate::params;

/// A policy as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub id: i64,
    /// What it means.
    pub policy: Policy,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it changed last.
    pub updated_at: Timestamp,
}

fn stored(row: &Row) -> Result<Stored, StoreError> {
    let input: PolicyInput = row.document(1, "policy")?;
    // It was judged when it was stored; rules that were tightened since make an old one unreadable.
    let policy = Policy::read(input).map_err(|_| StoreError::Column {
        statement: "policies",
        column: 1,
    })?;
    Ok(Stored {
        id: row.int(0)?,
        policy,
        created_at: row.time(2)?,
        updated_at: row.time(3)?,
    })
}

/// Adds a policy; none when its name is taken.
pub fn insert(tx: &mut Tx<'_>, policy: &Policy, now: Timestamp) -> Result<Option<i64>, StoreError> {
    tx.query_opt(
        "insert into policies (name, body, created_at, updated_at) values ($1, $2, $3, $3)
         on conflict (name) do nothing returning id",
        params![&policy.input.name, json("policy", &policy.input)?, now],
    )?
    .map(|row| row.int(0))
    .transpose()
}

/// The policy with this number.
pub fn find(tx: &mut Tx<'_>, id: i64) -> Result<Option<Stored>, StoreError> {
    tx.query_opt(
        "select id, body, created_at, updated_at from policies where id = $1",
        params![id],
    )?
    .as_ref()
    .map(stored)
    .transpose()
}

/// One page of policies, in the order they were made.
pub fn list(tx: &mut Tx<'_>, after: i64, limit: i64) -> Result<Vec<Stored>, StoreError> {
    tx.query(
        "select id, body, created_at, updated_at from policies where id > $1 order by id limit $2",
        params![after, limit],
    )?
    .iter()
    .map(stored)
    .collect()
}

/// Changes a policy; false when there is none, or another one has the name.
pub fn update(
    tx: &mut Tx<'_>,
    id: i64,
    policy: &Policy,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update policies set name = $2, body = $3, updated_at = $4
         where id = $1 and not exists (select 1 from policies other where other.name = $2 and other.id <> $1)",
        params![id, &policy.input.name, json("policy", &policy.input)?, now],
    )?;
    Ok(changed > 0)
}

/// Forgets a policy. Rollouts that it began keep what it said.
pub fn remove(tx: &mut Tx<'_>, id: i64) -> Result<bool, StoreError> {
    Ok(tx.execute("delete from policies where id = $1", params![id])? > 0)
}
