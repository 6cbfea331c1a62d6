//! Owns the tables of releases and of the devices that stay at one; has no function that changes a release.

use holdfast_domain::release::Pins;
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx, json};
use crate::params;

/// Releases kept of each fleet, beside those that something still stands on: years of a busy pipeline.
const KEPT: i64 = 500;

/// A release without what people asked for: lists do not read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The row's number.
    pub id: i64,
    /// Its number in its fleet, from 1.
    pub number: i64,
    /// What its references meant when it was made.
    pub pins: Pins,
    /// Whether it is the one that was rolled out completely last.
    pub is_current: bool,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}

/// A release as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// All but the next.
    pub listed: Listed,
    /// The row of its fleet.
    pub fleet_id: i64,
    /// The fleet's name.
    pub fleet: String,
    /// What people asked for, as JSON.
    pub input: String,
}

/// Every query for whole releases starts alike.
macro_rules! select_releases {
    ($rest:literal) => {
        concat!(
            "select r.id, r.number, r.pins, cast(case when f.release = r.id then 1 else 0 end as bigint),
                    r.created_by, r.created_at, r.fleet_id, f.name, r.input
             from releases r join fleets f on f.id = r.fleet_id ",
            $rest
        )
    };
}

fn listed(row: &Row) -> Result<Listed, StoreError> {
    Ok(Listed {
        id: row.int(0)?,
        number: row.int(1)?,
        pins: row.document(2, "release")?,
        is_current: row.truth(3)?,
        created_by: row.text(4)?.to_owned(),
        created_at: row.time(5)?,
    })
}

fn release(row: &Row) -> Result<Release, StoreError> {
    Ok(Release {
        listed: listed(row)?,
        fleet_id: row.int(6)?,
        fleet: row.text(7)?.to_owned(),
        input: row.text(8)?.to_owned(),
    })
}

/// A release to be.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// The row of its fleet.
    pub fleet_id: i64,
    /// What people asked for, as JSON.
    pub input: &'a str,
    /// What its references mean.
    pub pins: &'a Pins,
    /// Who makes it.
    pub created_by: &'a str,
}

/// Adds the next release of a fleet, and forgets what is too old; answers its row.
pub fn insert(tx: &mut Tx<'_>, new: &New<'_>, now: Timestamp) -> Result<i64, StoreError> {
    let id = tx
        .query_opt(
            "insert into releases (fleet_id, number, input, pins, created_by, created_at)
             values ($1, (select coalesce(max(number), 0) + 1 from releases where fleet_id = $1),
                     $2, $3, $4, $5)
             returning id",
            params![
                new.fleet_id,
                new.input,
                json("release", new.pins)?,
                new.created_by,
                now
            ],
        )?
        .ok_or(StoreError::Interrupted)?
        .int(0)?;
    tx.execute(
        "delete from releases where fleet_id = $1
           and number <= (select max(number) from releases where fleet_id = $1) - $2
           and not exists (select 1 from fleets f where f.release = releases.id)
           and not exists (select 1 from release_pins p where p.release_id = releases.id)
           and not exists (select 1 from rollouts o where o.release_id = releases.id
                and o.state in ('pending', 'running', 'paused', 'rolling_back'))",
        params![new.fleet_id, KEPT],
    )?;
    Ok(id)
}

/// The release in this row.
pub fn find(tx: &mut Tx<'_>, id: i64) -> Result<Option<Release>, StoreError> {
    tx.query_opt(select_releases!("where r.id = $1"), params![id])?
        .as_ref()
        .map(release)
        .transpose()
}

/// The release of a fleet with this number.
pub fn numbered(tx: &mut Tx<'_>, fleet: &str, number: i64) -> Result<Option<Release>, StoreError> {
    tx.query_opt(
        select_releases!("where f.name = $1 and r.number = $2"),
        params![fleet, number],
    )?
    .as_ref()
    .map(release)
    .transpose()
}

/// The newest release of a fleet.
pub fn newest(tx: &mut Tx<'_>, fleet_id: i64) -> Result<Option<Release>, StoreError> {
    tx.query_opt(
        select_releases!("where r.fleet_id = $1 order by r.number desc limit 1"),
        params![fleet_id],
    )?
    .as_ref()
    .map(release)
    .transpose()
}

/// One page of a fleet's releases, the newest first, before number `before`.
pub fn list(
    tx: &mut Tx<'_>,
    fleet_id: i64,
    before: i64,
    limit: i64,
) -> Result<Vec<Listed>, StoreError> {
    tx.query(
        "select r.id, r.number, r.pins, cast(case when f.release = r.id then 1 else 0 end as bigint),
                r.created_by, r.created_at
         from releases r join fleets f on f.id = r.fleet_id
         where r.fleet_id = $1 and r.number < $2 order by r.number desc limit $3",
        params![fleet_id, before, limit],
    )?
    .iter()
    .map(listed)
    .collect()
}

/// Whether a rollout of this release was ever begun.
pub fn was_rolled_out(tx: &mut Tx<'_>, id: i64) -> Result<bool, StoreError> {
    let found = tx.query_opt(
        "select id from rollouts where release_id = $1 limit 1",
        params![id],
    )?;
    Ok(found.is_some())
}

/// Where a device stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// The row of the release.
    pub release_id: i64,
    /// Its number.
    pub number: i64,
}

/// The release that a device stays at, if it does.
pub fn pinned(tx: &mut Tx<'_>, device_id: i64) -> Result<Option<Pinned>, StoreError> {
    tx.query_opt(
        "select p.release_id, r.number from release_pins p join releases r on r.id = p.release_id
         where p.device_id = $1",
        params![device_id],
    )?
    .map(|row| {
        Ok(Pinned {
            release_id: row.int(0)?,
            number: row.int(1)?,
        })
    })
    .transpose()
}

/// Makes a device stay at a release.
pub fn pin(
    tx: &mut Tx<'_>,
    device_id: i64,
    release_id: i64,
    by: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "insert into release_pins (device_id, release_id, pinned_by, pinned_at)
         values ($1, $2, $3, $4)
         on conflict (device_id) do update set release_id = excluded.release_id,
            pinned_by = excluded.pinned_by, pinned_at = excluded.pinned_at",
        params![device_id, release_id, by, now],
    )?;
    Ok(())
}

/// Lets a device go with its fleet again.
pub fn unpin(tx: &mut Tx<'_>, device_id: i64) -> Result<(), StoreError> {
    tx.execute(
        "delete from release_pins where device_id = $1",
        params![device_id],
    )?;
    Ok(())
}
