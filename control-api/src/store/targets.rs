//! Owns the tables of targets and of the references in them; refuses a generation that falls.

use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;

use super::db::{StoreError, Tx};
use super::resolutions::Key;
use crate::params;

/// A device's target as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What people asked for, as JSON.
    pub input: String,
    /// What the device is served, byte for byte.
    pub body: String,
    /// The strong `ETag` of those bytes, with its quotes.
    pub etag: String,
    /// The counter that only grows.
    pub generation: u64,
    /// When it last changed.
    pub changed_at: Timestamp,
}

/// The device's target, if it was ever given one.
pub fn find(tx: &mut Tx<'_>, device_id: i64) -> Result<Option<Target>, StoreError> {
    tx.query_opt(
        "select input, body, etag, generation, changed_at from targets where device_id = $1",
        params![device_id],
    )?
    .map(|row| {
        Ok(Target {
            input: row.text(0)?.to_owned(),
            body: row.text(1)?.to_owned(),
            etag: row.text(2)?.to_owned(),
            generation: row.count(3)?,
            changed_at: row.time(4)?,
        })
    })
    .transpose()
}

/// A reference in a target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// Which image.
    pub key: Key,
    /// Whether the target waits for its digest.
    pub waits: bool,
}

/// Stores a target and the references in it; a lower generation than the stored one changes nothing.
pub fn set(
    tx: &mut Tx<'_>,
    device_id: i64,
    target: &Target,
    references: &[Named],
) -> Result<bool, StoreError> {
    let generation = i64::try_from(target.generation).unwrap_or(i64::MAX);
    let changed = tx.execute(
        "insert into targets (device_id, input, body, etag, generation, changed_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (device_id) do update set
            input = excluded.input, body = excluded.body, etag = excluded.etag,
            generation = excluded.generation, changed_at = excluded.changed_at
         where targets.generation < excluded.generation",
        params![
            device_id,
            &target.input,
            &target.body,
            &target.etag,
            generation,
            target.changed_at
        ],
    )?;
    if changed == 0 {
        return Ok(false);
    }
    tx.execute(
        "delete from target_references where device_id = $1",
        params![device_id],
    )?;
    for Named { key, waits } in references {
        tx.execute(
            "insert into target_references (device_id, registry, repository, selector, waits)
             values ($1, $2, $3, $4, $5)",
            params![
                device_id,
                &key.registry,
                &key.repository,
                &key.selector,
                *waits
            ],
        )?;
    }
    Ok(true)
}

/// One page of devices whose target waits for a digest that is known by now, after row `after`.
pub fn devices_waiting(
    tx: &mut Tx<'_>,
    after: i64,
    limit: i64,
) -> Result<Vec<(i64, DeviceId)>, StoreError> {
    tx.query(
        "select d.id, d.uuid from devices d
         where d.id > $1 and d.id in (
            select t.device_id from target_references t join resolutions r
               on r.registry = t.registry and r.repository = t.repository
               and r.selector = t.selector
            where t.waits = 1 and r.top_digest is not null)
         order by d.id limit $2",
        params![after, limit],
    )?
    .iter()
    .map(|row| Ok((row.int(0)?, row.parsed(1)?)))
    .collect()
}

/// Stores the same target under a higher generation; the references in it stay as they are.
pub fn lift(tx: &mut Tx<'_>, device_id: i64, target: &Target) -> Result<(), StoreError> {
    tx.execute(
        "update targets set body = $2, etag = $3, generation = $4, changed_at = $5
         where device_id = $1 and generation < $4",
        params![
            device_id,
            &target.body,
            &target.etag,
            i64::try_from(target.generation).unwrap_or(i64::MAX),
            target.changed_at
        ],
    )?;
    Ok(())
}
