//! Owns the table of questions whether an image may run; refuses two open questions for one image.

use holdfast_proto::image::{Digest, Repository};
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx, json};
use crate::params;

/// Whether and how a question was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody decided yet, or not everybody who must.
    Open,
    /// The image may run.
    Approved,
    /// It may not.
    Rejected,
}

/// The state's word in the database and on the wire.
pub const fn state_name(state: State) -> &'static str {
    match state {
        State::Open => "open",
        State::Approved => "approved",
        State::Rejected => "rejected",
    }
}

/// The state with this word.
pub fn state_named(name: &str) -> Option<State> {
    [State::Open, State::Approved, State::Rejected]
        .into_iter()
        .find(|state| state_name(*state) == name)
}

/// A question as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its number.
    pub id: i64,
    /// The image.
    pub repository: Repository,
    /// The tag that was pushed last.
    pub tag: String,
    /// What it is said to mean.
    pub digest: Option<Digest>,
    /// Who asked first: a vendor, `operator`, `refresh`, `target`.
    pub source: String,
    /// What waits for the answer.
    pub push: serde_json::Value,
    /// Whether and how it was decided.
    pub state: State,
    /// How often it was asked.
    pub times: u64,
    /// Who approved so far, where two must.
    pub approvals: Vec<String>,
    /// Why it was decided so.
    pub note: Option<String>,
    /// Who decided.
    pub decided_by: Option<String>,
    /// When.
    pub decided_at: Option<Timestamp>,
    /// When it was asked first.
    pub created_at: Timestamp,
    /// When it was asked last.
    pub last_at: Timestamp,
}

/// A question to be asked.
#[derive(Debug, Clone)]
pub struct New<'a> {
    /// The image.
    pub repository: &'a Repository,
    /// The tag that was pushed.
    pub tag: &'a str,
    /// What it is said to mean.
    pub digest: Option<&'a Digest>,
    /// Who asks.
    pub source: &'a str,
    /// What waits.
    pub push: &'a serde_json::Value,
}

/// Every query for whole questions starts alike.
macro_rules! select_requests {
    ($rest:literal) => {
        concat!(
            "select id, registry, repository, tag, digest, source, push, state, times, approvals, note,
                    decided_by, decided_at, created_at, last_at
             from approval_requests ",
            $rest
        )
    };
}

fn request(row: &Row) -> Result<Request, StoreError> {
    let unreadable = |column: usize| StoreError::Column {
        statement: "approval requests",
        column,
    };
    Ok(Request {
        id: row.int(0)?,
        repository: Repository::of(row.text(1)?, row.text(2)?).map_err(|_| unreadable(2))?,
        tag: row.text(3)?.to_owned(),
        digest: row.opt_text(4)?.map(|_| row.parsed(4)).transpose()?,
        source: row.text(5)?.to_owned(),
        push: row.document(6, "approval request")?,
        state: state_named(row.text(7)?).ok_or_else(|| unreadable(7))?,
        times: row.count(8)?,
        approvals: row.document(9, "approval request")?,
        note: row.opt_text(10)?.map(str::to_owned),
        decided_by: row.opt_text(11)?.map(str::to_owned),
        decided_at: row.opt_time(12)?,
        created_at: row.time(13)?,
        last_at: row.time(14)?,
    })
}

/// Asks whether an image may run; once more, where that is asked already. Answers the question's number, and how
/// often it was asked.
///
/// What waits is the newest push. Who approved another tag or content did not approve this one.
pub fn ask(tx: &mut Tx<'_>, new: &New<'_>, now: Timestamp) -> Result<(i64, u64), StoreError> {
    let row = tx.query_opt(
        "insert into approval_requests (registry, repository, tag, digest, source, push, state, times,
                                        approvals, created_at, last_at)
         values ($1, $2, $3, $4, $5, $6, 'open', 1, '[]', $7, $7)
         on conflict (registry, repository) where state = 'open' do update set
            times = approval_requests.times + 1, last_at = excluded.last_at, tag = excluded.tag,
            digest = excluded.digest, push = excluded.push,
            approvals = case when approval_requests.tag = excluded.tag
                              and coalesce(approval_requests.digest, '') = coalesce(excluded.digest, '')
                             then approval_requests.approvals else '[]' end
         returning id, times",
        params![
            new.repository.registry(),
            new.repository.path(),
            new.tag,
            new.digest.map(ToString::to_string),
            new.source,
            json("approval request", new.push)?,
            now
        ],
    )?;
    let row = row.ok_or(StoreError::Interrupted)?;
    Ok((row.int(0)?, row.count(1)?))
}

/// The question with this number.
pub fn find(tx: &mut Tx<'_>, id: i64) -> Result<Option<Request>, StoreError> {
    tx.query_opt(select_requests!("where id = $1"), params![id])?
        .as_ref()
        .map(request)
        .transpose()
}

/// The open question about an image.
pub fn open(tx: &mut Tx<'_>, repository: &Repository) -> Result<Option<Request>, StoreError> {
    tx.query_opt(
        select_requests!("where registry = $1 and repository = $2 and state = 'open'"),
        params![repository.registry(), repository.path()],
    )?
    .as_ref()
    .map(request)
    .transpose()
}

/// One page of questions, the newest first.
pub fn list(
    tx: &mut Tx<'_>,
    state: Option<State>,
    before: i64,
    limit: i64,
) -> Result<Vec<Request>, StoreError> {
    tx.query(
        select_requests!(
            "where id < $1 and (cast($2 as text) is null or state = $2) order by id desc limit $3"
        ),
        params![before, state.map(state_name), limit],
    )?
    .iter()
    .map(request)
    .collect()
}

/// Notes who approved so far; the question stays open. False when it is closed already.
pub fn note_approvals(tx: &mut Tx<'_>, id: i64, approvals: &[String]) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update approval_requests set approvals = $2 where id = $1 and state = 'open'",
        params![id, json("approval request", &approvals)?],
    )?;
    Ok(changed > 0)
}

/// How a question is closed.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// How.
    pub state: State,
    /// Everybody who approved, or who rejected.
    pub approvals: &'a [String],
    /// Who decided.
    pub by: &'a str,
    /// Why.
    pub note: Option<&'a str>,
}

/// Closes an open question; false when it is closed already.
pub fn decide(
    tx: &mut Tx<'_>,
    id: i64,
    decision: &Decision<'_>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update approval_requests set state = $2, decided_by = $3, note = $4, decided_at = $5, approvals = $6
         where id = $1 and state = 'open'",
        params![
            id,
            state_name(decision.state),
            decision.by,
            decision.note,
            now,
            json("approval request", &decision.approvals)?
        ],
    )?;
    Ok(changed > 0)
}
