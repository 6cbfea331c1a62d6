//! Facts about the stream of events.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use axum::body::Body;
use holdfast_api::http as surface;
use holdfast_api::store::events::{self, NewEvent};
use holdfast_api::store::{Store, StoreError, Tx};
use holdfast_api::systemd::Systemd;
use holdfast_api::{params, server};
use holdfast_proto::time::Timestamp;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt as _;

use crate::support::Place;
use crate::support::api::{Api, wait_for};

crate::on_both_databases![
    events_come_as_they_happen_and_only_those_asked_for,
    a_client_goes_on_where_it_left_off,
    a_client_that_was_away_too_long_is_told_so,
    a_revoked_token_ends_its_stream,
];

/// How long something may take that must happen.
const DEADLINE: Duration = Duration::from_secs(10);

struct Stream {
    body: Body,
    text: String,
}

#[derive(Debug)]
struct Message {
    id: i64,
    kind: String,
    data: Value,
}

impl Stream {
    async fn open(api: &Api, query: &str, last_id: Option<i64>) -> Self {
        Self::open_as(api, &api.admin, query, last_id)
            .await
            .unwrap()
    }

    /// A stream, or the status of the refusal.
    async fn open_as(
        api: &Api,
        token: &str,
        query: &str,
        last_id: Option<i64>,
    ) -> Result<Self, u16> {
        let mut request = http::Request::builder()
            .uri(format!("/api/v1/events/stream{query}"))
            .header("authorization", format!("Bearer {token}"));
        if let Some(id) = last_id {
            request = request.header("last-event-id", id.to_string());
        }
        let request = request.body(Body::empty()).unwrap();
        let response = api.router.clone().oneshot(request).await.unwrap();
        if response.status() != 200 {
            return Err(response.status().as_u16());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Ok(Self {
            body: response.into_body(),
            text: String::new(),
        })
    }

    /// The next block of lines; none at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let rest = self.text.split_off(end + 2);
                let block = std::mem::replace(&mut self.text, rest);
                return Some(block.trim_end().to_owned());
            }
            let frame = self.body.frame().await?.unwrap();
            let data = frame.into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// The next message, which must come soon; none at the end.
    async fn message(&mut self) -> Option<Message> {
        let reading = async {
            loop {
                let block = self.block().await?;
                let field = |name: &str| {
                    let start = format!("{name}: ");
                    block.lines().find_map(|line| line.strip_prefix(&start))
                };
                if let Some(data) = field("data") {
                    return Some(Message {
                        id: field("id").unwrap().parse().unwrap(),
                        kind: field("event").unwrap_or("message").to_owned(),
                        data: serde_json::from_str(data).unwrap(),
                    });
                }
            }
        };
        tokio::time::timeout(DEADLINE, reading)
            .await
            .expect("a message, or the end")
    }

    async fn event(&mut self) -> Value {
        let message = self.message().await.unwrap();
        assert_eq!(message.kind, "message", "{message:?}");
        assert_eq!(message.data["id"], message.id);
        message.data
    }
}

fn record(tx: &mut Tx<'_>, kind: &str) -> Result<(), StoreError> {
    let event = NewEvent {
        kind,
        device: None,
        subject: None,
        detail: json!({}),
        delivery: None,
    };
    events::record(tx, &event, Timestamp::from_millis(5)).map(|_| ())
}

async fn record_many(store: &Store, count: usize) {
    store
        .transact(move |tx| (0..count).try_for_each(|_| record(tx, "many")))
        .await
        .unwrap();
}

async fn events_come_as_they_happen_and_only_those_asked_for(place: Place) {
    let api = Api::start(place).await;
    let first = api.enrol().await;
    let mut all = Stream::open(&api, "", None).await;
    let mut enrolled = Stream::open(&api, "?kind=device.enrolled", None).await;
    let of_first = format!("?device={}", first.uuid);
    let mut of_first = Stream::open(&api, &of_first, None).await;
    let second = api.enrol().await;
    let patch = Some(json!({ "name": "new" }));
    api.call("PATCH", &first.path(""), &api.admin, patch)
        .await
        .expect(200);

    for kind in ["enrolment_key.created", "device.enrolled", "device.changed"] {
        assert_eq!(all.event().await["kind"], kind);
    }
    assert_eq!(enrolled.event().await["device"], second.uuid);
    let changed = of_first.event().await;
    assert_eq!(changed["kind"], "device.changed");
    // A message is what the list shows.
    let listed = api.get("/api/v1/events?limit=1", &api.admin).await.json();
    assert_eq!(listed["items"][0], changed);
}

