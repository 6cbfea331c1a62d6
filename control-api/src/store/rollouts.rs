//! Owns the table of rollouts; refuses two of one tag in one scope.

pub mod members;

use holdfast_domain::resolution::Key;
use holdfast_domain::rollout::state::State;
use holdfast_domain::rollout::tick::Rules;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::{
    Digest, IndexDigest, ManifestDigest, PlatformImage, Reference, Repository, ResolvedImage,
    TopDigest,
};
use holdfast_proto::time::Timestamp;
use holdfast_proto::window::UpdateWindow;
use serde::{Deserialize, Serialize};

use super::db::{Row, StoreError, Tx, json};
use crate::params;

/// What a rollout carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// One image.
    Image(ResolvedImage),
    /// Everything that a fleet is to run: the release with this number in its table.
    Release(i64),
}

/// A rollout as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its number.
    pub id: i64,
    /// Which devices it is for: `fleet:NAME`, or nothing for all.
    pub scope: String,
    /// The image's registry.
    pub registry: String,
    /// The image's path there.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// What it carries, from its beginning to its end, whatever the tag means by then.
    pub content: Content,
    /// What the tag meant before.
    pub previous_digest: Option<Digest>,
    /// The policy that it was made by.
    pub policy_id: Option<i64>,
    /// What that said then.
    pub rules: Rules,
    /// When devices may be touched.
    pub windows: Vec<UpdateWindow>,
    /// Where it is.
    pub state: State,
    /// Why it is there.
    pub reason: String,
    /// How many batches were opened.
    pub opened: usize,
    /// How many may be.
    pub approved: usize,
    /// Whether a person began it: what they order reaches those who take no pushes by themselves, too.
    pub is_ordered: bool,
    /// Who began it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Since when it is in its state.
    pub since: Timestamp,
    /// When anything changed last.
    pub progressed_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// A rollout to be.
#[derive(Debug, Clone)]
pub struct New<'a> {
    /// Which devices it is for.
    pub scope: &'a str,
    /// The image's registry.
    pub registry: &'a str,
    /// The image's path there.
    pub repository: &'a str,
    /// The tag.
    pub tag: &'a str,
    /// What it carries.
    pub content: &'a Content,
    /// What the tag meant before.
    pub previous_digest: Option<&'a Digest>,
    /// The policy.
    pub policy_id: Option<i64>,
    /// What that says.
    pub rules: &'a Rules,
    /// When devices may be touched.
    pub windows: &'a [UpdateWindow],
    /// Why it is.
    pub reason: &'a str,
    /// Whether a person begins it.
    pub is_ordered: bool,
    /// Who begins it.
    pub created_by: &'a str,
}

/// A resolved image as it is kept: see [`ResolvedImage`].
#[derive(Serialize, Deserialize)]
struct Frozen {
    is_index: bool,
    digest: Digest,
    media_type: String,
    platforms: Vec<PlatformImage>,
}

impl Frozen {
    fn of(image: &ResolvedImage) -> Self {
        Self {
            is_index: image.top.index().is_some(),
            digest: *image.top.digest(),
            media_type: image.media_type.clone(),
            platforms: image.platforms.clone(),
        }
    }

    fn thaw(self, repository: Repository) -> ResolvedImage {
        ResolvedImage {
            repository,
            top: if self.is_index {
                TopDigest::Index(IndexDigest(self.digest))
            } else {
                TopDigest::Manifest(ManifestDigest(self.digest))
            },
            media_type: self.media_type,
            platforms: self.platforms,
        }
    }
}

impl Stored {
    /// The image that it is about, as targets name it; none of a release.
    pub fn key(&self) -> Option<Key> {
        matches!(self.content, Content::Image(_)).then(|| Key {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            selector: self.tag.clone(),
        })
    }

    /// What it is about, in words.
    pub fn subject(&self) -> String {
        match self.key() {
            Some(key) => key.to_string(),
            None => format!("{} release {}", self.scope, self.tag),
        }
    }
}

pub(super) fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn size(row: &Row, column: usize) -> Result<usize, StoreError> {
    let count = row.count(column)?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

fn word<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    Ok(json(what, value)?.trim_matches('"').to_owned())
}

