//! Owns the table of last reports; refuses to let an older one replace a newer one.

use holdfast_domain::voices::{Heard, Verdict, Voice};
use holdfast_proto::time::Timestamp;

use super::db::{StoreError, Tx, json};
use crate::params;

/// What a device last reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The device's own counter of reports.
    pub sequence: u64,
    /// The journal it was counted in.
    pub journal: String,
    /// The generation the device had accepted.
    pub generation: u64,
    /// How far the device is, in the word of the wire.
    pub status: String,
    /// The report as JSON.
    pub body: String,
    /// When it arrived, by this server's clock.
    pub received_at: Timestamp,
}

fn bounded(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Stores the report unless a newer one is there already; says what it is. `boot` names the start of the machine.
pub fn put(
    tx: &mut Tx<'_>,
    device_id: i64,
    report: &Report,
    boot: &str,
) -> Result<Verdict, StoreError> {
    let before = heard(tx, device_id)?;
    let mut heard = before.clone();
    let voice = Voice {
        journal: report.journal.clone(),
        boot: boot.to_owned(),
        sequence: report.sequence,
    };
    let verdict = heard.hear(voice, report.received_at);
    if verdict != Verdict::Newer && heard == before {
        return Ok(verdict);
    }
    let heard = json("voices", &heard)?;
    if verdict != Verdict::Newer {
        tx.execute(
            "update reports set heard = $2 where device_id = $1",
            params![device_id, heard],
        )?;
        return Ok(verdict);
    }
    tx.execute(
        "insert into reports (device_id, sequence, generation, status, body, received_at, journal, heard)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         on conflict (device_id) do update set
            sequence = excluded.sequence, generation = excluded.generation,
            status = excluded.status, body = excluded.body, received_at = excluded.received_at,
            journal = excluded.journal, heard = excluded.heard",
        params![
            device_id,
            bounded(report.sequence),
            bounded(report.generation),
            &report.status,
            &report.body,
            report.received_at,
            &report.journal,
            heard
        ],
    )?;
    Ok(verdict)
}

/// Who was heard under the device's name.
fn heard(tx: &mut Tx<'_>, device_id: i64) -> Result<Heard, StoreError> {
    let row = tx.query_opt(
        "select heard, journal, sequence, received_at from reports where device_id = $1",
        params![device_id],
    )?;
    let Some(row) = row else {
        return Ok(Heard::default());
    };
    let mut heard: Heard = row.document(0, "voices")?;
    if heard.is_empty() {
        // A report from before voices were remembered, or before they were forgotten.
        let voice = Voice {
            journal: row.text(1)?.to_owned(),
            boot: String::new(),
            sequence: row.count(2)?,
        };
        heard.hear(voice, row.time(3)?);
    }
    Ok(heard)
}

/// Forgets who was heard, but not what was said last.
pub fn forget_voices(tx: &mut Tx<'_>, device_id: i64) -> Result<(), StoreError> {
    tx.execute(
        "update reports set heard = '{}' where device_id = $1",
        params![device_id],
    )?;
    Ok(())
}

/// Forgets the report of a device that starts over with a new identity of its own.
pub fn clear(tx: &mut Tx<'_>, device_id: i64) -> Result<(), StoreError> {
    tx.execute(
        "delete from reports where device_id = $1",
        params![device_id],
    )?;
    Ok(())
}

/// The device's last report.
pub fn find(tx: &mut Tx<'_>, device_id: i64) -> Result<Option<Report>, StoreError> {
    tx.query_opt(
        "select sequence, generation, status, body, received_at, journal from reports where device_id = $1",
        params![device_id],
    )?
    .map(|row| {
        Ok(Report {
            sequence: row.count(0)?,
            generation: row.count(1)?,
            status: row.text(2)?.to_owned(),
            body: row.text(3)?.to_owned(),
            received_at: row.time(4)?,
            journal: row.text(5)?.to_owned(),
        })
    })
    .transpose()
}

/// The generation the device last said it had accepted, or zero.
pub fn generation(tx: &mut Tx<'_>, device_id: i64) -> Result<u64, StoreError> {
    tx.query_opt(
        "select generation from reports where device_id = $1",
        params![device_id],
    )?
    .map_or(Ok(0), |row| row.count(0))
}
