//! Owns sending what is due for one channel: taken under the lease, sent, and written down.
//!
//! Refuses to write about a try that was overtaken by another one.

use holdfast_domain::notification::Content;
use holdfast_domain::notification::schedule::{self, MINUTE_MS, Next, Outcome, Share};
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};

use super::LookError;
use crate::app::App;
use crate::clock::Stopwatch;
use crate::notify::{Parcel, Report, new_name};
use crate::secret::dice;
use crate::store::events::{self, NewEvent};
use crate::store::leases::{self, Lease};
use crate::store::notification_channels::{self as channels, Stored};
use crate::store::notification_deliveries::{self as deliveries, Answer, Delivery};
use crate::store::{StoreError, Tx};
use crate::telemetry::chain;

/// Messages to one channel before the task looks up again.
const TURN: usize = 64;
/// For so long a message is left to whoever took it: longer than the longest configured patience.
const CLAIM_MS: i64 = 120_000;

/// A message that this program took to send.
struct Claimed {
    channel: Stored,
    delivery: Delivery,
    content: Content,
}

/// Sends what is due for one channel, one message after the other.
pub(super) async fn turn(app: &App, lease: &Lease, channel: i64, now: Timestamp) {
    let begun = Stopwatch::start();
    let at = || now.plus_ms(i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX));
    for _ in 0..TURN {
        if *app.stopping.borrow() {
            return;
        }
        let went_on = match claim(app, lease, channel, at()).await {
            Ok(Some(claimed)) => {
                let parcel = Parcel {
                    name: &claimed.delivery.name,
                    content: &claimed.content,
                    now: at(),
                };
                let report = app.courier.send(&claimed.channel, parcel).await;
                conclude(app, &claimed.channel, &claimed.delivery, report, at()).await
            }
            Ok(None) => return,
            Err(error) => Err(error),
        };
        match went_on {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    channel.id = channel,
                    "could not read or write messages; they are due again later"
                );
                return;
            }
        }
    }
}

/// Takes the next message of a channel, if it may have one now.
async fn claim(
    app: &App,
    lease: &Lease,
    channel: i64,
    now: Timestamp,
) -> Result<Option<Claimed>, LookError> {
    let (lease, summary) = (lease.clone(), new_name()?);
    let claimed = app
        .store
        .transact(move |tx| {
            if !leases::holds(tx, &lease)? {
                return Ok(None);
            }
            let Some(channel) = channels::find(tx, channel)? else {
                return Ok(None);
            };
            let rests = channel.rest_until.is_some_and(|until| until > now);
            if rests || !channel.settings.enabled {
                return Ok(None);
            }
            let before = now.plus_ms(-schedule::GIVE_UP_MS);
            let old = deliveries::expire(tx, channel.id, before, now)?;
            if old > 0 {
                let error = "what waited for a day is old news";
                let detail = json!({ "channel": channel.id, "count": old, "error": error });
                note_failure(tx, &channel, detail, now)?;
            }
            let Some(first) = deliveries::first_due(tx, channel.id, now)? else {
                return Ok(None);
            };
            let tried = deliveries::tried_since(tx, channel.id, now.plus_ms(-MINUTE_MS))?;
            let new = deliveries::never_tried(tx, channel.id)?;
            let most = channel.settings.most_per_minute;
            let first = match schedule::share(most, tried, new, first.attempts > 0) {
                Share::Rest => return Ok(None),
                Share::One => first,
                Share::SumUp => {
                    deliveries::sum_up(tx, channel.id, &summary, now)?;
                    let Some(summed) = deliveries::first_due(tx, channel.id, now)? else {
                        return Ok(None);
                    };
                    summed
                }
            };
            let until = now.plus_ms(CLAIM_MS);
            let content = deliveries::content(tx, first.id)?;
            if !deliveries::claim(tx, first.id, first.attempts, now, until)? {
                return Ok(None);
            }
            let delivery = Delivery {
                attempts: first.attempts.saturating_add(1),
                ..first
            };
            Ok::<_, StoreError>(content.map(|content| Claimed {
                channel,
                delivery,
                content,
            }))
        })
        .await?;
    Ok(claimed)
}

/// Writes down what became of a try; whether the channel takes more.
async fn conclude(
    app: &App,
    channel: &Stored,
    delivery: &Delivery,
    report: Report,
    now: Timestamp,
) -> Result<bool, LookError> {
    let random = dice();
    let next = schedule::next(
        &report.outcome,
        delivery.attempts,
        delivery.created_at,
        now,
        random,
    );
    let outcome = match next {
        Next::Delivered => "delivered",
        Next::Again(_) => "again",
        Next::GivenUp => "given_up",
    };
    app.metrics
        .notification(channel.settings.kind.name(), outcome);
    log(channel, delivery, &report, outcome);
    let went_on = !matches!(report.outcome, Outcome::Failed { .. });
    let (channel, delivery) = (channel.clone(), delivery.clone());
    app.store
        .transact(move |tx| write(tx, &channel, &delivery, &report, next, random, now))
        .await?;
    Ok(went_on)
}

fn log(channel: &Stored, delivery: &Delivery, report: &Report, outcome: &'static str) {
    match &report.error {
        None => tracing::debug!(
            channel.id,
            delivery.id = delivery.name,
            attempt = delivery.attempts,
            "a message was taken"
        ),
        Some(error) => tracing::warn!(
            channel.id,
            delivery.id = delivery.name,
            attempt = delivery.attempts,
            outcome,
            error,
            "a message was not taken"
        ),
    }
}

fn write(
    tx: &mut Tx<'_>,
    channel: &Stored,
    delivery: &Delivery,
    report: &Report,
    next: Next,
    random: u64,
    now: Timestamp,
) -> Result<(), StoreError> {
    let answer = Answer {
        status: report.status,
        error: report.error.as_deref(),
    };
    let this = (delivery.id, delivery.attempts);
    let written = match next {
        Next::Delivered => deliveries::end(tx, this, "delivered", &answer, now)?,
        Next::Again(at) => deliveries::put_off(tx, this, &answer, at)?,
        Next::GivenUp => {
            let written = deliveries::end(tx, this, "failed", &answer, now)?;
            if written {
                let detail = json!({
                    "channel": channel.id, "delivery": delivery.name, "kind": delivery.kind,
                    "event": delivery.event, "attempts": delivery.attempts, "error": report.error,
                });
                note_failure(tx, channel, detail, now)?;
            }
            written
        }
    };
    if !written {
        return Ok(());
    }
    match &report.outcome {
        Outcome::Taken => channels::taken(tx, channel.id, now),
        // The receiver is well; it was the message.
        Outcome::Refused => Ok(()),
        Outcome::Failed { peace_ms } => {
            let failures = channel.failures.saturating_add(1);
            let wait_ms = schedule::wait_ms(failures, *peace_ms, random);
            channels::failed(tx, channel.id, now.plus_ms(wait_ms))
        }
    }
}

/// Says in the events that something was given up; that is told nobody (`kinds::may_be_told`).
fn note_failure(
    tx: &mut Tx<'_>,
    channel: &Stored,
    detail: Value,
    now: Timestamp,
) -> Result<(), StoreError> {
    events::record(
        tx,
        &NewEvent::about("notification.failed", &channel.settings.name, detail),
        now,
    )?;
    Ok(())
}