/// Rollouts with their columns in the order that [`stored`] reads them.
macro_rules! select_rollouts {
    ($rest:literal) => {
        concat!(
            "select id, scope, registry, repository, tag, image, previous_digest, release_id, policy_id, rules,
                    windows, state, reason, opened, approved, created_by, created_at, since, progressed_at,
                    ended_at, is_ordered
             from rollouts ",
            $rest
        )
    };
}

fn stored(row: &Row) -> Result<Stored, StoreError> {
    let state = serde_json::Value::from(row.text(11)?);
    let state = serde_json::from_value(state).map_err(|source| StoreError::Document {
        what: "rollout",
        source,
    })?;
    Ok(Stored {
        id: row.int(0)?,
        scope: row.text(1)?.to_owned(),
        registry: row.text(2)?.to_owned(),
        repository: row.text(3)?.to_owned(),
        tag: row.text(4)?.to_owned(),
        content: content(row)?,
        previous_digest: row.opt_text(6)?.map(|_| row.parsed(6)).transpose()?,
        policy_id: row.opt_int(8)?,
        rules: row.document(9, "rollout")?,
        windows: row.document(10, "rollout")?,
        state,
        reason: row.text(12)?.to_owned(),
        opened: size(row, 13)?,
        approved: size(row, 14)?,
        created_by: row.text(15)?.to_owned(),
        created_at: row.time(16)?,
        since: row.time(17)?,
        progressed_at: row.time(18)?,
        ended_at: row.opt_time(19)?,
        is_ordered: row.truth(20)?,
    })
}

fn content(row: &Row) -> Result<Content, StoreError> {
    let damaged = |column| StoreError::Column {
        statement: "rollouts",
        column,
    };
    if row.opt_text(5)?.is_none() {
        let release = row.opt_int(7)?.ok_or_else(|| damaged(7))?;
        return Ok(Content::Release(release));
    }
    let frozen: Frozen = row.document(5, "rollout")?;
    let name = format!("{}/{}", row.text(2)?, row.text(3)?);
    let reference: Reference = name.parse().map_err(|_| damaged(3))?;
    Ok(Content::Image(frozen.thaw(reference.repository().clone())))
}

/// Adds a rollout; none when one of the same image and scope is on its way.
pub fn insert(tx: &mut Tx<'_>, new: &New<'_>, now: Timestamp) -> Result<Option<i64>, StoreError> {
    let (image, release_id) = match new.content {
        Content::Image(image) => (Some(json("rollout", &Frozen::of(image))?), None),
        Content::Release(id) => (None, Some(*id)),
    };
    tx.query_opt(
        "insert into rollouts (scope, registry, repository, tag, image, previous_digest, release_id,
                               policy_id, rules, windows, state, reason, opened, approved, created_by,
                               created_at, since, progressed_at, is_ordered)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'pending', $11, 0, 1, $12, $13, $13, $13, $14)
         on conflict do nothing returning id",
        params![
            new.scope,
            new.registry,
            new.repository,
            new.tag,
            image,
            new.previous_digest.map(ToString::to_string),
            release_id,
            new.policy_id,
            json("rollout", new.rules)?,
            json("rollout", &new.windows)?,
            new.reason,
            new.created_by,
            now,
            new.is_ordered
        ],
    )?
    .map(|row| row.int(0))
    .transpose()
}

/// The rollout with this number.
pub fn find(tx: &mut Tx<'_>, id: i64) -> Result<Option<Stored>, StoreError> {
    tx.query_opt(select_rollouts!("where id = $1"), params![id])?
        .as_ref()
        .map(stored)
        .transpose()
}

/// The numbers of rollouts that may have something to do, the oldest first: those on their way, and those that ended
/// with success since `since` and have devices to which something may still happen.
pub fn watched(
    tx: &mut Tx<'_>,
    since: Timestamp,
    after: i64,
    limit: i64,
) -> Result<Vec<i64>, StoreError> {
    tx.query(
        "select id from rollouts where id > $1
           and (state in ('pending', 'running', 'paused', 'rolling_back')
                or (state = 'succeeded' and ended_at > $2 and exists (
                    select 1 from rollout_devices m where m.rollout_id = rollouts.id
                       and m.standing in ('skipped', 'lost', 'updating'))))
         order by id limit $3",
        params![after, since, limit],
    )?
    .iter()
    .map(|row| row.int(0))
    .collect()
}

