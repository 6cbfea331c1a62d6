//! Owns the tables of messages to channels, and of how far events were turned into messages.
//!
//! Refuses two messages about one event to one channel, and what a sender writes that was overtaken: each write
//! names the attempt that it is about.

use holdfast_domain::notification::{Content, Summary};
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx, json};
use super::events::{self, Event};
use crate::params;

/// Messages summed up at once: as many as may wait, and one round of new ones.
const MOST_SUMMED: i64 = 2_000;

/// A message as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The row's number.
    pub id: i64,
    /// The channel.
    pub channel: i64,
    /// The event; none for a test or a summary.
    pub event: Option<i64>,
    /// Its name, the same for every try.
    pub name: String,
    /// What it is about, in one word.
    pub kind: String,
    /// `waiting`, `delivered`, `failed` or `summed_up`.
    pub state: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next.
    pub next_attempt_at: Timestamp,
    /// When it was tried last.
    pub last_attempt_at: Option<Timestamp>,
    /// The last status of the other side.
    pub status: Option<i64>,
    /// Why it was not taken.
    pub error: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
}

macro_rules! select_deliveries {
    ($rest:literal) => {
        concat!(
            "select id, channel_id, event_id, delivery, kind, state, attempts, next_attempt_at,
                    last_attempt_at, status, error, created_at, ended_at
             from notification_deliveries ",
            $rest
        )
    };
}

fn delivery(row: &Row) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        id: row.int(0)?,
        channel: row.int(1)?,
        event: row.opt_int(2)?,
        name: row.text(3)?.to_owned(),
        kind: row.text(4)?.to_owned(),
        state: row.text(5)?.to_owned(),
        attempts: u32::try_from(row.count(6)?).unwrap_or(u32::MAX),
        next_attempt_at: row.time(7)?,
        last_attempt_at: row.opt_time(8)?,
        status: row.opt_int(9)?,
        error: row.opt_text(10)?.map(str::to_owned),
        created_at: row.time(11)?,
        ended_at: row.opt_time(12)?,
    })
}

/// A message to be stored.
#[derive(Debug, Clone)]
pub struct New<'a> {
    /// The channel.
    pub channel: i64,
    /// The event; none for a test or a summary.
    pub event: Option<i64>,
    /// Its name.
    pub name: &'a str,
    /// What it tells.
    pub content: &'a Content,
}

/// Stores a message that is due at once; none when the channel has one about this event.
pub fn add(tx: &mut Tx<'_>, new: &New<'_>, now: Timestamp) -> Result<Option<i64>, StoreError> {
    let row = tx.query_opt(
        "insert into notification_deliveries (channel_id, event_id, delivery, kind, content, state, attempts,
            next_attempt_at, created_at)
         values ($1, $2, $3, $4, $5, 'waiting', 0, $6, $6)
         on conflict (channel_id, event_id) do nothing returning id",
        params![
            new.channel,
            new.event,
            new.name,
            new.content.kind(),
            json("message", new.content)?,
            now
        ],
    )?;
    row.map(|row| row.int(0)).transpose()
}

/// What a message tells.
pub fn content(tx: &mut Tx<'_>, id: i64) -> Result<Option<Content>, StoreError> {
    tx.query_opt(
        "select content from notification_deliveries where id = $1",
        params![id],
    )?
    .map(|row| row.document(0, "message"))
    .transpose()
}

/// The message of a channel that is due first.
pub fn first_due(
    tx: &mut Tx<'_>,
    channel: i64,
    now: Timestamp,
) -> Result<Option<Delivery>, StoreError> {
    tx.query_opt(
        select_deliveries!(
            "where channel_id = $1 and state = 'waiting' and next_attempt_at <= $2
             order by next_attempt_at, id limit 1"
        ),
        params![channel, now],
    )?
    .as_ref()
    .map(delivery)
    .transpose()
}

/// How many messages of a channel wait for their first try.
pub fn never_tried(tx: &mut Tx<'_>, channel: i64) -> Result<u64, StoreError> {
    tx.query_opt(
        "select count(*) from notification_deliveries
         where channel_id = $1 and state = 'waiting' and attempts = 0",
        params![channel],
    )?
    .map_or(Ok(0), |row| row.count(0))
}

/// How many messages of a channel were tried last after `since`.
pub fn tried_since(tx: &mut Tx<'_>, channel: i64, since: Timestamp) -> Result<u64, StoreError> {
    tx.query_opt(
        "select count(*) from notification_deliveries where channel_id = $1 and last_attempt_at > $2",
        params![channel, since],
    )?
    .map_or(Ok(0), |row| row.count(0))
}

/// How many messages of a channel wait.
pub fn waiting(tx: &mut Tx<'_>, channel: i64) -> Result<u64, StoreError> {
    tx.query_opt(
        "select count(*) from notification_deliveries where channel_id = $1 and state = 'waiting'",
        params![channel],
    )?
    .map_or(Ok(0), |row| row.count(0))
}

/// Puts one message called `name` in the place of all that wait for their first try.
pub fn sum_up(tx: &mut Tx<'_>, channel: i64, name: &str, now: Timestamp) -> Result<(), StoreError> {
    let rows = tx.query(
        "select id, content from notification_deliveries
         where channel_id = $1 and state = 'waiting' and attempts = 0 order by id limit $2",
        params![channel, MOST_SUMMED],
    )?;
    let contents = rows
        .iter()
        .map(|row| row.document(1, "message"))
        .collect::<Result<Vec<Content>, StoreError>>()?;
    let Some(last) = rows.last() else {
        return Ok(());
    };
    tx.execute(
        "update notification_deliveries set state = 'summed_up', ended_at = $3
         where channel_id = $1 and state = 'waiting' and attempts = 0 and id <= $2",
        params![channel, last.int(0)?, now],
    )?;
    let content = Content::Summary(Summary::of(&contents));
    let new = New {
        channel,
        event: None,
        name,
        content: &content,
    };
    add(tx, &new, now)?;
    Ok(())
}

