//! Owns removing what is only history: deliveries that were dealt with, logs of rollouts that ended.
//!
//! Events and the audit log are pruned beside their tables. Refuses to touch what still runs or waits.

use holdfast_proto::time::Timestamp;

use super::db::{StoreError, Tx};
use crate::params;

/// Rows removed in one transaction: others get their turn in between.
const ROUND: i64 = 1_000;

/// Removes some webhook deliveries that were dealt with before `cutoff`; says how many.
pub fn prune_deliveries(tx: &mut Tx<'_>, cutoff: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        "delete from webhook_deliveries where id in
            (select id from webhook_deliveries where done_at < $1 order by done_at limit $2)",
        params![cutoff, ROUND],
    )
}

/// Removes some of the log of rollouts that ended before `cutoff`; says how many entries.
pub fn prune_rollout_log(tx: &mut Tx<'_>, cutoff: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        "delete from rollout_log where id in
            (select l.id from rollouts r join rollout_log l on l.rollout_id = r.id
             where r.ended_at < $1 order by l.id limit $2)",
        params![cutoff, ROUND],
    )
}
