//! Owns the table of webhook deliveries: what arrived, who works on it, what became of it.
//!
//! Refuses one delivery twice, and the writes of a worker whose claim is over: each claim raises the number of
//! attempts, and a worker writes only under its own.

use holdfast_proto::problem::FieldError;
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::db::{Row, StoreError, Tx, json};
use crate::params;

/// Claims of one delivery: what fails five times fails for a reason that waiting does not mend.
pub const MOST_ATTEMPTS: i64 = 5;
/// Deliveries whose bodies are kept, the newest: each may have 256 KiB.
pub const BODIES: i64 = 1_000;
/// Deliveries that are kept, the newest; by their keys repetitions are recognised.
pub const ROWS: i64 = 10_000;

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// To be worked on, or worked on now.
    Open,
    /// Everything that follows from it was done.
    Done,
    /// It could not be carried out.
    Failed,
}

/// The state's word in the database and on the wire.
pub const fn state_name(state: State) -> &'static str {
    match state {
        State::Open => "open",
        State::Done => "done",
        State::Failed => "failed",
    }
}

/// The state with this word.
pub fn state_named(name: &str) -> Option<State> {
    [State::Open, State::Done, State::Failed]
        .into_iter()
        .find(|state| state_name(*state) == name)
}

/// What became of one push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// The image, as people write it.
    pub image: String,
    /// The tag that was pushed.
    pub tag: String,
    /// `internal`, `approved`, `unknown`, `pending`, `rejected` or `tag_deprecated`.
    pub verdict: String,
    /// The rollout that began.
    pub rollout: Option<i64>,
    /// Why none began.
    pub reason: Option<String>,
    /// The refusal's short name, when the image may not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_required: Option<String>,
}

impl Outcome {
    /// Whether it was judged, and what follows was not done yet.
    pub fn waits(&self) -> bool {
        self.error.is_none() && self.rollout.is_none() && self.reason.is_none()
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What became of each push in it.
    #[serde(default)]
    pub outcomes: Vec<Outcome>,
    /// Why nothing, or not everything, was done.
    #[serde(default)]
    pub reason: Option<String>,
    /// Why it could not be read.
    #[serde(default)]
    pub fault: Option<FieldError>,
}

/// A delivery as stored, without its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Its number.
    pub id: i64,
    /// Who sent it: a vendor, or `approval` for a push that had waited for one.
    pub vendor: String,
    /// The name of the secret that it brought.
    pub secret: Option<String>,
    /// The request that carried it.
    pub request_id: String,
    /// The delivery that it repeats.
    pub again_of: Option<i64>,
    /// How far it is.
    pub state: State,
    /// What became of it, as far as that is known.
    pub record: Option<Record>,
    /// How often somebody began to work on it.
    pub attempts: i64,
    /// When it arrived.
    pub received_at: Timestamp,
    /// When everything was done, or given up.
    pub done_at: Option<Timestamp>,
}

/// A delivery that arrives.
#[derive(Debug, Clone)]
pub struct New {
    /// Who sent it.
    pub vendor: &'static str,
    /// By what it is known again.
    pub key: String,
    /// Known again only by a delivery that arrived since then; for ever without. What has no name of its own is
    /// known by its body, and the same body may be meant again.
    pub same_since: Option<Timestamp>,
    /// As it was sent.
    pub body: String,
    /// The name of the secret that it brought.
    pub secret: Option<String>,
    /// The request that carried it.
    pub request_id: String,
    /// The delivery that it repeats.
    pub again_of: Option<i64>,
    /// What became of it, when nothing follows from it.
    pub record: Option<Record>,
}

/// Every query for whole deliveries starts alike.
macro_rules! select_deliveries {
    ($rest:literal) => {
        concat!(
            "select id, vendor, secret, request_id, again_of, state, outcome, attempts, received_at, done_at
             from webhook_deliveries ",
            $rest
        )
    };
}

fn delivery(row: &Row) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        id: row.int(0)?,
        vendor: row.text(1)?.to_owned(),
        secret: row.opt_text(2)?.map(str::to_owned),
        request_id: row.text(3)?.to_owned(),
        again_of: row.opt_int(4)?,
        state: state_named(row.text(5)?).ok_or(StoreError::Column {
            statement: "deliveries",
            column: 5,
        })?,
        record: match row.opt_text(6)? {
            Some(_) => Some(row.document(6, "delivery")?),
            None => None,
        },
        attempts: row.int(7)?,
        received_at: row.time(8)?,
        done_at: row.opt_time(9)?,
    })
}

