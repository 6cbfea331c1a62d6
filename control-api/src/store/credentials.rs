//! Owns the table of credentials for registries; sees what is secret only sealed.

use std::collections::BTreeSet;

use holdfast_domain::scope::Scope;
use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx};
use crate::params;
use crate::vault::Sealed;

/// Credentials as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The row's number, and the order of lists.
    pub id: i64,
    /// The registry's canonical name.
    pub registry: String,
    /// Whom they are for.
    pub scope: Scope,
    /// What kind they are, by the word of `logins`.
    pub kind: String,
    /// The user, which is no secret.
    pub username: Option<String>,
    /// The secret, sealed for this row.
    pub sealed: Sealed,
    /// Whether devices may be given them when the registry mints no tokens.
    pub hand_out: bool,
    /// Counts their changes.
    pub version: i64,
    /// When they were first set.
    pub created_at: Timestamp,
    /// When they were last set.
    pub updated_at: Timestamp,
}

/// Credentials to be stored.
#[derive(Debug, Clone)]
pub struct New {
    /// The registry's canonical name.
    pub registry: String,
    /// Whom they are for.
    pub scope: Scope,
    /// What kind they are.
    pub kind: &'static str,
    /// The user.
    pub username: Option<String>,
    /// The secret, sealed for this row.
    pub sealed: Sealed,
    /// Whether devices may be given them.
    pub hand_out: bool,
}

macro_rules! select_credentials {
    ($rest:literal) => {
        concat!(
            "select c.id, c.registry, c.scope, c.kind, c.username, c.sealed, c.key_id, c.hand_out,
                    c.version, c.created_at, c.updated_at
             from registry_credentials c ",
            $rest
        )
    };
}

fn stored(row: &Row) -> Result<Stored, StoreError> {
    Ok(Stored {
        id: row.int(0)?,
        registry: row.text(1)?.to_owned(),
        scope: row.parsed(2)?,
        kind: row.text(3)?.to_owned(),
        username: row.opt_text(4)?.map(str::to_owned),
        sealed: Sealed {
            text: row.text(5)?.to_owned(),
            key_id: row.text(6)?.to_owned(),
        },
        hand_out: row.truth(7)?,
        version: row.int(8)?,
        created_at: row.time(9)?,
        updated_at: row.time(10)?,
    })
}

/// Stores credentials, in place of those that were there.
pub fn put(
    tx: &mut Tx<'_>,
    new: &New,
    device_row: Option<i64>,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "insert into registry_credentials (registry, scope, device_id, kind, username, sealed, key_id,
            hand_out, version, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 1, $9, $9)
         on conflict (registry, scope) do update set
            device_id = excluded.device_id, kind = excluded.kind, username = excluded.username,
            sealed = excluded.sealed, key_id = excluded.key_id, hand_out = excluded.hand_out,
            version = registry_credentials.version + 1, updated_at = excluded.updated_at",
        params![
            &new.registry,
            new.scope.to_string(),
            device_row,
            new.kind,
            new.username.as_deref(),
            &new.sealed.text,
            &new.sealed.key_id,
            new.hand_out,
            now
        ],
    )?;
    Ok(())
}

/// The credentials of one scope.
pub fn find(tx: &mut Tx<'_>, registry: &str, scope: &Scope) -> Result<Option<Stored>, StoreError> {
    tx.query_opt(
        select_credentials!("where c.registry = $1 and c.scope = $2"),
        params![registry, scope.to_string()],
    )?
    .as_ref()
    .map(stored)
    .transpose()
}

/// The credentials that count for a device: its own, its fleet's, or everybody's.
pub fn of_device(
    tx: &mut Tx<'_>,
    registry: &str,
    device: DeviceId,
    fleet: Option<&str>,
) -> Result<Option<Stored>, StoreError> {
    for scope in Scope::of_device(device, fleet) {
        if let Some(found) = find(tx, registry, &scope)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Removes credentials; says whether there were any.
pub fn remove(tx: &mut Tx<'_>, registry: &str, scope: &Scope) -> Result<bool, StoreError> {
    let removed = tx.execute(
        "delete from registry_credentials where registry = $1 and scope = $2",
        params![registry, scope.to_string()],
    )?;
    Ok(removed > 0)
}

/// One page of credentials, of one registry or all, after row `after`.
pub fn list(
    tx: &mut Tx<'_>,
    registry: Option<&str>,
    after: i64,
    limit: i64,
) -> Result<Vec<Stored>, StoreError> {
    tx.query(
        select_credentials!(
            "where c.id > $1 and (cast($2 as text) is null or c.registry = $2)
             order by c.id limit $3"
        ),
        params![after, registry, limit],
    )?
    .iter()
    .map(stored)
    .collect()
}

/// The registries for which one scope has credentials, in the order of their names.
pub fn registries(tx: &mut Tx<'_>, scope: &Scope, limit: i64) -> Result<Vec<String>, StoreError> {
    tx.query(
        "select registry from registry_credentials where scope = $1 order by registry limit $2",
        params![scope.to_string(), limit],
    )?
    .iter()
    .map(|row| row.text(0).map(str::to_owned))
    .collect()
}

/// How many credentials were sealed with another key than this one.
pub fn count_foreign(tx: &mut Tx<'_>, key_id: &str) -> Result<u64, StoreError> {
    tx.query_opt(
        "select count(*) from registry_credentials where key_id <> $1",
        params![key_id],
    )?
    .map_or(Ok(0), |row| row.count(0))
}

/// Every registry with the scopes for which it has credentials, in the words of the store.
pub fn scopes(tx: &mut Tx<'_>) -> Result<BTreeSet<(String, String)>, StoreError> {
    tx.query(
        "select registry, scope from registry_credentials",
        params![],
    )?
    .iter()
    .map(|row| Ok((row.text(0)?.to_owned(), row.text(1)?.to_owned())))
    .collect()
}
