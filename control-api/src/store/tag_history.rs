//! Owns the table of what tags meant and when; refuses to keep more of it than people look through.

use holdfast_domain::sighting::{Period, Sighting, judge};
use holdfast_proto::image::Digest;
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx};
use super::resolutions::Key;
use crate::params;

/// Periods kept of one reference: a tag that moves daily is known for a quarter of a year.
pub const KEPT: i64 = 100;

fn period(row: &Row) -> Result<Period, StoreError> {
    Ok(Period {
        digest: row.parsed(1)?,
        first_seen: row.time(2)?,
        last_seen: row.time(3)?,
    })
}

fn rows(tx: &mut Tx<'_>, key: &Key) -> Result<Vec<Row>, StoreError> {
    tx.query(
        "select id, digest, first_seen, last_seen from tag_history
         where registry = $1 and repository = $2 and selector = $3 order by id desc limit $4",
        params![&key.registry, &key.repository, &key.selector, KEPT],
    )
}

/// What a reference meant, the newest first.
pub fn of(tx: &mut Tx<'_>, key: &Key) -> Result<Vec<Period>, StoreError> {
    rows(tx, key)?.iter().map(period).collect()
}

/// Writes down that a reference means this, and says what that tells.
pub fn see(
    tx: &mut Tx<'_>,
    key: &Key,
    digest: &Digest,
    now: Timestamp,
) -> Result<Sighting, StoreError> {
    let rows = rows(tx, key)?;
    let periods: Vec<Period> = rows.iter().map(period).collect::<Result<_, _>>()?;
    let sighting = judge(&periods, digest);
    if let (Sighting::Same, Some(newest)) = (sighting, rows.first()) {
        tx.execute(
            "update tag_history set last_seen = $2 where id = $1 and last_seen < $2",
            params![newest.int(0)?, now],
        )?;
        return Ok(sighting);
    }
    tx.execute(
        "insert into tag_history (registry, repository, selector, digest, first_seen, last_seen)
         values ($1, $2, $3, $4, $5, $5)",
        params![
            &key.registry,
            &key.repository,
            &key.selector,
            digest.to_string(),
            now
        ],
    )?;
    if i64::try_from(rows.len()).is_ok_and(|count| count >= KEPT)
        && let Some(oldest) = rows.last()
    {
        tx.execute(
            "delete from tag_history where registry = $1 and repository = $2 and selector = $3
                and id <= $4",
            params![
                &key.registry,
                &key.repository,
                &key.selector,
                oldest.int(0)?
            ],
        )?;
    }
    Ok(sighting)
}
