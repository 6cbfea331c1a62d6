//! Owns the table of what registries answered, beside whose credentials were used; refuses to forget a
//! digest it once knew.

use holdfast_domain::resolution::Known;
use holdfast_proto::image::{
    IndexDigest, ManifestDigest, Reference, Repository, ResolvedImage, TopDigest,
};
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx, json};
use crate::params;

pub use holdfast_domain::resolution::Key;
pub use holdfast_domain::scope::Scope;

/// Every query for whole rows starts alike.
macro_rules! select_resolutions {
    ($rest:literal) => {
        concat!(
            "select r.registry, r.repository, r.selector, r.top_kind, r.top_digest, r.media_type,
                    r.platforms, r.resolved_at, r.asked_at, r.error, r.stale_since, r.attempts,
                    r.next_attempt_at, r.scope, r.error_code
             from resolutions r ",
            $rest
        )
    };
}

/// A resolution as stored, with what the next attempt needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// Which image.
    pub key: Key,
    /// Whose credentials it was asked for with.
    pub scope: Scope,
    /// What is known of it.
    pub known: Known,
    /// Failures in a row.
    pub attempts: u32,
    /// When to ask again; none for what cannot change.
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
        scope: row.parsed(13)?,
        known: Known {
            image,
            resolved_at: row.opt_time(7)?,
            asked_at: row.time(8)?,
            error: row.opt_text(9)?.map(str::to_owned),
            error_code: row.opt_text(14)?.map(str::to_owned),
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

/// What is known of one image by these credentials.
pub fn find(tx: &mut Tx<'_>, key: &Key, scope: &Scope) -> Result<Option<Resolution>, StoreError> {
    tx.query_opt(
        select_resolutions!(
            "where r.registry = $1 and r.repository = $2 and r.selector = $3 and r.scope = $4"
        ),
        params![
            &key.registry,
            &key.repository,
            &key.selector,
            scope.to_string()
        ],
    )?
    .as_ref()
    .map(resolution)
    .transpose()
}

/// As [`find`]; without a digest of these credentials' own, the newest that any others found counts: a
/// device whose credentials are new keeps its digest while the registry is away.
pub fn recall(tx: &mut Tx<'_>, key: &Key, scope: &Scope) -> Result<Option<Known>, StoreError> {
    let own = find(tx, key, scope)?.map(|found| found.known);
    if own.as_ref().is_some_and(|known| known.image.is_some()) {
        return Ok(own);
    }
    let other = tx
        .query_opt(
            select_resolutions!(
                "where r.registry = $1 and r.repository = $2 and r.selector = $3
                   and r.top_digest is not null
                 order by r.resolved_at desc, r.scope limit 1"
            ),
            params![&key.registry, &key.repository, &key.selector],
        )?
        .as_ref()
        .map(resolution)
        .transpose()?
        .map(|found| found.known);
    let was_asked = |known: &Known| known.error_code.as_deref() != Some(NOT_ASKED);
    Ok(match (own.filter(was_asked), other) {
        (Some(own), Some(other)) => Some(Known {
            stale_since: own.error.as_ref().map(|_| own.asked_at),
            image: other.image,
            resolved_at: other.resolved_at,
            ..own
        }),
        (own, other) => own.or(other),
    })
}

/// Stores what is now known of one image.
pub fn put(tx: &mut Tx<'_>, new: &Resolution) -> Result<(), StoreError> {
    let image = new.known.image.as_ref();
    tx.execute(
        "insert into resolutions (registry, repository, selector, scope, top_kind, top_digest,
            media_type, platforms, resolved_at, asked_at, error, error_code, stale_since, attempts,
            next_attempt_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
         on conflict (registry, repository, selector, scope) do update set
            top_kind = excluded.top_kind, top_digest = excluded.top_digest,
            media_type = excluded.media_type, platforms = excluded.platforms,
            resolved_at = excluded.resolved_at, asked_at = excluded.asked_at,
            error = excluded.error, error_code = excluded.error_code,
            stale_since = excluded.stale_since, attempts = excluded.attempts,
            next_attempt_at = excluded.next_attempt_at",
        params![
            &new.key.registry,
            &new.key.repository,
            &new.key.selector,
            new.scope.to_string(),
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
            new.known.error_code.as_deref(),
            new.known.stale_since,
            i64::from(new.attempts),
            new.next_attempt_at
        ],
    )?;
    Ok(())
}

/// What is due to be asked for again.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    /// Now.
    pub now: Timestamp,
    /// Good answers from before this instant are due whatever was planned: the interval may have been
    /// made shorter.
    pub refresh_before: Option<Timestamp>,
    /// So many at most.
    pub limit: i64,
}

