//! Owns channels for notifications, as operators see them: made, changed, tried out, and what became of messages.
//!
//! What is secret of a channel is set and never given back.

mod wire;

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::notification::channel::Settings;
use holdfast_domain::notification::destination::Destination;
use holdfast_domain::notification::schedule::{MINUTE_MS, Outcome};
use holdfast_domain::notification::{Content, Notice};
use holdfast_domain::principal::Principal;
use holdfast_proto::operator::Page;
use holdfast_proto::problem::FieldError;
use holdfast_proto::time::Timestamp;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::tokens::PageParams;
use crate::app::{App, Shared};
use crate::clock::{self, Stopwatch};
use crate::http::auth::actor;
use crate::http::extract::{NumberPath, Params, Strict, cursor, next_cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::notify::{Kept, Parcel, Report, new_name};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::events::{self, NewEvent};
use crate::store::notification_channels::{self as stored, MOST_CHANNELS, Stored};
use crate::store::notification_deliveries::{self as deliveries, Answer, Delivery, New};
use crate::store::{StoreError, Tx};
pub use wire::{ChannelSummary, DeliveryEntry, NewChannel, TestAnswer};

fn taken(settings: &Settings) -> Refusal {
    Refusal::new(
        StatusCode::CONFLICT,
        "known_channel",
        format!("there is a channel called {} already", settings.name),
    )
}

/// Judges what was sent, with the secrets that stay.
fn read(
    app: &App,
    new: NewChannel,
    before: Option<(&Settings, &Kept)>,
) -> Result<(Settings, Kept), Refusal> {
    let (settings, kept) = new.with(before);
    let settings = settings.judged(kept.shown()).map_err(Refusal::invalid)?;
    if let Some(url) = &kept.url
        && let Ok(destination) = Destination::read(url.expose())
        && !destination.encrypted
        && !app.courier.may_be_plain(&destination)
    {
        return Err(Refusal::invalid(vec![FieldError {
            pointer: "/url".to_owned(),
            detail: "must begin with https://; http:// is for hosts in notifications.private_hosts alone"
                .to_owned(),
        }]));
    }
    Ok((settings, kept))
}

/// What the audit log may know of a channel.
fn about(settings: &Settings) -> Value {
    json!(settings)
}

fn note(
    tx: &mut Tx<'_>,
    by: &Actor,
    (action, kind): (&str, &str),
    (before, after): (Option<&Settings>, Option<&Settings>),
    now: Timestamp,
) -> Result<(), StoreError> {
    let name = after.or(before).map_or("", |settings| &settings.name);
    let entry = NewEntry {
        action,
        subject_kind: "notification_channel",
        subject: name.to_owned(),
        before: before.map(about),
        after: after.map(about),
    };
    audit::append(tx, by, &entry, now)?;
    events::record(tx, &NewEvent::about(kind, name, json!({})), now)?;
    Ok(())
}

/// A channel with what is known of it now.
fn summary(app: &App, tx: &mut Tx<'_>, stored: Stored) -> Result<ChannelSummary, StoreError> {
    let waiting = deliveries::waiting(tx, stored.id)?;
    Ok(ChannelSummary::new(
        app.courier.open(&stored),
        waiting,
        stored,
    ))
}

/// Lists channels, without what is secret.
#[utoipa::path(
    get, path = "/api/v1/notifications/channels", tag = "notifications", params(PageParams),
    responses((status = 200, description = "One page of channels", body = Page<ChannelSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<ChannelSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let shared = app.clone();
    let items = app
        .store
        .read(move |tx| {
            let found = stored::list(tx, after, size)?;
            let items = found.into_iter().map(|stored| summary(&shared, tx, stored));
            items.collect::<Result<Vec<_>, StoreError>>()
        })
        .await?;
    let next_cursor = next_cursor(&items, size, ChannelSummary::id);
    Ok(Json(Page { items, next_cursor }))
}

/// Makes a channel. What cannot work is refused by member; secrets are stored encrypted.
#[utoipa::path(
    post, path = "/api/v1/notifications/channels", tag = "notifications", request_body = NewChannel,
    responses((status = 201, description = "Made", body = ChannelSummary))
)]
pub async fn create(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Strict(new): Strict<NewChannel>,
) -> Result<(StatusCode, Json<ChannelSummary>), Refusal> {
    let (settings, kept) = read(&app, new, None)?;
    let place = new_name()?;
    let sealed = app.courier.seal(&place, &settings, &kept)?;
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let shared = app.clone();
    let made = app
        .store
        .transact(move |tx| -> Result<ChannelSummary, Refusal> {
            if stored::count(tx)? >= MOST_CHANNELS {
                return Err(Refusal::new(
                    StatusCode::CONFLICT,
                    "too_many_channels",
                    format!("there are {MOST_CHANNELS} channels already"),
                ));
            }
            let id = stored::insert(tx, &settings, (&place, &sealed), now)?;
            let id = id.ok_or_else(|| taken(&settings))?;
            let words = (
                "notification_channel.create",
                "notification.channel_created",
            );
            note(tx, &by, words, (None, Some(&settings)), now)?;
            let made = stored::find(tx, id)?.ok_or_else(Refusal::internal)?;
            Ok(summary(&shared, tx, made)?)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Shows a channel, without what is secret.
#[utoipa::path(
    get, path = "/api/v1/notifications/channels/{id}", tag = "notifications",
    params(("id" = i64, Path, description = "Number of the channel")),
    responses((status = 200, description = "The channel", body = ChannelSummary))
)]
pub async fn show(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
) -> Result<Json<ChannelSummary>, Refusal> {
    let shared = app.clone();
    let found = app
        .store
        .read(move |tx| -> Result<ChannelSummary, Refusal> {
            let found = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            Ok(summary(&shared, tx, found)?)
        })
        .await?;
    Ok(Json(found))
}

/// Replaces a channel. Secrets that are left out stay as they are, as long as they go where they went before;
/// null takes one away.
#[utoipa::path(
    put, path = "/api/v1/notifications/channels/{id}", tag = "notifications", request_body = NewChannel,
    params(("id" = i64, Path, description = "Number of the channel")),
    responses((status = 200, description = "As it is now", body = ChannelSummary))
)]
pub async fn replace(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
    Strict(new): Strict<NewChannel>,
) -> Result<Json<ChannelSummary>, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let shared = app.clone();
    let changed = app
        .store
        .transact(move |tx| -> Result<ChannelSummary, Refusal> {
            let before = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            // Secrets that cannot be opened cannot stay: they have to be set again.
            let kept = shared.courier.open(&before).unwrap_or_default();
            let (settings, kept) = read(&shared, new.clone(), Some((&before.settings, &kept)))?;
            let sealed = shared.courier.seal(&before.place, &settings, &kept)?;
            if !stored::update(tx, id, &settings, &sealed, now)? {
                return Err(taken(&settings));
            }
            let words = (
                "notification_channel.change",
                "notification.channel_changed",
            );
            note(
                tx,
                &by,
                words,
                (Some(&before.settings), Some(&settings)),
                now,
            )?;
            let changed = stored::find(tx, id)?.ok_or_else(Refusal::internal)?;
            Ok(summary(&shared, tx, changed)?)
        })
        .await?;
    app.courier.wake.notify_one();
    Ok(Json(changed))
}

