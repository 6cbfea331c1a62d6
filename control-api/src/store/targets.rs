//! Owns the tables of targets and of the references in them; refuses a generation that falls.

use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Repository;
use holdfast_proto::time::Timestamp;

use super::db::{StoreError, Tx};
use super::devices::Labels;
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

/// Whether a device's target was set for it alone; it has none where there is no target.
pub fn is_own(tx: &mut Tx<'_>, device_id: i64) -> Result<bool, StoreError> {
    tx.query_opt(
        "select own from targets where device_id = $1",
        params![device_id],
    )?
    .map_or(Ok(false), |row| row.truth(0))
}

/// Notes whether a device's target was set for it alone; says whether that is new.
pub fn set_own(tx: &mut Tx<'_>, device_id: i64, own: bool) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update targets set own = $2 where device_id = $1 and own <> $2",
        params![device_id, own],
    )?;
    Ok(changed > 0)
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

/// How many devices' targets name a tag of an image.
pub fn count_naming(
    tx: &mut Tx<'_>,
    repository: &Repository,
    tag: &str,
) -> Result<u64, StoreError> {
    tx.query_opt(
        "select count(*) from target_references
         where registry = $1 and repository = $2 and selector = $3",
        params![repository.registry(), repository.path(), tag],
    )?
    .map_or(Ok(0), |row| row.count(0))
}

/// The names of the first devices whose targets name a tag of an image.
pub fn names_naming(
    tx: &mut Tx<'_>,
    repository: &Repository,
    tag: &str,
    limit: i64,
) -> Result<Vec<String>, StoreError> {
    tx.query(
        "select d.name from target_references t join devices d on d.id = t.device_id
         where t.registry = $1 and t.repository = $2 and t.selector = $3 order by d.id limit $4",
        params![repository.registry(), repository.path(), tag, limit],
    )?
    .iter()
    .map(|row| row.text(0).map(str::to_owned))
    .collect()
}

/// A device and one of the references in its target; none when it has no target, or names no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The device's row.
    pub device_id: i64,
    /// Its identifier.
    pub uuid: DeviceId,
    /// What people call it.
    pub name: String,
    /// How people group it.
    pub labels: Labels,
    /// The reference.
    pub key: Option<Key>,
}

/// What the targets of the next devices after row `after` name: every reference of each of them.
pub fn named_by(tx: &mut Tx<'_>, after: i64, devices: i64) -> Result<Vec<Names>, StoreError> {
    tx.query(
        "select d.id, d.uuid, d.name, d.labels, t.registry, t.repository, t.selector
         from devices d left join target_references t on t.device_id = d.id
         where d.id in (select n.id from devices n where n.id > $1 order by n.id limit $2)
         order by d.id",
        params![after, devices],
    )?
    .iter()
    .map(|row| {
        Ok(Names {
            device_id: row.int(0)?,
            uuid: row.parsed(1)?,
            name: row.text(2)?.to_owned(),
            labels: row.document(3, "label set")?,
            key: match row.opt_text(4)? {
                Some(registry) => Some(Key {
                    registry: registry.to_owned(),
                    repository: row.text(5)?.to_owned(),
                    selector: row.text(6)?.to_owned(),
                }),
                None => None,
            },
        })
    })
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
