//! Owns keeping the poll cache true: every announced change is read from the store again.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;

use crate::app::Shared;
use crate::store::Change;
use crate::telemetry::chain;

/// How often the whole cache is compared with the store, whatever was announced: devices of one
/// process on SQLite need it never, replicas once an announcement was lost unnoticed.
const RELOAD_EVERY: Duration = Duration::from_mins(10);
/// Wait after a failed reload.
const RELOAD_AGAIN: Duration = Duration::from_secs(5);

pub(super) async fn run(app: Shared) {
    let mut changes = app.store.changes();
    let mut stopping = app.stopping.clone();
    let mut wait = RELOAD_EVERY;
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = tokio::time::sleep(wait) => Ok(Change::Everything),
            _ = stopping.changed() => return,
        };
        let read = match change {
            Ok(Change::Device(uuid)) => app.live.refresh(&app.store, uuid).await,
            Ok(Change::Everything) | Err(RecvError::Lagged(_)) => app.live.reload(&app.store).await,
            Err(RecvError::Closed) => return,
        };
        wait = match read {
            Ok(()) => RELOAD_EVERY,
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "could not read devices again, polls are answered from before"
                );
                RELOAD_AGAIN
            }
        };
    }
}
