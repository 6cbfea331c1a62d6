//! Owns the table of fleets. Who is in one, the labels of devices say.

use std::collections::BTreeSet;

use holdfast_proto::image::Platform;
use holdfast_proto::image_updates::ImageUpdatePolicy;
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx};
use super::image_updates;
use crate::params;

/// A fleet as stored, with what is counted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// The row's number.
    pub id: i64,
    /// What devices' label `fleet` says.
    pub name: String,
    /// What people say of it.
    pub description: String,
    /// How its releases travel, where nobody says otherwise.
    pub policy_id: Option<i64>,
    /// The row of the release that was rolled out completely last.
    pub release_id: Option<i64>,
    /// The number of that release.
    pub release: Option<i64>,
    /// The number of the newest release.
    pub newest: Option<i64>,
    /// How many devices are in it.
    pub devices: u64,
    /// How many of these have targets of their own.
    pub own_targets: u64,
    /// How many of them stay at one release.
    pub pinned: u64,
    /// What it says of its devices' image updates.
    pub image_updates: ImageUpdatePolicy,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it changed last.
    pub updated_at: Timestamp,
}

/// Every query for whole fleets starts alike.
macro_rules! select_fleets {
    ($rest:literal) => {
        concat!(
            "select f.id, f.name, f.description, f.policy_id, f.release,
                    (select r.number from releases r where r.id = f.release),
                    (select max(r.number) from releases r where r.fleet_id = f.id),
                    (select count(*) from device_labels l where l.label = 'fleet' and l.value = f.name),
                    (select count(*) from device_labels l join targets t on t.device_id = l.device_id
                        where l.label = 'fleet' and l.value = f.name and t.own = 1),
                    (select count(*) from device_labels l join release_pins p on p.device_id = l.device_id
                        where l.label = 'fleet' and l.value = f.name),
                    f.created_at, f.updated_at, f.image_updates
             from fleets f ",
            $rest
        )
    };
}

fn fleet(row: &Row) -> Result<Fleet, StoreError> {
    Ok(Fleet {
        id: row.int(0)?,
        name: row.text(1)?.to_owned(),
        description: row.text(2)?.to_owned(),
        policy_id: row.opt_int(3)?,
        release_id: row.opt_int(4)?,
        release: row.opt_int(5)?,
        newest: row.opt_int(6)?,
        devices: row.count(7)?,
        own_targets: row.count(8)?,
        pinned: row.count(9)?,
        created_at: row.time(10)?,
        updated_at: row.time(11)?,
        image_updates: image_updates::read(row, 12)?,
    })
}

/// What people decide about a fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings<'a> {
    /// What they say of it.
    pub description: &'a str,
    /// How its releases travel.
    pub policy_id: Option<i64>,
    /// What it says of its devices' image updates; nothing without.
    pub image_updates: Option<&'a ImageUpdatePolicy>,
}

impl Settings<'_> {
    fn image_updates(&self) -> Result<Option<String>, StoreError> {
        let text = self.image_updates.map(image_updates::text).transpose()?;
        Ok(text.flatten())
    }
}

/// Adds a fleet; none when there is one with this name.
pub fn insert(
    tx: &mut Tx<'_>,
    name: &str,
    settings: Settings<'_>,
    now: Timestamp,
) -> Result<Option<i64>, StoreError> {
    tx.query_opt(
        "insert into fleets (name, description, policy_id, image_updates, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $5) on conflict (name) do nothing returning id",
        params![
            name,
            settings.description,
            settings.policy_id,
            settings.image_updates()?,
            now
        ],
    )?
    .map(|row| row.int(0))
    .transpose()
}

/// The fleet with this name.
pub fn find(tx: &mut Tx<'_>, name: &str) -> Result<Option<Fleet>, StoreError> {
    tx.query_opt(select_fleets!("where f.name = $1"), params![name])?
        .as_ref()
        .map(fleet)
        .transpose()
}

/// One page of fleets, in the order they were made.
pub fn list(tx: &mut Tx<'_>, after: i64, limit: i64) -> Result<Vec<Fleet>, StoreError> {
    tx.query(
        select_fleets!("where f.id > $1 order by f.id limit $2"),
        params![after, limit],
    )?
    .iter()
    .map(fleet)
    .collect()
}

/// Changes what people decide about a fleet.
pub fn update(
    tx: &mut Tx<'_>,
    id: i64,
    settings: Settings<'_>,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "update fleets set description = $2, policy_id = $3, image_updates = $4, updated_at = $5 where id = $1",
        params![
            id,
            settings.description,
            settings.policy_id,
            settings.image_updates()?,
            now
        ],
    )?;
    Ok(())
}

/// Notes which release its devices run, late joiners, too.
pub fn set_release(
    tx: &mut Tx<'_>,
    id: i64,
    release_id: i64,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "update fleets set release = $2, updated_at = $3 where id = $1",
        params![id, release_id, now],
    )?;
    Ok(())
}

/// Removes a fleet with its releases.
pub fn remove(tx: &mut Tx<'_>, id: i64) -> Result<(), StoreError> {
    tx.execute("delete from fleets where id = $1", params![id])?;
    Ok(())
}

/// The platforms of a fleet's devices, those with targets of their own, too: they may come back.
pub fn platforms(tx: &mut Tx<'_>, name: &str) -> Result<BTreeSet<Platform>, StoreError> {
    tx.query(
        "select distinct d.platform from devices d join device_labels l on l.device_id = d.id
         where l.label = 'fleet' and l.value = $1",
        params![name],
    )?
    .iter()
    .map(|row| row.parsed(0))
    .collect()
}
