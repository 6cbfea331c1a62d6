//! Owns asking registries again: for references that have no answer yet, and for what tags mean by now.
//!
//! When to ask is in the store, so a restart starts no storm, and whoever takes what is due puts it off
//! for the others, so several replicas ask once. Refuses to change what a device runs: only targets that
//! wait for a digest are rendered anew, and a tag that moved is treated as a push of it.

use std::time::Duration;

use holdfast_proto::time::Timestamp;

use crate::app::{App, Shared};
use crate::clock;
use crate::pushes;
use crate::resolver::{self, Freshness, Question};
use crate::store::audit::Actor;
use crate::store::resolutions::{self, Due};
use crate::store::{StoreError, tag_candidates, targets};
use crate::targeting;
use crate::telemetry::chain;

/// The longest sleep: another replica may have stored something to resolve.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// The shortest sleep, also after a failure of the store.
const BREATHE: Duration = Duration::from_secs(1);
/// References asked for in one round.
const ROUND: i64 = 64;
/// For so long what a round takes is left to it: longer than the slowest round (64 questions of 20 s, 8
/// at a time). After that another replica takes it: this one has died.
const ROUND_LIMIT_MS: i64 = 3 * 60 * 1_000;
/// How often newer tags are looked for: releases are rare, and a list of tags is long.
const NEWER_TAGS_EVERY_MS: i64 = 6 * 3_600 * 1_000;
/// References whose newer tags are looked for in one round.
const NEWER_TAGS_ROUND: i64 = 8;
/// Devices rendered in one transaction.
const BATCH: i64 = 100;

pub(super) async fn run(app: Shared) {
    let mut stopping = app.stopping.clone();
    loop {
        let wait = match run_once(&app, clock::now()).await {
            Ok(next) => until(next, clock::now(), longest(&app)),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "could not look for references to ask for again"
                );
                BREATHE
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = app.resolve_soon.notified() => {}
            _ = stopping.changed() => return,
        }
    }
}

/// The longest sleep: what is set meanwhile must not be due before the next look.
fn longest(app: &App) -> Duration {
    let interval = app.rhythm.interval.unwrap_or(LOOK_EVERY);
    (interval / 2).clamp(BREATHE, LOOK_EVERY)
}

fn until(next: Option<Timestamp>, now: Timestamp, longest: Duration) -> Duration {
    next.map_or(longest, |next| {
        Duration::from_millis(u64::try_from(next.since_ms(now)).unwrap_or_default())
            .clamp(BREATHE, longest)
    })
}

/// Asks once for everything that is due at `now`; answers when the next attempt is.
///
/// # Errors
/// When the store cannot be read or written; registries that do not answer are no error.
pub async fn run_once(app: &App, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let questions = take(app, now).await?;
    if !questions.is_empty() {
        let findings = app.resolver.answers(questions, Freshness::Now).await;
        let rhythm = app.rhythm;
        app.store
            .transact(move |tx| {
                let learnt = resolver::record(tx, &findings, rhythm)?;
                pushes::hint(tx, &learnt.moved, now)
            })
            .await?;
        app.pushes.deliver_soon.notify_one();
    }
    render_waiting(app, now).await?;
    if app.rhythm.interval.is_some() {
        look_for_newer_tags(app, now).await?;
    }
    let (next, failing) = app
        .store
        .read(move |tx| {
            Ok::<_, StoreError>((resolutions::next_due(tx)?, resolutions::count_failing(tx)?))
        })
        .await?;
    app.metrics.set_unresolved(failing);
    Ok(next)
}

/// Takes what is due, with the credentials of each.
async fn take(app: &App, now: Timestamp) -> Result<Vec<Question>, StoreError> {
    let refresh_before = app.rhythm.interval.map(|interval| {
        let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX);
        // An interval that was made shorter holds at once, with room for the spread.
        now.plus_ms(-interval_ms - interval_ms / 4)
    });
    let due = Due {
        now,
        refresh_before,
        limit: ROUND,
    };
    let taken = app
        .store
        .transact(move |tx| {
            resolutions::adopt(tx, None, now)?;
            let rows = resolutions::take_due(tx, due, now.plus_ms(ROUND_LIMIT_MS))?;
            Ok::<_, StoreError>(rows)
        })
        .await?;
    let lag = taken.iter().filter_map(|row| row.next_attempt_at);
    app.metrics
        .set_refresh_lag(lag.map(|at| now.since_ms(at)).max().unwrap_or(0));
    let mut questions = Vec::with_capacity(taken.len());
    for row in taken {
        let Some(reference) = row.key.reference() else {
            continue;
        };
        let logins = app.logins.clone();
        let question = app
            .store
            .read(move |tx| {
                let registry = reference.repository().registry();
                let login = logins.of_scope(tx, registry, &row.scope)?;
                Question::prepare(tx, reference.clone(), login)
            })
            .await?;
        questions.push(question);
    }
    Ok(questions)
}

/// Looks for newer tags than those that targets name: more rarely, and few at a time.
async fn look_for_newer_tags(app: &App, now: Timestamp) -> Result<(), StoreError> {
    let before = now.plus_ms(-NEWER_TAGS_EVERY_MS);
    let due = app
        .store
        .transact(move |tx| tag_candidates::take_due(tx, now, before, NEWER_TAGS_ROUND))
        .await?;
    for wanted in due {
        let Some(reference) = wanted.key.reference() else {
            continue;
        };
        let (logins, registry, scope) = (
            app.logins.clone(),
            wanted.key.registry.clone(),
            wanted.scope.clone(),
        );
        let login = app
            .store
            .read(move |tx| logins.of_scope(tx, &registry, &scope))
            .await?;
        let Ok(who) = login.identity.transpose() else {
            continue;
        };
        let found = app
            .resolver
            .newer_tags(&reference, &wanted.platform, who.as_ref())
            .await;
        match found {
            Ok(found) => {
                app.store
                    .transact(move |tx| {
                        tag_candidates::put(tx, &wanted.key, &wanted.platform, &found)
                    })
                    .await?;
            }
            Err(failure) => tracing::debug!(
                image.reference = %reference, error = failure.why,
                "newer tags could not be looked for; those known before are kept"
            ),
        }
    }
    Ok(())
}

/// Renders the target of every device that waits for a digest which is known by now.
async fn render_waiting(app: &App, now: Timestamp) -> Result<(), StoreError> {
    let mut after = 0;
    loop {
        let logins = app.logins.clone();
        let (last, count) = app
            .store
            .transact(move |tx| {
                let actor = Actor {
                    kind: "system",
                    name: "refresh_tags".to_owned(),
                    request_id: "refresh_tags".to_owned(),
                };
                let devices = targets::devices_waiting(tx, after, BATCH)?;
                for (_, uuid) in &devices {
                    if targeting::render_again(tx, &logins, *uuid, &actor, now)? {
                        tracing::info!(
                            device.id = %uuid,
                            "a target got digests for which it had waited"
                        );
                    }
                }
                let last = devices.last().map(|(row, _)| *row);
                Ok::<_, StoreError>((last, devices.len()))
            })
            .await?;
        match last {
            Some(row) if i64::try_from(count).is_ok_and(|count| count == BATCH) => after = row,
            Some(_) | None => return Ok(()),
        }
    }
}