/// Forgets a channel, with its messages.
#[utoipa::path(
    delete, path = "/api/v1/notifications/channels/{id}", tag = "notifications",
    params(("id" = i64, Path, description = "Number of the channel")),
    responses((status = 204, description = "Forgotten"))
)]
pub async fn remove(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
) -> Result<StatusCode, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let before = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            stored::remove(tx, id)?;
            let words = (
                "notification_channel.remove",
                "notification.channel_removed",
            );
            Ok(note(tx, &by, words, (Some(&before.settings), None), now)?)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends a test message now, once, and answers what the other side said; also to a channel that is switched off.
#[utoipa::path(
    post, path = "/api/v1/notifications/channels/{id}/test", tag = "notifications",
    params(("id" = i64, Path, description = "Number of the channel")),
    responses((status = 200, description = "What became of it", body = TestAnswer))
)]
pub async fn test(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
) -> Result<Json<TestAnswer>, Refusal> {
    let (now, by, name) = (clock::now(), actor(&principal, &request_id), new_name()?);
    let begun = Stopwatch::start();
    let called = name.clone();
    let (channel, content, row) = app
        .store
        .transact(move |tx| begin_test(tx, id, &called, &by, now))
        .await?;
    let parcel = Parcel {
        name: &name,
        content: &content,
        now,
    };
    let report = app.courier.send(&channel, parcel).await;
    let is_taken = report.outcome == Outcome::Taken;
    let outcome = if is_taken { "delivered" } else { "given_up" };
    app.metrics
        .notification(channel.settings.kind.name(), outcome);
    let written = report.clone();
    app.store
        .transact(move |tx| end_test(tx, id, row, &written, clock::now()))
        .await?;
    app.courier.wake.notify_one();
    Ok(Json(TestAnswer {
        delivered: is_taken,
        status: report.status,
        said: report.said,
        error: report.error,
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

fn begin_test(
    tx: &mut Tx<'_>,
    id: i64,
    name: &str,
    by: &Actor,
    now: Timestamp,
) -> Result<(Stored, Content, i64), Refusal> {
    let channel = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
    let tried = deliveries::tried_since(tx, id, now.plus_ms(-MINUTE_MS))?;
    if tried >= u64::from(channel.settings.most_per_minute) {
        let refusal = Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_messages",
            "the channel had as many messages as it takes in a minute",
        );
        return Err(refusal.with_header(header::RETRY_AFTER, HeaderValue::from(60)));
    }
    let content = Content::Event(Notice::test(&channel.settings.name, now));
    let new = New {
        channel: id,
        event: None,
        name,
        content: &content,
    };
    let row = deliveries::add(tx, &new, now)?.ok_or_else(Refusal::internal)?;
    // Taken before anybody sees it. If this program dies now, it is given up like any other that is a day old.
    let until = now.plus_ms(holdfast_domain::notification::schedule::GIVE_UP_MS);
    deliveries::claim(tx, row, 0, now, until)?;
    let entry = NewEntry {
        action: "notification_channel.test",
        subject_kind: "notification_channel",
        subject: channel.settings.name.clone(),
        before: None,
        after: None,
    };
    audit::append(tx, by, &entry, now)?;
    Ok((channel, content, row))
}

fn end_test(
    tx: &mut Tx<'_>,
    id: i64,
    row: i64,
    report: &Report,
    now: Timestamp,
) -> Result<(), StoreError> {
    let answer = Answer {
        status: report.status,
        error: report.error.as_deref(),
    };
    let is_taken = report.outcome == Outcome::Taken;
    let state = if is_taken { "delivered" } else { "failed" };
    deliveries::end(tx, (row, 1), state, &answer, now)?;
    if is_taken {
        // Whoever mended the receiver need not wait for the next try.
        stored::taken(tx, id, now)?;
    }
    Ok(())
}

/// Lists the last messages to a channel, newest first: those that wait, and a thousand that are over.
#[utoipa::path(
    get, path = "/api/v1/notifications/channels/{id}/deliveries", tag = "notifications",
    params(("id" = i64, Path, description = "Number of the channel"), PageParams),
    responses((status = 200, description = "One page of messages", body = Page<DeliveryEntry>))
)]
pub async fn deliveries(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<DeliveryEntry>>, Refusal> {
    let size = page_size(params.limit)?;
    let before = cursor(params.cursor.as_deref(), i64::MAX)?;
    let found = app
        .store
        .read(move |tx| -> Result<Vec<Delivery>, Refusal> {
            stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            Ok(deliveries::list(tx, id, before, size)?)
        })
        .await?;
    Ok(Json(page(found, size, |delivery| delivery.id)))
}
