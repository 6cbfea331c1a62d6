//! Owns noticing that devices went silent or came back, each once, whichever of several programs sees it first.

use std::time::Duration;

use holdfast_domain::presence::online_since;
use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;
use serde_json::json;

use crate::app::{App, Shared};
use crate::clock;
use crate::store::events::{self, NewEvent};
use crate::store::{StoreError, devices};
use crate::telemetry::chain;

/// Silence is measured in minutes.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Devices in one transaction: others get their turn in between.
const BATCH: i64 = 500;

pub(super) async fn run(app: Shared) {
    let mut stopping = app.stopping.clone();
    let now = clock::now();
    let silence_ms = now.since_ms(online_since(now, app.poll_interval_s));
    // Nobody could be heard of while no program ran: devices get the time to come back first.
    let mut wait = Duration::from_millis(u64::try_from(silence_ms).unwrap_or_default());
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stopping.changed() => return,
        }
        wait = LOOK_EVERY;
        if let Err(error) = look(&app, clock::now()).await {
            tracing::warn!(error = chain(&error), "could not look who is silent");
        }
    }
}

/// Records who went silent and who came back by `now`.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn look(app: &App, now: Timestamp) -> Result<(), StoreError> {
    let since = online_since(now, app.poll_interval_s);
    for (kind, is_online) in [("device.online", true), ("device.offline", false)] {
        loop {
            let turned = app
                .store
                .transact(move |tx| {
                    let turned = devices::turn_presence(tx, is_online, since, BATCH)?;
                    for device in &turned {
                        record(tx, kind, *device, now)?;
                    }
                    Ok::<_, StoreError>(turned.len())
                })
                .await?;
            if i64::try_from(turned).is_ok_and(|turned| turned < BATCH) {
                break;
            }
        }
    }
    Ok(())
}

fn record(
    tx: &mut crate::store::Tx<'_>,
    kind: &str,
    device: DeviceId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let event = NewEvent {
        kind,
        device: Some(device),
        subject: None,
        detail: json!({}),
        delivery: None,
    };
    events::record(tx, &event, now)?;
    Ok(())
}