/// Stores a delivery; answers its number, and whether it is new: else it is that of the first one.
pub fn insert(tx: &mut Tx<'_>, new: &New, now: Timestamp) -> Result<(i64, bool), StoreError> {
    let known = tx.query_opt(
        "select id, received_at from webhook_deliveries where delivery = $1",
        params![&new.key],
    )?;
    if let Some(row) = known {
        let (id, at) = (row.int(0)?, row.time(1)?);
        if new.same_since.is_none_or(|since| at >= since) {
            return Ok((id, false));
        }
        // The key is the new one's; the old one keeps what nobody asks for.
        tx.execute(
            "update webhook_deliveries set delivery = delivery || ' ' || $2 where id = $1",
            params![id, id.to_string()],
        )?;
    }
    let record = new.record.as_ref();
    let (state, done_at) = match record {
        Some(_) => (State::Done, Some(now)),
        None => (State::Open, None),
    };
    let made = tx.query_opt(
        "insert into webhook_deliveries (vendor, delivery, body, state, outcome, attempts, received_at, done_at,
                                         secret, request_id, again_of)
         values ($1, $2, $3, $4, $5, 0, $6, $7, $8, $9, $10) on conflict (delivery) do nothing returning id",
        params![
            new.vendor,
            &new.key,
            &new.body,
            state_name(state),
            record.map(|record| json("delivery", record)).transpose()?,
            now,
            done_at,
            new.secret.as_deref(),
            &new.request_id,
            new.again_of
        ],
    )?;
    if let Some(row) = made {
        return Ok((row.int(0)?, true));
    }
    // Another transaction was first.
    let first = tx.query_opt(
        "select id from webhook_deliveries where delivery = $1",
        params![&new.key],
    )?;
    Ok((first.ok_or(StoreError::Busy(None))?.int(0)?, false))
}

/// The delivery with this number.
pub fn find(tx: &mut Tx<'_>, id: i64) -> Result<Option<Delivery>, StoreError> {
    tx.query_opt(select_deliveries!("where id = $1"), params![id])?
        .as_ref()
        .map(delivery)
        .transpose()
}

/// What was sent; none when it is not kept any more.
pub fn body(tx: &mut Tx<'_>, id: i64) -> Result<Option<String>, StoreError> {
    let row = tx.query_opt(
        "select body from webhook_deliveries where id = $1 and body <> ''",
        params![id],
    )?;
    row.map(|row| row.text(0).map(str::to_owned)).transpose()
}

/// One page of deliveries, the newest first.
pub fn list(
    tx: &mut Tx<'_>,
    state: Option<State>,
    before: i64,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    tx.query(
        select_deliveries!(
            "where id < $1 and (cast($2 as text) is null or state = $2) order by id desc limit $3"
        ),
        params![before, state.map(state_name), limit],
    )?
    .iter()
    .map(delivery)
    .collect()
}

/// Takes the oldest delivery that nobody works on, until `until`.
pub fn claim(
    tx: &mut Tx<'_>,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<Delivery>, StoreError> {
    let due = tx.query_opt(
        "select id, attempts from webhook_deliveries
         where state = 'open' and claimed_until <= $1 and attempts < $2 order by id limit 1",
        params![now, MOST_ATTEMPTS],
    )?;
    let Some(row) = due else { return Ok(None) };
    let (id, attempts) = (row.int(0)?, row.int(1)?);
    let taken = tx.execute(
        "update webhook_deliveries set attempts = attempts + 1, claimed_until = $3
         where id = $1 and attempts = $2 and state = 'open'",
        params![id, attempts, until],
    )?;
    if taken == 0 {
        return Ok(None);
    }
    find(tx, id)
}

/// Whose claim it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The delivery.
    pub id: i64,
    /// Which attempt.
    pub attempt: i64,
}

/// Notes what became of a delivery so far; false when the claim is over.
pub fn note(tx: &mut Tx<'_>, claim: Claim, record: &Record) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update webhook_deliveries set outcome = $3 where id = $1 and attempts = $2 and state = 'open'",
        params![claim.id, claim.attempt, json("delivery", record)?],
    )?;
    Ok(changed > 0)
}

/// Gives a delivery back, to be taken again after `not_before`.
pub fn release(tx: &mut Tx<'_>, claim: Claim, not_before: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "update webhook_deliveries set claimed_until = $3 where id = $1 and attempts = $2 and state = 'open'",
        params![claim.id, claim.attempt, not_before],
    )?;
    Ok(())
}

/// Ends a delivery; false when the claim is over.
pub fn end(
    tx: &mut Tx<'_>,
    claim: Claim,
    state: State,
    record: &Record,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update webhook_deliveries set state = $3, outcome = $4, done_at = $5
         where id = $1 and attempts = $2 and state = 'open'",
        params![
            claim.id,
            claim.attempt,
            state_name(state),
            json("delivery", record)?,
            now
        ],
    )?;
    Ok(changed > 0)
}

/// Deliveries whose every worker died over them, a few at a time.
pub fn abandoned(tx: &mut Tx<'_>, now: Timestamp) -> Result<Vec<Delivery>, StoreError> {
    tx.query(
        select_deliveries!(
            "where state = 'open' and claimed_until <= $1 and attempts >= $2 order by id limit 100"
        ),
        params![now, MOST_ATTEMPTS],
    )?
    .iter()
    .map(delivery)
    .collect()
}

/// Forgets bodies and deliveries that are too many; never of what is open.
pub fn trim(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let beyond = |tx: &mut Tx<'_>, kept: i64| {
        let row = tx.query_opt(
            "select id from webhook_deliveries order by id desc limit 1 offset $1",
            params![kept],
        )?;
        row.map(|row| row.int(0)).transpose()
    };
    if let Some(last) = beyond(tx, ROWS)? {
        tx.execute(
            "delete from webhook_deliveries where id <= $1 and state <> 'open'",
            params![last],
        )?;
    }
    if let Some(last) = beyond(tx, BODIES)? {
        tx.execute(
            "update webhook_deliveries set body = '' where id <= $1 and body <> '' and state <> 'open'",
            params![last],
        )?;
    }
    Ok(())
}
