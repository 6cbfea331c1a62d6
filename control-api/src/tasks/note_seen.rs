//! Owns writing down when devices were last heard of: in batches, so that a poll writes nothing.

use std::time::Duration;

use crate::app::Shared;
use crate::store::{StoreError, devices};
use crate::telemetry::chain;

/// How late the record may be; presence allows for it.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// Devices in one transaction: others get their turn in between.
const BATCH: usize = 1_000;

pub(super) async fn run(app: Shared) {
    let mut stopping = app.stopping.clone();
    loop {
        let last = tokio::select! {
            () = tokio::time::sleep(WRITE_EVERY) => false,
            _ = stopping.changed() => true,
        };
        if let Err(error) = write(&app).await {
            tracing::warn!(
                error = chain(&error),
                "could not write down when devices were heard of"
            );
        }
        if last {
            return;
        }
    }
}

async fn write(app: &Shared) -> Result<(), StoreError> {
    let seen = app.live.take_seen();
    for batch in seen.chunks(BATCH) {
        let batch = batch.to_vec();
        app.store
            .transact(move |tx| {
                for (row, at) in &batch {
                    devices::seen(tx, *row, *at)?;
                }
                Ok::<_, StoreError>(())
            })
            .await?;
    }
    Ok(())
}