/// Takes a message for one more try; false when somebody else did. It is due again at `until`, if nobody says
/// before what became of it.
pub fn claim(
    tx: &mut Tx<'_>,
    id: i64,
    attempts: u32,
    now: Timestamp,
    until: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update notification_deliveries set attempts = attempts + 1, last_attempt_at = $3, next_attempt_at = $4
         where id = $1 and attempts = $2 and state = 'waiting'",
        params![id, i64::from(attempts), now, until],
    )?;
    Ok(changed > 0)
}

/// What the other side said of a try.
#[derive(Debug, Clone, Default)]
pub struct Answer<'a> {
    /// Its status.
    pub status: Option<u16>,
    /// Why it was not taken.
    pub error: Option<&'a str>,
}

/// Ends a message with the state `delivered` or `failed`; false when another try has begun.
pub fn end(
    tx: &mut Tx<'_>,
    (id, attempts): (i64, u32),
    state: &'static str,
    answer: &Answer<'_>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update notification_deliveries set state = $3, status = $4, error = $5, ended_at = $6
         where id = $1 and attempts = $2 and state = 'waiting'",
        params![
            id,
            i64::from(attempts),
            state,
            answer.status.map(i64::from),
            answer.error,
            now
        ],
    )?;
    Ok(changed > 0)
}

/// Puts a message off; false when another try has begun.
pub fn put_off(
    tx: &mut Tx<'_>,
    (id, attempts): (i64, u32),
    answer: &Answer<'_>,
    at: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update notification_deliveries set next_attempt_at = $3, status = $4, error = $5
         where id = $1 and attempts = $2 and state = 'waiting'",
        params![
            id,
            i64::from(attempts),
            at,
            answer.status.map(i64::from),
            answer.error
        ],
    )?;
    Ok(changed > 0)
}

/// Ends messages of a channel that were made before `before` and are due: old news.
pub fn expire(
    tx: &mut Tx<'_>,
    channel: i64,
    before: Timestamp,
    now: Timestamp,
) -> Result<u64, StoreError> {
    tx.execute(
        "update notification_deliveries
         set state = 'failed', error = coalesce(error, 'nothing was sent for a day'), ended_at = $3
         where channel_id = $1 and state = 'waiting' and created_at <= $2 and next_attempt_at <= $3",
        params![channel, before, now],
    )
}

/// Forgets messages of a channel that are over, but for the newest `keep`.
pub fn prune(tx: &mut Tx<'_>, channel: i64, keep: i64) -> Result<u64, StoreError> {
    tx.execute(
        "delete from notification_deliveries
         where channel_id = $1 and state <> 'waiting' and id <= (
            select id from notification_deliveries where channel_id = $1 and state <> 'waiting'
            order by id desc limit 1 offset $2)",
        params![channel, keep],
    )
}

/// One page of a channel's messages, newest first, before row `before`.
pub fn list(
    tx: &mut Tx<'_>,
    channel: i64,
    before: i64,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    tx.query(
        select_deliveries!("where channel_id = $1 and id < $2 order by id desc limit $3"),
        params![channel, before, limit],
    )?
    .iter()
    .map(delivery)
    .collect()
}

/// Events that were not turned into messages yet, oldest first.
pub fn unseen_events(tx: &mut Tx<'_>, limit: i64) -> Result<Vec<Event>, StoreError> {
    tx.query(
        "select e.id, e.kind, e.device, e.subject, e.detail, e.at from events e
         where e.id > (select event_id from notification_cursor where name = 'events')
           and not exists (select 1 from notification_seen s where s.event_id = e.id)
         order by e.id limit $1",
        params![limit],
    )?
    .iter()
    .map(events::event)
    .collect()
}

/// Notes an event as turned into messages; false when it was before.
pub fn see(tx: &mut Tx<'_>, event: i64, now: Timestamp) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "insert into notification_seen (event_id, seen_at) values ($1, $2) on conflict (event_id) do nothing",
        params![event, now],
    )?;
    Ok(changed > 0)
}

/// Moves the cursor up to the events that were seen before `before` without a younger one among them, and forgets
/// them one by one. Whatever is not visible by then will never be.
pub fn settle(tx: &mut Tx<'_>, before: Timestamp) -> Result<(), StoreError> {
    let settled = tx.query_opt(
        "select max(event_id) from notification_seen
         where seen_at < $1 and event_id < coalesce(
            (select min(event_id) from notification_seen where seen_at >= $1), 9223372036854775807)",
        params![before],
    )?;
    let Some(settled) = settled.map(|row| row.opt_int(0)).transpose()?.flatten() else {
        return Ok(());
    };
    tx.execute(
        "update notification_cursor set event_id = $1 where name = 'events' and event_id < $1",
        params![settled],
    )?;
    tx.execute(
        "delete from notification_seen where event_id <= $1",
        params![settled],
    )?;
    Ok(())
}

/// Whether there is an event to be settled: seen before `before`.
pub fn may_settle(tx: &mut Tx<'_>, before: Timestamp) -> Result<bool, StoreError> {
    let row = tx.query_opt(
        "select seen_at from notification_seen where seen_at < $1 limit 1",
        params![before],
    )?;
    Ok(row.is_some())
}
