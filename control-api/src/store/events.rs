//! Owns the table of events, numbered in the order of commits; refuses to record one delivery twice.

use holdfast_domain::retention;
use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;
use serde_json::Value as Json;

use super::db::{Row, StoreError, Tx};
use super::history;
use crate::params;

/// Events looked at in one round of pruning: others get their turn in between.
const ROUND: i64 = 1_000;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Number of the event; later ones are greater.
    pub id: i64,
    /// What happened, such as `device.enrolled`.
    pub kind: String,
    /// The device concerned.
    pub device: Option<DeviceId>,
    /// What else is concerned, such as an image.
    pub subject: Option<String>,
    /// The rest, by kind.
    pub detail: Json,
    /// When.
    pub at: Timestamp,
}

/// An event about to be recorded.
#[derive(Debug, Clone)]
pub struct NewEvent<'a> {
    /// What happened.
    pub kind: &'a str,
    /// The device concerned.
    pub device: Option<DeviceId>,
    /// What else is concerned.
    pub subject: Option<&'a str>,
    /// The rest.
    pub detail: Json,
    /// The sender's name for it, by which a second delivery is recognised.
    pub delivery: Option<&'a str>,
}

impl<'a> NewEvent<'a> {
    /// About something that is no device, by the API itself.
    pub fn about(kind: &'a str, subject: &'a str, detail: Json) -> Self {
        Self {
            kind,
            device: None,
            subject: Some(subject),
            detail,
            delivery: None,
        }
    }
}

pub(super) fn event(row: &Row) -> Result<Event, StoreError> {
    Ok(Event {
        id: row.int(0)?,
        kind: row.text(1)?.to_owned(),
        device: row.opt_text(2)?.map(|_| row.parsed(2)).transpose()?,
        subject: row.opt_text(3)?.map(str::to_owned),
        detail: row.document(4, "event")?,
        at: row.time(5)?,
    })
}

/// Records an event; false when this delivery was recorded before.
pub fn record(tx: &mut Tx<'_>, new: &NewEvent<'_>, now: Timestamp) -> Result<bool, StoreError> {
    let id = history::take_event(tx)?;
    let changed = tx.execute(
        "insert into events (id, kind, device, subject, detail, at, delivery)
         values ($1, $2, $3, $4, $5, $6, $7) on conflict (delivery) do nothing",
        params![
            id,
            new.kind,
            new.device,
            new.subject,
            new.detail.to_string(),
            now,
            new.delivery
        ],
    )?;
    if changed > 0 {
        tx.note_event()?;
    }
    Ok(changed > 0)
}

/// One page of events, newest first, before event `before`.
pub fn list(
    tx: &mut Tx<'_>,
    kind: Option<&str>,
    device: Option<DeviceId>,
    before: i64,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    tx.query(
        "select id, kind, device, subject, detail, at from events
         where id < $1 and (cast($2 as text) is null or kind = $2)
           and (cast($3 as text) is null or device = $3)
         order by id desc limit $4",
        params![before, kind, device, limit],
    )?
    .iter()
    .map(event)
    .collect()
}

/// Events after number `after`, oldest first.
pub fn list_after(
    tx: &mut Tx<'_>,
    kind: Option<&str>,
    device: Option<DeviceId>,
    after: i64,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    tx.query(
        "select id, kind, device, subject, detail, at from events
         where id > $1 and (cast($2 as text) is null or kind = $2)
           and (cast($3 as text) is null or device = $3)
         order by id limit $4",
        params![after, kind, device, limit],
    )?
    .iter()
    .map(event)
    .collect()
}

/// Removes some of the oldest events that are from before `cutoff`; says how many.
pub fn prune(tx: &mut Tx<'_>, cutoff: Timestamp, now: Timestamp) -> Result<u64, StoreError> {
    let times = tx
        .query(
            "select id, at from events order by id limit $1",
            params![ROUND],
        )?
        .iter()
        .map(|row| Ok((row.int(0)?, row.time(1)?)))
        .collect::<Result<Vec<_>, StoreError>>()?;
    let Some(last) = retention::may_go(times, cutoff, now) else {
        return Ok(0);
    };
    history::set_events_pruned(tx, last)?;
    tx.execute("delete from events where id <= $1", params![last])
}
