//! Facts about sending: once, signed, again after trouble, and never too much.

use holdfast_api::store::StoreError;
use holdfast_api::store::notification_deliveries as stored;
use holdfast_api::tasks::notify;
use holdfast_api::{clock, params};
use serde_json::{Value, json};

use super::{SIGNING, deliveries, later, make, signature, start, webhook};
use crate::support::Place;
use crate::support::api::{Api, wait_for};
use crate::support::receiver::{Receiver, Reply, status};

crate::on_both_databases![
    an_event_is_told_once_and_signed,
    a_receiver_in_trouble_is_tried_again,
    a_program_that_dies_in_the_middle_loses_nothing,
    an_event_that_becomes_visible_late_is_told,
    a_storm_is_summed_up,
    two_programs_tell_once,
    a_channel_is_told_what_it_wants,
    messages_that_are_over_are_forgotten,
];

async fn an_event_is_told_once_and_signed(place: Place) {
    let api = start(place).await;
    let receiver = Receiver::start().await;
    // What happened before is told nobody.
    api.enrol().await;
    let channel = make(&api, webhook(&receiver)).await;
    let device = api.enrol().await;
    for wait_ms in [0, 1_000, 120_000, 400_000, 500_000] {
        later(&api, wait_ms).await;
    }
    let [one] = receiver.received().try_into().unwrap();
    assert_eq!(one.path, "/hook/canary-path");
    let body = one.json();
    assert_eq!(body["event"]["kind"], "device.enrolled");
    assert_eq!(body["event"]["device"], device.uuid.as_str());
    assert_eq!(body["title"], "box is a new device");
    assert_eq!(one.header("content-type"), "application/json");
    assert_eq!(one.header("x-holdfast-event"), "device.enrolled");
    let name = one.header("x-holdfast-delivery");
    assert_eq!((body["delivery"].as_str(), name.len()), (Some(name), 32));
    let signed = one.header("x-holdfast-signature");
    assert!(signature(SIGNING, signed, &one.body), "{signed}");
    assert!(!signature("another-key-0123456789", signed, &one.body));
    let [row] = deliveries(&api, &channel).await.try_into().unwrap();
    assert_eq!(
        (
            &row["state"],
            &row["attempts"],
            &row["status"],
            &row["error"]
        ),
        (&json!("delivered"), &json!(1), &json!(200), &json!(null))
    );
    assert_eq!(
        (row["delivery"].as_str(), &row["next_attempt_at"]),
        (Some(name), &json!(null))
    );
    let shown = api.get(&channel, &api.admin).await.expect(200).json();
    assert!(
        shown["taken_at"].is_string() && shown["waiting"] == 0,
        "{shown}"
    );
}

async fn a_receiver_in_trouble_is_tried_again(place: Place) {
    let api = start(place).await;
    let receiver = Receiver::start().await;
    let channel = make(&api, webhook(&receiver)).await;
    receiver.reply([status(500), status(404)]);
    api.enrol().await;
    let begun = later(&api, 0).await;
    let [row] = deliveries(&api, &channel).await.try_into().unwrap();
    assert_eq!(
        (&row["state"], &row["status"]),
        (&json!("waiting"), &json!(500))
    );
    let shown = api.get(&channel, &api.admin).await.expect(200).json();
    assert_eq!(
        (&shown["failures"], &shown["waiting"]),
        (&json!(1), &json!(1))
    );
    // Not at once.
    assert!(
        notify::run_once(&api.app, begun.plus_ms(500))
            .await
            .unwrap()
    );
    assert_eq!(receiver.received().len(), 1);
    later(&api, 61_000).await;
    assert_eq!(receiver.received().len(), 2);
    later(&api, 200_000).await;
    let tries = receiver.received();
    assert_eq!(tries.len(), 3);
    for again in &tries[1..] {
        assert_eq!(again.body, tries[0].body, "the same message");
        assert_eq!(
            again.header("x-holdfast-delivery"),
            tries[0].header("x-holdfast-delivery")
        );
        assert!(signature(
            SIGNING,
            again.header("x-holdfast-signature"),
            &again.body
        ));
    }
    let [row] = deliveries(&api, &channel).await.try_into().unwrap();
    assert_eq!(
        (&row["state"], &row["attempts"]),
        (&json!("delivered"), &json!(3))
    );
    // What is wrong with the message itself is not tried again, and is an event.
    receiver.reply([Reply::Status(422, Vec::new(), "no thanks".into())]);
    api.enrol().await;
    later(&api, 300_000).await;
    later(&api, 400_000).await;
    assert_eq!(receiver.received().len(), 4);
    let row = deliveries(&api, &channel).await.remove(0);
    assert_eq!(row["state"], "failed");
    let error = format!("{} answered 422: no thanks", receiver.address);
    assert_eq!(row["error"], error);
    let events = api
        .get("/api/v1/events?kind=notification.failed", &api.admin)
        .await;
    let events = events.expect(200).json();
    assert_eq!(events["items"][0]["detail"]["error"], error);
}