/// Takes what is due, the longest waiting first, and puts it off until `until`, so that no other replica
/// takes it, too. Only what some target names, with the credentials that count for it.
pub fn take_due(
    tx: &mut Tx<'_>,
    due: Due,
    until: Timestamp,
) -> Result<Vec<Resolution>, StoreError> {
    let taken = tx
        .query(
            select_resolutions!(
                "where (r.next_attempt_at <= $1
                     or (r.error is null and r.next_attempt_at is not null and r.asked_at < $2
                         and r.next_attempt_at > $3))
                   and exists (select 1 from reference_scopes s where s.registry = r.registry
                        and s.repository = r.repository and s.selector = r.selector
                        and s.scope = r.scope)
                 order by r.next_attempt_at limit $4"
            ),
            // What another replica took is put off to less than `until`, which is after now.
            params![due.now, due.refresh_before, until, due.limit],
        )?
        .iter()
        .map(resolution)
        .collect::<Result<Vec<_>, _>>()?;
    for found in &taken {
        tx.execute(
            "update resolutions set next_attempt_at = $5 where registry = $1 and repository = $2
                and selector = $3 and scope = $4",
            params![
                &found.key.registry,
                &found.key.repository,
                &found.key.selector,
                found.scope.to_string(),
                until
            ],
        )?;
    }
    Ok(taken)
}

/// When the next attempt is due, if any image waits for one.
pub fn next_due(tx: &mut Tx<'_>) -> Result<Option<Timestamp>, StoreError> {
    tx.query_opt(
        "select min(r.next_attempt_at) from resolutions r
         where exists (select 1 from reference_scopes s where s.registry = r.registry
            and s.repository = r.repository and s.selector = r.selector and s.scope = r.scope)",
        params![],
    )?
    .map_or(Ok(None), |row| row.opt_time(0))
}

/// How many references in targets have no answer or an old one.
pub fn count_failing(tx: &mut Tx<'_>) -> Result<u64, StoreError> {
    tx.query_opt(
        "select count(*) from resolutions r where r.error is not null and exists (
            select 1 from target_references t where t.registry = r.registry
               and t.repository = r.repository and t.selector = r.selector)",
        params![],
    )?
    .map_or(Ok(0), |row| row.count(0))
}

/// Why a row is there that nobody has asked for yet.
pub const NOT_ASKED: &str = "not_asked";

/// Makes what is missing: references at registries with special credentials, and at `registry`, for each
/// login that counts.
pub fn adopt(tx: &mut Tx<'_>, registry: Option<&str>, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        "insert into resolutions (registry, repository, selector, scope, asked_at, error, error_code,
            attempts, next_attempt_at)
         select distinct s.registry, s.repository, s.selector, s.scope, cast(0 as bigint),
            'the registry was not asked yet with these credentials', cast($2 as text), cast(0 as bigint),
            cast($1 as bigint)
         from reference_scopes s
         where (s.registry in (select registry from registry_credentials)
                or s.registry = cast($3 as text)) and not exists (
            select 1 from resolutions r where r.registry = s.registry
               and r.repository = s.repository and r.selector = s.selector and r.scope = s.scope)",
        params![now, NOT_ASKED, registry],
    )
}

/// Asks for everything of a registry as soon as possible, after its credentials changed.
pub fn hurry_registry(tx: &mut Tx<'_>, registry: &str, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        "update resolutions set next_attempt_at = $2 where registry = $1
            and (error is not null or selector not like '%:%')",
        params![registry, now],
    )
}

/// Asks for one image as soon as possible, or for all; counts those that some target names.
pub fn hurry(tx: &mut Tx<'_>, key: Option<&Key>, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        "update resolutions set next_attempt_at = $1
         where (cast($2 as text) is null
                or (registry = $2 and repository = $3 and selector = $4))
           and (error is not null or selector not like '%:%')
           and exists (select 1 from reference_scopes s where s.registry = resolutions.registry
                and s.repository = resolutions.repository and s.selector = resolutions.selector
                and s.scope = resolutions.scope)",
        params![
            now,
            key.map(|key| &key.registry),
            key.map(|key| &key.repository),
            key.map(|key| &key.selector)
        ],
    )
}
