//! Owns the table of what devices were told before: the ways back that operators have.
//!
//! Refuses to grow without end, and to forget what was verified on a device last.

use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx};
use crate::params;

/// Generations kept of each device, beside the one that was verified last.
const KEPT: i64 = 50;

/// What a device was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The target's counter.
    pub generation: u64,
    /// What people asked for, as JSON.
    pub input: String,
    /// What the device was served.
    pub body: String,
    /// Why: `set`, `resolved`, `lifted`, `rollout:N`, `back:N`, `release:N`, `cleared`.
    pub cause: String,
    /// Who.
    pub actor: String,
    /// When.
    pub at: Timestamp,
    /// When the device reported that all of it runs and passed its gate.
    pub verified_at: Option<Timestamp>,
}

fn generation(row: &Row) -> Result<Generation, StoreError> {
    Ok(Generation {
        generation: row.count(0)?,
        input: row.text(1)?.to_owned(),
        body: row.text(2)?.to_owned(),
        cause: row.text(3)?.to_owned(),
        actor: row.text(4)?.to_owned(),
        at: row.time(5)?,
        verified_at: row.opt_time(6)?,
    })
}

fn number(counter: u64) -> i64 {
    i64::try_from(counter).unwrap_or(i64::MAX)
}

/// Notes what a device is told from now on, and forgets what is too old.
pub fn record(tx: &mut Tx<'_>, device_id: i64, new: &Generation) -> Result<(), StoreError> {
    tx.execute(
        "insert into generations (device_id, generation, input, body, cause, actor, at, verified_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (device_id, generation) do nothing",
        params![
            device_id,
            number(new.generation),
            &new.input,
            &new.body,
            &new.cause,
            &new.actor,
            new.at,
            new.verified_at
        ],
    )?;
    tx.execute(
        "delete from generations where device_id = $1
           and generation < (select min(kept.generation) from
                (select generation from generations where device_id = $1
                 order by generation desc limit $2) kept)
           and generation <> coalesce((select max(generation) from generations
                where device_id = $1 and verified_at is not null), -1)",
        params![device_id, KEPT],
    )?;
    Ok(())
}

/// Notes that a device verified a generation.
pub fn verify(
    tx: &mut Tx<'_>,
    device_id: i64,
    generation: u64,
    at: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "update generations set verified_at = $3
         where device_id = $1 and generation = $2 and verified_at is null",
        params![device_id, number(generation), at],
    )?;
    Ok(())
}

/// One page of what a device was told, the newest first.
pub fn list(
    tx: &mut Tx<'_>,
    device_id: i64,
    before: i64,
    limit: i64,
) -> Result<Vec<Generation>, StoreError> {
    tx.query(
        "select generation, input, body, cause, actor, at, verified_at from generations
         where device_id = $1 and generation < $2 order by generation desc limit $3",
        params![device_id, before, limit],
    )?
    .iter()
    .map(generation)
    .collect()
}

/// One of them.
pub fn find(
    tx: &mut Tx<'_>,
    device_id: i64,
    counter: u64,
) -> Result<Option<Generation>, StoreError> {
    tx.query_opt(
        "select generation, input, body, cause, actor, at, verified_at from generations
         where device_id = $1 and generation = $2",
        params![device_id, number(counter)],
    )?
    .as_ref()
    .map(generation)
    .transpose()
}

/// The newest before this one that the device verified: the only one to go back to by itself.
pub fn last_verified(
    tx: &mut Tx<'_>,
    device_id: i64,
    before: u64,
) -> Result<Option<Generation>, StoreError> {
    tx.query_opt(
        "select generation, input, body, cause, actor, at, verified_at from generations
         where device_id = $1 and generation < $2 and verified_at is not null
         order by generation desc limit 1",
        params![device_id, number(before)],
    )?
    .as_ref()
    .map(generation)
    .transpose()
}