async fn a_client_goes_on_where_it_left_off(place: Place) {
    let api = Api::start(place).await;
    record_many(&api.app.store, 150).await;
    let mut stream = Stream::open(&api, "?after=0", None).await;
    for id in 1..=100 {
        assert_eq!(stream.event().await["id"], id);
    }
    drop(stream);
    record_many(&api.app.store, 50).await;
    // What the browser remembers counts before what the page once asked for.
    let mut stream = Stream::open(&api, "?after=7", Some(100)).await;
    for id in 101..=200 {
        assert_eq!(stream.event().await["id"], id);
    }
    record_many(&api.app.store, 1).await;
    assert_eq!(stream.event().await["id"], 201);
    for (query, last_id) in [("?after=-1", None), ("?after=x", None), ("?befor=1", None)] {
        let refused = Stream::open_as(&api, &api.admin, query, last_id).await;
        assert_eq!(refused.err(), Some(400), "{query}");
    }
}

async fn a_client_that_was_away_too_long_is_told_so(place: Place) {
    let api = Api::start(place).await;
    record_many(&api.app.store, 10).await;
    let at = Timestamp::from_millis;
    let store = &api.app.store;
    store
        .transact(move |tx| events::prune(tx, at(6), at(7)))
        .await
        .unwrap();
    record_many(store, 2).await;
    let mut stream = Stream::open(&api, "", Some(4)).await;
    let gap = stream.message().await.unwrap();
    assert_eq!((gap.id, gap.kind.as_str()), (10, "gap"));
    assert_eq!(gap.data, json!({ "after": 4, "through": 10 }));
    assert_eq!(stream.event().await["id"], 11);
    assert_eq!(stream.event().await["id"], 12);
    // An id that was never given out: this is another database than the client knew.
    let mut stream = Stream::open(&api, "", Some(1_000)).await;
    let gap = stream.message().await.unwrap();
    assert_eq!((gap.id, gap.kind.as_str()), (12, "gap"));
    record_many(store, 1).await;
    assert_eq!(stream.event().await["id"], 13);
}

async fn a_revoked_token_ends_its_stream(place: Place) {
    let api = Api::start(place).await;
    let viewer = api.token("viewer").await;
    let mut stream = Stream::open_as(&api, &viewer, "", None).await.unwrap();
    api.enrol().await;
    assert_eq!(stream.event().await["kind"], "enrolment_key.created");
    assert_eq!(stream.event().await["kind"], "device.enrolled");
    let listed = api.get("/api/v1/tokens", &api.admin).await.json();
    let id = listed["items"][1]["id"].clone();
    api.call("DELETE", &format!("/api/v1/tokens/{id}"), &api.admin, None)
        .await
        .expect(204);
    // The revocation is itself an event, which this token must not see any more.
    assert!(stream.message().await.is_none());
}

