//! Owns the monitor: looks at rollouts on a timer and whenever something was reported or ordered.
//!
//! One of several programs acts, the one that holds the lease; whoever was overtaken changes nothing. Refuses to
//! remember: each step begins with what is stored.

use std::time::Duration;

use holdfast_proto::time::Timestamp;

use crate::app::{App, Shared};
use crate::clock;
use crate::rollouts::facts::Circumstances;
use crate::rollouts::step::{Step, step};
use crate::secret;
use crate::store::StoreError;
use crate::store::leases::{self, Lease};
use crate::store::rollouts as stored;
use crate::telemetry::chain;

/// The lease's name.
const LEASE: &str = "rollouts";
/// Between two looks where nothing was reported: time-outs and windows are minutes.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The same where several programs share the store: reports that another one took are seen by looking.
const LOOK_EVERY_SHARED: Duration = Duration::from_secs(4);
/// For so long a lease outlasts the last look: three looks, so that one that is late loses nothing, and another
/// program takes over within 15 s.
const LEASE_MS: i64 = 90_000;
const LEASE_SHARED_MS: i64 = 12_000;
/// Reports that come together are looked at together.
const GATHER: Duration = Duration::from_millis(250);
/// The shortest sleep, also after a failure of the store.
const BREATHE: Duration = Duration::from_secs(1);
/// Rollouts read at a time.
const PAGE: i64 = 200;
/// Decisions about one rollout in one look; more come with the next, so that no rollout starves the others.
const MOST_STEPS: usize = 200;
/// For so long devices of a rollout that succeeded may still catch up.
const CATCH_UP_MS: i64 = 30 * 24 * 3_600 * 1_000;

pub(super) async fn run(app: Shared) {
    let mut stopping = app.stopping.clone();
    let Ok(holder) = secret::request_id() else {
        tracing::error!("this machine gives no randomness: rollouts stand still");
        return;
    };
    loop {
        let wait = match run_once(&app, &holder, clock::now).await {
            Ok(next) => until(&app, next, clock::now()),
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not look at rollouts");
                BREATHE
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = app.rollouts_soon.notified() => tokio::time::sleep(GATHER).await,
            _ = stopping.changed() => return,
        }
    }
}

fn look_every(app: &App) -> Duration {
    if app.store.is_shared() {
        LOOK_EVERY_SHARED
    } else {
        LOOK_EVERY
    }
}

fn until(app: &App, next: Option<Timestamp>, now: Timestamp) -> Duration {
    let longest = look_every(app);
    next.map_or(longest, |next| {
        let left = u64::try_from(next.since_ms(now)).unwrap_or_default();
        Duration::from_millis(left).clamp(GATHER, longest)
    })
}

/// Does everything that is to be done now; answers when there is more at the latest.
///
/// # Errors
/// When the store cannot be read or written; what was decided before that is stored.
pub async fn run_once(
    app: &App,
    holder: &str,
    now: impl Fn() -> Timestamp,
) -> Result<Option<Timestamp>, StoreError> {
    let mut after = 0;
    let mut next: Option<Timestamp> = None;
    loop {
        let since = now().plus_ms(-CATCH_UP_MS);
        let ids = app
            .store
            .read(move |tx| stored::watched(tx, since, after, PAGE))
            .await?;
        let Some(last) = ids.last().copied() else {
            return Ok(next);
        };
        let Some(lease) = take(app, holder).await? else {
            return Ok(None);
        };
        for id in ids {
            let Some(rests) = advance(app, &lease, id, &now).await? else {
                tracing::info!("another program looks after rollouts by now");
                return Ok(None);
            };
            next = match (next, rests) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        after = last;
    }
}

async fn take(app: &App, holder: &str) -> Result<Option<Lease>, StoreError> {
    let length_ms = if app.store.is_shared() {
        LEASE_SHARED_MS
    } else {
        LEASE_MS
    };
    let holder = holder.to_owned();
    app.store
        .transact(move |tx| leases::take(tx, LEASE, &holder, length_ms))
        .await
}

/// Takes steps in one rollout until it rests; none when the lease is lost.
async fn advance(
    app: &App,
    lease: &Lease,
    id: i64,
    now: &impl Fn() -> Timestamp,
) -> Result<Option<Option<Timestamp>>, StoreError> {
    for _ in 0..MOST_STEPS {
        let (lease, internal, now) = (lease.clone(), app.pushes.internal.clone(), now());
        let logins = app.logins.clone();
        let poll_interval_s = app.poll_interval_s;
        let taken = app.store.transact(move |tx| {
            let around = Circumstances {
                logins: &logins,
                internal: &internal,
                poll_interval_s,
                now,
            };
            step(tx, &lease, id, around)
        });
        match taken.await? {
            Step::Done(touched) => {
                for device in touched {
                    app.live.refresh(&app.store, device).await?;
                }
            }
            Step::Rests(until) => return Ok(Some(until)),
            Step::Overtaken => return Ok(None),
        }
    }
    Ok(Some(Some(now())))
}
