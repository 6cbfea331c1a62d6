//! Owns the tables of a rollout's devices and of what happened in it.

use std::collections::BTreeMap;

use holdfast_domain::image_updates::effective;
use holdfast_domain::resolution::Key;
use holdfast_domain::rollout::tick::Standing;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Platform;
use holdfast_proto::image_updates::ImageUpdatePolicy;
use holdfast_proto::time::Timestamp;

use super::super::db::{Row, StoreError, Tx};
use super::super::image_updates;
use super::{number, size};
use crate::params;

/// A device of a rollout as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Which.
    pub device: DeviceId,
    /// The batch that it goes with.
    pub batch: usize,
    /// How it stands.
    pub standing: Standing,
    /// Its group in the budget.
    pub group: Option<String>,
    /// The generation that it was told last.
    pub generation: Option<u64>,
    /// The generation that was verified on it before.
    pub back_to: Option<u64>,
    /// Why it stands so.
    pub detail: String,
    /// Since when.
    pub changed_at: Timestamp,
}

/// Adds a device; once.
pub fn add(tx: &mut Tx<'_>, id: i64, member: &Member) -> Result<(), StoreError> {
    tx.execute(
        "insert into rollout_devices (rollout_id, device, batch, standing, since, healthy_since, budget_group,
                                      generation, back_to, detail, changed_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) on conflict (rollout_id, device) do nothing",
        params![
            id,
            member.device,
            number(member.batch),
            member.standing.word(),
            times(&member.standing).0,
            times(&member.standing).1,
            member.group.as_deref(),
            member.generation.map(generation),
            member.back_to.map(generation),
            &member.detail,
            member.changed_at
        ],
    )?;
    Ok(())
}

fn generation(counter: u64) -> i64 {
    i64::try_from(counter).unwrap_or(i64::MAX)
}

/// Since when a device is on its way, and since when it is healthy.
fn times(standing: &Standing) -> (Option<Timestamp>, Option<Timestamp>) {
    match standing {
        Standing::Updating {
            since,
            healthy_since,
        } => (Some(*since), *healthy_since),
        Standing::Returning { since } | Standing::Readying { since } => (Some(*since), None),
        _ => (None, None),
    }
}

/// A standing from its word in `column` and the two times behind it.
fn standing(row: &Row, column: usize) -> Result<Standing, StoreError> {
    let document = serde_json::json!({
        "standing": row.text(column)?,
        "since": row.opt_time(column + 1)?,
        "healthy_since": row.opt_time(column + 2)?,
    });
    serde_json::from_value(document).map_err(|source| StoreError::Document {
        what: "standing",
        source,
    })
}

fn member(row: &Row) -> Result<Member, StoreError> {
    Ok(Member {
        device: row.parsed(0)?,
        batch: size(row, 1)?,
        standing: standing(row, 2)?,
        group: row.opt_text(5)?.map(str::to_owned),
        generation: row.opt_int(6)?.map(|_| row.count(6)).transpose()?,
        back_to: row.opt_int(7)?.map(|_| row.count(7)).transpose()?,
        detail: row.text(8)?.to_owned(),
        changed_at: row.time(9)?,
    })
}

/// The devices of a rollout, batch by batch.
pub fn all(tx: &mut Tx<'_>, id: i64) -> Result<Vec<Member>, StoreError> {
    tx.query(
        "select device, batch, standing, since, healthy_since, budget_group, generation, back_to, detail,
                changed_at
         from rollout_devices where rollout_id = $1 order by batch, device",
        params![id],
    )?
    .iter()
    .map(member)
    .collect()
}

/// One device of a rollout.
pub fn find(tx: &mut Tx<'_>, id: i64, device: DeviceId) -> Result<Option<Member>, StoreError> {
    tx.query_opt(
        "select device, batch, standing, since, healthy_since, budget_group, generation, back_to, detail,
                changed_at
         from rollout_devices where rollout_id = $1 and device = $2",
        params![id, device],
    )?
    .as_ref()
    .map(member)
    .transpose()
}