/// The rollout of this tag in this scope that is on its way.
pub fn active_of(tx: &mut Tx<'_>, scope: &str, key: &Key) -> Result<Option<i64>, StoreError> {
    tx.query_opt(
        "select id from rollouts where scope = $1 and registry = $2 and repository = $3 and tag = $4
           and state in ('pending', 'running', 'paused', 'rolling_back')",
        params![scope, &key.registry, &key.repository, &key.selector],
    )?
    .map(|row| row.int(0))
    .transpose()
}

/// The rollout of a release that is on its way in this scope.
pub fn active_release(tx: &mut Tx<'_>, scope: &str) -> Result<Option<i64>, StoreError> {
    tx.query_opt(
        "select id from rollouts where scope = $1 and image is null
           and state in ('pending', 'running', 'paused', 'rolling_back')",
        params![scope],
    )?
    .map(|row| row.int(0))
    .transpose()
}

/// The rollout that has the place which this one had.
pub fn holder(tx: &mut Tx<'_>, found: &Stored) -> Result<Option<i64>, StoreError> {
    match found.key() {
        Some(key) => active_of(tx, &found.scope, &key),
        None => active_release(tx, &found.scope),
    }
}

/// The newest rollout of this tag in this scope.
pub fn newest_of(tx: &mut Tx<'_>, scope: &str, key: &Key) -> Result<Option<i64>, StoreError> {
    tx.query_opt(
        "select max(id) from rollouts
         where scope = $1 and registry = $2 and repository = $3 and tag = $4",
        params![scope, &key.registry, &key.repository, &key.selector],
    )?
    .map_or(Ok(None), |row| row.opt_int(0))
}

/// Which rollouts are asked for; what is none does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// In this state.
    pub state: Option<State>,
    /// Of this image, with any tag.
    pub repository: Option<Repository>,
    /// In this scope.
    pub scope: Option<String>,
    /// In which this device takes part.
    pub device: Option<DeviceId>,
}

/// One page of rollouts, the newest first.
pub fn list(
    tx: &mut Tx<'_>,
    filter: &Filter,
    before: i64,
    limit: i64,
) -> Result<Vec<Stored>, StoreError> {
    let state = filter.state.map(|state| word("rollout", &state));
    let repository = filter.repository.as_ref();
    tx.query(
        select_rollouts!(
            "where id < $1 and (cast($2 as text) is null or state = $2)
               and (cast($3 as text) is null or (registry = $3 and repository = $4))
               and (cast($5 as text) is null or scope = $5)
               and (cast($6 as text) is null or exists (
                    select 1 from rollout_devices m where m.rollout_id = rollouts.id and m.device = $6))
             order by id desc limit $7"
        ),
        params![
            before,
            state.transpose()?,
            repository.map(Repository::registry),
            repository.map(Repository::path),
            filter.scope.as_deref(),
            filter.device,
            limit
        ],
    )?
    .iter()
    .map(stored)
    .collect()
}

/// Notes another state, if the rollout is still in the one it was decided in.
pub fn turn(
    tx: &mut Tx<'_>,
    id: i64,
    (from, to): (State, State),
    reason: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let ended = (!to.is_active()).then_some(now);
    let changed = tx.execute(
        "update rollouts set state = $3, reason = $4, since = $5, progressed_at = $5, ended_at = $6
         where id = $1 and state = $2",
        params![
            id,
            word("rollout", &from)?,
            word("rollout", &to)?,
            reason,
            now,
            ended
        ],
    )?;
    Ok(changed > 0)
}

/// Opens the next batch, if so many are open.
pub fn open(tx: &mut Tx<'_>, id: i64, opened: usize, now: Timestamp) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update rollouts set opened = opened + 1, progressed_at = $3 where id = $1 and opened = $2",
        params![id, number(opened), now],
    )?;
    Ok(changed > 0)
}

/// Lets so many batches be opened.
pub fn approve(tx: &mut Tx<'_>, id: i64, approved: usize) -> Result<(), StoreError> {
    tx.execute(
        "update rollouts set approved = $2 where id = $1 and approved < $2",
        params![id, number(approved)],
    )?;
    Ok(())
}

/// Notes that something changed.
pub fn progressed(tx: &mut Tx<'_>, id: i64, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "update rollouts set progressed_at = $2 where id = $1",
        params![id, now],
    )?;
    Ok(())
}
