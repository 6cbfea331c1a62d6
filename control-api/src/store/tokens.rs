//! Owns the table of operator tokens; refuses to store the token itself.

use holdfast_domain::principal::{Role, role_name, role_named};
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx};
use crate::params;

/// An operator token as stored: everything but the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Number of the token, by which it is revoked.
    pub id: i64,
    /// Who or what uses it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working, if ever.
    pub expires_at: Option<Timestamp>,
}

fn token(row: &Row) -> Result<Token, StoreError> {
    Ok(Token {
        id: row.int(0)?,
        name: row.text(1)?.to_owned(),
        role: role_named(row.text(2)?).ok_or(StoreError::Column {
            statement: "tokens",
            column: 2,
        })?,
        created_at: row.time(3)?,
        expires_at: row.opt_time(4)?,
    })
}

/// Stores a new token by its hash; answers its number.
pub fn insert(
    tx: &mut Tx<'_>,
    name: &str,
    role: Role,
    hash: &str,
    now: Timestamp,
    expires_at: Option<Timestamp>,
) -> Result<i64, StoreError> {
    tx.query_opt(
        "insert into tokens (name, role, hash, created_at, expires_at)
         values ($1, $2, $3, $4, $5) returning id",
        params![name, role_name(role), hash, now, expires_at],
    )?
    .ok_or(StoreError::Interrupted)?
    .int(0)
}

/// The token with this hash, unless it has expired.
pub fn valid(tx: &mut Tx<'_>, hash: &str, now: Timestamp) -> Result<Option<Token>, StoreError> {
    tx.query_opt(
        "select id, name, role, created_at, expires_at from tokens
         where hash = $1 and (expires_at is null or expires_at > $2)",
        params![hash, now],
    )?
    .as_ref()
    .map(token)
    .transpose()
}

/// The token with this number.
pub fn find(tx: &mut Tx<'_>, id: i64) -> Result<Option<Token>, StoreError> {
    tx.query_opt(
        "select id, name, role, created_at, expires_at from tokens where id = $1",
        params![id],
    )?
    .as_ref()
    .map(token)
    .transpose()
}

/// One page of tokens in the order they were made.
pub fn list(tx: &mut Tx<'_>, after: i64, limit: i64) -> Result<Vec<Token>, StoreError> {
    tx.query(
        "select id, name, role, created_at, expires_at from tokens
         where id > $1 order by id limit $2",
        params![after, limit],
    )?
    .iter()
    .map(token)
    .collect()
}

/// How many tokens with this role still work.
pub fn count_valid(tx: &mut Tx<'_>, role: Role, now: Timestamp) -> Result<u64, StoreError> {
    tx.query_opt(
        "select count(*) from tokens where role = $1 and (expires_at is null or expires_at > $2)",
        params![role_name(role), now],
    )?
    .map_or(Ok(0), |row| row.count(0))
}

/// Revokes a token: the next request with it is refused.
pub fn remove(tx: &mut Tx<'_>, id: i64) -> Result<bool, StoreError> {
    Ok(tx.execute("delete from tokens where id = $1", params![id])? > 0)
}