#[tokio::test]
async fn an_event_that_is_committed_late_is_not_skipped() {
    let place = tokio::task::spawn_blocking(Place::postgres).await.unwrap();
    let api = Api::start(place).await;
    let mut stream = Stream::open(&api, "", None).await;
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let has_recorded = Arc::new(AtomicBool::new(false));
    let recorded = Arc::clone(&has_recorded);
    let store = api.app.store.clone();
    let slow = tokio::spawn(async move {
        store
            .transact(move |tx| {
                record(tx, "slow")?;
                recorded.store(true, Ordering::Relaxed);
                // Its number is taken, and it is not committed until it is told to.
                let _ = gate.lock().unwrap().recv_timeout(DEADLINE);
                Ok::<_, StoreError>(())
            })
            .await
    });
    wait_for("the slow one has its number", || async {
        has_recorded.load(Ordering::Relaxed)
    })
    .await;
    let store = api.app.store.clone();
    let quick = tokio::spawn(async move { store.transact(|tx| record(tx, "quick")).await });
    wait_for("the quick one is done, or waits", || async {
        let waiting = api
            .app
            .store
            .read(|tx| {
                tx.query(
                    "select cast(pid as bigint) from pg_stat_activity
                     where datname = current_database() and wait_event_type = 'Lock'",
                    params![],
                )
            })
            .await
            .unwrap();
        quick.is_finished() || !waiting.is_empty()
    })
    .await;
    let mut seen = Vec::new();
    if quick.is_finished() {
        // It overtook the slow one: whoever follows sees it now, and must still see the other.
        seen.push(stream.event().await);
    }
    go.send(()).unwrap();
    slow.await.unwrap().unwrap();
    quick.await.unwrap().unwrap();
    while seen.len() < 2 {
        seen.push(stream.event().await);
    }
    assert_eq!(
        (&seen[0]["kind"], &seen[1]["kind"]),
        (&json!("slow"), &json!("quick"))
    );
    assert!(seen[0]["id"].as_i64() < seen[1]["id"].as_i64());
}

#[tokio::test]
async fn a_replica_hears_of_events_that_another_one_recorded() {
    let place = tokio::task::spawn_blocking(Place::postgres).await.unwrap();
    let other = place.location.clone();
    let api = Api::start(place).await;
    let mut stream = Stream::open(&api, "", None).await;
    let other = Store::open(other).await.unwrap();
    // Sooner than the stream looks by itself.
    record_many(&other, 1).await;
    assert_eq!(stream.event().await["kind"], "many");
}

#[tokio::test]
async fn a_token_does_not_take_the_places_of_all() {
    let api = Api::start(Place::sqlite()).await;
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(Stream::open(&api, "", None).await);
    }
    let refused = api.get("/api/v1/events/stream", &api.admin).await;
    assert_eq!(refused.expect(429).code(), "too_many_streams");
    let viewer = api.token("viewer").await;
    streams.push(Stream::open_as(&api, &viewer, "", None).await.unwrap());
    assert_eq!(api.app.streams.taken(), 17);
    drop(streams);
    wait_for("the places are free again", || async {
        api.app.streams.taken() == 0
    })
    .await;
    Stream::open(&api, "", None).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_cut_off_and_comes_back() {
    let api = Api::start(Place::sqlite()).await;
    record_many(&api.app.store, 300).await;
    let mut stream = Stream::open(&api, "?after=0", None).await;
    let begun = tokio::time::Instant::now();
    while api.app.streams.taken() > 0 {
        assert!(begun.elapsed() < Duration::from_mins(1));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // What was written ahead is still there, and no more than that.
    let mut last = 0;
    while let Some(message) = stream.message().await {
        assert_eq!(message.id, last + 1);
        last = message.id;
    }
    assert!((1..=65).contains(&last), "{last}");
    let mut stream = Stream::open(&api, "", Some(last)).await;
    for id in last + 1..=300 {
        assert_eq!(stream.event().await["id"], id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_says_that_it_lives_and_how_far_it_is() {
    let api = Api::start(Place::sqlite()).await;
    let mut stream = Stream::open(&api, "?kind=never", None).await;
    assert_eq!(stream.block().await.unwrap(), "retry: 2000\nid: 0");
    record_many(&api.app.store, 3).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(stream.block().await.unwrap(), ": nothing new\nid: 3");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn c18_streams_end_with_the_program() {
    let api = Api::start(Place::sqlite()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, stopping) = (surface::router(api.app.clone()), api.app.stopping.clone());
    let ended = tokio::spawn(async move {
        let systemd = Systemd::default();
        server::serve(listener, router, Arc::default(), &systemd, stopping).await;
    });
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /api/v1/events/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        api.admin
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("retry: 2000") {
        let byte = tokio::time::timeout(DEADLINE, client.read_u8()).await;
        read.push(byte.unwrap().unwrap());
    }
    api.stop.send(true).unwrap();
    // Before the server gives up on open requests.
    tokio::time::timeout(Duration::from_secs(5), ended)
        .await
        .unwrap()
        .unwrap();
    client.read_to_end(&mut read).await.unwrap();
    assert!(read.ends_with(b"\r\n0\r\n\r\n"), "the body has its end");
}
