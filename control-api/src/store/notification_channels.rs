//! Owns the table of notification channels; sees what is secret of them only sealed.

use holdfast_domain::notification::channel::Settings;
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx, json};
use crate::params;
use crate::vault::Sealed;

/// Each event is judged for each channel; more are a mistake of a program.
pub const MOST_CHANNELS: i64 = 50;

/// A channel as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The row's number.
    pub id: i64,
    /// What it is told.
    pub settings: Settings,
    /// What its secrets are sealed for, with what they lead to.
    pub place: String,
    /// What is secret of it.
    pub sealed: Sealed,
    /// Failures in a row.
    pub failures: u32,
    /// Nothing is sent before this.
    pub rest_until: Option<Timestamp>,
    /// When it last took a message.
    pub taken_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it changed last.
    pub updated_at: Timestamp,
}

macro_rules! select_channels {
    ($rest:literal) => {
        concat!(
            "select id, settings, place, sealed, key_id, failures, rest_until, taken_at, created_at,
                    updated_at
             from notification_channels ",
            $rest
        )
    };
}

fn stored(row: &Row) -> Result<Stored, StoreError> {
    Ok(Stored {
        id: row.int(0)?,
        settings: row.document(1, "notification channel")?,
        place: row.text(2)?.to_owned(),
        sealed: Sealed {
            text: row.text(3)?.to_owned(),
            key_id: row.text(4)?.to_owned(),
        },
        failures: u32::try_from(row.count(5)?).unwrap_or(u32::MAX),
        rest_until: row.opt_time(6)?,
        taken_at: row.opt_time(7)?,
        created_at: row.time(8)?,
        updated_at: row.time(9)?,
    })
}

/// Stores a new channel; none when its name is taken.
pub fn insert(
    tx: &mut Tx<'_>,
    settings: &Settings,
    (place, sealed): (&str, &Sealed),
    now: Timestamp,
) -> Result<Option<i64>, StoreError> {
    let row = tx.query_opt(
        "insert into notification_channels (name, enabled, settings, place, sealed, key_id, failures,
            created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, 0, $7, $7) on conflict (name) do nothing returning id",
        params![
            &settings.name,
            settings.enabled,
            json("notification channel", settings)?,
            place,
            &sealed.text,
            &sealed.key_id,
            now
        ],
    )?;
    row.map(|row| row.int(0)).transpose()
}

/// Replaces a channel, which begins anew with its receiver; false when its name is another one's.
pub fn update(
    tx: &mut Tx<'_>,
    id: i64,
    settings: &Settings,
    sealed: &Sealed,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update notification_channels set name = $2, enabled = $3, settings = $4, sealed = $5, key_id = $6,
            failures = 0, rest_until = null, updated_at = $7
         where id = $1 and not exists (
            select 1 from notification_channels other where other.name = $2 and other.id <> $1)",
        params![
            id,
            &settings.name,
            settings.enabled,
            json("notification channel", settings)?,
            &sealed.text,
            &sealed.key_id,
            now
        ],
    )?;
    Ok(changed > 0)
}

/// The channel with this number.
pub fn find(tx: &mut Tx<'_>, id: i64) -> Result<Option<Stored>, StoreError> {
    tx.query_opt(select_channels!("where id = $1"), params![id])?
        .as_ref()
        .map(stored)
        .transpose()
}

/// Removes a channel with its messages.
pub fn remove(tx: &mut Tx<'_>, id: i64) -> Result<(), StoreError> {
    tx.execute(
        "delete from notification_channels where id = $1",
        params![id],
    )?;
    Ok(())
}

/// One page of channels after row `after`.
pub fn list(tx: &mut Tx<'_>, after: i64, limit: i64) -> Result<Vec<Stored>, StoreError> {
    tx.query(
        select_channels!("where id > $1 order by id limit $2"),
        params![after, limit],
    )?
    .iter()
    .map(stored)
    .collect()
}

/// Every channel that sends.
pub fn enabled(tx: &mut Tx<'_>) -> Result<Vec<Stored>, StoreError> {
    tx.query(
        select_channels!("where enabled = 1 order by id limit $1"),
        params![MOST_CHANNELS],
    )?
    .iter()
    .map(stored)
    .collect()
}

/// How many channels there are.
pub fn count(tx: &mut Tx<'_>) -> Result<i64, StoreError> {
    tx.query_opt("select count(*) from notification_channels", params![])?
        .map_or(Ok(0), |row| row.int(0))
}

/// Channels that have something to send now.
pub fn ready(tx: &mut Tx<'_>, now: Timestamp) -> Result<Vec<i64>, StoreError> {
    tx.query(
        "select c.id from notification_channels c
         where c.enabled = 1 and (c.rest_until is null or c.rest_until <= $1) and exists (
            select 1 from notification_deliveries d
            where d.channel_id = c.id and d.state = 'waiting' and d.next_attempt_at <= $1)
         order by c.id limit $2",
        params![now, MOST_CHANNELS],
    )?
    .iter()
    .map(|row| row.int(0))
    .collect()
}

/// Notes that the receiver took a message.
pub fn taken(tx: &mut Tx<'_>, id: i64, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "update notification_channels set failures = 0, rest_until = null, taken_at = $2 where id = $1",
        params![id, now],
    )?;
    Ok(())
}

/// Notes that the receiver could not be reached or was in trouble, and leaves it alone for a while.
pub fn failed(tx: &mut Tx<'_>, id: i64, rest_until: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "update notification_channels set failures = failures + 1, rest_until = $2 where id = $1",
        params![id, rest_until],
    )?;
    Ok(())
}
