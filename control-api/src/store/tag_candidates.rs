//! Owns the table of newer tags; when they were looked for is written down before, so that replicas do
//! not look for them twice.

use holdfast_proto::image::Platform;
use holdfast_proto::time::Timestamp;
use holdfast_proto::updates::TagCandidate;

use super::db::{StoreError, Tx, json};
use super::resolutions::{Key, Scope};
use crate::params;

/// Newer tags to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The tag that targets name.
    pub key: Key,
    /// The platform of devices with such targets.
    pub platform: Platform,
    /// Whose credentials to ask with.
    pub scope: Scope,
}

/// Takes what was not looked for since `before`.
pub fn take_due(
    tx: &mut Tx<'_>,
    now: Timestamp,
    before: Timestamp,
    limit: i64,
) -> Result<Vec<Wanted>, StoreError> {
    let rows = tx.query(
        "select s.registry, s.repository, s.selector, d.platform, min(s.scope)
         from reference_scopes s join devices d on d.id = s.device_id
         where s.selector not like '%:%' and not exists (
            select 1 from tag_candidates c where c.registry = s.registry
               and c.repository = s.repository and c.selector = s.selector
               and c.platform = d.platform and c.asked_at > $1)
         group by s.registry, s.repository, s.selector, d.platform
         order by s.registry, s.repository, s.selector, d.platform limit $2",
        params![before, limit],
    )?;
    let mut due = Vec::with_capacity(rows.len());
    for row in rows {
        let wanted = Wanted {
            key: Key {
                registry: row.text(0)?.to_owned(),
                repository: row.text(1)?.to_owned(),
                selector: row.text(2)?.to_owned(),
            },
            platform: row.parsed(3)?,
            scope: row.parsed(4)?,
        };
        tx.execute(
            "insert into tag_candidates (registry, repository, selector, platform, candidates, asked_at)
             values ($1, $2, $3, $4, '[]', $5)
             on conflict (registry, repository, selector, platform) do update set
                asked_at = excluded.asked_at",
            params![
                &wanted.key.registry,
                &wanted.key.repository,
                &wanted.key.selector,
                wanted.platform.to_string(),
                now
            ],
        )?;
        due.push(wanted);
    }
    Ok(due)
}

/// Stores what was found.
pub fn put(
    tx: &mut Tx<'_>,
    key: &Key,
    platform: &Platform,
    found: &[TagCandidate],
) -> Result<(), StoreError> {
    tx.execute(
        "update tag_candidates set candidates = $5
         where registry = $1 and repository = $2 and selector = $3 and platform = $4",
        params![
            &key.registry,
            &key.repository,
            &key.selector,
            platform.to_string(),
            json("list of tags", &found)?
        ],
    )?;
    Ok(())
}

/// What was found when it was last looked for.
pub fn find(
    tx: &mut Tx<'_>,
    key: &Key,
    platform: &Platform,
) -> Result<Vec<TagCandidate>, StoreError> {
    tx.query_opt(
        "select candidates from tag_candidates
         where registry = $1 and repository = $2 and selector = $3 and platform = $4",
        params![
            &key.registry,
            &key.repository,
            &key.selector,
            platform.to_string()
        ],
    )?
    .map_or(Ok(Vec::new()), |row| row.document(0, "list of tags"))
}
