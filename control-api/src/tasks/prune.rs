//! Owns taking away history that is older than the configuration keeps it, in small transactions.
//!
//! One program does it at a time, under a lease. Refuses to remove rows of an audit log that is broken: they are
//! the evidence.

use std::time::Duration;

use holdfast_domain::retention::cutoff;
use holdfast_proto::time::Timestamp;

use crate::app::{App, Shared};
use crate::store::audit::{self, Actor, Pruned};
use crate::store::{StoreError, Tx, events, leases, retention};
use crate::telemetry::chain;
use crate::{clock, secret};

/// How often it looks: each time the audit log is pruned it gets a row that says so.
const LOOK_EVERY: Duration = Duration::from_hours(6);
/// The first look: a start has better things to do.
const FIRST_LOOK: Duration = Duration::from_mins(2);
/// For so long the lease is taken with each step: longer than any transaction may take.
const LEASE_MS: i64 = 60 * 1_000;
/// What the lease is for.
const LEASE: &str = "prune";

/// How many rows were removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Events.
    pub events: u64,
    /// Rows of the audit log.
    pub audit: u64,
    /// Webhook deliveries.
    pub deliveries: u64,
    /// Entries in logs of rollouts.
    pub rollout_log: u64,
}

pub(super) async fn run(app: Shared) {
    let mut stopping = app.stopping.clone();
    // Without randomness two programs have one name, and the lease keeps them from nothing: they remove the
    // same rows twice, which is no harm.
    let holder = secret::request_id().unwrap_or_default();
    let mut wait = FIRST_LOOK;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stopping.changed() => return,
        }
        wait = LOOK_EVERY;
        match run_once(&app, &holder, clock::now()).await {
            Ok(removed) if removed == Removed::default() => {}
            Ok(removed) => tracing::info!(
                events = removed.events,
                audit = removed.audit,
                deliveries = removed.deliveries,
                rollout_log = removed.rollout_log,
                "removed history that was older than it is kept"
            ),
            Err(error) => tracing::warn!(error = chain(&error), "could not remove old history"),
        }
    }
}

/// Which history a step is about.
#[derive(Debug, Clone, Copy)]
enum Part {
    Events,
    Audit,
    Deliveries,
    RolloutLog,
}

/// How one step went.
enum Step {
    Removed(u64),
    /// Another program does it, or the program is about to end.
    Left,
}

/// Removes everything that is too old at `now`, unless another program does so.
///
/// # Errors
/// When the store cannot be read or written; what was removed until then stays removed.
pub async fn run_once(app: &App, holder: &str, now: Timestamp) -> Result<Removed, StoreError> {
    let mut removed = Removed::default();
    for part in [
        Part::Events,
        Part::Audit,
        Part::Deliveries,
        Part::RolloutLog,
    ] {
        let days = match part {
            Part::Events => app.retention.events_days,
            Part::Audit => app.retention.audit_days,
            Part::Deliveries | Part::RolloutLog => app.retention.rollouts_days,
        };
        let Some(cutoff) = cutoff(days, now) else {
            continue;
        };
        loop {
            let Step::Removed(count) = step(app, holder, part, cutoff, now).await? else {
                return Ok(removed);
            };
            if count == 0 {
                break;
            }
            match part {
                Part::Events => removed.events += count,
                Part::Audit => removed.audit += count,
                Part::Deliveries => removed.deliveries += count,
                Part::RolloutLog => removed.rollout_log += count,
            }
        }
    }
    if removed != Removed::default() {
        app.store.give_back_room().await?;
    }
    Ok(removed)
}

/// Removes a little, under the lease.
async fn step(
    app: &App,
    holder: &str,
    part: Part,
    cutoff: Timestamp,
    now: Timestamp,
) -> Result<Step, StoreError> {
    if *app.stopping.borrow() {
        return Ok(Step::Left);
    }
    let holder = holder.to_owned();
    app.store
        .transact(move |tx| {
            let Some(lease) = leases::take(tx, LEASE, &holder, LEASE_MS)? else {
                return Ok(Step::Left);
            };
            let count = remove(tx, part, cutoff, now)?;
            if count == 0 {
                leases::release(tx, &lease)?;
            }
            Ok(Step::Removed(count))
        })
        .await
}

fn remove(
    tx: &mut Tx<'_>,
    part: Part,
    cutoff: Timestamp,
    now: Timestamp,
) -> Result<u64, StoreError> {
    match part {
        Part::Events => events::prune(tx, cutoff, now),
        Part::Audit => {
            let actor = Actor {
                kind: "system",
                name: "prune".to_owned(),
                request_id: "prune".to_owned(),
            };
            match audit::prune(tx, &actor, cutoff, now)? {
                Pruned::Rows(count) => Ok(count),
                Pruned::Broken(id) => {
                    tracing::error!(
                        audit.id = id,
                        "the audit log is broken: its old rows are kept until somebody looked at them"
                    );
                    Ok(0)
                }
            }
        }
        Part::Deliveries => retention::prune_deliveries(tx, cutoff),
        Part::RolloutLog => retention::prune_rollout_log(tx, cutoff),
    }
}
