//! Owns asking again for references whose registry did not answer, and rendering targets anew.
//!
//! The waits grow per reference (`retry`) and are stored, so a restart starts no storm.

use std::time::Duration;

use holdfast_proto::image::Reference;
use holdfast_proto::time::Timestamp;

use crate::app::App;
use crate::app::Shared;
use crate::clock;
use crate::resolver;
use crate::store::audit::Actor;
use crate::store::resolutions::{self, Key};
use crate::store::{StoreError, targets};
use crate::targeting;
use crate::telemetry::chain;

/// The longest sleep: another replica may have stored something to resolve.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// The shortest sleep, also after a failure of the store.
const BREATHE: Duration = Duration::from_secs(1);
/// References asked for in one round.
const ROUND: i64 = 64;
/// Devices rendered in one transaction.
const BATCH: i64 = 100;

pub(super) async fn run(app: Shared) {
    let mut stopping = app.stopping.clone();
    loop {
        let wait = match run_once(&app, clock::now()).await {
            Ok(next) => until(next, clock::now()),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "could not look for unresolved references"
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

fn until(next: Option<Timestamp>, now: Timestamp) -> Duration {
    next.map_or(LOOK_EVERY, |next| {
        Duration::from_millis(u64::try_from(next.since_ms(now)).unwrap_or_default())
            .clamp(BREATHE, LOOK_EVERY)
    })
}

/// Asks once for everything that is due at `now`; answers when the next attempt is.
///
/// # Errors
/// When the store cannot be read or written; registries that do not answer are no error.
pub async fn run_once(app: &App, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let due = app
        .store
        .read(move |tx| resolutions::due(tx, now, ROUND))
        .await?;
    app.metrics.set_unresolved(due.len());
    let references: Vec<Reference> = due
        .iter()
        .filter_map(|resolution| resolution.key.reference())
        .collect();
    if !references.is_empty() {
        let answers = app.resolver.answers(&references).await;
        let answered: Vec<Key> = answers
            .iter()
            .filter(|(_, answer)| answer.is_ok())
            .map(|(key, _)| key.clone())
            .collect();
        app.store
            .transact(move |tx| resolver::record(tx, &answers, now).map(|_| ()))
            .await?;
        for key in answered {
            tracing::info!(
                image.registry = key.registry,
                image.repository = key.repository,
                image.selector = key.selector,
                "resolved a reference that had waited for its registry"
            );
            render_all(app, key, now).await?;
        }
    }
    app.store.read(resolutions::next_due).await
}

/// Renders the target of every device whose target names this image.
async fn render_all(app: &App, key: Key, now: Timestamp) -> Result<(), StoreError> {
    let mut after = 0;
    loop {
        let key = key.clone();
        let (last, count) = app
            .store
            .transact(move |tx| {
                let actor = Actor {
                    kind: "system",
                    name: "resolve_pending".to_owned(),
                    request_id: "resolve_pending".to_owned(),
                };
                let devices = targets::devices_with(tx, &key, after, BATCH)?;
                for (_, uuid) in &devices {
                    targeting::render_again(tx, *uuid, &actor, now)?;
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
