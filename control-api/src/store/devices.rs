//! Owns the tables of devices and their labels; refuses to know what a device should run.

use std::collections::BTreeMap;

use holdfast_domain::image_updates::effective;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Platform;
use holdfast_proto::image_updates::ImageUpdatePolicy;
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx, json};
use super::image_updates;
use crate::params;

/// Labels of a device, in order.
pub type Labels = BTreeMap<String, String>;

/// One device as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The row's number: key of everything else about the device, and the order of lists.
    pub id: i64,
    /// The device's own identifier.
    pub uuid: DeviceId,
    /// What people call it.
    pub name: String,
    /// How people group it.
    pub labels: Labels,
    /// What it can run.
    pub platform: Platform,
    /// The agent that enrolled it, or that reported last.
    pub agent_version: String,
    /// An operator allowed the next enrolment to replace its token.
    pub may_re_enrol: bool,
    /// When it enrolled last.
    pub enrolled_at: Timestamp,
    /// When it last polled or reported, up to some seconds late; none if it only enrolled.
    pub last_seen_at: Option<Timestamp>,
    /// The generation of its target; 0 when it was never given one.
    pub target_generation: u64,
    /// The generation it last reported.
    pub reported_generation: Option<u64>,
    /// The status it last reported, in the word of the wire.
    pub reported_status: Option<String>,
    /// What it says of its own image updates.
    pub image_updates: ImageUpdatePolicy,
    /// What its fleet says of them.
    pub image_updates_of_fleet: ImageUpdatePolicy,
    /// Since when it gets nothing and nothing of it is taken.
    pub quarantined_at: Option<Timestamp>,
}

impl Device {
    /// What counts for its image updates: its own word, else its fleet's.
    pub fn effective_updates(&self) -> ImageUpdatePolicy {
        effective(&self.image_updates, &self.image_updates_of_fleet)
    }
}

/// What an enrolment brings.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The device's identifier.
    pub uuid: DeviceId,
    /// What people will call it.
    pub name: String,
    /// Its labels, those fixed by the key included.
    pub labels: Labels,
    /// What it can run.
    pub platform: Platform,
    /// The agent that asks.
    pub agent_version: String,
    /// SHA-256 of the token it will use, in hex.
    pub token_hash: String,
}

/// What a list of devices is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Part of the name or identifier, whatever the case.
    pub search: Option<String>,
    /// The exact name.
    pub name: Option<String>,
    /// A label that is present, and its value if one is given.
    pub label: Option<(String, Option<String>)>,
    /// The exact platform.
    pub platform: Option<Platform>,
    /// Heard of at or after this instant.
    pub seen_since: Option<Timestamp>,
    /// Not heard of since this instant.
    pub not_seen_since: Option<Timestamp>,
    /// Never heard of.
    pub never_seen: bool,
}

/// What the poll cache holds of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hot {
    /// The row's number.
    pub id: i64,
    /// The device's own identifier.
    pub uuid: DeviceId,
    /// SHA-256 of its token, in hex.
    pub token_hash: String,
    /// Whether it is in quarantine.
    pub is_quarantined: bool,
    /// Its target's `ETag`, generation and body; none when it was never given a target.
    pub target: Option<(String, u64, String)>,
}

/// Every query for whole devices starts alike: the row, its target's generation, its last report, its fleet's policy.
macro_rules! select_devices {
    ($rest:literal) => {
        concat!(
            "select d.id, d.uuid, d.name, d.labels, d.platform, d.agent_version, d.may_re_enrol,
                    d.enrolled_at, d.last_seen_at, coalesce(t.generation, 0), r.generation, r.status,
                    d.image_updates,
                    (select f.image_updates from device_labels m join fleets f on f.name = m.value
                        where m.device_id = d.id and m.label = 'fleet'),
                    d.quarantined_at
             from devices d left join targets t on t.device_id = d.id
                  left join reports r on r.device_id = d.id ",
            $rest
        )
    };
}

fn device(row: &Row) -> Result<Device, StoreError> {
    Ok(Device {
        id: row.int(0)?,
        uuid: row.parsed(1)?,
        name: row.text(2)?.to_owned(),
        labels: row.document(3, "label set")?,
        platform: row.parsed(4)?,
        agent_version: row.text(5)?.to_owned(),
        may_re_enrol: row.truth(6)?,
        enrolled_at: row.time(7)?,
        last_seen_at: row.opt_time(8)?,
        target_generation: row.count(9)?,
        reported_generation: row.opt_int(10)?.map(|_| row.count(10)).transpose()?,
        reported_status: row.opt_text(11)?.map(str::to_owned),
        image_updates: image_updates::read(row, 12)?,
        image_updates_of_fleet: image_updates::read(row, 13)?,
        quarantined_at: row.opt_time(14)?,
    })
}