/// A device of a rollout, with what people call it and what it said last.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// How it stands.
    pub member: Member,
    /// Its name; none if it is gone.
    pub name: Option<String>,
    /// Its last report.
    pub report: Option<String>,
}

/// One page of a rollout's devices, batch by batch, after so many.
pub fn page(tx: &mut Tx<'_>, id: i64, after: i64, limit: i64) -> Result<Vec<Shown>, StoreError> {
    tx.query(
        "select m.device, m.batch, m.standing, m.since, m.healthy_since, m.budget_group, m.generation,
                m.back_to, m.detail, m.changed_at, d.name, r.body
         from rollout_devices m left join devices d on d.uuid = m.device
              left join reports r on r.device_id = d.id
         where m.rollout_id = $1 order by m.batch, m.device limit $3 offset $2",
        params![id, after, limit],
    )?
    .iter()
    .map(|row| {
        Ok(Shown {
            member: member(row)?,
            name: row.opt_text(10)?.map(str::to_owned),
            report: row.opt_text(11)?.map(str::to_owned),
        })
    })
    .collect()
}

/// How many devices of each batch stand how.
pub fn counts(tx: &mut Tx<'_>, id: i64) -> Result<Vec<(usize, String, u64)>, StoreError> {
    tx.query(
        "select batch, standing, count(*) from rollout_devices where rollout_id = $1
         group by batch, standing order by batch, standing",
        params![id],
    )?
    .iter()
    .map(|row| Ok((size(row, 0)?, row.text(1)?.to_owned(), row.count(2)?)))
    .collect()
}

/// What is stored of a device that was told something, or whose turn it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Which.
    pub device: DeviceId,
    /// When it was heard of last.
    pub last_seen_at: Option<Timestamp>,
    /// Its last report, and when that came.
    pub report: Option<(String, Timestamp)>,
    /// Its target's counter and body.
    pub target: Option<(u64, String)>,
    /// The body that the rollout told it last.
    pub told: Option<String>,
    /// What counts for its image updates.
    pub image_updates: ImageUpdatePolicy,
}

/// What counts for a device's image updates, from its own word in `column` and its fleet's behind that.
fn counts_for(row: &Row, column: usize) -> Result<ImageUpdatePolicy, StoreError> {
    let own = image_updates::read(row, column)?;
    Ok(effective(&own, &image_updates::read(row, column + 1)?))
}

/// What is stored of the devices of opened batches that have not answered for good.
pub fn seen(tx: &mut Tx<'_>, id: i64, opened: usize) -> Result<Vec<Seen>, StoreError> {
    tx.query(
        "select m.device, d.last_seen_at, r.body, r.received_at, t.generation, t.body, g.body, d.image_updates,
                (select f.image_updates from device_labels l join fleets f on f.name = l.value
                    where l.device_id = d.id and l.label = 'fleet')
         from rollout_devices m join devices d on d.uuid = m.device
              left join reports r on r.device_id = d.id
              left join targets t on t.device_id = d.id
              left join generations g on g.device_id = d.id and g.generation = m.generation
         where m.rollout_id = $1 and m.batch < $2
           and m.standing in ('waiting', 'skipped', 'updating', 'lost', 'readying', 'returning')",
        params![id, number(opened)],
    )?
    .iter()
    .map(|row| {
        let report = row.opt_text(2)?.map(str::to_owned);
        let target = row.opt_text(5)?.map(str::to_owned);
        Ok(Seen {
            device: row.parsed(0)?,
            last_seen_at: row.opt_time(1)?,
            report: report.zip(row.opt_time(3)?),
            target: match target {
                Some(body) => Some((row.count(4)?, body)),
                None => None,
            },
            told: row.opt_text(6)?.map(str::to_owned),
            image_updates: counts_for(row, 7)?,
        })
    })
    .collect()
}

