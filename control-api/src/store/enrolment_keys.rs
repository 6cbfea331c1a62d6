//! Owns the table of enrolment keys; refuses one use more than a key allows.

use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx, json};
use super::devices::Labels;
use crate::params;

/// An enrolment key as stored: everything but the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolmentKey {
    /// Number of the key, by which it is revoked.
    pub id: i64,
    /// What it is for.
    pub name: String,
    /// Labels that every device enrolled with it gets, whatever it asks for.
    pub labels: Labels,
    /// How many enrolments it allows; none for no limit.
    pub max_uses: Option<u64>,
    /// How many it has seen.
    pub used: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working, if ever.
    pub expires_at: Option<Timestamp>,
}

fn key(row: &Row) -> Result<EnrolmentKey, StoreError> {
    Ok(EnrolmentKey {
        id: row.int(0)?,
        name: row.text(1)?.to_owned(),
        labels: row.document(2, "label set")?,
        max_uses: row.opt_int(3)?.map(|_| row.count(3)).transpose()?,
        used: row.count(4)?,
        created_at: row.time(5)?,
        expires_at: row.opt_time(6)?,
    })
}

/// A key about to be stored.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// What it is for.
    pub name: String,
    /// SHA-256 of the key, in hex.
    pub hash: String,
    /// Labels fixed by it.
    pub labels: Labels,
    /// How many enrolments it allows; none for no limit.
    pub max_uses: Option<u32>,
    /// When it stops working, if ever.
    pub expires_at: Option<Timestamp>,
}

/// Stores a new key by its hash; answers its number.
pub fn insert(tx: &mut Tx<'_>, new: &NewKey, now: Timestamp) -> Result<i64, StoreError> {
    tx.query_opt(
        "insert into enrolment_keys (name, hash, labels, max_uses, used, created_at, expires_at)
         values ($1, $2, $3, $4, 0, $5, $6) returning id",
        params![
            &new.name,
            &new.hash,
            json("label set", &new.labels)?,
            new.max_uses.map(i64::from),
            now,
            new.expires_at
        ],
    )?
    .ok_or(StoreError::Interrupted)?
    .int(0)
}

/// Takes one use of the key with this hash; none when it is unknown, expired or used up.
///
/// Check and count are one statement, so that parallel enrolments cannot share a use.
pub fn take(
    tx: &mut Tx<'_>,
    hash: &str,
    now: Timestamp,
) -> Result<Option<EnrolmentKey>, StoreError> {
    tx.query_opt(
        "update enrolment_keys set used = used + 1
         where hash = $1 and (expires_at is null or expires_at > $2)
           and (max_uses is null or used < max_uses)
         returning id, name, labels, max_uses, used, created_at, expires_at",
        params![hash, now],
    )?
    .as_ref()
    .map(key)
    .transpose()
}

/// Whether the key with this hash could still be used.
pub fn is_valid(tx: &mut Tx<'_>, hash: &str, now: Timestamp) -> Result<bool, StoreError> {
    Ok(tx
        .query_opt(
            "select id from enrolment_keys
             where hash = $1 and (expires_at is null or expires_at > $2)
               and (max_uses is null or used < max_uses)",
            params![hash, now],
        )?
        .is_some())
}

/// One page of keys in the order they were made.
pub fn list(tx: &mut Tx<'_>, after: i64, limit: i64) -> Result<Vec<EnrolmentKey>, StoreError> {
    tx.query(
        "select id, name, labels, max_uses, used, created_at, expires_at
         from enrolment_keys where id > $1 order by id limit $2",
        params![after, limit],
    )?
    .iter()
    .map(key)
    .collect()
}

/// Revokes a key; answers what it was.
pub fn remove(tx: &mut Tx<'_>, id: i64) -> Result<Option<EnrolmentKey>, StoreError> {
    tx.query_opt(
        "delete from enrolment_keys where id = $1
         returning id, name, labels, max_uses, used, created_at, expires_at",
        params![id],
    )?
    .as_ref()
    .map(key)
    .transpose()
}