/// The device with this identifier.
pub fn find(tx: &mut Tx<'_>, uuid: DeviceId) -> Result<Option<Device>, StoreError> {
    tx.query_opt(select_devices!("where d.uuid = $1"), params![uuid])?
        .as_ref()
        .map(device)
        .transpose()
}

/// The hash of the device's token, to compare with one it presents.
pub fn token_hash(tx: &mut Tx<'_>, uuid: DeviceId) -> Result<Option<String>, StoreError> {
    tx.query_opt(
        "select token_hash from devices where uuid = $1",
        params![uuid],
    )?
    .map(|row| row.text(0).map(str::to_owned))
    .transpose()
}

/// Which device a token belongs to.
pub fn by_token_hash(tx: &mut Tx<'_>, hash: &str) -> Result<Option<DeviceId>, StoreError> {
    tx.query_opt(
        "select uuid from devices where token_hash = $1",
        params![hash],
    )?
    .map(|row| row.parsed(0))
    .transpose()
}

/// Stores a new device, or a known one under its new token; answers its row number.
pub fn enrol(tx: &mut Tx<'_>, new: &Enrolment, now: Timestamp) -> Result<i64, StoreError> {
    let row = tx.query_opt(
        "insert into devices (uuid, name, name_folded, labels, platform, agent_version, token_hash,
                              may_re_enrol, enrolled_at, last_seen_at)
         values ($1, $2, $3, $4, $5, $6, $7, 0, $8, null)
         on conflict (uuid) do update set
            name = excluded.name, name_folded = excluded.name_folded, labels = excluded.labels,
            platform = excluded.platform, agent_version = excluded.agent_version,
            token_hash = excluded.token_hash, may_re_enrol = 0,
            enrolled_at = excluded.enrolled_at, quarantined_at = null
         returning id",
        params![
            new.uuid,
            &new.name,
            new.name.to_lowercase(),
            json("label set", &new.labels)?,
            new.platform.to_string(),
            &new.agent_version,
            &new.token_hash,
            now
        ],
    )?;
    let id = row.ok_or(StoreError::Interrupted)?.int(0)?;
    write_labels(tx, id, &new.labels)?;
    Ok(id)
}

/// Changes what people decide about a device.
pub fn update(tx: &mut Tx<'_>, changed: &Device) -> Result<(), StoreError> {
    tx.execute(
        "update devices set name = $2, name_folded = $3, labels = $4, may_re_enrol = $5, image_updates = $6,
                quarantined_at = $7
         where id = $1",
        params![
            changed.id,
            &changed.name,
            changed.name.to_lowercase(),
            json("label set", &changed.labels)?,
            changed.may_re_enrol,
            image_updates::text(&changed.image_updates)?,
            changed.quarantined_at
        ],
    )?;
    write_labels(tx, changed.id, &changed.labels)
}

fn write_labels(tx: &mut Tx<'_>, id: i64, labels: &Labels) -> Result<(), StoreError> {
    tx.execute(
        "delete from device_labels where device_id = $1",
        params![id],
    )?;
    for (label, value) in labels {
        tx.execute(
            "insert into device_labels (device_id, label, value) values ($1, $2, $3)",
            params![id, label, value],
        )?;
    }
    Ok(())
}

/// Puts a device into quarantine; says whether it was not in it.
pub fn quarantine(tx: &mut Tx<'_>, id: i64, now: Timestamp) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update devices set quarantined_at = $2 where id = $1 and quarantined_at is null",
        params![id, now],
    )?;
    Ok(changed > 0)
}

/// Records which agent a device runs now.
pub fn set_agent_version(tx: &mut Tx<'_>, id: i64, version: &str) -> Result<(), StoreError> {
    tx.execute(
        "update devices set agent_version = $2 where id = $1 and agent_version <> $2",
        params![id, version],
    )?;
    Ok(())
}

/// Removes a device with all that hangs on it; its token dies with the row.
pub fn remove(tx: &mut Tx<'_>, uuid: DeviceId) -> Result<bool, StoreError> {
    Ok(tx.execute("delete from devices where uuid = $1", params![uuid])? > 0)
}

/// Records that a device was heard of; never moves the record back.
pub fn seen(tx: &mut Tx<'_>, id: i64, at: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "update devices set last_seen_at = $2 where id = $1 and (last_seen_at is null or last_seen_at < $2)",
        params![id, at],
    )?;
    Ok(())
}

/// Notes who is heard of again since `since`, or is not any more; answers those, at most so many.
pub fn turn_presence(
    tx: &mut Tx<'_>,
    is_online: bool,
    since: Timestamp,
    limit: i64,
) -> Result<Vec<DeviceId>, StoreError> {
    let sql = if is_online {
        "update devices set is_online = 1 where id in (
            select id from devices where is_online = 0 and last_seen_at >= $1 order by id limit $2)
         returning uuid"
    } else {
        "update devices set is_online = 0 where id in (
            select id from devices where is_online = 1 and last_seen_at < $1 order by id limit $2)
         returning uuid"
    };
    tx.query(sql, params![since, limit])?
        .iter()
        .map(|row| row.parsed(0))
        .collect()
}

