//! Owns the table of what registries answered; refuses to forget a digest it once knew.

use holdfast_domain::resolution::Known;
use holdfast_proto::image::{
    IndexDigest, ManifestDigest, Reference, Repository, ResolvedImage, TopDigest,
};
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx, json};
use crate::params;

pub use holdfast_domain::resolution::Key;

/// A resolution as stored, with what the next attempt needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// Which image.
    pub key: Key,
    /// What is known of it.
    pub known: Known,
    /// Failures in a row.
    pub attempts: u32,
    /// When to ask again; none while the last answer was good.
    pub next_attempt_at: Option<Timestamp>,
}

fn resolution(row: &Row) -> Result<Resolution, StoreError> {
    let key = Key {
        registry: row.text(0)?.to_owned(),
        repository: row.text(1)?.to_owned(),
        selector: row.text(2)?.to_owned(),
    };
    let image = match row.opt_text(3)? {
        None => None,
        Some(kind) => Some(ResolvedImage {
            repository: repository(&key).ok_or(StoreError::Column {
                statement: "resolutions",
                column: 1,
            })?,
            top: match kind {
                INDEX => TopDigest::Index(IndexDigest(row.parsed(4)?)),
                MANIFEST => TopDigest::Manifest(ManifestDigest(row.parsed(4)?)),
                _ => {
                    return Err(StoreError::Column {
                        statement: "resolutions",
                        column: 3,
                    });
                }
            },
            media_type: row.text(5)?.to_owned(),
            platforms: row.document(6, "platform list")?,
        }),
    };
    Ok(Resolution {
        key,
        known: Known {
            image,
            resolved_at: row.opt_time(7)?,
            asked_at: row.time(8)?,
            error: row.opt_text(9)?.map(str::to_owned),
            stale_since: row.opt_time(10)?,
        },
        attempts: u32::try_from(row.count(11)?).unwrap_or(u32::MAX),
        next_attempt_at: row.opt_time(12)?,
    })
}

const INDEX: &str = "index";
const MANIFEST: &str = "manifest";

fn repository(key: &Key) -> Option<Repository> {
    format!("{}/{}", key.registry, key.repository)
        .parse::<Reference>()
        .ok()
        .map(|reference| reference.repository().clone())
}

/// What is known of one image.
pub fn find(tx: &mut Tx<'_>, key: &Key) -> Result<Option<Resolution>, StoreError> {
    tx.query_opt(
        "select registry, repository, selector, top_kind, top_digest, media_type, platforms,
                resolved_at, asked_at, error, stale_since, attempts, next_attempt_at
         from resolutions where registry = $1 and repository = $2 and selector = $3",
        params![&key.registry, &key.repository, &key.selector],
    )?
    .as_ref()
    .map(resolution)
    .transpose()
}

/// Stores what is now known of one image.
pub fn put(tx: &mut Tx<'_>, new: &Resolution) -> Result<(), StoreError> {
    let image = new.known.image.as_ref();
    tx.execute(
        "insert into resolutions (registry, repository, selector, top_kind, top_digest, media_type,
            platforms, resolved_at, asked_at, error, stale_since, attempts, next_attempt_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         on conflict (registry, repository, selector) do update set
            top_kind = excluded.top_kind, top_digest = excluded.top_digest,
            media_type = excluded.media_type, platforms = excluded.platforms,
            resolved_at = excluded.resolved_at, asked_at = excluded.asked_at,
            error = excluded.error, stale_since = excluded.stale_since,
            attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at",
        params![
            &new.key.registry,
            &new.key.repository,
            &new.key.selector,
            image.map(|image| match image.top {
                TopDigest::Index(_) => INDEX,
                TopDigest::Manifest(_) => MANIFEST,
            }),
            image.map(|image| image.top.digest().to_string()),
            image.map(|image| &image.media_type),
            image
                .map(|image| json("platform list", &image.platforms))
                .transpose()?,
            new.known.resolved_at,
            new.known.asked_at,
            new.known.error.as_deref(),
            new.known.stale_since,
            i64::from(new.attempts),
            new.next_attempt_at
        ],
    )?;
    Ok(())
}

/// Images that some target names and whose next attempt is due, the longest waiting first.
pub fn due(tx: &mut Tx<'_>, now: Timestamp, limit: i64) -> Result<Vec<Resolution>, StoreError> {
    tx.query(
        "select registry, repository, selector, top_kind, top_digest, media_type, platforms,
                resolved_at, asked_at, error, stale_since, attempts, next_attempt_at
         from resolutions r
         where next_attempt_at <= $1 and exists (
            select 1 from target_references t where t.registry = r.registry
               and t.repository = r.repository and t.selector = r.selector)
         order by next_attempt_at limit $2",
        params![now, limit],
    )?
    .iter()
    .map(resolution)
    .collect()
}

/// When the next attempt is due, if any image waits for one.
pub fn next_due(tx: &mut Tx<'_>) -> Result<Option<Timestamp>, StoreError> {
    tx.query_opt(
        "select min(next_attempt_at) from resolutions r where exists (
            select 1 from target_references t where t.registry = r.registry
               and t.repository = r.repository and t.selector = r.selector)",
        params![],
    )?
    .map_or(Ok(None), |row| row.opt_time(0))
}