async fn a_program_that_dies_in_the_middle_loses_nothing(place: Place) {
    let api = start(place).await;
    let receiver = Receiver::start().await;
    let channel = make(&api, webhook(&receiver)).await;
    api.enrol().await;
    receiver.reply([Reply::Silence]);
    let app = api.app.clone();
    let now = clock::now();
    let sending = tokio::spawn(async move { notify::run_once(&app, now).await });
    let asked = receiver.clone();
    wait_for("the message arrived", || async {
        asked.received().len() == 1
    })
    .await;
    // It dies before it hears what became of it.
    sending.abort();
    let _ = sending.await;
    api.enrol().await;
    let Api {
        place, app, router, ..
    } = api;
    drop((app, router));
    let again = start(place).await;
    // Nobody else sends while the dead one might be alive.
    let now = clock::now();
    assert!(!notify::run_once(&again.app, now).await.unwrap());
    assert_eq!(receiver.received().len(), 1);
    for wait_ms in [65_000, 130_000, 200_000, 300_000] {
        later(&again, wait_ms).await;
    }
    let names: Vec<String> = receiver
        .received()
        .iter()
        .map(|one| one.header("x-holdfast-delivery").to_owned())
        .collect();
    let [first, second, third] = names.try_into().unwrap();
    // The other one first: it was due, while the first was left to the dead program for a while.
    assert_eq!(first, third, "again, under the same name");
    assert_ne!(first, second);
    let rows = deliveries(&again, &channel).await;
    assert!(
        rows.len() == 2 && rows.iter().all(|row| row["state"] == "delivered"),
        "{rows:?}"
    );
}

/// An event with a number, as if its transaction was committed now.
async fn commit(api: &Api, id: i64) {
    let now = clock::now();
    api.app
        .store
        .transact(move |tx| {
            tx.execute(
                "insert into events (id, kind, subject, detail, at) values ($1, 'device.offline', $2, '{}', $3)",
                params![id, format!("n{id}"), now],
            )
        })
        .await
        .unwrap();
}