/// The values of a label among devices that are on their way in other rollouts.
pub fn unavailable(
    tx: &mut Tx<'_>,
    id: i64,
    label: &str,
) -> Result<Vec<Option<String>>, StoreError> {
    tx.query(
        "select l.value from rollout_devices m
              join rollouts r on r.id = m.rollout_id
              join devices d on d.uuid = m.device
              left join device_labels l on l.device_id = d.id and l.label = $2
         where m.rollout_id <> $1 and m.standing in ('updating', 'lost')
           and r.state in ('pending', 'running', 'paused', 'rolling_back')",
        params![id, label],
    )?
    .iter()
    .map(|row| Ok(row.opt_text(0)?.map(str::to_owned)))
    .collect()
}

/// A device whose target names an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Which.
    pub device: DeviceId,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it can run.
    pub platform: Platform,
    /// What it is served.
    pub body: String,
    /// What counts for its image updates.
    pub image_updates: ImageUpdatePolicy,
}

/// The devices whose target names this tag.
pub fn candidates(tx: &mut Tx<'_>, key: &Key) -> Result<Vec<Candidate>, StoreError> {
    tx.query(
        "select d.uuid, d.labels, d.platform, t.body, d.image_updates,
                (select f.image_updates from device_labels l join fleets f on f.name = l.value
                    where l.device_id = d.id and l.label = 'fleet')
         from target_references x join devices d on d.id = x.device_id
              join targets t on t.device_id = d.id
         where x.registry = $1 and x.repository = $2 and x.selector = $3 order by d.id",
        params![&key.registry, &key.repository, &key.selector],
    )?
    .iter()
    .map(|row| {
        Ok(Candidate {
            device: row.parsed(0)?,
            labels: row.document(1, "label set")?,
            platform: row.parsed(2)?,
            body: row.text(3)?.to_owned(),
            image_updates: counts_for(row, 4)?,
        })
    })
    .collect()
}

/// Notes how a device stands.
pub fn note(tx: &mut Tx<'_>, id: i64, member: &Member) -> Result<(), StoreError> {
    let (since, healthy_since) = times(&member.standing);
    tx.execute(
        "update rollout_devices set batch = $3, standing = $4, since = $5, healthy_since = $6, generation = $7,
                back_to = $8, detail = $9, changed_at = $10
         where rollout_id = $1 and device = $2",
        params![
            id,
            member.device,
            number(member.batch),
            member.standing.word(),
            since,
            healthy_since,
            member.generation.map(generation),
            member.back_to.map(generation),
            &member.detail,
            member.changed_at
        ],
    )?;
    Ok(())
}

/// Something that happened in a rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Happening {
    /// Its number.
    pub id: i64,
    /// To which device, if to one.
    pub device: Option<DeviceId>,
    /// What: a standing, `told`, `batch_opened`, `turned`.
    pub what: String,
    /// In words.
    pub detail: String,
    /// When.
    pub at: Timestamp,
}

/// One page of what happened, in order; of one device only, if it is named.
pub fn timeline(
    tx: &mut Tx<'_>,
    id: i64,
    device: Option<DeviceId>,
    after: i64,
    limit: i64,
) -> Result<Vec<Happening>, StoreError> {
    tx.query(
        "select id, device, what, detail, at from rollout_log
         where rollout_id = $1 and id > $2 and (cast($3 as text) is null or device = $3)
         order by id limit $4",
        params![id, after, device, limit],
    )?
    .iter()
    .map(|row| {
        Ok(Happening {
            id: row.int(0)?,
            device: row.opt_text(1)?.map(|_| row.parsed(1)).transpose()?,
            what: row.text(2)?.to_owned(),
            detail: row.text(3)?.to_owned(),
            at: row.time(4)?,
        })
    })
    .collect()
}

/// Writes down what happened.
pub fn log(
    tx: &mut Tx<'_>,
    id: i64,
    device: Option<DeviceId>,
    (what, detail): (&str, &str),
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "insert into rollout_log (rollout_id, device, what, detail, at) values ($1, $2, $3, $4, $5)",
        params![id, device, what, detail, now],
    )?;
    Ok(())
}
