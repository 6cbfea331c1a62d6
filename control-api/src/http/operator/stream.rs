//! Owns the stream of events: server-sent events (WHATWG HTML, section 9.2) that go on where a client left off.
//!
//! A stream is a position in the table of events and nothing else: what happens meanwhile is read from there in
//! small pages, whoever recorded it. Refuses to keep events for a client that does not take them.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use holdfast_domain::principal::Principal;
use holdfast_proto::id::DeviceId;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use utoipa::IntoParams;

use super::history::EventEntry;
use crate::app::Shared;
use crate::clock;
use crate::http::extract::Params;
use crate::http::problem::Refusal;
use crate::places::Place;
use crate::store::{StoreError, events, history, tokens};
use crate::telemetry::chain;

/// Streams at once in one process: each asks the store when something happens.
pub const MOST_STREAMS: usize = 256;
/// Streams of one token: a few pages of a dashboard and a few programs.
pub const MOST_STREAMS_OF_ONE: usize = 16;
/// Events read at a time; one is a few hundred bytes.
const PAGE: i64 = 64;
/// Events written ahead of what the client takes.
const BUFFER: usize = 64;
/// A client that takes nothing for so long with a full buffer is cut off, and comes back with its position.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a line is sent when nothing happens: proxies cut silent answers after a minute or less.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that come within this time are read together.
const GATHER: Duration = Duration::from_millis(50);
/// What a client is told to wait before it connects again.
const AGAIN_MS: u32 = 2_000;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Makes nginx and its like pass lines on as they come.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Which events, and from where on.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamParams {
    /// Only events after this number; without it, and without `Last-Event-ID`, from now on.
    after: Option<i64>,
    /// Only this kind, such as `device.enrolled`.
    kind: Option<String>,
    /// Only this device.
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
}

/// Follows events as they happen.
///
/// Each message has the number of an event as its `id`, and as its `data` the event in the form of the list. After
/// a break, a client that sends the last id it has (`Last-Event-ID`; browsers do so themselves) misses nothing
/// and gets nothing twice. A message of the type `gap` says that events after one number and up to another are no
/// longer there: whoever needs them reads the lists anew.
#[utoipa::path(
    get, path = "/api/v1/events/stream", tag = "history",
    params(
        StreamParams,
        ("Last-Event-ID" = Option<String>, Header, description = "The last id the client has; counts before `after`")
    ),
    responses((status = 200, description = "Messages, without end", body = String, content_type = "text/event-stream"))
)]
pub async fn follow(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    Params(params): Params<StreamParams>,
) -> Result<Response, Refusal> {
    let Principal::Operator { token, .. } = principal else {
        return Err(Refusal::unauthenticated());
    };
    let from = position(&headers)?.or(params.after);
    if from.is_some_and(i64::is_negative) {
        return Err(malformed("after must not be negative"));
    }
    let place = app.streams.take(token).ok_or_else(|| {
        Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_streams",
            format!(
                "a token may follow events {MOST_STREAMS_OF_ONE} times at once, all together {MOST_STREAMS} times"
            ),
        )
        .with_header(header::RETRY_AFTER, HeaderValue::from_static("10"))
    })?;
    // Listens before it looks: an event between the two is not lost.
    let news = app.store.new_events();
    let head = app
        .store
        .read(|tx| Ok::<_, Refusal>(history::head(tx)?))
        .await?;
    let (frames, body) = mpsc::channel(BUFFER);
    let follower = Follower {
        token,
        kind: params.kind,
        device: params.device,
        position: from.unwrap_or(head.last_event),
        frames,
        stopping: app.stopping.clone(),
        _place: place,
    };
    tokio::spawn(follower.run(app, news));
    let body = stream::unfold(body, |mut frames| async {
        let frame: Bytes = frames.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), frames))
    });
    Ok((
        [
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/event-stream"),
            ),
            (NO_BUFFERING, HeaderValue::from_static("no")),
        ],
        Body::from_stream(body),
    )
        .into_response())
}

fn malformed(detail: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "malformed_query", detail)
}

/// The number in `Last-Event-ID`.
fn position(headers: &HeaderMap) -> Result<Option<i64>, Refusal> {
    headers
        .get(LAST_EVENT_ID)
        .map(|value| {
            value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .filter(|number: &i64| !number.is_negative())
                .ok_or_else(|| malformed("Last-Event-ID is not an id that this server gave out"))
        })
        .transpose()
}

/// Why a stream ends.
enum End {
    /// The client is gone, or the server is about to be.
    Asked,
    /// The client does not take what it is sent.
    Slow,
    /// The token does not count any more.
    Revoked,
    /// The store could not be read.
    Failed(StoreError),
}

/// One look at the store.
struct Seen {
    is_allowed: bool,
    head: history::Head,
    events: Vec<events::Event>,
}

/// One client, from the first message to the last.
struct Follower {
    token: i64,
    kind: Option<String>,
    device: Option<DeviceId>,
    /// Everything up to this number was sent, or is not asked for.
    position: i64,
    frames: mpsc::Sender<Bytes>,
    stopping: watch::Receiver<bool>,
    _place: Place<i64>,
}

