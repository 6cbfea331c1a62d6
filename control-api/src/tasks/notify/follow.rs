//! Owns turning events into messages, each event once, also those that become visible late.
//!
//! Refuses to tell a channel what happened before it was made.

use std::collections::BTreeSet;

use holdfast_domain::notification::schedule;
use holdfast_domain::notification::{Content, Notice, kinds};
use holdfast_domain::scope::FLEET_LABEL;
use holdfast_proto::image::Digest;
use holdfast_proto::time::Timestamp;
use serde_json::Value;

use super::{LookError, VISIBLE_WITHIN_MS};
use crate::app::App;
use crate::notify::new_name;
use crate::store::events::Event;
use crate::store::leases::{self, Lease};
use crate::store::notification_channels::{self as channels, Stored};
use crate::store::notification_deliveries::{self as deliveries, New};
use crate::store::{StoreError, Tx, devices};

/// Events turned into messages in one transaction: with fifty channels at most 5,000 rows.
const BATCH: i64 = 100;
/// Messages that are over, kept for people to look at.
const KEPT: i64 = 1_000;

/// Turns one batch of events into messages, each event once.
pub(super) async fn follow(app: &App, lease: &Lease, now: Timestamp) -> Result<(), LookError> {
    // Read by itself: a snapshot of events, which others go on writing, conflicts with nobody.
    let notices = app
        .store
        .read(|tx| {
            let events = deliveries::unseen_events(tx, BATCH)?;
            let is_told = !channels::enabled(tx)?.is_empty();
            let notices = events.into_iter().map(|event| notice(tx, event, is_told));
            notices.collect::<Result<Vec<Notice>, StoreError>>()
        })
        .await?;
    let is_backlog = i64::try_from(notices.len()).is_ok_and(|count| count >= BATCH);
    let (lease, seed, names) = (lease.clone(), new_name()?, new_name()?);
    app.store
        .transact(move |tx| {
            if !leases::holds(tx, &lease)? {
                return Ok(());
            }
            let all = channels::enabled(tx)?;
            let mut told = BTreeSet::new();
            for notice in &notices {
                if deliveries::see(tx, notice.id, now)? {
                    tell(tx, &all, notice, &seed, &mut told, now)?;
                }
            }
            for channel in told {
                if deliveries::never_tried(tx, channel)? > schedule::MOST_WAITING {
                    deliveries::sum_up(tx, channel, &name(&names, channel, 0), now)?;
                }
                deliveries::prune(tx, channel, KEPT)?;
            }
            // With a backlog there may be events below that were not looked at yet.
            if !is_backlog {
                deliveries::settle(tx, now.plus_ms(-VISIBLE_WITHIN_MS))?;
            }
            Ok::<_, StoreError>(())
        })
        .await?;
    Ok(())
}

/// What there is to tell of an event; who the device is only if anybody is told.
fn notice(tx: &mut Tx<'_>, event: Event, is_told: bool) -> Result<Notice, StoreError> {
    let device = match event.device {
        Some(uuid) if is_told => devices::find(tx, uuid)?,
        Some(_) | None => None,
    };
    let named = event
        .detail
        .get("fleet")
        .and_then(Value::as_str)
        .map(str::to_owned);
    let labelled = || {
        device
            .as_ref()
            .and_then(|device| device.labels.get(FLEET_LABEL).cloned())
    };
    let notice = Notice {
        id: event.id,
        severity: kinds::severity(&event.kind, &event.detail),
        kind: event.kind,
        at: event.at,
        subject: event.subject,
        device: event.device,
        fleet: named.or_else(labelled),
        device_name: device.map(|device| device.name),
        detail: event.detail,
    };
    Ok(notice.bounded())
}

/// Makes the messages about one event.
fn tell(
    tx: &mut Tx<'_>,
    all: &[Stored],
    notice: &Notice,
    seed: &str,
    told: &mut BTreeSet<i64>,
    now: Timestamp,
) -> Result<(), StoreError> {
    // What happened before a channel was made is not told there, however late it is looked at.
    let wanting = all
        .iter()
        .filter(|channel| channel.settings.wants(notice) && notice.at >= channel.created_at);
    for channel in wanting {
        let new = New {
            channel: channel.id,
            event: Some(notice.id),
            name: &name(seed, channel.id, notice.id),
            content: &Content::Event(notice.clone()),
        };
        deliveries::add(tx, &new, now)?;
        told.insert(channel.id);
    }
    Ok(())
}

/// The name of a message: nobody who does not know the seed can guess it.
fn name(seed: &str, channel: i64, event: i64) -> String {
    let mut name = Digest::of(format!("{seed} {channel} {event}").as_bytes()).hex();
    name.truncate(seed.len());
    name
}