async fn an_event_that_becomes_visible_late_is_told(place: Place) {
    let api = start(place).await;
    let receiver = Receiver::start().await;
    make(&api, webhook(&receiver)).await;
    let told = || {
        let all = receiver.received();
        let names = all
            .iter()
            .map(|one| one.json()["event"]["subject"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    commit(&api, 1_001).await;
    later(&api, 0).await;
    assert_eq!(told(), ["n1001"]);
    // Its number was given out before, its transaction took longer.
    commit(&api, 1_000).await;
    later(&api, 30_000).await;
    assert_eq!(told(), ["n1001", "n1000"]);
    commit(&api, 1_002).await;
    later(&api, 200_000).await;
    commit(&api, 999).await;
    later(&api, 250_000).await;
    assert_eq!(told(), ["n1001", "n1000", "n1002", "n999"]);
    // Nothing is kept of what is settled, and nothing is told twice for it.
    for wait_ms in [400_000, 600_000, 900_000] {
        later(&api, wait_ms).await;
    }
    let (cursor, seen) = api
        .app
        .store
        .read(|tx| {
            let cursor = tx.query("select event_id from notification_cursor", params![])?;
            let seen = tx.query("select event_id from notification_seen", params![])?;
            Ok::<_, StoreError>((cursor[0].int(0)?, seen.len()))
        })
        .await
        .unwrap();
    assert_eq!((cursor, seen), (1_002, 0));
    assert_eq!(told().len(), 4);
}

async fn a_storm_is_summed_up(place: Place) {
    let api = start(place).await;
    let receiver = Receiver::start().await;
    let mut body = webhook(&receiver);
    body["most_per_minute"] = 3.into();
    let channel = make(&api, body).await;
    for id in 1_000..1_250 {
        commit(&api, id).await;
    }
    let now = later(&api, 0).await;
    let told = |from: usize| {
        let all = receiver.received();
        let kinds = all[from..]
            .iter()
            .map(|one| one.header("x-holdfast-event").to_owned());
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(told(0)[..2], ["device.offline", "device.offline"]);
    // Looked at in batches: what a later one brings waits for the next minute.
    let third = receiver.received()[2].json();
    let summed = third["summary"]["kinds"]["device.offline"]
        .as_u64()
        .unwrap();
    assert!((50..100).contains(&summed), "{third}");
    assert_eq!(receiver.received().len(), 3);
    assert!(
        notify::run_once(&api.app, now.plus_ms(30_000))
            .await
            .unwrap()
    );
    assert_eq!(receiver.received().len(), 3, "the minute is not over");
    for minute in 1..60 {
        assert!(
            notify::run_once(&api.app, now.plus_ms(minute * 65_000))
                .await
                .unwrap()
        );
    }
    let all = receiver.received();
    let count = |one: &Value| match one["summary"]["kinds"]["device.offline"].as_u64() {
        Some(count) => count,
        None => u64::from(one["event"]["kind"] == "device.offline"),
    };
    let sum: u64 = all.iter().map(|one| count(&one.json())).sum();
    assert_eq!(sum, 250, "every event is in one message");
    assert!(all.len() <= 6, "{}", all.len());
    let page = api
        .get(&format!("{channel}/deliveries?limit=200"), &api.admin)
        .await;
    let states = page.expect(200).json();
    let states = states["items"].as_array().unwrap();
    assert!(states.iter().any(|row| row["state"] == "summed_up"));
    assert!(states.iter().all(|row| row["state"] != "waiting"));
}

async fn two_programs_tell_once(place: Place) {
    let api = start(place).await;
    let receiver = Receiver::start().await;
    make(&api, webhook(&receiver)).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        api.place.dir.path().join("credentials-key"),
        dir.path().join("credentials-key"),
    )
    .unwrap();
    std::fs::write(dir.path().join("admin-token"), &api.admin).unwrap();
    let location = api.place.location.clone();
    let other = start(Place { dir, location }).await;
    for _ in 0..5 {
        api.enrol().await;
    }
    let now = clock::now();
    let (one, two) = tokio::join!(
        notify::run_once(&api.app, now),
        notify::run_once(&other.app, now)
    );
    assert!(one.unwrap() || two.unwrap(), "one of them did it");
    // The one that did it gives up; the other one goes on, later.
    assert!(
        notify::run_once(&other.app, now.plus_ms(70_000))
            .await
            .unwrap()
    );
    api.enrol().await;
    assert!(
        notify::run_once(&other.app, now.plus_ms(130_000))
            .await
            .unwrap()
    );
    let all = receiver.received();
    let mut names: Vec<&str> = all
        .iter()
        .map(|one| one.header("x-holdfast-delivery"))
        .collect();
    assert_eq!(names.len(), 6);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 6, "each once");
}

async fn a_channel_is_told_what_it_wants(place: Place) {
    let api = start(place).await;
    let [shops, failures, off] = [
        Receiver::start().await,
        Receiver::start().await,
        Receiver::start().await,
    ];
    let with = |receiver: &Receiver, name: &str, more: Value| {
        let mut body = webhook(receiver);
        body["name"] = name.into();
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    make(&api, with(&shops, "shops", json!({ "fleet": "shops" }))).await;
    make(
        &api,
        with(
            &failures,
            "failures",
            json!({ "least_severity": "error", "events": ["*"] }),
        ),
    )
    .await;
    make(
        &api,
        with(&off, "off", json!({ "enabled": false, "events": ["*"] })),
    )
    .await;
    let device = api.enrol().await;
    let patch = json!({ "labels": { "fleet": "shops" } });
    api.call("PATCH", &device.path(""), &api.admin, Some(patch))
        .await
        .expect(200);
    api.enrol().await;
    later(&api, 0).await;
    let kinds: Vec<String> = shops
        .received()
        .iter()
        .map(|one| one.json()["event"]["kind"].as_str().unwrap().to_owned())
        .collect();
    // The device is in the fleet by the time it is told.
    assert_eq!(kinds, ["device.enrolled", "device.changed"]);
    assert_eq!(shops.received()[0].json()["event"]["fleet"], "shops");
    assert_eq!(failures.received().len() + off.received().len(), 0);
}

async fn messages_that_are_over_are_forgotten(place: Place) {
    let api = start(place).await;
    let receiver = Receiver::start().await;
    let channel = make(&api, webhook(&receiver)).await;
    let id: i64 = channel.rsplit('/').next().unwrap().parse().unwrap();
    for _ in 0..6 {
        api.enrol().await;
    }
    receiver.reply([status(500)]);
    later(&api, 0).await;
    later(&api, 61_000).await;
    let before = deliveries(&api, &channel).await;
    assert_eq!(before.len(), 6);
    api.enrol().await;
    receiver.reply([status(503)]);
    later(&api, 125_000).await;
    let gone = api
        .app
        .store
        .transact(move |tx| stored::prune(tx, id, 4))
        .await
        .unwrap();
    assert_eq!(gone, 2);
    let after = deliveries(&api, &channel).await;
    // What waits stays, and of the rest the newest.
    assert_eq!(after.len(), 5);
    assert_eq!(after[0]["state"], "waiting");
    assert_eq!(after[1..], before[..4]);
}

#[tokio::test]
async fn what_waited_for_a_day_is_old_news() {
    let api = start(Place::sqlite()).await;
    let receiver = Receiver::start().await;
    let channel = make(&api, webhook(&receiver)).await;
    receiver.reply((0..50).map(|_| status(503)));
    api.enrol().await;
    for hour in 0..24 {
        later(&api, hour * 3_600_000).await;
    }
    assert_eq!(deliveries(&api, &channel).await[0]["state"], "waiting");
    later(&api, 24 * 3_600_000 + 60_000).await;
    let tries = receiver.received().len();
    assert!((20..=25).contains(&tries), "{tries}");
    let [row] = deliveries(&api, &channel).await.try_into().unwrap();
    assert_eq!(
        (&row["state"], &row["status"]),
        (&json!("failed"), &json!(503))
    );
    let events = api
        .get("/api/v1/events?kind=notification.failed", &api.admin)
        .await;
    assert_eq!(
        events.expect(200).json()["items"].as_array().unwrap().len(),
        1
    );
    later(&api, 26 * 3_600_000).await;
    assert_eq!(receiver.received().len(), tries);
}

#[tokio::test]
async fn a_wish_for_peace_is_obeyed() {
    let api = start(Place::sqlite()).await;
    let receiver = Receiver::start().await;
    make(&api, webhook(&receiver)).await;
    let wish = vec![("retry-after", "600".to_owned())];
    receiver.reply([Reply::Status(429, wish, String::new())]);
    api.enrol().await;
    let begun = later(&api, 0).await;
    // Nor is anything else sent there meanwhile.
    api.enrol().await;
    for wait_ms in [60_000, 300_000, 590_000] {
        assert!(
            notify::run_once(&api.app, begun.plus_ms(wait_ms))
                .await
                .unwrap()
        );
        assert_eq!(receiver.received().len(), 1);
    }
    assert!(
        notify::run_once(&api.app, begun.plus_ms(605_000))
            .await
            .unwrap()
    );
    assert_eq!(receiver.received().len(), 3);
}

#[tokio::test]
async fn a_receiver_that_never_answers_keeps_nobody_waiting() {
    let api = start(Place::sqlite()).await;
    let (dead, alive) = (Receiver::start().await, Receiver::start().await);
    let silent = make(&api, webhook(&dead)).await;
    let mut body = webhook(&alive);
    body["name"] = "others".into();
    make(&api, body).await;
    dead.reply([Reply::Silence]);
    api.enrol().await;
    let app = api.app.clone();
    let now = clock::now();
    let sending = tokio::spawn(async move { notify::run_once(&app, now).await });
    wait_for("the other one is told", || async {
        alive.received().len() == 1
    })
    .await;
    assert!(!sending.is_finished(), "while the first is waited for");
    assert!(sending.await.unwrap().unwrap());
    let [row] = deliveries(&api, &silent).await.try_into().unwrap();
    assert_eq!(row["state"], "waiting");
    assert!(
        row["error"]
            .as_str()
            .unwrap()
            .contains("did not answer in time"),
        "{row}"
    );
    later(&api, 120_000).await;
    assert_eq!(deliveries(&api, &silent).await[0]["state"], "delivered");
}

#[tokio::test]
async fn the_task_sends_by_itself_and_ends() {
    let api = start(Place::sqlite()).await;
    let receiver = Receiver::start().await;
    make(&api, webhook(&receiver)).await;
    let mut tasks = holdfast_api::tasks::start(&api.app);
    api.enrol().await;
    wait_for("it was told", || async { receiver.received().len() == 1 }).await;
    api.stop.send(true).unwrap();
    let ending = async { while tasks.join_next().await.is_some() {} };
    tokio::time::timeout(std::time::Duration::from_secs(10), ending)
        .await
        .unwrap();
}