/// One page of devices in the order they enrolled, after row `after`.
pub fn list(
    tx: &mut Tx<'_>,
    filter: &Filter,
    after: i64,
    limit: i64,
) -> Result<Vec<Device>, StoreError> {
    let (label, label_value) = match &filter.label {
        Some((label, value)) => (Some(label), value.as_ref()),
        None => (None, None),
    };
    tx.query(
        select_devices!(
            r"where d.id > $1
           and (cast($2 as text) is null or d.name_folded like $2 escape '\' or d.uuid like $2 escape '\')
           and (cast($3 as text) is null or d.name = $3)
           and (cast($4 as text) is null or exists (
                select 1 from device_labels l where l.device_id = d.id and l.label = $4
                   and (cast($5 as text) is null or l.value = $5)))
           and (cast($6 as text) is null or d.platform = $6)
           and (cast($7 as bigint) is null or d.last_seen_at >= $7)
           and (cast($8 as bigint) is null or d.last_seen_at < $8)
           and (cast($9 as bigint) is null or d.last_seen_at is null)
         order by d.id limit $10"
        ),
        params![
            after,
            filter.search.as_deref().map(contains),
            filter.name.as_deref(),
            label,
            label_value,
            filter.platform.as_ref().map(ToString::to_string),
            filter.seen_since,
            filter.not_seen_since,
            filter.never_seen.then_some(1_i64),
            limit
        ],
    )?
    .iter()
    .map(device)
    .collect()
}

/// The devices that a rollout of a fleet's release is for: those in the fleet without a target of their own, and
/// not kept at one release.
pub fn followers(tx: &mut Tx<'_>, fleet: &str) -> Result<Vec<Device>, StoreError> {
    tx.query(
        select_devices!(
            "where exists (select 1 from device_labels l
                where l.device_id = d.id and l.label = 'fleet' and l.value = $1)
           and coalesce(t.own, 0) = 0
           and not exists (select 1 from release_pins p where p.device_id = d.id)
         order by d.id"
        ),
        params![fleet],
    )?
    .iter()
    .map(device)
    .collect()
}

/// Those of [`followers`] whom the last rollout of a release did not know: they came while it was on its way.
pub fn latecomers(
    tx: &mut Tx<'_>,
    fleet: &str,
    release_id: i64,
) -> Result<Vec<Device>, StoreError> {
    tx.query(
        select_devices!(
            "where exists (select 1 from device_labels l
                where l.device_id = d.id and l.label = 'fleet' and l.value = $1)
           and coalesce(t.own, 0) = 0
           and not exists (select 1 from release_pins p where p.device_id = d.id)
           and not exists (select 1 from rollout_devices m where m.device = d.uuid
                and m.rollout_id = (select max(o.id) from rollouts o where o.release_id = $2))
         order by d.id"
        ),
        params![fleet, release_id],
    )?
    .iter()
    .map(device)
    .collect()
}

/// A `like` pattern for texts that contain `part`, whose own wildcards mean themselves.
fn contains(part: &str) -> String {
    let mut pattern = String::with_capacity(part.len() + 2);
    pattern.push('%');
    for c in part.to_lowercase().chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

/// How many devices there are.
pub fn count(tx: &mut Tx<'_>) -> Result<u64, StoreError> {
    tx.query_opt("select count(*) from devices", params![])?
        .map_or(Ok(0), |row| row.count(0))
}

fn hot(row: &Row) -> Result<Hot, StoreError> {
    Ok(Hot {
        id: row.int(0)?,
        uuid: row.parsed(1)?,
        token_hash: row.text(2)?.to_owned(),
        target: match row.opt_text(3)? {
            Some(etag) => Some((etag.to_owned(), row.count(4)?, row.text(5)?.to_owned())),
            None => None,
        },
        is_quarantined: row.opt_time(6)?.is_some(),
    })
}

/// What the poll cache needs of one device.
pub fn hot_one(tx: &mut Tx<'_>, uuid: DeviceId) -> Result<Option<Hot>, StoreError> {
    tx.query_opt(
        "select d.id, d.uuid, d.token_hash, t.etag, t.generation, t.body, d.quarantined_at
         from devices d left join targets t on t.device_id = d.id where d.uuid = $1",
        params![uuid],
    )?
    .as_ref()
    .map(hot)
    .transpose()
}

/// One page of what the poll cache needs, after row `after`.
pub fn hot_page(tx: &mut Tx<'_>, after: i64, limit: i64) -> Result<Vec<Hot>, StoreError> {
    tx.query(
        "select d.id, d.uuid, d.token_hash, t.etag, t.generation, t.body, d.quarantined_at
         from devices d left join targets t on t.device_id = d.id
         where d.id > $1 order by d.id limit $2",
        params![after, limit],
    )?
    .iter()
    .map(hot)
    .collect()
}
