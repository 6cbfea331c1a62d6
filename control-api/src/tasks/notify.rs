//! Owns telling people: events become messages, messages are sent, tried again and given up.
//!
//! One of several programs does it, under a lease; each write names the attempt that it is about, so that one that
//! was overtaken changes nothing. Whoever dies in the middle leaves messages that are due again, under the same
//! names. Refuses to keep one receiver waiting for another.

mod follow;
mod turn;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::StreamExt as _;
use holdfast_proto::time::Timestamp;
use tokio::task::{Id, JoinSet};

use crate::app::{App, Shared};
use crate::clock;
use crate::secret::NoRandomness;
use crate::store::StoreError;
use crate::store::leases::{self, Lease};
use crate::store::notification_channels as channels;
use crate::store::notification_deliveries as deliveries;
use crate::telemetry::chain;
use follow::follow;
use turn::turn;

/// The lease's name.
const LEASE: &str = "notifications";
/// For so long it is held: when this program dies, another one tells people a minute later.
const LEASE_MS: i64 = 60_000;
/// How often the store is looked at: what happens is told within a second or two. A look that finds nothing is one
/// short read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Wait after a failure of the store.
const BREATHE: Duration = Duration::from_secs(5);
/// An event may become visible so much later than one with a greater number. Transactions are ended by the database
/// after ten seconds in one statement and thirty between two; this leaves room for many of both.
const VISIBLE_WITHIN_MS: i64 = 5 * 60_000;
/// Channels that are sent to at once.
const AT_ONCE: usize = 8;

/// Why a look at the store came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The store could not do it.
    #[error("the store could not do it")]
    Store(#[from] StoreError),
    /// No names can be made for messages.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

pub(super) async fn run(app: Shared) {
    let mut stopping = app.stopping.clone();
    let mut sending: JoinSet<()> = JoinSet::new();
    let mut busy: HashMap<Id, i64> = HashMap::new();
    loop {
        let now = clock::now();
        let wait = match look(&app, now).await {
            Ok(Some((lease, ready))) => {
                let served: BTreeSet<i64> = busy.values().copied().collect();
                let free = ready
                    .into_iter()
                    .filter(|channel| !served.contains(channel));
                for channel in free.take(AT_ONCE.saturating_sub(busy.len())) {
                    let (app, lease) = (app.clone(), lease.clone());
                    let task = sending.spawn(async move { turn(&app, &lease, channel, now).await });
                    busy.insert(task.id(), channel);
                }
                LOOK_EVERY
            }
            Ok(None) => LOOK_EVERY,
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "could not look for events to tell people of"
                );
                BREATHE
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = app.courier.wake.notified() => {}
            Some(ended) = sending.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                busy.remove(&id);
            }
            _ = stopping.changed() => break,
        }
    }
    // Each ends with the message it is at, within the patience for one answer.
    while sending.join_next().await.is_some() {}
    let holder = app.courier.holder().to_owned();
    let released = app
        .store
        .transact(move |tx| {
            let now = clock::now();
            if let Some(lease) = leases::take_at(tx, LEASE, &holder, now, now)? {
                leases::release(tx, &lease)?;
            }
            Ok::<_, StoreError>(())
        })
        .await;
    if let Err(error) = released {
        tracing::debug!(
            error = chain(&error),
            "the lease for notifications runs out by itself"
        );
    }
}

/// Does once what is to be done at `now`: turns events into messages, and sends what is due. False when another
/// program does it.
///
/// # Errors
/// When the store cannot be read or written; receivers that do not answer are no error.
pub async fn run_once(app: &App, now: Timestamp) -> Result<bool, LookError> {
    loop {
        let Some((lease, ready)) = look(app, now).await? else {
            return Ok(!is_work(app, now).await?);
        };
        futures_util::stream::iter(ready)
            .map(|channel| turn(app, &lease, channel, now))
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<()>>()
            .await;
        if !is_unseen(app).await? {
            return Ok(true);
        }
    }
}

/// Whether there is anything to do: asked before the lease is, so that idle programs write nothing.
async fn is_work(app: &App, now: Timestamp) -> Result<bool, StoreError> {
    app.store
        .read(move |tx| {
            Ok(!deliveries::unseen_events(tx, 1)?.is_empty()
                || !channels::ready(tx, now)?.is_empty()
                || deliveries::may_settle(tx, now.plus_ms(-VISIBLE_WITHIN_MS))?)
        })
        .await
}

async fn is_unseen(app: &App) -> Result<bool, StoreError> {
    app.store
        .read(|tx| Ok(!deliveries::unseen_events(tx, 1)?.is_empty()))
        .await
}

/// Turns events into messages, and finds the channels that have something to send; none when there is nothing to
/// do, or another program does it.
async fn look(app: &App, now: Timestamp) -> Result<Option<(Lease, Vec<i64>)>, LookError> {
    if !is_work(app, now).await? {
        return Ok(None);
    }
    let holder = app.courier.holder().to_owned();
    let taken = app
        .store
        .transact(move |tx| {
            // By this program's clock: where clocks differ, a message is late by that after a crash, which harms nobody.
            leases::take_at(tx, LEASE, &holder, now, now.plus_ms(LEASE_MS))
        })
        .await?;
    let Some(lease) = taken else {
        return Ok(None);
    };
    follow(app, &lease, now).await?;
    let ready = app.store.read(move |tx| channels::ready(tx, now)).await?;
    Ok(Some((lease, ready)))
}