impl Follower {
    async fn run(mut self, app: Shared, mut news: watch::Receiver<u64>) {
        match self.follow(&app, &mut news).await {
            End::Asked => {}
            End::Slow => tracing::info!(
                token.id = self.token,
                "cut off a client that did not take its events"
            ),
            End::Revoked => tracing::info!(
                token.id = self.token,
                "ended a stream of events whose token counts no longer"
            ),
            End::Failed(error) => tracing::warn!(
                error = chain(&error),
                "ended a stream of events, which could not be read"
            ),
        }
    }

    async fn follow(&mut self, app: &Shared, news: &mut watch::Receiver<u64>) -> End {
        let hello = format!("retry: {AGAIN_MS}\nid: {}\n\n", self.position);
        if let Err(end) = self.send(hello).await {
            return end;
        }
        loop {
            news.borrow_and_update();
            let sent = match self.catch_up(app).await {
                Ok(sent) => sent,
                Err(end) => return end,
            };
            let has_news = tokio::select! {
                // The store lives as long as the program: no error comes from here.
                _ = news.changed() => true,
                () = tokio::time::sleep(KEEP_ALIVE) => false,
                () = self.frames.closed() => return End::Asked,
                () = stopped(&mut self.stopping) => return End::Asked,
            };
            if has_news {
                tokio::time::sleep(GATHER).await;
            } else if !sent {
                // The id lets a client of few kinds move on, and skip what it did not ask for.
                let alive = format!(": nothing new\nid: {}\n\n", self.position);
                if let Err(end) = self.send(alive).await {
                    return end;
                }
            }
        }
    }

    /// Sends everything there is after the position; says whether that was anything.
    async fn catch_up(&mut self, app: &Shared) -> Result<bool, End> {
        let mut has_sent = false;
        loop {
            let seen = self.look(app).await.map_err(End::Failed)?;
            if !seen.is_allowed {
                return Err(End::Revoked);
            }
            let is_whole = i64::try_from(seen.events.len()).is_ok_and(|count| count < PAGE);
            if let Some(through) = gap(self.position, &seen.head) {
                let frame = format!(
                    "event: gap\nid: {through}\ndata: {{\"after\":{},\"through\":{through}}}\n\n",
                    self.position
                );
                self.send(frame).await?;
                self.position = through;
                has_sent = true;
            }
            for event in seen.events {
                let id = event.id;
                if id <= self.position {
                    continue;
                }
                self.send(frame(event)).await?;
                self.position = id;
                has_sent = true;
            }
            if is_whole {
                // Numbers come in the order of commits: nothing can come below this one any more.
                self.position = self.position.max(seen.head.last_event);
                return Ok(has_sent);
            }
        }
    }

    async fn look(&self, app: &Shared) -> Result<Seen, StoreError> {
        let (token, after, device) = (self.token, self.position, self.device);
        let kind = self.kind.clone();
        let now = clock::now();
        app.store
            .read(move |tx| {
                let token = tokens::find(tx, token)?;
                let is_valid = |token: tokens::Token| token.expires_at.is_none_or(|end| end > now);
                Ok(Seen {
                    is_allowed: token.is_some_and(is_valid),
                    head: history::head(tx)?,
                    events: events::list_after(tx, kind.as_deref(), device, after, PAGE)?,
                })
            })
            .await
    }

    async fn send(&mut self, frame: String) -> Result<(), End> {
        tokio::select! {
            sent = tokio::time::timeout(PATIENCE, self.frames.send(frame.into())) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(End::Asked),
                Err(_) => Err(End::Slow),
            },
            () = stopped(&mut self.stopping) => Err(End::Asked),
        }
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone cannot ask any more: the same as asking.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Up to which number a client at this position missed events that it can no longer get.
fn gap(position: i64, head: &history::Head) -> Option<i64> {
    if position < head.events_pruned {
        Some(head.events_pruned)
    } else if position > head.last_event {
        // A number that this store never gave out: it is another one, or an older one.
        Some(head.last_event)
    } else {
        None
    }
}

fn frame(event: events::Event) -> String {
    let id = event.id;
    // Plain data: what cannot be written is sent as an event without content, under its number.
    let data = serde_json::to_string(&EventEntry::from(event)).unwrap_or_default();
    format!("id: {id}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use holdfast_domain::chain::Point;

    use super::*;

    #[test]
    fn a_gap_is_what_is_no_longer_there_or_never_was() {
        let head = history::Head {
            last_event: 20,
            events_pruned: 10,
            last_audit: Point::beginning(),
            audit_pruned: Point::beginning(),
        };
        assert_eq!(gap(0, &head), Some(10));
        assert_eq!(gap(9, &head), Some(10));
        assert_eq!(gap(10, &head), None);
        assert_eq!(gap(20, &head), None);
        assert_eq!(gap(21, &head), Some(20));
    }
}
